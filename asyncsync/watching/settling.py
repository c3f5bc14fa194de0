"""Which checkpoints are complete, as far as that can be seen from outside. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from .looks import Seen

__all__ = ["Ready", "Settling"]

_LONGEST_S = 600.0


class Ready(NamedTuple):
    """A checkpoint to save, if it still looks like that."""

    path: str
    signature: str


@dataclass(slots=True)
class _State:
    """Since when it has looked like that, and how it looked when it was saved."""

    seen: Seen
    since: float
    saved: str = ""
    before: str = ""
    failures: int = 0

    def ready_at(self, settle_s: float) -> float:
        if self.seen.signature in ("", self.saved):
            return inf
        if self.seen.finished and not self.saved and not self.failures:
            return self.since
        return self.since + max(settle_s, min(_LONGEST_S, settle_s * 2.0 ** min(self.failures, 30)))


class Settling:
    """Follows checkpoints from look to look.

    Args:
        settle_s: how long one must not have changed.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._states: dict[str, _State] = {}

    def look(self, seen: Mapping[str, Seen], now: float) -> list[Ready]:
        """Take note of how all of them look; returns those to be saved now, each once."""
        for path in self._states.keys() - seen.keys():
            del self._states[path]
        ready: list[Ready] = []
        for path, one in seen.items():
            state = self._states.setdefault(path, _State(one, now))
            if state.seen != one:
                state.seen, state.since = one, now
            if state.ready_at(self._settle_s) <= now:
                ready.append(Ready(path, one.signature))
                state.before, state.saved = state.saved, one.signature
        return ready

    def failed(self, path: str, now: float) -> None:
        """It could not be saved: it is ready again after a while, a longer one each time."""
        if (state := self._states.get(path)) is not None:
            state.saved, state.since = state.before, now
            state.failures += 1

    def changed(self, path: str) -> None:
        """It changed before it could be saved: it has to settle again."""
        if (state := self._states.get(path)) is not None:
            state.saved = state.before

    def hurry(self) -> None:
        """What has failed needs no pause any more."""
        for state in self._states.values():
            state.failures = 0

    def succeeded(self, path: str) -> None:
        """It was saved."""
        if (state := self._states.get(path)) is not None:
            state.failures = 0

    def next_at(self) -> float:
        """When the next one is ready, if it does not change."""
        return min((s.ready_at(self._settle_s) for s in self._states.values()), default=inf)

    @property
    def unsettled(self) -> list[str]:
        """Those that are not saved as they are."""
        return [
            path
            for path, state in self._states.items()
            if state.seen.signature not in ("", state.saved)
        ]
