"""Generators on tokens: networks, paths, samplers and guidance."""
