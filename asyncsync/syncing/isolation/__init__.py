"""The engine apart from the caller's event loop: in a process or a thread of its own."""

from .client import Client

__all__ = ["Client"]
