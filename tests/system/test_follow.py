"""follow: readers that wait for new weights, on a disk and in an object store."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing, nullcontext, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

import asyncsync
from asyncsync.errors import ConfigError, IntegrityError, TransientError
from asyncsync.events import Retrying
from asyncsync.names import MANIFEST
from asyncsync.storage.memory import MemoryObjects, memory_objects
from asyncsync.syncing import StorageSyncer
from asyncsync.testing import FakeClock

from .trees import Events, make, ticking

PERIOD_S = 7.0


class OverError(Exception):
    """Nothing more happens in this test."""


class Steps(FakeClock):
    """A clock that does the next step when a follower waits for its next poll."""

    def __init__(self, *steps: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self._steps = list(steps)

    async def sleep(self, seconds: float) -> None:
        assert seconds == PERIOD_S
        if not self._steps:
            raise OverError
        await self._steps.pop(0)()


class Place:
    """Where commits are made, followed and deleted."""

    def __init__(self, location: str, tmp_path: Path) -> None:
        self.location, self._tmp_path = location, tmp_path

    async def commit(self, name: str, text: bytes = b"w", *, replace: bool = False) -> None:
        folder = self._tmp_path / os.urandom(4).hex()
        source = await anyio.to_thread.run_sync(make, folder, {"w": text})
        await asyncsync.sync_up(source, f"{self.location}/{name}", replace=replace)

    def commits(self, name: str, text: bytes = b"w") -> Callable[[], Awaitable[object]]:
        return lambda: self.commit(name, text, replace=True)

    def deletes(self, name: str) -> Callable[[], Awaitable[object]]:
        return lambda: asyncsync.delete(f"{self.location}/{name}")

    async def follow(self, *steps: Callable[[], Awaitable[object]]) -> list[str]:
        """Names of the commits that come while the steps happen, one between two polls."""
        found = list[str]()
        async with StorageSyncer(isolation="loop", clock=Steps(*steps)) as syncer:
            async with aclosing(syncer.follow(self.location, period_s=PERIOD_S)) as news:
                with suppress(OverError):
                    async for commit in news:
                        found.append(commit.name)
                    raise AssertionError("following never ends by itself")
        return found


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    memory = f"memory://{os.urandom(8).hex()}"
    return Place(memory if request.param == "memory" else str(tmp_path / "store"), tmp_path)


async def nothing() -> None:
    """A poll without anything new."""


async def test_what_is_there_comes_first_then_every_newer_one(place: Place) -> None:
    await place.commit("ckpt_1")

    found = await place.follow(nothing, place.commits("ckpt_2"), nothing, place.commits("ckpt_3"))
    assert found == ["ckpt_1", "ckpt_2", "ckpt_3"]


async def test_a_follower_may_be_there_before_anything_else(place: Place) -> None:
    assert await place.follow(nothing, place.commits("ckpt_1"), nothing) == ["ckpt_1"]


async def test_a_replaced_newest_comes_again_and_an_unchanged_one_does_not(place: Place) -> None:
    again = place.commits("ckpt_1", b"other")

    assert await place.follow(place.commits("ckpt_1"), again, *[nothing] * 4) == ["ckpt_1"] * 2
    assert await place.follow(again, *[nothing] * 10) == ["ckpt_1"]


async def test_a_deleted_newest_does_not_bring_back_an_older_one(place: Place) -> None:
    await place.commit("ckpt_1")
    await place.commit("ckpt_2")

    assert await place.follow(place.deletes("ckpt_2"), *[nothing] * 5) == ["ckpt_2"]


async def test_the_one_shot_function_follows_too(place: Place) -> None:
    await place.commit("ckpt_1")
    with anyio.fail_after(10):
        async with aclosing(asyncsync.follow(place.location, period_s=0.01)) as commits:
            first = await anext(commits)
            await place.commit("ckpt_2")
            second = await anext(commits)

    assert (first.name, second.name) == ("ckpt_1", "ckpt_2")


async def test_many_followers_of_one_syncer_each_get_everything(place: Place) -> None:
    found = list[str]()

    async def reader(syncer: StorageSyncer) -> None:
        async with aclosing(syncer.follow(place.location)) as commits:
            async for commit in commits:
                found.append(commit.name)
                if commit.name == "ckpt_2":
                    return

    async with ticking() as clock, StorageSyncer(isolation="loop", clock=clock) as syncer:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(reader, syncer)
            await place.commit("ckpt_1")
            while found != ["ckpt_1"] * 5:
                await clock.sleep(0.1)
            await place.commit("ckpt_2")

    assert sorted(found) == ["ckpt_1"] * 5 + ["ckpt_2"] * 5


async def test_following_can_be_cancelled_while_it_waits(place: Place) -> None:
    async with StorageSyncer(isolation="loop", clock=FakeClock()) as syncer:
        with anyio.move_on_after(0.05) as scope:
            async for _ in syncer.follow(place.location):
                pass

    assert scope.cancelled_caught


async def test_a_damaged_newest_is_an_error_that_names_the_older_one(
    tmp_path: Path,
) -> None:
    place = Place(str(tmp_path / "store"), tmp_path)
    await place.commit("ckpt_1")

    async def damage() -> None:
        files = {f"ckpt_2/{MANIFEST}": b"x"}
        await anyio.to_thread.run_sync(make, tmp_path / "store", files)

    with pytest.raises(IntegrityError, match=r"ckpt_2.*ckpt_1"):
        await place.follow(damage)


async def test_a_closed_syncer_ends_the_following(place: Place) -> None:
    syncer = StorageSyncer(isolation="loop", clock=Steps(nothing))
    commits = syncer.follow(place.location, period_s=PERIOD_S)
    await place.commit("ckpt_1")
    await anext(commits)
    await syncer.aclose()

    with pytest.raises(ConfigError, match="closed"):
        await anext(commits)


@pytest.mark.parametrize("period_s", [0, -1, float("nan")])
async def test_a_period_that_is_none_is_refused(period_s: float) -> None:
    with pytest.raises(ConfigError, match="period_s"):
        await anext(asyncsync.follow("memory://m/x", period_s=period_s))


class Flaky:
    """The store's listing fails a number of times."""

    def __init__(self, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures = 0
        self._scan = objects.scan
        monkeypatch.setattr(objects, "scan", self.scan)

    async def scan(self, prefix: str):  # type: ignore[no-untyped-def]  # that of MemoryObjects
        if self.failures:
            self.failures -= 1
            raise TransientError("503")
        async for info in self._scan(prefix):
            yield info


@pytest.mark.parametrize(("failures", "ends"), [(6, False), (7, True)])
async def test_a_transient_failure_is_retried_before_it_ends_the_following(
    failures: int, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, events = os.urandom(8).hex(), Events()
    place = Place(f"memory://{bucket}", tmp_path)
    await place.commit("ckpt_1")
    flaky = Flaky(memory_objects(bucket), monkeypatch)
    async with (
        ticking() as clock,
        StorageSyncer(isolation="loop", clock=clock, observe=events) as syncer,
    ):
        async with aclosing(syncer.follow(place.location)) as commits:
            await anext(commits)
            await place.commit("ckpt_2")
            flaky.failures = failures
            with pytest.raises(TransientError) if ends else nullcontext():
                assert (await anext(commits)).name == "ckpt_2"

    assert len(events.of(Retrying)) == 6
