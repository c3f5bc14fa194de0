"""LocalTrees: the TreeStore of mounted file systems. Every method is one hop to a thread."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, TypeVar

import anyio

from ...concurrency import Threads, each
from ...digest import CHUNK_BYTES
from ...errors import (
    BusyError,
    NotFoundError,
    Side,
    is_interruption,
    os_errors,
    quote,
)
from ...manifest import Header, Manifest
from ...names import LOCK, NEXT, is_ours
from ..groups import Group
from ..objects import Data
from ..trees import (
    Block,
    Deleted,
    Durability,
    Gathering,
    Glance,
    Intent,
    NewFile,
    Sighting,
    Stored,
    TreeCapabilities,
    TreeReader,
    TreeWriter,
)
from .cleaning import clean
from .deleting import delete
from .finish import tidy_root
from .fs import DIRECTORY, fsync_directory, open_beneath
from .group import PartAttempt, gather, read_part
from .locks import Lock
from .manifests import current, current_header, tag_of, trees
from .marking import mark_root
from .place import Place, Root
from .probe import probe
from .publish import Attempt
from .reader import list_files, read_block, read_whole
from .trash import OLD, holders, sweep

__all__ = ["LocalTrees"]

T = TypeVar("T")
_AT_ONCE = 64  # files in one hop to a thread
_READERS = 8


class LocalTrees:
    """Trees as directories below `root`. See TreeStore for what every method promises.

    Args:
        root: a path, or a HeldRoot for trees that somebody else names: no way leads out of that.
            It is closed with these trees.
    """

    def __init__(self, root: str | Root = "/", threads: Threads | None = None) -> None:
        self._root = Root(root) if isinstance(root, str) else root
        self._threads = threads or Threads()
        self._owns_threads = threads is None

    async def read_manifest(self, tree: str) -> Manifest:
        return await self._with_root(tree, current)

    async def read_header(self, tree: str) -> Header:
        return await self._with_root(tree, current_header)

    async def find(self, tree: str) -> AsyncIterator[Sighting]:
        for found in await self._run("source", tree, _find, self._root, tree):
            yield found

    async def glance(self, tree: str) -> Glance:
        try:
            return await self._with_root(tree, lambda root, _: _glance(root))
        except NotFoundError:
            return Glance("", frozenset())

    async def list_files(self, tree: str) -> list[NewFile]:
        files = await self._with_root(tree, lambda root, _: list_files(root))
        if not files:
            raise NotFoundError(f"no files at {quote(self._path(tree))}")
        return files

    @asynccontextmanager
    async def open(self, tree: str, manifest: Manifest | None) -> AsyncIterator[TreeReader]:
        del manifest  # files are found by name
        roots: list[int] = []
        try:
            await self._run("source", tree, lambda: roots.append(_open_root(self._root, tree)))
            yield _Reader(roots[0], quote(self._path(tree)), self._threads)
        finally:
            for root in roots:
                os.close(root)

    @asynccontextmanager
    async def begin(self, tree: str, intent: Intent) -> AsyncIterator[TreeWriter]:
        attempts: list[Attempt] = []
        kind = Attempt if intent.group is None else PartAttempt
        try:
            await self._run(
                "target", tree, lambda: attempts.append(kind(Place(self._root, tree), intent))
            )
            yield _Writer(
                attempts[0], lambda function, *args: self._run("target", tree, function, *args)
            )
        except BaseException as exc:
            for attempt in attempts:
                attempt.stage.stays = intent.keep and is_interruption(exc)
            raise
        finally:
            with anyio.CancelScope(shield=True):
                for attempt in attempts:
                    await self._threads.run(attempt.close)

    async def read_part(self, tree: str, group: Group) -> Manifest:
        return await self._run("target", tree, read_part, self._root, tree, group)

    async def gather(self, tree: str, intent: Intent) -> Gathering:
        def confirm() -> Durability:
            return _confirm(self._root, tree)

        return await self._run("target", tree, gather, self._root, tree, intent, confirm)

    async def delete(
        self, tree: str, *, expect: str | None = None, uncommitted: bool = False
    ) -> Deleted:
        return await self._run("target", tree, delete, self._root, tree, expect, uncommitted)

    async def clean(self, tree: str, *, older_than_s: float) -> list[str]:
        return await self._run("target", tree, clean, self._root, tree, older_than_s)

    async def confirm(self, tree: str) -> Durability:
        return await self._run("target", tree, _confirm, self._root, tree)

    async def mark_root(self, tree: str, marker: bytes) -> bytes:
        return await self._run("target", tree, mark_root, self._root, tree, marker)

    async def probe(self, tree: str) -> TreeCapabilities:
        return await self._run("target", tree, _probe, self._root, tree)

    async def aclose(self) -> None:
        if self._owns_threads:
            self._threads.close()
        self._root.close()

    # -- helpers

    def _path(self, tree: str) -> str:
        return self._root.name(tree)

    async def _run(self, side: Side, tree: str, function: Callable[..., T], *args: object) -> T:
        with os_errors(side, self._path(tree)):
            return await self._threads.run(function, *args)

    async def _with_root(self, tree: str, function: Callable[[int, str], T]) -> T:
        where = quote(self._path(tree))

        def act() -> T:
            root = _open_root(self._root, tree)
            try:
                return function(root, where)
            finally:
                os.close(root)

        return await self._run("source", tree, act)


class _Reader:
    def __init__(self, root: int, where: str, threads: Threads) -> None:
        self._root, self._where, self._threads = root, where, threads

    async def read(
        self, file: NewFile, start: int, end: int, into: memoryview | None = None
    ) -> Block:
        with os_errors("source", self._where):
            return await self._threads.run(
                read_block, self._root, file, start, end, self._where, into
            )

    async def read_many(self, files: Sequence[NewFile]) -> list[bytes]:
        with os_errors("source", self._where):
            return await self._threads.run(read_whole, self._root, files, self._where)


class _Writer:
    def __init__(self, attempt: Attempt, run: Callable[..., Awaitable[Any]]) -> None:
        self._attempt, self._run = attempt, run

    @property
    def resumes(self) -> bool:
        return self._attempt.stage.resumes

    async def recall(
        self, files: Sequence[tuple[NewFile, Mapping[int, Stored]]]
    ) -> list[frozenset[int]]:
        stage = self._attempt.stage
        await self._run(stage.forget_others, {file.path for file, _ in files})
        held: dict[str, set[int]] = {file.path: set() for file, _ in files}

        async def look(chunks: Sequence[tuple[NewFile, int, str]]) -> None:
            there = await self._run(stage.are_there, chunks)
            for (file, number, _), right in zip(chunks, there, strict=True):
                if right:
                    held[file.path].add(number)

        await each(_hops(files), look, limit=_READERS)
        for start in range(0, len(files), _AT_ONCE):
            some = [(file, held[file.path]) for file, _ in files[start : start + _AT_ONCE]]
            await self._run(stage.recall, some)
        return [frozenset(held[file.path]) for file, _ in files]

    async def write(self, file: NewFile, offset: int, block: Block) -> str:
        await self._run(self._attempt.write, file, offset, block)
        return ""  # the bytes tell, by their digest

    async def write_many(self, files: Sequence[tuple[NewFile, Data]]) -> list[str]:
        await self._run(self._attempt.write_many, files)
        return [""] * len(files)

    async def finish(self, file: NewFile) -> str:
        del file  # its last part has done that
        return ""

    async def discard(self, path: str) -> None:
        await self._run(self._attempt.discard, path)

    async def commit(self, manifest: Manifest) -> Durability:
        durability: Durability = await self._run(self._attempt.commit, manifest)
        return durability


def _hops(
    files: Sequence[tuple[NewFile, Mapping[int, Stored]]],
) -> Iterator[list[tuple[NewFile, int, str]]]:
    """Chunks to read in one hop to a thread: a large one, or several small ones."""
    hop: list[tuple[NewFile, int, str]] = []
    size_bytes = 0
    for file, chunks in files:
        for number, stored in chunks.items():
            hop.append((file, number, stored.digest))
            size_bytes += min(CHUNK_BYTES, file.size_bytes)
            if size_bytes >= CHUNK_BYTES or len(hop) == _AT_ONCE:
                yield hop
                hop, size_bytes = [], 0
    if hop:
        yield hop


def _open_root(base: Root, tree: str) -> int:
    """Open a tree's directory for reading.

    Raises:
        NotFoundError: nothing is there, or a file is.
        BusyError: it is between two names, being replaced.
    """
    path = base.path(tree)
    try:
        return base.open(path)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return _reopen(base, path, exc)


def _reopen(base: Root, path: str, first: OSError) -> int:
    """Look again: listing the parent refreshes what a network mount remembers."""
    above, name = os.path.split(path)
    with suppress(OSError):
        parent = base.open(above)
        try:
            if name in os.listdir(parent) and first.errno == errno.ENOENT:
                return open_beneath(parent, name, DIRECTORY)
            if any(_holds_old(parent, entry) for entry, kind in holders(parent, name)):
                with suppress(OSError):  # it may not be ours to write: then it is for others
                    sweep(parent, name, quote(path))  # if its writer died, this finishes for it
                if name in os.listdir(parent):
                    return open_beneath(parent, name, DIRECTORY)
                raise BusyError(f"{quote(path)} is being replaced; try again", side="source")
        finally:
            os.close(parent)
    if first.errno == errno.ENOENT:
        raise NotFoundError(f"nothing at {quote(path)}; check the spelling")
    raise NotFoundError(f"{quote(path)} is not a directory, so there is no tree")


def _holds_old(parent: int, entry: str) -> bool:
    try:
        os.stat(f"{entry}/{OLD}", dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return True


def _confirm(base: Root, tree: str) -> Durability:
    with closing(Place(base, tree)) as place:
        _tidy(place)
        root = _open_root(base, tree)
        try:
            durable = fsync_directory(root)
        finally:
            os.close(root)
        if place.parent >= 0:
            durable &= place.flush()
    return "fsync" if durable else "reduced"


def _tidy(place: Place) -> None:
    """Finish or remove what a crash left of earlier attempts on a tree."""
    if place.parent >= 0:
        sweep(place.parent, place.name, place.where)
    root = place.open_root()
    if root < 0:
        return
    try:
        if any(_is_left_over(name) for name in os.listdir(root)):
            _tidy_alone(root, place.where)
    finally:
        os.close(root)


def _tidy_alone(root: int, where: str) -> None:
    try:
        lock = Lock.take(root, LOCK, where)
    except BusyError:  # it is none of a crash: its writer is alive
        return
    try:
        tidy_root(root, where)
    finally:
        lock.release()


def _is_left_over(name: str) -> bool:
    return name in (LOCK, NEXT) or (name.startswith(".asyncsync-tmp-") and is_ours(name))


def _probe(base: Root, tree: str) -> TreeCapabilities:
    """Try the nearest directory upwards that exists."""
    path = base.path(tree)
    while True:
        try:
            directory = base.open(path)
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path)
            continue
        try:
            return probe(directory)
        finally:
            os.close(directory)


def _find(base: Root, tree: str) -> list[Sighting]:
    with closing(trees(_open_root(base, tree), tree)) as found:
        return list(found)


def _glance(root: int) -> Glance:
    with os.scandir(root) as entries:
        names = {e.name for e in entries if e.is_dir(follow_symlinks=False) and not is_ours(e.name)}
    return Glance(tag_of(root), frozenset(names))
