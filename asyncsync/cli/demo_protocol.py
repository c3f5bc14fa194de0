"""What the demo and its training process tell each other: a plan down, reports up."""

from __future__ import annotations

import msgspec

__all__ = [
    "Committed",
    "Plan",
    "Reduced",
    "Report",
    "Saved",
    "Sent",
    "Stepped",
    "Synced",
    "Trained",
]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to train; travels as one command-line argument, as JSON.

    Attributes:
        directory: a directory of its own: the trial's files and local checkpoints.
        steps: how long to train in all.
        every: steps between checkpoints.
        remote: where checkpoints and the trial's files go; None: nothing is saved.
        resume: a checkpoint to continue from.
        bwlimit: bytes per second.
    """

    directory: str
    steps: int
    every: int
    remote: str | None = None
    resume: str | None = None
    bwlimit: float | None = None


class Stepped(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """One training step; the loss in nats."""

    step: int
    loss: float


class Saved(msgspec.Struct, frozen=True, kw_only=True, tag="saved"):
    """Training goes on after it waited for the last upload and wrote its state to local disk."""

    step: int
    waited_s: float
    written_s: float


class Reduced(msgspec.Struct, frozen=True, kw_only=True, tag="reduced"):
    """The place protects less than asyncsync is made for."""

    where: str
    reason: str


class Sent(msgspec.Struct, frozen=True, kw_only=True, tag="sent"):
    """A part of a checkpoint arrived."""

    step: int
    moved_bytes: int
    total_bytes: int


class Committed(msgspec.Struct, frozen=True, kw_only=True, tag="committed"):
    """A checkpoint is visible and durable."""

    step: int
    sent_bytes: int
    skipped_bytes: int
    seconds: float


class Synced(msgspec.Struct, frozen=True, kw_only=True, tag="synced"):
    """The trial's other files, after the checkpoint of that step."""

    step: int
    sent_bytes: int
    skipped_bytes: int


class Trained(msgspec.Struct, frozen=True, kw_only=True, tag="trained"):
    """The last step is over; `seconds` since the first one, with all waiting."""

    seconds: float


Report = Stepped | Saved | Reduced | Sent | Committed | Synced | Trained
