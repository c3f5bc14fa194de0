"""Bulk traffic over HTTP: nothing trusted that can be checked, nothing waited for in vain.

What a server may do wrong ends here, as an error of ours; what a status means is for the caller to
say. Nothing is sent twice: retrying is done, and told, in one place above.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from ..concurrency import Threads
from ..errors import (
    AsyncSyncError,
    ConfigError,
    PermanentError,
    StalledError,
    TransientError,
    quote,
)
from ..units import KIB, MIB
from .connection import Connection, Sink, StuckError, TooLongError
from .dialing import ConnectError, Connections, Direct, origin_of, proxy_lines
from .heads import Head, WireError
from .objects import Data

__all__ = ["Answer", "Http", "http_time", "retry_after_s"]

_ERROR_BYTES = 64 * KIB
_PLAIN_BYTES = 64 * MIB  # of an answer for which the caller has no buffer
_ALIVE_BYTES = 4 * KIB
_GRACE_S = 5.0  # for the answer to a write that has left when its sender is cancelled
_MAX_WAIT_S = 300.0
_LOOKS_A_STALL = 8  # how often it is looked whether anything moved, in the time it may take
_BODILESS = ("HEAD",)
_WRITES = ("PUT", "POST", "PATCH", "DELETE")
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
        direct: take no proxy, and for TLS this context, whatever the environment says.
    """

    def __init__(
        self,
        *,
        max_connections: int,
        stall_s: float = 60.0,
        ca_file: str | None = None,
        direct: Direct | None = None,
    ) -> None:
        self._connections = Connections(max_connections, ca_file, direct)
        self._watch = _Watch(stall_s)
        self._ca_file = ca_file
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
        check: Callable[[Head], None] | None = None,
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
            check: is shown the head of the answer; what it raises closes the connection.

        Raises:
            PermanentError: the answer is too large to be taken without `into`.
            TransientError: no connection, or it broke, or the answer is not as long as it says.
            StalledError: hardly anything moved for too long.
            ConfigError: the server's certificate is not trusted, or the address makes no sense.
        """
        if self._connections.closed or self._threads is None:
            raise ConfigError(f"{what}: the store is closed")
        request = _Request(method, url, headers, what, data, into, check)
        try:
            head = request.head(self._connections.proxy_for(request.origin))
            connection = await self._connections.take(request.origin, self._threads)
            self._watch.begin(connection, 1 if patient else _ALIVE_BYTES)
            try:
                answer, body = await connection.ask(
                    head,
                    data,
                    request.sink,
                    bodiless=method in _BODILESS,
                    grace_s=_GRACE_S if method in _WRITES else 0.0,
                )
                return request.checked(answer, body)
            finally:
                self._watch.end(connection)
                self._connections.give_back(request.origin, connection)
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
        self._watch.close()
        await self._connections.aclose()


class _Request:
    """One request, and what its answer may be."""

    def __init__(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        what: str,
        data: Data,
        into: memoryview | None,
        check: Callable[[Head], None] | None,
    ) -> None:
        self.method, self.what, self.data = method, what, data
        self._headers, self._into, self._check = headers, into, check
        address, self._path = _split(url)
        origin = origin_of(address)
        if origin is None:
            raise ConfigError(f"{what}: that is not the address of a server; check the endpoint")
        self.origin = origin

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
        if self._check is not None:
            self._check(head)
        if head.status >= 300:
            return Sink(None, _ERROR_BYTES)
        return Sink(None, _PLAIN_BYTES + 1) if self._into is None else Sink(self._into)

    def broken(self, exc: Exception) -> AsyncSyncError:
        """The error for what happened on the connection; of the address, only the server."""
        if isinstance(exc, StuckError):
            return StalledError(f"{self.what}: {exc}")
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


class _Watch:
    """Fails requests in which too few bytes have moved for too long.

    It looks at all of them now and then: to be told of every read and write would cost more than
    they do, and a timer for each as much as a small request.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._seen: dict[Connection, _Seen] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, connection: Connection, alive_bytes: int) -> None:
        """Watch the request that begins there; fewer bytes than `alive_bytes` are no progress."""
        loop = asyncio.get_running_loop()
        self._seen[connection] = _Seen(alive_bytes, loop.time())
        if self._timer is None or self._loop is not loop:  # it may have ended with its timers
            self._wait(loop)

    def end(self, connection: Connection) -> None:
        """It has ended. Again: no effect."""
        self._seen.pop(connection, None)

    def close(self) -> None:
        """Look no more. Again: no effect."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer = loop.call_later(self._stall_s / _LOOKS_A_STALL, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, now = None, loop.time()
        if self._seen:
            self._wait(loop)
        for connection, seen in self._seen.items():
            moved_bytes = connection.moved_bytes
            if moved_bytes - seen.moved_bytes >= seen.alive_bytes:
                seen.moved_bytes, seen.moved_at = moved_bytes, now
            elif now - seen.moved_at >= self._stall_s:
                connection.fail(StuckError(f"hardly anything moved for {self._stall_s:g} s"))


class _Seen:
    """How far a request was, when it last made progress."""

    __slots__ = ("alive_bytes", "moved_at", "moved_bytes")

    def __init__(self, alive_bytes: int, now: float) -> None:
        self.alive_bytes, self.moved_at, self.moved_bytes = alive_bytes, now, 0


def _split(url: str) -> tuple[str, str]:
    """The address of the server, and what is asked of it; nothing is decoded."""
    start = url.find("://") + 3
    ends = [at for at in (url.find("/", start), url.find("?", start)) if at >= 0]
    end = min(ends) if ends else len(url)
    path = url[end:]
    return url[:end], path if path.startswith("/") else f"/{path}"
