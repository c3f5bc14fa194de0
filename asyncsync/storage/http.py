"""Bulk traffic over HTTP: nothing trusted that can be checked, nothing waited for in vain.

What a server may do wrong ends here, as an error of ours; what a status means is for the caller to
say. Nothing is sent twice: retrying is done, and told, in one place above.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Self

import anyio

from ..concurrency import Threads, finish
from ..errors import (
    AsyncSyncError,
    ConfigError,
    PermanentError,
    StalledError,
    TransientError,
    quote,
)
from ..units import KIB, MIB
from .dialing import ConnectError, Connections, origin_of, proxy_lines
from .heads import Head, WireError
from .objects import Data
from .wire import Connection, Sink, TooLongError

__all__ = ["Answer", "Http", "http_time", "retry_after_s"]

_ERROR_BYTES = 64 * KIB
_PLAIN_BYTES = 64 * MIB  # of an answer for which the caller has no buffer
_ALIVE_BYTES = 4 * KIB
_MAX_WAIT_S = 300.0
_LOOKS_A_STALL = 8  # how often it is looked whether anything moved, in the time it may take
_BODILESS = ("HEAD",)
_WRITES = ("PUT", "POST", "DELETE")
_TARGET = re.compile(r"[^\0-\x20\x7f]*")


class Answer(NamedTuple):
    """What a server said. `body` of a failure is cut off after 64 KiB."""

    status: int
    headers: Mapping[str, str]
    body: bytes | memoryview

    def __repr__(self) -> str:  # a header may be a secret
        return f"<an answer with status {self.status}>"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long a server wants to be left alone: `Retry-After`, five minutes at most.

    A date is taken by the server's own clock; None where nothing that makes sense is said.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _MAX_WAIT_S)
    then, now = http_time(text), http_time(headers.get("Date"))
    return None if then is None or now is None else min(max(then - now, 0.0), _MAX_WAIT_S)


def http_time(text: str | None) -> float | None:
    """Unix seconds of a `Date` or `Last-Modified`; None if it is missing or makes no sense."""
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (TypeError, ValueError, OverflowError):
        return None


class Http:
    """Requests over connections that are kept, and closed when anything about them went wrong.

    Args:
        max_connections: at once.
        stall_s: a request in which fewer than 4 KiB move in that time is given up.
        ca_file: certificates to trust instead of the system's.
    """

    def __init__(
        self, *, max_connections: int, stall_s: float = 60.0, ca_file: str | None = None
    ) -> None:
        self._connections = Connections(max_connections, ca_file)
        self._stall_s, self._ca_file = stall_s, ca_file
        self._threads: Threads | None = None

    async def open(self, threads: Threads) -> None:
        """Get ready; certificates are read in a thread. Again: no effect.

        Raises:
            ConfigError: the file of certificates cannot be read.
        """
        if self._ca_file is not None:  # the system's are read when they are needed
            await self._connections.trust(threads)
        self._threads = threads

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        what: str,
        data: Data = b"",
        into: memoryview | None = None,
        patient: bool = False,
    ) -> Answer:
        """Send one request and read the whole answer. No status is an error here.

        Cancelled when a write has left as a whole, it waits for the answer, five seconds at most:
        what is deleted next must not come into being after that.

        Args:
            url: sent as it is: the caller has encoded it. It may be a secret.
            what: the request, as errors name it.
            data: the body; not looked at any more when this has returned or failed, unless the
                connection still holds some of it: after a failure, do not use its memory again.
            into: takes the body of an answer that is a success.
            patient: any byte is a sign of life, for what takes the server long: it sends a blank
                now and then meanwhile.

        Raises:
            PermanentError: the answer is too large to be taken without `into`.
            TransientError: no connection, or it broke, or the answer is not as long as it says.
            StalledError: hardly anything moved for too long.
            ConfigError: the server's certificate is not trusted, or the address makes no sense.
        """
        if self._connections.closed or self._threads is None:
            raise ConfigError(f"{what}: the store is closed")
        threads = self._threads
        request = _Request(method, url, headers, what, data, into, 1 if patient else _ALIVE_BYTES)
        if method not in _WRITES:
            return await self._send(request, threads)
        return await finish(lambda: self._send(request, threads), worth_it=lambda: request.sent)

    async def _send(self, request: _Request, threads: Threads) -> Answer:
        origin, what = request.origin, request.what
        try:
            async with self._connections.lend(origin, threads) as connection:
                request.connection = connection
                with (
                    anyio.CancelScope() as scope,
                    _Pulse(scope, connection, self._stall_s, request.alive_bytes),
                ):
                    head, body = await connection.ask(
                        request.head(self._connections.proxy_for(origin)),
                        request.data,
                        request.sink,
                        bodiless=request.method in _BODILESS,
                    )
                    return request.checked(head, body)
            failure: AsyncSyncError = StalledError(
                f"{what}: hardly anything moved for {self._stall_s:g} s"
            )
        except AsyncSyncError:
            raise
        except ConnectError as exc:
            failure = exc.kind(f"{what}: {exc}")
        except (WireError, OSError) as exc:
            failure = request.broken(exc)
        raise failure  # here it does not bring the original along

    def proxy_for(self, url: str) -> str | None:
        """The proxy that the environment names for an address, if any.

        Raises:
            ConfigError: it is none that is spoken here.
        """
        origin = origin_of(_split(url)[0])
        try:
            return None if origin is None else self._connections.proxy_for(origin)
        except ConnectError as exc:
            failure = exc.kind(str(exc))
        raise failure

    async def aclose(self) -> None:
        """Close every connection. Again: no effect."""
        await self._connections.aclose()


class _Request:
    """One request, and what is known of its answer.

    Attributes:
        connection: on which it is sent; None: there is none yet.
    """

    def __init__(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        what: str,
        data: Data,
        into: memoryview | None,
        alive_bytes: int,
    ) -> None:
        self.method, self.what, self.data, self.alive_bytes = method, what, data, alive_bytes
        self._headers, self._into = headers, into
        address, self._path = _split(url)
        origin = origin_of(address)
        if origin is None:
            raise ConfigError(f"{what}: that is not the address of a server; check the endpoint")
        self.origin = origin
        self.connection: Connection | None = None

    @property
    def sent(self) -> bool:
        """Whether it has left as a whole."""
        return self.connection is not None and self.connection.sent

    def head(self, proxy: str | None) -> bytes:
        """The request up to its body.

        Raises:
            ConfigError: some of it would end before its time, or is no text.
        """
        target, to_proxy = self._path, list[str]()
        if not _TARGET.fullmatch(target):
            raise ConfigError(f"{self.what}: the address holds a space or a line break")
        if proxy is not None and self.origin.scheme == "http":
            target, to_proxy = f"{self.origin}{target}", proxy_lines(proxy)
        lines = [f"{self.method} {target} HTTP/1.1", f"Host: {self.origin.authority}", *to_proxy]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        if self.method in _WRITES:
            lines.append(f"Content-Length: {len(self.data)}")
        text = "\n".join(lines)
        if "\r" in text or "\0" in text or text.count("\n") >= len(lines):
            raise ConfigError(f"{self.what}: a setting that is sent along holds a line break")
        try:
            return f"{text}\n\n".replace("\n", "\r\n").encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            pass
        raise ConfigError(f"{self.what}: a setting that is sent along is no text")

    def sink(self, head: Head) -> Sink:
        """Where the body of the answer goes."""
        if head.status >= 300:
            return Sink(None, _ERROR_BYTES)
        return Sink(None, _PLAIN_BYTES + 1) if self._into is None else Sink(self._into)

    def broken(self, exc: Exception) -> AsyncSyncError:
        """The error for what happened on the connection; of the address, only the server."""
        if isinstance(exc, TooLongError):
            kind = PermanentError if exc.status == 200 else TransientError
            hint = "; it does not honour ranges" if exc.status == 200 else ""
            return kind(f"{self.what}: the server sends {exc}{hint}")
        said = str(exc) if isinstance(exc, WireError) else type(exc).__name__
        return TransientError(
            f"{self.what}: the connection to {quote(str(self.origin))} broke ({said})"
        )

    def checked(self, head: Head, body: bytes | memoryview) -> Answer:
        """PermanentError if it is too large to be taken at once."""
        if head.status < 300 and self._into is None and len(body) > _PLAIN_BYTES:
            raise PermanentError(
                f"{self.what}: the answer is larger than {_PLAIN_BYTES // MIB} MiB, too large to "
                "be taken at once; ask for it in ranges"
            )
        return Answer(head.status, head.headers, body)


class _Pulse:
    """Ends a scope when too few bytes have moved for too long.

    It looks now and then: to be told of every read and write would cost more than they do.
    """

    def __init__(
        self, scope: anyio.CancelScope, connection: Connection, stall_s: float, alive_bytes: int
    ) -> None:
        self._scope, self._connection = scope, connection
        self._stall_s, self._alive_bytes = stall_s, alive_bytes
        self._loop = asyncio.get_running_loop()
        self._moved_bytes, self._moved_at = 0, self._loop.time()

    def __enter__(self) -> Self:
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _wait(self) -> None:
        self._timer = self._loop.call_later(self._stall_s / _LOOKS_A_STALL, self._look)

    def _look(self) -> None:
        moved_bytes, now = self._connection.moved_bytes, self._loop.time()
        if moved_bytes - self._moved_bytes >= self._alive_bytes:
            self._moved_bytes, self._moved_at = moved_bytes, now
        if now - self._moved_at >= self._stall_s:
            self._scope.cancel()
        else:
            self._wait()


def _split(url: str) -> tuple[str, str]:
    """The address of the server, and what is asked of it; nothing is decoded."""
    scheme, _, rest = url.partition("://")
    end = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    path = rest[end:]
    return f"{scheme}://{rest[:end]}", path if path.startswith("/") else f"/{path}"
