"""Serving the trees of one node to others."""

from .certificates import Certificates, prepare_certificates, server_context
from .keyfile import create_keys, load_keys, revoke, rotate_keys
from .onward import Onward
from .private_files import open_private_directory, read_private, write_private
from .server import PeerServer

__all__ = [
    "Certificates",
    "Onward",
    "PeerServer",
    "create_keys",
    "load_keys",
    "open_private_directory",
    "prepare_certificates",
    "read_private",
    "revoke",
    "rotate_keys",
    "server_context",
    "write_private",
]
