"""The root marker of a directory: one for everybody, however many write one at the same moment."""

from __future__ import annotations

import errno
import os
from contextlib import closing, suppress

from ...names import ROOT_MARKER, holder_name, new_attempt
from .fs import create_file, opened, read_at, remove_tree, rename_new, write_at
from .place import Place, Root

__all__ = ["mark_root"]

_MAX_BYTES = 4096
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


def mark_root(base: Root, tree: str, marker: bytes) -> bytes:
    """Leave a marker in a directory, unless there is one; the one that is there then."""
    with closing(Place(base, f"{tree}/{ROOT_MARKER}".lstrip("/"))) as place:
        with suppress(FileNotFoundError):
            return _read(place.parent)
        _offer(place.parent, marker)
        place.flush()
        return _read(place.parent)


def _read(parent: int) -> bytes:
    with opened(parent, ROOT_MARKER, os.O_RDONLY | os.O_NONBLOCK) as fd:
        return bytes(read_at(fd, _MAX_BYTES, 0))


def _offer(parent: int, marker: bytes) -> None:
    """Give a marker its name once it is whole and on disk; no effect if another has that name."""
    spare = holder_name("", "tmp", new_attempt())
    os.mkdir(spare, dir_fd=parent)
    try:
        with opened(parent, spare) as held:
            _write(held, marker)
            _publish(held, parent, marker)
    finally:
        remove_tree(parent, spare)


def _publish(held: int, parent: int, marker: bytes) -> None:
    try:
        if not rename_new(held, ROOT_MARKER, parent, ROOT_MARKER):  # as on NFS
            os.link(ROOT_MARKER, ROOT_MARKER, src_dir_fd=held, dst_dir_fd=parent)
    except FileExistsError:
        return  # another was quicker
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        # Some file systems in user space can do neither: there, an empty one is seen for a moment.
        with suppress(FileExistsError):
            _write(parent, marker)


def _write(directory: int, marker: bytes) -> None:
    fd = create_file(directory, ROOT_MARKER, 0o666)
    try:
        write_at(fd, marker, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
