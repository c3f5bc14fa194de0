"""What users do with a head: the scheduler, one-shots, following, and the command line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

import asyncsync
from asyncsync import SyncConfig
from asyncsync.clock import SystemClock
from asyncsync.errors import IntegrityError, NotFoundError
from asyncsync.location import Location
from asyncsync.scheduling import Notice, Synced, SyncScheduler
from asyncsync.storage.behaviours import Rate

from .peer_place import PeerPlace, peer_place
from .s3_place import Hurry
from .trees import content, make

pytestmark = pytest.mark.one_loop

Patch = pytest.MonkeyPatch


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: Patch) -> AsyncIterator[PeerPlace]:
    async with peer_place(tmp_path, monkeypatch) as place:
        yield place


class Reviving(Hurry):
    """A clock whose waits are over when there is a head again."""

    def __init__(self, place: PeerPlace) -> None:
        super().__init__()
        self.place, self.dead = place, False

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        if self.dead:
            self.dead = False
            await self.place.start()


async def test_a_scheduler_goes_on_when_its_head_has_died_and_come_back(place: PeerPlace) -> None:
    clock, told = Reviving(place), list[Notice]()
    trials = {name: place.tmp_path / name for name in ("one", "two")}
    async with place.syncer(clock=clock, max_requests=4, max_files=4) as syncer:
        config = SyncConfig(upload_dir=place.location)
        async with SyncScheduler(syncer, config, observe=told.append) as scheduler:
            for name, folder in trials.items():
                await to_thread.run_sync(make, folder, {"log": name.encode()})
                scheduler.add(name, local_dir=folder)
            for number in range(3):
                for name, folder in trials.items():
                    saved = folder / f"checkpoint_{number}"
                    await to_thread.run_sync(make, saved, {"w": b"%d" % number, **place.files})
                    ticket = await scheduler.checkpoint(name, saved)
                    if number == 1:
                        await place.head.aclose()
                        clock.dead = True
                    assert (await ticket.durable()) is not None
            await scheduler.drain()

    assert len([one for one in told if isinstance(one, Synced)]) >= 6
    for name in trials:
        for number in range(3):
            found = await to_thread.run_sync(
                content, place.root / "exp" / name / f"checkpoint_{number}"
            )
            assert found == {"w": b"%d" % number, **place.files}


async def test_one_shots_follow_and_clean_know_heads(place: PeerPlace) -> None:
    seen, first = list[str](), anyio.Event()

    async def follow() -> None:
        async with place.syncer(clock=SystemClock()) as syncer:
            async with aclosing(syncer.follow(place.location, period_s=0.01)) as following:
                async for commit in following:
                    seen.append(commit.location)
                    first.set()
                    if len(seen) == 2:
                        return

    await asyncsync.sync_up(place.source, f"{place.location}/checkpoint_1", step=1)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await first.wait()
            await asyncsync.sync_up(place.source, f"{place.location}/checkpoint_2", step=2)
    newest = await asyncsync.latest(place.location)
    names = [commit.location async for commit in asyncsync.commits(place.location)]
    await asyncsync.sync_down(f"{place.location}/checkpoint_1", place.tmp_path / "restored")
    report = await asyncsync.verify(f"{place.location}/checkpoint_2")
    async with place.syncer() as syncer:
        cleaned = await syncer.clean(place.location, older_than_s=0)
    await asyncsync.delete(f"{place.location}/checkpoint_1")
    with pytest.raises(NotFoundError):
        await asyncsync.sync_down(f"{place.location}/checkpoint_1", place.tmp_path / "gone")

    assert sorted(seen) == [f"{place.location}/checkpoint_{n}" for n in (1, 2)]
    assert newest is not None
    assert newest.location.endswith("checkpoint_2")
    assert len(names) == 2
    assert await place.restored() == place.files
    assert report.ok
    assert cleaned == []


@pytest.mark.parametrize("name", ["ckpt 9", "ckpt\udcff9"])
async def test_a_commit_that_no_head_can_be_asked_for_is_named_and_hides_no_other(
    place: PeerPlace, name: str
) -> None:
    """Who writes below the root of a head past the head may give it any name."""
    await asyncsync.sync_up(place.source, f"{place.location}/ckpt_1")
    await asyncsync.sync_up(place.source, _on_disk(place) / name)
    listed = [(one.step, one.damaged) async for one in asyncsync.commits(place.location)]
    with pytest.raises(IntegrityError, match=r"choose another name; the next older .*ckpt_1"):
        await asyncsync.restore(place.location, place.tmp_path / "restored")
    await asyncsync.restore(place.location, place.tmp_path / "restored", fallback=True)

    assert listed[0][1] is not None
    assert "choose another name" in listed[0][1]
    assert [listed[0][0], listed[1]] == [9, (1, None)]
    assert await place.restored() == place.files


async def test_a_directory_that_no_head_can_be_asked_for_does_not_end_following(
    place: PeerPlace,
) -> None:
    await to_thread.run_sync(partial(make, _on_disk(place) / "my notes", {"n": b"1"}))
    await asyncsync.sync_up(place.source, f"{place.location}/ckpt_1")
    seen = list[int | None]()
    with anyio.fail_after(20):
        async with aclosing(asyncsync.follow(place.location, period_s=0.01)) as following:
            async for commit in following:
                seen.append(commit.step)
                if len(seen) == 4:
                    break
                await asyncsync.sync_up(place.source, f"{place.location}/ckpt_{len(seen) + 1}")

    assert seen == [1, 2, 3, 4]


def _on_disk(place: PeerPlace) -> Path:
    return place.root / Location.parse(place.location).path


async def test_the_command_line_speaks_to_heads(place: PeerPlace) -> None:
    tree = f"{place.location}/trial_1"
    up = await _run("up", place.source, tree, "--json")
    listed = await _run("ls", place.location, "--json")
    verified = await _run("verify", tree, "-q")
    down = await _run("down", tree, place.tmp_path / "restored", "-q")
    removed = await _run("rm", tree, "--yes", "-q")
    gone = await _run("down", tree, place.tmp_path / "gone", "-q")

    assert (up[0], listed[0], verified[0], down[0], removed[0]) == (0, 0, 0, 0, 0)
    assert json.loads(up[1].splitlines()[-1])
    assert "trial_1" in listed[1]
    assert await place.restored() == place.files
    assert await place.held("trial_1") == {}
    assert gone[0] == 3
    assert tree in gone[2]


async def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """A program's exit code, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asyncsync", *map(str, arguments)),
        env=dict(os.environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("kind", ["head", "disk", "memory"])
async def test_every_byte_is_paid_for_once_in_both_directions(
    place: PeerPlace, kind: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    paid: list[int] = []

    async def pay(rate: Rate, size_bytes: int) -> None:
        paid.append(size_bytes)

    monkeypatch.setattr(Rate, "pay", pay)
    there = {
        "head": f"{place.location}/tree",
        "disk": str(tmp_path / "disk" / "tree"),
        "memory": f"memory://{tmp_path.name}/tree",
    }[kind]
    async with place.syncer(bwlimit=1e6) as syncer:
        receipt = await syncer.sync_up(place.source, there)
        sent = sum(paid)
        paid.clear()
        await syncer.sync_down(there, tmp_path / "back")

    # Beside the files there are manifests; and very small ones cost a store of objects nothing.
    assert sent == pytest.approx(receipt.size_bytes, abs=10_000)
    assert sum(paid) == pytest.approx(receipt.size_bytes, abs=10_000)
