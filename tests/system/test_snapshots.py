"""sync_up from a snapshot: the tree may change at once, and what is committed is what it was."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

import asyncsync
from asyncsync.clock import SystemClock
from asyncsync.concurrency import Threads
from asyncsync.errors import (
    BusyError,
    ConfigError,
    ConflictError,
    DeadlineError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    TransferError,
    TransientError,
)
from asyncsync.events import Committed, Event, Moved, Planned, Skipped, Snapshotted, Started
from asyncsync.manifest import Kind
from asyncsync.names import MANIFEST, NEXT, holder_name, is_snapshot
from asyncsync.patterns import Selection
from asyncsync.storage import Backoff
from asyncsync.storage.local import Holder, LocalTrees
from asyncsync.syncing import CommandSyncer, Isolation, Receipt, Saved, StorageSyncer, loop_syncer
from asyncsync.transfer import Chosen, Engine, Snapshots

from .test_isolation import ended
from .trees import Events, content, make, temporary

pytestmark = pytest.mark.one_loop

TREE: dict[str, bytes | None] = {"a": b"one", "d/b": b"two" * 1000, "e": b"", "empty": None}
SLOW: dict[str, bytes | None] = {"one": bytes(400_000), "two": bytes(500_000)}
"""The first of these is sent at once; at half a megabyte per second the other waits for it."""
MODES: list[Isolation] = ["loop", "thread", "process"]
Act = Callable[[], object]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "ckpt_3", TREE)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Isolation:
    isolation: Isolation = request.param
    return isolation


@pytest.fixture
async def syncer() -> AsyncIterator[StorageSyncer]:
    async with StorageSyncer(isolation="loop") as syncer:
        yield syncer


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> anyio.Event:
    """Nothing is sent until this is set."""
    go, send = anyio.Event(), Engine.send

    async def waiting(self: Engine, *args: Any, **more: Any) -> object:
        await go.wait()
        return await send(self, *args, **more)

    monkeypatch.setattr(Engine, "send", waiting)
    return go


def soon(act: Act) -> Act:
    """`act`, in a moment: nobody waits for a disk in an observer."""
    return lambda: asyncio.get_running_loop().call_soon(act)


def beside(source: Path) -> list[str]:
    """The snapshots beside a tree."""
    return [name for name in os.listdir(source.parent) if is_snapshot(name)]


# -- the same everywhere


async def test_the_tree_may_change_as_soon_as_control_is_back(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    make(source, SLOW)
    async with StorageSyncer(isolation=mode, bwlimit=500_000) as syncer:
        saved = await syncer.sync_up(source, tmp_path / "to", snapshot=True)
        assert not saved.done
        shutil.rmtree(source)
        make(source, {"a": b"other", "new": b"3"})
        receipt = await saved.durable()

    assert content(tmp_path / "to") == {**TREE, **SLOW}
    assert sorted(os.listdir(tmp_path)) == ["ckpt_3", "to"]
    assert (receipt.snapshot, receipt.rounds, receipt.files) == ("copy", 1, 5)
    assert receipt.waited_s > 0


async def test_the_commit_is_the_one_that_there_would_be_without(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    async with StorageSyncer(isolation=mode) as syncer:
        plain = await syncer.sync_up(source, tmp_path / "plain", exclude=["e"])
        saved = await syncer.sync_up(source, tmp_path / "to", exclude=["e"], snapshot=True)
        held = await saved.durable()
        again = await syncer.sync_up(source, tmp_path / "to", exclude=["e"])

    assert (plain.snapshot, held.snapshot) == ("in place", "copy")
    assert plain.identity == held.identity == again.identity
    assert (plain.waited_s > 0, again.sent_files) == (True, 0)


async def test_events_say_when_the_tree_may_change(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    seen = Events()
    async with StorageSyncer(isolation=mode) as syncer:
        saved = await syncer.sync_up(source, tmp_path / "to", snapshot=True, observe=seen)
        receipt = await saved.durable()

    [snapshotted] = seen.of(Snapshotted)
    assert [type(event) for event in seen[:3]] == [Started, Snapshotted, Planned]
    assert seen.of(Started)[0].source == str(source)
    assert isinstance(seen[-1], Committed)
    assert (snapshotted.way, snapshotted.waited_s) == (receipt.snapshot, receipt.waited_s)


async def test_names_that_are_no_text_go_along(mode: Isolation, tmp_path: Path) -> None:
    raw = os.fsdecode(b"s\xff")
    source = make(tmp_path / raw, {f"d/{raw}": b"bytes"})
    async with StorageSyncer(isolation=mode) as syncer:
        saved = await syncer.sync_up(source, tmp_path / "to", snapshot="link")
        assert (await saved.durable()).snapshot == "link"

    assert content(tmp_path / "to") == {f"d/{raw}": b"bytes"}


async def test_what_is_refused_is_refused_before_control_is_back(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    (source / "link").symlink_to("a")
    async with StorageSyncer(isolation=mode) as syncer:
        with pytest.raises(RefusedError, match=f"{source} holds 1 name.*link") as refused:
            await syncer.sync_up(source, tmp_path / "to", snapshot=True)
        with pytest.raises(NotFoundError, match="ckpt_4 does not exist"):
            await syncer.sync_up(tmp_path / "ckpt_4", tmp_path / "to", snapshot=True)
        with pytest.raises(ConfigError, match="snapshot is True, False or 'link', not 'copy'"):
            await syncer.sync_up(source, tmp_path / "to", snapshot="copy")  # type: ignore[call-overload]

    assert refused.value.paths == ("link",)
    assert os.listdir(tmp_path) == ["ckpt_3"]


async def test_what_fails_later_is_raised_by_the_handle_and_leaves_nothing(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    async with StorageSyncer(isolation=mode) as syncer:
        await syncer.sync_up(make(tmp_path / "other", {"x": b"1"}), tmp_path / "to")
        saved = await syncer.sync_up(source, tmp_path / "to", snapshot=True)
        for _ in range(2):
            with pytest.raises(ConflictError, match="holds another commit"):
                await saved.durable()

    assert beside(source) == []


async def test_normal_exit_waits(mode: Isolation, source: Path, tmp_path: Path) -> None:
    make(source, SLOW)
    async with StorageSyncer(isolation=mode, bwlimit=500_000) as syncer:
        saved = await syncer.sync_up(source, tmp_path / "to", snapshot=True)
        assert not saved.done
    assert saved.done
    assert (await asyncsync.verify(tmp_path / "to")).ok


async def test_exit_raises_what_nobody_has_heard(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    await asyncsync.sync_up(make(tmp_path / "other", {"x": b"1"}), tmp_path / "to")
    with pytest.raises(TransferError, match=f"{source} to {tmp_path}/to: .*another commit") as lost:
        async with StorageSyncer(isolation=mode) as syncer:
            await syncer.sync_up(source, tmp_path / "to", snapshot=True)

    assert isinstance(lost.value.failures[0], ConflictError)
    await syncer.aclose()


@pytest.mark.parametrize("how", ["error", "cancelled"])
async def test_exit_by_exception_stops_and_hides_nothing(
    mode: Isolation, how: str, source: Path, tmp_path: Path
) -> None:
    make(source, SLOW)
    saved: Saved | None = None

    async def body() -> None:
        nonlocal saved
        async with StorageSyncer(isolation=mode, bwlimit=10_000) as syncer:
            saved = await syncer.sync_up(source, tmp_path / "to", snapshot=True)
            if how == "error":
                raise LookupError("the body's own")
            scope.cancel()
            await anyio.sleep_forever()

    with anyio.fail_after(30), anyio.CancelScope() as scope:
        if how == "error":
            with pytest.raises(LookupError, match="the body's own"):
                await body()
        else:
            await body()

    assert saved is not None
    with pytest.raises(TransientError, match="stopped before it was done"):
        await saved.durable()
    assert os.listdir(tmp_path) == ["ckpt_3"]


async def test_it_may_be_opened_in_one_task_and_closed_in_another(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    make(source, SLOW)
    stack, saved = AsyncExitStack(), list[Saved]()

    async def begin() -> None:
        syncer = await stack.enter_async_context(StorageSyncer(isolation=mode, bwlimit=500_000))
        saved.append(await syncer.sync_up(source, tmp_path / "to", snapshot=True))

    await asyncio.create_task(begin())
    await asyncio.create_task(stack.aclose())

    assert (await saved[0].durable()).files == 5


async def test_who_gives_up_before_control_is_back_leaves_nothing(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    async with StorageSyncer(isolation=mode) as syncer:
        with anyio.CancelScope() as scope:

            def cancel(event: Event) -> None:
                if isinstance(event, Started):
                    scope.cancel()

            await syncer.sync_up(source, tmp_path / "to", snapshot=True, observe=cancel)
        assert scope.cancelled_caught

        assert os.listdir(tmp_path) == ["ckpt_3"]


async def test_saves_to_one_target_are_committed_in_order_and_do_not_wait_for_control(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    make(source, SLOW)
    async with StorageSyncer(isolation=mode, bwlimit=500_000) as syncer:
        saved = list[Saved]()
        for step in range(4):
            make(source, {"a": b"%d" % step})
            saved.append(
                await syncer.sync_up(source, tmp_path / "to", kind="rolling", snapshot=True)
            )
        assert not saved[0].done, "all have control back before the first is there"
        receipts = [await one.durable() for one in saved]
        headers = [commit async for commit in syncer.commits(tmp_path / "to")]

    assert [receipt.sent_files for receipt in receipts] == [5, 1, 1, 1]
    assert (headers[0].sequence, headers[0].identity) == (4, receipts[-1].identity)
    assert (tmp_path / "to/a").read_bytes() == b"3"


async def test_two_more_turns_are_free_after_one_was_cancelled(
    source: Path, tmp_path: Path, syncer: StorageSyncer, slow: anyio.Event
) -> None:
    first = await syncer.sync_up(source, tmp_path / "to", snapshot=True)
    with anyio.move_on_after(0.05) as waiting:
        await syncer.sync_up(source, tmp_path / "to")
    assert waiting.cancelled_caught
    slow.set()
    await first.durable()

    assert (await syncer.sync_up(source, tmp_path / "to")).sent_files == 0


# -- death


@pytest.mark.slow
async def test_what_a_killed_trainer_had_saved_becomes_durable(tmp_path: Path) -> None:
    source = make(tmp_path / "source", SLOW)

    engine = await to_thread.run_sync(killed_after_control, source, tmp_path / "to")
    shutil.rmtree(source)
    with anyio.fail_after(30):
        await ended(engine)

    assert (await asyncsync.verify(tmp_path / "to")).ok
    assert os.listdir(tmp_path) == ["to"]


KILLED = """
import asyncio, os, signal, sys
import asyncsync

async def main(source, target):
    async with asyncsync.StorageSyncer(bwlimit=500_000) as syncer:
        saved = await syncer.sync_up(source, target, snapshot=True)
        [connection] = syncer._engine._connections.values()
        print(connection.pid, saved.done, os.path.exists(target), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


def killed_after_control(source: Path, target: Path) -> int:
    """Run a trainer that dies as soon as it has control back; its engine."""
    command = [sys.executable, "-c", KILLED, str(source), str(target)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, *rest = done.stdout.split()
    assert rest == ["False", "False"]
    return int(pid)


@pytest.mark.slow
async def test_what_a_killed_engine_held_is_swept_by_the_next_snapshot_there(
    tmp_path: Path,
) -> None:
    source = make(tmp_path / "ckpt_1", SLOW)
    syncer = StorageSyncer(bwlimit=500_000)
    await syncer.sync_up(source, tmp_path / "to", snapshot=True)
    [connection] = syncer._engine._connections.values()  # type: ignore[union-attr]
    os.kill(connection.pid, signal.SIGKILL)
    with pytest.raises(TransferError, match="has ended unexpectedly"):
        await syncer.aclose()
    assert len(beside(source)) == 1
    other = make(tmp_path / "ckpt_2", TREE)
    async with StorageSyncer() as syncer:
        saved = await syncer.sync_up(other, tmp_path / "to", snapshot=True)
        await saved.durable()

    assert sorted(os.listdir(tmp_path)) == ["ckpt_1", "ckpt_2", "to"]


async def test_who_restores_into_a_tree_leaves_its_snapshots_alone(
    source: Path, tmp_path: Path, syncer: StorageSyncer
) -> None:
    await syncer.sync_up(source, tmp_path / "to")
    shutil.rmtree(source)
    dead = tmp_path / holder_name("ckpt_3", "snap", "a" * 32)
    make(dead, {f"tree/{MANIFEST}": (tmp_path / "to" / MANIFEST).read_bytes(), "tree/a": b"1"})
    await syncer.sync_down(tmp_path / "to", source)

    assert sorted(os.listdir(dead / "tree")) == [MANIFEST, "a"]
    assert (await syncer.latest(tmp_path)) is not None
    assert {c.name async for c in syncer.commits(tmp_path)} == {"ckpt_3", "to"}


# -- which kind, and what comes along


async def test_a_rolling_tree_says_what_it_left_out(
    source: Path, tmp_path: Path, syncer: StorageSyncer
) -> None:
    await syncer.sync_up(source, tmp_path / "to", kind="rolling")
    (source / "link").symlink_to("a")
    make(source, {"a": b"2", "checkpoint_tmp1/x": b"unfinished"})
    seen = Events()
    saved = await syncer.sync_up(source, tmp_path / "to", snapshot=True, observe=seen)
    receipt = await saved.durable()

    assert (receipt.kind, receipt.left_out) == ("rolling", (("link", "a symbolic link"),))
    assert [event.path for event in seen.of(Skipped)] == ["link"]
    assert content(tmp_path / "to") == {**TREE, "a": b"2"}


async def test_the_target_is_not_asked_about_a_tree_that_is_said_to_be_sealed(
    source: Path, tmp_path: Path, syncer: StorageSyncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = LocalTrees.read_manifest, list[str]()

    async def asking(self: LocalTrees, tree: str) -> object:
        asked.append(tree)
        return await read(self, tree)

    monkeypatch.setattr(LocalTrees, "read_manifest", asking)

    def at_control(event: Event) -> None:
        if isinstance(event, Snapshotted):
            counts.append(len(asked))

    counts = list[int]()
    for kind in ("sealed", None):
        asked.clear()
        saved = await syncer.sync_up(
            source, tmp_path / "to", kind=kind, snapshot=True, observe=at_control
        )
        await saved.durable()

    assert counts == [0, 1]


async def test_a_rolling_tree_that_was_hashed_is_not_hashed_again(
    source: Path, tmp_path: Path, syncer: StorageSyncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def save() -> Receipt:
        saved = await syncer.sync_up(source, tmp_path / "to", kind="rolling", snapshot=True)
        return await saved.durable()

    async def never(*_: object) -> None:
        raise AssertionError("it is known")

    await save()
    monkeypatch.setattr(Engine, "check", never)
    unchanged = await save()
    make(source, {"a": b"two", "new": b"3"})
    monkeypatch.undo()
    changed = await save()

    assert (unchanged.sent_files, unchanged.skipped_files) == (0, 3)
    assert (changed.sent_files, changed.skipped_files) == (2, 2)
    assert content(tmp_path / "to") == content(source)


async def test_a_restored_tree_is_still_known_to_come_from_there(
    source: Path, tmp_path: Path, syncer: StorageSyncer
) -> None:
    await syncer.sync_up(source, tmp_path / "to", kind="rolling")
    await syncer.sync_down(tmp_path / "to", tmp_path / "back")
    make(tmp_path / "back", {"a": b"changed"})
    saved = await syncer.sync_up(tmp_path / "back", tmp_path / "to", snapshot=True)
    await saved.durable()

    assert (tmp_path / "to/a").read_bytes() == b"changed"


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
async def test_commits_inside_are_commits_inside(
    kind: Kind, source: Path, tmp_path: Path, syncer: StorageSyncer
) -> None:
    await syncer.sync_up(source, tmp_path / "one")
    await syncer.sync_down(tmp_path / "one", source / "inner/ckpt_1")
    plain = await syncer.sync_up(source, tmp_path / "plain", kind=kind)
    saved = await syncer.sync_up(source, tmp_path / "to", kind=kind, snapshot=True)
    receipt = await saved.durable()

    assert receipt.identity == plain.identity
    assert content(tmp_path / "to") == content(tmp_path / "plain")
    assert (await syncer.verify(tmp_path / "to/inner/ckpt_1")).ok


async def test_commits_of_the_target_are_not_copied(
    source: Path, tmp_path: Path, syncer: StorageSyncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, begin = list[str](), Holder.begin

    def noting(self: Holder, fd: int, path: str, *, link: bool) -> object:
        held.append(path)
        return begin(self, fd, path, link=link)

    monkeypatch.setattr(Holder, "begin", noting)
    await syncer.sync_up(source / "d", tmp_path / "to/d")
    saved = await syncer.sync_up(source, tmp_path / "to", kind="rolling", snapshot=True)
    await saved.durable()

    assert sorted(held) == ["a", "e"]
    assert (await syncer.verify(tmp_path / "to/d")).ok


async def test_what_is_being_restored_is_not_held(
    source: Path, tmp_path: Path, syncer: StorageSyncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_syncer, "Backoff", partial(Backoff, attempts=1))
    (source / NEXT).mkdir()
    with pytest.raises(BusyError, match=f"source {source} is being written"):
        await syncer.sync_up(source, tmp_path / "to", snapshot=True)


async def test_a_damaged_record_is_refused_by_its_own_name(
    source: Path, tmp_path: Path, syncer: StorageSyncer
) -> None:
    (source / MANIFEST).write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=f"{source}"):
        await syncer.sync_up(source, tmp_path / "to", snapshot=True)


async def test_errors_of_the_upload_name_the_tree_itself(
    source: Path, tmp_path: Path, syncer: StorageSyncer
) -> None:
    def tamper() -> None:
        [name] = beside(source)
        shutil.rmtree(source.parent / name / "tree/d")
        for file in "ae":
            (source.parent / name / "tree" / file).unlink()

    seen = Events(soon(tamper), on=Planned)
    saved = await syncer.sync_up(source, tmp_path / "to", snapshot=True, observe=seen)
    with pytest.raises(asyncsync.SourceChangedError, match=f"in {source} vanished"):
        await saved.durable()


async def test_the_writer_is_the_tree_itself(
    source: Path, tmp_path: Path, syncer: StorageSyncer
) -> None:
    await (await syncer.sync_up(source, tmp_path / "to", kind="rolling", snapshot=True)).durable()
    make(source, {"a": b"changed"})

    receipt = await syncer.sync_up(source, tmp_path / "to", kind="rolling")
    assert receipt.sent_files == 1


# -- links


async def test_links_hold_what_is_deleted(
    source: Path, tmp_path: Path, syncer: StorageSyncer, slow: anyio.Event
) -> None:
    saved = await syncer.sync_up(source, tmp_path / "to", snapshot="link")
    [name] = beside(source)
    assert (source.parent / name / "tree/a").samefile(source / "a")
    shutil.rmtree(source)
    slow.set()
    receipt = await saved.durable()

    assert content(tmp_path / "to") == TREE
    assert (receipt.snapshot, receipt.rounds) == ("link", 1)


async def test_a_name_that_goes_while_its_file_is_read_changes_nothing(
    tmp_path: Path, syncer: StorageSyncer
) -> None:
    source = make(tmp_path / "ckpt_1", {"large": bytes(40_000_000)})
    seen = Events(soon((source / "large").unlink), on=Moved)
    saved = await syncer.sync_up(source, tmp_path / "to", snapshot="link", observe=seen)
    receipt = await saved.durable()

    assert not (source / "large").exists()
    assert (receipt.rounds, receipt.sent_bytes) == (1, 40_000_000)


# -- no room


@pytest.mark.parametrize("why", ["the disk is full", "the bound is small"])
async def test_without_room_it_is_uploaded_in_place(
    why: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "the disk is full":

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(Holder, "copy", full)
    bound = 100 if why == "the bound is small" else None
    async with StorageSyncer(isolation="loop", snapshot_bytes=bound) as syncer:
        seen = Events()
        saved = await syncer.sync_up(source, tmp_path / "to", snapshot=True, observe=seen)
        assert saved.done
        receipt = await saved.durable()

    assert (receipt.snapshot, seen.of(Snapshotted)) == ("in place", [])
    assert receipt.waited_s >= receipt.seconds > 0
    assert content(tmp_path / "to") == TREE
    assert beside(source) == []


async def test_who_finds_no_room_gets_control_when_another_is_gone(
    source: Path, tmp_path: Path, slow: anyio.Event
) -> None:
    other = make(tmp_path / "ckpt_4", TREE)
    async with StorageSyncer(isolation="loop", snapshot_bytes=4000) as syncer:
        first = await syncer.sync_up(source, tmp_path / "to_3", snapshot=True)
        with anyio.move_on_after(0.1) as waiting:
            await syncer.sync_up(other, tmp_path / "to_4", snapshot=True)
        assert waiting.cancelled_caught
        assert len(beside(source)) == 1
        slow.set()
        second = await syncer.sync_up(other, tmp_path / "to_4", snapshot=True)
        assert (first.done, (await second.durable()).snapshot) == (True, "copy")


async def test_a_bound_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="snapshot_bytes must be above 0"):
        StorageSyncer(snapshot_bytes=0)


async def test_the_time_allowed_counts_until_control_is_back(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, send = anyio.Event(), Engine.send

    async def deaf(self: Engine, *args: Any, **more: Any) -> object:
        with anyio.CancelScope(shield=True):
            await go.wait()  # or the first would make room before the second has run out of time
        return await send(self, *args, **more)

    monkeypatch.setattr(Engine, "send", deaf)
    async with StorageSyncer(isolation="loop", snapshot_bytes=4000, sync_timeout=0.3) as syncer:
        first = await syncer.sync_up(source, tmp_path / "to", snapshot=True)
        with pytest.raises(DeadlineError, match=r"take a snapshot for .*within 0\.3 s"):
            await syncer.sync_up(source, tmp_path / "other", snapshot=True)
        go.set()
        with pytest.raises(DeadlineError, match=r"sync up .*within 0\.3 s"):
            await first.durable()

    assert beside(source) == []


# -- cancelled, and handed on


async def test_cancelled_at_any_hop_it_leaves_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hop = Threads.run
    hops = at = 0
    stop: Act

    async def counted(self: Threads, function: Callable[..., object], *args: object) -> object:
        nonlocal hops
        hops += 1
        if hops == at:
            stop()
        return await hop(self, function, *args)

    monkeypatch.setattr(Threads, "run", counted)
    outcomes = set[str]()
    for at in range(1, 200):
        place = tmp_path / str(at)
        source = await to_thread.run_sync(make, place / "ckpt_1", TREE)
        hops, scope = 0, anyio.CancelScope()
        stop = scope.cancel
        with scope:
            async with StorageSyncer(isolation="loop") as syncer:
                saved = await syncer.sync_up(source, place / "to", snapshot=True)
                outcomes.add("control")
                await saved.durable()
        hidden = await to_thread.run_sync(temporary, place)
        assert all(".asyncsync-tmp-" in name for name in hidden), at  # of the upload
        assert content(place / "to") in ({}, TREE)
        outcomes.add("cancelled" if scope.cancelled_caught else "done")
        if hops < at:
            break

    assert outcomes == {"control", "cancelled", "done"}


async def test_any_syncer_can_be_handed_a_snapshot(source: Path, tmp_path: Path) -> None:
    async def everything(_: str) -> Chosen:
        return Chosen("sealed", Selection(exclude=["e"]))

    threads = Threads(2)
    snapshots = Snapshots(threads, SystemClock(), bound_bytes=None)
    (source / ".hidden").write_bytes(b"h")
    command = CommandSyncer(
        sync_up="cp -a {source} {target}",
        sync_down="cp -a {source} {target}",
        delete="rm -r {target}",
    )
    try:
        async with snapshots.take(str(source), everything) as held:
            assert held is not None
            shutil.rmtree(source)
            await command.sync_up(held.path, tmp_path / "to")
    finally:
        threads.close()
        await command.aclose()

    left = {path: data for path, data in TREE.items() if path != "e"}
    assert content(tmp_path / "to") == {**left, ".hidden": b"h"}
    assert os.listdir(tmp_path) == ["to"]
