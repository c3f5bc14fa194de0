"""SyncScheduler: decides when trees are synced, and never loses the latest state of any."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from math import inf
from types import TracebackType
from typing import Any, Self

from ..clock import Clock, SteadyClock, SystemClock
from ..concurrency import Threads
from ..errors import ConfigError, quote
from ..syncing import AsyncSyncer, Path, Replace, StorageSyncer, SyncConfig, local_path, within
from ..transfer import Held, Snapshots
from . import checks, reasons
from .book import Book
from .due import Overlap, Rules
from .jobs import Direction, Job, Tree, Urgency
from .ledger import Ledger
from .listeners import Feed, Listeners
from .runner import Runner
from .running import GRACE_S, call, take_of
from .signals import Stop, until_signal
from .ticket import Ticket
from .trials import Trial, name_below, remote_of
from .values import DrainError, DrainReport, Status, Watcher

__all__ = ["SyncScheduler"]

_THREADS = 4
_HEARD_S = 1.0  # for observers to hear of the end, where a drain has a deadline


class SyncScheduler:
    """Syncs the directories and checkpoints of trials when it is time, and never forgets one.

    Use it with `async with`; it belongs to one event loop. Left normally, it drains; left by an
    exception or cancelled, it takes no more, stops what runs in a way that can be gone on with,
    and never hides the error of the block. A pickled copy has the same settings, but neither
    observer nor clock, no trials, and nothing in flight.

    Syncs never raise into a trial: every one ends in a receipt or a recorded failure, which
    `status`, the observer and `drain` show. `Ticket.durable`, `complete` and `drain` do raise.

    Args:
        syncer: what moves trees; None: that of `config`, which is closed with the scheduler.
        config: periods, timeouts and where to.
        overlap: what becomes of a request while its target is written; see `Overlap`.
        max_syncs: syncs that run at once, over all trials.
        snapshot_bytes: files that snapshots of checkpoints may hold; None: half of what is free.
        observe: is called with every event, in a thread of its own; asyncio programs rather read
            `events`. What it raises, or that it does not return, is in `status` and raised by
            `drain`, and until then it is not called again.
        clock: what it takes the time from.

    Raises:
        ConfigError: syncer and configuration contradict each other, or a value is wrong.
    """

    def __init__(
        self,
        syncer: AsyncSyncer | None = None,
        config: SyncConfig | None = None,
        *,
        overlap: Overlap = "coalesce",
        max_syncs: int = 8,
        snapshot_bytes: int | None = None,
        observe: Watcher | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._config = config or SyncConfig()
        checks.check_syncer(syncer, self._config)
        checks.check_count("max_syncs", max_syncs)
        self._given, self._snapshot_bytes = syncer, snapshot_bytes
        self._syncer = syncer or self._config.choose_syncer()
        if self._syncer is None and self._config.mode != "shared":
            raise ConfigError("who moves the trees to the head? Pass a syncer, or set upload_dir")
        cloud = self._config.mode == "cloud"
        self._moves_trees = self._syncer is not None and (not cloud or self._config.sync_artifacts)
        self._at_once = cloud or self._config.sync_on_checkpoint
        self._rules = Rules.of(self._config, overlap=overlap)
        self._max_syncs, self._clock = max_syncs, SteadyClock(clock or SystemClock())
        self._book, self._ledger = Book(self._rules, max_syncs), Ledger()
        self._listeners = Listeners(observe)
        self._runner = Runner(
            self._book,
            self._ledger,
            lambda job, told: call(self._syncer, job, told),
            self._config.sync_timeout,
            self._clock,
            self._listeners.tell,
        )
        self._trials: dict[str, Trial] = {}
        self._leaving = self._out_of_time = False

    def __reduce__(self) -> tuple[Callable[..., SyncScheduler], tuple[dict[str, Any]]]:
        settings = {
            "syncer": self._given,
            "config": self._config,
            "overlap": self._rules.overlap,
            "max_syncs": self._max_syncs,
            "snapshot_bytes": self._snapshot_bytes,
        }
        return _unpickle, (settings,)

    # -- life

    async def __aenter__(self) -> Self:
        await self._runner.open()
        self._threads = Threads(_THREADS)
        self._snapshots = Snapshots(self._threads, self._clock, bound_bytes=self._snapshot_bytes)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.aclose()
            return
        try:
            await self._stop()
        except Exception as exc:  # noqa: BLE001 - the block's own error is the one to raise
            if error is not None:
                error.add_note(f"while the scheduler was closed: {exc!r}")

    async def aclose(self) -> None:
        """Drain, and let go of everything. Again: no effect. Cancelled, it stops what runs.

        From here on nothing is taken any more. After a signal whose drain had a deadline, what did
        not fit is not begun again.

        Raises:
            DrainError: as `drain`.
        """
        if self._runner.closed and self._runner.failure is None:
            return
        self._leaving = True
        try:
            # When a signal came, whoever sent it does not wait for what did not fit.
            await self.drain(deadline_s=0 if self._out_of_time else None)
        finally:
            await self._stop()

    async def _stop(self) -> None:
        try:
            await self._runner.stop()
        finally:
            self._threads.close()
            self._listeners.close()
            if self._given is None and self._syncer is not None:
                await self._syncer.aclose()

    # -- trials

    def add(
        self,
        trial: str,
        *,
        local_dir: Path,
        remote_dir: Path | None = None,
        direction: Direction = "up",
        checkpoints: str = "checkpoint_*/",
        exclude: Sequence[str] = (),
        delete: bool = True,
    ) -> None:
        """Take a trial in: from now on, `report` keeps the copy of its directory fresh.

        Args:
            local_dir: its directory, which need not exist yet.
            remote_dir: where the copy is; None: below the `upload_dir` of the configuration, by the
                trial's name.
            direction: which way `report` syncs.
            checkpoints: gitignore pattern of the directories below `local_dir` that are written as
                checkpoints: half written, they are not part of what `report` syncs.
            exclude: gitignore patterns of what is left out, too.
            delete: False keeps in the remote directory what is gone from the local one.

        Raises:
            ConfigError: it takes part already, or its target is that of another trial.
        """
        self._check_taking()
        if trial in self._trials:
            raise ConfigError(f"trial {quote(trial)} has been added already; complete it first")
        checks.check_name(trial)
        if direction not in ("up", "down"):
            raise ConfigError(f"direction is 'up' or 'down', not {direction!r}")
        local = local_path(local_dir)
        remote = remote_of(trial, local, remote_dir, self._config.upload_dir, self._syncer)
        checks.check_alone(self._trials.values(), local, direction, trial)
        checks.check_free(self._book.targets, remote)
        if not (delete or isinstance(self._syncer, StorageSyncer)):
            raise ConfigError("delete=False is for a StorageSyncer; tell your own syncer itself")
        tree = Tree(
            trial=trial,
            source=local,
            target=self._book.target(remote),
            direction=direction,
            exclude=checks.excluded(exclude, checkpoints),
            delete=delete,
        )
        tree.target.trees.append(tree)
        self._trials[trial] = Trial(trial, local, remote, tree)

    def report(
        self,
        trial: str,
        *,
        training_iteration: float | None = None,
        time_total_s: float | None = None,
    ) -> None:
        """The directory of a trial has changed. Never blocks, and never raises for a sync.

        It is synced when its period is over, but not before one of the thresholds was reached;
        a number that is not given counts as reached.

        Raises:
            ConfigError: the trial was not added, or is over; a number is negative or none.
        """
        tree = self._trial(trial).driven
        if self._leaving:
            self._check_taking()
        checks.check_number("training_iteration", training_iteration)
        checks.check_number("time_total_s", time_total_s)
        if not self._moves_trees:
            return
        tree.iterations = training_iteration
        if not tree.reached:
            tree.reached = self._rules.reached(training_iteration, time_total_s)
        if self._book.report(tree, self._clock.monotonic()):
            self._runner.wake()

    def sync_up_if_needed(self, trial: str) -> bool:
        """Sync a trial's directory up, if its period is over. Whether it was asked for now."""
        return self._if_needed(trial, "up")

    def sync_down_if_needed(self, trial: str) -> bool:
        """The same from the remote directory to the local one, with a period of its own."""
        return self._if_needed(trial, "down")

    def _if_needed(self, name: str, direction: Direction) -> bool:
        self._check_taking()
        trial = self._trial(name)
        if self._syncer is None:
            return False
        if direction == "up" and not self._moves_trees:
            return False
        tree = trial.tree(direction)
        due = self._clock.monotonic() - tree.succeeded_at >= self._rules.period_s
        if not due or tree.target.busy or tree.target.stuck:
            return False
        checks.check_alone(self._trials.values(), trial.local, direction, name)
        self._runner.ask(self._book.job_of(tree, Urgency.FORCED))
        return True

    async def checkpoint(
        self,
        trial: str,
        path: Path,
        *,
        step: int | None = None,
        exclude: Sequence[str] = (),
        replace: Replace = False,
        snapshot: bool = True,
    ) -> Ticket:
        """Save the directory at `path` as a checkpoint of the trial.

        Returns as soon as the directory may change: a snapshot is what is synced. Where there can
        be none, as on a full disk, all is done by then. It goes below the trial's remote directory,
        by its path below the local one, or else by its name.

        Cancelled before that, nothing is saved.

        Args:
            step: training step to order checkpoints by; None takes the number the name ends in.
            exclude: gitignore patterns relative to `path`.
            replace: take the place of another checkpoint of that name; "own": if it came from here.
            snapshot: False reads the directory itself, and returns when all is done; what changes
                meanwhile is a failure.

        Raises:
            ConfigError: the trial was not added, or is over; or the directory would be part of what
                `report` syncs.
            TransientError: the scheduler was left meanwhile; nothing was saved.
            AsyncSyncError: the directory cannot be read, or holds what no checkpoint may.
        """
        self._check_taking()
        found, source = self._trial(trial), local_path(path)
        name = name_below(source, found.local)
        target = f"{found.remote.rstrip('/')}/{name}"
        checks.check_free(self._book.targets, target)
        job = Job(
            trial=trial,
            source=source,
            target=target,
            urgency=Urgency.FORCED,
            exclude=checks.excluded(exclude),
            step=step,
            replace=replace,
            still=not snapshot,
        )
        ticket = Ticket(job.words)
        if self._syncer is None:
            ticket._end(None, None)
            return ticket
        if not self._at_once:
            job.urgency, job.not_before = Urgency.PERIODIC, self._book.saves_at(found.driven)
        await self._runner.save(job, ticket, partial(self._take, found, name, job, snapshot))
        if ticket.error is not None and not job.number:
            raise ticket.error  # it was never handed over
        goes_up = self._moves_trees and found.driven.direction == "up"
        if self._at_once and goes_up and not (found.over or self._runner.closed):
            along = self._book.job_of(found.driven, Urgency.FORCED)
            along.along = True
            self._runner.ask(along)
        return ticket

    @asynccontextmanager
    async def _take(
        self, trial: Trial, name: str, job: Job, snapshot: bool
    ) -> AsyncIterator[Held | None]:
        """What a checkpoint is read from, once it is known that it may be one."""
        if self._moves_trees:
            await self._threads.run(checks.check_apart, trial, name)
        # What a blocked target holds, it may hold for ever.
        take = take_of(self._snapshots, job, wait=not self._book.blocked)
        async with take() if snapshot else nullcontext() as held:
            yield held

    async def complete(self, trial: str) -> None:
        """The trial is over: sync what it has left, whatever periods say, and wait for all of it.

        Also for one that failed. It takes no reports any more; its name may be added again.

        Raises:
            Exception: what its sync failed with; TransferError if several of its syncs did.
        """
        found = self._trial(trial)
        found.over, last = True, None
        try:
            if self._moves_trees and found.driven.direction == "up":
                last = self._runner.ask(self._book.job_of(found.driven, Urgency.FINAL))
            await self._runner.wait_for(trial)
        finally:
            for tree in found.trees.values():
                self._book.forget(tree, self._clock.monotonic())
            self._trials.pop(trial, None)
        errors = self._ledger.tell(trial)
        if last is not None and last.error is not None and last.error not in errors:
            errors.append(last.error)  # a drain has told of it, but not whoever completes
        self._runner.raise_failure()
        checks.raise_all(trial, errors)

    async def drain(self, *, deadline_s: float | None = None, strict: bool = False) -> DrainReport:
        """Make everything durable that was handed over or reported, the most valuable first.

        Args:
            deadline_s: when to stop: what is not done by then is given up, in a way that the next
                start can go on with.
            strict: also what was given up for lack of time is an error.

        Returns:
            What is durable, and what was given up.

        Raises:
            DrainError: something has failed; it has the same report.
            ConfigError: nothing has, but the observer.
        """
        self._check_open()
        checks.check_number("deadline_s", deadline_s)
        began, told = self._clock.monotonic(), self._ledger.told
        try:
            if deadline_s is None:
                await self._finish()
            elif not await within(self._clock, deadline_s, self._finish):
                self._book.paused = True
                self._runner.give_up(reasons.late)
                # A syncer has its grace; a disk that does not answer has no more.
                await within(self._clock, GRACE_S + 1, self._runner.idle)
        finally:
            self._book.hurry(on=False)
            self._book.paused = False
            self._runner.wake()
        self._runner.raise_failure()
        self._runner.withdraw(self._book.held_up(), reasons.held_up)
        if deadline_s is None:
            await self._listeners.heard()
        else:
            left_s = began + deadline_s - self._clock.monotonic()
            await within(self._clock, max(left_s, _HEARD_S), self._listeners.heard)
        report = self._ledger.report(told)
        error, self._listeners.error = self._listeners.error, None
        # What another drain has given up, this one has not got done either.
        strict = strict or deadline_s is None
        fatal = [e for e in report.lost if strict or not isinstance(e.error, reasons.LateError)]
        if fatal or (report.lost and error is not None):
            raise DrainError(report) from error
        if error is not None:
            raise ConfigError(
                f"the observer failed, and was not called since: {error!r}"
            ) from error
        return report

    async def _finish(self) -> None:
        """Sync all that has changed; what fails meanwhile, because it ran already, once more."""
        asked: set[Tree] = set()
        for _ in range(2):
            for trial in self._trials.values():
                tree = trial.driven
                behind = tree.changed_at < inf  # so it is after a failure, too
                goes_up = tree.direction == "up" and self._moves_trees and not trial.over
                if behind and goes_up and tree not in asked:
                    asked.add(tree)
                    self._runner.ask(self._book.job_of(tree, Urgency.FINAL))
            self._book.hurry(on=True)
            self._runner.wake()
            await self._runner.idle()

    def until_signal(self, *, deadline_s: float | None = None) -> AbstractAsyncContextManager[Stop]:
        """`async with` this: at SIGTERM or Ctrl-C the block is cancelled and everything drained.

        What it gives says which signal it was, if one came: the program goes on behind the block.
        A second signal stops at once. In the main thread only.

        Args:
            deadline_s: as of `drain`.

        Raises:
            DrainError: as `drain`.
            KeyboardInterrupt: a second signal came.
        """

        async def drain() -> None:
            self._out_of_time = deadline_s is not None
            await self.drain(deadline_s=deadline_s)

        return until_signal(drain)

    def events(self) -> Feed:
        """All that happens from now on: `async for event in scheduler.events()`.

        Ends when the scheduler is closed. Any number of tasks may listen, each with its own.
        """
        return self._listeners.feed()

    def status(self) -> Status:
        """How everything is now."""
        now, error = self._clock.monotonic(), self._listeners.error
        return Status(
            running=len(self._book.running()),
            waiting=len(self._book.waiting()),
            blocked=tuple(self._book.blocked),
            trials=tuple(trial.status(self._ledger, now) for trial in self._trials.values()),
            observer_error=repr(error) if error else "",
        )

    # -- inside

    def _check_open(self) -> None:
        self._runner.raise_failure()
        if self._runner.closed:
            raise ConfigError("this SyncScheduler is not open; use it inside its `async with`")

    def _check_taking(self) -> None:
        self._check_open()
        if self._leaving:
            raise ConfigError("this SyncScheduler is being left, and takes nothing any more")

    def _trial(self, name: str) -> Trial:
        found = self._trials.get(name)
        if found is None or found.over or self._runner.closed:
            self._check_open()
            if found is None:
                raise ConfigError(f"trial {quote(str(name))} takes no part; add it first")
            raise ConfigError(f"trial {quote(name)} is being completed; add it again afterwards")
        return found


def _unpickle(settings: dict[str, Any]) -> SyncScheduler:
    return SyncScheduler(**settings)
