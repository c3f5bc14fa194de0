"""What the two ends of a peer transfer have in common: words, no sockets and no files."""

from __future__ import annotations

__all__ = ()
