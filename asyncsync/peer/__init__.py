"""Serving a store to other nodes."""

from __future__ import annotations

__all__: list[str] = []
