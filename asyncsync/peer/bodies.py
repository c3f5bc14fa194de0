"""Bodies of requests: never longer than they say, never waited for in vain."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple, cast

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from ..clock import Clock
from ..digest import CHUNK_BYTES
from ..errors import AsyncSyncError, FormatError, RefusedError, StalledError, TransientError
from ..units import KIB, MIB
from ..wire.messages import CONTENT_TYPE
from .protocol import PeerProtocol

__all__ = ["Bodies"]

_PROGRESS_BYTES = 4096
_SLICE_BYTES = 256 * KIB
_DIRECT_BYTES = 256 * KIB  # below that, another descriptor costs more than the copies
_TURN_BYTES = MIB
_LOOKS = 4  # in the time that a body may stand still


class _Seen:
    """How far a body is, and was when it was last looked at.

    Attributes:
        at, moved: when it made progress, and how far it was then.
        window_at, window_got: the same of the time over which its pace is measured.
        until: when all of it has to be there.
        line: a socket of its own that it comes by.
        given_up: it was too slow for one of them.
    """

    __slots__ = (
        *("at", "given_up", "got", "line", "moved", "request", "until", "window_at", "window_got"),
    )

    def __init__(self, request: web.BaseRequest, at: float, until: float) -> None:
        self.request, self.until, self.given_up = request, until, False
        self.got = self.moved = self.window_got = 0
        self.at = self.window_at = at
        self.line: socket.socket | None = None

    def give_up(self) -> None:
        """End the connection; whoever moves the body hears of it."""
        self.given_up = True
        if self.request.transport is not None:
            self.request.transport.abort()
        if self.line is not None:  # which keeps the connection open by itself
            with suppress(OSError):
                self.line.shutdown(socket.SHUT_RDWR)


class Bodies:
    """Takes in bodies.

    Args:
        stall_s: one of which fewer than 4 KiB arrive in that time is given up.
        window_s, least_bytes_per_s: and one that is slower than that, over such a time.
    """

    def __init__(
        self, clock: Clock, stall_s: float, *, window_s: float = 60.0, least_bytes_per_s: int = 0
    ) -> None:
        self._clock, self._stall_s = clock, stall_s
        self._window_s, self._least_bytes_per_s = window_s, least_bytes_per_s
        self._open: set[_Seen] = set()

    async def watch(self) -> None:
        """Give up what stands still, for as long as this is awaited."""
        while True:
            await self._clock.sleep(min(self._stall_s, self._window_s) / _LOOKS)
            now = self._clock.monotonic()
            for seen in list(self._open):
                if not self._goes_on(seen, now):
                    seen.give_up()

    def _goes_on(self, seen: _Seen, now: float) -> bool:
        if seen.got - seen.moved >= _PROGRESS_BYTES:
            seen.moved, seen.at = seen.got, now
        passed_s = now - seen.window_at
        too_slow = seen.got - seen.window_got < self._least_bytes_per_s * passed_s
        if passed_s >= self._window_s:
            seen.window_at, seen.window_got = now, seen.got
            if too_slow:
                return False
        return now - seen.at < self._stall_s and now < seen.until

    def _begun(self, request: web.BaseRequest, within_s: float = math.inf) -> _Seen:
        now = self._clock.monotonic()
        seen = _Seen(request, now, now + within_s)
        self._open.add(seen)
        return seen

    async def fill(self, request: web.BaseRequest, into: memoryview) -> None:
        """Take a body that is exactly as long as `into`.

        Raises:
            TransientError: it ended early.
            StalledError: it stood still.
        """
        under_way = len(into) >= _DIRECT_BYTES and not request.content.is_eof()
        if under_way and (line := _line_of(request)) is not None:
            with line:
                await self._receive(request, line, into)
            return
        at = 0
        async for data in self.pieces(request, len(into)):
            into[at : at + len(data)] = data
            at += len(data)

    async def _receive(
        self, request: web.BaseRequest, line: socket.socket, into: memoryview
    ) -> None:
        """Receive a body where it is wanted: on its way through aiohttp it is copied four times."""
        protocol = cast("PeerProtocol", request.protocol)
        seen = self._begun(request)
        seen.line = line
        head = request.content.read_nowait()
        protocol.pause_reading()
        try:
            into[: len(head)] = head  # ValueError: more than was announced
            seen.got = len(head)
            await _received(line, into, seen)
        except BaseException as exc:
            if request.transport is not None:
                request.transport.abort()  # where the next request begins, nobody knows
            if isinstance(exc, OSError):
                raise self._broken(seen) from exc
            raise
        finally:
            self._open.discard(seen)
        request.content.feed_eof()
        protocol.body_was_taken()
        protocol.resume_reading()

    def _broken(self, seen: _Seen) -> TransientError:
        if seen.given_up:
            return StalledError("hardly anything of the body arrived for too long")
        return TransientError("the connection broke while a body was sent")

    async def whole(
        self, request: web.BaseRequest, most: int, *, within_s: float = math.inf
    ) -> bytes:
        """Take a body of at most that many bytes. Raises as `fill`, or RefusedError."""
        length = length_of(request, most)
        return b"".join([data async for data in self.pieces(request, length, within_s)])

    async def drop(self, request: web.BaseRequest, within_s: float) -> None:
        """Take in a body, as long as a chunk at most and for so long, that nobody wants.

        Whoever is still sending hears only of a connection that broke, and not why.
        """
        length = request.content_length or 0
        if length <= CHUNK_BYTES:
            with suppress(AsyncSyncError):  # it had been taken already, or does not come
                async for _ in self.pieces(request, length, within_s):
                    continue

    async def pieces(
        self, request: web.BaseRequest, length: int, within_s: float = math.inf
    ) -> AsyncIterator[bytes]:
        """The pieces of a body as they arrive; together exactly that many bytes."""
        seen = self._begun(request, within_s)
        try:
            while seen.got < length:
                data = await request.content.readany()
                if not data:
                    raise TransientError("the body ended before its time", side="source")
                seen.got += len(data)
                if seen.got > length:
                    raise FormatError("more than was announced")
                yield data
        except (ConnectionError, asyncio.IncompleteReadError, RequestPayloadError) as exc:
            raise self._broken(seen) from exc
        finally:
            self._open.discard(seen)

    async def send(
        self,
        request: web.BaseRequest,
        parts: Sequence[memoryview],
        status: int = 200,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> web.StreamResponse:
        """Send bytes as the body of an answer; whoever takes hardly any of it is given up.

        Raises:
            TransientError: it has hung up; nobody hears that.
        """
        length = sum(map(len, parts))
        response = web.StreamResponse(status=status, headers=headers)
        response.content_type, response.content_length = CONTENT_TYPE, length
        seen = self._begun(request)
        try:
            await response.prepare(request)
            for part in parts:
                for at in range(0, len(part), _SLICE_BYTES):
                    await response.write(part[at : at + _SLICE_BYTES])
                    seen.got += _SLICE_BYTES
            await response.write_eof()
        except ConnectionError as exc:
            raise self._broken(seen) from exc
        finally:
            self._open.discard(seen)
        return response


async def _received(line: socket.socket, into: memoryview, seen: _Seen) -> None:
    """Fill the rest of `into`; in small bites, because others have something to say, too."""
    loop = asyncio.get_running_loop()
    while seen.got < len(into):
        count = await loop.sock_recv_into(line, into[seen.got : seen.got + _SLICE_BYTES])
        if not count:
            raise ConnectionResetError
        seen.got += count
        if seen.got // _TURN_BYTES != (seen.got - count) // _TURN_BYTES:
            await asyncio.sleep(0)


def _line_of(request: web.BaseRequest) -> socket.socket | None:
    """A socket of our own to the same connection, if what comes there are the bytes themselves."""
    transport = request.transport
    if transport is None or transport.get_extra_info("sslcontext") is not None:
        return None
    found = transport.get_extra_info("socket")
    if found is None:
        return None
    line = socket.socket(fileno=os.dup(found.fileno()))
    line.setblocking(False)
    return line


class Lines(NamedTuple):
    """Whole lines, and the rest that is none yet."""

    lines: list[bytes]
    rest: bytes


def split_lines(rest: bytes, data: bytes, most: int) -> Lines:
    """The lines that are complete. FormatError: one is longer than `most`. Pure."""
    *lines, rest = (rest + data).split(b"\n")
    if len(rest) > most or any(len(line) > most for line in lines):
        raise FormatError("a line that is too long")
    return Lines(lines, rest)


def length_of(request: web.BaseRequest, most: int) -> int:
    """How long the body is.

    Raises:
        FormatError: that is not said, or said in another way than by a length.
        RefusedError: longer than `most`.
    """
    length = request.content_length
    if "Transfer-Encoding" in request.headers or length is None:
        raise FormatError("a body without a length")
    if length > most:
        raise RefusedError(f"a body of {length} bytes; {most} is the limit here")
    return length
