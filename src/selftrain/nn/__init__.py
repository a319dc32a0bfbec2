"""Modules, and what is done to any module."""

from selftrain.nn.modes import training_mode

__all__ = ["training_mode"]
