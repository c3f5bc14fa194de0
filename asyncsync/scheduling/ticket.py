"""Ticket: a sync that somebody asked for, until it is known what became of it."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import anyio

from ..errors import TransientError
from ..syncing import Receipt

__all__ = ["Ticket"]


class Ticket:
    """A sync on its way: not durable yet. It belongs to the event loop it was asked for on.

    A pickled copy says what became of it; if that was not known, it has failed.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._free, self._over = anyio.Event(), anyio.Event()
        self._receipt: Receipt | None = None
        self._error: Exception | None = None

    def __reduce__(self) -> tuple[Callable[..., Ticket], tuple[object, ...]]:
        error = self._error
        if not self.done:
            error = TransientError(f"{self._what}: a copy does not hear of its end; ask the ticket")
        return _ended, (self._what, self._receipt, error)

    def __repr__(self) -> str:
        state = "on its way" if not self.done else "failed" if self._error else "durable"
        return f"<Ticket {self._what}: {state}>"

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not: `durable` returns or raises at once."""
        return self._over.is_set()

    @property
    def error(self) -> Exception | None:
        """Why it failed; None while it is on its way, and when it is durable."""
        return self._error

    async def durable(self) -> Receipt | None:
        """Wait until it is safe, or a newer version under the same name is.

        Any number of tasks may wait, any number of times. Cancelled, only the waiting ends.

        Returns:
            What the syncer returned; None if it returns nothing, or nothing has to be moved.

        Raises:
            Exception: what the syncer raised at the last attempt, with a note of where instead of a
                traceback; TransientError if the scheduler was left, or its deadline was over,
                before it was done.
        """
        await self._over.wait()
        if self._error is not None:
            raise _again(self._error)
        return self._receipt

    @property
    def _is_free(self) -> bool:
        """Whether its source may change."""
        return self._free.is_set()

    async def _freed(self) -> None:
        await self._free.wait()

    def _let_go(self) -> None:
        """Its source may change."""
        self._free.set()

    def _end(self, receipt: Receipt | None, error: Exception | None) -> None:
        """What became of it. Again: no effect."""
        if not self.done:
            self._receipt, self._error = receipt, error
            self._over.set()
            self._free.set()


def _again(error: Exception) -> Exception:
    """The same error to raise once more: it shall not collect, and hold, who was raised into."""
    try:
        again = copy(error)
    except Exception:  # noqa: BLE001 - it is somebody else's
        again = error
    if type(again) is not type(error):
        again = error
    again.__cause__, again.__suppress_context__ = error.__cause__, error.__suppress_context__
    return again.with_traceback(None)


def _ended(what: str, receipt: Receipt | None, error: Exception | None) -> Ticket:
    ticket = Ticket(what)
    ticket._end(receipt, error)
    return ticket
