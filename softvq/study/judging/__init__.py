"""Measuring what survives, how sure that is, and whether it is enough."""
