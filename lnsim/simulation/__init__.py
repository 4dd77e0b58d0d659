"""Runs of linear networks: the driver, the recorder, and verification."""
