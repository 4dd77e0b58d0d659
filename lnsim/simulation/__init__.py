"""Runs of the two-layer linear network: the driver, what is recorded, and its verification."""
