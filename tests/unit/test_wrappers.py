from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import anyio
import pytest

from asyncsync.errors import NotFoundError, SlowDownError, StalledError, TransientError
from asyncsync.events import Event, Retrying
from asyncsync.manifest import Manifest
from asyncsync.storage.behaviours import Limited, Rate
from asyncsync.storage.committed import CommittedTrees
from asyncsync.storage.memory import MemoryObjects
from asyncsync.storage.objects import ObjectInfo
from asyncsync.storage.retrying import Backoff
from asyncsync.storage.trees import Block, Intent, NewFile
from asyncsync.storage.wrappers import equip_objects, equip_trees
from asyncsync.testing import FailAt, FakeClock, FaultyObjects, settle
from asyncsync.testing.values import OLD, load, make_manifest, save

T = TypeVar("T")


class Gate:
    """A fault that lets calls wait until the test opens it, and counts them."""

    def __init__(self) -> None:
        self.open = anyio.Event()
        self.inside = 0
        self.most = 0

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.open.wait()
        self.inside -= 1
        return await call()


def transient() -> Exception:
    return TransientError("gone")


# -- retrying


async def test_an_object_call_that_fails_is_tried_again_and_named() -> None:
    events: list[Event] = []
    faulty = FaultyObjects(MemoryObjects(), FailAt(1, transient))
    store = equip_objects(
        faulty, clock=FakeClock(), backoff=Backoff(first_s=0), observe=events.append
    )
    await store.put("a b", b"x")

    assert (await store.get("a b")).data == b"x"
    assert [event.what for event in events if isinstance(event, Retrying)] == ["put a b"]


@pytest.mark.parametrize("number", range(1, 12))
async def test_any_tree_call_that_fails_is_tried_again(number: int) -> None:
    clock = FakeClock()
    faulty = FaultyObjects(MemoryObjects(), FailAt(number, transient))
    trees = CommittedTrees(faulty, clock=clock)
    store = equip_trees(trees, clock=clock, backoff=Backoff(first_s=0))
    await save(store, "tree", OLD)

    assert await load(store, "tree") == OLD


class Interrupted(MemoryObjects):
    """Its listings break off once, behind the second key."""

    broken = False

    async def scan(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        given = 0
        async for info in super().scan(prefix):
            if given == 2 and not self.broken:
                self.broken = True
                raise TransientError("cut off")
            given += 1
            yield info


async def test_a_listing_that_breaks_off_goes_on_behind_the_last_key() -> None:
    inner = Interrupted()
    store = equip_objects(inner, clock=FakeClock(), backoff=Backoff(first_s=0))
    for key in "abcd":
        await store.put(key, b"")
    keys = [info.key async for info in store.scan("")]

    assert keys == ["a", "b", "c", "d"]
    assert inner.broken


# -- limits


async def test_no_more_than_the_allowed_requests_run_at_once() -> None:
    gate = Gate()
    store = equip_objects(FaultyObjects(MemoryObjects(), gate), clock=FakeClock(), max_requests=3)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(store.put, str(number), b"x")
            await settle()
            inside = gate.inside
            gate.open.set()

    assert (inside, gate.most) == (3, 3)


async def test_no_more_than_the_allowed_parts_are_written_or_read_at_once() -> None:
    gate = Gate()
    memory = MemoryObjects()
    await save(CommittedTrees(memory, clock=FakeClock()), "tree", OLD)
    trees = CommittedTrees(FaultyObjects(memory, gate), clock=FakeClock())
    store = equip_trees(trees, clock=FakeClock(), max_requests=2)
    with anyio.fail_after(5):
        async with store.open("tree", None) as reader, anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(reader.read, NewFile("a", 3), 0, 3)
            await settle()
            inside = gate.inside
            gate.open.set()

    assert (inside, gate.most) == (2, 2)


async def test_a_call_that_waits_for_its_next_try_holds_no_slot() -> None:
    clock = FakeClock()
    faulty = FaultyObjects(MemoryObjects(), FailAt(1, transient))
    store = equip_objects(faulty, clock=clock, max_requests=1)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(store.put, "slow", b"x")
            await settle()
            await store.put("quick", b"x")
            with pytest.raises(NotFoundError):
                await store.head("slow")
            await clock.advance(60)

    assert (await store.get("slow")).data == b"x"


async def test_a_slot_comes_back_after_failure_and_cancellation() -> None:
    limited = Limited(1)

    async def fail() -> None:
        raise TransientError("no")

    with pytest.raises(TransientError):
        await limited("x", 0, fail)
    with anyio.move_on_after(0):
        await limited("x", 0, anyio.sleep_forever)

    with anyio.fail_after(5):
        await limited("x", 0, settle)


async def test_a_store_that_asks_for_less_gets_half_and_later_as_much_as_before() -> None:
    limited = Limited(8)
    most = inside = 0

    async def work() -> None:
        nonlocal most, inside
        inside += 1
        most = max(most, inside)
        await settle(2)
        inside -= 1

    async def slow_down() -> None:
        await settle(2)
        raise SlowDownError("less")

    async def ask() -> None:
        with pytest.raises(SlowDownError):
            await limited("slow", 0, slow_down)

    async def count(calls: int) -> int:
        nonlocal most
        most = 0
        async with anyio.create_task_group() as group:
            for _ in range(calls):
                group.start_soon(limited, "work", 0, work)
        return most

    async with anyio.create_task_group() as group:
        for _ in range(8):  # at once: that is one reason to slow down, not eight
            group.start_soon(ask)
    halved = await count(8)
    await count(100)
    recovered = await count(20)

    assert halved in (4, 5)
    assert recovered == 8


async def test_a_store_that_never_answers_is_asked_one_at_a_time_at_the_least() -> None:
    limited = Limited(4)

    async def stall() -> None:
        raise StalledError("nothing moves")

    for _ in range(10):
        with pytest.raises(StalledError):
            await limited("stall", 0, stall)
    with anyio.fail_after(10):
        await limited("works", 0, settle)


# -- rates


async def paid_at(clock: FakeClock, rate: Rate, *sizes: int) -> list[float]:
    """When each of several payments, asked for at once, was through."""
    times: list[float] = []

    async def pay(size_bytes: int) -> None:
        await rate.pay(size_bytes)
        times.append(clock.monotonic())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for size_bytes in sizes:
                group.start_soon(pay, size_bytes)
                await settle()
            await clock.advance(1000)
    return times


async def test_bytes_flow_at_the_rate_once_the_bucket_is_empty() -> None:
    clock = FakeClock()

    assert await paid_at(clock, Rate(100, clock), 100, 50, 50, 100) == [0.0, 0.5, 1.0, 2.0]


async def test_a_payment_larger_than_the_bucket_goes_through_and_the_next_pays_for_it() -> None:
    clock = FakeClock()

    assert await paid_at(clock, Rate(100, clock), 1000, 100, 50) == [0.0, 10.0, 10.5]


async def test_who_comes_first_pays_first() -> None:
    clock = FakeClock()
    rate = Rate(100, clock)
    order: list[int] = []

    async def pay(size_bytes: int) -> None:
        await rate.pay(size_bytes)
        order.append(size_bytes)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for size_bytes in (100, 90, 1, 2):
                group.start_soon(pay, size_bytes)
                await settle()
            await clock.advance(10)

    assert order == [100, 90, 1, 2]


async def test_a_bucket_that_rests_fills_up_to_one_second_and_no_more() -> None:
    clock = FakeClock()
    rate = Rate(100, clock)
    await rate.pay(100)
    await clock.advance(3600)

    assert await paid_at(clock, rate, 100, 100) == [3600.0, 3601.0]


async def test_a_cancelled_payment_takes_nothing_and_blocks_nobody() -> None:
    clock = FakeClock()
    rate = Rate(100, clock)
    await rate.pay(100)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(rate.pay, 100)
            await settle()
            group.cancel_scope.cancel()

    assert await paid_at(clock, rate, 100) == [1.0]


async def test_what_costs_nothing_does_not_wait() -> None:
    clock = FakeClock()
    rate = Rate(100, clock)
    await rate.pay(1000)

    with anyio.fail_after(5):
        await rate.pay(0)


async def elapsed_s(clock: FakeClock, action: Callable[[], Awaitable[object]]) -> float:
    times: list[float] = []

    async def act() -> None:
        await action()
        times.append(clock.monotonic())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            start = clock.monotonic()
            group.start_soon(act)
            await clock.advance(1000)
    return times[0] - start


async def test_objects_are_throttled_in_both_directions() -> None:
    clock = FakeClock()
    rate = Rate(100, clock)
    store = equip_objects(MemoryObjects(), clock=clock, rate=rate)
    await rate.pay(100)
    put_s = await elapsed_s(clock, lambda: store.put("k", bytes(50)))
    await rate.pay(100)
    buffer = memoryview(bytearray(25))
    get_s = await elapsed_s(clock, lambda: store.get("k", 0, 25, into=buffer))
    await rate.pay(100)
    record_s = await elapsed_s(clock, lambda: store.get("k", 0, 10**6))
    upload = await store.create_upload("k")
    await rate.pay(100)
    part_s = await elapsed_s(clock, lambda: store.put_part(upload, 1, bytes(75)))

    assert (put_s, get_s, part_s) == (0.5, 0.25, 0.75)
    assert record_s == 0  # it has hardly any of the bytes that were asked for


async def test_trees_are_throttled_in_both_directions() -> None:
    clock = FakeClock()
    rate = Rate(100, clock)
    trees = CommittedTrees(MemoryObjects(), clock=clock)
    store = equip_trees(trees, clock=clock, rate=rate)
    files = {"a": bytes(50), "b": bytes(25)}
    manifest: Manifest = make_manifest(files)
    async with store.begin("tree", Intent(attempt=manifest.header.attempt)) as writer:
        await rate.pay(100)
        block = Block(files["a"])
        one_s = await elapsed_s(clock, lambda: writer.write(NewFile("a", 50), 0, block))
        await rate.pay(100)
        many = [(NewFile("b", 25), files["b"])]
        many_s = await elapsed_s(clock, lambda: writer.write_many(many))
        await writer.commit(manifest)
    async with store.open("tree", manifest) as reader:
        await rate.pay(100)
        read_s = await elapsed_s(clock, lambda: reader.read(NewFile("a", 50), 10, 20))
        await rate.pay(100)
        read_many_s = await elapsed_s(clock, lambda: reader.read_many([NewFile("b", 25)]))

    assert (one_s, many_s, read_s, read_many_s) == pytest.approx((0.5, 0.25, 0.1, 0.25))
