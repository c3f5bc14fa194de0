"""Where an attempt gathers a tree that nobody may see yet."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence, Set
from contextlib import ExitStack, suppress

from ...digest import CHUNK_BYTES, chunk_count
from ...errors import BusyError, IntegrityError, RefusedError, quote
from ...manifest import FileEntry, Manifest
from ...names import LOCK
from ..objects import Data
from ..trees import Block, NewFile
from .fs import (
    DIRECTORY,
    create_file,
    fsync_directory,
    is_at,
    make_directories,
    open_beneath,
    opened,
    read_at,
    remove_tree,
    split,
    write_at,
)
from .locks import Lock
from .manifests import write_manifest
from .trash import TREE
from .unfinished import forget_others, has_digest

__all__ = ["Stage"]

_COPY_BYTES = 16 * 1024 * 1024


class _OpenFile:
    """A file whose parts are still arriving."""

    __slots__ = ("fd", "left_bytes", "recalled")

    def __init__(self, fd: int, left_bytes: int, *, recalled: bool = False) -> None:
        self.fd = fd  # -1: not opened yet
        self.left_bytes = left_bytes
        self.recalled = recalled

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Stage:
    """A private directory (`holder`) with a lock and, in `tree`, the files of one attempt.

    Methods block, and may be called from several threads at once.

    Args:
        parent: the open directory that the holder is made in; stays the caller's.
        holder: its name.
        where: the target, for messages.
        resumes: it is there, left by an interrupted attempt. Before any writing, `forget_others`
            and `recall` say what of it is wanted.

    Attributes:
        stays: when it is closed without having been published, its files stay for the next one.
    """

    def __init__(self, parent: int, holder: str, where: str, *, resumes: bool = False) -> None:
        self.parent, self.holder, self._where = parent, holder, where
        self.resumes, self.stays = resumes, False
        with ExitStack() as undo:
            if not resumes:
                os.mkdir(holder, 0o700, dir_fd=parent)
                undo.callback(_discard, parent, holder)
            try:
                self.fd = os.open(holder, DIRECTORY, dir_fd=parent)
                undo.callback(os.close, self.fd)
                self._lock = Lock.take(self.fd, LOCK, where)
            except FileNotFoundError:  # without its lock yet, another sync took it for abandoned
                raise BusyError(
                    f"another sync is beginning to write {where}; try again", side="target"
                ) from None
            undo.callback(self._lock.release)
            if not resumes:
                os.mkdir(TREE, 0o777, dir_fd=self.fd)
            self.tree = os.open(TREE, DIRECTORY, dir_fd=self.fd)
            self._touch()
            undo.pop_all()
        self._guard = threading.Lock()
        self._made: set[str] = set()
        self._open: dict[str, _OpenFile] = {}
        self.written: set[str] = set()

    # -- what an interrupted attempt has written

    def forget_others(self, wanted: Set[str]) -> None:
        """Remove all but these files; what stays can be written to."""
        self._made |= forget_others(self.tree, wanted)

    def are_there(self, chunks: Sequence[tuple[NewFile, int, str]]) -> list[bool]:
        """Whether the chunks of these numbers have these digests; they are read for that."""
        return [has_digest(self.tree, *chunk) for chunk in chunks]

    def recall(self, files: Sequence[tuple[NewFile, Set[int]]]) -> None:
        """Count these chunks of each file as written; a file of which there is none goes."""
        for file, numbers in files:
            if len(numbers) == chunk_count(file.size_bytes):
                self._complete(self._open_again(file.path), file)
            elif numbers:
                held = sum(min(CHUNK_BYTES, file.size_bytes - n * CHUNK_BYTES) for n in numbers)
                self._open[file.path] = _OpenFile(-1, file.size_bytes - held, recalled=True)
            else:
                with suppress(FileNotFoundError), opened(self.tree, split(file.path)[0]) as held_in:
                    os.unlink(split(file.path)[1], dir_fd=held_in)

    def _open_again(self, path: str) -> int:
        return open_beneath(self.tree, path, os.O_RDWR)

    # -- writing

    def write(self, file: NewFile, offset: int, block: Block) -> None:
        """Store a part; the last one to arrive completes the file and makes it durable."""
        open_file = self._opened(file)
        data = memoryview(block.data)
        extents = block.extents
        if extents is None or open_file.recalled:  # other bytes may be where the hole is
            extents = ((0, len(data)),)
        for start, end in extents:
            write_at(open_file.fd, data[start:end], offset + start)
        with self._guard:
            open_file.left_bytes -= len(data)
            complete = open_file.left_bytes <= 0
            if complete:
                del self._open[file.path]
        if complete:
            self._complete(open_file.fd, file)
        else:
            self._touch()

    def _touch(self) -> None:
        """Show when the stage was last written to: by that its age is told."""
        os.utime(self.tree)

    def write_many(self, files: Sequence[tuple[NewFile, Data]]) -> None:
        """Store whole files, each made durable."""
        for file, data in files:
            fd = self._create(file)
            try:
                write_at(fd, data, 0)
            except BaseException:
                os.close(fd)
                raise
            self._complete(fd, file)

    def _opened(self, file: NewFile) -> _OpenFile:
        with self._guard:
            if file.path not in self._open:
                self._open[file.path] = _OpenFile(self._create(file), file.size_bytes)
            found = self._open[file.path]
            if found.fd < 0:
                found.fd = self._open_again(file.path)
            return found

    def _create(self, file: NewFile) -> int:
        make_directories(self.tree, split(file.path)[0], self._made)
        try:
            return create_file(self.tree, file.path)
        except FileExistsError:
            raise RefusedError(
                f"name {quote(file.path)} refused: {self._where} cannot tell it from another name "
                "of this tree; rename one of them",
                side="target",
                paths=[file.path],
            ) from None

    def _complete(self, fd: int, file: NewFile) -> None:
        """Set size, mode and time, flush, and close; every step's error counts."""
        try:
            os.ftruncate(fd, file.size_bytes)  # a hole at the end was never written
            os.fchmod(fd, file.mode & 0o777)
            if file.mtime_ns:
                os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
            os.fsync(fd)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        self.written.add(file.path)
        self._touch()

    def forget(self, path: str) -> None:
        """Drop what was written of a file: it is sent again, or no longer part of the tree."""
        with self._guard:
            unfinished = self._open.pop(path, None)
        if unfinished is not None:
            unfinished.close()
        if unfinished is not None or path in self.written:
            self.written.discard(path)
            with opened(self.tree, split(path)[0]) as directory:
                os.unlink(split(path)[1], dir_fd=directory)

    def keep(self, root: int, entry: FileEntry) -> None:
        """Take over an unchanged file from the open tree `root`: by a link, else by a copy."""
        make_directories(self.tree, split(entry.path)[0], self._made)
        source, name = split(entry.path)
        with opened(root, source) as old, opened(self.tree, source) as new:
            try:
                os.link(name, name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
            except FileNotFoundError:
                raise IntegrityError(
                    f"{quote(entry.path)} is listed in {self._where} but missing there; "
                    "send the tree again with replace",
                    side="target",
                    paths=[entry.path],
                ) from None
            except OSError:  # too many links, or a file system without them
                self._copy(old, entry)

    def _copy(self, directory: int, entry: FileEntry) -> None:
        source = os.open(split(entry.path)[1], os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
        try:
            fd = create_file(self.tree, entry.path)
            for offset in range(0, entry.size_bytes, _COPY_BYTES):
                write_at(fd, read_at(source, _COPY_BYTES, offset), offset)
        finally:
            os.close(source)
        self._complete(fd, NewFile(entry.path, entry.size_bytes, entry.mode, entry.mtime_ns))

    def seal(self, manifest: Manifest) -> bool:
        """Finish the staged tree: empty directories, no strays, all durable, the manifest last.

        Returns:
            False when the file system cannot make directories durable.

        Raises:
            IntegrityError: a file of which parts are missing.
        """
        if self._open:
            raise IntegrityError(f"parts of {quote(min(self._open))} never arrived", side="target")
        for path in self.written - manifest.files.keys():
            self.forget(path)
        for directory in manifest.directories:
            make_directories(self.tree, directory.path, self._made)
            with opened(self.tree, directory.path) as fd:
                os.fchmod(fd, directory.mode & 0o777)
        self._drop_unneeded(manifest)
        durable = [self._flush(path) for path in sorted(self._made, key=_depth, reverse=True)]
        write_manifest(self.tree, manifest)
        return all([*durable, fsync_directory(self.tree)])

    def _drop_unneeded(self, manifest: Manifest) -> None:
        """Remove directories that only a file needed which vanished from the source."""
        needed = {d.path for d in manifest.directories}
        for path in manifest.files:
            while (path := path.rpartition("/")[0]) and path not in needed:
                needed.add(path)
        for path in sorted(self._made - _with_parents(needed), key=_depth, reverse=True):
            with opened(self.tree, split(path)[0]) as parent:
                os.rmdir(split(path)[1], dir_fd=parent)
            self._made.discard(path)

    def _flush(self, path: str) -> bool:
        with opened(self.tree, path) as fd:
            return fsync_directory(fd)

    def close(self) -> None:
        """Close everything; what this attempt made and did not publish goes, unless it `stays`.

        A version that it moved into the holder is not its own to remove.
        """
        stays = self.stays and bool(self.resumes or self.written or self._open)
        with self._guard:
            for open_file in self._open.values():
                with suppress(OSError):  # nobody reads it without comparing digests
                    open_file.close()
            self._open.clear()
        if not stays and is_at(self.tree, self.fd, TREE):
            _discard(self.fd, TREE)
        os.close(self.tree)
        self._lock.release()
        os.close(self.fd)
        with suppress(OSError):  # not empty: see above
            os.rmdir(self.holder, dir_fd=self.parent)


def _discard(directory: int, name: str) -> None:
    with suppress(OSError):  # what cannot be removed now is swept by the next attempt
        remove_tree(directory, name)


def _depth(path: str) -> int:
    return path.count("/")


def _with_parents(paths: set[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        above = path
        while above and above not in found:
            found.add(above)
            above = above.rpartition("/")[0]
    return found
