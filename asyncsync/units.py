"""Sizes and durations: parse `64MiB`, print them."""

from __future__ import annotations

import re

from .errors import ConfigError

__all__ = ["GIB", "KIB", "MIB", "format_amount", "format_bytes", "format_seconds", "parse_bytes"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Read `500`, `64MiB`, `1.5GB` or `10M` as a number of bytes.

    `KiB` and the bare letter `K` are 1024; `KB` is 1000.

    Raises:
        ConfigError: the text is not a size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a size; write it like 500, 64MiB or 1.5GB")
    number, letter, binary = match.groups()
    decimal = letter and not binary and text.strip().lower().endswith("b")
    power = " kmgt".index(letter.lower()) if letter else 0
    return int(float(number) * (1000 if decimal else 1024) ** power)


def format_bytes(size_bytes: float) -> str:
    """`1536` as `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """`75.2` as `1 min 15 s`, `0.25` as `0.25 s`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def format_amount(files: int, size_bytes: int) -> str:
    """`3 files (1.2 MiB)`."""
    noun = "file" if files == 1 else "files"
    return f"{files} {noun} ({format_bytes(size_bytes)})"
