"""Generators on tokens: networks, processes, samplers and guidance."""
