"""Sweeps, grids of runs: their points, workers, results file and figures."""
