"""Figures: the style, the panels, and one file for each kind of figure."""
