"""Thin modules over the ops."""

__all__: list[str] = []
