"""What happened, as values. The library never prints: whoever wants to know observes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Committed",
    "Event",
    "FellBack",
    "Kept",
    "Moved",
    "Observer",
    "Planned",
    "Reduced",
    "Retrying",
    "Skipped",
    "Snapshotted",
    "SourceChanged",
    "Stalled",
    "Started",
    "ignore",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A sync began."""

    direction: Literal["up", "down", "delete", "verify"]
    source: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a sync is going to do. Sizes in bytes."""

    send_files: int
    send_bytes: int
    skip_files: int
    skip_bytes: int
    delete_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A part of a file, or a batch of whole small files, arrived.

    `path` is the file, or the last of the batch. The totals grow when a file has to be sent again.
    """

    path: str
    size_bytes: int
    moved_bytes: int
    total_bytes: int
    moved_files: int
    total_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A name that was left out although no pattern excludes it."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshotted:
    """The source is held still elsewhere: from here on it may change.

    `way` is the weakest that was taken for a file: `reflink`, `copy` or `link`.
    """

    way: str
    waited_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceChanged:
    """A file changed while it was read and is sent again."""

    path: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying:
    """A transient failure; the next attempt starts after `wait_s` seconds."""

    what: str
    reason: str
    attempt: int
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled:
    """Nothing has arrived for `seconds`; said again as long as that lasts.

    `path` is the file that has been on its way the longest, or one of a batch of small files, and
    `part` its chunk: None if the file has only one.
    """

    path: str
    part: int | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """A place protects less than asyncsync is made for; said once for each place."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Something that is not ours stayed where it is."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FellBack:
    """What was to be read is damaged, or not given: another copy of it is used instead.

    Or, because the caller allowed it, the commit before it.
    """

    damaged: str
    used: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """From here on the tree is visible and as durable as `durability` says."""

    location: str
    identity: str
    durability: str


Event = (
    Started
    | Planned
    | Moved
    | Skipped
    | Snapshotted
    | SourceChanged
    | Retrying
    | Stalled
    | Reduced
    | Kept
    | FellBack
    | Committed
)
Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer of those who do not look."""
