"""What a scheduler tells: events, its status, and what became of a drain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from html import escape
from typing import Literal

from ..errors import AsyncSyncError, quote
from ..syncing import Receipt

__all__ = [
    "Alarm",
    "Blocked",
    "DrainError",
    "DrainReport",
    "Dropped",
    "Durable",
    "Failed",
    "Lost",
    "Missed",
    "Notice",
    "Same",
    "Started",
    "Status",
    "Synced",
    "TrialStatus",
    "Watcher",
    "text_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A sync starts, after it has waited for a slot."""

    trial: str
    target: str
    urgency: str
    queued_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """A sync has succeeded; what its source held when it started is there."""

    trial: str
    target: str
    receipt: Receipt | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A sync has failed; `again` says whether it is tried again, after `wait_s` seconds."""

    trial: str
    target: str
    reason: str
    failures: int
    again: bool
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A request was not followed: its target was being written, and the policy is `skip`."""

    trial: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A syncer does not end although it was cancelled; `free`: now it has, after all."""

    trial: str
    target: str
    free: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Same:
    """A checkpoint has the same bytes as the one before: did the trial learn anything?"""

    trial: str
    target: str
    before: str
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """What is due is not done in the time of two of its transfers: somebody should look.

    Said once for each reason, and again each hour, until a sync of that target succeeds.

    Attributes:
        why: `waiting` for a slot; `slow`: it is on its way; `stalled`: and nothing arrives;
            `failing`, again and again; `blocked` by a syncer that does not end.
        late_s: since it was due.
        queued_s: how much of that it has waited for a slot.
        path, part: of `stalled`: the file that it waits for, and its chunk if there are several.
        reason: of `failing`: what failed last.
    """

    trial: str
    target: str
    why: Why
    late_s: float
    queued_s: float
    path: str = ""
    part: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """Whoever reads the events was too slow: that many older ones are gone."""

    count: int


Why = Literal["waiting", "slow", "stalled", "failing", "blocked"]
Notice = Started | Synced | Failed | Dropped | Blocked | Same | Alarm | Missed
Watcher = Callable[[Notice], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Durable:
    """The newest of its kind that is safe: a trial's directory, or a checkpoint of it."""

    trial: str
    target: str
    step: int | None
    receipt: Receipt | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """What is not safe, and why."""

    trial: str
    target: str
    step: int | None
    error: Exception

    @property
    def reason(self) -> str:
        """The error in one line."""
        return " ".join(text_of(self.error).split())


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What is durable after a drain and what is not.

    Attributes:
        durable: of each trial its directory and its newest checkpoint.
        lost: what failed, and what did not fit before the deadline.
    """

    durable: tuple[Durable, ...]
    lost: tuple[Lost, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.durable)} durable, {len(self.lost)} not"]
        lines += [f"  {quote(one.trial)}: {quote(one.target)}: {one.reason}" for one in self.lost]
        return "\n".join(lines)


def text_of(error: BaseException) -> str:
    """What an error says; of one that cannot say anything, what it is."""
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - it is somebody else's
        return type(error).__name__


class DrainError(AsyncSyncError):
    """Something that was handed over is not durable.

    Attributes:
        report: all that is, and all that is not.
    """

    exit_code = 6

    def __init__(self, report: DrainReport) -> None:
        first = report.lost[0]
        more = f", and {len(report.lost) - 1} more" if len(report.lost) > 1 else ""
        super().__init__(
            f"not durable: {quote(first.trial)} at {quote(first.target)} ({first.reason}){more}; "
            "report.lost names each"
        )
        self.report = report


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStatus:
    """How fresh the copy of a trial's directory is.

    Attributes:
        state: `current`, `changed` (not due yet), `waiting` (for a slot), `syncing`, `resting`
            (after a failure) or `blocked` (its syncer does not end).
        durable_iteration: the iteration of which the copy is; None: there is none yet.
        durable_ago_s: how long ago the trial was as its copy is; None: there is none yet.
        checkpoint_step: of the newest checkpoint that is safe.
        stale_s: how long ago the oldest change was made that is not safe; 0: all is.
        queued_s: how long it has waited for a slot.
        failures: in a row.
        error: the last one, until a sync succeeds.
    """

    trial: str
    target: str
    state: str
    durable_iteration: float | None = None
    durable_ago_s: float | None = None
    checkpoint_step: int | None = None
    stale_s: float = 0.0
    queued_s: float = 0.0
    failures: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A scheduler at one moment.

    Attributes:
        running, waiting: syncs.
        blocked: targets whose syncer does not end.
        trials: each trial's directory.
        observer_error: how the observer failed; it has not been called since.
    """

    running: int
    waiting: int
    blocked: tuple[str, ...]
    trials: tuple[TrialStatus, ...]
    observer_error: str = ""

    def __str__(self) -> str:
        head = f"{self.running} running, {self.waiting} waiting, {len(self.blocked)} blocked"
        rows = [[str(getattr(trial, name)) for name in _COLUMNS] for trial in self.trials]
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in ([*_COLUMNS], *rows)
        ]
        if self.observer_error:
            head += f"; the observer failed: {self.observer_error}"
        return "\n".join([head, *(lines if rows else ())])

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        rows = "".join(
            "<tr>"
            + "".join(f"<td>{escape(str(getattr(trial, name)))}</td>" for name in _COLUMNS)
            + "</tr>"
            for trial in self.trials
        )
        return f"<table><thead><tr>{head}</tr></thead>{rows}</table>"


_COLUMNS = tuple(field.name for field in fields(TrialStatus))
