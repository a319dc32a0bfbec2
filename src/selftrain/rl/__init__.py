"""Agents and networks that learn values."""

__all__: list[str] = []
