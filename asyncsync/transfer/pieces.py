"""A file of a source as a walk saw it, and the pieces that are read of it."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

import msgspec

from ..digest import Hasher, zeros_digest
from ..storage import Block, NewFile
from ..storage.local import data_extents, read_at, zeros
from ..units import KIB

__all__ = ["Moving", "Piece", "SourceFile", "Stamp", "is_sparse", "read_piece", "stamp_of"]


_CACHED_BYTES = 256 * KIB  # what was just read is hashed while it is in the processor's cache

Stamp = tuple[int, int, int, int, int, int]


class SourceFile(msgspec.Struct, frozen=True, gc=False):
    """A file and everything that changes when it does. A million of them are held at once."""

    path: str
    size_bytes: int
    mode: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int

    @property
    def stamp(self) -> Stamp:
        """What two versions of it differ in."""
        return (
            self.size_bytes,
            self.mode,
            self.mtime_ns,
            self.ctime_ns,
            self.device,
            self.inode,
        )

    @property
    def new(self) -> NewFile:
        return NewFile(self.path, self.size_bytes, self.mode, self.mtime_ns)


def stamp_of(found: os.stat_result) -> Stamp:
    """What the stamp of a file is while its status is that; of no regular file, none is like it."""
    mode = stat.S_IMODE(found.st_mode) & 0o777
    return (
        found.st_size,
        mode if stat.S_ISREG(found.st_mode) else -1,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_dev,
        found.st_ino,
    )


class Piece(NamedTuple):
    """Bytes that were read, with their digest."""

    block: Block
    digest: str


class Moving(Exception):  # noqa: N818 - never leaves the transfer floor
    """A file is not what the walk saw: it changed or vanished."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def is_sparse(found: os.stat_result) -> bool:
    """Whether there are holes in a file."""
    return found.st_blocks * 512 < found.st_size


def read_piece(
    fd: int, file: SourceFile, start: int, end: int, into: memoryview | None, *, sparse: bool
) -> Piece:
    """Read bytes `start` to `end` and hash them; holes are not read where it is `sparse`.

    Raises Moving when the file has become shorter.
    """
    extents = data_extents(fd, start, end) if sparse else None
    if extents == () and end > start:
        return Piece(Block(zeros(end - start), ()), zeros_digest(end - start))
    data = memoryview(bytearray(end - start)) if into is None else into[: end - start]
    hasher = Hasher()
    for at in range(0, len(data), _CACHED_BYTES):
        part = data[at : at + _CACHED_BYTES]
        if len(read_at(fd, len(part), start + at, part)) < len(part):
            raise Moving(file.path)
        hasher.update(part)
    return Piece(Block(data, extents), hasher.hexdigest())
