"""Measuring what survives, photo by photo."""
