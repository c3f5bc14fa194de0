"""One-shot functions: each opens a StorageSyncer, uses it and closes it.

There are no snapshots: closing waits for what was saved, so nobody would have control back sooner.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import anyio.to_thread

from .errors import ConfigError, NotFoundError, quote
from .events import Observer, ignore
from .manifest import Kind
from .storage import Deleted, Group
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

__all__ = [
    "check_shared",
    "commits",
    "delete",
    "follow",
    "latest",
    "mark_shared",
    "restore",
    "sync_down",
    "sync_up",
    "verify",
]


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
