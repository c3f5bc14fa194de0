"""What is durable and what is not: a few lines for each trial, however many syncs there were."""

from __future__ import annotations

import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import TransferError
from ..syncing import Receipt
from .jobs import Job
from .reasons import LateError
from .values import DrainReport, Durable, Lost

__all__ = ["Ledger", "is_same"]


@dataclass
class _Page:
    """Of one trial: its directory, its newest checkpoint, and what was lost, by target."""

    tree: Durable | None = None
    iteration: float | None = None
    checkpoint: Durable | None = None
    number: int = 0
    lost: dict[str, _Loss] = field(default_factory=dict)


class _Loss(NamedTuple):
    """What was lost: the number of its job, and the how manieth loss it is."""

    number: int
    serial: int
    what: Lost


class Ledger:
    """Remembers the outcomes of syncs."""

    def __init__(self) -> None:
        self._pages: dict[str, _Page] = {}
        self._serial = 0
        self.told = 0  # losses up to this one have been told

    def page(self, trial: str) -> _Page:
        """What is known of a trial."""
        return self._pages.setdefault(trial, _Page())

    def saved(self, job: Job, receipt: Receipt | None, iteration: float | None) -> Durable | None:
        """A sync has succeeded. Returns the checkpoint that was the newest before."""
        page = self.page(job.trial)
        if job.target in page.lost and page.lost[job.target].number <= job.number:
            del page.lost[job.target]  # a newer version may be lost all the same
        durable = Durable(trial=job.trial, target=job.target, step=job.step, receipt=receipt)
        if job.tree is not None:
            page.tree, page.iteration = durable, iteration
            return None
        before = page.checkpoint
        if job.number >= page.number:
            page.checkpoint, page.number = durable, job.number
        return before

    def failed(self, job: Job, error: Exception) -> None:
        """A sync has failed, and is not tried again."""
        _let_go_of_frames(error)
        before = self.page(job.trial).lost.get(job.target)
        if before is not None and before.serial > self.told and isinstance(error, LateError):
            return  # why it failed before says more
        lost = Lost(trial=job.trial, target=job.target, step=job.step, error=error)
        self._serial += 1
        self.page(job.trial).lost[job.target] = _Loss(job.number, self._serial, lost)

    def error(self, trial: str, target: str) -> Exception | None:
        """Why the last sync of a target failed, until one succeeds."""
        lost = self.page(trial).lost.get(target)
        return lost.what.error if lost and lost.serial > self.told else None

    def tell(self, trial: str) -> list[Exception]:
        """Why syncs of a trial failed; its page is closed."""
        page = self._pages.pop(trial, None)
        losses = page.lost.values() if page else ()
        return [loss.what.error for loss in losses if loss.serial > self.told]

    def report(self, since: int) -> DrainReport:
        """What is durable, and what was lost after the first `since` losses; it is told by this.

        Several drains at once hear of the same losses: each has noted `told` when it began.
        """
        durable, lost = list[Durable](), list[Lost]()
        for page in self._pages.values():
            durable += filter(None, (page.tree, page.checkpoint))
            lost += [loss.what for loss in page.lost.values() if loss.serial > since]
        self.told = self._serial
        return DrainReport(durable=tuple(durable), lost=tuple(lost))


def is_same(before: Durable, job: Job, receipt: Receipt | None) -> bool:
    """Whether a checkpoint has the bytes of the one before it."""
    if before.target == job.target or before.receipt is None or receipt is None:
        return False
    return before.receipt.identity == receipt.identity


def _let_go_of_frames(error: BaseException) -> None:
    """Free what was in use where an error was raised: it is remembered for longer than that."""
    errors, known = [error], {id(error)}
    for one in errors:  # which grows
        inside = [one.__cause__, one.__context__]
        if isinstance(one, TransferError):
            inside += one.failures
        elif isinstance(one, BaseExceptionGroup):
            inside += one.exceptions
        found = [each for each in inside if each is not None and id(each) not in known]
        errors += found
        known |= set(map(id, found))
        for frame, line in list(traceback.walk_tb(one.__traceback__))[-1:]:
            where = f"raised at {frame.f_code.co_filename}:{line}"
            with suppress(Exception):  # it may be somebody else's
                if where not in getattr(one, "__notes__", ()):
                    one.add_note(where)
        one.__traceback__ = None
