"""Random lives of a scheduler: whatever syncers and callers do, nothing newest is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncsync import SyncConfig
from asyncsync.errors import ConfigError, ConflictError, TransientError
from asyncsync.scheduling import DrainError, Overlap, SyncScheduler, Ticket
from asyncsync.testing import FakeClock, settle

PERIOD, TIMEOUT = 60.0, 200.0
TRIALS = ("a", "b", "c")
NAMES = ("c1", "c2")

Act = Literal["quick", "slow", "fails", "is refused", "hangs", "is deaf", "cancels itself"]
ACTS: tuple[Act, ...] = get_args(Act)
Step = tuple[str, int, float]

TARGETS = tuple(f"x://{trial}{name}" for trial in TRIALS for name in ("", "/c1", "/c2"))
WEIGHTS = {
    "report": 6, "checkpoint": 4, "act": 5, "pass": 5, "turn": 3,
    "cancel": 1, "complete": 1, "drain": 1, "let go": 1,
}  # fmt: skip
STEPS = st.tuples(
    st.sampled_from([what for what, weight in WEIGHTS.items() for _ in range(weight)]),
    st.integers(0, 62),
    st.sampled_from([0.5, 1.0, 7.0, 30.0, 61.0, 250.0]),
)


class InlineThreads:
    """Does at once what threads would do: nothing here depends on the time of real ones."""

    def __init__(self, count: int) -> None:
        del count

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    def close(self) -> None:
        """Nothing to let go of."""


class World:
    """The trials as they are, and as far as they are safe.

    Attributes:
        versions: of what is at each source, by its target.
        durable: the newest version that a sync which ended well has read.
        crowded: targets that two syncs wrote at once.
        acts: how the next syncs of a target behave.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.versions: Counter[str] = Counter()
        self.durable: Counter[str] = Counter()
        self.acts: dict[str, Act] = {}
        self.writing: set[str] = set()
        self.crowded: set[str] = set()
        self.released = anyio.Event()

    async def sync_up(self, local: Any, remote: Any, *, exclude: Sequence[str] = ()) -> None:
        self.crowded |= {remote} & self.writing
        read = self.versions[remote]
        self.writing.add(remote)
        try:
            await self._act(self.acts.get(remote, "quick"))
            self.durable[remote] = max(self.durable[remote], read)
        finally:
            self.writing.discard(remote)

    async def _act(self, act: Act) -> None:
        if act == "is deaf":
            released = self.released
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue
            raise TransientError("late")
        if act == "hangs":
            await anyio.sleep_forever()
        await self.clock.sleep(100.0 if act == "slow" else 1.0)
        if act == "fails":
            raise TransientError("no route")
        if act == "is refused":
            raise ConflictError("another is there", winner="")
        if act == "cancels itself":
            raise asyncio.CancelledError

    async def sync_down(self, remote: Any, local: Any, *, exclude: Sequence[str] = ()) -> None:
        raise NotImplementedError

    async def delete(self, remote: Any) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Nothing to let go of."""


class Life:
    """One scheduler, and everybody who uses it."""

    def __init__(self, place: Path, overlap: Overlap, max_syncs: int) -> None:
        self.place, self.clock = place, FakeClock()
        self.world = World(self.clock)
        config = SyncConfig(sync_period=PERIOD, sync_timeout=TIMEOUT)
        self.scheduler = SyncScheduler(
            self.world, config, overlap=overlap, max_syncs=max_syncs, clock=self.clock
        )
        self.overlap = overlap
        self.calls: list[asyncio.Task[Any]] = []
        self.saving: list[asyncio.Task[Ticket]] = []
        self.tickets: list[tuple[Ticket, str, int]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Whatever has gone wrong, nobody stays deaf."""
        self.let_go()
        await settle()

    def add(self, trial: str) -> None:
        self.scheduler.add(
            trial, local_dir=self.place / trial, remote_dir=f"x://{trial}", checkpoints="c*/"
        )

    def report(self, trial: str) -> None:
        self.world.versions[f"x://{trial}"] += 1
        self.scheduler.report(trial, training_iteration=5, time_total_s=5)

    async def step(self, step: Step) -> None:
        what, which, seconds = step
        trial = TRIALS[which % len(TRIALS)]
        if what == "pass":
            await self.clock.advance(seconds)
        elif what == "turn":
            await settle(which % 6)
        elif what == "act":
            self.world.acts[TARGETS[which % len(TARGETS)]] = ACTS[which % len(ACTS)]
        elif what == "let go":
            self.let_go()
        elif what == "cancel":
            if self.saving:
                self.saving.pop(which % len(self.saving)).cancel()
        elif what == "drain":
            self.call(self.scheduler.drain(deadline_s=seconds if which % 2 else None))
        else:
            self.train(what, trial, which)

    def train(self, what: str, trial: str, which: int) -> None:
        """What a trial does, if it takes part; if it does not, it begins to."""
        found = self.scheduler._trials.get(trial)
        if found is None:
            self.add(trial)
            self.report(trial)  # what its life before has lost, that was told
        elif found.over:
            return
        elif what == "report":
            self.report(trial)
        elif what == "complete":
            self.call(self.scheduler.complete(trial))
        elif what == "checkpoint":
            name = NAMES[which % 2]
            self.world.versions[f"x://{trial}/{name}"] += 1
            version = self.world.versions[f"x://{trial}/{name}"]
            self.saving.append(asyncio.create_task(self.save(trial, name, version)))

    async def save(self, trial: str, name: str, version: int) -> Ticket:
        ticket = await self.scheduler.checkpoint(trial, self.place / trial / name, snapshot=False)
        self.tickets.append((ticket, f"x://{trial}/{name}", version))
        return ticket

    def call(self, what: Coroutine[Any, Any, Any]) -> None:
        self.calls.append(asyncio.create_task(what))

    def let_go(self) -> None:
        """Everything works again."""
        self.world.acts.clear()
        self.world.released.set()
        self.world.released = anyio.Event()

    async def until(self, condition: Callable[[], bool], at_most_s: float) -> None:
        """Let time go by; nothing takes longer than that."""
        for _ in range(round(at_most_s / 10)):
            if condition():
                return
            await self.clock.advance(10)
        assert condition()

    async def check_all_ended(self) -> None:
        waiting = [*self.saving, *self.calls]
        await self.until(lambda: all(task.done() for task in waiting), 20_000)
        for task in waiting:
            if not task.cancelled():
                error = task.exception()
                assert error is None or isinstance(error, Exception)
        assert all(ticket.done for ticket, _, _ in self.tickets)

    def check_durable(self, lost: set[str]) -> None:
        """What was reported last is safe, or somebody was told that it is not."""
        for trial in self.scheduler._trials:
            target = f"x://{trial}"
            safe = self.world.durable[target] == self.world.versions[target]
            assert safe or target in lost, (target, lost)
        for ticket, target, version in self.tickets:
            assert ticket.error is not None or self.world.durable[target] >= version


@pytest.fixture(autouse=True)
def inline_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncsync.scheduling.scheduler.Threads", InlineThreads)


OVERLAPS: list[Overlap] = ["coalesce", "queue", "skip", "supersede"]


def some(lives: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture]
    return settings(max_examples=lives, suppress_health_check=checks)


def _works_again(steps: list[Step], overlap: Overlap, max_syncs: int, tmp_path: Path) -> None:
    async def live() -> None:
        async with Life(tmp_path, overlap, max_syncs) as life:
            scheduler = await life.scheduler.__aenter__()
            for trial in TRIALS:
                life.add(trial)
            for step in steps:
                await life.step(step)
            life.let_go()
            await life.check_all_ended()
            last = asyncio.create_task(scheduler.drain())
            await life.until(last.done, 20_000)
            error = last.exception()  # of a checkpoint that failed before
            assert error is None or isinstance(error, DrainError)
            assert not scheduler.status().blocked
            life.check_durable(set())
            ends = [str(ticket.error) for ticket, _, _ in life.tickets]
            assert not [end for end in ends if "was left" in end]  # who was cancelled has no ticket
            leaving = asyncio.create_task(scheduler.__aexit__(None, None, None))
            await life.until(leaving.done, 20_000)
            await leaving
            assert life.world.writing == life.world.crowded == set()

    asyncio.run(live())


async def leave(life: Life, steps: list[Step], how: str, begun: anyio.Event) -> None:
    """Live, and leave the scheduler that way."""
    async with life.scheduler as scheduler:
        for trial in TRIALS:
            life.add(trial)
        for step in steps:
            await life.step(step)
        if how == "signal":
            async with scheduler.until_signal(deadline_s=100):
                begun.set()
                os.kill(os.getpid(), signal.SIGTERM)
                await anyio.sleep_forever()
        begun.set()
        if how == "error":
            raise ValueError("mine")
        if how == "cancel":
            await anyio.sleep_forever()
        await scheduler.drain(deadline_s=100 if how == "deadline" else None, strict=True)


async def left(life: Life, steps: list[Step], how: str) -> set[str]:
    """What was said to be lost when it was left."""
    begun = anyio.Event()
    leaving = asyncio.create_task(leave(life, steps, how, begun))
    await life.until(lambda: begun.is_set() or leaving.done(), 100_000)
    if how == "signal":
        await asyncio.sleep(0.001)  # it comes through a file descriptor
    if how == "cancel":
        leaving.cancel()
    await life.until(leaving.done, 50_000)
    if how == "cancel":
        assert leaving.cancelled()
        return set()
    error = leaving.exception()
    if how == "error":
        assert str(error) == "mine"
    elif error is not None:
        assert isinstance(error, DrainError), repr(error)
        return {one.target for one in error.report.lost}
    return set()


WORKING = given(
    steps=st.lists(STEPS, min_size=20, max_size=60),
    overlap=st.sampled_from(OVERLAPS),
    max_syncs=st.integers(1, 3),
)
test_the_newest_state_gets_there_once_everything_works_again = pytest.mark.one_loop(
    some(20)(WORKING(_works_again))
)
test_it_gets_there_in_a_hundred_lives = pytest.mark.slow(some(100)(WORKING(_works_again)))


def _is_left(steps: list[Step], overlap: Overlap, how: str, tmp_path: Path) -> None:
    async def live() -> None:
        async with Life(tmp_path, overlap, 2) as life:
            lost = await left(life, steps, how)
            await life.check_all_ended()
            if how in ("drain", "deadline"):
                life.check_durable(lost)
            life.let_go()
            await settle()
            assert life.world.writing == life.world.crowded == set()
            with pytest.raises(ConfigError, match="not open"):
                life.scheduler.report("a")

    asyncio.run(live())


LEAVING = given(
    steps=st.lists(STEPS, min_size=10, max_size=40),
    overlap=st.sampled_from(OVERLAPS),
    how=st.sampled_from(["drain", "deadline", "error", "cancel", "signal"]),
)
test_every_request_ends_and_what_is_lost_is_named_whenever_it_is_left = pytest.mark.one_loop(
    some(20)(LEAVING(_is_left))
)
test_every_request_ends_in_a_hundred_lives = pytest.mark.slow(some(100)(LEAVING(_is_left)))
