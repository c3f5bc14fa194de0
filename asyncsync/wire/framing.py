"""Bytes of several files in one body, and files with holes. Pure; see docs/formats/peer.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..digest import CHUNK_BYTES
from ..errors import FormatError

__all__ = ["Batch", "extents_of", "extents_text", "join_batch", "split_batch"]


class Batch(NamedTuple):
    """Blobs and their bytes."""

    blobs: Sequence[int]
    data: Sequence[memoryview]


_COUNT_BYTES = 4
_MAX_BLOBS = 4096


def join_batch(blobs: Sequence[int]) -> bytes:
    """What stands before the bytes of several blobs: how many, and which."""
    return b"".join(number.to_bytes(_COUNT_BYTES, "big") for number in (len(blobs), *blobs))


def split_batch(body: memoryview, sizes: Sequence[int]) -> Batch:
    """Take a body apart.

    Args:
        sizes: of all blobs of the plan, by number.

    Raises:
        FormatError: it is not as long as it should be, or names blobs that are not known, or are
            longer than a chunk.
    """
    count = int.from_bytes(body[:_COUNT_BYTES], "big")
    start = _COUNT_BYTES * (count + 1)
    if not 0 < count <= _MAX_BLOBS or len(body) < start:
        raise FormatError("a batch whose head makes no sense")
    blobs = [int.from_bytes(body[at : at + 4], "big") for at in range(4, start, _COUNT_BYTES)]
    if any(blob >= len(sizes) for blob in blobs) or len(set(blobs)) < count:
        raise FormatError("a batch with a blob that is not in its plan, or is in it twice")
    if any(sizes[blob] > CHUNK_BYTES for blob in blobs):  # one digest would stand for several
        raise FormatError("a batch with a file of more than one chunk")
    data = list[memoryview]()
    for blob in blobs:
        data.append(body[start : start + sizes[blob]])
        start += sizes[blob]
    if start != len(body):
        raise FormatError("a batch that is not as long as its blobs are together")
    return Batch(blobs, data)


def extents_text(extents: Sequence[tuple[int, int]]) -> str:
    """Ranges of a chunk as a header: `0-4096,8192-12288`; ends are exclusive."""
    return ",".join(f"{start}-{end}" for start, end in extents)


def extents_of(text: str, size_bytes: int) -> tuple[tuple[int, int], ...]:
    """Read such a header. FormatError: they overlap, are out of order, or beyond the chunk."""
    found = list[tuple[int, int]]()
    at = 0
    for one in text.split(",") if text else ():
        start, _, end = one.partition("-")
        if not (start.isascii() and start.isdigit() and end.isascii() and end.isdigit()):
            raise FormatError("ranges that are none")
        pair = int(start[:19]), int(end[:19])
        if not at <= pair[0] < pair[1] <= min(size_bytes, CHUNK_BYTES):
            raise FormatError("ranges that are not in order, or not in their chunk")
        at = pair[1]
        found.append(pair)
    return tuple(found)
