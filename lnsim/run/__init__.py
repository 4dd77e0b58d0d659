"""What any run has: curves and phases of what was recorded."""
