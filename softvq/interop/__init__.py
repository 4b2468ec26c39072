"""Doors to other implementations: what they saved opens here, what is saved here opens there."""
