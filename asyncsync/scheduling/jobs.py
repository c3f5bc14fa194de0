"""What the book keeps: jobs, the targets that they write, and the trees that make them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import Literal

from ..errors import quote
from ..syncing import Replace

__all__ = ["Direction", "Job", "Target", "Tree", "Urgency"]

Direction = Literal["up", "down"]


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
        replace: another checkpoint of that name.
        along: nobody asked for it: it goes along with a checkpoint, and displaces nothing.
        still: it fails when its source changes while it is read.
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
    replace: Replace = False
    along: bool = False
    still: bool = False
    number: int = 0
    version: int = 0
    size_bytes: int = 0
    asked_at: float = 0.0
    started_at: float = 0.0
    not_before: float = 0.0
    failures: int = 0
    joined: list[Job] = field(default_factory=list)

    @property
    def words(self) -> str:
        """From where to where, for people."""
        return f"{quote(self.source)} to {quote(self.target)}"

    def queued_s(self, until: float) -> float:
        """How long it has waited for its turn, not counting when it was not to start yet."""
        return max(0.0, until - max(self.asked_at, self.not_before))

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
        trial: of what was asked for last.
        stuck: what ran there was cancelled and has not ended.
        trees: those that go there, or come from there.
        usual_s: what the last transfer took.
        due_since: when something was due there that is not done; inf: nothing is.
        reason: what failed last, until a sync succeeds.
        told: when which alarm was raised last, until then.
        watched: it is going to be looked at whether it is late.
    """

    name: str
    trial: str = ""
    running: Job | None = None
    waiting: deque[Job] = field(default_factory=deque)
    stuck: bool = False
    trees: list[Tree] = field(default_factory=list)
    usual_s: float = 0.0
    due_since: float = inf
    reason: str = ""
    told: dict[str, float] = field(default_factory=dict)
    watched: bool = False

    @property
    def busy(self) -> bool:
        return self.running is not None or bool(self.waiting)

    def jobs(self) -> list[Job]:
        """What runs or waits there."""
        return [*self.waiting, *([self.running] if self.running is not None else ())]


@dataclass(eq=False, slots=True, kw_only=True)
class Tree:
    """A tree in one direction, and what is known of how fresh its copy is.

    Attributes:
        delete: what is gone from the source goes from its copy.
        version: counts what was reported.
        changed_at: when the oldest change came that no sync has begun to move; inf: there is none.
        moving_since: the same of what a sync is moving.
        succeeded_at: when the last sync started that succeeded.
        rests_until: after a failure.
        failures: in a row.
        timed: it is looked at again without a report.
        wakes_at: when, or before; inf: there is no timer for it.
    """

    trial: str
    source: str
    target: Target
    direction: Direction
    exclude: tuple[str, ...] = ()
    delete: bool = True
    iterations: float | None = 0
    reached: bool = False
    version: int = 0
    changed_at: float = inf
    moving_since: float = inf
    succeeded_at: float = -inf
    rests_until: float = -inf
    failures: int = 0
    timed: bool = False
    wakes_at: float = inf

    def due_at(self, period_s: float) -> float:
        """When a sync that nobody asked for may start."""
        if self.succeeded_at == -inf:
            return self.rests_until  # whatever the period: it may be endless
        return max(self.succeeded_at + period_s, self.rests_until)
