"""Keys for different purposes out of one secret: HKDF with SHA-256 (RFC 5869)."""

from __future__ import annotations

import hmac

__all__ = ["hkdf"]

_HASH_BYTES = 32


def hkdf(secret: bytes, *, info: bytes, salt: bytes = b"", length: int = _HASH_BYTES) -> bytes:
    """`length` bytes that tell nothing of `secret`, nor of what another `info` gives.

    Source: RFC 5869, sections 2.2 and 2.3.
    """
    if not 0 < length <= 255 * _HASH_BYTES:
        raise ValueError(f"HKDF gives 1 to {255 * _HASH_BYTES} bytes, not {length}")
    key = hmac.digest(salt or bytes(_HASH_BYTES), secret, "sha256")
    block, found = b"", b""
    for number in range(1, -(-length // _HASH_BYTES) + 1):
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        found += block
    return found[:length]
