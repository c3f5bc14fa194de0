"""The syncing that a StorageSyncer does, on the event loop that calls it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio

from ..clock import Clock, SystemClock
from ..concurrency import Threads
from ..errors import (
    AsyncSyncError,
    ConfigError,
    DeadlineError,
    IntegrityError,
    TransferError,
    quote,
)
from ..events import Kept, Observer, Snapshotted, Started, ignore
from ..location import Location
from ..manifest import Kind
from ..storage import Backoff, Deleted, Group, Rate, Share, Stores, TreeStore, retry
from ..transfer import Bounds, Engine, Links, Snapshots
from ..units import MIB
from ..version import __version__
from .base import DAY_S, Path, Receipt, Replace, Snapshot, SyncPlan
from .commits import (
    Commit,
    ProbeReport,
    VerifyReport,
    find_commits,
    verify_commit,
)
from .contended import run_contended
from .decisions import check_overlap
from .download import Download, DownloadRequest
from .follow import Watch, poll
from .newest import Look, Newest
from .part import PartUpload, Patience
from .probing import probe_root
from .requests import Request, check_snapshot, upload_request
from .restoring import Restore
from .sharing import SharedRead
from .tools import Tools
from .upload import Upload
from .writers import Turn, Writers

__all__ = ["LoopSyncer"]

T = TypeVar("T")
_REREADS = 3
_CLOSE_S = 10.0
_OBSERVED = {"sync_up", "sync_down", "delete", "verify", "restore"}


class LoopSyncer:
    """See StorageSyncer for what each method promises; `remote_dir` and `local_dir` are absolute.

    It belongs to the event loop that uses it first.

    Args:
        turn: keeps writers apart that this syncer does not know of.
    """

    def __init__(  # noqa: PLR0913 - the settings of the front door
        self,
        *,
        memory_bytes: int = 256 * MIB,
        max_files: int = 64,
        max_requests: int = 32,
        bwlimit: float | None = None,
        sync_timeout: float | None = None,
        snapshot_bytes: int | None = None,
        observe: Observer = ignore,
        clock: Clock | None = None,
        turn: Turn | None = None,
    ) -> None:
        for name, value in (
            ("memory_bytes", memory_bytes),
            ("max_files", max_files),
            ("max_requests", max_requests),
            ("bwlimit", bwlimit),
            ("sync_timeout", sync_timeout),
            ("snapshot_bytes", snapshot_bytes),
        ):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, not {value!r}")
        self._observe = observe
        self._clock = clock or SystemClock()
        self._timeout_s = sync_timeout
        self._engine = Engine(
            Bounds(memory_bytes=memory_bytes, max_files=max_files, max_requests=max_requests),
            rate=bwlimit,
        )
        self._threads = Threads(min(8, max_requests))
        self._stores = Stores(
            threads=self._threads,
            clock=self._clock,
            max_requests=max_requests,
            rate=Rate(bwlimit, self._clock) if bwlimit is not None else None,
            observe=observe,
        )
        self._snapshots = Snapshots(self._threads, self._clock, bound_bytes=snapshot_bytes)
        self._writers = Writers(turn)
        self._newest = Newest()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._active = 0

    async def aclose(self) -> None:
        """Let go of threads and connections. Again: no effect."""
        self._closed = True
        try:
            with anyio.move_on_after(_CLOSE_S, shield=True):  # also when a cancellation led here
                await self._stores.aclose()
        finally:
            self._threads.close()

    async def call(self, method: str, arguments: Mapping[str, Any], observe: Observer) -> Any:
        """Call one of the methods below by its name."""
        told = {"observe": observe} if method in _OBSERVED else {}
        return await getattr(self, method)(**arguments, **told)

    def stream(self, method: str, arguments: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Iterate over what one of them gives."""
        items: AsyncGenerator[Any, None] = getattr(self, method)(**arguments)
        return items

    # -- up, down, delete

    async def sync_up(  # noqa: PLR0913 - the front door: every keyword is a promise of its own
        self,
        local_dir: Path,
        remote_dir: Path,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        kind: Kind | None = None,
        replace: Replace = False,
        delete: bool = True,
        links: Links = "refuse",
        step: int | None = None,
        snapshot: Snapshot = False,
        group: Mapping[str, Any] | None = None,
        observe: Observer = ignore,
    ) -> Receipt:
        request = upload_request(
            local_dir, remote_dir, exclude, include, kind, links,
            replace=replace, delete=delete, step=step, group=Group(**group) if group else None,
        )  # fmt: skip
        check_snapshot(snapshot)
        started = self._clock.monotonic()
        async with (
            self._store(request.remote, observe) as (store, tree),
            AsyncExitStack() as stack,
        ):
            await self._check_overlap(request.local, request.remote)
            alone, held = self._writers.alone(request.remote, request.who), None
            if not snapshot:
                await stack.enter_async_context(alone)
            observe(Started(direction="up", source=request.local, target=str(request.remote)))
            make = partial(self._upload, store=store, tree=tree, observe=observe)
            if snapshot:  # before its turn: whoever waits for control does not wait for others
                held = await self._bounded(
                    "take a snapshot for",
                    request.remote,
                    lambda: make(request).hold(stack, self._snapshots, link=snapshot == "link"),
                    observe,
                )
                if held is not None:
                    waited_s = self._clock.monotonic() - started
                    observe(Snapshotted(way=held.way, waited_s=waited_s))
                    request = dataclasses.replace(request, held=held)
                await stack.enter_async_context(alone)
            patience = Patience(request, self._clock)
            work = partial(run_contended, request, partial(make, patience=patience))
            with patience.naming():
                receipt = await self._bounded("sync up", request.remote, work, observe)
        if held is None:
            waited_s = self._clock.monotonic() - started
        way = held.way if held is not None else "in place"
        return dataclasses.replace(receipt, snapshot=way, waited_s=waited_s)

    async def plan_up(
        self,
        local_dir: Path,
        remote_dir: Path,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        kind: Kind | None = None,
        replace: Replace = False,
        delete: bool = True,
        links: Links = "refuse",
    ) -> SyncPlan:
        request = upload_request(
            local_dir, remote_dir, exclude, include, kind, links, replace=replace, delete=delete
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
        share: Mapping[str, str] | None = None,
        observe: Observer = ignore,
    ) -> Receipt:
        request = DownloadRequest.of(remote_dir, local_dir, exclude, include, allow_unverified)
        return await self._fetch(request, Share(**share) if share else None, observe)

    async def _fetch(
        self, request: DownloadRequest, share: Share | None, observe: Observer, patient: bool = True
    ) -> Receipt:
        async with self._store(request.remote, observe, patient) as (store, tree):
            await self._check_overlap(request.local, request.remote)
            observe(Started(direction="down", source=str(request.remote), target=request.local))

            async def begin() -> Download | SharedRead:
                if share is not None:
                    return await self._by_turns(request, store, tree, share, observe)
                return self._download(request, store, tree, observe)

            work = partial(self._current, store, tree, begin)
            return await self._bounded("sync down", request.remote, work, observe)

    async def plan_down(
        self,
        remote_dir: Path,
        local_dir: Path,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        allow_unverified: bool = False,
    ) -> SyncPlan:
        request = DownloadRequest.of(remote_dir, local_dir, exclude, include, allow_unverified)
        async with self._store(request.remote, self._observe) as (store, tree):
            await self._check_overlap(request.local, request.remote)
            return await self._download(request, store, tree, ignore).plan()

    async def delete(
        self,
        remote_dir: Path,
        *,
        allow_uncommitted: bool = False,
        observe: Observer = ignore,
    ) -> Deleted:
        remote = Location.parse(remote_dir)
        async with (
            self._store(remote, observe) as (store, tree),
            self._writers.alone(remote),
        ):
            observe(Started(direction="delete", source=str(remote), target=str(remote)))

            async def attempt() -> Deleted:
                return await store.delete(tree, uncommitted=allow_uncommitted)

            deleted = await self._bounded("delete", remote, attempt, observe)
        for path in deleted.kept:
            observe(Kept(path=path, reason="no manifest lists it"))
        return deleted

    async def clean(self, remote_dir: Path, *, older_than_s: float = DAY_S) -> list[str]:
        remote = Location.parse(remote_dir)
        async with self._store(remote, self._observe) as (store, tree):
            work = partial(store.clean, tree, older_than_s=older_than_s)
            return await self._bounded("clean", remote, work, self._observe)

    # -- looking

    async def verify(self, remote_dir: Path, *, observe: Observer = ignore) -> VerifyReport:
        remote = Location.parse(remote_dir)
        async with self._store(remote, observe) as (store, tree):
            observe(Started(direction="verify", source=str(remote), target=str(remote)))

            async def attempt() -> VerifyReport:
                for left in reversed(range(_REREADS)):
                    try:
                        report = await verify_commit(store, tree, remote, self._engine, observe)
                    except IntegrityError:  # replaced between two questions; or it is so again
                        if not left:
                            raise
                        continue
                    if report.ok or await self._is_current(store, tree, report.identity):
                        return report
                return report

            return await self._bounded("verify", remote, attempt, observe)

    async def commits(self, remote_dir: Path) -> AsyncGenerator[Commit, None]:
        for commit in await self._find(Location.parse(remote_dir)):
            yield commit

    async def latest(self, remote_dir: Path) -> Commit | None:
        return (await self._look(Location.parse(remote_dir))).commit

    async def _look(self, remote: Location) -> Look:
        async with self._store(remote, self._observe) as (store, tree):
            return await self._bounded(
                "look at", remote, lambda: self._newest.look(store, remote, tree), self._observe
            )

    async def follow(
        self, remote_dir: Path, *, period_s: float = 1.0
    ) -> AsyncGenerator[Commit, None]:
        if not period_s > 0:
            raise ConfigError(f"period_s must be above 0, not {period_s!r}")
        remote, watch = Location.parse(remote_dir), Watch()
        while True:
            async with self._store(remote, self._observe) as (store, tree):
                news = await poll(watch, store, tree, lambda: self._look(remote))
            if news is not None:
                yield news
            await self._clock.sleep(period_s)

    async def _find(self, remote: Location, patient: bool = True) -> list[Commit]:
        async with self._store(remote, self._observe, patient) as (store, tree):
            return await self._bounded(
                "list", remote, lambda: find_commits(store, remote, tree), self._observe
            )

    async def restore(  # noqa: PLR0913 - as of sync_up
        self,
        remote_dir: Path,
        local_dir: Path,
        *,
        step: int | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        copies: Sequence[Path] = (),
        share: Mapping[str, str] | None = None,
        fallback: bool = False,
        observe: Observer = ignore,
    ) -> Receipt:
        remote, places = Location.parse(remote_dir), [Location.parse(place) for place in copies]

        async def fetch(commit: Commit, patient: bool) -> Receipt:
            # By turns only where the head has it that says whose turn it is.
            turns = share if commit.location.startswith(str(remote)) else None
            request = DownloadRequest.of(commit.location, local_dir, exclude, include, False)
            return await self._fetch(request, Share(**turns) if turns else None, observe, patient)

        one = Restore(remote, places, self._find, fetch, observe)
        work = partial(one.run, step, fallback=fallback)
        return await self._bounded("restore", remote, work, observe)

    async def probe(self, remote_dir: Path) -> ProbeReport:
        remote = Location.parse(remote_dir)
        async with self._store(remote, self._observe) as (store, tree):
            return await probe_root(store, tree, remote)

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
        self, location: Location, observe: Observer, patient: bool = True
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
            yield await self._stores.open(location, observe, patient=patient)
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
        timeout_s = self._timeout_s
        with anyio.move_on_after(timeout_s) as scope:
            return await retry(operation, Backoff(), self._clock, what=what, observe=observe)
        assert scope.cancelled_caught, "the only way past the return"
        raise DeadlineError(
            f"{what} {quote(str(location))}: not finished within {timeout_s:g} s; "
            "run it again, or allow more time"
        )

    def _upload(
        self,
        request: Request,
        store: TreeStore,
        tree: str,
        observe: Observer,
        patience: Patience | None = None,
    ) -> Upload:
        tools = self._tools(observe)
        if patience is not None and request.group is not None:
            return PartUpload(request, store, tree, tools, patience)
        return Upload(request, store, tree, tools)

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

    async def _by_turns(
        self,
        request: DownloadRequest,
        store: TreeStore,
        tree: str,
        share: Share,
        observe: Observer,
    ) -> SharedRead:
        """To download from whom the head says, and let others read it here then."""
        identity = (await store.read_header(tree)).identity
        tools = self._tools(observe)
        return SharedRead(
            await self._stores.turns(request.remote),
            tree,
            identity,
            store,
            share if request.selection.everything else None,  # of a part nobody reads all
            lambda line: self._stores.joined(line, observe),
            lambda place, held: Download(request, place, held, tools, identity).run(),
            clock=self._clock,
            observe=observe,
        )

    async def _current(
        self,
        store: TreeStore,
        tree: str,
        begin: Callable[[], Awaitable[Download | SharedRead]],
    ) -> Receipt:
        """Download; again if another version was committed while the old one was read."""
        for _ in range(_REREADS):
            download = await begin()
            try:
                return await download.run()
            except (IntegrityError, TransferError):
                if await self._is_current(store, tree, download.identity):
                    raise
        return await (await begin()).run()

    @staticmethod
    async def _is_current(store: TreeStore, tree: str, identity: str | None) -> bool:
        try:
            return identity is None or (await store.read_header(tree)).identity == identity
        except AsyncSyncError:
            return True  # it is gone or unreadable by now: the first error is the one to report
