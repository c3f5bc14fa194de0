"""What is to be synced, and in which order. No I/O and no clock: every method is told the time.

A method either changes everything that belongs together or, by raising, nothing: none awaits, so
nothing can be interrupted half way.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import Literal

from .due import Decision, Facts, Rules, decide, pause_s

__all__ = ["Book", "Direction", "Job", "Target", "Tree", "Urgency"]

Direction = Literal["up", "down"]

_AGE_S = 60.0


class Urgency(IntEnum):
    """Who goes first, unless another has waited for a minute longer for each step between them."""

    FINAL = 0
    FORCED = 1
    PERIODIC = 2


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """One sync: what was asked for, and what has become of it.

    Attributes:
        source, target: from where to where; of a download, the remote is the source.
        tree: the tree it brings up to date; None for a checkpoint, which has its own target.
        number: the order in which jobs came.
        version: of the tree, or of the trial's checkpoints: a later one is newer.
        size_bytes: if it is known; what is small goes first when time is short.
        failures: attempts that failed.
        not_before: of the next attempt.
        joined: jobs whose place this one has taken: what becomes of it, becomes of them.
    """

    trial: str
    source: str
    target: str
    urgency: Urgency
    tree: Tree | None = None
    direction: Direction = "up"
    exclude: tuple[str, ...] = ()
    step: int | None = None
    number: int = 0
    version: int = 0
    size_bytes: int = 0
    asked_at: float = 0.0
    started_at: float = 0.0
    not_before: float = 0.0
    failures: int = 0
    joined: list[Job] = field(default_factory=list)

    def with_joined(self) -> Iterator[Job]:
        """This one and all whose place it has taken."""
        yield self
        yield from self.joined

    def take_place_of(self, older: Job) -> None:
        """What becomes of this one becomes of that, and of all whose place that had taken."""
        self.joined += [older, *older.joined]
        older.joined = []


@dataclass(eq=False, slots=True)
class Target:
    """A place that one sync at a time may write.

    Attributes:
        stuck: what ran there was cancelled and has not ended.
        trees: those that go there, or come from there.
    """

    name: str
    running: Job | None = None
    waiting: deque[Job] = field(default_factory=deque)
    stuck: bool = False
    trees: list[Tree] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        return self.running is not None or bool(self.waiting)


@dataclass(eq=False, slots=True, kw_only=True)
class Tree:
    """A tree in one direction, and what is known of how fresh its copy is.

    Attributes:
        version: counts what was reported.
        changed_at: when the oldest change came that no sync has begun to move; inf: there is none.
        moving_since: the same of what a sync is moving.
        succeeded_at: when the last sync started that succeeded.
        rests_until: after a failure.
        failures: in a row.
        timed: it is looked at again without a report.
    """

    trial: str
    source: str
    target: Target
    direction: Direction
    exclude: tuple[str, ...] = ()
    iterations: float | None = 0
    reached: bool = False
    version: int = 0
    changed_at: float = inf
    moving_since: float = inf
    succeeded_at: float = -inf
    rests_until: float = -inf
    failures: int = 0
    timed: bool = False

    def due_at(self, period_s: float) -> float:
        """When a sync that nobody asked for may start."""
        return max(self.succeeded_at + period_s, self.rests_until)


class Book:
    """All trees, targets and jobs of a scheduler.

    Args:
        slots: syncs that may run at once.

    Attributes:
        blocked: the targets whose syncer does not end.
        paused: nothing starts.
    """

    def __init__(self, rules: Rules, slots: int) -> None:
        self.rules, self.slots = rules, slots
        self.targets: dict[str, Target] = {}
        self._line: list[tuple[tuple[float, float], int, Job]] = []
        self._newest: dict[str, Job] | None = None  # of each trial's checkpoints, when in a hurry
        self._timers: list[tuple[float, int, Tree | Job]] = []
        self._numbers = 0
        self._running = 0
        self.blocked: dict[str, Target] = {}
        self.paused = False

    # -- what comes in

    def target(self, name: str) -> Target:
        """The target of that name."""
        if (found := self.targets.get(name)) is None:
            found = self.targets[name] = Target(name)
        return found

    def report(self, tree: Tree, now: float) -> bool:
        """A tree has changed. Whether somebody has to look what is to be done, or when."""
        tree.version += 1
        if tree.changed_at == inf:
            tree.changed_at = now
        if tree.timed or not tree.reached:
            return False
        return self._consider(tree, now)

    def ask(self, job: Job, now: float) -> tuple[Decision, Job | None]:
        """Take in a job that somebody waits for.

        Returns:
            What was decided, and a running job that has to be cancelled to make room.
        """
        target = self.target_of(job)
        self._numbers += 1
        job.number, job.asked_at = self._numbers, now
        final = job.urgency is Urgency.FINAL
        overlap = "coalesce" if final and self.rules.overlap == "skip" else self.rules.overlap
        facts = Facts(True, True, True, 0.0, target.busy, target.stuck)
        decision = decide(facts, overlap)
        displaced = None
        if decision is Decision.DROP:
            if job.tree is not None:  # it stays due
                job.tree.changed_at = min(job.tree.changed_at, now)
            return decision, None
        if decision in (Decision.JOIN, Decision.REPLACE) or (
            decision is Decision.HOLD and overlap != "queue"
        ):
            self._take_places(target, job)
        if decision is Decision.REPLACE and (displaced := target.running) is not None:
            job.take_place_of(displaced)
        target.waiting.append(job)
        self._go_on(target, now)
        return decision, displaced

    def _take_places(self, target: Target, job: Job) -> None:
        """The newest state stands for all that wait."""
        for older in target.waiting:
            job.take_place_of(older)
            job.urgency = min(job.urgency, older.urgency)
            job.asked_at = min(job.asked_at, older.asked_at)
        target.waiting.clear()

    def _consider(self, tree: Tree, now: float) -> bool:
        """Whether a tree that has changed is due; if not, when."""
        wait_s = tree.due_at(self.rules.period_s) - now
        target = tree.target
        facts = Facts(False, tree.changed_at < inf, tree.reached, wait_s, target.busy, target.stuck)
        decision = decide(facts, self.rules.overlap)
        if decision is Decision.START:
            job = self.job_of(tree, Urgency.PERIODIC)
            self._numbers += 1
            job.number, job.asked_at = self._numbers, now
            target.waiting.append(job)
            self._stand(target)
            return True
        if decision is Decision.WAIT and tree.reached:
            self._wake_at(now + wait_s, tree)
            return True
        return False  # the end of what runs there asks again

    def job_of(self, tree: Tree, urgency: Urgency) -> Job:
        """A sync of a tree as it is."""
        up = tree.direction == "up"
        return Job(
            trial=tree.trial,
            source=tree.source if up else tree.target.name,
            target=tree.target.name if up else tree.source,
            urgency=urgency,
            tree=tree,
            direction=tree.direction,
            exclude=tree.exclude,
        )

    # -- what is to be done

    def starts(self, now: float) -> list[Job]:
        """The jobs that start now; they count as running from here on."""
        self._ring(now)
        found: list[Job] = []
        while self._line and self._running < self.slots and not self.paused:
            job = heapq.heappop(self._line)[2]
            target = self.target_of(job)
            if job.not_before > now and self._newest is None:
                self._wake_at(job.not_before, job)
                continue
            if target.running is not None or not target.waiting or target.waiting[0] is not job:
                continue  # another has taken its place
            target.waiting.popleft()
            target.running = job
            job.started_at = now
            self._running += 1
            if job.tree is not None:
                job.version = job.tree.version
                job.tree.moving_since = min(job.tree.changed_at, now)
                job.tree.changed_at = inf
            found.append(job)
        return found

    def next_at(self) -> float | None:
        """When to look again although nothing has happened."""
        return self._timers[0][0] if self._timers else None

    def waiting(self) -> list[Job]:
        """All jobs that have not started."""
        return [job for target in self.targets.values() for job in target.waiting]

    def held_up(self) -> list[Job]:
        """Those that wait for a syncer that does not end."""
        return [job for target in self.blocked.values() for job in target.waiting]

    def running(self) -> list[Job]:
        """All jobs that run."""
        return [t.running for t in self.targets.values() if t.running is not None]

    # -- what came of it

    def succeeded(self, job: Job, now: float) -> None:
        """A job is done: its target holds what its source held when it started, or newer."""
        tree = job.tree
        if tree is not None:
            tree.succeeded_at, tree.failures, tree.rests_until = job.started_at, 0, -inf
            tree.moving_since = inf
        self._free(job, now)

    def failed(self, job: Job, now: float, *, again: bool, wait_s: float = 0.0) -> None:
        """A job has failed.

        Args:
            again: it is tried again, after a pause of at least `wait_s`.
        """
        job.failures += 1
        pause = max(wait_s, pause_s(job.failures, self.rules.period_s))
        tree = job.tree
        if tree is not None:
            tree.failures += 1
            _not_moved(tree)
            rest = max(wait_s, pause_s(tree.failures, self.rules.period_s))
            tree.rests_until = now + rest
        if again:
            job.not_before = now + pause
            self._return(job)
        self._free(job, now)

    def _return(self, job: Job) -> None:
        """Back to the head of its line, unless a newer one waits there to take its place."""
        waiting = self.target_of(job).waiting
        if waiting and self.rules.overlap != "queue":
            waiting[0].take_place_of(job)
        else:
            waiting.appendleft(job)

    def dropped(self, job: Job, now: float) -> None:
        """A running job was cancelled, and another may have taken its place."""
        if job.tree is not None:
            _not_moved(job.tree)
        self._free(job, now)

    def stuck(self, job: Job, now: float) -> None:
        """A job was cancelled and does not end: nothing else may write there until it does."""
        target = self.target_of(job)
        target.stuck, self.blocked[target.name] = True, target
        self.dropped(job, now)

    def unstuck(self, target: Target, now: float) -> None:
        """It has ended after all."""
        target.stuck = False
        self.blocked.pop(target.name, None)
        self._go_on(target, now)
        self._tidy(target)

    def withdraw(self, jobs: Iterable[Job], now: float) -> None:
        """These shall not start any more."""
        for job in jobs:
            target = self.target_of(job)
            if job in target.waiting:
                target.waiting.remove(job)
                self._go_on(target, now)
            self._tidy(target)

    def revoke(self, job: Job, now: float) -> None:
        """Nobody wants this one any more; but somebody does those whose place it has taken."""
        if job.joined:
            newest = max(job.joined, key=lambda older: older.number)
            newest.joined = [older for older in job.joined if older is not newest]
            job.joined = []
            self.target_of(job).waiting.appendleft(newest)
        self.withdraw([job], now)

    def forget(self, tree: Tree) -> None:
        """A trial is over: its tree is not looked at any more."""
        tree.target.trees.remove(tree)
        tree.changed_at = inf
        self._tidy(tree.target)

    def hurry(self, *, on: bool) -> None:
        """The newest checkpoint of each trial goes first, small ones before large ones."""
        jobs = [job for job in (*self.waiting(), *self.running()) if job.tree is None]
        jobs.sort(key=lambda job: job.number)
        self._newest = {job.trial: job for job in jobs} if on else None
        self._line.clear()
        for target in self.targets.values():
            if target.waiting:
                self._stand(target)  # also what would have rested for a while

    # -- inside

    def target_of(self, job: Job) -> Target:
        """Where a job stands in line: both directions of a tree in one."""
        return job.tree.target if job.tree is not None else self.target(job.target)

    def _free(self, job: Job, now: float) -> None:
        target = self.target_of(job)
        assert target.running is job, "what ends has been running"
        target.running = None
        self._running -= 1
        self._go_on(target, now)
        self._tidy(target)

    def _tidy(self, target: Target) -> None:
        """A checkpoint is written once, and a trial that is over is not written again."""
        if not target.trees and not target.busy and not target.stuck:
            self.targets.pop(target.name, None)

    def _go_on(self, target: Target, now: float) -> None:
        if target.stuck or target.running is not None:
            return
        if not target.waiting:
            for tree in target.trees:
                if tree.changed_at < inf and not tree.timed and not target.busy:
                    self._consider(tree, now)
        elif target.waiting[0].not_before > now:
            self._wake_at(target.waiting[0].not_before, target.waiting[0])
        else:
            self._stand(target)

    def _stand(self, target: Target) -> None:
        """Put the head of a target's line into the line of all."""
        if target.running is None and not target.stuck:
            job = target.waiting[0]
            heapq.heappush(self._line, (self._key(job), job.number, job))

    def _key(self, job: Job) -> tuple[float, float]:
        """Urgent ones first; but who has waited long enough is before all who came later."""
        if self._newest is None:
            return job.asked_at + _AGE_S * job.urgency, 0
        older = job.tree is None and self._newest.get(job.trial) is not job
        return older * 2 + (job.tree is not None), job.size_bytes

    def _wake_at(self, when: float, what: Tree | Job) -> None:
        if isinstance(what, Tree):
            what.timed = True
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, what))

    def _ring(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            what = heapq.heappop(self._timers)[2]
            if isinstance(what, Tree):
                what.timed = False
                if what.changed_at < inf:
                    self._consider(what, now)
            else:
                target = self.target_of(what)
                if target.waiting and target.waiting[0] is what:
                    self._stand(target)


def _not_moved(tree: Tree) -> None:
    """What was on its way has not arrived."""
    tree.changed_at, tree.moving_since = min(tree.changed_at, tree.moving_since), inf
