"""What is to be synced, and in which order. No I/O and no clock: every method is told the time.

A method either changes everything that belongs together or, by raising, nothing: none awaits, so
nothing can be interrupted half way.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from math import inf

from .alarms import Alarms
from .due import Decision, Facts, Overlap, Rules, decide, pause_s
from .jobs import Job, Target, Tree, Urgency

__all__ = ["Book"]

_AGE_S = 60.0
_STALE = 64  # entries in line that nobody stands for any more, before they are taken out


class Book:
    """All trees, targets and jobs of a scheduler.

    Args:
        slots: syncs that may run at once.

    Attributes:
        blocked: the targets whose syncer does not end.
        alarms: what takes too long.
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
        self._saved: dict[str, tuple[float, float]] = {}
        self.blocked: dict[str, Target] = {}
        self.alarms = Alarms()
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
        target = self.target(job.target) if job.tree is None else job.tree.target
        self._numbers += 1
        job.number, job.asked_at = self._numbers, now
        overlap = self._overlap(target, job)
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
        target.trial = job.trial
        if job.tree is None:
            if self._newest is not None:
                self._newest[job.trial] = job
            _, target.usual_s = self._saved.get(job.trial, (-inf, 0.0))
        self.alarms.due(target, max(now, job.not_before))
        self._go_on(target, now)
        return decision, displaced

    def _overlap(self, target: Target, job: Job) -> Overlap:
        """By which policy a job is taken in."""
        overlap, running = self.rules.overlap, target.running
        if overlap == "skip":
            return "coalesce" if job.urgency is Urgency.FINAL else overlap
        if job.along or (overlap == "supersede" and running and running.tree is not job.tree):
            return "coalesce"  # what goes the other way is no older version
        return overlap

    def _take_places(self, target: Target, job: Job) -> None:
        """The newest state stands for all that wait to go the same way."""
        for older in [one for one in target.waiting if one.tree is job.tree]:
            job.take_place_of(older)
            job.urgency = min(job.urgency, older.urgency)
            job.asked_at = min(job.asked_at, older.asked_at)
            target.waiting.remove(older)

    def _consider(self, tree: Tree, now: float) -> bool:
        """Whether a tree that has changed is due; if not, when."""
        wait_s = tree.due_at(self.rules.period_s) - now
        target = tree.target
        facts = Facts(False, tree.changed_at < inf, tree.reached, wait_s, target.busy, target.stuck)
        decision = decide(facts, self.rules.overlap)
        if decision in (Decision.START, Decision.HOLD):
            target.trial = tree.trial
            self.alarms.due(target, now)
        if decision is Decision.START:
            job = self.job_of(tree, Urgency.PERIODIC)
            self._numbers += 1
            job.number, job.asked_at = self._numbers, now
            target.waiting.append(job)
            self._stand(target)
            return True
        if decision is Decision.WAIT and tree.reached:
            self._wake_at(now + wait_s, tree)
            return bool(self._timers) and self._timers[0][2] is tree
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

    def saves_at(self, tree: Tree) -> float:
        """When a checkpoint of a trial may start that waits for the period."""
        saved_at, _ = self._saved.get(tree.trial, (-inf, 0.0))
        return max(tree.due_at(self.rules.period_s), saved_at + self.rules.period_s)

    # -- what is to be done

    def starts(self, now: float) -> list[Job]:
        """The jobs that start now; they count as running from here on."""
        self._ring(now)
        found: list[Job] = []
        while self._line and self._running < self.slots and not self.paused:
            key, number, job = heapq.heappop(self._line)
            if key != (now_key := self._key(job)):  # a newer checkpoint has come in a hurry
                heapq.heappush(self._line, (now_key, number, job))
                continue
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

    def next_at(self) -> float:
        """When to look again although nothing has happened; inf: never."""
        return self._timers[0][0] if self._timers else inf

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
        tree, target = job.tree, self.target_of(job)
        target.usual_s, target.reason = now - job.started_at, ""
        if job in target.waiting:  # it had been cancelled, and was to be done again
            target.waiting.remove(job)
        target.told.clear()
        if tree is not None:
            tree.succeeded_at, tree.failures, tree.rests_until = job.started_at, 0, -inf
            tree.moving_since = inf
            tree.timed = False  # what it waited for before does not matter any more
        else:
            self._saved[job.trial] = job.started_at, target.usual_s
        self._free(job, now)

    def failed(
        self, job: Job, now: float, *, again: bool, wait_s: float = 0.0, reason: str = "?"
    ) -> None:
        """A job has failed.

        Args:
            again: it is tried again, after a pause of at least `wait_s`.
            reason: why, for an alarm.
        """
        self.target_of(job).reason = reason
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
        newer = next((one for one in waiting if one.tree is job.tree), None)
        if newer is not None and self.rules.overlap != "queue":
            newer.take_place_of(job)
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
        self.alarms.due(target, job.asked_at)

    def unstuck(self, target: Target, now: float) -> None:
        """It has ended after all."""
        target.stuck = False
        self.blocked.pop(target.name, None)
        self._calm(target)
        self._go_on(target, now)
        self._tidy(target)

    def withdraw(self, jobs: Iterable[Job], now: float) -> None:
        """These shall not start any more."""
        for job in jobs:
            target = self.target_of(job)
            if job in target.waiting:
                target.waiting.remove(job)
                self._calm(target)
                self._go_on(target, now)
            self._tidy(target)

    def revoke(self, job: Job, now: float) -> None:
        """Nobody wants this one any more; but somebody does those whose place it has taken."""
        target = self.target_of(job)
        for newer in target.jobs():
            if job in newer.joined:
                newer.joined.remove(job)
        older, job.joined = job.joined, []
        if job in target.waiting:
            target.waiting.remove(job)
        if older:
            newest = max(older, key=lambda one: one.number)
            newest.joined = [one for one in older if one is not newest]
            self._return(newest)
        self._calm(target)
        self._go_on(target, now)
        self._tidy(target)

    def forget(self, tree: Tree, now: float) -> None:
        """A trial is over: its tree is not looked at any more, nor synced unasked."""
        tree.target.trees.remove(tree)
        tree.changed_at = inf
        waiting = tree.target.waiting
        self.withdraw([j for j in waiting if j.tree is tree and j.urgency is Urgency.PERIODIC], now)
        self._saved.pop(tree.trial, None)
        self._calm(tree.target)
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
        if job.tree is not None:
            return job.tree.target
        return self.targets.get(job.target) or Target(job.target)  # of what is over: nothing there

    def _free(self, job: Job, now: float) -> None:
        target = self.target_of(job)
        assert target.running is job, "what ends has been running"
        target.running = None
        self._running -= 1
        self._calm(target)
        self._go_on(target, now)
        self._tidy(target)

    def _calm(self, target: Target) -> None:
        """Nothing is late there but what runs, what waits, and a tree whose last sync failed."""
        if not (target.trees and target.reason):
            jobs = target.jobs()
            asked = (j.asked_at if j.failures else max(j.asked_at, j.not_before) for j in jobs)
            target.due_since = min(asked, default=inf)

    def _tidy(self, target: Target) -> None:
        """A checkpoint is written once, and a trial that is over is not written again."""
        if not target.trees and not target.busy and not target.stuck:
            self.targets.pop(target.name, None)

    def _go_on(self, target: Target, now: float) -> None:
        if target.stuck or target.running is not None:
            return
        if not target.waiting:
            for tree in target.trees:
                if tree.changed_at < inf and not target.busy:
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
            if len(self._line) > _STALE + 2 * len(self.targets):
                heads = {id(t.waiting[0]) for t in self.targets.values() if t.waiting}
                self._line = [entry for entry in self._line if id(entry[2]) in heads]
                heapq.heapify(self._line)

    def _key(self, job: Job) -> tuple[float, float]:
        """Urgent ones first; but who has waited long enough is before all who came later."""
        if self._newest is None:
            return job.asked_at + _AGE_S * job.urgency, 0
        older = job.tree is None and self._newest.get(job.trial) is not job
        return older * 2 + (job.tree is not None), job.size_bytes

    def _wake_at(self, when: float, what: Tree | Job) -> None:
        if isinstance(what, Tree):
            what.timed = True
            if what.wakes_at <= when:
                return  # there it is looked at again: one timer for each, however often it changes
            what.wakes_at = when
        elif when == inf:
            return
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, what))

    def _ring(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            when, _, what = heapq.heappop(self._timers)
            if isinstance(what, Tree):
                if when == what.wakes_at:  # else an earlier one has taken its place
                    what.timed, what.wakes_at = False, inf
                    if what.changed_at < inf:
                        self._consider(what, now)
            else:
                target = self.target_of(what)
                if target.waiting and target.waiting[0] is what:
                    self._stand(target)


def _not_moved(tree: Tree) -> None:
    """What was on its way has not arrived."""
    tree.changed_at, tree.moving_since = min(tree.changed_at, tree.moving_since), inf
