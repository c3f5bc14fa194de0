"""Whether a tree is to be synced now. Pure: facts and rules in, a decision out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf, isfinite
from typing import Literal, NamedTuple, get_args

from ..errors import AsyncSyncError, ConfigError, DeadlineError, TransferError, TransientError
from ..syncing import SyncConfig

__all__ = [
    "Decision",
    "Facts",
    "Overlap",
    "Rules",
    "decide",
    "is_transient",
    "pause_s",
    "retry_after_s",
]

Overlap = Literal["coalesce", "queue", "skip", "supersede"]
"""What becomes of a request while its target is being written:

- `coalesce`: it waits, and whatever comes later joins it: one runs, at most one waits.
- `queue`: each one asked for is done, in order.
- `skip`: it is dropped, and says so; what changed stays due.
- `supersede`: what runs is cancelled and awaited, then this one starts.
"""

MIN_ITERATIONS = 2
MIN_SECONDS = 10.0
_FIRST_PAUSE_S = 1.0


class Decision(Enum):
    """What to do about a tree now."""

    START = "start"
    JOIN = "join"
    QUEUE = "queue"
    DROP = "drop"
    REPLACE = "replace"
    WAIT = "wait"
    HOLD = "hold"
    NOTHING = "nothing"


class Facts(NamedTuple):
    """What is known of a tree.

    Attributes:
        forced: somebody asked for this sync: a checkpoint, the end of a trial, a call.
        changed: there is something that no sync has begun to move.
        reached: a threshold is reached, or no numbers were given.
        wait_s: until its period is over, or the pause after a failure; 0 or less: it is over.
        busy: another sync of the same target runs or waits.
        stuck: the last one did not end when it was cancelled.
    """

    forced: bool
    changed: bool
    reached: bool
    wait_s: float
    busy: bool
    stuck: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What decisions go by.

    Attributes:
        period_s: between the starts of two syncs of a tree; reaching it is enough.
        min_iterations, min_seconds: of a trial, before its first sync that nobody asked for;
            either is enough.
        overlap: see `Overlap`.
    """

    period_s: float = 300.0
    min_iterations: int = MIN_ITERATIONS
    min_seconds: float = MIN_SECONDS
    overlap: Overlap = "coalesce"

    def __post_init__(self) -> None:
        if self.overlap not in get_args(Overlap):
            known = ", ".join(get_args(Overlap))
            raise ConfigError(f"overlap is one of {known}, not {self.overlap!r}")

    @classmethod
    def of(
        cls,
        config: SyncConfig,
        environ: Mapping[str, str] = os.environ,
        *,
        overlap: Overlap = "coalesce",
    ) -> Rules:
        """The rules of a configuration, with thresholds that the environment may override.

        Raises:
            ConfigError: a variable is no number, and which one.
        """
        return cls(
            period_s=config.sync_period,
            min_iterations=int(
                _number(
                    environ,
                    ("ASYNCSYNC_MIN_ITERATIONS", "TUNE_NODE_SYNCING_MIN_ITER_THRESHOLD"),
                    MIN_ITERATIONS,
                    whole=True,
                )
            ),
            min_seconds=_number(
                environ,
                ("ASYNCSYNC_MIN_SECONDS", "TUNE_NODE_SYNCING_MIN_TIME_S_THRESHOLD"),
                MIN_SECONDS,
            ),
            overlap=overlap,
        )

    def reached(self, iterations: float | None, seconds: float | None) -> bool:
        """Whether a trial has got far enough; a number that was not given counts as reached."""
        return (
            iterations is None
            or seconds is None
            or iterations >= self.min_iterations
            or seconds >= self.min_seconds
        )


def decide(facts: Facts, overlap: Overlap) -> Decision:
    """The rows of the table in `docs/scheduling.md`, in their order."""
    forced, changed, reached, wait_s, busy, stuck = facts
    if not forced:
        if not changed:
            return Decision.NOTHING
        if not reached or wait_s > 0:
            return Decision.WAIT
    if stuck:
        return Decision.HOLD
    if not busy:
        return Decision.START
    # What nobody asked for displaces nothing and need not be done twice.
    return _ON_OVERLAP[overlap] if forced else Decision.JOIN


_ON_OVERLAP: Mapping[Overlap, Decision] = {
    "coalesce": Decision.JOIN,
    "queue": Decision.QUEUE,
    "skip": Decision.DROP,
    "supersede": Decision.REPLACE,
}


def pause_s(failures: int, period_s: float) -> float:
    """How long a tree rests after so many failures in a row: doubling, at most a period."""
    return min(period_s, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30)) if failures else 0.0


def is_transient(error: Exception) -> bool:
    """Whether another attempt may succeed. What nobody knows may."""
    if isinstance(error, TransferError):
        return all(map(is_transient, error.failures))
    return isinstance(error, TransientError | DeadlineError) or not isinstance(
        error, AsyncSyncError
    )


def retry_after_s(error: Exception) -> float:
    """How long an error of ours asks to wait."""
    wait_s = getattr(error, "retry_after_s", None) if isinstance(error, AsyncSyncError) else None
    return wait_s if isinstance(wait_s, int | float) and 0 <= wait_s < inf else 0.0


def _number(
    environ: Mapping[str, str], names: tuple[str, ...], default: float, *, whole: bool = False
) -> float:
    """The first of the variables that is set."""
    for name in names:
        if (text := environ.get(name)) is None:
            continue
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = -1
        if not (value >= 0 and isfinite(value)):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"{name} is {kind} of at least 0, not {text!r}")
        return value
    return default
