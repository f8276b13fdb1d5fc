"""Quantizers on grids of levels, and the scales of these grids."""
