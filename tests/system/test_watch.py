"""Watching a directory: what goes up and when, whatever happens to the directory meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncsync
from asyncsync import StorageSyncer, SyncConfig
from asyncsync.concurrency import Threads
from asyncsync.errors import AccessDeniedError, ConfigError, StalledError, TransientError
from asyncsync.patterns import Selection
from asyncsync.scheduling import DrainError, Failed, Notice, Synced, SyncScheduler
from asyncsync.storage.local import open_beneath
from asyncsync.testing import FakeClock
from asyncsync.transfer import Directory
from asyncsync.watching import (
    CHECKPOINTS,
    Away,
    Back,
    NoHints,
    Polling,
    Refused,
    Sight,
    Watch,
)
from asyncsync.watching.looks import Look, look_at

from .trees import content, make

PERIOD, SETTLE = 60.0, 10.0


class Stage:
    """A watched directory, where it goes, and the time.

    Attributes:
        left: what the watch returned.
    """

    def __init__(self, tmp_path: Path) -> None:
        self.directory, self.target = tmp_path / "run", tmp_path / "store" / "run"
        self.clock = FakeClock()
        self.sights: list[Sight] = []
        self.events: list[Notice] = []
        self.listening: list[Callable[[], None]] = []
        self.reason, self.listened = "", 0
        self.left: list[str] = []

    async def hint(self, directory: str, changed: Callable[[], None]) -> None:
        assert directory == str(self.directory)
        if self.reason:
            raise NoHints(self.reason)
        self.listening.append(changed)
        self.listened += 1
        try:
            await anyio.sleep_forever()
        finally:
            self.listening.remove(changed)

    def change(self) -> None:
        """Say that something has changed."""
        for changed in self.listening:
            changed()

    @asynccontextmanager
    async def watching(self, **more: Any) -> AsyncIterator[SyncScheduler]:
        """Watch; on leaving, stop as for a signal."""
        stop, config = anyio.Event(), SyncConfig(sync_period=PERIOD)
        syncer = StorageSyncer(isolation="loop", clock=self.clock)
        scheduler = SyncScheduler(syncer, config, clock=self.clock)
        reading = asyncio.create_task(self._read(scheduler))

        async def run() -> None:
            async with syncer, scheduler:
                scheduler.add(
                    "w",
                    local_dir=self.directory,
                    remote_dir=self.target,
                    checkpoints=more.get("checkpoints", CHECKPOINTS)[0],
                    delete=False,
                )
                watch = Watch(
                    self.directory,
                    scheduler,
                    "w",
                    settle_s=SETTLE,
                    observe=self.sights.append,
                    clock=self.clock,
                    hint=self.hint,
                    **more,
                )
                self.left = await watch.run(stop)

        running = asyncio.create_task(run())
        try:
            yield scheduler
        finally:
            stop.set()
            await self.until(running.done)
            await running
            await reading

    async def _read(self, scheduler: SyncScheduler) -> None:
        async for event in scheduler.events():
            self.events.append(event)

    async def until(self, condition: Callable[[], object]) -> None:
        """Let time go by until that is so; real threads get their turns, too."""
        with anyio.fail_after(30):
            while not condition():
                await self.pass_time(0.25)

    async def pass_time(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / 0.25))):
            await self.clock.advance(0.25)
            await asyncio.sleep(0.002)

    def saved(self, name: str) -> bool:
        """Whether that checkpoint is committed as it is here."""
        there = self.target / name
        whole = (there / ".asyncsync.json").exists()
        return whole and content(there) == content(self.directory / name)

    def refused(self) -> list[Refused]:
        return [sight for sight in self.sights if isinstance(sight, Refused)]

    def synced(self, name: str = "") -> list[Synced]:
        target = str(self.target / name)
        return [e for e in self.events if isinstance(e, Synced) and e.target == target]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    make(tmp_path / "run", {"log": b"1"})
    return Stage(tmp_path)


async def test_a_checkpoint_goes_up_once_it_has_settled_and_the_rest_by_period(
    stage: Stage,
) -> None:
    async with stage.watching():
        await stage.until(stage.synced)
        started = stage.clock.monotonic()
        for step in range(4):
            make(stage.directory, {f"sub/checkpoint_7/{step}": b"weights", "log": b"%d" % step})
            stage.change()
            await stage.pass_time(SETTLE / 2)
        assert not (stage.target / "sub").exists()
        await stage.until(lambda: stage.saved("sub/checkpoint_7"))
        assert stage.clock.monotonic() - started >= 1.5 * SETTLE + SETTLE
        await stage.until(lambda: content(stage.target).get("log") == b"3")

    (once,) = stage.synced("sub/checkpoint_7")
    assert once.receipt is not None
    assert (once.receipt.kind, once.receipt.snapshot) == ("sealed", "in place")
    assert (await asyncsync.verify(stage.target)).ok
    assert stage.left == []


@pytest.mark.parametrize("name", ["commit_success.txt", ".snapshot_metadata", ".metadata"])
async def test_a_checkpoint_whose_last_file_is_there_goes_up_at_once(
    stage: Stage, name: str
) -> None:
    async with stage.watching():
        await stage.until(stage.synced)
        make(stage.directory, {"checkpoint-1/w": b"1", "checkpoint-2/w": b"2"})
        make(stage.directory, {f"checkpoint-2/{name}": b"", "checkpoint-1/part/.metadata": b""})
        stage.change()
        started = stage.clock.monotonic()
        await stage.until(lambda: stage.saved("checkpoint-2"))

        assert stage.clock.monotonic() - started < SETTLE
        assert not stage.saved("checkpoint-1")  # of a part of it, that says nothing
        await stage.until(lambda: stage.saved("checkpoint-1"))


async def test_what_vanishes_here_stays_there(stage: Stage) -> None:
    make(stage.directory, {"checkpoint_1/w": b"1", "old/log": b"2"})
    async with stage.watching():
        await stage.until(lambda: stage.saved("checkpoint_1"))
        shutil.rmtree(stage.directory / "checkpoint_1")
        shutil.rmtree(stage.directory / "old")
        make(stage.directory, {"new": b"3"})
        stage.change()
        await stage.until((stage.target / "new").exists)
        for path in stage.directory.iterdir():
            path.unlink()
        stage.change()
        await stage.pass_time(3 * PERIOD)

    assert content(stage.target) == {
        "log": b"1", "old/log": b"2", "checkpoint_1/w": b"1", "new": b"3",
    }  # fmt: skip
    assert not [event for event in stage.events if isinstance(event, Failed)]


async def test_a_directory_that_is_moved_away_is_waited_for(stage: Stage) -> None:
    away = stage.directory.with_name("away")
    async with stage.watching():
        await stage.until(stage.synced)
        stage.directory.rename(away)
        stage.change()
        await stage.until(lambda: Away(str(stage.directory), os.strerror(2)) in stage.sights)
        await stage.pass_time(2 * PERIOD)
        assert stage.listening == []
        make(away, {"checkpoint_1/w": b"1", "more": b"2"})
        away.rename(stage.directory)
        await stage.until(lambda: stage.saved("checkpoint_1"))
        await stage.until((stage.target / "more").exists)
        assert (len(stage.listening), stage.listened) == (1, 2)

    assert [type(sight) for sight in stage.sights] == [Away, Back]
    assert content(stage.target) == {"log": b"1", "checkpoint_1/w": b"1", "more": b"2"}


async def test_another_directory_in_its_place_is_watched_instead(stage: Stage) -> None:
    async with stage.watching():
        await stage.until(stage.synced)
        stage.directory.rename(stage.directory.with_name("away"))
        make(stage.directory, {"other": b"2"})
        await stage.until((stage.target / "other").exists)

        assert (len(stage.listening), stage.listened) == (1, 2)
    assert content(stage.target) == {"log": b"1", "other": b"2"}


async def test_a_directory_that_does_not_exist_yet_is_waited_for(stage: Stage) -> None:
    shutil.rmtree(stage.directory)
    async with stage.watching():
        await stage.until(lambda: stage.sights)
        make(stage.directory, {"log": b"1", "checkpoint_1/w": b"1"})
        await stage.until(lambda: stage.saved("checkpoint_1"))

    assert content(stage.target) == {"log": b"1", "checkpoint_1/w": b"1"}


async def test_where_nobody_tells_of_changes_they_are_looked_for(stage: Stage) -> None:
    stage.reason = "a network"
    async with stage.watching():
        await stage.until(stage.synced)
        make(stage.directory, {"checkpoint_1/w": b"1"})
        started = stage.clock.monotonic()
        await stage.until(lambda: stage.saved("checkpoint_1"))

        assert SETTLE <= stage.clock.monotonic() - started <= 3 * SETTLE
    assert stage.sights == [Polling(str(stage.directory), "a network")]


async def test_what_nobody_told_of_is_found_by_the_next_scan(stage: Stage) -> None:
    async with stage.watching():
        await stage.until(stage.synced)
        make(stage.directory, {"checkpoint_1/w": b"1"})
        await stage.until(lambda: stage.saved("checkpoint_1"))


async def test_a_checkpoint_that_changes_after_it_went_up_goes_up_again(stage: Stage) -> None:
    make(stage.directory, {"checkpoint_last/w": b"1"})
    async with stage.watching():
        await stage.until(lambda: stage.saved("checkpoint_last"))
        make(stage.directory, {"checkpoint_last/w": b"second"})
        stage.change()
        await stage.until(lambda: stage.saved("checkpoint_last"))

    assert len(stage.synced("checkpoint_last")) == 2
    assert content(stage.target / "checkpoint_last") == {"w": b"second"}


async def test_a_checkpoint_that_fails_is_tried_until_it_is_there(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_up, times = StorageSyncer.sync_up, 0

    async def flaky(syncer: StorageSyncer, local: Any, remote: Any, **more: Any) -> Any:
        nonlocal times
        if str(remote).endswith("checkpoint_1"):
            times += 1
            if times < 8:
                raise TransientError("no route")
        return await sync_up(syncer, local, remote, **more)

    monkeypatch.setattr(StorageSyncer, "sync_up", flaky)
    make(stage.directory, {"checkpoint_1/w": b"1"})
    async with stage.watching():
        await stage.until(lambda: stage.saved("checkpoint_1"))

    assert len([event for event in stage.events if isinstance(event, Failed)]) == 7
    assert stage.left == []


async def test_in_the_end_what_was_written_last_still_settles(stage: Stage) -> None:
    async with stage.watching():
        await stage.until(stage.synced)
        make(stage.directory, {"checkpoint_1/w": b"1", "checkpoint_1/commit_success.txt": b""})
        make(stage.directory, {"checkpoint_2/w": b"2", "log": b"last words"})
        make(stage.directory, {"checkpoint_3/empty": None})

    assert stage.saved("checkpoint_1")
    assert stage.saved("checkpoint_2")
    assert not (stage.target / "checkpoint_3").exists()
    assert content(stage.target)["log"] == b"last words"
    assert stage.left == []


async def test_in_the_end_what_still_changes_is_named(stage: Stage) -> None:
    made = make(stage.directory / "checkpoint_1", {"w": b"1"})
    until = stage.until

    async def growing(condition: Callable[[], object], at_most: float = 0) -> None:
        def grow() -> object:
            (made / "w").write_bytes(os.urandom(8))
            return condition()

        await until(grow)

    async with stage.watching():
        await stage.until(stage.synced)
        stage.until = growing  # type: ignore[method-assign]

    assert stage.left == ["checkpoint_1"]
    assert not (stage.target / "checkpoint_1").exists()


async def test_a_checkpoint_that_changes_while_it_is_read_settles_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(stage.directory / "checkpoint_1", {"w": b"1", "x": b"2"})
    read_many, times = Directory.read_many, 0

    async def changing(source: Directory, files: Any) -> Any:
        nonlocal times
        pieces = await read_many(source, files)
        if any(file.path == "x" for file in files):
            times += 1
            if times == 1:
                (made / "x").unlink()
        return pieces

    monkeypatch.setattr(Directory, "read_many", changing)
    async with stage.watching():
        await stage.until(lambda: times)
        await stage.until(lambda: [e for e in stage.events if isinstance(e, Failed)])
        assert not (stage.target / "checkpoint_1" / ".asyncsync.json").exists()
        (made / "x").write_bytes(b"complete")
        await stage.until(lambda: stage.saved("checkpoint_1"))

    assert content(stage.target / "checkpoint_1") == {"w": b"1", "x": b"complete"}


async def test_a_checkpoint_that_comes_back_under_its_name_takes_the_place_of_the_old_one(
    stage: Stage,
) -> None:
    make(stage.directory, {"checkpoint_latest/w": b"1"})
    async with stage.watching():
        await stage.until(lambda: stage.saved("checkpoint_latest"))
        shutil.rmtree(stage.directory / "checkpoint_latest")
        await stage.pass_time(2 * SETTLE)
    make(stage.directory, {"checkpoint_latest/w": b"second"})
    async with stage.watching():
        await stage.until(lambda: stage.saved("checkpoint_latest"))

    assert content(stage.target / "checkpoint_latest") == {"w": b"second"}


async def test_what_was_part_of_the_tree_before_cannot_become_a_checkpoint_and_it_is_said_why(
    stage: Stage,
) -> None:
    make(stage.directory, {"step_1/w": b"1"})
    async with stage.watching():
        await stage.until(stage.synced)
    make(stage.directory, {"step_2/w": b"2", "log": b"2"})

    async def with_other_names() -> None:
        async with stage.watching(checkpoints=["step_*/"]):
            await stage.until(lambda: stage.saved("step_2"))
            await stage.until(lambda: content(stage.target).get("log") == b"2")
            await stage.until(stage.refused)

    with pytest.raises(DrainError, match="step_1"):
        await with_other_names()
    assert {r.directory for r in stage.refused()} == {str(stage.directory / "step_1")}
    assert "watch with the same names as then" in stage.refused()[0].reason
    assert content(stage.target) == {"log": b"2", "step_1/w": b"1", "step_2/w": b"2"}


async def test_a_file_where_a_checkpoint_was_does_not_stop_the_rest(stage: Stage) -> None:
    make(stage.directory, {"checkpoint_1/w": b"1"})
    async with stage.watching():
        await stage.until(lambda: stage.saved("checkpoint_1"))
        shutil.rmtree(stage.directory / "checkpoint_1")
        make(stage.directory, {"checkpoint_1": b"a file", "b": b"2"})
        await stage.until((stage.target / "b").exists)

    assert content(stage.target) == {"log": b"1", "b": b"2", "checkpoint_1/w": b"1"}


async def test_what_is_excluded_does_not_go_up_with_a_checkpoint_either(stage: Stage) -> None:
    make(stage.directory, {"checkpoint_1/opt.pt": b"1", "checkpoint_1/w": b"2"})
    async with stage.watching(exclude=["opt.pt"]):
        await stage.until((stage.target / "checkpoint_1" / ".asyncsync.json").exists)

    assert content(stage.target / "checkpoint_1") == {"w": b"2"}


@contextmanager
def unreadable(name: str) -> Iterator[None]:
    """Nobody may list directories of that name; also not who is root."""

    def refuse(directory: int, path: str, flags: int, **more: Any) -> int:
        if path == name:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return open_beneath(directory, path, flags, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("asyncsync.transfer.source.open_beneath", refuse)
        yield


async def test_a_directory_that_may_not_be_read_is_named_and_the_rest_goes_on(
    stage: Stage,
) -> None:
    make(stage.directory, {"private/key": b"1"})
    async with stage.watching():
        await stage.until((stage.target / "private" / "key").exists)
        with unreadable("private"):
            make(stage.directory, {"log": b"2"})
            stage.change()
            await stage.until(lambda: content(stage.target).get("log") == b"2")
            await stage.until(lambda: len(stage.synced()) == 2)
    receipt = stage.synced()[1].receipt

    assert receipt is not None
    assert receipt.left_out == (("private", "a directory that may not be read"),)
    assert content(stage.target) == {"log": b"2", "private/key": b"1"}


@pytest.mark.parametrize("kind", ["rolling", "sealed"])
async def test_where_it_would_be_deleted_or_missing_the_sync_fails_and_names_it(
    tmp_path: Path, kind: Any
) -> None:
    run = make(tmp_path / "run", {"log": b"1", "private/key": b"1"})
    async with StorageSyncer(isolation="loop") as syncer:
        await syncer.sync_up(run, tmp_path / "there", kind=kind)
        make(run, {"log": b"2"})
        with unreadable("private"), pytest.raises(AccessDeniedError, match="private"):
            await syncer.sync_up(run, tmp_path / "there", kind=kind, replace=True)

    assert content(tmp_path / "there") == {"log": b"1", "private/key": b"1"}


async def test_a_deep_tree_is_no_reason_to_end(stage: Stage) -> None:
    make(stage.directory / "/".join("d" * 60), {"log": b"1"})
    async with stage.watching():
        await stage.until((stage.target / "/".join("d" * 60) / "log").exists)


async def test_odd_things_in_a_directory_do_not_end_the_watch(stage: Stage) -> None:
    make(stage.directory, {"sub/log": b"1", os.fsdecode(b"bro\xffken"): b"2"})
    (stage.directory / "loop").symlink_to(".")
    (stage.directory / "gone").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(stage.directory)
        try:
            listener.bind("socket")
        finally:
            os.chdir("/")
        make(stage.directory, {"checkpoint_1/w": b"1"})
        async with stage.watching():
            await stage.until(lambda: stage.saved("checkpoint_1"))
            await stage.until((stage.target / "sub" / "log").exists)
            stage.directory.rename(stage.directory.with_name("away"))
            stage.directory.write_bytes(b"a file")
            await stage.until(lambda: len(stage.sights) == 1)
            stage.directory.unlink()
            make(stage.directory, {"at": b"last"})
            await stage.until((stage.target / "at").exists)


async def test_cancelled_it_ends_at_once(stage: Stage) -> None:
    async with StorageSyncer(isolation="loop") as syncer, SyncScheduler(syncer) as scheduler:
        scheduler.add("w", local_dir=stage.directory, remote_dir=stage.target, delete=False)
        watch = Watch(stage.directory, scheduler, "w", clock=stage.clock, hint=stage.hint)
        with anyio.move_on_after(0.05):
            await watch.run(anyio.Event())


@pytest.mark.parametrize("settle_s", [0, -1, float("nan"), float("inf")])
async def test_what_is_no_time_to_settle_is_refused(stage: Stage, settle_s: float) -> None:
    async with StorageSyncer(isolation="loop") as syncer, SyncScheduler(syncer) as scheduler:
        with pytest.raises(ConfigError, match="settle"):
            Watch(stage.directory, scheduler, "w", settle_s=settle_s)


def test_a_look_sees_checkpoints_and_the_rest_apart(tmp_path: Path) -> None:
    checkpoints = Selection(CHECKPOINTS), Selection(["wandb/"])
    make(tmp_path, {"log": b"1", "a/checkpoint_1/w": b"1", "a/checkpoint_1/deep/x": b"1"})
    before = look_at(str(tmp_path), *checkpoints)
    make(tmp_path, {"a/checkpoint_1/deep/x": b"22"})
    inside = look_at(str(tmp_path), *checkpoints)
    make(tmp_path, {"log": b"22"})
    outside = look_at(str(tmp_path), *checkpoints)
    make(tmp_path, {".run.asyncsync-snap-" + "0" * 32 + "/w": b"1", "checkpoint_tmp1/x": b"1"})
    make(tmp_path, {"checkpoint_7.orbax-checkpoint-tmp-1/x": b"1", "tmp-checkpoint-9/x": b"1"})
    make(tmp_path, {"wandb/checkpoint_8/x": b"1"})
    own = look_at(str(tmp_path), *checkpoints)

    assert list(before.checkpoints) == ["a/checkpoint_1"]
    assert before.checkpoints != inside.checkpoints
    assert (before.rest, before.place) == (inside.rest, inside.place)
    assert inside.rest != outside.rest
    assert inside.checkpoints == outside.checkpoints
    assert own.rest == outside.rest
    with pytest.raises(FileNotFoundError):
        look_at(str(tmp_path / "nowhere"), *checkpoints)
    with pytest.raises(NotADirectoryError):
        look_at(str(tmp_path / "log"), *checkpoints)


async def test_a_mount_that_does_not_answer_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, answers, looks = threading.Event(), threading.Event(), list[threading.Thread]()

    class Stalls(Threads):
        async def run(self, function: Callable[..., Any], *args: Any) -> Any:
            if not hangs.is_set():
                return await super().run(function, *args)
            looks.append(threading.Thread(target=function, args=args))
            looks[-1].start()
            raise StalledError("the network mount does not answer")

    def slow(*args: Any) -> Look:
        assert not hangs.is_set() or answers.wait(20)
        return look_at(*args)

    monkeypatch.setattr("asyncsync.watching.watch.look_at", slow)
    monkeypatch.setattr("asyncsync.watching.watch.Threads", Stalls)
    stage = Stage(tmp_path)
    make(stage.directory, {"log": b"1"})
    try:
        async with stage.watching():
            await stage.until(stage.synced)
            hangs.set()
            await stage.until(lambda: stage.sights)
            await stage.pass_time(20)
            assert len(looks) == 1  # others would only queue up behind it
            hangs.clear()
            answers.set()
            await stage.until(lambda: len(stage.sights) > 1)
            make(stage.directory / "checkpoint_1", {"w": b"1"})
            await stage.until(lambda: stage.saved("checkpoint_1"))
    finally:
        answers.set()
        for look in looks:
            look.join()

    away, back = stage.sights
    assert isinstance(away, Away)
    assert "does not answer" in away.reason
    assert isinstance(back, Back)
