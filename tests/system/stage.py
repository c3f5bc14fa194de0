"""What tests of the scheduler share: a clock of their own, and a syncer that does as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from asyncsync import SyncConfig
from asyncsync.scheduling import Feed, Notice, SyncScheduler, Ticket
from asyncsync.syncing import Receipt
from asyncsync.testing import FakeClock, settle

__all__ = ["CONFIG", "PERIOD", "FakeSyncer", "Stage", "deaf_until", "failing", "forever"]

T = TypeVar("T")
PERIOD = 60.0
CONFIG = SyncConfig(sync_period=PERIOD, sync_timeout=1000)


class FakeSyncer:
    """Takes `seconds`; what `acts` maps a target to is awaited instead."""

    def __init__(self, clock: FakeClock, seconds: float = 1.0) -> None:
        self.clock, self.seconds = clock, seconds
        self.acts: dict[str, Callable[[], Awaitable[Receipt | None]]] = {}
        self.calls: list[tuple[float, str, str, tuple[str, ...]]] = []
        self.ends: list[tuple[float, str]] = []
        self.writing: list[str] = []
        self.most, self.closed = 0, False

    async def sync_up(
        self, local_dir: Any, remote_dir: Any, *, exclude: Sequence[str] = ()
    ) -> Receipt | None:
        assert remote_dir not in self.writing, "two writers on one target"
        self.calls.append((self.clock.monotonic(), local_dir, remote_dir, tuple(exclude)))
        self.writing.append(remote_dir)
        self.most = max(self.most, len(self.writing))
        try:
            if act := self.acts.get(remote_dir):
                return await act()
            await self.clock.sleep(self.seconds)
        finally:
            self.writing.remove(remote_dir)
            self.ends.append((self.clock.monotonic(), remote_dir))
        return None

    async def sync_down(
        self, remote_dir: Any, local_dir: Any, *, exclude: Sequence[str] = ()
    ) -> Receipt | None:
        return await self.sync_up(remote_dir, local_dir, exclude=exclude)

    async def delete(self, remote_dir: Any) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.closed = True

    def at(self, target: str) -> list[float]:
        """When syncs of a target began."""
        return [when for when, _, remote, _ in self.calls if remote == target]


class Stage:
    """A scheduler, its syncer and its clock."""

    def __init__(self, place: Path, seconds: float = 1.0) -> None:
        self.place, self.clock = place, FakeClock()
        self.syncer = FakeSyncer(self.clock, seconds)
        self.events: list[Notice] = []
        self.readers: list[asyncio.Task[None]] = []

    def make(self, config: SyncConfig = CONFIG, **more: Any) -> SyncScheduler:
        more = {"clock": self.clock, **more}
        scheduler = SyncScheduler(self.syncer, config, **more)
        self.readers.append(asyncio.create_task(self.read(scheduler.events())))
        return scheduler

    async def read(self, feed: Feed) -> None:
        async for event in feed:
            self.events.append(event)

    @asynccontextmanager
    async def open(
        self, *names: str, config: SyncConfig = CONFIG, **more: Any
    ) -> AsyncIterator[SyncScheduler]:
        """Opened with trials, and drained in the end however long that takes."""
        scheduler = self.make(config, **more)
        await scheduler.__aenter__()
        try:
            for name in names or ("a",):
                self.add(scheduler, name)
            yield scheduler
        except BaseException as exc:
            await self.drive(scheduler.__aexit__(type(exc), exc, None))
            raise
        else:
            await self.drive(scheduler.__aexit__(None, None, None))

    def add(self, scheduler: SyncScheduler, name: str) -> None:
        (self.place / name).mkdir(exist_ok=True)
        scheduler.add(name, local_dir=self.place / name, remote_dir=f"x://{name}", checkpoints="*/")

    def checkpoint_dir(self, trial: str, name: str, data: bytes = b"weights") -> Path:
        made = self.place / trial / name
        made.mkdir(parents=True, exist_ok=True)
        (made / "w").write_bytes(data)
        return made

    async def drive(self, what: Awaitable[T], step: float = 0.25) -> T:
        """Await, while time goes on; real threads get their turns, too."""
        task = asyncio.ensure_future(what)
        with anyio.fail_after(30):
            while not task.done():
                await self.clock.advance(step)
                await asyncio.sleep(0)
                if not task.done():
                    await asyncio.wait({task}, timeout=0.002)
        return await task

    async def until(self, condition: Callable[[], object]) -> None:
        """Give real threads their turns until that is so; no time goes by."""
        with anyio.fail_after(30):
            while not condition():
                await settle()

    async def save(self, scheduler: SyncScheduler, trial: str, name: str, **more: Any) -> Ticket:
        """A checkpoint; hardly any time goes by."""
        made = self.checkpoint_dir(trial, name)
        return await self.drive(scheduler.checkpoint(trial, made, **more), 0.001)

    def told(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]


def forever(clock: FakeClock) -> Callable[[], Awaitable[None]]:
    return lambda: clock.sleep(1e9)


def deaf_until(release: anyio.Event) -> Callable[[], Awaitable[None]]:
    """Does not end when it is cancelled; when again, as at the end of a failed test, it does."""

    async def deaf() -> None:
        try:
            await release.wait()
        except asyncio.CancelledError:
            await release.wait()

    return deaf


def failing(*errors: Exception | None) -> Callable[[], Awaitable[None]]:
    """Fails with each error in turn, the last one from then on; None succeeds."""
    left = list(errors)

    async def act() -> None:
        error = left.pop(0) if len(left) > 1 else left[0]
        if error is not None:
            raise error

    return act


def slow_looks(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """From now on, whether a checkpoint may be one is looked at until the second event.

    The first one says that somebody looks.
    """
    looks, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        looks.set()
        assert go_on.wait(10)

    monkeypatch.setattr("asyncsync.scheduling.checks.check_apart", slow)
    return looks, go_on
