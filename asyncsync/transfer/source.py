"""A local directory as a source: walking it, reading it, and noticing that it changes.

Nothing here trusts that a file holds still. What a walk recorded is compared before and after
every read, so the bytes that were hashed are the bytes of one version of the file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Literal

from ..concurrency import Threads
from ..digest import CHUNK_BYTES
from ..errors import (
    ConfigError,
    NotFoundError,
    RefusedError,
    SourceChangedError,
    os_errors,
    quote,
    quote_some,
)
from ..manifest import DirectoryEntry, Kind
from ..mounts import network_of
from ..names import MANIFEST, MAX_DEPTH, check_path, is_ours, sort_key
from ..patterns import Selection
from ..storage.local import open_beneath
from .pieces import Moving, Piece, SourceFile, Stamp, is_sparse, read_piece, stamp_of

__all__ = ["Directory", "Links", "Scan"]

Links = Literal["refuse", "follow"]
_BATCH = 2_000
_NOTHING: Mapping[str, SourceFile] = MappingProxyType({})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
_GRANULE_NS = 20_000_000  # kernels stamp files with a clock that ticks every 1 to 10 ms
_COARSE_GRANULE_NS = 2_000_000_000  # FAT and some network file systems keep whole seconds


@dataclass
class Scan:
    """What a walk found.

    Attributes:
        files: by path.
        directories: empty ones.
        nested: paths of directories with a manifest of their own.
        left_out: what cannot be part of a rolling tree, with the reason.
    """

    files: dict[str, SourceFile] = field(default_factory=dict)
    directories: list[DirectoryEntry] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def settle_ns(self, now_ns: int) -> int:
        """How long to wait so that any later write changes a time stamp. Pure."""
        newest = max((f.ctime_ns for f in self.files.values()), default=0)
        coarse = bool(newest) and all(f.ctime_ns % 10**9 == 0 for f in self.files.values())
        granule = _COARSE_GRANULE_NS if coarse else _GRANULE_NS
        return max(0, min(granule, newest + granule - now_ns))


class Directory:
    """A directory held open. Made by `Directory.open`.

    Attributes:
        path: absolute; what messages call it.
        kind: `rolling` tolerates links and growing files, `sealed` tolerates neither.
        ctimes: whether another time of its last status change makes a file another version.
        network: whether others may write to it from elsewhere: what they have written is certain
            to be seen by whoever opens a file, and not by whoever has it open.
    """

    def __init__(self, fd: int, path: str, kind: Kind, links: Links, threads: Threads) -> None:
        self.path, self.kind, self.links = path, kind, links
        self.ctimes, self.network, self._place = True, False, path
        self._fd, self._threads = fd, threads

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: str,
        kind: Kind,
        threads: Threads,
        *,
        links: Links = "refuse",
        at: str | None = None,
        ctimes: bool = True,
    ) -> AsyncIterator[Directory]:
        """Hold `path` open for the length of the block.

        Args:
            at: where it is read, if that is not where it is known to be.
            ctimes: False where names of its files come and go meanwhile: that sets theirs.

        Raises:
            NotFoundError: nothing is there.
            ConfigError: it is a file.
        """
        fds: list[int] = []
        place = at or path
        try:
            await threads.run(lambda: fds.append(_open_directory(place, path)))
            directory = cls(fds[0], path, kind, links, threads)
            directory.ctimes, directory._place = ctimes, place
            directory.network = bool(await threads.run(network_of, place))
            yield directory
        finally:
            for fd in fds:
                os.close(fd)

    async def scan(
        self,
        selection: Selection,
        *,
        inside: Collection[str] = (),
        known: Mapping[str, SourceFile] = _NOTHING,
        whole: bool = True,
    ) -> Scan:
        """Walk the tree, one thread hop per batch of names.

        Args:
            inside: directories that are commits of their own where the tree goes: passed over,
                unless they are commits here too.
            known: what another walk saw: a file that is the same is the same object again.
            whole: False leaves out the directories below that may not be read, and names them.

        Raises:
            RefusedError: names or kinds of files that the tree may not hold; all are counted and
                the first few named.
            AccessDeniedError: a directory cannot be read.
            SourceChangedError: another directory, or none, has the path by now.
        """
        scan, refused = Scan(), list[tuple[str, str]]()
        walk = _Walk(self, selection, inside, known, whole, scan, refused)
        with closing(walk.entries(self._fd, "")) as entries, os_errors("source", self.path):
            while await self._threads.run(_drain, entries):
                continue
            await self._threads.run(self._check_place)
        if refused:
            shown = [f"{path} ({reason})" for path, reason in sorted(refused)]
            raise RefusedError(
                f"{quote(self.path)} holds {len(refused)} name(s) that cannot be kept: "
                f"{quote_some(shown)}; remove or exclude them",
                side="source",
                paths=[path for path, _ in refused],
            )
        return scan

    async def read_many(self, files: Sequence[SourceFile]) -> list[Piece | Moving]:
        """Whole small files, in order; a Moving where one changed."""
        return await self._threads.run(self._read_many, files)

    async def read(self, file: SourceFile, number: int, into: memoryview | None = None) -> Piece:
        """Chunk `number` of a file, put into `into` when that is given.

        Raises Moving when the file is not what the walk saw.
        """
        with os_errors("source", f"{self.path}/{file.path}"):
            return await self._threads.run(self._read, file, number, into)

    async def confirm(self, file: SourceFile, chunks: Sequence[str]) -> None:
        """Check, after its last read, that `chunks` are the digests of one version of the file.

        A file of a rolling tree may have grown meanwhile: what was read must still be its prefix.
        """
        with os_errors("source", f"{self.path}/{file.path}"):
            await self._threads.run(self._confirm, file, chunks)

    # -- in threads

    def _check_place(self) -> None:
        """What was walked may have been renamed or deleted: its files are not just gone then."""
        here = os.fstat(self._fd)
        with suppress(FileNotFoundError, NotADirectoryError):
            there = os.stat(self._place)
            if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                return
        raise SourceChangedError(
            f"source {quote(self.path)} was renamed, replaced or deleted while it was read; "
            "run it again when it stays where it is",
            side="source",
        )

    def open_file(self, path: str) -> int:
        """Open a file below for reading; links lead anywhere below when they are followed."""
        flags = os.O_RDONLY | os.O_NONBLOCK
        return open_beneath(self._fd, path, flags, follow=self.links == "follow")

    def stamp(self, found: os.stat_result) -> Stamp:
        """What two versions of a file differ in, in the order of a SourceFile."""
        stamp = stamp_of(found)
        return stamp if self.ctimes else (*stamp[:3], 0, *stamp[4:])

    @contextmanager
    def opened(self, file: SourceFile) -> Iterator[tuple[int, os.stat_result]]:
        """A file held open in the version that the walk saw, or grown from it; blocks.

        Raises Moving when it is another.
        """
        fd = self._open(file)
        try:
            found = os.fstat(fd)
            if not self._acceptable(file, found):
                raise Moving(file.path)
            yield fd, found
        finally:
            os.close(fd)

    def is_version(self, file: SourceFile, fd: int) -> bool:
        """Whether what is open is still what the walk saw, and nothing was added."""
        return self.stamp(os.fstat(fd)) == file.stamp

    def _open(self, file: SourceFile) -> int:
        try:
            return self.open_file(file.path)
        except OSError as exc:
            if exc.errno in _GONE:
                raise Moving(file.path) from exc
            with os_errors("source", f"{self.path}/{file.path}"):
                raise

    def _read_many(self, files: Sequence[SourceFile]) -> list[Piece | Moving]:
        found: list[Piece | Moving] = []
        for file in files:
            try:
                found.append(self._read_confirmed(file))
            except Moving as moving:
                found.append(moving)
            except OSError:
                with os_errors("source", f"{self.path}/{file.path}"):
                    raise
        return found

    def _read_confirmed(self, file: SourceFile) -> Piece:
        """A file of one chunk, which mostly need not be opened again to be confirmed."""
        with self.opened(file) as (fd, found):
            piece = read_piece(fd, file, 0, file.size_bytes, None, sparse=is_sparse(found))
            same = self.is_version(file, fd)
        if not same:
            piece = self._read(file, 0)
        if self.network or not same:
            self._confirm(file, [piece.digest])
        return piece

    def _read(self, file: SourceFile, number: int, into: memoryview | None = None) -> Piece:
        start = number * CHUNK_BYTES
        end = min(file.size_bytes, start + CHUNK_BYTES)
        with self.opened(file) as (fd, found):
            piece = read_piece(fd, file, start, end, into, sparse=is_sparse(found))
            if piece.block.extents and not self.is_version(file, fd):
                # A hole may have been filled after we had looked where the holes are.
                return read_piece(fd, file, start, end, into, sparse=False)
            return piece

    def _acceptable(self, file: SourceFile, found: os.stat_result) -> bool:
        if self.stamp(found) == file.stamp:
            return True
        same = (found.st_dev, found.st_ino) == (file.device, file.inode)
        return self.kind == "rolling" and same and found.st_size >= file.size_bytes

    def _confirm(self, file: SourceFile, chunks: Sequence[str]) -> None:
        with self.opened(file) as (fd, found):
            if self.stamp(found) == file.stamp:
                return
            for number, expected in enumerate(chunks):
                start = number * CHUNK_BYTES
                end = min(file.size_bytes, start + CHUNK_BYTES)
                piece = read_piece(fd, file, start, end, None, sparse=False)
                if piece.digest != expected:
                    raise Moving(file.path)


def _open_directory(place: str, path: str) -> int:
    try:
        return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(
            f"source {quote(path)} does not exist; check the spelling and that it is mounted",
            side="source",
        ) from None
    except NotADirectoryError:
        raise ConfigError(f"source {quote(path)} is a file; name the directory it is in") from None
    except OSError:
        with os_errors("source", path):
            raise


def _drain(entries: Iterator[None]) -> bool:
    """Walk one batch further; False at the end."""
    return sum(1 for _ in islice(entries, _BATCH)) == _BATCH


class _Walk:
    """One walk: puts what it finds into `scan`, and what may not be there into `refused`."""

    def __init__(
        self,
        tree: Directory,
        selection: Selection,
        inside: Collection[str],
        known: Mapping[str, SourceFile],
        whole: bool,
        scan: Scan,
        refused: list[tuple[str, str]],
    ) -> None:
        self._tree, self._selection, self._inside = tree, selection, inside
        self._known, self._whole, self._scan, self._refused = known, whole, scan, refused
        self._numbers: dict[int, int] = {}  # devices and modes are the same few for all files

    def entries(self, directory: int, prefix: str) -> Generator[None, None, None]:
        """Walk below an open directory, yielding once per name so that the caller can pause."""
        with os.scandir(directory) as listing:
            names = sorted(listing, key=lambda entry: sort_key(entry.name))
        empty = True
        for entry in names:
            if is_ours(entry.name):
                continue
            empty = False
            yield
            path = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._directory(directory, entry, path)
            elif self._selection.takes(path) and self._allowed(path):
                self._file(entry, path)
        if empty and prefix and self._selection.takes_directory(prefix[:-1]):
            mode = stat.S_IMODE(os.fstat(directory).st_mode) & 0o777
            if self._allowed(prefix[:-1]):
                self._scan.directories.append(DirectoryEntry(prefix[:-1], mode))

    def _directory(
        self, parent: int, entry: os.DirEntry[str], path: str
    ) -> Generator[None, None, None]:
        if self._selection.prunes(path):
            return
        if path.count("/") >= MAX_DEPTH:  # nothing below can be kept, and the walk has an end
            self._allowed(path)
            return
        if (below := self._opened(parent, entry.name, path)) is None:
            return
        try:
            if _has_manifest(below):
                chosen = not self._selection.include or self._selection.takes_directory(path)
                if chosen and self._allowed(path):
                    self._scan.nested.append(path)
            elif path not in self._inside:
                yield from self.entries(below, path + "/")
        finally:
            os.close(below)

    def _opened(self, parent: int, name: str, path: str) -> int | None:
        """A directory, open; None if it is passed over."""
        try:
            return open_beneath(parent, name, _DIRECTORY)
        except OSError as exc:
            if exc.errno in _GONE:  # since the listing, as a file may be
                return None
            if exc.errno == errno.EACCES and not self._whole:
                self._cannot_keep(path, "a directory that may not be read")
                return None
            with os_errors("source", f"{self._tree.path}/{path}"):
                raise

    def _file(self, entry: os.DirEntry[str], path: str) -> None:
        try:
            found = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return  # gone since the listing; the next walk will not see it either
        if stat.S_ISLNK(found.st_mode) and self._tree.links == "follow":
            target = self._follow(path)
            found = target if target is not None else found
        if stat.S_ISREG(found.st_mode):
            file = self._seen(path, self._tree.stamp(found))
            self._scan.files[file.path] = file
        else:
            self._cannot_keep(path, _kind_of(found.st_mode))

    def _seen(self, path: str, stamp: Stamp) -> SourceFile:
        known = self._known.get(path)
        if known is not None and known.stamp == stamp:
            return known
        size_bytes, mode, mtime_ns, ctime_ns, device, inode = stamp
        return SourceFile(
            path,
            size_bytes,
            self._numbers.setdefault(mode, mode),
            mtime_ns,
            mtime_ns if ctime_ns == mtime_ns else ctime_ns,
            self._numbers.setdefault(device, device),
            inode,
        )

    def _follow(self, path: str) -> os.stat_result | None:
        """What a link leads to, if that is in the tree."""
        try:
            fd = self._tree.open_file(path)
        except OSError:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _cannot_keep(self, path: str, reason: str) -> None:
        if self._tree.kind == "sealed":
            self._refused.append((path, reason))
        else:
            self._scan.left_out.append((path, reason))

    def _allowed(self, path: str) -> bool:
        try:
            check_path(path)
        except RefusedError as exc:
            self._refused.append((path, str(exc).rpartition("refused: ")[2]))
            return False
        return True


def _has_manifest(directory: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(MANIFEST, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _kind_of(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISFIFO(mode):
        return "a fifo"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a directory behind a link" if stat.S_ISDIR(mode) else "a device"
