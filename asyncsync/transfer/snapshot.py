"""Holding a tree still: a second version of it in a hidden sibling, checked to be of one moment."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypeVar

import anyio

from ..clock import Clock
from ..concurrency import Budget, Threads, each
from ..errors import AsyncSyncError, BusyError, StalledError, os_errors, quote
from ..manifest import Kind
from ..names import MANIFEST
from ..patterns import Selection
from ..storage.local import Holder, Way, free_bytes, sweep_beside
from ..units import MIB
from .engine import batches
from .failures import unstable
from .pieces import Moving, SourceFile
from .source import Directory, Links, Scan

__all__ = ["Chosen", "Held", "Snapshots", "weakest"]

T = TypeVar("T")
_ROUNDS = 10
_PAUSE_S = 0.05
_AT_ONCE = 4
_PIECE_BYTES = 64 * MIB
_WEAKEST_FIRST: tuple[Way, ...] = ("link", "copy", "reflink")


class Chosen(NamedTuple):
    """As what a tree is read, and what of it; `inside` is passed over, as in `Directory.scan`."""

    kind: Kind
    selection: Selection
    inside: Collection[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A tree as it was at one moment, where nobody changes it.

    Attributes:
        path: the directory that holds it: all that was chosen, and nothing else.
        kind: as what it was read.
        way: the weakest that was taken for a file of it, or of a commit inside.
        left_out: what cannot be part of a rolling tree, with the reason.
        originals: the versions, in the tree itself, of the files that are exactly those.
        nested: the commits inside, by path.
    """

    path: str
    kind: Kind
    way: Way = "reflink"
    left_out: tuple[tuple[str, str], ...] = ()
    originals: dict[str, SourceFile] = field(default_factory=dict)
    nested: dict[str, Held] = field(default_factory=dict)


def weakest(ways: Collection[Way]) -> Way:
    """The one that protects least: a link from nothing but deletion. Pure."""
    return next((way for way in _WEAKEST_FIRST if way in ways), "reflink")


@dataclass
class _Look:
    """What a tree was seen to hold; `versions` has its own manifest, too."""

    scan: Scan
    versions: dict[str, SourceFile]

    def differing(self, other: _Look) -> set[str]:
        """Paths of files that are not the same in both."""
        paths = self.versions.keys() | other.versions.keys()
        return {path for path in paths if self.versions.get(path) != other.versions.get(path)}


@dataclass(frozen=True, slots=True)
class _Tree:
    """The root, or a commit inside; `prefix` is "" or ends in `/`."""

    prefix: str
    chosen: Chosen
    look: _Look


@dataclass
class _Room:
    """What snapshots may take of one file system."""

    budget: Budget
    bound_bytes: int


class Snapshots:
    """Holds trees still, all that live within one bound.

    Args:
        bound_bytes: sizes of their files on one file system, taken together, as they are when they
            are looked at first; None: half of what is free there when there is none. Second names
            count nothing.
    """

    def __init__(self, threads: Threads, clock: Clock, *, bound_bytes: int | None) -> None:
        self._threads, self._clock, self._bound_bytes = threads, clock, bound_bytes
        self._rooms: dict[int, _Room] = {}

    @asynccontextmanager
    async def take(
        self,
        path: str,
        choose: Callable[[str], Awaitable[Chosen]],
        *,
        links: Links = "refuse",
        link: bool = False,
        mark: str = "",
        wait: bool = True,
    ) -> AsyncIterator[Held | None]:
        """Hold the tree at `path` still for the length of the block; on entry it may change.

        Waits until those that live leave room for it. It is None, and nothing is held, where a
        snapshot cannot be: the tree alone exceeds the bound, the disk is full, or its directory
        can have no sibling on the same file system. Afterwards, and when it fails or is cancelled,
        nothing of it is left; after a crash the next one in the same directory removes it.

        Args:
            choose: says of the tree ("") and each commit inside (its path) what to hold.
            link: second names for the files will do: nobody rewrites one in place.
            mark: what is taken under the same mark is in the same place, unless that is in use: so
                a sync of it can be gone on with.
            wait: for room; or else it is None.

        Raises:
            RefusedError: a name or kind of file that the tree may not hold.
            SourceChangedError: it changed in each of ten attempts.
            AsyncSyncError: it cannot be read.
        """
        async with AsyncExitStack() as stack:
            try:
                held = await self._take(stack, _Taking(path, choose, links, link, mark, wait))
            except AsyncSyncError:
                raise
            except OSError:  # the snapshot's: those of the tree itself come as ours
                held = None
                await stack.aclose()  # what it took is free for others at once
            yield held

    async def _take(self, stack: AsyncExitStack, taking: _Taking) -> Held | None:
        trees = await self._trees(taking)
        size = sum(file.size_bytes for tree in trees for file in tree.look.versions.values())
        room = await self._room(taking.path)
        if taking.link:
            size = 0  # a second name takes no room
        taken = 0 if taking.wait else room.budget.used
        if taken + size > room.bound_bytes:
            return None
        await stack.enter_async_context(room.budget.borrow(size))
        holder = await stack.enter_async_context(self._holder(taking.path, taking.mark))
        held = {tree.prefix: await self._hold(tree, taking, holder) for tree in trees}
        way = weakest({one.way for one in held.values()})
        for tree in reversed(trees):  # those inside before what they are inside of
            inside = {path: held[f"{tree.prefix}{path}/"] for path in tree.look.scan.nested}
            held[tree.prefix] = replace(held[tree.prefix], way=way, nested=inside)
        return held[""]

    async def _room(self, path: str) -> _Room:
        """The room on the file system of a tree; what died there does not count any more."""
        await self._threads.run(sweep_beside, path)
        device, free = await self._threads.run(_measured, path)
        bound = self._bound_bytes if self._bound_bytes is not None else free // 2
        room = self._rooms.setdefault(device, _Room(Budget(0), 0))
        if not room.budget.used:  # what lives is not all written yet: then nobody can tell
            room.bound_bytes = bound
            room.budget.resize(bound)
        return room

    async def _trees(self, taking: _Taking) -> list[_Tree]:
        """The tree and the commits inside, each after the one that it is inside of."""
        found, pending = list[_Tree](), [""]
        while pending:
            path = pending.pop()
            chosen = await taking.choose(path)
            async with taking.open(path, chosen, self._threads) as source:
                look = await self._look(source, chosen)
            prefix = f"{path}/" if path else ""
            found.append(_Tree(prefix, chosen, look))
            pending += [prefix + inside for inside in look.scan.nested]
        return found

    async def _look(self, source: Directory, chosen: Chosen) -> _Look:
        scan = await source.scan(chosen.selection, inside=chosen.inside)
        own = await self._threads.run(_own_manifest, source)
        return _Look(scan, scan.files | ({MANIFEST: own} if own else {}))

    @asynccontextmanager
    async def _holder(self, path: str, mark: str) -> AsyncIterator[Holder]:
        made: list[Holder] = []
        try:
            await self._threads.run(lambda: made.append(Holder(path, mark)))
            yield made[0]
        finally:
            with anyio.CancelScope(shield=True):
                for holder in made:
                    with suppress(OSError, StalledError):  # it is swept later; the sync is over
                        await self._threads.run(holder.close)

    async def _hold(self, tree: _Tree, taking: _Taking, holder: Holder) -> Held:
        path = tree.prefix.rstrip("/")
        async with taking.open(path, tree.chosen, self._threads) as source:
            copying = _Copying(source, tree.prefix, holder, self._threads, link=taking.link)
            scan = (await self._until_still(tree, source, copying)).scan
        await self._threads.run(copying.make_directories, scan)
        return Held(
            path=f"{holder.path}/{path}".rstrip("/"),
            kind=tree.chosen.kind,
            way=weakest(copying.ways),
            left_out=tuple(scan.left_out),
            # Another name is another status change: as a version of the tree it is unknown.
            originals={} if taking.link else copying.exact,
        )

    async def _until_still(self, tree: _Tree, source: Directory, copying: _Copying) -> _Look:
        """Copy, look again, and copy again what changed. A sealed tree is still as a whole."""
        look = now = tree.look
        left = list(now.versions.values())
        for attempt in range(1, _ROUNDS + 1):
            await self._settle(now.scan)
            changed = await copying.files(left)
            if source.kind == "rolling" and not changed:
                return look
            now = await self._look(source, tree.chosen)
            if look.scan.files and not now.scan.files:
                raise unstable(source.path, "vanished while they were read", look.scan.files)
            if source.kind == "sealed":
                if now.scan.nested != look.scan.nested:
                    raise BusyError(
                        f"commits inside {quote(source.path)} came or went while it was copied; "
                        "try again",
                        side="source",
                    )
                changed |= look.differing(now)
                if not changed:
                    return now
                look = now
            await self._threads.run(copying.forget, changed)
            await self._clock.sleep(_PAUSE_S * attempt)
            left = [now.versions[path] for path in changed if path in now.versions]
        raise unstable(source.path, f"changed in each of {_ROUNDS} attempts to read them", changed)

    async def _settle(self, scan: Scan) -> None:
        """Wait until a write that we might miss would change a time stamp."""
        wait_ns = scan.settle_ns(int(self._clock.now() * 1e9))
        if wait_ns:
            await self._clock.sleep(wait_ns / 1e9)


@dataclass(frozen=True, slots=True)
class _Taking:
    """What is asked of `take`."""

    path: str
    choose: Callable[[str], Awaitable[Chosen]]
    links: Links
    link: bool
    mark: str
    wait: bool

    @asynccontextmanager
    async def open(self, path: str, chosen: Chosen, threads: Threads) -> AsyncIterator[Directory]:
        """The tree, or the commit inside it at `path`."""
        full = f"{self.path}/{path}" if path else self.path
        ctimes = not self.link  # a second name sets that time
        async with Directory.open(
            full, chosen.kind, threads, links=self.links, ctimes=ctimes
        ) as source:
            yield source


def _own_manifest(source: Directory) -> SourceFile | None:
    """The version of the record of what was restored there, which is no file of the tree."""
    with os_errors("source", source.path):
        try:
            fd = source.open_file(MANIFEST)
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
    return SourceFile(MANIFEST, *source.stamp(found)) if stat.S_ISREG(found.st_mode) else None


class _Copying:
    """Fills a holder with one tree.

    Attributes:
        ways: that were taken.
        exact: files that are the version that was looked at, nothing added.
    """

    def __init__(
        self, source: Directory, prefix: str, holder: Holder, threads: Threads, *, link: bool
    ) -> None:
        self._source, self._prefix, self._holder = source, prefix, holder
        self._threads, self._link = threads, link
        self.ways, self.exact = set[Way](), dict[str, SourceFile]()

    async def files(self, files: Sequence[SourceFile]) -> set[str]:
        """Copy; returns the paths of those that moved under our eyes."""
        moving = set[str]()

        async def act(batch: list[SourceFile]) -> None:
            if batch[0].size_bytes <= _PIECE_BYTES:
                moving.update(await self._threads.run(self._whole, batch))
                return
            try:
                await self._by_pieces(batch[0])
            except Moving:
                moving.add(batch[0].path)

        await each(batches(files), act, limit=_AT_ONCE)
        return moving

    async def _by_pieces(self, file: SourceFile) -> None:
        now, way = await self._threads.run(self._opened, self._begin, file)
        if way == "copy":
            starts = range(0, now.size_bytes, _PIECE_BYTES)
            piece = partial(self._threads.run, self._opened, self._piece, now)
            await each(starts, piece, limit=_AT_ONCE)
        await self._threads.run(self._opened, self._end, now, way, file)

    # -- in threads

    def _opened(self, step: Callable[..., T], file: SourceFile, *args: object) -> T:
        with self._source.opened(file) as (fd, _):
            return step(fd, file, *args)

    def _whole(self, files: Sequence[SourceFile]) -> set[str]:
        moving = set[str]()
        for file in files:
            try:
                self._opened(self._at_once, file)
            except Moving:
                moving.add(file.path)
        return moving

    def _at_once(self, fd: int, file: SourceFile) -> None:
        now, way = self._begin(fd, file)
        if way == "copy":
            self._piece(fd, now, 0)
        self._end(fd, now, way, file)

    def _begin(self, fd: int, file: SourceFile) -> tuple[SourceFile, Way]:
        # One of a rolling tree may have grown, or been written anew, since it was looked at.
        now = SourceFile(file.path, *self._source.stamp(os.fstat(fd)))
        return now, self._holder.begin(fd, self._prefix + file.path, link=self._link)

    def _piece(self, fd: int, file: SourceFile, start: int) -> None:
        end = min(file.size_bytes, start + _PIECE_BYTES)
        self._holder.copy(fd, self._prefix + file.path, start, end)

    def _end(self, fd: int, now: SourceFile, way: Way, looked_at: SourceFile) -> None:
        path = self._prefix + now.path
        if self._source.is_version(looked_at, fd):
            self.exact[now.path] = looked_at
        elif way == "copy" and not self._holder.matches(fd, path, now.size_bytes):
            raise Moving(now.path)
        if way != "link":
            size = now.size_bytes if way == "copy" else None
            self._holder.finish(path, size, now.mode, now.mtime_ns)
        self.ways.add(way)

    def forget(self, paths: Collection[str]) -> None:
        """Drop what was copied of files: they are copied again, or no longer there."""
        for path in paths:
            self.exact.pop(path, None)
            self._holder.forget(self._prefix + path)

    def make_directories(self, scan: Scan) -> None:
        """Make those that are empty; the others came with their files."""
        for directory in scan.directories:
            self._holder.make_directory(self._prefix + directory.path, directory.mode)


def _measured(path: str) -> tuple[int, int]:
    """The file system that a path is on, and what is free there."""
    return os.stat(path).st_dev, free_bytes(path)
