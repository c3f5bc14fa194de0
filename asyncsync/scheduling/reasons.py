"""Why a sync ended that nobody let come to its end."""

from __future__ import annotations

from ..errors import BusyError, TransientError, quote
from .jobs import Job

__all__ = ["LateError", "held_up", "late", "left", "skipped", "superseded"]


def left(job: Job) -> TransientError:
    """The scheduler was left, or whoever asked for it."""
    return TransientError(
        f"{quote(job.target)}: not done, because the scheduler was left; the next start goes on"
    )


class LateError(TransientError):
    """There was no time for it before a deadline."""


def late(job: Job) -> LateError:
    """There was no time for it."""
    return LateError(
        f"{quote(job.target)}: not done before the deadline of the drain; the next start goes on"
    )


def held_up(job: Job) -> TransientError:
    """It stands behind a syncer that does not end."""
    return TransientError(
        f"{quote(job.target)}: blocked by a sync that does not end although it was cancelled; see "
        "what its syncer waits for"
    )


def superseded(job: Job) -> TransientError:
    """A newer version came."""
    return TransientError(f"{quote(job.target)}: a newer version has taken its place")


def skipped(job: Job) -> BusyError:
    """Its target was being written, and the policy is not to wait."""
    return BusyError(
        f"{quote(job.target)} was being written, and overlap is 'skip'; ask again later",
        side="target",
    )
