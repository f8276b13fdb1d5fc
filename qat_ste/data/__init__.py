"""Data sets: each is a function that returns a ``Dataset``."""
