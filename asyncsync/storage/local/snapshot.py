"""A second version of a tree in a hidden sibling, made by the file system or by copying."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from contextlib import suppress
from typing import Literal

from ...errors import BusyError, quote
from ...names import LOCK, holder_name, is_snapshot, new_attempt
from .fs import (
    DIRECTORY,
    create_file,
    data_extents,
    make_directories,
    opened,
    read_at,
    remove_if_empty,
    remove_tree,
    split,
    write_at,
)
from .locks import Lock
from .stage import Stage
from .trash import TREE

__all__ = ["Holder", "Way", "free_bytes"]

Way = Literal["reflink", "copy", "link"]
"""How a file came into a holder: blocks shared until written to, bytes, or a second name."""

_FICLONE = 0x40049409  # linux/fs.h
_PIECE_BYTES = 16 * 1024 * 1024
_OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT)


def free_bytes(directory: str) -> int:
    """What an ordinary user may still write to the file system that `directory` is on."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


class Holder:
    """A private, locked directory beside a tree and, in `path`, a second version of that tree.

    Methods block; those that are about different files may be called from several threads at
    once. Nothing is flushed to the disk: a power cut takes the holder's use with it.

    Args:
        directory: absolute path of the tree; links in it are followed.
        mark: 32 hexadecimal digits that make its name the same each time; "": any.

    Raises:
        BusyError: somebody who sweeps took the new holder for abandoned.
        OSError: there can be no sibling on the same file system.
    """

    def __init__(self, directory: str, mark: str = "") -> None:
        real = os.path.realpath(directory)
        above, name = os.path.split(real)
        self._parent = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _check_sibling(self._parent, real)
            holder = holder_name(name, "snap", mark or new_attempt())
            if mark and os.path.lexists(os.path.join(above, holder)):  # somebody alive has it
                holder = holder_name(name, "snap", new_attempt())
            self._stage = Stage(self._parent, holder, quote(directory))
        except BaseException:
            os.close(self._parent)
            raise
        self._tree, self._made = self._stage.tree, set[str]()
        self.path = os.path.join(above, holder, TREE)
        try:
            os.stat(self.path)  # longer than that of the tree: too long, perhaps
        except BaseException:
            self.close()
            raise

    def begin(self, source: int, path: str, *, link: bool) -> Way:
        """Make file `path` of what is open as `source`; after "copy", `copy` has to fill it.

        Args:
            link: a second name for the same file will do, where it can have one.
        """
        make_directories(self._tree, split(path)[0], self._made)
        if link and self._link(source, path):
            return "link"
        fd = create_file(self._tree, path)
        try:
            return "reflink" if _reflink(source, fd) else "copy"
        finally:
            os.close(fd)

    def _link(self, source: int, path: str) -> bool:
        with opened(self._tree, split(path)[0]) as directory:
            try:
                # By way of the descriptor it is the file that was looked at, wherever links led.
                os.link(f"/proc/self/fd/{source}", split(path)[1], dst_dir_fd=directory)
            except OSError as exc:
                if exc.errno in _OUT_OF_ROOM:
                    raise
                return False  # no /proc, another file system, too many links, not the owner
        return True

    def copy(self, source: int, path: str, start: int, end: int) -> None:
        """Fill the bytes from `start` to `end`, or to where `source` ends; holes stay holes."""
        with opened(self._tree, path, os.O_RDWR) as fd:
            for first, last in data_extents(source, start, end):
                _copy_range(source, fd, start + first, start + last)

    def matches(self, source: int, path: str, size_bytes: int) -> bool:
        """Whether the copy, of `size_bytes`, is what `source` begins with."""
        with opened(self._tree, path, os.O_RDWR) as fd:
            os.ftruncate(fd, size_bytes)  # a hole at the end was never written
            for offset in range(0, size_bytes, _PIECE_BYTES):
                length = min(_PIECE_BYTES, size_bytes - offset)
                one, other = read_at(fd, length, offset), read_at(source, length, offset)
                if one != other:
                    return False
        return True

    def finish(self, path: str, size_bytes: int | None, mode: int, mtime_ns: int) -> None:
        """Set size (None leaves it), mode and time of a file that is not a link."""
        with opened(self._tree, path, os.O_RDWR) as fd:
            if size_bytes is not None:
                os.ftruncate(fd, size_bytes)  # a hole at the end was never written
            os.fchmod(fd, mode)
            os.utime(fd, ns=(mtime_ns, mtime_ns))

    def forget(self, path: str) -> None:
        """Remove a file if it is there, and the directories that only it needed."""
        above, name = split(path)
        try:
            with opened(self._tree, above) as directory:
                os.unlink(name, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        while above != ".":
            above, name = split(above)
            with opened(self._tree, above) as directory:
                if not remove_if_empty(directory, name):
                    return
            self._made.discard(f"{above}/{name}".removeprefix("./"))

    def make_directory(self, path: str, mode: int) -> None:
        """Make a directory, to stay empty."""
        make_directories(self._tree, path, self._made)
        with opened(self._tree, path) as fd:
            os.fchmod(fd, mode)

    def close(self) -> None:
        """Remove everything; what cannot be removed now is swept by a later holder."""
        self._stage.close()
        os.close(self._parent)


def _check_sibling(parent: int, tree: str) -> None:
    if tree == "/" or os.fstat(parent).st_dev != os.stat(tree).st_dev:
        raise OSError(errno.EXDEV, "a mount point has no sibling", tree)


def _reflink(source: int, fd: int) -> bool:
    """Let the file open as `fd` share the blocks of `source`; False where that cannot be."""
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(fd, _FICLONE, source)
    except OSError as exc:
        if exc.errno in _OUT_OF_ROOM:
            raise
        return False  # no such call, or none for this file: what is in the way meets the copy too
    return True


def _copy_range(source: int, fd: int, start: int, end: int) -> None:
    """Copy bytes to the same place; less only where the source ends."""
    while start < end:
        count = _copy_some(source, fd, start, end - start)
        if not count:
            return
        start += count


def _copy_some(source: int, fd: int, offset: int, size_bytes: int) -> int:
    if sys.platform == "linux":
        try:
            return os.copy_file_range(source, fd, size_bytes, offset, offset)
        except OSError as exc:
            if exc.errno in _OUT_OF_ROOM:
                raise
    piece = read_at(source, min(size_bytes, _PIECE_BYTES), offset)
    write_at(fd, piece, offset)
    return len(piece)


def sweep_beside(directory: str) -> None:
    """Remove what snapshots of this and other trees beside it left when their makers died."""
    above = os.path.dirname(os.path.realpath(directory))
    parent = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sweep(parent)
    finally:
        os.close(parent)


def _sweep(parent: int) -> None:
    """Remove the holders of all trees here whose makers have died.

    A checkpoint is saved under another name each time: one that died with its maker would stay
    for ever if only the next snapshot of the same tree looked for it.
    """
    for entry in filter(is_snapshot, os.listdir(parent)):
        with suppress(OSError):  # gone, or another user's
            held = os.open(entry, DIRECTORY, dir_fd=parent)
            try:
                _sweep_holder(held)
            finally:
                os.close(held)
            os.rmdir(entry, dir_fd=parent)


def _sweep_holder(held: int) -> None:
    try:
        lock = Lock.take(held, LOCK, "a snapshot")
    except BusyError:  # its maker is alive
        return
    try:
        remove_tree(held, TREE)
    finally:
        lock.release()
