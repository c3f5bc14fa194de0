"""Digests: BLAKE3 over files up to one chunk, and over the chunk digests above that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from blake3 import blake3

from .units import MIB

__all__ = [
    "ALGORITHM",
    "CHUNK_BYTES",
    "Hasher",
    "chunk_count",
    "digest",
    "tree_digest",
    "zeros_digest",
]

ALGORITHM = "blake3"
CHUNK_BYTES = 16 * MIB
_TREE_PREFIX = b"asyncsync chunk list v1\n"

Hasher = blake3


def digest(data: bytes | bytearray | memoryview) -> str:
    """The digest of `data`, 64 hexadecimal digits."""
    return blake3(data).hexdigest()


def chunk_count(size_bytes: int) -> int:
    """How many chunks a file has; a file up to one chunk, also an empty one, has 1."""
    return max(1, -(-size_bytes // CHUNK_BYTES))


def tree_digest(chunks: Sequence[str]) -> str:
    """The digest of a file made of `chunks` (their digests, in order).

    One chunk: its own digest. More: the digest of a fixed prefix and the raw chunk digests,
    so that the chunks can be hashed in parallel and a range can be verified alone.
    """
    if len(chunks) == 1:
        return chunks[0]
    return blake3(_TREE_PREFIX + b"".join(bytes.fromhex(c) for c in chunks)).hexdigest()


@lru_cache(maxsize=64)
def zeros_digest(size_bytes: int) -> str:
    """The digest of `size_bytes` zero bytes: what a hole in a sparse file hashes to."""
    return blake3(bytes(size_bytes)).hexdigest()
