"""StorageSyncer: the syncer for every location that asyncsync knows."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Literal, Self, cast, get_args, overload

from ..clock import Clock
from ..errors import ConfigError, quote
from ..events import Observer, ignore
from ..location import Location
from ..manifest import Kind
from ..patterns import Selection
from ..storage import Deleted, Group, Share
from ..transfer import Links
from ..units import MIB
from .base import DAY_S, Path, Receipt, Replace, Snapshot, SyncPlan
from .commits import Commit, ProbeReport, VerifyReport
from .isolation import Client
from .loop_syncer import LoopSyncer
from .requests import local_path, upload_request
from .saved import Saved, Saves

__all__ = ["Isolation", "StorageSyncer"]

Isolation = Literal["process", "thread", "loop"]
"""Where the work is done: in a process or a thread of its own, or on the caller's event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """What a StorageSyncer is made of; pickles."""

    memory_bytes: int
    max_files: int
    max_requests: int
    bwlimit: float | None
    sync_timeout: float | None
    snapshot_bytes: int | None


class StorageSyncer:
    """Syncs trees with any location, verified, committed at once or not at all.

    It may be shared between tasks: they share its bounds. Open it with `async with`, or close it
    with `aclose`. A pickled copy has the same settings and nothing in flight.

    By default the work is done by an engine in a process of its own, one for the whole program:
    blocking steps of the caller do not slow it down, nor does it disturb them. It is started when
    it is first needed, finishes a `sync_up` or `delete` that it has accepted even if the caller is
    killed, and sees the environment variables of the time when it was started. If it dies, calls
    raise a TransientError that says so; the next call starts another. Then and with a thread, the
    syncer may be used from several event loops at once; on the caller's loop, from that one.

    Args:
        isolation: `process`; `thread`, for what cannot leave this program, as `memory://`; `loop`,
            for programs that do nothing but wait, and for tests.
        memory_bytes: file content held in memory at once, over all syncs.
        max_files: files, or batches of small ones, in progress at once.
        max_requests: reads and writes in progress at once.
        bwlimit: bytes per second that may move, over all syncs; None is no limit.
        sync_timeout: seconds that one sync may take as a whole; None is no limit. For one from a
            snapshot they are counted twice: until its caller has control back, and from then on.
        snapshot_bytes: files that all snapshots together may hold; None: half of the free space.
        observe: is called with every event; it must be quick. An observer given to a method
            hears of that sync alone, and not of what concerns a store as a whole. What it raises
            ends the sync.
        clock: what it takes the time from; on the caller's loop only.
    """

    def __init__(  # noqa: PLR0913 - the settings of the front door
        self,
        *,
        isolation: Isolation = "process",
        memory_bytes: int = 256 * MIB,
        max_files: int = 64,
        max_requests: int = 32,
        bwlimit: float | None = None,
        sync_timeout: float | None = None,
        snapshot_bytes: int | None = None,
        observe: Observer = ignore,
        clock: Clock | None = None,
    ) -> None:
        if isolation not in get_args(Isolation):
            raise ConfigError(f"isolation is 'process', 'thread' or 'loop', not {isolation!r}")
        if clock is not None and isolation != "loop":
            raise ConfigError("a clock cannot leave the caller's loop; add isolation='loop'")
        self._settings = _Settings(
            memory_bytes=memory_bytes,
            max_files=max_files,
            max_requests=max_requests,
            bwlimit=bwlimit,
            sync_timeout=sync_timeout,
            snapshot_bytes=snapshot_bytes,
        )
        self._isolation, self.observe = isolation, observe
        settings = asdict(self._settings)
        here = LoopSyncer(**settings, observe=observe, clock=clock)  # checks them, too
        self._saves = Saves(observe)
        self._engine = here if isolation == "loop" else Client(isolation, settings, observe)

    def __reduce__(self) -> tuple[Callable[..., StorageSyncer], tuple[Isolation, _Settings]]:
        return _unpickle, (self._isolation, self._settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.aclose()
            return
        try:
            await self._saves.stop()
        finally:
            await self._engine.aclose()

    async def aclose(self) -> None:
        """Wait for the saves that were begun on this event loop, and let go of everything.

        What else runs is cancelled; so are those saves when this is cancelled, or `async with` is
        left by an exception. Again: no effect.

        Raises:
            TransferError: saves failed whose `durable` nobody has awaited; names them.
        """
        try:
            await self._saves.drain()
        finally:
            await self._engine.aclose()
        self._saves.raise_lost()

    # -- up, down, delete

    @overload
    async def sync_up(
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
        snapshot: Literal[False] = False,
        group: Group | None = None,
        observe: Observer | None = None,
    ) -> Receipt: ...

    @overload
    async def sync_up(
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
        snapshot: Literal[True, "link"],
        group: Group | None = None,
        observe: Observer | None = None,
    ) -> Saved: ...

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
        group: Group | None = None,
        observe: Observer | None = None,
    ) -> Receipt | Saved:
        """Make `remote_dir` hold what `local_dir` holds, and commit it.

        Readers see the version before or this one, also when it fails or is cancelled.

        With `snapshot` it returns as soon as `local_dir` may change; `Saved.durable` waits for
        the commit. Where there can be no snapshot, as on a full disk, all is done by then. Saves
        of one syncer to one target are committed in the order in which they returned.

        Args:
            exclude, include: gitignore patterns relative to `local_dir`.
            kind: `sealed` (written once) or `rolling` (updated again and again); None: as there.
            replace: take the place of whatever commit is there; "own": if it came from here.
            delete: False keeps in a rolling target what is gone from the source.
            links: `follow` copies what links to files inside the tree lead to.
            step: training step to order commits by; None takes the number the name ends in.
            snapshot: True makes a second version of the tree, by reflinks or else by copying;
                "link" second names, for who never rewrites a file in place.
            group: `local_dir` is one rank's part of a sealed tree, committed when all are there.
                The receipt is for the whole. Out of time, the same rank of the same id goes on.

        Raises:
            ConflictError: another commit is there, or a newer group.
            RefusedError: a name or kind of file that cannot be kept; nothing was moved.
            SourceChangedError: the source never held still.
            DeadlineError: `sync_timeout` or a group's `deadline_s` is over; names missing ranks.
            AsyncSyncError: another failure; its class says what to do.
        """
        asked = upload_request(
            local_dir, remote_dir, exclude, include, kind, links,
            replace=replace, delete=delete, step=step, group=group,
        )  # fmt: skip

        async def call(told: Observer | None) -> Receipt:
            more = {"step": asked.step, "snapshot": snapshot, "group": asked.group_values}
            return cast("Receipt", await self._call("sync_up", told, **asked.arguments, **more))

        if not snapshot:
            return await call(observe)
        return await self._saves.begin(asked.what, call, observe)

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
        """What `sync_up` would do, without doing it. Raises what it would raise before it moves."""
        asked = upload_request(
            local_dir, remote_dir, exclude, include, kind, links, replace=replace, delete=delete
        )
        return cast("SyncPlan", await self._call("plan_up", None, **asked.arguments))

    async def sync_down(
        self,
        remote_dir: Path,
        local_dir: Path,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        allow_unverified: bool = False,
        share: Share | None = None,
        observe: Observer | None = None,
    ) -> Receipt:
        """Make `local_dir` hold what `remote_dir` holds, or the part of it that is selected.

        Every chunk is compared with the manifest before it becomes visible. Files of the user's
        own stay; one under a name of the tree is refused.

        Args:
            allow_unverified: take a tree without a manifest as it is.
            share: many nodes want it: the head says who reads it there, and who at another node
                that has it already; others may then read it here. From `PeerServer.share`.

        Raises:
            NotFoundError, NotCommittedError: there is no commit to read.
            IntegrityError: it is damaged; `local_dir` is as it was.
            ClashError: files of the user's own are in the way; nothing was written.
        """
        selection = Selection(exclude, include)
        receipt: Receipt = await self._call(
            "sync_down",
            observe,
            remote_dir=_remote(remote_dir),
            local_dir=local_path(local_dir),
            exclude=selection.exclude,
            include=selection.include,
            allow_unverified=allow_unverified,
            share=None if share is None else asdict(share),
        )
        return receipt

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
        selection = Selection(exclude, include)
        plan: SyncPlan = await self._call(
            "plan_down",
            None,
            remote_dir=_remote(remote_dir),
            local_dir=local_path(local_dir),
            exclude=selection.exclude,
            include=selection.include,
            allow_unverified=allow_unverified,
        )
        return plan

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
        deleted: Deleted = await self._call(
            "delete",
            observe,
            remote_dir=_remote(remote_dir),
            allow_uncommitted=allow_uncommitted,
        )
        return deleted

    async def clean(self, remote_dir: Path, *, older_than_s: float = DAY_S) -> list[str]:
        """Remove what interrupted syncs at and below `remote_dir` left and nobody went on with.

        Only what asyncsync recorded as its own and is older than `older_than_s` seconds; commits
        and syncs that are alive stay. A replacement that has begun to be visible stays, too: run
        that sync again to finish it.

        Returns:
            Where something was removed.
        """
        if not older_than_s >= 0:
            raise ConfigError(f"older_than_s must not be below 0, is {older_than_s!r}")
        cleaned: list[str] = await self._call(
            "clean", None, remote_dir=_remote(remote_dir), older_than_s=older_than_s
        )
        return cleaned

    # -- looking

    async def verify(self, remote_dir: Path, *, observe: Observer | None = None) -> VerifyReport:
        """Read every byte of the commit at `remote_dir` and compare it with the manifest.

        Raises:
            NotFoundError, NotCommittedError: there is no commit.
            IntegrityError: the manifest itself is damaged.
        """
        report: VerifyReport = await self._call("verify", observe, remote_dir=_remote(remote_dir))
        return report

    async def commits(self, remote_dir: Path) -> AsyncIterator[Commit]:
        """The commits at and below `remote_dir`, newest first; damaged ones say so.

        Raises:
            NotFoundError: there is nothing at all.
        """
        async with self._stream("commits", remote_dir=_remote(remote_dir)) as found:
            async for commit in found:
                yield commit

    async def latest(self, remote_dir: Path) -> Commit | None:
        """The newest commit below `remote_dir`, or the one there; None if there is none.

        It lists everything below, one request for every thousand objects, and reads only what is
        new; a sealed commit there, asked again, costs one request.

        Raises:
            IntegrityError: the newest one's manifest is damaged; names the next one.
        """
        newest: Commit | None = await self._call("latest", None, remote_dir=_remote(remote_dir))
        return newest

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
        remote = _remote(remote_dir)
        async with self._stream("follow", remote_dir=remote, period_s=period_s) as news:
            async for commit in news:
                yield commit

    async def restore(  # noqa: PLR0913 - as of sync_up
        self,
        remote_dir: Path,
        local_dir: Path,
        *,
        step: int | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        copies: Sequence[Path] = (),
        share: Share | None = None,
        fallback: bool = False,
        observe: Observer | None = None,
    ) -> Receipt:
        """Sync down the newest commit at or below `remote_dir`, or the one of `step`.

        Args:
            copies: where it, or a newer one, may be as well: a directory here, another node. It is
                read from the nearest place that has it; what does not answer is left out, and named
                in an event.
            share: as of `sync_down`.
            fallback: when the newest is damaged, use the next older one, and say so in an event.

        Raises:
            NotFoundError: no commit, or none of that step.
            IntegrityError: it is damaged; names the next older one unless `fallback`.
        """
        selection = Selection(exclude, include)
        receipt: Receipt = await self._call(
            "restore",
            observe,
            remote_dir=_remote(remote_dir),
            local_dir=local_path(local_dir),
            step=step,
            include=selection.include,
            exclude=selection.exclude,
            copies=[_remote(place) for place in copies],
            share=None if share is None else asdict(share),
            fallback=fallback,
        )
        return receipt

    async def probe(self, remote_dir: Path) -> ProbeReport:
        """Find out what the place can do, and mark it as a storage root.

        The marker, `.asyncsync-root.json`, is written once; its id is the same for everybody who
        sees the same place.
        """
        report: ProbeReport = await self._call("probe", None, remote_dir=_remote(remote_dir))
        return report

    # -- where it is done

    async def _call(self, method: str, observe: Observer | None, **arguments: Any) -> Any:
        self._check_reach(arguments["remote_dir"])
        told = self.observe if observe is None else observe
        return await self._engine.call(method, arguments, told)

    @asynccontextmanager
    async def _stream(self, method: str, **arguments: Any) -> AsyncIterator[AsyncIterator[Any]]:
        self._check_reach(arguments["remote_dir"])
        async with aclosing(self._engine.stream(method, arguments)) as items:
            yield items

    def _check_reach(self, location: str) -> None:
        if self._isolation == "process" and location.startswith("memory://"):
            raise ConfigError(
                f"{quote(location)} is in the memory of this program, which the engine's process "
                "does not see; use isolation='thread' or 'loop'"
            )


def _unpickle(isolation: Isolation, settings: _Settings) -> StorageSyncer:
    return StorageSyncer(isolation=isolation, **asdict(settings))


def _remote(location: Path) -> str:
    """The same place for every process, whatever directory it is in."""
    return str(Location.parse(location))
