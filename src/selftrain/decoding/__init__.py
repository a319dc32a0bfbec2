"""Samplers and speculative decoding."""
