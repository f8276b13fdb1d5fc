"""Grids of levels and the scales that stretch them."""
