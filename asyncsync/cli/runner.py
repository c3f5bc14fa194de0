"""The one place where a command runs: loop, signals, errors, exit codes."""

from __future__ import annotations

import importlib.util
import io
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, TextIO

import anyio
import anyio.abc

from ..clock import Clock, SystemClock
from ..errors import AsyncSyncError
from ..events import Observer
from ..syncing import StorageSyncer
from .job import Job, Limits, Outcome
from .output import Output, describe_error
from .progress import Monitor, choose_display

__all__ = [
    "Job",
    "Limits",
    "OpenSyncer",
    "Outcome",
    "Session",
    "World",
    "report_failure",
    "run_job",
]


class OpenSyncer(Protocol):
    """How a command gets its syncer."""

    def __call__(
        self, limits: Limits, observe: Observer
    ) -> AbstractAsyncContextManager[StorageSyncer]: ...


def open_syncer(limits: Limits, observe: Observer) -> AbstractAsyncContextManager[StorageSyncer]:
    """The real thing. One number bounds both the files and the requests in flight."""
    if limits.jobs is None:
        return StorageSyncer(
            isolation="loop", bwlimit=limits.bwlimit, sync_timeout=limits.timeout_s, observe=observe
        )
    return StorageSyncer(
        isolation="loop",
        max_files=limits.jobs,
        max_requests=limits.jobs,
        bwlimit=limits.bwlimit,
        sync_timeout=limits.timeout_s,
        observe=observe,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What surrounds the program; tests pass their own."""

    stdin: TextIO | None
    stdout: TextIO | None
    stderr: TextIO | None
    clock: Clock = field(default_factory=SystemClock)
    open_syncer: OpenSyncer = open_syncer


def this_process() -> World:
    """The real surroundings."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal's encoding lacks is escaped, not an error.
            stream.reconfigure(errors="backslashreplace")
    return World(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a running command works with; `stop` is set when it shall end."""

    world: World
    output: Output
    monitor: Monitor
    stop: anyio.Event

    def syncer(self, limits: Limits | None = None) -> AbstractAsyncContextManager[StorageSyncer]:
        """A syncer that reports to this session; enter it."""
        return self.world.open_syncer(limits or Limits(), self.monitor)


def run_job(job: Job, world: World) -> int:
    """Run a command to its end, whatever that is, and return the exit code.

    The first SIGINT or SIGTERM cancels the command and waits for its clean-up; a second one ends
    the process at once, also while the loop is stuck.
    """
    fast = importlib.util.find_spec("uvloop") is not None
    return anyio.run(_main, job, world, backend_options={"use_uvloop": fast})


async def _main(job: Job, world: World) -> int:
    return await _Run(job, world).main()


class _Run:
    """One command on its way: who watches it, and what became of it."""

    def __init__(self, job: Job, world: World) -> None:
        self._job = job
        self._world = world
        self._output = Output(job.options, stdout=world.stdout, stderr=world.stderr)
        self._monitor = Monitor(self._output, world.clock, choose_display(self._output))
        self._scope, self._stop = anyio.CancelScope(), anyio.Event()
        self._signal: signal.Signals | None = None

    async def main(self) -> int:
        async with anyio.create_task_group() as group:
            await group.start(self._watch_signals)
            group.start_soon(self._monitor.run)
            code = await self._work()
            group.cancel_scope.cancel()
        return self._checked(code)

    async def _watch_signals(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                self._signal = number
                break
            else:
                return
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)  # the next one needs no loop to be obeyed
        self._monitor.close()  # and finds the cursor visible
        self._output.note(f"asyncsync: {number.name}: stopping; again to stop at once")
        if self._job.until_stopped:
            self._stop.set()
        else:
            self._scope.cancel()

    async def _work(self) -> int:
        session = Session(
            world=self._world, output=self._output, monitor=self._monitor, stop=self._stop
        )
        outcome = None
        try:
            with self._scope:
                outcome = await self._job.work(session)
        except Exception as exc:  # noqa: BLE001 - the last place that can turn it into words
            self._monitor.close()
            code = None if self._job.until_stopped else self._stopped_code()
            return report_failure(self._output, self._job.command, exc, code)
        self._monitor.close()
        return self._stopped() if outcome is None else self._finished(outcome)

    def _finished(self, outcome: Outcome) -> int:
        if outcome.text:
            self._output.result(outcome.text)
        self._summarize(outcome.exit_code, outcome.summary)
        return outcome.exit_code

    def _stopped(self) -> int:
        committed = self._monitor.tally.committed
        text = "stopped after the commit, which stands" if committed else self._job.unfinished
        self._output.error(text)
        code = self._stopped_code()
        self._output.emit("error", {"class": "Stopped", "message": text, "exit_code": code})
        self._summarize(code, {})
        return code or 1

    def _stopped_code(self) -> int | None:
        return 128 + self._signal if self._signal else None

    def _summarize(self, code: int | None, fields: Mapping[str, object]) -> None:
        head = {"command": self._job.command, "ok": code == 0, "exit_code": code}
        self._output.emit("summary", {**head, **fields})

    def _checked(self, code: int) -> int:
        """Lost output is a failure too, unless its reader went away."""
        error = self._output.stdout.error
        if error is None or code:
            return code
        self._output.error(
            f"standard output: {error.strerror or error}; the command itself succeeded"
        )
        return 1


def report_failure(
    output: Output, command: str, exc: Exception, exit_code: int | None = None
) -> int:
    """Say in one line what went wrong, with -v also where, and return the exit code."""
    ours = isinstance(exc, AsyncSyncError)
    code = exit_code or (exc.exit_code if isinstance(exc, AsyncSyncError) else 1)
    hint = "" if ours or output.options.verbose else "; run it with -v to see where"
    text = str(exc) if ours else f"{type(exc).__name__}: {exc}{hint}"
    if output.options.verbose:
        output.stderr.write("".join(traceback.format_exception(exc)))
    output.error(text)
    output.emit("error", describe_error(exc, code))
    output.emit("summary", {"command": command, "ok": False, "exit_code": code})
    return code
