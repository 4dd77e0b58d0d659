"""Runs of any experiment: records, folders, and the curves and phases of what was recorded."""
