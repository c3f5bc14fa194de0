"""Serving the trees of one node to others."""

from .server import PeerServer

__all__ = ["PeerServer"]
