"""Images, the flips of their labels, and the two-layer erf network that learns them."""
