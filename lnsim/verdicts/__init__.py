"""Compares claims with measurements: the commands `theory` and `reproduce`."""
