"""What takes too long, and why. Pure: no clock, every method is told the time."""

from __future__ import annotations

import heapq
from math import ceil, inf
from typing import NamedTuple

from .jobs import Target
from .values import Why

__all__ = ["Alarms", "Late"]

_LEAST_S = 10.0
_AGAIN_S = 3600.0


class Late(NamedTuple):
    """A target to raise an alarm for."""

    target: Target
    why: Why


class Alarms:
    """When to look whether what was due at a target is done."""

    def __init__(self) -> None:
        self._looks: list[tuple[float, int, Target]] = []
        self._numbers = 0

    def due(self, target: Target, since: float) -> None:
        """Something is due there; no effect if it was before."""
        target.due_since = min(target.due_since, since)
        if not target.watched:
            self._look(target, target.due_since + _patience_s(target))

    def next_at(self) -> float:
        """When to look."""
        while self._looks and self._looks[0][2].due_since == inf:
            heapq.heappop(self._looks)[2].watched = False  # done: nobody need wake up for it
        return self._looks[0][0] if self._looks else inf

    def ring(self, now: float) -> list[Late]:
        """Those that are late, each once an hour for each reason."""
        found: list[Late] = []
        while self._looks and self._looks[0][0] <= now:
            target = heapq.heappop(self._looks)[2]
            target.watched = False
            if target.due_since == inf:
                continue
            at = target.due_since + _patience_s(target)
            if at <= now:
                at = ceil(now + _LEAST_S)  # with others that are late, too
                why = _why(target, now)
                if why is not None and is_news(target, why, now):
                    found.append(Late(target, why))
            self._look(target, at)
        return found

    def _look(self, target: Target, at: float) -> None:
        target.watched = True
        self._numbers += 1
        heapq.heappush(self._looks, (at, self._numbers, target))


def is_news(target: Target, why: Why, now: float) -> bool:
    """Whether that was not said of it within the hour; from here on it was."""
    said: tuple[Why, ...] = ("slow", "stalled") if why == "slow" else (why,)  # that says more
    if any(now - target.told.get(one, -inf) < _AGAIN_S for one in said):
        return False
    target.told[why] = now
    return True


def _patience_s(target: Target) -> float:
    """One transfer, and as much again, before anybody is called."""
    return target.usual_s + max(target.usual_s, _LEAST_S)


def _why(target: Target, now: float) -> Why | None:
    if target.stuck:
        return "blocked"
    if target.reason:
        return "failing"
    if target.running is not None:
        late = now - target.running.started_at >= _patience_s(target)
        return "slow" if late else None
    if target.waiting and target.waiting[0].not_before <= now:
        return "waiting"
    return None
