"""Figures: their style, their panels, and a file for each kind."""
