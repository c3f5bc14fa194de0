"""Who is taken for dead: records that were seen unchanged for too long."""

from __future__ import annotations

from math import inf

from ...clock import Clock

__all__ = ["TTL_S", "Sightings"]

TTL_S = 60.0
"""A record that we saw unchanged for so long, on our own monotonic clock, is abandoned."""


class Sightings:
    """Since when each record has been seen unchanged: tells an abandoned attempt from a slow one.

    Pure but for the clock, which is this machine's own: no two clocks are ever compared.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[str, float]] = {}

    def left_s(self, tree: str, tag: str) -> float:
        """Seconds until the record `tag` of `tree` counts as abandoned; at most 0: now."""
        now = self._clock.monotonic()
        if self._seen.get(tree, ("", 0.0))[0] != tag:
            self._seen[tree] = (tag, now)
        return self._seen[tree][1] + TTL_S - now

    def expire(self, tree: str, tag: str) -> None:
        """The record `tag` of `tree` counts as abandoned, by what else is known of it."""
        self._seen[tree] = (tag, -inf)

    def forget(self, tree: str) -> None:
        """Nobody is waiting for this tree any more."""
        self._seen.pop(tree, None)
