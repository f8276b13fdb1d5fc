"""Data sets held in memory; each a function that returns a ``Dataset``."""
