"""HTTP/1.1 on one connection (RFC 9112): one request at a time, nothing taken for what it is not.

A body is received where it is wanted, without a copy in between, and sent from where it lies. What
a server may do wrong is a WireError.
"""

from __future__ import annotations

import asyncio
import re
import select
import ssl
from collections.abc import Callable
from typing import NamedTuple, cast

from multidict import CIMultiDict

from ..units import KIB
from .objects import Data

__all__ = ["Connection", "Head", "Sink", "WireError"]

_HEAD_BYTES = 64 * KIB
_SLICE_BYTES = 256 * KIB
_UNSENT_BYTES = 1024 * KIB  # waiting in a connection at most
_RAW_BYTES = 64 * KIB  # below TLS
_LENGTH_DIGITS = 18
_STATUS = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: [^\r\n]*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")


class WireError(Exception):
    """The other side broke off, or says what makes no sense."""


class Head(NamedTuple):
    """What an answer begins with.

    Attributes:
        length: of its body, in bytes; None: not known before it ends.
    """

    status: int
    headers: CIMultiDict[str]
    length: int | None

    def __repr__(self) -> str:  # a header may be a secret
        return f"<an answer with status {self.status}>"


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
        self._paused = self._busy = self._reusable = self._eof = False
        self._failure: BaseException | None = None
        self._begin(_nowhere, _unheard, bodiless=True)

    def _begin(
        self, choose: Callable[[Head], Sink], beat: Callable[[int], None], *, bodiless: bool
    ) -> None:
        self._choose, self._bodiless, self._beat = choose, bodiless, beat
        self._head: Head | None = None
        self._sink = Sink(None)
        self._pieces: list[bytes] = []
        self._got = 0
        self._left: int | None = None  # of the body or of this chunk; None: until it is closed
        self._chunked = self._in_chunk = self._trailing = self._direct = self._done = False

    # -- for the caller

    @property
    def idle(self) -> bool:
        """Whether another request can be sent."""
        if self._transport is None or self._transport.is_closing():
            return False
        return self._reusable and not self._busy and not self._filled

    @property
    def silent(self) -> bool:
        """Whether nothing has arrived that was not looked at yet, not even the end."""
        line = None if self._transport is None else self._transport.get_extra_info("socket")
        if line is None:
            return True
        waiting = select.poll()
        waiting.register(line.fileno(), select.POLLIN)
        return not waiting.poll(0)

    @property
    def unsent_bytes(self) -> int:
        """What was written and has not left yet."""
        lines = {line for line in (self._transport, self._raw) if line is not None}
        return sum(line.get_write_buffer_size() for line in lines if not line.is_closing())

    async def ask(
        self,
        head: bytes,
        body: Data,
        choose: Callable[[Head], Sink],
        *,
        bodiless: bool,
        beat: Callable[[int], None] = lambda _: None,
        sent: Callable[[], None] = lambda: None,
        tunnel: bool = False,
    ) -> tuple[Head, bytes | memoryview]:
        """Send a request and receive the whole answer. After a failure the connection is closed.

        Args:
            choose: where the body of an answer goes, by its head; what it raises is raised here.
            bodiless: no answer to this method has a body.
            beat: told how many bytes have moved.
            sent: called when the request has left as a whole.
            tunnel: what follows the answer is no HTTP of this connection's.

        Raises:
            WireError: the answer is not whole, or none.
        """
        self._begin(choose, beat, bodiless=bodiless)
        self._busy, self._reusable = True, False
        try:
            whole = await self._write(head, body, sent)
            while not self._done:
                await self._turn()
            assert self._head is not None
            # What has not left is the caller's memory.
            whole = whole and not self.unsent_bytes
            self._reusable = whole and (self._reusable or tunnel)
            if self._sink.into is not None:
                return self._head, self._sink.into[: self._got]
            return self._head, b"".join(self._pieces)
        except BaseException:
            self._reusable = False
            raise
        finally:
            self._busy = False
            if not self._reusable:
                self.abort()
            # A connection that is kept keeps nobody's memory.
            self._sink, self._pieces = Sink(None), []
            self._choose, self._beat = _nowhere, _unheard

    async def _write(self, head: bytes, body: Data, sent: Callable[[], None]) -> bool:
        """Send; stops when the answer is there before the body has gone."""
        view = memoryview(body)
        first = view[:_SLICE_BYTES]
        self._put([head, first] if len(first) else [head])
        self._beat(len(first))
        for start in range(_SLICE_BYTES, len(view), _SLICE_BYTES):
            if not await self._flushed():
                return False
            piece = view[start : start + _SLICE_BYTES]
            self._put([piece])
            self._beat(len(piece))
        sent()
        return await self._flushed()

    def _put(self, pieces: list[Data]) -> None:
        if self._transport is None or self._transport.is_closing():
            raise self._failure or WireError("ConnectionResetError")
        self._transport.writelines(pieces)

    async def _flushed(self) -> bool:
        """Wait until there is room for more; whether more is wanted."""
        while self._paused and not self._done:
            await self._turn()
        return not self._done

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
        if self._transport is None or self._filled or self._failure is not None:
            raise self._failure or WireError("it says something before TLS begins")
        raw = self._raw = self._transport
        raw.set_write_buffer_limits(high=_RAW_BYTES)
        loop = asyncio.get_running_loop()
        secured = await loop.start_tls(raw, self, context, server_hostname=host)
        if secured is None:
            raise WireError("ConnectionResetError")
        secured.set_write_buffer_limits(high=_UNSENT_BYTES, low=_SLICE_BYTES)
        self._transport = secured

    def abort(self) -> None:
        """Close it at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- for the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_UNSENT_BYTES, low=_SLICE_BYTES)
        self._reusable = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self._done:
            self._end_of_stream(exc)

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
        try:
            if self._failure is not None or (self._done and self._busy):
                self._reusable, self._filled = False, 0  # nobody has asked for that
                self.abort()
                return
            if self._direct:
                self._advance(nbytes)
            else:
                self._filled += nbytes
                self._understand()
        except Exception as exc:  # noqa: BLE001 - it is raised where the answer is awaited
            self._fail(exc)
        self._beat(nbytes)

    def eof_received(self) -> bool:
        self._eof = True  # over TLS only after a goodbye: an end without one proves nothing
        return False  # closes; `connection_lost` follows

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
        if self._filled == len(self._scratch):
            raise WireError("a head that is too long")
        if self._done and self._filled:
            self._failure = WireError("more than was asked for")  # of what would come next
            self._reusable, self._filled = False, 0

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
        head, persistent, chunked = _parsed(bytes(self._scratch[start:end]))
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
                raise WireError(f"more than the {len(into)} bytes asked for arrived")
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

    def _end_of_stream(self, exc: Exception | None) -> None:
        if self._head is not None and self._left is None and exc is None and self._eof:
            self._complete()  # as long as it comes
        elif exc is not None:
            self._fail(exc)
        elif self._head is None:
            self._fail(WireError("ServerDisconnected"))
        elif not self._chunked and self._head.length is not None:
            self._fail(WireError(f"{self._got} of {self._head.length} bytes arrived"))
        else:
            self._fail(WireError("the last part is missing"))

    def _complete(self) -> None:
        self._done = True
        self._notify()

    def _fail(self, exc: BaseException) -> None:
        if not self._done:
            self._failure = self._failure or exc
            self._sink = Sink(None)
        self._reusable, self._filled = False, 0  # the rest is for nobody
        self._notify()
        self.abort()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def _nowhere(head: Head) -> Sink:
    raise WireError("an answer to nothing")


def _unheard(size_bytes: int) -> None:
    pass


def _parsed(raw: bytes) -> tuple[Head, bool, bool]:
    """A head; whether the connection persists; whether the body comes in chunks."""
    status, *lines = raw.split(b"\r\n")
    found = _STATUS.fullmatch(status)
    if found is None:
        raise WireError("an answer that is not HTTP/1.1")
    headers = CIMultiDict[str]()
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            raise WireError("a header that is none")
        headers.add(name.decode(), value.strip(b" \t").decode("utf-8", "surrogateescape"))
    codings = ",".join(headers.getall("Transfer-Encoding", ())).lower().replace(" ", "")
    if codings not in ("", "chunked"):
        raise WireError("a transfer coding that is not known")
    options = {
        option.strip()
        for value in headers.getall("Connection", ())
        for option in value.lower().split(",")
    }
    persistent = found[1] == b"1" and "close" not in options
    return Head(int(found[2]), headers, _length(headers)), persistent, bool(codings)


def _length(headers: CIMultiDict[str]) -> int | None:
    texts = set(headers.getall("Content-Length", ()))
    if not texts:
        return None
    text = texts.pop()
    plain = text.isascii() and text.isdigit() and len(text) <= _LENGTH_DIGITS
    if texts or not plain or "Transfer-Encoding" in headers:
        raise WireError("a length that makes no sense")
    return int(text)
