"""What is shared on a head: room on its disk, turns, and what tokens may push in all."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from anyio import to_thread

from asyncsync.concurrency import Threads
from asyncsync.errors import NoSpaceError, NotFoundError, TransientError
from asyncsync.peer.queues import Queues
from asyncsync.peer.quotas import Quotas
from asyncsync.peer.space import Room, Space
from asyncsync.testing import FakeClock, settle
from asyncsync.wire.claims import Claims
from asyncsync.wire.limits import Limits


@pytest.mark.parametrize(
    ("size", "announced", "free"), [(11, 0, 10), (6, 5, 10), (1, 10, 10), (1, 0, 0), (1, 0, -5)]
)
def test_what_does_not_fit_beside_the_rest_is_refused(size: int, announced: int, free: int) -> None:
    with pytest.raises(NoSpaceError, match=f"{max(0, free)} may be used"):
        Room(free).refuse(size, announced)


@pytest.mark.parametrize(("size", "announced", "free"), [(10, 0, 10), (5, 5, 10), (0, 99, -1)])
def test_what_fits_is_taken(size: int, announced: int, free: int) -> None:
    Room(free).refuse(size, announced)


async def test_a_part_of_the_disk_always_stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimpleNamespace(f_bavail=100, f_blocks=1000, f_frsize=10)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    threads = Threads(1)
    for limits, free in (
        (Limits(disk_reserve_ratio=0.01, disk_reserve_bytes=0), 900),
        (Limits(disk_reserve_ratio=0, disk_reserve_bytes=300), 700),
        (Limits(disk_reserve_ratio=0.5, disk_reserve_bytes=300), -4000),
    ):
        assert await Space("/", threads, limits).room() == Room(free)
    threads.close()


async def test_a_root_that_is_gone_is_an_error_that_does_not_say_where(tmp_path: Path) -> None:
    threads = Threads(1)
    with pytest.raises(NotFoundError) as caught:
        await Space(str(tmp_path / "gone"), threads, Limits()).room()
    threads.close()

    assert str(tmp_path) not in str(caught.value)


async def test_a_turn_comes_in_the_order_of_asking_and_each_token_has_its_own() -> None:
    queues, done = Queues(1, 10), list[str]()
    gate = anyio.Event()

    async def ask(token: str, name: str) -> None:
        async with queues.turn(token):
            done.append(name)
            if name == "first":
                await gate.wait()

    async with anyio.create_task_group() as group:
        for name in ("first", "second", "third"):
            group.start_soon(ask, "a", name)
            await settle()
        group.start_soon(ask, "b", "other")
        await settle()
        assert done == ["first", "other"]
        gate.set()

    assert done == ["first", "other", "second", "third"]
    assert queues.tokens == 0, "nothing is kept of those that have gone"


async def test_who_gives_up_waiting_leaves_the_queue() -> None:
    queues, gate = Queues(1, 10), anyio.Event()

    async def hold() -> None:
        async with queues.turn("a"):
            await gate.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        await settle()
        with anyio.move_on_after(0):
            async with queues.turn("a"):
                pytest.fail("it is not free")
        gate.set()
    async with queues.turn("a"):
        assert queues.tokens == 1
    assert queues.tokens == 0


def _claims(*, max_files: int | None = None, max_bytes: int | None = None) -> Claims:
    now = FakeClock().now()
    return Claims.new("exp", now=now, max_files=max_files, max_bytes=max_bytes)


async def test_files_and_bytes_are_counted_up_to_the_cap() -> None:
    threads, claims = Threads(1), _claims(max_files=3, max_bytes=10)
    quotas = Quotas(None, threads, FakeClock())
    await quotas.take(claims, 2, 4)
    for files, size in ((2, 0), (0, 7)):
        with pytest.raises(NoSpaceError, match="in all"):
            await quotas.take(claims, files, size)
    await quotas.take(claims, 1, 6)
    await quotas.give_back(claims.id, 1, 6)
    await quotas.take(claims, 1, 6)
    await quotas.take(_claims(), 10**9, 10**18)
    await quotas.take(_claims(max_files=3), 3, 10**18)
    threads.close()


async def test_counts_stay_in_their_file_until_the_token_ends(tmp_path: Path) -> None:
    threads, clock, path = Threads(1), FakeClock(), tmp_path / "quotas"
    claims = _claims(max_bytes=10)
    await Quotas(path, threads, clock).take(claims, 1, 10)
    again = Quotas(path, threads, clock)
    await again.load()
    with pytest.raises(NoSpaceError):
        await again.take(claims, 0, 1)

    clock._time += 8 * 24 * 3600
    other = Claims.new("exp", now=clock.now(), max_bytes=1)
    await again.take(other, 0, 1)
    text = await to_thread.run_sync(path.read_bytes)
    assert json.loads(text)["tokens"].keys() == {other.id}
    threads.close()


async def test_a_count_that_cannot_be_written_lets_nothing_in(tmp_path: Path) -> None:
    threads, told = Threads(1), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, how: told.append(repr(how)))
    quotas = Quotas(tmp_path / "missing" / "quotas", threads, FakeClock())
    await quotas.load()
    for _ in range(2):
        with pytest.raises(TransientError) as caught:
            await quotas.take(_claims(max_bytes=10), 1, 1)
        assert "missing" not in str(caught.value), "where that is, is nobody's business"
    assert "cannot write" in told[1]
    threads.close()
