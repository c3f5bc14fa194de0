"""One-shot functions: each opens a StorageSyncer, uses it and closes it.

There are no snapshots: closing waits for what was saved, so nobody would have control back sooner.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, get_args

import anyio.to_thread

from .clock import Clock, SystemClock
from .concurrency import Threads
from .errors import AccessDeniedError, ConfigError, NotFoundError, PermanentError, quote
from .events import Observer, ignore
from .location import Location
from .manifest import Kind
from .secrets import Secret
from .storage import Backoff, Deleted, Durability, Group, Stores, TreeStore, retry
from .syncing import (
    Commit,
    Path,
    Receipt,
    Replace,
    StorageSyncer,
    VerifyReport,
    local_path,
    marker_in,
)
from .transfer import Links

if TYPE_CHECKING:
    from .storage.peer import Joined, PeerTrees

__all__ = [
    "check_reach",
    "check_shared",
    "commits",
    "delete",
    "follow",
    "join",
    "latest",
    "mark_shared",
    "restore",
    "sync_down",
    "sync_up",
    "verify",
    "wait_durable",
]

_PEERS = ("peer", "peers")
_ASKED = 10  # a head may be away for minutes while somebody waits for hours


async def sync_up(  # noqa: PLR0913 - the front door: every keyword is a promise of its own
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
    group: Group | None = None,
    observe: Observer = ignore,
) -> Receipt:
    """Commit a local directory to a location. See `StorageSyncer.sync_up`."""
    async with StorageSyncer(isolation="loop", observe=observe) as syncer:
        return await syncer.sync_up(
            local_dir,
            remote_dir,
            exclude=exclude,
            include=include,
            kind=kind,
            replace=replace,
            delete=delete,
            links=links,
            step=step,
            group=group,
        )


async def sync_down(
    remote_dir: Path,
    local_dir: Path,
    *,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    allow_unverified: bool = False,
    observe: Observer = ignore,
) -> Receipt:
    """Fetch a commit, or a part of it, verified. See `StorageSyncer.sync_down`."""
    async with StorageSyncer(isolation="loop", observe=observe) as syncer:
        return await syncer.sync_down(
            remote_dir,
            local_dir,
            exclude=exclude,
            include=include,
            allow_unverified=allow_unverified,
        )


async def restore(
    remote_dir: Path,
    local_dir: Path,
    *,
    step: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    fallback: bool = False,
    observe: Observer = ignore,
) -> Receipt:
    """Fetch the newest commit at or below a location. See `StorageSyncer.restore`."""
    async with StorageSyncer(isolation="loop", observe=observe) as syncer:
        return await syncer.restore(
            remote_dir, local_dir, step=step, include=include, exclude=exclude, fallback=fallback
        )


async def delete(
    remote_dir: Path, *, allow_uncommitted: bool = False, observe: Observer = ignore
) -> Deleted:
    """Delete a commit, the manifest first. See `StorageSyncer.delete`."""
    async with StorageSyncer(isolation="loop", observe=observe) as syncer:
        return await syncer.delete(remote_dir, allow_uncommitted=allow_uncommitted)


async def verify(remote_dir: Path, *, observe: Observer = ignore) -> VerifyReport:
    """Compare every byte of a commit with its manifest. See `StorageSyncer.verify`."""
    async with StorageSyncer(isolation="loop", observe=observe) as syncer:
        return await syncer.verify(remote_dir)


async def latest(remote_dir: Path) -> Commit | None:
    """The newest commit at or below a location. See `StorageSyncer.latest`."""
    async with StorageSyncer(isolation="loop") as syncer:
        return await syncer.latest(remote_dir)


async def commits(remote_dir: Path) -> AsyncIterator[Commit]:
    """The commits at and below a location, newest first. See `StorageSyncer.commits`."""
    async with StorageSyncer(isolation="loop") as syncer:
        async for commit in syncer.commits(remote_dir):
            yield commit


async def follow(
    remote_dir: Path, *, period_s: float = 1.0, observe: Observer = ignore
) -> AsyncGenerator[Commit, None]:
    """The newest commit at or below a location, whenever it is another. See `StorageSyncer.follow`.

    Close it when you leave it early: `async with contextlib.aclosing(follow(...)) as commits`.
    """
    async with (
        StorageSyncer(isolation="loop", observe=observe) as syncer,
        aclosing(syncer.follow(remote_dir, period_s=period_s)) as found,
    ):
        async for commit in found:
            yield commit


async def mark_shared(directory: Path) -> str:
    """Mark a directory that every node sees, for `check_shared` on the others. Again: the same.

    Returns:
        What the marker says.

    Raises:
        NotFoundError: there is no such directory; it is not made, because it may not be mounted.
        AsyncSyncError: it cannot be written.
    """
    path = local_path(directory)
    await anyio.to_thread.run_sync(marker_in, path)
    async with StorageSyncer(isolation="loop") as syncer:
        return (await syncer.probe(path)).marker


async def check_shared(directory: Path, marker: str) -> None:
    """Prove that this node sees the directory that `mark_shared` marked on another one.

    Call it before training starts: a worker that writes to its own disk instead is noticed there,
    and not when its checkpoints are missed.

    Raises:
        ConfigError: it sees another directory, or none.
        AsyncSyncError: it cannot be read.
    """
    path, found = local_path(directory), None
    try:
        found = await anyio.to_thread.run_sync(marker_in, path)
    except NotFoundError:
        what = "there is no such directory"
    else:
        what = "it has no marker" if found is None else f"its marker is {found}"
    if found != marker:
        raise ConfigError(
            f"this node does not see the shared directory {quote(path)}: {what}, not {marker}; "
            "mount it, or give another path"
        )


async def check_reach(remote_dir: Path) -> None:
    """Prove that this node can save at a location. For every worker, before training starts.

    A head answers and takes commits there with the token of this node; a bucket can be written to;
    a path lies in a directory that `mark_shared`, or `asyncsync doctor`, has marked. What is tried
    out leaves nothing behind.

    Raises:
        ConfigError: nothing is known of that head; or the path is not in a shared directory.
        AccessDeniedError: it may not be written to.
        AsyncSyncError: it is not reached.
    """
    location = Location.parse(remote_dir)
    where = quote(str(location))
    if location.scheme == "file":
        await anyio.to_thread.run_sync(_find_marker, location.path)
    async with _opened(location, patient=False) as (store, tree):
        try:
            await store.probe(tree)
            if location.scheme in _PEERS:
                await _refuse_no_push(location)
        except AccessDeniedError as exc:
            raise AccessDeniedError(f"this node cannot save at {where}: {exc}") from exc


def _find_marker(path: str) -> None:
    """Refuse a directory that may be one of this node alone."""
    above = path
    while True:
        try:
            if marker_in(above) is not None:
                return
        except NotFoundError:
            pass  # the directory of a trial need not be there yet
        if above == "/":
            break
        above = os.path.dirname(above)
    raise ConfigError(
        f"this node does not see that {quote(path)} is shared: there is no marker in it or above; "
        "is it mounted? If it is, run `asyncsync doctor` once, on one node, for the directory that "
        "all share"
    )


async def _refuse_no_push(location: Location) -> None:
    async with _head(location) as head:
        hello = await head.hello()
    if "push" not in hello.operations:  # how far it reaches, the head has looked at
        raise AccessDeniedError(
            f"its token lets it {' and '.join(hello.operations)}; take another join string from "
            "`asyncsync head --token` there"
        )


async def wait_durable(
    remote_dir: Path,
    *,
    level: Durability = "cloud",
    period_s: float = 5.0,
    clock: Clock | None = None,
) -> Durability:
    """Wait until the commit at a location survives as much as `level` says.

    For a head that carries commits on: `sync_up` returns when they are on its disk. If another
    commit takes the place of this one meanwhile, it is that one that counts.

    Args:
        period_s: seconds between two questions.

    Raises:
        ConfigError: no commit there ever reaches that level.
        PermanentError: the head cannot carry it on until somebody changes something; says what.
            It tries again because of the question.
        NotFoundError: there is none.
        AsyncSyncError: asking failed, retries included.
    """
    order, location = get_args(Durability), Location.parse(remote_dir)
    if level not in order:
        raise ConfigError(f"level is one of {', '.join(order)}, not {level!r}")
    clock, where = clock or SystemClock(), quote(str(location))
    async with _asking(location, clock) as ask:
        while True:
            found, failure = await ask()
            if order.index(found) >= order.index(level):
                return found
            if failure is None:
                hint = "; start the head with --forward" if location.scheme in _PEERS else ""
                raise ConfigError(f"a commit at {where} is {found} and will not be {level}{hint}")
            if failure:
                raise PermanentError(
                    f"a commit at {where} is {found}, and its head cannot carry it on: {failure}; "
                    "mend that there, then ask again"
                )
            await clock.sleep(period_s)


async def join(line: str | Secret) -> Joined:
    """Join the head that printed this line; what lets this node in is kept in a file for its owner.

    The same as `asyncsync join`. The engine of a `StorageSyncer` finds the file, too.

    Raises:
        ConfigError: it is no join string, or another head answers there.
        AccessDeniedError: the head does not take the token.
        AsyncSyncError: nobody answers, or the file cannot be written.
    """
    from .storage.peer import join_head  # noqa: PLC0415 - needs an extra

    threads = Threads(2)
    try:
        secret = line if isinstance(line, Secret) else Secret(line)
        return await join_head(secret, threads, SystemClock())
    finally:
        threads.close()


@asynccontextmanager
async def _opened(
    location: Location, *, patient: bool = True
) -> AsyncIterator[tuple[TreeStore, str]]:
    """The store of a location, for questions that are not of syncing."""
    threads = Threads(4)
    stores = Stores(threads=threads, clock=SystemClock())
    try:
        yield await stores.open(location, ignore, patient=patient)
    finally:
        await stores.aclose()
        threads.close()


@asynccontextmanager
async def _asking(
    location: Location, clock: Clock
) -> AsyncIterator[Callable[[], Awaitable[tuple[Durability, str | None]]]]:
    """Ask what a commit survives, and what is in the way of more; see `PeerTrees.onward`."""
    if location.scheme not in _PEERS:
        async with _opened(location) as (store, tree):

            async def confirmed() -> tuple[Durability, None]:
                return await store.confirm(tree), None

            yield confirmed
        return
    async with _head(location) as head:

        async def told() -> tuple[Durability, str | None]:
            what, ask = "ask for a commit", partial(head.onward, location.path)
            return await retry(ask, Backoff(attempts=_ASKED), clock, what=what)

        yield told


@asynccontextmanager
async def _head(location: Location) -> AsyncIterator[PeerTrees]:
    """The head of a location, for what only a head can be asked."""
    from .storage.peer import open_trees  # noqa: PLC0415 - needs an extra

    threads = Threads(2)
    secure = location.scheme == "peers"
    trees = open_trees(location.authority, secure=secure, threads=threads, max_requests=1)
    try:
        yield trees
    finally:
        await trees.aclose()
        threads.close()
