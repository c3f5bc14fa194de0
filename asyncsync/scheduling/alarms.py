"""What takes too long, and why. Pure: no clock, every method is told the time."""

from __future__ import annotations

import heapq
from math import inf
from typing import NamedTuple

from .jobs import Target
from .values import Why

__all__ = ["Alarms", "Late"]

_LEAST_S = 10.0


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
        return self._looks[0][0] if self._looks else inf

    def ring(self, now: float) -> list[Late]:
        """Those that are late, each once for each reason."""
        found: list[Late] = []
        while self._looks and self._looks[0][0] <= now:
            target = heapq.heappop(self._looks)[2]
            target.watched = False
            if target.due_since == inf:
                continue
            at = target.due_since + _patience_s(target)
            if at <= now:
                at = now + _LEAST_S
                why = _why(target, now)
                if why is not None and is_news(target, why):
                    found.append(Late(target, why))
            self._look(target, at)
        return found

    def _look(self, target: Target, at: float) -> None:
        target.watched = True
        self._numbers += 1
        heapq.heappush(self._looks, (at, self._numbers, target))


def is_news(target: Target, why: Why) -> bool:
    """Whether that was not said of it yet; from here on it was."""
    if why in target.told or (why == "slow" and "stalled" in target.told):
        return False
    target.told.add(why)
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
