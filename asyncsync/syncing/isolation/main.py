"""The engine as a program, and as a thread."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import anyio

from .server import Server

__all__ = ["main", "run_here"]

_LISTENER_FD = 3
_MOST_FDS = 1 << 20


def main() -> None:
    """The process: `PARENT SOCKET LOG` are its arguments, the listening socket is descriptor 3."""
    # What the program had open without saying that it stays its own: devices among it.
    os.closerange(_LISTENER_FD + 1, _MOST_FDS)
    parent, *files = sys.argv[1:]
    listener = socket.socket(fileno=_LISTENER_FD)
    listener.set_inheritable(False)
    try:
        _run(listener, lambda: os.getppid() != int(parent), watch_signals=True)
    finally:
        for file in files:
            with suppress(FileNotFoundError):
                os.unlink(file)


def run_here(listener: socket.socket) -> None:
    """The thread: ends when nobody has used it for a while."""
    path = listener.getsockname()
    try:
        _run(listener, lambda: False, watch_signals=False)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _run(listener: socket.socket, is_orphan: Callable[[], bool], *, watch_signals: bool) -> None:
    fast = importlib.util.find_spec("uvloop") is not None
    anyio.run(_serve, listener, is_orphan, watch_signals, backend_options={"use_uvloop": fast})


async def _serve(
    listener: socket.socket, is_orphan: Callable[[], bool], watch_signals: bool
) -> None:
    async with anyio.create_task_group() as group:
        if watch_signals:
            group.start_soon(_until_signal, group.cancel_scope)
        await Server(listener, is_orphan).run()
        group.cancel_scope.cancel()


async def _until_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
            return
