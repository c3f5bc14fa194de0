"""The public types, pinned: checked by mypy, never run.

A change that makes this file fail breaks somebody's program.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from pathlib import Path
from typing import Literal, assert_type

import asyncsync
from asyncsync.events import Committed, Event, Moved, Observer
from asyncsync.secrets import Secret
from asyncsync.storage import Deleted, Durability
from asyncsync.storage.peer import Joined
from asyncsync.testing import FakeClock
from asyncsync.wire.claims import Operation


async def one_shot(path: Path) -> None:
    receipt = await asyncsync.sync_up(
        path,
        "s3://bucket/ckpt",
        exclude=["*.tmp"],
        include=("model*",),
        kind="sealed",
        replace=True,
        links="follow",
        step=7,
        observe=observe,
    )
    assert_type(receipt, asyncsync.Receipt)
    group = asyncsync.Group(id="run-3", rank=0, size=4, deadline_s=600.0)
    assert_type(await asyncsync.sync_up(path, "s3://b/ckpt", group=group), asyncsync.Receipt)
    down = asyncsync.sync_down(
        "s3://bucket/ckpt", "out", include=["m*"], allow_unverified=True, observe=observe
    )
    assert_type(await down, asyncsync.Receipt)
    back = asyncsync.restore("s3://bucket/run", path, step=7, fallback=True, observe=observe)
    assert_type(await back, asyncsync.Receipt)
    assert_type(await asyncsync.verify(path), asyncsync.VerifyReport)
    assert_type(await asyncsync.delete("memory://run", allow_uncommitted=True), Deleted)
    assert_type(await asyncsync.latest("memory://run"), asyncsync.Commit | None)
    assert_type(asyncsync.commits("memory://run"), AsyncIterator[asyncsync.Commit])
    async for commit in asyncsync.commits("memory://run"):
        assert_type(commit.step, int | None)
        assert_type(commit.damaged, str | None)
        assert_type(commit.attempt, str)
    following = asyncsync.follow("memory://run", period_s=0.5, observe=observe)
    assert_type(following, AsyncGenerator[asyncsync.Commit, None])
    await following.aclose()
    assert_type(await asyncsync.check_reach("peers://head:7420/exp"), None)
    assert_type(await asyncsync.wait_durable(path, level="head-fsync", period_s=1.0), Durability)
    assert_type(await asyncsync.join("asj1.x"), Joined)


async def head(path: Path) -> None:
    async with asyncsync.PeerServer(str(path), readonly=True) as head:
        assert_type(head.location, str)
        assert_type(head.join_string("exp", operations=frozenset({Operation.PULL})), Secret)
        assert_type((await asyncsync.join(head.join_string(life_s=60))).location, str)


def observe(event: Event) -> None:
    match event:
        case Moved():
            assert_type(event.moved_bytes, int)
        case Committed():
            assert_type(event.identity, str)
        case _:
            pass


async def client(path: Path) -> None:
    watch: Observer = observe
    async with asyncsync.StorageSyncer(
        memory_bytes=1024,
        max_files=2,
        max_requests=2,
        bwlimit=1e6,
        sync_timeout=60.0,
        snapshot_bytes=1 << 30,
        observe=watch,
        clock=FakeClock(),
    ) as syncer:
        assert_type(syncer, asyncsync.StorageSyncer)
        assert_type(await syncer.sync_up(path, "memory://run"), asyncsync.Receipt)
        assert_type(await syncer.sync_up(path, "gs://run", snapshot=False), asyncsync.Receipt)
        group = asyncsync.Group(id="run-3", rank=0, size=4)
        assert_type(await syncer.sync_up(path, "gs://run", group=group), asyncsync.Receipt)
        saved = await syncer.sync_up(path, "gs://run", snapshot=True)
        assert_type(saved, asyncsync.Saved)
        assert_type(await syncer.sync_up(path, "gs://run", snapshot="link"), asyncsync.Saved)
        assert_type((await saved.durable(), saved.done), tuple[asyncsync.Receipt, bool])
        assert_type(await syncer.sync_down("memory://run", path), asyncsync.Receipt)
        assert_type(await syncer.restore("memory://run", path), asyncsync.Receipt)
        assert_type(await syncer.delete("memory://run"), Deleted)
        assert_type((await syncer.verify("memory://run")).failures, tuple[tuple[str, str], ...])
        assert_type(await syncer.latest("memory://run"), asyncsync.Commit | None)
        async for commit in syncer.follow("memory://run"):
            assert_type(commit, asyncsync.Commit)
        takes_any(syncer)


def receipt_fields(receipt: asyncsync.Receipt) -> None:
    assert_type(receipt.kind, Literal["sealed", "rolling"])
    assert_type(receipt.seconds, float)
    assert_type(receipt.sent_bytes, int)
    assert_type(receipt.durability, Durability)
    assert_type(receipt.left_out, tuple[tuple[str, str], ...])
    assert_type(receipt.snapshot, Literal["in place", "reflink", "copy", "link"])
    assert_type(receipt.waited_s, float)


def takes_any(syncer: asyncsync.AsyncSyncer) -> Awaitable[asyncsync.Receipt | None]:
    return syncer.sync_up("directory", Path("/store"), exclude=["*.tmp"])


class OwnSyncer:
    """What somebody may write who has never heard of our classes."""

    async def sync_up(
        self, local_dir: asyncsync_path, remote_dir: asyncsync_path, *, exclude: object = ()
    ) -> None: ...

    async def sync_down(
        self, remote_dir: asyncsync_path, local_dir: asyncsync_path, *, exclude: object = ()
    ) -> None: ...

    async def delete(self, remote_dir: asyncsync_path) -> None: ...

    async def aclose(self) -> None: ...


asyncsync_path = object


def settings() -> None:
    command = asyncsync.CommandSyncer(
        sync_up="rsync -a {source}/ {target}/",
        sync_down="rsync -a {source}/ {target}/",
        delete="rm -r {target}",
        sync_timeout=60,
    )
    takes_any(command)
    takes_any(OwnSyncer())
    config = asyncsync.SyncConfig(
        upload_dir="file:///store",
        syncer=command,
        sync_period=300,
        sync_timeout=1800,
        sync_artifacts=True,
        sync_on_checkpoint=False,
    )
    assert_type(config.mode, Literal["cloud", "head", "shared"])
    assert_type(config.choose_syncer(), asyncsync.AsyncSyncer | None)


def errors(error: asyncsync.AsyncSyncError) -> None:
    assert_type(error.exit_code, int)
    assert_type(error.paths, tuple[str, ...])
    assert_type(error.side, Literal["source", "target"] | None)
    match error:
        case asyncsync.ConflictError():
            assert_type(error.winner, str)
        case asyncsync.TransferError():
            assert_type(error.failures, tuple[asyncsync.AsyncSyncError, ...])
        case asyncsync.TransientError():
            assert_type(error.retry_after_s, float | None)
        case _:
            pass


def wrong_calls() -> None:
    """Each of these must stay an error: an ignore that is not needed fails the check."""
    asyncsync.sync_up("a")  # type: ignore[call-arg, unused-coroutine]
    asyncsync.sync_up("a", "b", ["*.tmp"])  # type: ignore[call-arg, unused-coroutine]
    asyncsync.sync_up("a", "b", kind="frozen")  # type: ignore[arg-type, unused-coroutine]
    asyncsync.sync_up("a", "b", snapshot=True)  # type: ignore[call-arg, unused-coroutine]
    asyncsync.sync_up("a", "b", links="keep")  # type: ignore[arg-type, unused-coroutine]
    asyncsync.StorageSyncer("loop")  # type: ignore[call-arg]
    asyncsync.SyncConfig("file:///store")  # type: ignore[call-arg]
