"""Somebody else's program: started without a shell, bounded, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import anyio
from anyio.abc import Process

from ..clock import Clock
from ..errors import (
    AsyncSyncError,
    ConfigError,
    NotFoundError,
    PermanentError,
    TransientError,
    os_errors,
    quote,
)
from ..units import KIB

__all__ = ["run_program", "within"]

_GRACE_S = 5.0
_STDERR_BYTES = 8 * KIB

# Exit statuses that have a meaning of their own (BSD sysexits.h); every other one is for good.
_BY_STATUS: Mapping[int, type[AsyncSyncError]] = {66: NotFoundError, 75: TransientError}


async def within(clock: Clock, seconds: float, action: Callable[[], Awaitable[object]]) -> bool:
    """Await `action()` for at most `seconds`; whether it came to its end.

    It runs in a task that nobody outside holds, so that no number of plain `Task.cancel()` cuts
    its shielded cleanup. Its error is raised as it is, without a group around it.
    """
    ended = False
    failures: list[Exception] = []

    async def run() -> None:
        nonlocal ended
        try:
            await action()
            ended = True
        except Exception as exc:  # noqa: BLE001 - raised below
            failures.append(exc)
        group.cancel_scope.cancel()

    async def expire() -> None:
        await clock.sleep(seconds)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        group.start_soon(expire)
    if failures:
        raise failures[0]
    return ended


async def run_program(argv: Sequence[str], *, clock: Clock, what: str) -> None:
    """Run a program to its end; nothing of its process group outlives this call.

    Cancelled, or when the program is done, what is left of the group gets SIGTERM; and SIGKILL
    when the program is gone, or does not go within a grace.

    Raises:
        ConfigError: it cannot be started.
        NotFoundError, TransientError, PermanentError: its exit status says so.
    """
    with _Stderr() as stderr:
        process = await _spawn(argv, stderr)
        try:
            status = await process.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(process, clock)
    if status:
        kind = _BY_STATUS.get(status, PermanentError)
        raise kind(f"{what} failed: {quote(argv[0])} {_ending(status)}; {stderr.last_words()}")


async def _spawn(argv: Sequence[str], stderr: _Stderr) -> Process:
    """Start a program as the leader of a session, and so of a process group, of its own."""
    with stderr.writing() as written, os_errors("source", argv[0]):
        try:
            with anyio.CancelScope(shield=True):  # half a start: a program without an owner
                process = await anyio.open_process(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=written,
                    start_new_session=True,
                )
        except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
            raise ConfigError(
                f"cannot run {quote(argv[0])}: {exc.strerror}; install it or correct the command"
            ) from exc
    return process


async def _stop(process: Process, clock: Clock) -> None:
    # The program may be gone while others of its group are not. One that even SIGKILL does not
    # end is stuck in a device; waiting for it would hang the caller as well.
    for signum in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(process.pid, signum)
        if process.returncode is None:
            await within(clock, _GRACE_S, process.wait)


def _signal_group(leader: int, signum: signal.Signals) -> None:
    try:
        os.killpg(leader, signum)
    except (ProcessLookupError, PermissionError):
        return  # nobody is left, or only processes that took another user's identity


def _ending(status: int) -> str:
    if status > 0:
        return f"ended with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-status}"


class _Stderr:
    """The last bytes that a program and its children write on stderr.

    A pipe of our own: asyncio's would make the end of a program wait for everyone who holds the
    other side, such as a connection that ssh keeps open in the background.
    """

    def __init__(self) -> None:
        self._tail = bytearray()

    def __enter__(self) -> _Stderr:
        self._loop = asyncio.get_running_loop()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._loop.add_reader(self._read, self._pump)
        return self

    def __exit__(self, *exc: object) -> None:
        for _ in range(16):  # more than a pipe holds; whoever still writes is not waited for
            if not self._pump():
                break
        self._loop.remove_reader(self._read)
        os.close(self._read)

    @contextmanager
    def writing(self) -> Iterator[int]:
        """The end for the program; closed here when the block ends."""
        try:
            yield self._write
        finally:
            os.close(self._write)

    def _pump(self) -> bool:
        try:
            data = os.read(self._read, 64 * KIB)
        except BlockingIOError:
            return False
        self._tail += data
        del self._tail[:-_STDERR_BYTES]
        if not data:
            self._loop.remove_reader(self._read)
        return bool(data)

    def last_words(self) -> str:
        """What a message says about them: one line, safe on a terminal."""
        text = self._tail.decode(errors="backslashreplace").strip()
        return f"it said {quote(text)}" if text else "it said nothing on stderr"
