"""Benchmarks of lnsim and of alternatives, and checks that they agree; not installed."""
