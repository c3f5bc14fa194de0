"""Base64 in the alphabet of URLs, without padding (RFC 4648, section 5)."""

from __future__ import annotations

import base64
import binascii

__all__ = ["decode", "encode"]


def encode(raw: bytes) -> str:
    """The text of `raw`."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """The bytes of `text`, of which they are the only spelling.

    Raises:
        ValueError: `encode` writes no such text.
    """
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as exc:
        raise ValueError("not base64url") from exc
    # The decoder skips characters that it does not know, and ignores the last bits.
    if encode(raw) != text:
        raise ValueError("not base64url in canonical form")
    return raw
