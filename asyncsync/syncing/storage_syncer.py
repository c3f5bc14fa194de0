"""StorageSyncer: the syncer for every location that asyncsync knows."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import anyio
import msgspec

from ..clock import Clock, SystemClock
from ..concurrency import Threads
from ..errors import (
    AsyncSyncError,
    BusyError,
    ConfigError,
    ConflictError,
    DeadlineError,
    IntegrityError,
    NotFoundError,
    TransferError,
    quote,
    quote_some,
)
from ..events import FellBack, Kept, Observer, Skipped, Started, ignore
from ..location import Location
from ..manifest import Kind
from ..names import new_attempt
from ..patterns import Selection
from ..storage import Backoff, Deleted, Rate, Stores, TreeStore, retry
from ..transfer import Bounds, Engine, Inspected, Links, Tally
from ..units import MIB
from ..version import __version__
from .base import Path, Receipt
from .commits import (
    Commit,
    ProbeReport,
    VerifyReport,
    candidates,
    damaged_error,
    find_commits,
    refuse_damaged,
)
from .decisions import check_overlap
from .download import Download, DownloadRequest
from .follow import Watch, poll
from .newest import Look, Newest
from .requests import local_path, upload_request
from .tools import Tools
from .upload import Request, SyncPlan, Upload

__all__ = ["StorageSyncer"]

T = TypeVar("T")
_REREADS = 3
_LAYOUT_VERSION = 1


class _Root(msgspec.Struct, frozen=True, rename={"layout": "asyncsync_root"}):
    """The root marker: see docs/formats/manifest.md."""

    layout: int
    id: str
    durability: str
    exclusive: bool


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a StorageSyncer is made of; pickles."""

    bounds: Bounds
    bwlimit: float | None
    sync_timeout: float | None


class StorageSyncer:
    """Syncs trees with any location, verified, committed at once or not at all.

    It may be shared between tasks: they share its bounds. Open it with `async with`, or close it
    with `aclose`. A pickled copy has the same settings and nothing in flight.

    Args:
        memory_bytes: file content held in memory at once, over all syncs.
        max_files: files, or batches of small ones, in progress at once.
        max_requests: reads and writes in progress at once.
        bwlimit: bytes per second that may move, over all syncs; None is no limit.
        sync_timeout: seconds that one sync may take as a whole; None is no limit.
        observe: is called with every event; it must be quick. An observer given to a method
            hears of that sync alone, and not of what concerns a store as a whole.
        clock: what it takes the time from.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 256 * MIB,
        max_files: int = 64,
        max_requests: int = 32,
        bwlimit: float | None = None,
        sync_timeout: float | None = None,
        observe: Observer = ignore,
        clock: Clock | None = None,
    ) -> None:
        for name, value in (
            ("memory_bytes", memory_bytes),
            ("max_files", max_files),
            ("max_requests", max_requests),
            ("bwlimit", bwlimit),
            ("sync_timeout", sync_timeout),
        ):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value!r}")
        bounds = Bounds(memory_bytes=memory_bytes, max_files=max_files, max_requests=max_requests)
        self._settings = _Settings(bounds, bwlimit, sync_timeout)
        self._observe = observe
        self._clock = clock or SystemClock()
        self._begin()

    def _begin(self) -> None:
        self._engine = Engine(self._settings.bounds)
        self._threads = Threads(min(8, self._settings.bounds.max_requests))
        limit = self._settings.bwlimit
        self._stores = Stores(
            threads=self._threads,
            clock=self._clock,
            max_requests=self._settings.bounds.max_requests,
            rate=Rate(limit, self._clock) if limit is not None else None,
            observe=self._observe,
        )
        self._newest = Newest()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._active = 0

    def __reduce__(self) -> tuple[Callable[..., StorageSyncer], tuple[_Settings]]:
        return _unpickle, (self._settings,)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of threads and connections. Again: no effect."""
        self._closed = True
        await self._stores.aclose()
        self._threads.close()

    # -- up, down, delete

    async def sync_up(  # noqa: PLR0913 - the front door: every keyword is a promise of its own
        self,
        local_dir: Path,
        remote_dir: Path,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        kind: Kind | None = None,
        replace: bool = False,
        links: Links = "refuse",
        step: int | None = None,
        observe: Observer | None = None,
    ) -> Receipt:
        """Make `remote_dir` hold what `local_dir` holds, and commit it.

        Readers see the version before or this one, never anything between, also when it fails or
        is cancelled.

        Args:
            exclude, include: gitignore patterns relative to `local_dir`.
            kind: `sealed` (written once) or `rolling` (updated again and again); None takes that
                of the commit that is there, or `sealed`.
            replace: take the place of whatever commit is there.
            links: `follow` copies what links to files inside the tree lead to.
            step: training step to order commits by; None takes the number the name ends in.

        Raises:
            ConflictError: another commit is there.
            RefusedError: a name or kind of file that cannot be kept; nothing was moved.
            SourceChangedError: the source never held still.
            DeadlineError: `sync_timeout` is over.
            AsyncSyncError: another failure; its class says what to do.
        """
        request = upload_request(
            local_dir, remote_dir, Selection(exclude, include), kind, links, replace, step
        )
        told = self._observe if observe is None else observe
        async with self._store(request.remote, told) as (store, tree):
            await self._check_overlap(request.local, request.remote)
            told(Started(direction="up", source=request.local, target=str(request.remote)))

            async def attempt() -> Receipt:
                try:
                    return await self._upload(request, store, tree, told).run()
                except ConflictError:
                    # Somebody committed after we had looked: whether that is a conflict or the
                    # same content is for a second look to say.
                    return await self._second(request, store, tree, told)

            return await self._bounded("sync up", request.remote, attempt, told)

    async def plan_up(
        self,
        local_dir: Path,
        remote_dir: Path,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        kind: Kind | None = None,
        replace: bool = False,
        links: Links = "refuse",
    ) -> SyncPlan:
        """What `sync_up` would do, without doing it. Raises what it would raise before it moves."""
        request = upload_request(
            local_dir, remote_dir, Selection(exclude, include), kind, links, replace, None
        )
        async with self._store(request.remote, self._observe) as (store, tree):
            await self._check_overlap(request.local, request.remote)
            return await self._upload(request, store, tree, ignore).plan()

    async def sync_down(
        self,
        remote_dir: Path,
        local_dir: Path,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        allow_unverified: bool = False,
        observe: Observer | None = None,
    ) -> Receipt:
        """Make `local_dir` hold what `remote_dir` holds, or the part of it that is selected.

        Every chunk is compared with the manifest before it becomes visible. Files of the user's
        own stay; one under a name of the tree is refused.

        Args:
            allow_unverified: take a tree without a manifest as it is.

        Raises:
            NotFoundError, NotCommittedError: there is no commit to read.
            IntegrityError: it is damaged; `local_dir` is as it was.
            ClashError: files of the user's own are in the way; nothing was written.
        """
        request = self._download_request(remote_dir, local_dir, exclude, include, allow_unverified)
        told = self._observe if observe is None else observe
        async with self._store(request.remote, told) as (store, tree):
            await self._check_overlap(request.local, request.remote)
            told(Started(direction="down", source=str(request.remote), target=request.local))

            async def attempt() -> Receipt:
                return await self._download_current(request, store, tree, told)

            return await self._bounded("sync down", request.remote, attempt, told)

    async def plan_down(
        self,
        remote_dir: Path,
        local_dir: Path,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        allow_unverified: bool = False,
    ) -> SyncPlan:
        """What `sync_down` would do, without doing it."""
        request = self._download_request(remote_dir, local_dir, exclude, include, allow_unverified)
        async with self._store(request.remote, self._observe) as (store, tree):
            await self._check_overlap(request.local, request.remote)
            return await self._download(request, store, tree, ignore).plan()

    async def delete(
        self,
        remote_dir: Path,
        *,
        allow_uncommitted: bool = False,
        observe: Observer | None = None,
    ) -> Deleted:
        """Delete the commit at `remote_dir` and those inside it, the manifest first.

        Files that no manifest lists stay; the result names them.

        Args:
            allow_uncommitted: delete a tree without a manifest, too.

        Raises:
            NotFoundError, NotCommittedError: there is nothing to delete.
        """
        remote = Location.parse(remote_dir)
        told = self._observe if observe is None else observe
        async with self._store(remote, told) as (store, tree):
            told(Started(direction="delete", source=str(remote), target=str(remote)))

            async def attempt() -> Deleted:
                return await store.delete(tree, uncommitted=allow_uncommitted)

            deleted = await self._bounded("delete", remote, attempt, told)
        for path in deleted.kept:
            told(Kept(path=path, reason="no manifest lists it"))
        return deleted

    # -- looking

    async def verify(self, remote_dir: Path, *, observe: Observer | None = None) -> VerifyReport:
        """Read every byte of the commit at `remote_dir` and compare it with the manifest.

        Raises:
            NotFoundError, NotCommittedError: there is no commit.
            IntegrityError: the manifest itself is damaged.
        """
        remote = Location.parse(remote_dir)
        told = self._observe if observe is None else observe
        async with self._store(remote, told) as (store, tree):
            told(Started(direction="verify", source=str(remote), target=str(remote)))

            async def attempt() -> VerifyReport:
                for _ in range(_REREADS):
                    report = await self._verify(store, tree, remote, told)
                    if report.ok or await self._is_current(store, tree, report.identity):
                        return report
                return report

            return await self._bounded("verify", remote, attempt, told)

    async def _verify(
        self, store: TreeStore, tree: str, remote: Location, observe: Observer
    ) -> VerifyReport:
        manifest = await store.read_manifest(tree)
        async with store.open(tree, manifest) as reader:
            source = Inspected(reader, quote(str(remote)))
            await self._engine.check(tuple(manifest.files.values()), source, Tally(observe))
        for entry in manifest.nested:
            try:
                await store.read_header(f"{tree}/{entry.path}".lstrip("/"))
            except NotFoundError:
                observe(Skipped(path=entry.path, reason="this commit inside is gone"))
        return VerifyReport(
            location=str(remote),
            identity=manifest.identity,
            files=manifest.header.files,
            size_bytes=manifest.header.size_bytes,
            failures=tuple(sorted(source.damaged.items())),
        )

    async def commits(self, remote_dir: Path) -> AsyncIterator[Commit]:
        """The commits at and below `remote_dir`, newest first; damaged ones say so.

        Raises:
            NotFoundError: there is nothing at all.
        """
        for commit in await self._find(Location.parse(remote_dir)):
            yield commit

    async def latest(self, remote_dir: Path) -> Commit | None:
        """The newest commit below `remote_dir`, or the one there; None if there is none.

        It lists everything below, one request for every thousand objects, and reads only what is
        new; a sealed commit there, asked again, costs one request.

        Raises:
            IntegrityError: the newest one's manifest is damaged; names the next one.
        """
        return (await self._look(Location.parse(remote_dir))).commit

    async def _look(self, remote: Location) -> Look:
        async with self._store(remote, self._observe) as (store, tree):
            return await self._bounded(
                "look at", remote, lambda: self._newest.look(store, remote, tree), self._observe
            )

    async def follow(
        self, remote_dir: Path, *, period_s: float = 1.0
    ) -> AsyncGenerator[Commit, None]:
        """The newest commit at or below `remote_dir`, then each that takes its place; never ends.

        A commit comes once. That the newest one was deleted is no news: one that has been there
        before does not come again. Close the generator (`aclose`) when you leave it early.

        A look without news is one small request, or one for every thousand names directly below.
        What is more than one level below, rolling trees beside the newest, and what is below a
        commit of more than a thousand files, are looked at every 30th time.

        Args:
            period_s: seconds between two looks.

        Raises:
            IntegrityError: the newest one's manifest is damaged; names the next one.
            AsyncSyncError: looking failed, retries included. Following again starts anew.
        """
        if not period_s > 0:
            raise ConfigError(f"period_s must be above 0, not {period_s!r}")
        remote, watch = Location.parse(remote_dir), Watch()
        while True:
            async with self._store(remote, self._observe) as (store, tree):
                news = await poll(watch, store, tree, lambda: self._look(remote))
            if news is not None:
                yield news
            await self._clock.sleep(period_s)

    async def _find(self, remote: Location) -> list[Commit]:
        async with self._store(remote, self._observe) as (store, tree):
            return await self._bounded(
                "list", remote, lambda: find_commits(store, remote, tree), self._observe
            )

    async def restore(
        self,
        remote_dir: Path,
        local_dir: Path,
        *,
        step: int | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        fallback: bool = False,
        observe: Observer | None = None,
    ) -> Receipt:
        """Sync down the newest commit at or below `remote_dir`, or the one of `step`.

        Args:
            fallback: when the newest is damaged, use the next older one, and say so in an event.

        Raises:
            NotFoundError: no commit, or none of that step.
            IntegrityError: it is damaged; names the next older one unless `fallback`.
        """
        remote = Location.parse(remote_dir)
        found = candidates(await self._find(remote), remote)
        if step is not None:
            chosen = [commit for commit in found if commit.step == step]
            if found and not chosen:
                steps = [str(c.step) for c in found if c.step is not None]
                raise NotFoundError(
                    f"no commit of step {step} at {quote(str(remote))}; there are "
                    f"{quote_some(steps)}"
                )
            found = chosen
        if not found:
            raise NotFoundError(f"no commit at or below {quote(str(remote))}")
        told = self._observe if observe is None else observe
        for commit, older in zip(found, [*found[1:], None], strict=True):
            try:
                refuse_damaged(commit)
                return await self.sync_down(
                    commit.location, local_dir, include=include, exclude=exclude, observe=told
                )
            except IntegrityError as exc:
                if not fallback or older is None:
                    raise damaged_error(commit, str(exc), found[found.index(commit) + 1 :]) from exc
                told(FellBack(damaged=commit.location, used=older.location, reason=str(exc)))
        raise AssertionError("unreachable: the loop returns or raises")

    async def probe(self, remote_dir: Path) -> ProbeReport:
        """Find out what the place can do, and mark it as a storage root.

        The marker, `.asyncsync-root.json`, is written once; its id is the same for everybody who
        sees the same place.
        """
        remote = Location.parse(remote_dir)
        async with self._store(remote, self._observe) as (store, tree):
            able = await store.probe(tree)
            proposed = _Root(_LAYOUT_VERSION, new_attempt(), able.durability, able.exclusive)
            written = await store.mark_root(tree, msgspec.json.encode(proposed) + b"\n")
        try:
            marker = msgspec.json.decode(written, type=_Root)
        except msgspec.MsgspecError as exc:
            raise IntegrityError(
                f"the root marker at {quote(str(remote))} is damaged; if this is the right place, "
                "remove .asyncsync-root.json there and run doctor again"
            ) from exc
        return ProbeReport(
            location=str(remote),
            capabilities=able,
            marker=marker.id,
            clock_offset_s=able.clock_offset_s,
        )

    # -- helpers

    async def _check_overlap(self, local: str, remote: Location) -> None:
        """Refuse overlapping trees, also when links hide that they overlap."""
        check_overlap(local, remote)
        if remote.scheme == "file":
            real = await self._threads.run(os.path.realpath, remote.path)
            check_overlap(
                await self._threads.run(os.path.realpath, local), Location("file", "", real)
            )

    @asynccontextmanager
    async def _store(
        self, location: Location, observe: Observer
    ) -> AsyncIterator[tuple[TreeStore, str]]:
        if self._closed:
            raise ConfigError("this StorageSyncer is closed; open a new one")
        loop = asyncio.get_running_loop()
        if (self._active or self._stores.connected) and loop is not self._loop:
            raise ConfigError(
                "this StorageSyncer is in use in another event loop; make one for each loop"
            )
        self._loop, self._active = loop, self._active + 1
        try:
            yield await self._stores.open(location, observe)
        finally:
            self._active -= 1

    async def _bounded(
        self,
        what: str,
        location: Location,
        operation: Callable[[], Awaitable[T]],
        observe: Observer,
    ) -> T:
        """Run with retries, within `sync_timeout`."""
        timeout_s = self._settings.sync_timeout
        with anyio.move_on_after(timeout_s) as scope:
            return await retry(operation, Backoff(), self._clock, what=what, observe=observe)
        assert scope.cancelled_caught, "the only way past the return"
        raise DeadlineError(
            f"{what} {quote(str(location))}: not finished within {timeout_s:g} s; "
            "run it again, or allow more time"
        )

    def _upload(self, request: Request, store: TreeStore, tree: str, observe: Observer) -> Upload:
        return Upload(request, store, tree, self._tools(observe))

    async def _second(
        self, request: Request, store: TreeStore, tree: str, observe: Observer
    ) -> Receipt:
        try:
            return await self._upload(request, store, tree, observe).run()
        except ConflictError as exc:
            if not request.replace:
                raise
            raise BusyError(
                f"{quote(str(request.remote))} is being written by others again and again; "
                "try later",
                side="target",
            ) from exc

    def _download(
        self, request: DownloadRequest, store: TreeStore, tree: str, observe: Observer
    ) -> Download:
        return Download(request, store, tree, self._tools(observe))

    def _tools(self, observe: Observer) -> Tools:
        return Tools(
            engine=self._engine,
            threads=self._threads,
            clock=self._clock,
            observe=observe,
            name=f"asyncsync {__version__}",
        )

    async def _download_current(
        self, request: DownloadRequest, store: TreeStore, tree: str, observe: Observer
    ) -> Receipt:
        """Download; once more if another version was committed while the old one was read."""
        for _ in range(_REREADS):
            download = self._download(request, store, tree, observe)
            try:
                return await download.run()
            except (IntegrityError, TransferError):
                if await self._is_current(store, tree, download.identity):
                    raise
        return await self._download(request, store, tree, observe).run()

    @staticmethod
    async def _is_current(store: TreeStore, tree: str, identity: str | None) -> bool:
        try:
            return identity is None or (await store.read_header(tree)).identity == identity
        except AsyncSyncError:
            return True  # it is gone or unreadable by now: the first error is the one to report

    @staticmethod
    def _download_request(
        remote_dir: Path,
        local_dir: Path,
        exclude: Sequence[str],
        include: Sequence[str],
        allow_unverified: bool,
    ) -> DownloadRequest:
        return DownloadRequest(
            remote=Location.parse(remote_dir),
            local=local_path(local_dir),
            selection=Selection(exclude, include),
            allow_unverified=allow_unverified,
        )


def _unpickle(settings: _Settings) -> StorageSyncer:
    bounds = settings.bounds
    return StorageSyncer(
        memory_bytes=bounds.memory_bytes,
        max_files=bounds.max_files,
        max_requests=bounds.max_requests,
        bwlimit=settings.bwlimit,
        sync_timeout=settings.sync_timeout,
    )
