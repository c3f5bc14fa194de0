"""Watch: looks at a directory again and again, and has its scheduler sync what has changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf

import anyio
import anyio.abc
import anyio.to_thread

from ..clock import Clock, SystemClock
from ..concurrency import Threads
from ..errors import ClashError, ConfigError, StalledError
from ..patterns import Selection
from ..scheduling import SyncScheduler
from ..syncing import Path, local_path, within
from .hints import NoHints, hints
from .looks import Look, look_at, look_at_one
from .settling import Ready, Settling

__all__ = ["CHECKPOINTS", "Away", "Back", "Polling", "Refused", "Sight", "Watch"]

CHECKPOINTS = ("checkpoint[-_]*/",)
"""How the directories of checkpoints are named, unless somebody says otherwise."""

_PART_OF_THE_TREE = (
    "its place in the target is taken by files, as when it was watched with other names of "
    "checkpoints before; watch with the same names as then, or into another target"
)

_RESCAN_S = 30.0
_REST_S = 1.0
_AT_ONCE = 4
_FINE_S = 0.1
_REST_TIMES = 10  # a large tree is looked at less often: a look takes a tenth of the time


@dataclass(frozen=True, slots=True)
class Away:
    """The directory is not there, or cannot be read; nothing is deleted anywhere because of it."""

    directory: str
    reason: str


@dataclass(frozen=True, slots=True)
class Back:
    """It is there again, or for the first time."""

    directory: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A directory that is named like a checkpoint cannot be one."""

    directory: str
    reason: str


@dataclass(frozen=True, slots=True)
class Polling:
    """Nobody says when something changes there: it is looked for."""

    directory: str
    reason: str


Sight = Away | Back | Polling | Refused


class Watch:
    """Syncs a directory that somebody else writes.

    A checkpoint is saved once it has not changed for a while, or when the last file that its
    framework writes is there; everything else is synced by the scheduler's period. What vanishes
    here stays there.

    Args:
        scheduler: open, with the trial that the directory was added as: without its checkpoints,
            and with `delete=False`.
        settle_s: how long a checkpoint must not have changed.
        checkpoints: gitignore patterns of their directories.
        exclude: gitignore patterns of what is no part of them.
        observe: hears whether the directory is there.
        hint: calls back when something changes.

    Attributes:
        away: the directory was not there at the last look.

    Raises:
        ConfigError: `settle_s` is no time, or a pattern is wrong.
    """

    def __init__(  # noqa: PLR0913 - what people may say, and what tests do
        self,
        directory: Path,
        scheduler: SyncScheduler,
        trial: str,
        *,
        settle_s: float = 10.0,
        checkpoints: Sequence[str] = CHECKPOINTS,
        exclude: Sequence[str] = (),
        observe: Callable[[Sight], None] = lambda sight: None,
        clock: Clock | None = None,
        hint: Callable[[str, Callable[[], None]], Awaitable[None]] = hints,
    ) -> None:
        if not 0 < settle_s < inf:
            raise ConfigError(f"settle is a number of seconds above 0, not {settle_s!r}")
        self._directory = local_path(directory)
        self._scheduler, self._trial = scheduler, trial
        self._observe, self._hint = observe, hint
        self._clock = clock or SystemClock()
        self._checkpoints, self._exclude = Selection(checkpoints), Selection(exclude)
        self._settling, self._settle_s = Settling(settle_s), settle_s
        self._slots = anyio.Semaphore(_AT_ONCE)
        # Changes are looked for at least that often; more often where nobody tells of them.
        self._poll_s = max(_REST_S, min(_RESCAN_S, settle_s / 2))
        self._rescan_s = _RESCAN_S
        self._woken = anyio.Event()
        self._place: tuple[int, int] | None = None
        self.away = self._looking = False
        self._rest = ""
        self._watched: anyio.CancelScope | None = None

    async def run(self, stop: anyio.Event) -> list[str]:
        """Watch until `stop` is set; then save what is complete, or settles just now.

        Cancelled, it ends at once; what was being saved is not.

        Returns:
            The checkpoints that may be half written, and those that could not be saved.
        """
        threads = Threads(1)
        try:
            async with anyio.create_task_group() as saving:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._stop, stop)
                    while not stop.is_set():
                        await self._turn(threads, group, saving, stop)
                    group.cancel_scope.cancel()
                await self._finish(threads, saving)
        finally:
            threads.close()
        return self._settling.unsettled

    async def _finish(self, threads: Threads, saving: anyio.abc.TaskGroup) -> None:
        """The last looks: whoever wrote a checkpoint may be told to stop when we are."""
        self._settling.hurry()
        until = inf
        while True:
            self._save_all(await self._look(threads), None, saving)
            now, next_at = self._clock.monotonic(), self._settling.next_at()
            until = min(until, now + self._settle_s)
            if self.away or next_at > until:
                return
            await self._clock.sleep(max(_FINE_S, next_at - now))

    async def _stop(self, stop: anyio.Event) -> None:
        await stop.wait()
        self._wake()

    def _wake(self) -> None:
        self._woken.set()

    async def _turn(
        self,
        threads: Threads,
        group: anyio.abc.TaskGroup,
        saving: anyio.abc.TaskGroup,
        stop: anyio.Event,
    ) -> None:
        """One look, and the time until the next."""
        self._woken, began = anyio.Event(), self._clock.monotonic()
        self._save_all(await self._look(threads), group, saving)
        rest_s = max(_REST_S, _REST_TIMES * (self._clock.monotonic() - began))
        await within(self._clock, rest_s, stop.wait)
        next_s = self._settling.next_at() - self._clock.monotonic()
        scan_s = self._poll_s if self.away else self._rescan_s
        if (wait_s := min(scan_s, next_s)) > 0:
            await within(self._clock, wait_s, self._woken.wait)

    async def _look(self, threads: Threads) -> Look | Exception:
        if self._looking:  # a look that a mount does not answer goes on until it does
            return StalledError("the network mount still does not answer")
        self._looking = True
        try:
            return await threads.run(self._walk)
        except (OSError, StalledError) as exc:
            return exc

    def _walk(self) -> Look:
        try:
            return look_at(self._directory, self._checkpoints, self._exclude)
        finally:
            self._looking = False

    def _save_all(
        self,
        look: Look | Exception,
        group: anyio.abc.TaskGroup | None,
        saving: anyio.abc.TaskGroup,
    ) -> None:
        """Report what has changed, and save the checkpoints that are complete."""
        if isinstance(look, Exception):
            self._note_away(look)
            return
        if look.place != self._place:
            self._note_place(look.place, group)
        if look.rest != self._rest:
            self._rest = look.rest
            self._scheduler.report(self._trial)
        for ready in self._settling.look(look.checkpoints, self._clock.monotonic()):
            saving.start_soon(self._save, ready)

    def _note_away(self, reason: Exception) -> None:
        if not self.away:
            self._observe(Away(self._directory, getattr(reason, "strerror", None) or str(reason)))
        if self._watched is not None:
            self._watched.cancel()  # what was moved away is not ours any more
        self.away, self._place = True, None

    def _note_place(self, place: tuple[int, int], group: anyio.abc.TaskGroup | None) -> None:
        if self.away:
            self._observe(Back(self._directory))
        self._place, self.away = place, False
        if group is not None:
            self._listen(group)

    def _listen(self, group: anyio.abc.TaskGroup) -> None:
        """Have changes told of the directory that is there now, and no other."""
        if self._watched is not None:
            self._watched.cancel()
        self._watched, self._rescan_s = anyio.CancelScope(), _RESCAN_S
        group.start_soon(self._listening, self._watched)

    async def _listening(self, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await self._hint(self._directory, self._wake)
            except NoHints as exc:
                self._rescan_s = self._poll_s
                self._wake()
                if not self.away:
                    self._observe(Polling(self._directory, str(exc)))

    async def _save(self, ready: Ready) -> None:
        """Save a checkpoint, unless it changes; the scheduler tells what becomes of it."""
        path = f"{self._directory}/{ready.path}"
        async with self._slots:
            seen = await anyio.to_thread.run_sync(look_at_one, path)
            if seen.signature != ready.signature:
                self._settling.changed(ready.path)
                return
            try:
                ticket = await self._scheduler.checkpoint(
                    self._trial, path, exclude=self._exclude.exclude, replace="own", snapshot=False
                )
                await ticket.durable()
            except Exception as exc:  # noqa: BLE001 - it is told; here it only matters that it is so
                if isinstance(exc, ConfigError):  # of no sync, which would have told of it
                    self._observe(Refused(path, str(exc)))
                elif isinstance(exc, ClashError):
                    self._observe(Refused(path, _PART_OF_THE_TREE))
                self._settling.failed(ready.path, self._clock.monotonic())
                self._wake()
            else:
                self._settling.succeeded(ready.path)
