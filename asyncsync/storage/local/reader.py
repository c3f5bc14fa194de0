"""Reading the files of a tree on disk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ...errors import IntegrityError, os_errors, quote
from ...names import NEXT, is_ours, sort_key
from ..trees import Block, NewFile
from .fs import data_extents, open_beneath, opened, read_at, zeros

__all__ = ["list_files", "read_block", "read_whole"]

_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


@contextmanager
def _file(root: int, file: NewFile, where: str) -> Iterator[int]:
    """Open a file where it is now: staged by a published update, or in its place."""
    flags = os.O_RDONLY | os.O_NONBLOCK
    fd = -1
    with os_errors("source", f"{where}/{file.path}"):
        for path in (f"{NEXT}/{file.path}", file.path):
            try:
                fd = open_beneath(root, path, flags)
                break
            except OSError as exc:
                if exc.errno not in _NO_FILE:
                    raise
    try:
        if fd < 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
            raise IntegrityError(
                f"{quote(file.path)} is missing in {where}", side="source", paths=[file.path]
            )
        with os_errors("source", f"{where}/{file.path}"):
            yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def read_block(
    root: int, file: NewFile, start: int, end: int, where: str, into: memoryview | None = None
) -> Block:
    """Bytes `start` to `end`, with the holes in them where the file is sparse."""
    with _file(root, file, where) as fd:
        found = os.fstat(fd)
        if end == file.size_bytes < found.st_size:
            raise _short(file, found.st_size, where)
        extents = None
        if found.st_blocks * 512 < found.st_size:
            extents = data_extents(fd, start, min(end, found.st_size))
            if not extents and found.st_size >= end:
                return Block(zeros(end - start), ())
        data = read_at(fd, end - start, start, into)
    if len(data) < end - start:
        raise _short(file, start + len(data), where)
    return Block(data, extents)


def read_whole(root: int, files: Sequence[NewFile], where: str) -> list[bytes]:
    """Whole small files, in order."""
    found: list[bytes] = []
    for file in files:
        with _file(root, file, where) as fd:
            # One byte more than listed shows a file that has grown.
            data = read_at(fd, file.size_bytes + 1, 0)
        if len(data) != file.size_bytes:
            raise _short(file, len(data), where)
        found.append(bytes(data))
    return found


def _short(file: NewFile, size_bytes: int, where: str) -> IntegrityError:
    return IntegrityError(
        f"{quote(file.path)} in {where} is not {file.size_bytes} bytes long as committed: "
        f"only {size_bytes} can be read"
        if size_bytes < file.size_bytes
        else f"{quote(file.path)} in {where} is longer than the {file.size_bytes} bytes committed",
        side="source",
        paths=[file.path],
    )


def list_files(root: int, prefix: str = "") -> list[NewFile]:
    """Every regular file below an open directory, without our own names."""
    found: list[NewFile] = []
    for name in sorted(os.listdir(root), key=sort_key):
        if is_ours(name):
            continue
        info = os.stat(name, dir_fd=root, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            with opened(root, name) as below:
                found += list_files(below, f"{prefix}{name}/")
        elif stat.S_ISREG(info.st_mode):
            mode = stat.S_IMODE(info.st_mode) & 0o777
            found.append(NewFile(prefix + name, info.st_size, mode, info.st_mtime_ns))
    return found
