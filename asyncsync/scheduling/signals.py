"""Ending in order when the machine is taken away, or somebody presses Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from ..concurrency import beside

__all__ = ["Stop", "until_signal"]


class Stop:
    """Whether a signal has ended the block, and which.

    Attributes:
        signal: None: no signal came.
    """

    signal: signal.Signals | None = None


@asynccontextmanager
async def until_signal(drain: Callable[[], Awaitable[object]]) -> AsyncIterator[Stop]:
    """Run the block until it ends, or until SIGTERM or SIGINT: then cancel it and await `drain`.

    Raises:
        KeyboardInterrupt: a second signal came before `drain` had ended; it was cancelled.
    """
    stop, block, draining = Stop(), anyio.CancelScope(), anyio.CancelScope()
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

        async def watch() -> None:
            async for number in signals:
                if stop.signal is not None:
                    draining.cancel()
                    return
                stop.signal = number
                block.cancel()

        async with beside(watch):
            try:
                with block:
                    yield stop
            finally:  # also when the block's own cleanup fails
                if stop.signal is not None:
                    with draining:
                        await drain()
    if draining.cancel_called:  # also when there was nothing left to interrupt
        raise KeyboardInterrupt
