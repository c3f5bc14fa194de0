"""A rank of a group fails, is cancelled or killed at any request; others and its retry go on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal, TypeVar

import anyio
import pytest

from asyncsync.errors import AsyncSyncError, NotFoundError, TransientError
from asyncsync.names import MANIFEST, new_attempt
from asyncsync.storage import Capabilities, ObjectStore
from asyncsync.storage.committed import CommittedTrees
from asyncsync.storage.memory import MemoryObjects
from asyncsync.storage.trees import Intent
from asyncsync.testing import CancelAt, FailAt, FakeClock, FaultyObjects
from asyncsync.testing.contract_groups import leave, ranks
from asyncsync.testing.values import load, write

from .cloud_victims import Victims
from .committed_scenarios import OLD, sync
from .group_scenarios import PARTS, WHOLE, finish, rank, small_chunks, until_left
from .test_cloud_faults import WORLDS, When, prepare

T = TypeVar("T")

LAST = len(PARTS) - 1

replacing = pytest.mark.parametrize("old", [None, OLD], ids=["new", "replace"])
# The first one begins the group, the last one completes it.
victims = pytest.mark.parametrize("victim", [0, LAST], ids=["first", "last"])
# Who is dead is taken over at once by itself, later by others.
finishers = pytest.mark.parametrize("last", [0, LAST], ids=["first finishes", "last finishes"])

stickiness = pytest.mark.parametrize(
    "sticky", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["once", "from then on"]
)


@pytest.fixture(autouse=True)
def use_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch.setattr)


class Network:
    """A fault for all calls at once: up or down."""

    down = False

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        if self.down:
            raise TransientError("gone")
        return await call()


async def content(objects: ObjectStore) -> dict[str, bytes] | None:
    """What a reader sees, checked."""
    try:
        return await load(CommittedTrees(objects, clock=FakeClock()), "tree")
    except NotFoundError:
        return None


class Case:
    """A group in memory of which the ranks before the victim have left their parts."""

    def __init__(self, victim: int, old: dict[str, bytes] | None) -> None:
        self.memory = MemoryObjects(Capabilities(assured=True, min_part_bytes=1))
        self.victim, self.old = victim, old

    def trees(self, objects: ObjectStore | None = None) -> CommittedTrees:
        """Another process each time."""
        return CommittedTrees(objects or self.memory, clock=FakeClock())

    async def prepare(self) -> None:
        if self.old is not None:
            await sync(self.old, in_place=False)(self.trees())
        for number in range(self.victim):
            await until_left(self.trees(), FakeClock(), number)
        await self.memory.put("tree/foreign", b"theirs")

    async def run(self, objects: ObjectStore) -> None:
        """The victim's run."""
        await rank(self.victim)(self.trees(objects))

    async def check(self, last: int) -> None:
        """Whole, before and after all the others, and the victim again, have done their work."""
        found = await content(self.memory)
        assert found in (self.old, None, WHOLE if self.victim == LAST else self.old)

        clock = FakeClock()
        await finish(CommittedTrees(self.memory, clock=clock), clock, last=last)

        assert await content(self.memory) == WHOLE
        names = {f"tree/{path}" for path in (*WHOLE, MANIFEST, "foreign")}
        assert {info.key async for info in self.memory.scan("")} == names
        assert [upload async for upload in self.memory.scan_uploads("")] == []


@replacing
@victims
@finishers
@pytest.mark.parametrize("when", ["before", "after"])
@stickiness
async def test_whatever_call_of_a_rank_fails_the_group_finishes(
    old: dict[str, bytes] | None,
    victim: int,
    last: int,
    when: Literal["before", "after"],
    sticky: bool,
) -> None:
    number, happened = 0, True
    while happened:
        number += 1
        case = Case(victim, old)
        await case.prepare()
        fault = FailAt(number, lambda: TransientError("gone"), when=when, sticky=sticky)
        with suppress(AsyncSyncError):
            await case.run(FaultyObjects(case.memory, fault))
        happened = fault.happened

        await case.check(last)
    assert number > 15


@replacing
@victims
@pytest.mark.parametrize("when", ["before", "after"])
async def test_in_whatever_call_a_rank_is_cancelled_the_group_finishes(
    old: dict[str, bytes] | None, victim: int, when: Literal["before", "after"]
) -> None:
    number, happened = 0, True
    while happened:
        number += 1
        case = Case(victim, old)
        await case.prepare()
        with anyio.CancelScope() as scope:
            fault = CancelAt(number, scope, when=when)
            await case.run(FaultyObjects(case.memory, fault))
        happened = fault.happened

        await case.check(victim)
    assert number > 15


@replacing
@pytest.mark.parametrize("when", ["before", "after"])
@stickiness
async def test_whatever_call_fails_of_who_supersedes_a_group_nothing_mixes(
    old: dict[str, bytes] | None, when: Literal["before", "after"], sticky: bool
) -> None:
    number, happened = 0, True
    while happened:
        number += 1
        case = Case(0, old)
        await case.prepare()
        await _older(case, old)
        fault = FailAt(number, lambda: TransientError("gone"), when=when, sticky=sticky)
        with suppress(AsyncSyncError):
            await case.run(FaultyObjects(case.memory, fault))
        happened = fault.happened

        await case.check(0)
    assert number > 20


async def _older(case: Case, old: dict[str, bytes] | None) -> None:
    """A rank of an older group has left its part, and another one has died."""
    expect = (await case.trees().read_manifest("tree")).identity if old else None
    first, second = ranks("older", 2)
    await leave(case.trees(), first, {"a": b"older", "only/older": b"x"}, expect=expect)
    network = Network()
    with suppress(AsyncSyncError):
        async with case.trees(FaultyObjects(case.memory, network)).begin(
            "tree", Intent(attempt=new_attempt(), expect=expect, group=second)
        ) as target:
            await write(target, {"d/big": b"older", "dead": b"x"})
            network.down = True


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("victim", "old"),
    [*((number, None) for number in range(len(PARTS))), (LAST, OLD)],
    ids=["first", "second", "third", "last", "last-replace"],
)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", WORLDS)
async def test_a_process_of_a_group_may_be_killed_at_any_request(
    name: str,
    when: When,
    victim: int,
    old: dict[str, bytes] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over disks see test_kill_loop, over heads test_peer_kills."""
    async with WORLDS[name](monkeypatch) as world, Victims(name, world.environ) as processes:
        number, happened = 0, True
        while happened:
            number += 1
            client = await prepare(world, old)
            for before in range(victim):
                await until_left(client.trees(), client.clock, before)
            world.kill(number, when, processes.kill)
            with anyio.fail_after(60):
                status = await processes.run(f"rank-{victim}")
            happened = world.count >= number
            world.heal()
            found = await client.content()

            assert status == (-9 if happened else 0), number
            assert found in (old, None, WHOLE if victim == LAST else old)
            await rank(victim)(client.trees())  # the same rank goes on at once
            await finish(client.trees(), client.clock, last=LAST)
            await client.check_finished(WHOLE)
        assert number > 10
