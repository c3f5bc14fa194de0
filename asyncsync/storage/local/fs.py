"""The system calls that committing needs, relative to held directories, never following links.

Everything here blocks and belongs in a thread. Paths are relative to an open directory, so that
nobody who can write to a parent can redirect a write, and OSError is left as it is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache

from ...names import sort_key

__all__ = [
    "DIRECTORY",
    "create_file",
    "data_extents",
    "exchange",
    "fsync_directory",
    "is_at",
    "make_directories",
    "open_beneath",
    "opened",
    "read_at",
    "remove_if_empty",
    "remove_tree",
    "rename_new",
    "rename_over",
    "split",
    "write_at",
    "zeros",
]

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_OPENAT2 = 437  # the same number on every architecture (Linux 5.6)
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08  # linux/openat2.h
_NOREPLACE, _EXCHANGE = 1, 2  # linux/fs.h
_STAYS = {
    errno.ENOTEMPTY,
    errno.EEXIST,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EBUSY,  # a mount point
}
_MISSING_CALL = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _raise_errno(path: str) -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), path)


def split(path: str) -> tuple[str, str]:
    """Directory and last component; the directory is `.` at the top."""
    directory, _, name = path.rpartition("/")
    return directory or ".", name


def open_beneath(
    directory: int, path: str, flags: int, mode: int = 0, *, follow: bool = False
) -> int:
    """Open `path` below the open `directory`: no `..`, no link on the way.

    With `follow`, links are followed as long as they lead to something below `directory`.
    """
    if sys.platform == "linux" and _has_openat2():
        return _openat2(
            directory, path, flags, mode, _BENEATH if follow else _BENEATH | _NO_SYMLINKS
        )
    if follow:
        raise OSError(errno.ENOTSUP, "links cannot be followed safely on this system", path)
    return _open_by_component(directory, path, flags, mode)


@cache
def _has_openat2() -> bool:
    here = os.open(".", DIRECTORY)
    try:
        os.close(_openat2(here, ".", DIRECTORY, 0, _BENEATH))
    except OSError:
        return False
    finally:
        os.close(here)
    return True


def _openat2(directory: int, path: str, flags: int, mode: int, resolve: int) -> int:
    how = _How(flags | os.O_CLOEXEC, mode if flags & os.O_CREAT else 0, resolve | _NO_MAGICLINKS)
    while True:
        fd = _libc().syscall(
            _OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
        )
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() not in (errno.EINTR, errno.EAGAIN):
            _raise_errno(path)


def _open_by_component(directory: int, path: str, flags: int, mode: int) -> int:
    *parents, name = path.split("/")
    if ".." in (*parents, name) or path.startswith("/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)  # as openat2 says it
    held = os.open(".", DIRECTORY, dir_fd=directory)
    try:
        for parent in parents:
            below = os.open(parent, DIRECTORY, dir_fd=held)
            os.close(held)
            held = below
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=held)
    finally:
        os.close(held)


@contextmanager
def opened(directory: int, path: str, flags: int = DIRECTORY) -> Iterator[int]:
    """`open_beneath` for the length of a block."""
    fd = open_beneath(directory, path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def create_file(directory: int, path: str, mode: int = 0o600) -> int:
    """Create and open a file for writing that did not exist, also not as a link."""
    return open_beneath(directory, path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)


def make_directories(directory: int, path: str, made: set[str]) -> None:
    """Create `path` and its parents below `directory`; `made` remembers what is there.

    Raises:
        NotADirectoryError: a component is a file or a link.
    """
    if path in made or path == ".":
        return
    parent, name = split(path)
    make_directories(directory, parent, made)
    with opened(directory, parent) as held:
        try:
            os.mkdir(name, 0o777, dir_fd=held)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=held, follow_symlinks=False).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory", path) from None
    made.add(path)


def read_at(fd: int, size_bytes: int, offset: int, into: memoryview | None = None) -> memoryview:
    """Up to `size_bytes` bytes; less only at the end of the file. `into` is where to put them."""
    view = memoryview(bytearray(size_bytes)) if into is None else into[:size_bytes]
    done = 0
    while done < size_bytes:
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return view[:done]


def write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """All of `data`, however many calls it takes."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


@lru_cache(maxsize=2)
def zeros(size_bytes: int) -> bytes:
    """What a hole reads as. All holes of that size share it: they cost no memory of their own."""
    return bytes(size_bytes)


def data_extents(fd: int, start: int, end: int) -> tuple[tuple[int, int], ...]:
    """The ranges between `start` and `end` that hold data, relative to `start`."""
    found: list[tuple[int, int]] = []
    position = start
    while position < end:
        try:
            first = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                break
            return ((0, end - start),)
        if first >= end:
            break
        position = min(end, os.lseek(fd, first, os.SEEK_HOLE))
        found.append((first - start, position - start))
    return tuple(found)


def fsync_directory(fd: int) -> bool:
    """Make the entries of an open directory durable; False if the file system cannot.

    Only "not supported" is tolerated. An input/output error is raised, and must not be answered
    by another fsync: the kernel reports it once and calls the pages clean.
    """
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno in (errno.EINVAL, errno.ENOTSUP):
            return False
        raise
    return True


def is_at(fd: int, directory: int, name: str) -> bool:
    """Whether what is open as `fd` is still what has that name."""
    mine = os.fstat(fd)
    try:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def rename_over(old_dir: int, old: str, new_dir: int, new: str) -> None:
    """Rename, atomically replacing a file, or an empty directory by a directory."""
    try:
        os.rename(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir)
    except FileNotFoundError:
        # A network file system may repeat a rename whose answer got lost.
        if _exists(old_dir, old) or not _exists(new_dir, new):
            raise


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def rename_new(old_dir: int, old: str, new_dir: int, new: str) -> bool:
    """Rename to a name that must not exist.

    Returns:
        False if the file system has no such call; nothing happened then.

    Raises:
        FileExistsError: even if what exists is an empty directory.
    """
    return _renameat2(old_dir, old, new_dir, new, _NOREPLACE)


def exchange(old_dir: int, old: str, new_dir: int, new: str) -> bool:
    """Swap two names atomically; False if the file system has no such call."""
    return _renameat2(old_dir, old, new_dir, new, _EXCHANGE)


def _renameat2(old_dir: int, old: str, new_dir: int, new: str, flags: int) -> bool:
    call = getattr(_libc(), "renameat2", None)
    if call is None:
        return False
    if call(old_dir, os.fsencode(old), new_dir, os.fsencode(new), flags) == 0:
        return True
    if ctypes.get_errno() in _MISSING_CALL:
        return False
    _raise_errno(new)
    raise AssertionError("unreachable")


def remove_tree(directory: int, name: str) -> None:
    """Remove a directory of ours and everything below it, never through a link.

    What is gone already is no error.
    """
    try:
        held = os.open(name, DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        for entry in sorted(os.listdir(held), key=sort_key):
            _remove_entry(held, entry)
    finally:
        os.close(held)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=directory)


def remove_if_empty(directory: int, name: str) -> bool:
    """Remove a directory; False if it stays, because something is in it or nothing is there."""
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as exc:
        if exc.errno not in _STAYS:
            raise
        return False
    return True


def _remove_entry(directory: int, name: str) -> None:
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            remove_tree(directory, name)
        else:
            os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
