"""The program `asyncsync`: the library's events and errors, for people and for scripts."""

from __future__ import annotations

from .main import run

__all__ = ["run"]
