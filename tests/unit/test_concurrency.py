"""Threads, byte budgets and bounded groups: also cancelled, also twice."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asyncsync.concurrency import (
    Budget,
    ByteBudget,
    Threads,
    each,
    each_bounded,
    finish,
    quietly,
)
from asyncsync.errors import ConfigError, StalledError
from asyncsync.testing import settle


class Gate:
    """A function for a thread that says when it has begun and ends when it may."""

    def __init__(self, error: Exception | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._error = error
        self.begun = anyio.Event()
        self.may_end = threading.Event()
        self.ended = False

    def __call__(self) -> str:
        self._loop.call_soon_threadsafe(self.begun.set)
        assert self.may_end.wait(10)
        self.ended = True
        if self._error is not None:
            raise self._error
        return "result"


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    made = Threads(1)
    yield made
    made.close()


@pytest.fixture
async def reported() -> AsyncIterator[list[dict[str, Any]]]:
    """What the loop would log."""
    found: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.append(context))
    yield found
    loop.set_exception_handler(None)


# ---------------------------------------------------------------- Threads


async def test_a_function_runs_in_a_thread_and_its_result_comes_back(threads: Threads) -> None:
    def function(*args: int) -> tuple[str, tuple[int, ...]]:
        return threading.current_thread().name, args

    name, args = await threads.run(function, 1, 2)

    assert name.startswith("asyncsync")
    assert args == (1, 2)


async def test_an_exception_comes_back_as_it_is(threads: Threads) -> None:
    error = OSError(5, "broken")

    def function() -> None:
        raise error

    with pytest.raises(OSError, match="broken") as caught:
        await threads.run(function)

    assert caught.value is error


async def test_no_more_functions_run_at_once_than_there_are_threads() -> None:
    threads = Threads(2)
    gates = [Gate() for _ in range(3)]
    async with anyio.create_task_group() as group:
        for gate in gates:
            group.start_soon(threads.run, gate)
        await gates[0].begun.wait()
        await gates[1].begun.wait()
        await settle()
        begun = [gate.begun.is_set() for gate in gates]
        for gate in gates:
            gate.may_end.set()
    threads.close()

    assert begun == [True, True, False]


async def test_a_cancelled_scope_is_left_only_after_the_function_has_ended(
    threads: Threads,
) -> None:
    gate = Gate()
    after: list[bool] = []

    async def run() -> None:
        try:
            await threads.run(gate)
        finally:
            after.append(gate.ended)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await gate.begun.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await settle()
        still_there = not after
        gate.may_end.set()

    assert still_there
    assert after == [True]


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_native_cancellation_however_often_waits_for_the_function(
    threads: Threads, times: int
) -> None:
    gate = Gate()
    task = asyncio.create_task(threads.run(gate))
    await gate.begun.wait()
    for _ in range(times):
        task.cancel()
        await settle()
    was_done = task.done()
    gate.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not was_done
    assert gate.ended


async def test_cancelled_before_it_begins_the_function_never_runs(threads: Threads) -> None:
    gate = Gate()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await threads.run(gate)

    assert scope.cancelled_caught
    assert not gate.begun.is_set()


@pytest.mark.parametrize("how", ["scope", "native"])
async def test_an_error_that_only_a_cancelled_caller_could_hear_of_is_not_logged(
    threads: Threads, reported: list[dict[str, Any]], how: str
) -> None:
    gate = Gate(OSError(5, "broken"))
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await threads.run(gate)

    task = asyncio.create_task(run())
    await gate.begun.wait()
    scope.cancel() if how == "scope" else task.cancel()
    gate.may_end.set()
    await asyncio.wait([task])
    cancelled = scope.cancelled_caught or task.cancelled()
    del task
    gc.collect()
    await settle()

    assert cancelled
    assert reported == []


async def test_a_function_that_does_not_end_in_time_is_abandoned_by_name() -> None:
    threads = Threads(1, stall_s=0.01)
    gate = Gate()

    def read_the_device() -> None:
        gate()

    with pytest.raises(StalledError, match=r"read_the_device has not ended within 0\.01 s"):
        await threads.run(read_the_device)
    gate.may_end.set()
    threads.close()


async def test_a_stalled_function_does_not_hold_a_cancelled_caller_for_ever() -> None:
    threads = Threads(1, stall_s=0.01)
    gate = Gate()
    task = asyncio.create_task(threads.run(gate))
    await gate.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ended = gate.ended
    gate.may_end.set()
    threads.close()

    assert not ended


async def test_the_error_of_an_abandoned_function_is_not_logged(
    reported: list[dict[str, Any]],
) -> None:
    threads = Threads(1, stall_s=0.01)
    gate = Gate(OSError(5, "broken"))
    with pytest.raises(StalledError):
        await threads.run(gate)
    gate.may_end.set()
    threads._pool.shutdown(wait=True)
    await settle()
    gc.collect()

    assert gate.ended
    assert reported == []


async def test_closing_lets_running_work_end_and_refuses_what_waits(threads: Threads) -> None:
    gate, never = Gate(), Gate()
    running = asyncio.create_task(threads.run(gate))
    await gate.begun.wait()
    waiting = asyncio.create_task(threads.run(never))
    await settle()
    threads.close()
    gate.may_end.set()

    assert await running == "result"
    with pytest.raises(ConfigError, match="closed"):  # not a cancellation, which a group swallows
        await waiting
    assert not never.begun.is_set()


async def test_a_closed_pool_refuses_new_work_and_closes_again(threads: Threads) -> None:
    threads.close()
    threads.close()

    with pytest.raises(ConfigError, match="closed"):
        await threads.run(threading.get_ident)


# ---------------------------------------------------------------- ByteBudget


async def test_the_budget_is_never_exceeded_and_everybody_is_served() -> None:
    sizes = random.Random(7)
    budget = ByteBudget(100)
    most = served = 0

    async def borrow(size: int, turns: int) -> None:
        nonlocal most, served
        async with budget.borrow(size):
            most = max(most, budget.used)
            await settle(turns)
        served += 1

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(300):
                group.start_soon(borrow, sizes.randint(0, 60), sizes.randint(0, 5))

    assert served == 300
    assert 60 < most <= 100
    assert budget.used == 0


async def test_more_than_the_whole_budget_is_lent_to_one_alone() -> None:
    budget = ByteBudget(100)
    seen: list[int] = []

    async def borrow(size: int) -> None:
        async with budget.borrow(size):
            seen.append(budget.used)
            await settle(3)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for size in (40, 1000, 40, 1000):
                group.start_soon(borrow, size)

    assert seen == [40, 1000, 40, 1000]


async def test_who_waits_for_much_is_not_overtaken_by_those_who_want_little() -> None:
    budget = ByteBudget(100)
    order: list[int] = []

    async def borrow(size: int) -> None:
        async with budget.borrow(size):
            order.append(size)
            await settle(2)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for size in (60, 90, 1, 2, 3):
                group.start_soon(borrow, size)

    assert order == [60, 90, 1, 2, 3]


@pytest.mark.parametrize("cancellations", [1, 2])
@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_loan_is_given_back_to_who_waits(cancellations: int, turns: int) -> None:
    budget = ByteBudget(100)
    got_it = anyio.Event()

    async def hold() -> None:
        async with budget.borrow(100):
            await anyio.sleep_forever()

    async def wait() -> None:
        async with budget.borrow(100):
            got_it.set()

    holder = asyncio.create_task(hold())
    await settle()
    waiter = asyncio.create_task(wait())
    await settle()
    for _ in range(cancellations):
        holder.cancel()
        await settle(turns)
    with anyio.fail_after(10):
        await got_it.wait()
        await asyncio.wait([holder, waiter])

    assert budget.used == 0


@pytest.mark.parametrize("turns", [None, 0, 1, 2, 3])
async def test_who_gives_up_waiting_holds_nothing_and_blocks_nobody(turns: int | None) -> None:
    """Also when the loan is granted in the very moment of the cancellation."""
    budget = ByteBudget(100)
    release, got_it = anyio.Event(), anyio.Event()

    async def hold() -> None:
        async with budget.borrow(60):
            await release.wait()

    async def want(size: int, got: anyio.Event) -> None:
        async with budget.borrow(size):
            got.set()
            await anyio.sleep_forever()

    holder = asyncio.create_task(hold())
    await settle()
    first = asyncio.create_task(want(100, anyio.Event()))
    second = asyncio.create_task(want(40, got_it))
    await settle()
    if turns is None:  # while nothing is free yet
        first.cancel()
        await settle()
    release.set()
    await settle(turns or 0)
    first.cancel()
    with anyio.fail_after(10):
        await got_it.wait()
    used = budget.used
    second.cancel()
    await asyncio.wait([holder, first, second])

    assert used == 40
    assert budget.used == 0


# ---------------------------------------------------------------- each_bounded


@pytest.mark.parametrize("limit", [1, 3, 50])
async def test_every_item_is_acted_on_with_so_many_tasks_at_most(limit: int) -> None:
    alive = most = 0
    done: list[int] = []

    async def action(item: int) -> None:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        await settle(60 + item % 4)
        alive -= 1
        done.append(item)

    await each_bounded(limit, range(20), action)

    assert sorted(done) == list(range(20))
    assert most == min(limit, 20)


async def test_items_are_taken_only_when_there_is_room() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    async def action(item: int) -> None:
        assert len(taken) <= item + 4  # three alive and one at the door
        await settle(1)

    await each_bounded(3, items(), action)

    assert taken == list(range(10))


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_no_item_starts_after_a_failure(limit: int) -> None:
    failed = False
    late: list[int] = []

    async def action(item: int) -> None:
        nonlocal failed
        if failed:
            late.append(item)
        await settle(2)
        if item == 4:
            failed = True
            raise OSError(item)

    with pytest.raises(ExceptionGroup) as caught:
        await each_bounded(limit, range(30), action)

    assert late == []
    assert caught.value.subgroup(OSError) is not None


async def test_a_failure_cancels_the_others() -> None:
    cancelled: list[int] = []

    async def action(item: int) -> None:
        if item == 2:
            raise OSError
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    with anyio.fail_after(10), pytest.raises(ExceptionGroup):
        await each_bounded(3, range(9), action)

    assert sorted(cancelled) == [0, 1]


async def test_no_items_are_no_work() -> None:
    await each_bounded(1, [], settle)


# ---------------------------------------------------------------- finish


async def test_finish_gives_what_the_call_gives() -> None:
    async def call() -> int:
        return 7

    assert await finish(call) == 7


async def test_finish_raises_what_the_call_raises() -> None:
    async def call() -> None:
        raise StalledError("it hangs")

    with pytest.raises(StalledError, match="it hangs"):
        await finish(call)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_call_ends_before_the_cancellation_goes_on(fails: bool) -> None:
    ended = False

    async def call() -> None:
        nonlocal ended
        for _ in range(10):
            await checkpoint()
        ended = True
        if fails:
            raise StalledError("it hangs")

    with anyio.CancelScope() as scope:
        scope.cancel()
        await finish(call)

    assert scope.cancelled_caught
    assert ended


async def test_a_cancelled_call_that_does_not_end_is_cancelled() -> None:
    cancelled = False

    async def call() -> None:
        nonlocal cancelled
        try:
            await anyio.sleep_forever()
        finally:
            cancelled = True

    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        await finish(call, grace_s=0.01)

    assert scope.cancelled_caught
    assert cancelled


async def test_a_second_cancellation_ends_the_wait() -> None:
    task = asyncio.ensure_future(finish(anyio.sleep_forever, grace_s=3600.0))
    await checkpoint()
    task.cancel()
    for _ in range(10):  # it is waiting again by then
        await checkpoint()
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# ---------------------------------------------------------------- quietly


async def test_cleanup_runs_although_its_task_is_cancelled() -> None:
    cleaned = False

    async def cleanup() -> None:
        nonlocal cleaned
        await settle(3)
        cleaned = True

    with anyio.CancelScope() as scope:
        scope.cancel()
        await quietly(cleanup)

    assert cleaned


async def test_an_error_of_the_cleanup_does_not_replace_the_one_at_hand() -> None:
    async def cleanup() -> None:
        raise OSError("while cleaning up")

    async def work() -> None:
        try:
            int("no number")
        except ValueError:
            await quietly(cleanup)
            raise

    with pytest.raises(ValueError, match="no number"):
        await work()


async def test_cleanup_that_hangs_is_given_up_after_its_grace() -> None:
    with anyio.fail_after(10):
        await quietly(anyio.sleep_forever, grace_s=0.01)


async def test_cleanup_sees_the_context_of_its_caller() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    async def cleanup() -> None:
        seen.append(variable.get())

    variable.set("set")
    await quietly(cleanup)

    assert seen == ["set"]


async def test_a_budget_that_shrinks_waits_and_one_that_grows_lends_at_once() -> None:
    budget = Budget(2)
    inside: list[int] = []

    async def borrow(number: int) -> None:
        async with budget.borrow():
            inside.append(number)
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        budget.resize(1)
        for number in range(3):
            group.start_soon(borrow, number)
        await settle()
        small = list(inside)
        budget.resize(3)
        await settle()
        group.cancel_scope.cancel()

    assert (small, inside) == ([0], [0, 1, 2])
    assert budget.used == 0


async def test_a_buffer_that_comes_back_is_lent_again() -> None:
    budget = ByteBudget(100, buffers=(10,))
    async with budget.buffer(10) as first:
        memory = first.obj
    async with budget.buffer(8) as second:
        again, size = second.obj, len(second)

    assert again is memory
    assert size == 8


async def test_a_buffer_in_which_something_failed_is_not_lent_again() -> None:
    budget = ByteBudget(100, buffers=(10,))
    with suppress(ValueError):
        async with budget.buffer(10) as first:
            memory = first.obj
            raise ValueError
    async with budget.buffer(10) as second:
        other = second.obj

    assert other is not memory
    assert budget.used == 0


async def test_what_lies_idle_never_makes_more_than_the_budget() -> None:
    budget = ByteBudget(40, buffers=(10,))

    async def hold(done: anyio.Event) -> None:
        async with budget.buffer(10):
            await done.wait()

    async with anyio.create_task_group() as group:
        done = anyio.Event()
        for _ in range(4):
            group.start_soon(hold, done)
        await settle()
        done.set()
    idle = len(budget._idle[10])
    async with budget.borrow(25):
        beside = len(budget._idle[10])

    assert (idle, beside) == (4, 1)


async def test_buffers_are_lent_again_when_all_are_in_use() -> None:
    budget, seen = ByteBudget(20, buffers=(10,)), list[object]()

    async def use() -> None:
        async with budget.buffer(10) as buffer:
            if not any(one is buffer.obj for one in seen):
                seen.append(buffer.obj)
            await settle()

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(use)

    assert len(seen) == 2


async def test_buffers_of_one_size_make_room_for_those_of_another() -> None:
    budget = ByteBudget(40, buffers=(10, 20))
    async with budget.buffer(10), budget.buffer(10), budget.buffer(15):
        pass
    idle = {size: len(found) for size, found in budget._idle.items()}
    async with budget.buffer(20), budget.buffer(20):
        beside = {size: len(found) for size, found in budget._idle.items()}

    assert idle == {10: 2, 20: 1}
    assert beside == {10: 0, 20: 0}


async def test_a_small_piece_gets_memory_of_its_size() -> None:
    budget = ByteBudget(100, buffers=(10,))
    async with budget.buffer(3) as buffer:
        used, size = budget.used, len(bytes(buffer.obj))

    assert (used, size) == (3, 3)


async def test_the_first_failure_of_each_keeps_what_caused_it() -> None:
    async def fail(number: int) -> None:
        raise ConfigError(str(number)) from OSError(number)

    with pytest.raises(ConfigError) as info:
        await each([1, 2], fail)
    assert isinstance(info.value.__cause__, OSError)
