"""Bulk traffic over HTTP: one session per store, nothing trusted that can be checked.

aiohttp takes an answer that ends early for a whole one, knows no rate below which a connection is
as good as dead, and retries a request whose body it has used up. What a server may do wrong ends
here, as an error of ours; what a status means is for the caller to say.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
import anyio
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.payload import Payload
from anyio.lowlevel import checkpoint
from yarl import URL

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
from .objects import Data

__all__ = ["Answer", "Http", "http_time", "retry_after_s"]

_SLICE_BYTES = 128 * KIB
_READ_BYTES = 256 * KIB
_ERROR_BYTES = 64 * KIB
_PLAIN_BYTES = 64 * MIB  # of an answer for which the caller has no buffer
_ALIVE_BYTES = 4 * KIB
_MAX_WAIT_S = 300.0
_CONNECT_S = 15.0
_NO_ADDRESS = (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)
_IDLE_S = 15.0  # stores close idle connections after 20 s and less


class Answer(NamedTuple):
    """What a server said. `body` of a failure is cut off after 64 KiB."""

    status: int
    headers: Mapping[str, str]
    body: bytes | memoryview


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
    """One session: connections are kept, and closed when anything about them went wrong.

    Args:
        max_connections: at once.
        stall_s: a request in which fewer than 4 KiB move in that time is given up.
        ca_file: certificates to trust instead of the system's.
    """

    def __init__(
        self, *, max_connections: int, stall_s: float = 60.0, ca_file: str | None = None
    ) -> None:
        self._max_connections, self._stall_s, self._ca_file = max_connections, stall_s, ca_file
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[str, str] = {}

    async def open(self, threads: Threads) -> None:
        """Make the session; certificates are read in a thread. Again: no effect.

        Raises:
            ConfigError: the file of certificates cannot be read.
        """
        if self._session is not None:
            return
        # aiohttp has read the system's when it was imported: that takes a fifth of a second.
        trust = True if self._ca_file is None else await threads.run(_trust, self._ca_file)
        self._proxies = getproxies()
        self._session = aiohttp.ClientSession(
            connector=_Connector(limit=self._max_connections, ssl=trust, keepalive_timeout=_IDLE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        )
        # It would send a request whose answer got lost a second time without a word: a write under
        # a condition then meets its own success. Retrying is done, and told, in one place.
        self._session._retry_connection = False

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session, for an SDK that shares it; it is open."""
        assert self._session is not None, "open comes first"
        return self._session

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
        if self.session.closed:
            raise ConfigError(f"{what}: the store is closed")
        target = _parsed(url)
        if target is None:
            raise ConfigError(f"{what}: that is not the address of a server; check the endpoint")
        alive_bytes = 1 if patient else _ALIVE_BYTES
        if method not in ("PUT", "POST"):
            return await self._send(method, target, headers, None, what, into, alive_bytes)
        body = _Slices(data)
        return await finish(
            lambda: self._send(method, target, headers, body, what, into, alive_bytes),
            worth_it=lambda: body.sent,
        )

    async def _send(
        self,
        method: str,
        target: URL,
        headers: Mapping[str, str],
        data: _Slices | None,
        what: str,
        into: memoryview | None,
        alive_bytes: int,
    ) -> Answer:
        try:
            with anyio.CancelScope() as scope, _Pulse(scope, self._stall_s, alive_bytes) as pulse:
                if data is not None:
                    data.pulse = pulse
                async with self.session.request(
                    method,
                    target,
                    headers=headers,
                    data=data,
                    allow_redirects=False,
                    proxy=self.proxy_for(target),
                ) as response:
                    pulse.beat(_ALIVE_BYTES)
                    body = await _read(response, into, pulse, what)
                    return Answer(response.status, response.headers, body)
            failure: AsyncSyncError = StalledError(
                f"{what}: hardly anything moved for {self._stall_s:g} s"
            )
        except AsyncSyncError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            failure = _ours(exc, what, target)
        raise failure  # here it does not bring the original along, which knows the whole address

    def proxy_for(self, target: URL) -> str | None:
        """The proxy that the environment names for an address, if any."""
        proxy = self._proxies.get(target.scheme)
        return proxy if proxy and not proxy_bypass(target.host or "") else None

    async def aclose(self) -> None:
        """Close every connection. Again: no effect."""
        if self._session is not None:
            await self._session.close()
            await checkpoint()  # the loop lets go of aborted connections only now


def _parsed(url: str) -> URL | None:
    """None for what names no server; the error would show it, secrets and all."""
    try:
        target = URL(url, encoded=True)
        named = bool(target.host)
    except ValueError:
        return None
    return target if named else None


class _Connector(aiohttp.TCPConnector):
    """Over TLS, drops what is not used again at once.

    Closing it politely takes as long as the other side likes, and nobody would wait for that.
    """

    def _release(
        self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False
    ) -> None:
        should_close = should_close or protocol.should_close
        if key.is_ssl and should_close:
            protocol.abort()
        super()._release(key, protocol, should_close=should_close)


class _Pulse:
    """Ends a scope when too few bytes have moved for too long.

    A beat only notes the time: a deadline moved by every one of them would cost more than the
    bytes.
    """

    def __init__(self, scope: anyio.CancelScope, stall_s: float, alive_bytes: int) -> None:
        self._scope, self._stall_s, self._alive_bytes = scope, stall_s, alive_bytes
        self._bytes = 0
        self._loop = asyncio.get_running_loop()
        self._beat_at = self._loop.time()

    def __enter__(self) -> Self:
        self._timer = self._loop.call_at(self._beat_at + self._stall_s, self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def beat(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        if self._bytes >= self._alive_bytes:
            self._bytes = 0
            self._beat_at = self._loop.time()

    def _look(self) -> None:
        if self._loop.time() >= self._beat_at + self._stall_s:
            self._scope.cancel()
        else:
            self._timer = self._loop.call_at(self._beat_at + self._stall_s, self._look)


class _Slices(Payload):
    """A body in memory, written in slices; it can be written again on another connection.

    Attributes:
        pulse: told of every slice.
        sent: all of it has left.
    """

    _autoclose = True  # nothing to close

    def __init__(self, data: Data) -> None:
        super().__init__(data, content_type="application/octet-stream")
        self._size = len(data)
        self.pulse: _Pulse | None = None
        self.sent = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        view = memoryview(self._value)
        for start in range(0, len(view), _SLICE_BYTES):
            piece = view[start : start + _SLICE_BYTES]
            await writer.write(piece)
            if self.pulse is not None:
                self.pulse.beat(len(piece))
        self.sent = True


async def _read(
    response: aiohttp.ClientResponse, into: memoryview | None, pulse: _Pulse, what: str
) -> bytes | memoryview:
    if response.status >= 300:
        return await _some(response, pulse, _ERROR_BYTES)
    if response.method == "HEAD":
        return b""
    # A body closed without a length is taken as whole by aiohttp; the caller knows its length.
    announced = response.content_length
    whole = response.status == 200
    if whole and into is not None and announced is not None and announced > len(into):
        raise PermanentError(
            f"{what}: the server sends {announced} bytes where {len(into)} were asked for; it does "
            "not honour ranges"
        )
    if into is None:
        body: bytes | memoryview = await _some(response, pulse, _PLAIN_BYTES + 1)
        if len(body) > _PLAIN_BYTES:
            raise PermanentError(
                f"{what}: the answer is larger than {_PLAIN_BYTES // MIB} MiB, too large to be "
                "taken at once; ask for it in ranges"
            )
    else:
        body = into[: await _fill(response, into, pulse, what)]
    if announced is not None and len(body) != announced:
        raise TransientError(f"{what}: {len(body)} of {announced} bytes arrived")
    return body


async def _fill(
    response: aiohttp.ClientResponse, into: memoryview, pulse: _Pulse, what: str
) -> int:
    at = 0
    while True:
        # Piece by piece as they came: `readany` would copy all that wait into one first.
        piece, is_end_of_chunk = await response.content.readchunk()
        if not piece and not is_end_of_chunk:
            return at
        if at + len(piece) > len(into):
            raise TransientError(f"{what}: more than the {len(into)} bytes asked for arrived")
        into[at : at + len(piece)] = piece
        at += len(piece)
        pulse.beat(len(piece))


async def _some(response: aiohttp.ClientResponse, pulse: _Pulse, limit: int) -> bytes:
    pieces: list[bytes] = []
    left = limit
    while left > 0 and (piece := await response.content.readany()):
        pieces.append(piece[:left])
        left -= len(piece)
        pulse.beat(len(piece))
    if left <= 0:
        response.close()  # the rest is not wanted
    return b"".join(pieces)


def _ours(exc: Exception, what: str, target: URL) -> AsyncSyncError:
    """The error for what aiohttp, yarl or the system raised.

    Of the address, which may be a secret, only the host is named.
    """
    foreign = isinstance(exc, aiohttp.ClientError | OSError)  # else of yarl: some are both
    if not foreign or isinstance(exc, _NO_ADDRESS):
        return ConfigError(
            f"{what}: {quote(target.scheme)}://{quote(target.host or '')} is not the address of a "
            "server; check the endpoint"
        )
    where = quote(str(target.origin()))
    if isinstance(exc, aiohttp.ClientSSLError):
        return _no_trust(exc, what, where)
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return TransientError(f"{what}: no such host, {where}; check the endpoint and the network")
    if isinstance(exc, aiohttp.ServerTimeoutError):
        return StalledError(f"{what}: {where} does not answer")
    if isinstance(exc, aiohttp.ClientConnectorError):
        reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else "no connection"
        return TransientError(
            f"{what}: cannot connect to {where}: {reason}; check the endpoint, and that it runs"
        )
    return TransientError(f"{what}: the connection to {where} broke ({type(exc).__name__})")


def _no_trust(exc: aiohttp.ClientSSLError, what: str, where: str) -> AsyncSyncError:
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return ConfigError(
            f"{what}: the certificate of {where} is not trusted "
            f"({exc.certificate_error.__class__.__name__}); set AWS_CA_BUNDLE or SSL_CERT_FILE to "
            "the certificates to trust"
        )
    return ConfigError(
        f"{what}: {where} does not speak TLS as it should; check whether it is http or https"
    )


def _trust(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:
        raise ConfigError(
            f"the certificates in {quote(ca_file)} cannot be read: {exc.strerror}"
        ) from exc
