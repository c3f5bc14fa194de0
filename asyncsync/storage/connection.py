"""HTTP/1.1 on one connection (RFC 9112): one request at a time, nothing taken for what it is not.

A body is received where it is wanted, without a copy in between, and sent slice by slice from where
it lies. What a server may do wrong is a WireError.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, cast

import anyio

from ..units import KIB
from .heads import Head, WireError, field_of, read_head
from .objects import Data

if sys.platform == "linux":
    from fcntl import ioctl
    from termios import TIOCOUTQ

__all__ = ["Connection", "Sink", "StuckError", "TooLongError"]

_HEAD_BYTES = 64 * KIB
_SLICE_BYTES = 256 * KIB
_TLS_BYTES = 384 * KIB  # more than a layer of TLS holds: at the end it drops what has no room
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")


class TooLongError(WireError):
    """What comes with this status does not fit where it was to go."""

    def __init__(self, status: int, room: int) -> None:
        super().__init__(f"more than the {room} bytes asked for")
        self.status = status


class StuckError(WireError):
    """Whoever watches the connection has given it up."""


class Sink(NamedTuple):
    """Where a body goes.

    Attributes:
        into: what takes it; None: it is collected.
        limit: bytes collected at most; of what is longer, the rest is not received.
    """

    into: memoryview | None
    limit: int = 0


class Connection(asyncio.BufferedProtocol):
    """One connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._raw: asyncio.Transport | None = None  # below TLS
        self._scratch = bytearray(_HEAD_BYTES)
        self._filled = 0  # bytes of `_scratch` that are not understood yet
        self._wake: asyncio.Future[None] | None = None
        self._arrivals: select.poll | None = None
        self._paused = self._busy = self._reusable = False
        self._failure: BaseException | None = None  # there is no answer any more
        self._begin(_nowhere, bodiless=True)

    def _begin(self, choose: Callable[[Head], Sink], *, bodiless: bool) -> None:
        self._choose, self._bodiless = choose, bodiless
        self._head: Head | None = None
        self._sink = Sink(None)
        self._pieces: list[bytes] = []
        self._got = self._read_bytes = self._written_bytes = 0
        self._left: int | None = None  # of the body or of this chunk; None: until it is closed
        self._chunked = self._in_chunk = self._trailing = self._direct = self._done = False
        self._handed = self._whole = False  # the request: to the transport; before it was answered

    # -- for the caller

    @property
    def idle(self) -> bool:
        """Whether another request can be sent."""
        return self._writable and self._reusable

    @property
    def silent(self) -> bool:
        """Whether nothing has arrived that was not looked at yet, not even the end."""
        line = self._descriptor
        if line is None:
            return True
        if self._arrivals is None:
            self._arrivals = select.poll()
            self._arrivals.register(line, select.POLLIN)
        return not self._arrivals.poll(0)

    @property
    def sent(self) -> bool:
        """Whether the request has left as a whole."""
        return self._handed and not self._unsent_bytes

    @property
    def moved_bytes(self) -> int:
        """What of this request has left, and what has arrived since it began.

        On Linux what the kernel still holds has not left: several MiB, of which nothing else tells
        that they move.
        """
        held_bytes, line = self._unsent_bytes, self._descriptor
        if sys.platform == "linux" and line is not None and self._writable:
            held_bytes += int.from_bytes(ioctl(line, TIOCOUTQ, bytes(4)), sys.byteorder)
        return self._read_bytes + self._written_bytes - held_bytes

    async def ask(
        self,
        head: bytes,
        body: Data,
        choose: Callable[[Head], Sink],
        *,
        bodiless: bool,
        tunnel: bool = False,
        grace_s: float = 0.0,
    ) -> tuple[Head, bytes | memoryview]:
        """Send a request and receive the whole answer. After a failure the connection is closed.

        Args:
            choose: where the body of an answer goes, by its head; what it raises is raised here.
            bodiless: no answer to this method has a body.
            tunnel: what follows the answer is no HTTP of this connection's.
            grace_s: how long to wait for the answer when cancelled after everything has left: the
                other side may act on it however late, and so after what the caller does next.

        Raises:
            WireError: the answer is not whole, or none, or a success before the request was there.
        """
        self._begin(choose, bodiless=bodiless)
        self._busy, self._reusable = True, False
        try:
            await self._exchange(head, body, grace_s)
            answer = self._answer()
            # What has not left is the caller's memory.
            self._reusable = self._whole and (self._reusable or tunnel)
        except BaseException:
            self._reusable = False
            raise
        finally:
            self._busy = False
            if not self._reusable:
                self.abort()
            # A connection that is kept keeps nobody's memory.
            self._sink, self._pieces, self._choose = Sink(None), [], _nowhere
        return answer

    async def _exchange(self, head: bytes, body: Data, grace_s: float) -> None:
        try:
            await self._write(head, body)
            while not self._done:
                await self._turn()
        except asyncio.CancelledError:
            if grace_s and self.sent:  # else not even one more turn, in which it might leave
                await self._linger(grace_s)
            raise

    async def _linger(self, grace_s: float) -> None:
        # What becomes of it is of no interest: the cancellation is what counts.
        with anyio.move_on_after(grace_s, shield=True), suppress(Exception):
            while not self._done:
                await self._turn()

    def _answer(self) -> tuple[Head, bytes | memoryview]:
        assert self._head is not None
        if self._head.status < 300 and not self._whole:
            raise WireError("a success before everything was sent")
        if self._sink.into is not None:
            return self._head, self._sink.into[: self._got]
        return self._head, b"".join(self._pieces)

    async def _write(self, head: bytes, body: Data) -> None:
        """Send; stops when the answer, or the end, is there before the body has gone."""
        view, end = memoryview(body), _SLICE_BYTES
        piece: Data = head + view[:end]  # at once: two packets would wait for each other
        while self._writable and not self._done:
            assert self._transport is not None
            self._transport.write(piece)  # `writelines` of some Pythons never pauses
            self._written_bytes += len(piece)
            if end >= len(view):
                self._handed = True
                return
            piece = view[end : end + _SLICE_BYTES]
            end += _SLICE_BYTES
            await self._room()

    async def _room(self) -> None:
        """Wait until there is room for more, and until what has arrived is heard."""
        while self._paused and not self._done:
            await self._turn()
        if not self.silent:  # why it is refused, perhaps: a write that fails would drop that
            for _ in range(2):  # the loop reads only after it has run whoever is ready
                await asyncio.sleep(0)

    @property
    def _writable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def _turn(self) -> None:
        """Wait until something has happened."""
        if self._failure is None and not self._done:
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        if self._failure is not None and not self._done:
            raise self._failure

    async def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from now on. OSError: the other side does not."""
        if self._failure is not None:  # it has ended, or said something in clear
            raise self._failure
        assert self._transport is not None
        raw, self._scratch = self._transport, bytearray(_TLS_BYTES)
        self._raw = raw
        loop = asyncio.get_running_loop()
        secured = await loop.start_tls(raw, self, context, server_hostname=host)
        if secured is None:
            raise WireError("ConnectionResetError")
        self._transport = secured

    def abort(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def _unsent_bytes(self) -> int:
        """What was written and is still in a transport."""
        lines = (self._transport, self._raw)
        return sum(line.get_write_buffer_size() for line in lines if line and not line.is_closing())

    @property
    def _descriptor(self) -> int | None:
        line = None if self._transport is None else self._transport.get_extra_info("socket")
        return None if line is None or line.fileno() < 0 else line.fileno()

    # -- for the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._reusable = True

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self._done:
            self._handed = False  # what the transport still held is lost
            if self._raw is None:
                self._drain()
        self._transport = None
        self.fail(exc or self._cut_off())

    def _drain(self) -> None:
        """Take in what had arrived when a write failed: it may say why, and the kernel has it."""
        line = self._descriptor
        try:
            while line is not None and not self._done:
                if not (count := os.readv(line, [self.get_buffer(-1)])):
                    self.eof_received()
                    return
                self.buffer_updated(count)
        except OSError:
            pass  # that was all

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._notify()

    def get_buffer(self, sizehint: int) -> memoryview:
        into = self._sink.into
        self._direct = False
        if into is not None and not (self._chunked or self._filled or self._done):
            end = len(into) if self._left is None else min(len(into), self._got + self._left)
            if self._got < end:
                self._direct = True
                return into[self._got : end]
        return memoryview(self._scratch)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._read_bytes += nbytes
        if self._failure is not None:
            return
        try:
            if self._direct:
                self._advance(nbytes)
            else:
                self._filled += nbytes
                self._understand()
        except Exception as exc:  # noqa: BLE001 - it is raised where the answer is awaited
            self.fail(exc)

    def eof_received(self) -> bool:
        head = self._head
        # Over TLS a success needs its length: asyncio reports an end that anybody may have forged
        # as if it were a goodbye.
        proven = head is not None and (self._raw is None or head.status >= 300)
        if proven and self._left is None and not self._done:
            self._complete()  # as long as it comes
        else:
            self.fail(self._cut_off())
        return False  # closes

    # -- what arrives

    def _understand(self) -> None:
        """Take in what `_scratch` holds, as far as it goes."""
        if not self._busy:
            raise WireError("an answer to nothing")
        start = 0
        while not self._done and (used := self._take(start)):
            start += used
        self._filled -= start
        if start and self._filled:
            self._scratch[: self._filled] = self._scratch[start : start + self._filled]
        if self._filled >= _HEAD_BYTES:
            raise WireError("a head that is too long")
        if self._done and self._filled:
            self.fail(WireError("more than was asked for"))

    def _take(self, start: int) -> int:
        """Take in what comes next; how many bytes that were, none if more have to arrive."""
        if self._head is None:
            return self._take_head(start)
        if self._chunked and self._left == 0:
            return self._take_line(start)
        return self._take_body(start)

    def _take_head(self, start: int) -> int:
        end = self._scratch.find(b"\r\n\r\n", start, self._filled)
        if end < 0:
            return 0
        head, persistent, chunked = read_head(bytes(self._scratch[start:end]))
        if head.status >= 200:
            self._accept(head, persistent, chunked)
        return end + 4 - start

    def _accept(self, head: Head, persistent: bool, chunked: bool) -> None:
        self._head = head
        if self._bodiless or head.status in (204, 304):
            self._left = 0
        else:
            self._sink = self._choose(head)
            self._chunked, self._left = chunked, 0 if chunked else head.length
        self._reusable = persistent and self._left is not None
        if self._left == 0 and not self._chunked:
            self._complete()

    def _take_line(self, start: int) -> int:
        """What frames chunks: their sizes, what ends them, and fields behind the last one."""
        end = self._scratch.find(b"\r\n", start, self._filled)
        if end < 0:
            return 0
        line = bytes(self._scratch[start:end])
        if self._in_chunk:  # the line break after the bytes of a chunk
            self._in_chunk = False
            if line:
                raise WireError("a chunk that is longer than it says")
            return 2
        if self._trailing:
            if not line:
                self._complete()
            else:
                field_of(line)
            return end + 2 - start
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise WireError("a chunk without a size")
        self._left = int(found[1], 16)
        self._trailing = self._left == 0
        self._in_chunk = self._left > 0
        return end + 2 - start

    def _take_body(self, start: int) -> int:
        count = self._filled - start
        if self._left is not None:
            count = min(count, self._left)
        if not count:
            return 0
        piece = memoryview(self._scratch)[start : start + count]
        into = self._sink.into
        if into is None:
            self._collect(piece)
        else:
            if self._got + count > len(into):
                assert self._head is not None
                raise TooLongError(self._head.status, len(into))
            into[self._got : self._got + count] = piece
        self._advance(count)
        return count

    def _collect(self, piece: memoryview) -> None:
        room = self._sink.limit - self._got
        self._pieces.append(bytes(piece[: max(0, room)]))

    def _advance(self, count: int) -> None:
        self._got += count
        if self._left is not None:
            self._left -= count
        if self._sink.into is None and self._got >= self._sink.limit:
            self._reusable = False  # the rest is not wanted
            self._complete()
        elif self._left == 0 and not self._chunked:
            self._complete()

    def _cut_off(self) -> WireError:
        if self._head is None:
            return WireError("ServerDisconnected")
        if not self._chunked and self._head.length is not None:
            return WireError(f"{self._got} of {self._head.length} bytes arrived")
        return WireError("the last part is missing")

    def _complete(self) -> None:
        self._done, self._whole = True, self.sent
        self._notify()

    def fail(self, exc: BaseException) -> None:
        """There will be no answer: whoever waits for it gets this."""
        self._failure = self._failure or exc
        self._reusable, self._filled = False, 0  # the rest is for nobody
        self._notify()
        self.abort()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def _nowhere(head: Head) -> Sink:
    raise WireError("an answer to nothing")
