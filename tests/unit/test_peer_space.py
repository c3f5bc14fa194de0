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
from msgspec.structs import replace

from asyncsync.concurrency import Threads
from asyncsync.errors import NoSpaceError, NotFoundError, TransientError
from asyncsync.peer.queues import Queues
from asyncsync.peer.quotas import Quotas, _Used
from asyncsync.peer.space import Room, Space
from asyncsync.testing import FakeClock, settle
from asyncsync.wire.claims import DEFAULT_LIFE_S, Claims
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
        space = await threads.run(Space, "/", threads, limits)
        assert await space.room() == Room(free)
    threads.close()


async def test_a_root_that_is_gone_is_an_error_that_does_not_say_where(tmp_path: Path) -> None:
    threads, root = Threads(1), tmp_path / "gone"
    await to_thread.run_sync(root.mkdir)
    space = await threads.run(Space, str(root), threads, Limits())
    await to_thread.run_sync(root.rmdir)
    with pytest.raises(NotFoundError) as caught:
        await space.room()
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


async def taken(quotas: Quotas, claims: Claims, files: int, size_bytes: int) -> None:
    await quotas.take(claims, claims.expires_at, files, size_bytes)


async def test_files_and_bytes_are_counted_up_to_the_cap() -> None:
    threads, claims = Threads(1), _claims(max_files=3, max_bytes=10)
    quotas = Quotas(None, threads, FakeClock())
    await taken(quotas, claims, 2, 4)
    for files, size in ((2, 0), (0, 7)):
        with pytest.raises(NoSpaceError, match="in all"):
            await taken(quotas, claims, files, size)
    await taken(quotas, claims, 1, 6)
    await quotas.give_back(claims.id, 1, 6)
    await taken(quotas, claims, 1, 6)
    await taken(quotas, _claims(), 10**9, 10**18)
    await taken(quotas, _claims(max_files=3), 3, 10**18)
    threads.close()


async def test_counts_stay_in_their_file_until_the_token_ends(tmp_path: Path) -> None:
    threads, clock, path = Threads(1), FakeClock(), tmp_path / "quotas"
    claims = _claims(max_bytes=10)
    await taken(Quotas(path, threads, clock), claims, 1, 10)
    again = Quotas(path, threads, clock)
    await again.load()
    with pytest.raises(NoSpaceError):
        await taken(again, claims, 0, 1)

    clock._time += 8 * 24 * 3600
    other = Claims.new("exp", now=clock.now(), max_bytes=1)
    await taken(again, other, 0, 1)
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
            await taken(quotas, _claims(max_bytes=10), 1, 1)
        assert "missing" not in str(caught.value), "where that is, is nobody's business"
    assert "cannot write" in told[1]
    threads.close()


async def test_a_count_stays_for_as_long_as_any_token_of_that_id() -> None:
    threads, clock = Threads(1), FakeClock()
    quotas, claims = Quotas(None, threads, clock), _claims(max_bytes=10)
    renewed_until = claims.expires_at + DEFAULT_LIFE_S
    soon = replace(claims, expires_at=claims.not_before + 1)
    await quotas.take(soon, claims.expires_at, 1, 10)
    for ends_at, until in ((claims.expires_at, renewed_until), (renewed_until, renewed_until)):
        clock._time = ends_at - claims.not_before
        await taken(quotas, Claims.new("exp", now=clock.now(), max_bytes=1), 0, 1)
        with pytest.raises(NoSpaceError):
            await quotas.take(soon, until, 0, 1)
        await quotas.prolong(claims.id, until)
        await quotas.prolong(claims.id, claims.expires_at)
    threads.close()


async def test_counts_of_thousands_of_tokens_can_be_read_again(tmp_path: Path) -> None:
    threads, path = Threads(1), tmp_path / "quotas"
    quotas = Quotas(path, threads, FakeClock())
    quotas._used = {f"{n:032x}": _Used(1, 2**40, 2**40) for n in range(10_000)}
    await taken(quotas, _claims(max_bytes=1), 0, 1)
    again = Quotas(path, threads, FakeClock())
    await again.load()
    assert len(again._used) == 10_001

    used = {f"{n:032x}": _Used(2**40, 2**40, 2**40) for n in range(250_000)}
    quotas._used = used
    with pytest.raises(TransientError):  # else no head could be started with it
        await taken(quotas, _claims(max_bytes=1), 0, 1)
    await again.load()
    threads.close()
