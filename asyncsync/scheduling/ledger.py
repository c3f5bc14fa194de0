"""What is durable and what is not: a few lines for each trial, however many syncs there were."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..syncing import Receipt
from .jobs import Job
from .reasons import LateError
from .values import DrainReport, Durable, Lost

__all__ = ["Ledger"]


@dataclass
class _Page:
    """Of one trial: its directory, its newest checkpoint, and what was lost, by target."""

    tree: Durable | None = None
    iteration: float | None = None
    checkpoint: Durable | None = None
    number: int = 0
    lost: dict[str, tuple[int, Lost]] = field(default_factory=dict)


class Ledger:
    """Remembers the outcomes of syncs."""

    def __init__(self) -> None:
        self._pages: dict[str, _Page] = {}

    def page(self, trial: str) -> _Page:
        """What is known of a trial."""
        return self._pages.setdefault(trial, _Page())

    def saved(self, job: Job, receipt: Receipt | None, iteration: float | None) -> Durable | None:
        """A sync has succeeded. Returns the checkpoint that was the newest before."""
        page = self.page(job.trial)
        if job.target in page.lost and page.lost[job.target][0] <= job.number:
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
        before = self.page(job.trial).lost.get(job.target)
        if before is not None and isinstance(error, LateError):
            return  # why it failed before says more
        lost = Lost(trial=job.trial, target=job.target, step=job.step, error=error)
        self.page(job.trial).lost[job.target] = job.number, lost

    def error(self, trial: str, target: str) -> Exception | None:
        """Why the last sync of a target failed, until one succeeds."""
        lost = self.page(trial).lost.get(target)
        return lost[1].error if lost else None

    def tell(self, trial: str) -> list[Exception]:
        """Why syncs of a trial failed; its page is closed."""
        page = self._pages.pop(trial, None)
        return [one.error for _, one in page.lost.values()] if page else []

    def report(self) -> DrainReport:
        """Everything; what was lost is told by this."""
        durable, lost = list[Durable](), list[Lost]()
        for page in self._pages.values():
            durable += filter(None, (page.tree, page.checkpoint))
            lost += [one for _, one in page.lost.values()]
            page.lost.clear()
        return DrainReport(durable=tuple(durable), lost=tuple(lost))
