"""`asyncsync watch`: sync a directory as it changes, and say what became of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict

import anyio

from ..concurrency import beside
from ..errors import BusyError, NotFoundError, quote
from ..events import Event, Reduced, Skipped
from ..location import Location
from ..scheduling import (
    Alarm,
    Blocked,
    DrainError,
    Failed,
    Feed,
    Lost,
    Notice,
    Synced,
    SyncScheduler,
)
from ..syncing import SyncConfig, check_overlap
from ..units import format_amount, format_bytes, format_seconds
from ..watching import Away, Back, Refused, Sight, Watch
from .job import Limits, Outcome
from .output import Output, event_name
from .runner import Session

__all__ = ["watch"]

_TRIAL = "watched"


async def watch(
    session: Session,
    *,
    directory: str,
    location: str,
    period_s: float,
    settle_s: float,
    checkpoints: Sequence[str],
    exclude: Sequence[str],
    limits: Limits,
) -> Outcome:
    """Watch a directory until a signal comes; then sync what is left."""
    speaker, clock = _Speaker(session.output, directory, location), session.world.clock
    said = set[Event]()
    checkpoints = [f"{pattern.rstrip('/')}/" for pattern in checkpoints]  # never files

    def observe(event: Event) -> None:
        # All else is told of each sync as a whole; these of each sync anew.
        if isinstance(event, Reduced | Skipped) and event not in said:
            said.add(event)
            session.monitor(event)

    config = SyncConfig(sync_period=period_s, sync_timeout=limits.timeout_s or 1800)
    check_overlap(directory, Location.parse(location))
    async with session.world.open_syncer(
        Limits(jobs=limits.jobs, bwlimit=limits.bwlimit), observe
    ) as syncer:
        scheduler = SyncScheduler(syncer, config, clock=clock)
        feed = scheduler.events()
        async with beside(lambda: speaker.read(feed)):
            async with _drained(scheduler, speaker):
                first, *others = checkpoints
                scheduler.add(
                    _TRIAL,
                    local_dir=directory,
                    remote_dir=location,
                    checkpoints=first,
                    exclude=(*others, *exclude),
                    delete=False,
                )
                watching = Watch(
                    directory,
                    scheduler,
                    _TRIAL,
                    settle_s=settle_s,
                    checkpoints=checkpoints,
                    exclude=exclude,
                    observe=speaker.see,
                    clock=clock,
                )
                left = await watching.run(session.stop)
            await speaker.done.wait()
    summary = {"location": location, "synced": speaker.synced, "lost": speaker.lost}
    if speaker.lost:
        text = f"{quote(location)}: {speaker.lost} not synced; the same command goes on"
        return Outcome(summary=summary, text=text, exit_code=DrainError.exit_code)
    if watching.away:
        raise NotFoundError(
            f"{quote(directory)} is not there any more, or never was: what changed last is not at "
            f"{quote(location)}",
            side="source",
        )
    if left:
        raise BusyError(
            f"{len(left)} of the checkpoints in {quote(directory)} still change, or could not be "
            f"saved, {quote(left[0])} first; the same command goes on",
            side="source",
            paths=left,
        )
    return Outcome(summary=summary, text=f"{quote(location)}: everything is there")


@asynccontextmanager
async def _drained(scheduler: SyncScheduler, speaker: _Speaker) -> AsyncIterator[None]:
    """Open a scheduler; what it could not sync in the end is said, not raised."""
    try:
        async with scheduler:
            yield
    except DrainError as exc:
        for one in exc.report.lost:
            speaker.say_lost(one)


class _Speaker:
    """Says what happens.

    Attributes:
        synced: how often something was sent.
        lost: what was given up.
        done: there is nothing more to say.
    """

    def __init__(self, output: Output, directory: str, location: str) -> None:
        self._output, self._directory, self._location = output, directory, location
        self.synced = self.lost = 0
        self.done = anyio.Event()

    async def read(self, feed: Feed) -> None:
        async for notice in feed:
            self._output.emit("schedule", {"what": event_name(notice), **asdict(notice)})
            self._say(notice)
        self.done.set()

    def see(self, sight: Sight) -> None:
        """Whether the directory is there."""
        self._output.emit("schedule", {"what": event_name(sight), **asdict(sight)})
        where = quote(sight.directory)
        if isinstance(sight, Back):
            self._output.note(f"asyncsync: {where} is there again")
        elif isinstance(sight, Refused):
            self._output.error(f"{where}: {sight.reason}")
        elif isinstance(sight, Away):
            self._output.note(f"asyncsync: waiting for {where}: {sight.reason}")
        else:
            self._output.note(f"asyncsync: looking for changes: {sight.reason}")

    def say_lost(self, lost: Lost) -> None:
        """What could not be synced; but what is gone here is nobody's loss any more."""
        below = lost.target.removeprefix(self._location).lstrip("/")
        if below and not os.path.lexists(f"{self._directory}/{below}"):
            return
        self.lost += 1
        self._output.error(f"{quote(lost.target)}: not synced: {lost.reason}")

    def _say(self, notice: Notice) -> None:
        if isinstance(notice, Synced):
            self._say_synced(notice)
        elif isinstance(notice, Failed):
            again = f"; again in {format_seconds(notice.wait_s)}" if notice.again else ""
            self._output.error(f"{quote(notice.target)}: {notice.reason}{again}")
        elif isinstance(notice, Blocked):
            state = "goes on" if notice.free else "does not end although it was cancelled"
            self._output.error(f"{quote(notice.target)}: its sync {state}")
        elif isinstance(notice, Alarm):
            part = "" if notice.part is None else f", part {notice.part}"
            what = f", at {quote(notice.path)}{part}" if notice.path else ""
            late = format_seconds(notice.late_s)
            self._output.note(f"asyncsync: {quote(notice.target)}: {notice.why}{what}; {late} late")

    def _say_synced(self, notice: Synced) -> None:
        receipt = notice.receipt
        if receipt is None or not (receipt.sent_files or receipt.deleted_files):
            return
        self.synced += 1
        self._output.result(
            f"{quote(notice.target)}: {format_amount(receipt.files, receipt.size_bytes)}, "
            f"{format_bytes(receipt.sent_bytes)} sent in {format_seconds(notice.seconds)}"
        )
