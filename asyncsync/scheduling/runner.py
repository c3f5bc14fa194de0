"""Does what the book says: starts syncs, notes how they end, and tells who waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from math import inf

import anyio
import anyio.abc

from ..clock import Clock
from ..concurrency import settled
from ..errors import AsyncSyncError, ConfigError, TransientError
from ..events import Event, Observer, Stalled
from ..syncing import Receipt, within
from . import reasons
from .alarms import is_news
from .book import Book
from .due import Decision, is_transient, retry_after_s
from .jobs import Job, Target
from .ledger import Ledger, is_same
from .running import Attempt, Take
from .ticket import Ticket
from .values import (
    Alarm,
    Blocked,
    Dropped,
    Failed,
    Same,
    Started,
    Synced,
    Watcher,
    Why,
    text_of,
)

__all__ = ["Runner"]

_ATTEMPTS = 3
_CLOSE_S = 60.0


class _Hold:
    """A checkpoint whose snapshot is being made, or held.

    Attributes:
        over: its sync needs it no more.
        asked: the book has the job.
    """

    def __init__(self, ticket: Ticket) -> None:
        self.ticket, self.scope = ticket, anyio.CancelScope()
        self.over, self.asked = anyio.Event(), False


class Runner:
    """The task of a scheduler, and all tasks below it.

    Args:
        call: does a job; its events are told to the second argument.
        timeout_s: that one attempt may take.
        tell: hears of everything.

    Attributes:
        closed: nothing starts any more.
        failure: of our own, which ended it.
    """

    def __init__(
        self,
        book: Book,
        ledger: Ledger,
        call: Callable[[Job, Observer], Awaitable[Receipt | None]],
        timeout_s: float,
        clock: Clock,
        tell: Watcher,
    ) -> None:
        self._book, self._ledger, self._call = book, ledger, call
        self._timeout_s, self._clock, self._tell = timeout_s, clock, tell
        self.closed = True
        self.failure: BaseException | None = None
        self._attempts: dict[Job, Attempt] = {}
        self._stopped: dict[Job, str] = {}  # attempts that did not stop by themselves, and why
        self._tickets: dict[Job, Ticket] = {}
        self._trials: dict[str, set[Ticket]] = {}
        self._holds: dict[Job, _Hold] = {}
        self._woken, self._changed = anyio.Event(), anyio.Event()
        self._waiters: dict[str, anyio.Event] = {}
        self._group: anyio.abc.TaskGroup
        self._supervisor: asyncio.Task[None] | None = None

    # -- life

    async def open(self) -> None:
        """Begin to start what is due.

        Raises:
            ConfigError: it has been opened before.
        """
        if self._supervisor is not None:
            raise ConfigError("this SyncScheduler has been entered before; make a new one")
        ready = anyio.Event()
        self._supervisor = asyncio.create_task(self._supervise(ready))
        self._supervisor.add_done_callback(self._died)
        self.closed = False
        try:
            await ready.wait()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Start nothing more, stop what runs, and wait until it has ended or is stuck."""
        self.closed = True
        if self._supervisor is not None and not self._supervisor.done():
            self.give_up(reasons.left)
            self._supervisor.cancel()
            await settled(self._supervisor, _CLOSE_S)  # attempts have their grace, by its clock

    async def _supervise(self, ready: anyio.Event) -> None:
        """Start what is due, now and whenever something has happened."""
        async with anyio.create_task_group() as self._group:
            ready.set()
            while True:
                self._woken = anyio.Event()
                now = self._clock.monotonic()
                for job in self._book.starts(now):
                    self._attempts[job] = self._attempt(job)  # from here on it can be stopped
                    self._group.start_soon(self._run, job)
                for target, why in self._book.alarms.ring(now):
                    self._raise_alarm(target, why, now)
                at = min(self._book.next_at(), self._book.alarms.next_at())
                if at == inf:
                    await self._woken.wait()
                else:
                    await within(self._clock, at - now, self._woken.wait)

    def wake(self) -> None:
        """Something has happened."""
        self._woken.set()
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _died(self, supervisor: asyncio.Task[None]) -> None:
        """Nobody waits for ever for what nobody does any more."""
        self.closed = True
        self.failure = None if supervisor.cancelled() else supervisor.exception()
        left = TransientError("not done, because the scheduler has ended; the next start goes on")
        left.__cause__ = self.failure
        for ticket in set(self._tickets.values()).union(*self._trials.values()):
            ticket._end(None, left)
        for kept in (self._tickets, self._trials, self._attempts):
            kept.clear()
        self._all_look_again()
        self.wake()

    def raise_failure(self) -> None:
        """TransientError if it has ended by an error of its own."""
        if self.failure is not None:
            raise TransientError(
                f"the scheduler has ended by {self.failure!r}; open a new one: what was not "
                "durable goes on there"
            ) from self.failure

    # -- alarms

    def _raise_alarm(
        self, target: Target, why: Why, now: float, path: str = "", part: int | None = None
    ) -> None:
        job = target.running or next(iter(target.waiting), None)
        queued_s = 0.0
        if job is not None:
            queued_s = job.queued_s(job.started_at if job is target.running else now)
        self._tell(
            Alarm(
                trial=target.trial,
                target=target.name,
                why=why,
                late_s=now - target.due_since,
                queued_s=queued_s,
                path=path,
                part=part,
                reason=target.reason,
            )
        )

    def _hear(self, job: Job, event: Event) -> None:
        """What a sync tells while it runs."""
        target, now = self._book.target_of(job), self._clock.monotonic()
        if isinstance(event, Stalled) and target.running is job and is_news(target, "stalled", now):
            self._raise_alarm(target, "stalled", now, event.path, event.part)

    # -- asking

    def ask(self, job: Job, ticket: Ticket | None = None) -> Ticket:
        """Take in a job that somebody waits for."""
        ticket = ticket or Ticket(job.words)
        self._tickets[job] = ticket
        self._trials.setdefault(job.trial, set()).add(ticket)
        decision, displaced = self._book.ask(job, self._clock.monotonic())
        if decision is Decision.DROP:
            error = reasons.skipped(job)
            if job.tree is None:
                self._ledger.failed(job, error)
            self._settle(job, None, error)
            self._tell(Dropped(trial=job.trial, target=job.target))
        if decision is Decision.HOLD:
            self._look_again(job.trial)
        if displaced is not None:
            self._stop_attempt(displaced, "displaced", reasons.superseded(displaced))
        self.wake()
        return ticket

    async def save(self, job: Job, ticket: Ticket, take: Take) -> None:
        """Ask for a job from a snapshot that `take` makes; returns when its source may change.

        Cancelled before that, the job is revoked.

        Raises:
            TransientError: the scheduler was left meanwhile.
        """
        if self.closed:
            raise reasons.left(job)
        hold = self._holds[job] = _Hold(ticket)
        self._trials.setdefault(job.trial, set()).add(ticket)
        self._group.start_soon(self._hold, job, hold, take)
        try:
            await ticket._freed()
        except BaseException:
            if not ticket._is_free:  # else it has taken the place of an older one already
                hold.scope.cancel()
            raise

    async def _hold(self, job: Job, hold: _Hold, take: Take) -> None:
        """Keep a snapshot for as long as its sync needs it."""
        error: Exception = reasons.left(job)
        try:
            with hold.scope:
                async with take() as held:
                    hold.asked = True
                    if held is not None:
                        job.source = held.path
                        job.size_bytes = sum(f.size_bytes for f in held.originals.values())
                    self.ask(job, hold.ticket)
                    if held is not None:
                        self._release(job.joined)  # nobody reads what is older any more
                        hold.ticket._let_go()
                    try:
                        await hold.over.wait()
                    except BaseException:
                        self._revoke(job)
                        with anyio.CancelScope(shield=True):
                            await hold.over.wait()  # nobody reads the snapshot any more
                        raise
        except Exception as exc:  # noqa: BLE001 - whoever asked for it hears of it
            error = exc
        finally:
            self._holds.pop(job, None)
            if job not in self._tickets:  # else another has taken its place, and settles it
                hold.ticket._end(None, error)
                self._forget(job, hold.ticket)
            self.wake()

    def _release(self, jobs: Sequence[Job]) -> None:
        """The snapshots of these are needed no more, unless one is being read."""
        for job in jobs:
            if job not in self._attempts and (hold := self._holds.get(job)) is not None:
                hold.over.set()

    def _revoke(self, job: Job) -> None:
        """Whoever asked for it has gone: it is not missed."""
        self._book.revoke(job, self._clock.monotonic())
        if job in self._attempts:
            self._stop_attempt(job, "revoked", reasons.left(job))
        else:
            self._settle(job, None, reasons.left(job))
            self.wake()

    def _stop_attempt(self, job: Job, why: str, error: AsyncSyncError) -> None:
        if attempt := self._attempts.get(job):
            self._stopped[job] = why
            attempt.stop(error)

    # -- waiting, and giving up

    async def wait_for(self, trial: str) -> None:
        """Wait until everything that was asked for a trial has ended.

        What stands behind a syncer that does not end has failed.
        """
        while self._trials.get(trial) or any(job.trial == trial for job in self._attempts):
            held_up = [job for job in self._book.held_up() if job.trial == trial]
            if held_up:
                self.withdraw(held_up, reasons.held_up)
            else:  # woken by what concerns this one: of ten thousand, each would wake all others
                await self._waiters.setdefault(trial, anyio.Event()).wait()

    async def idle(self) -> None:
        """Wait until all that is on its way now has ended, or stands behind a stuck syncer."""
        pending = {*self._tickets, *self._attempts, *self._holds}
        while not self.closed:
            pending &= {*self._tickets, *self._attempts, *self._holds}
            held_up = {one for job in self._book.held_up() for one in job.with_joined()}
            left = pending - held_up
            if not left:
                return
            if held_up and all(job in self._holds and not self._holds[job].asked for job in left):
                # They may wait for the room that the snapshots of those take.
                self.withdraw(self._book.held_up(), reasons.held_up)
            else:
                await self._changed.wait()

    def give_up(self, why: Callable[[Job], AsyncSyncError]) -> None:
        """Start nothing that waits, and stop what runs."""
        for job, hold in list(self._holds.items()):
            if not hold.asked:
                self._ledger.failed(job, why(job))
                hold.ticket._end(None, why(job))
                hold.scope.cancel()
        self.withdraw(self._book.waiting(), why)
        for job in self._book.running():
            self._stop_attempt(job, "given up", why(job))

    def withdraw(self, jobs: Sequence[Job], why: Callable[[Job], AsyncSyncError]) -> None:
        """These shall not start any more, and are lost for that reason."""
        self._book.withdraw(jobs, self._clock.monotonic())
        for job in jobs:
            self._fail(job, why(job))
        self.wake()

    # -- one sync

    def _attempt(self, job: Job) -> Attempt:
        return Attempt(
            lambda: self._call(job, partial(self._hear, job)),
            job.words,
            self._clock,
            lambda: self._unstuck(job),
        )

    async def _run(self, job: Job) -> None:
        attempt = self._attempts[job]
        iteration = job.tree.iterations if job.tree is not None else None
        queued_s, urgency = job.queued_s(job.started_at), job.urgency.name.lower()
        self._tell(Started(trial=job.trial, target=job.target, urgency=urgency, queued_s=queued_s))
        try:
            await attempt.run(self._timeout_s)
        finally:
            self._attempts.pop(job, None)
            self._ended(job, attempt, iteration)

    def _ended(self, job: Job, attempt: Attempt, iteration: float | None) -> None:
        """Take note of how a sync ended. Nothing here waits."""
        now = self._clock.monotonic()
        why = self._stopped.pop(job, "")
        if attempt.stuck:
            self._book.stuck(job, now)
            self._all_look_again()  # any of them may stand behind it
            self._tell(Blocked(trial=job.trial, target=job.target))
        elif attempt.succeeded:
            self._book.succeeded(job, now)
            self._succeed(job, attempt.receipt, now - job.started_at, iteration)
        elif why in ("displaced", "revoked"):
            self._book.dropped(job, now)
        else:
            self._failed(job, attempt.error or reasons.left(job), now, final=bool(why))
        if why == "revoked":
            self._settle(job, attempt.receipt, attempt.error)
        elif attempt.stuck and why != "displaced":
            self._fail(job, attempt.error or reasons.left(job))
        if why == "displaced":
            self._release_displaced(job)
        self._look_again(job.trial)
        self.wake()

    def _release_displaced(self, job: Job) -> None:
        """Its snapshot is needed no more, unless the newer one may still be taken back."""
        for newer in self._book.target_of(job).jobs():
            hold = self._holds.get(newer)
            if job in newer.joined and hold is not None and hold.ticket._is_free:
                self._release([job])

    def _failed(self, job: Job, error: Exception, now: float, *, final: bool) -> None:
        # Of what nobody asked for, the next attempt comes by itself.
        more = job in self._tickets and job.failures + 1 < _ATTEMPTS
        again = more and not (final or self.closed) and is_transient(error)
        wait_s = retry_after_s(error)
        self._book.failed(job, now, again=again, wait_s=wait_s, reason=text_of(error))
        if not again:
            self._fail(job, error)
        self._tell(
            Failed(
                trial=job.trial,
                target=job.target,
                reason=text_of(error),
                failures=job.failures,
                again=again,
                wait_s=job.not_before - now if again else 0.0,
            )
        )

    def _fail(self, job: Job, error: Exception) -> None:
        for one in (*job.joined, job):  # the newest says which step it was
            self._ledger.failed(one, error)
        self._settle(job, None, error)

    def _succeed(
        self, job: Job, receipt: Receipt | None, seconds: float, iteration: float | None
    ) -> None:
        before = self._ledger.saved(job, receipt, iteration)
        self._settle(job, receipt, None)
        self._tell(Synced(trial=job.trial, target=job.target, receipt=receipt, seconds=seconds))
        if before is not None and is_same(before, job, receipt):
            identity = receipt.identity if receipt else ""
            self._tell(
                Same(trial=job.trial, target=job.target, before=before.target, identity=identity)
            )

    def _settle(self, job: Job, receipt: Receipt | None, error: Exception | None) -> None:
        """Tell everybody who waits for a job, or for one whose place it has taken."""
        for one in job.with_joined():
            if (ticket := self._tickets.pop(one, None)) is not None:
                ticket._end(receipt, error)
                self._forget(one, ticket)
            self._release([one])

    def _forget(self, job: Job, ticket: Ticket) -> None:
        """A ticket has ended; whoever waits for its trial looks again."""
        mine = self._trials.get(job.trial, set())
        mine.discard(ticket)
        if not mine:
            self._trials.pop(job.trial, None)
            self._look_again(job.trial)

    def _look_again(self, trial: str) -> None:
        """Whoever waits for a trial looks whether it has all it waits for."""
        if (waiter := self._waiters.pop(trial, None)) is not None:
            waiter.set()

    def _all_look_again(self) -> None:
        for trial in list(self._waiters):
            self._look_again(trial)

    def _unstuck(self, job: Job) -> None:
        """What was left behind has ended after all."""
        self._book.unstuck(self._book.target_of(job), self._clock.monotonic())
        self._tell(Blocked(trial=job.trial, target=job.target, free=True))
        self.wake()
