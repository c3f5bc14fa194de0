"""One call of a syncer: limited in time, cancelled on request, and noticed when it does not end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from math import inf

import anyio

from ..clock import Clock
from ..digest import digest
from ..errors import (
    AsyncSyncError,
    DeadlineError,
    PermanentError,
    SourceChangedError,
    TransientError,
    quote,
)
from ..events import Event, Observer, SourceChanged
from ..patterns import Selection
from ..syncing import AsyncSyncer, Receipt, StorageSyncer, within
from ..transfer import Chosen, Held, Snapshots
from .jobs import Job

__all__ = ["GRACE_S", "Attempt", "Take", "call", "take_of"]

Take = Callable[[], AbstractAsyncContextManager[Held | None]]

GRACE_S = 10.0
"""How long a syncer may take to end once it is cancelled, before it counts as stuck."""

_left_behind: set[asyncio.Task[Receipt | None]] = set()  # the loop alone keeps no task alive


class Attempt:
    """A call that runs in a task of its own, because it may have to be left behind.

    Args:
        call: what to await.
        what: the call in words.
        ended: is called when it ends after it was left behind.

    Attributes:
        succeeded: it has, and returned `receipt`.
        error: why it failed, if that is known.
        stuck: it was cancelled and did not end.
    """

    def __init__(
        self,
        call: Callable[[], Awaitable[Receipt | None]],
        what: str,
        clock: Clock,
        ended: Callable[[], None],
    ) -> None:
        self._call, self._what, self._clock, self._ended = call, what, clock, ended
        self._over = anyio.Event()  # it has ended, or shall
        self._done = anyio.Event()
        self._reason: AsyncSyncError | None = None
        self._raised: BaseException | None = None
        self.receipt: Receipt | None = None
        self.error: Exception | None = None
        self.succeeded = self.stuck = self._cancelled = False

    def stop(self, reason: AsyncSyncError) -> None:
        """Cancel it; `reason` is what its failure says. Again, or when it is over: no effect."""
        if not self._over.is_set():
            self._reason = reason
            self._over.set()

    async def run(self, timeout_s: float) -> None:
        """Wait until it has ended, whatever way, or is stuck; raises only a cancellation."""
        if self._over.is_set():  # stopped before it began
            self.error = self._reason
            return
        task = asyncio.create_task(self._awaited())
        task.add_done_callback(self._settle)
        try:
            if timeout_s == inf:
                await self._over.wait()
            elif not await within(self._clock, timeout_s, self._over.wait):
                self.stop(
                    DeadlineError(
                        f"{self._what}: not done after {timeout_s:g} s (sync_timeout); it is tried "
                        "again, and goes on where it was if the syncer can"
                    )
                )
        finally:
            if not self._done.is_set():
                self._cancelled = True
                task.cancel()
                with anyio.CancelScope(shield=True):
                    await within(self._clock, GRACE_S, self._done.wait)
            if not self._done.is_set():
                self.stuck = True
                self.error = self._reason
                _left_behind.add(task)
                task.add_done_callback(_left_behind.discard)

    async def _awaited(self) -> Receipt | None:
        try:
            return await self._call()
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # noqa: BLE001 - SystemExit in a syncer is not our end
            self._raised = exc
            return None

    def _settle(self, task: asyncio.Task[Receipt | None]) -> None:
        self._over.set()
        self._done.set()
        failure = self._raised
        if self.stuck:
            self._ended()
        elif task.cancelled() or (failure is not None and self._reason is not None):
            self.error = self._reason or TransientError(
                f"{self._what}: the syncer was cancelled from inside; try again"
            )
        elif isinstance(failure, Exception):
            self.error = failure
        elif failure is not None:
            self.error = TransientError(f"{self._what}: the syncer raised {failure!r}")
        else:
            self._take(task.result())

    def _take(self, returned: object) -> None:
        """What a syncer has returned, which is anybody's: a receipt, None, or nothing of use."""
        if isinstance(returned, Receipt):
            self.receipt, self.succeeded = returned, True
        elif returned is not None:
            self.error = PermanentError(
                f"{self._what}: the syncer returned {_shown(returned)}; it has to return a "
                "Receipt, or None, when it has succeeded, and to raise when it has not"
            )
        elif self._cancelled:  # it has swallowed that, and proves nothing
            self.error = self._reason
        else:
            self.succeeded = True


def _shown(value: object) -> str:
    """A value in a few characters; of one that cannot be shown, what it is."""
    try:
        return quote(repr(value)[:80])
    except Exception:  # noqa: BLE001 - it is somebody else's
        return type(value).__name__


async def call(syncer: AsyncSyncer | None, job: Job, observe: Observer) -> Receipt | None:
    """Do a job. Our own syncer is told what kind of tree it is, and who else wants to hear."""
    assert syncer is not None, "in a shared directory nothing is asked for"
    if not isinstance(syncer, StorageSyncer):
        if job.direction == "down":
            return await syncer.sync_down(job.source, job.target, exclude=job.exclude)
        return await syncer.sync_up(job.source, job.target, exclude=job.exclude)
    heard = syncer.observe

    def told(event: Event) -> None:
        if job.still and isinstance(event, SourceChanged):
            raise SourceChangedError(  # what an observer raises ends the sync
                f"{quote(job.source)}: {quote(event.path)} changed while it was read; save it "
                "again when it is complete",
                side="source",
                paths=[event.path],
            )
        heard(event)
        observe(event)

    if job.direction == "down":
        return await syncer.sync_down(job.source, job.target, exclude=job.exclude, observe=told)
    return await syncer.sync_up(
        job.source,
        job.target,
        exclude=job.exclude,
        delete=job.tree is None or job.tree.delete,
        kind="sealed" if job.tree is None else "rolling",
        replace=job.replace,
        step=job.step,
        observe=told,
    )


def take_of(snapshots: Snapshots, job: Job, *, wait: bool) -> Take:
    """How to take the snapshot that a checkpoint is read from.

    In the same place each time: what was interrupted is found again by the next start.
    """

    async def choose(path: str) -> Chosen:
        del path  # what is inside is as sealed as the whole
        return Chosen("sealed", Selection(job.exclude, ()))

    mark = digest(job.target.encode(errors="surrogateescape"))[:32]
    return partial(snapshots.take, job.source, choose, mark=mark, wait=wait)
