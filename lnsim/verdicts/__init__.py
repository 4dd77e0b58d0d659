"""What is claimed, held against what was measured: the commands `theory` and `reproduce`."""
