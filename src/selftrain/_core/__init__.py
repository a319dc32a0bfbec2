"""Checks, configuration, randomness, files and logs: what every other layer may import."""
