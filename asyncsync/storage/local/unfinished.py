"""What an interrupted attempt left in its stage, for the next one to go on with."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Set
from contextlib import suppress

from ...digest import CHUNK_BYTES, Hasher
from ...names import LOCK, MANIFEST, is_stage
from ...units import MIB
from ..trees import NewFile
from .fs import DIRECTORY, opened, read_at, remove_if_empty, split, zeros
from .trash import TREE, holders

__all__ = ["forget_others", "has_digest", "unfinished", "written_at"]

_STEP_BYTES = 1 * MIB
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)


def unfinished(parent: int, name: str) -> str | None:
    """The holder of tree `name` in the open directory `parent` that was written to last.

    One in which a version was complete, or moved aside, is not for going on with.
    """
    if name:
        entries = [entry for entry, kind in holders(parent, name) if kind == "tmp"]
    else:  # it lies in the tree itself
        entries = [entry for entry in os.listdir(parent) if is_stage(entry)]
        entries = [entry for entry in entries if entry.startswith(".asyncsync-")]
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


def has_digest(tree: int, file: NewFile, number: int, expected: str) -> bool:
    """Whether a chunk of a staged file is the one that is expected; False if it is not there."""
    try:
        with opened(tree, file.path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            return _digest(fd, file, number) == expected
    except OSError as exc:
        if exc.errno not in _NOT_THERE:
            raise
        return False


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


def forget_others(tree: int, wanted: Set[str]) -> set[str]:
    """Leave in a stage the `wanted` files only, ready to be written to; the directories left.

    Names are compared as they are spelt. What has a second name, in a tree that it was linked
    from, is no file of the attempt's own; nor is anything but a regular file.
    """
    directories: set[str] = set()
    for path, found in reversed(list(walk(tree))):  # children first
        directory, name = split(path)
        with opened(tree, directory) as held:
            if stat.S_ISDIR(found.st_mode):
                if not remove_if_empty(held, name):
                    directories.add(path)
            elif path in wanted and stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                os.chmod(name, 0o600, dir_fd=held)
            else:
                os.unlink(name, dir_fd=held)
    return directories


def walk(tree: int, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Every path below an open directory, and what is there; parents first."""
    for name in os.listdir(tree):
        found = os.stat(name, dir_fd=tree, follow_symlinks=False)
        yield prefix + name, found
        if stat.S_ISDIR(found.st_mode):
            below = os.open(name, DIRECTORY, dir_fd=tree)
            try:
                yield from walk(below, f"{prefix}{name}/")
            finally:
                os.close(below)
