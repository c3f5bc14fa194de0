"""The checksums that stores compute: CRC-32, CRC-32C, and those of parts put together. Pure."""

from __future__ import annotations

import base64
import zlib
from functools import cache

from .objects import Data

__all__ = ["combine_crc32", "combine_crc32c", "crc32", "crc32c", "crc_text"]

_CRC32 = 0xEDB88320  # the polynomials, bits reversed
_CRC32C = 0x82F63B78

_Matrix = tuple[int, ...]


def crc32(data: Data, value: int = 0) -> int:
    """CRC-32 of `data`, going on from `value`."""
    return zlib.crc32(data, value)


def crc32c(data: Data, value: int = 0) -> int:
    """CRC-32C (Castagnoli) of `data`, going on from `value`. Needs the `gcs` extra."""
    from crc32c import crc32c as compute  # noqa: PLC0415 - only who uses GCS has it

    return int(compute(data, value))


def crc_text(value: int) -> str:
    """A CRC as stores write it: base64 of four bytes, the highest first."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def combine_crc32(first: int, second: int, second_bytes: int) -> int:
    """CRC-32 of two pieces one after the other, of which the second has `second_bytes` bytes."""
    return _times(_zeros(_CRC32, second_bytes), first) ^ second


def combine_crc32c(first: int, second: int, second_bytes: int) -> int:
    """The same for CRC-32C."""
    return _times(_zeros(_CRC32C, second_bytes), first) ^ second


# A CRC is linear over GF(2): what `count` zero bytes make of one is a matrix of 32 columns, and
# squaring the matrix of n bytes gives that of 2n.


@cache
def _zeros(polynomial: int, count: int) -> _Matrix:
    if count == 0:
        return tuple(1 << bit for bit in range(32))
    half = _zeros(polynomial, count // 2)
    whole = tuple(_times(half, column) for column in half)
    return _one_byte(polynomial, whole) if count % 2 else whole


def _one_byte(polynomial: int, matrix: _Matrix) -> _Matrix:
    columns = list(matrix)
    for _ in range(8):
        columns = [(c >> 1) ^ (polynomial if c & 1 else 0) for c in columns]
    return tuple(columns)


def _times(matrix: _Matrix, vector: int) -> int:
    result = 0
    for column in matrix:
        if vector & 1:
            result ^= column
        vector >>= 1
    return result
