"""Labelled images, label flips, and the two-layer erf network that is trained on them."""
