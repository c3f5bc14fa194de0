"""Who reads a commit from where, when many want it at once. Pure: every method is told the time.

The origin (the head itself, or the cloud) is read about once; whoever has read the commit gives it
to others, two at a time. So what the origin sends does not grow with the number of readers, and
with each round three times as many have it as before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["ORIGIN", "Holder", "Turn", "Turns"]


class Holder(NamedTuple):
    """Somebody who gives a commit to others: how to reach it (a secret), and its name there."""

    line: str
    tree: str


ORIGIN = Holder("", "")
"""Where a turn is that does not lead to another reader."""

_PER_HOLDER = 2
_LEASE_S = 30.0  # readers say that they are alive more often than that
_HOLDS_S = 900.0  # how long a copy is believed to be where somebody has said
_MOST_COMMITS = 1000
_MOST_READERS = 10_000  # in all, as the next one
_MOST_HOLDERS = 2_000  # 8 KiB each


class Turn(NamedTuple):
    """Where to read; None: nowhere yet, ask again."""

    source: Holder | None


@dataclass(slots=True)
class _Reading:
    """A reader at work, and until when it is believed to be."""

    source: Holder
    until: float


@dataclass(slots=True)
class _Commit:
    """Of one commit.

    Attributes:
        holders: who gives it to others, and until when that is believed.
        readers: by whom it is being read.
    """

    holders: dict[Holder, float] = field(default_factory=dict)
    readers: dict[str, _Reading] = field(default_factory=dict)

    def expire(self, now: float) -> None:
        """Forget who has not been heard of."""
        self.holders = {who: until for who, until in self.holders.items() if until > now}
        self.readers = {who: one for who, one in self.readers.items() if one.until > now}


class Turns:
    """Gives out turns for every commit by its identity; forgets those of old.

    There are bounds for all commits together. Beyond them everybody reads at the origin: whoever
    makes up readers and copies costs the head neither memory nor time, and nobody waits for them.
    """

    def __init__(self) -> None:
        self._commits: dict[str, _Commit] = {}

    def ask(self, identity: str, reader: str, now: float) -> Turn:
        """A turn, or the one that this reader has already, for another while."""
        commit = self._commit(identity)
        commit.expire(now)
        if (mine := commit.readers.get(reader)) is not None:
            mine.until = now + _LEASE_S
            return Turn(mine.source)
        if self._is_full(now, _MOST_READERS, lambda one: len(one.readers)):
            return Turn(ORIGIN)
        loads = Counter(one.source for one in commit.readers.values())
        free = [holder for holder in commit.holders if loads[holder] < _PER_HOLDER]
        source = min(free, key=loads.__getitem__, default=None)
        if not commit.holders and not loads[ORIGIN]:
            source = ORIGIN
        if source is not None:
            commit.readers[reader] = _Reading(source, now + _LEASE_S)
        return Turn(source)

    def done(self, identity: str, reader: str, holder: Holder, now: float) -> None:
        """That reader has the commit, and gives it to others unless it is at ORIGIN for them."""
        commit = self._commit(identity)
        commit.readers.pop(reader, None)
        if holder == ORIGIN:
            return
        full = self._is_full(now, _MOST_HOLDERS, lambda one: len(one.holders))
        if holder in commit.holders or not full:
            commit.holders[holder] = now + _HOLDS_S

    def failed(self, identity: str, reader: str, now: float) -> None:
        """Where that reader was sent, it did not get it; nobody else is sent there."""
        commit = self._commit(identity)
        commit.expire(now)
        mine = commit.readers.pop(reader, None)
        if mine is not None and mine.source != ORIGIN:
            commit.holders.pop(mine.source, None)

    def _is_full(self, now: float, most: int, count: Callable[[_Commit], int]) -> bool:
        """Whether there are so many of them in all, without those of old."""
        if sum(map(count, self._commits.values())) < most:
            return False
        for commit in self._commits.values():
            commit.expire(now)
        return sum(map(count, self._commits.values())) >= most

    def _commit(self, identity: str) -> _Commit:
        found = self._commits.pop(identity, None) or _Commit()
        self._commits[identity] = found
        if len(self._commits) > _MOST_COMMITS:
            del self._commits[next(iter(self._commits))]
        return found
