"""What an interrupted attempt left in its stage, for the next one to go on with."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress

from ...digest import CHUNK_BYTES, Hasher
from ...names import LOCK, MANIFEST, is_ours
from ...units import MIB
from ..trees import NewFile, Stored
from .fs import DIRECTORY, opened, read_at, split, zeros
from .trash import TREE, holders

__all__ = ["matching", "open_again", "unfinished", "walk", "written_at"]

_STEP_BYTES = 1 * MIB


def unfinished(parent: int, name: str) -> str | None:
    """The holder of tree `name` in the open directory `parent` that was written to last.

    One in which a version was complete, or moved aside, is not for going on with.
    """
    if name:
        entries = [entry for entry, kind in holders(parent, name) if kind == "tmp"]
    else:  # it lies in the tree itself
        entries = [e for e in os.listdir(parent) if e.startswith(".asyncsync-tmp-") and is_ours(e)]
    found = [(written_at(parent, entry), entry) for entry in entries]
    return max(found)[1] if found and max(found)[0] else None


def written_at(parent: int, entry: str) -> int:
    """When a stage was written to; 0 for what is none, or is whole."""
    with suppress(OSError), opened(parent, entry) as held:
        if TREE in os.listdir(held) and {LOCK, TREE}.issuperset(os.listdir(held)):
            with opened(held, TREE) as tree:
                if MANIFEST not in os.listdir(tree):
                    return os.fstat(tree).st_mtime_ns
    return 0


def open_again(tree: int, path: str) -> int:
    """Open a file of a stage to go on with it, also one that was finished and made read-only.

    Raises:
        OSError: it is not there, or no file.
    """
    directory, name = split(path)
    with opened(tree, directory) as held:
        if not stat.S_ISREG(os.stat(name, dir_fd=held, follow_symlinks=False).st_mode):
            raise FileNotFoundError(path)
        os.chmod(name, 0o600, dir_fd=held)
        return os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held)


def matching(fd: int, file: NewFile, chunks: Mapping[int, Stored]) -> frozenset[int]:
    """The chunks of an open file whose bytes have the digest that is expected."""
    return frozenset(n for n, one in chunks.items() if _digest(fd, file, n) == one.digest)


def _digest(fd: int, file: NewFile, number: int) -> str:
    start = number * CHUNK_BYTES
    end = min(file.size_bytes, start + CHUNK_BYTES)
    hasher, buffer = Hasher(), memoryview(bytearray(min(_STEP_BYTES, max(0, end - start))))
    for at in range(start, end, _STEP_BYTES):
        data = read_at(fd, min(_STEP_BYTES, end - at), at, buffer)
        hasher.update(data)
        if missing := min(_STEP_BYTES, end - at) - len(data):
            hasher.update(zeros(missing))  # a hole at the end
    return hasher.hexdigest()


def walk(tree: int, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Every path below an open directory, and whether it is a directory; parents first."""
    for name in os.listdir(tree):
        mode = os.stat(name, dir_fd=tree, follow_symlinks=False).st_mode
        yield prefix + name, stat.S_ISDIR(mode)
        if stat.S_ISDIR(mode):
            below = os.open(name, DIRECTORY, dir_fd=tree)
            try:
                yield from walk(below, f"{prefix}{name}/")
            finally:
                os.close(below)
