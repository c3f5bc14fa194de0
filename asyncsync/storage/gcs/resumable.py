"""Resumable uploads: what the server holds already is never sent again."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from ...clock import Clock
from ...errors import TransientError
from ...secrets import Secret
from ...units import KIB
from ..http import Answer
from ..objects import Data
from .answers import Document, document, failure

__all__ = ["Read", "Sessions", "upload"]

_UNIT_BYTES = 256 * KIB  # every chunk but the last is a multiple of it
_SESSIONS = 3
_TRIES = 4  # without a byte of progress
_WAIT_S = 0.5

Read = Callable[[int, int], Awaitable[Data]]
"""Gives bytes `start` to `end` of what is uploaded, any number of times."""


class Sessions(Protocol):
    """The requests that an upload is made of."""

    async def start(self) -> Secret:
        """Open a session and return its address, with which anybody could write."""
        ...

    async def send(self, session: Secret, content_range: str, data: Data) -> Answer:
        """Send some of the bytes, or none in order to ask; no status is an error here."""
        ...


class _GoneError(Exception):
    """The session has ended without an object."""


async def upload(
    sessions: Sessions,
    read: Read,
    size_bytes: int,
    *,
    chunk_bytes: int | None = None,
    what: str,
    clock: Clock,
) -> Document:
    """Upload `size_bytes` bytes and return the resource of the object.

    After a failure it asks how much the server holds and goes on from there; a session that is
    over is followed by another one, from the start.

    Args:
        chunk_bytes: sent at a time, rounded down to what the protocol allows; None: all at once.
        what: the upload, as errors name it.

    Raises:
        TransientError: several tries in a row came no byte further, or sessions keep ending.
        PreconditionError: the condition with which the sessions are opened does not hold.
    """
    if chunk_bytes is None:
        chunk_bytes = size_bytes
    else:
        chunk_bytes = max(_UNIT_BYTES, chunk_bytes // _UNIT_BYTES * _UNIT_BYTES)
    for _ in range(_SESSIONS):
        session = _Session(sessions, await sessions.start(), size_bytes, chunk_bytes, what)
        try:
            return await _finish(session, read, clock)
        except _GoneError:
            continue
    raise TransientError(f"{what}: the store ended {_SESSIONS} upload sessions before their time")


async def _finish(session: _Session, read: Read, clock: Clock) -> Document:
    while True:
        try:
            done = await session.step(read)
        except TransientError as exc:
            session.failures += 1
            if session.failures >= _TRIES:
                raise
            await clock.sleep(exc.retry_after_s or _WAIT_S * 2 ** (session.failures - 1))
        else:
            if done is not None:
                return done


class _Session:
    """How far one session has got.

    Attributes:
        failures: in a row, without a byte of progress in between.
    """

    def __init__(
        self, sessions: Sessions, address: Secret, size_bytes: int, chunk_bytes: int, what: str
    ) -> None:
        self._sessions, self._address, self._what = sessions, address, what
        self._size_bytes, self._chunk_bytes = size_bytes, chunk_bytes
        self._held = 0  # by the server, as far as we know
        self._most = 0  # ever held
        self._sent = 0
        self._certain = True
        self.failures = 0

    async def step(self, read: Read) -> Document | None:
        """Send the next chunk, or ask how much is held; the resource if that was the end."""
        start, size = self._held, self._size_bytes
        if not self._certain or start == size:
            answer = await self._sessions.send(self._address, f"bytes */{size}", b"")
            return self._take(answer, more_than=size if start == size else -1)
        self._certain = False
        self._sent = max(self._sent, end := min(start + self._chunk_bytes, size))
        data = await read(start, end)
        answer = await self._sessions.send(self._address, f"bytes {start}-{end - 1}/{size}", data)
        return self._take(answer, more_than=start, sure_of=end)

    def _take(
        self, answer: Answer, *, more_than: int, sure_of: int | None = None
    ) -> Document | None:
        """Learn from an answer.

        Args:
            more_than: progress is a server that holds more bytes than this.
            sure_of: it is to hold exactly so many; when it does not, it is asked.
        """
        if answer.status in (200, 201):
            return document(self._what, answer.body)
        if answer.status in (404, 410):
            raise _GoneError
        if answer.status != 308:
            raise failure(self._what, answer, of_object=False)
        self._held = _held(answer.headers)
        if self._held > self._sent:
            raise _GoneError  # it holds something else
        self._certain = sure_of in (None, self._held)
        if self._held > self._most:
            self._most, self.failures = self._held, 0
        if self._held <= more_than:
            raise TransientError(f"{self._what}: the store keeps no more than {self._held} bytes")
        return None


def _held(headers: Mapping[str, str]) -> int:
    """How many bytes the `Range` of a 308 says the server holds; none without one."""
    found = re.fullmatch(r"(?:bytes=)?0-(\d+)", headers.get("Range", ""))
    return int(found[1]) + 1 if found else 0
