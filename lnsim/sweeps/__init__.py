"""Grids of runs: their points, their workers, their results file, their figures."""
