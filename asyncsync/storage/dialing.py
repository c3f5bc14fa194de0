"""Connections to servers: where they lead, how they are opened, and which are kept."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
from functools import lru_cache
from time import monotonic
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio
from aiohappyeyeballs import start_connection
from anyio.lowlevel import checkpoint

from ..concurrency import Budget, Threads
from ..errors import AsyncSyncError, ConfigError, StalledError, TransientError, quote
from .connection import Connection, Sink
from .heads import WireError

__all__ = ["ConnectError", "Connections", "Direct", "Origin", "origin_of", "proxy_lines"]

_CONNECT_S = 15.0
_IDLE_S = 15.0  # stores close idle connections after 20 s and less
_PORTS = {"http": 80, "https": 443}
_NEXT_ADDRESS_S = 0.25
_TRUST_ADVICE = "set AWS_CA_BUNDLE or SSL_CERT_FILE to the certificates to trust"
_SETTINGS = (400, 401, 403, 405, 407)  # a proxy that will not be talked round


class ConnectError(Exception):
    """No connection: why, in words.

    Attributes:
        kind: the error that it is for whoever asked.
    """

    def __init__(self, kind: type[AsyncSyncError], why: str) -> None:
        super().__init__(why)
        self.kind = kind


class Origin(NamedTuple):
    """A server.

    Attributes:
        authority: as requests name it.
    """

    scheme: str
    host: str
    port: int
    authority: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


@lru_cache(maxsize=256)
def origin_of(address: str) -> Origin | None:
    """The server that an address such as `https://host:9000` names; None: none. Pure."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
        name = (host or "").encode("idna").decode() if ":" not in (host or "") else host
    except ValueError:
        return None
    if not name or parts.scheme not in _PORTS:
        return None
    shown = f"[{name}]" if ":" in name else name
    usual = port is None or port == _PORTS[parts.scheme]
    authority = shown if usual else f"{shown}:{port}"
    return Origin(parts.scheme, name, port or _PORTS[parts.scheme], authority)


class Direct(NamedTuple):
    """A server that is reached without a proxy, whatever the environment says.

    Attributes:
        context: what its certificate is checked by; None: the system's.
        advice: what to do where it is not trusted.
    """

    context: ssl.SSLContext | None
    advice: str


class Connections:
    """Connections that are kept for the next request.

    Args:
        limit: at once.
        ca_file: certificates to trust instead of the system's.
        direct: how the one server there is, is reached.
    """

    def __init__(self, limit: int, ca_file: str | None, direct: Direct | None = None) -> None:
        self._slots, self._limit = Budget(limit), limit
        self._ca_file = ca_file
        self._trust = direct.context if direct else None
        self._advice = direct.advice if direct else _TRUST_ADVICE
        self._trusting = anyio.Lock()
        self._proxies = {} if direct else getproxies()
        self._idle: dict[Origin, list[tuple[Connection, float]]] = {}
        self._all: set[Connection] = set()
        self._opening: set[anyio.CancelScope] = set()
        self.closed = False

    def proxy_for(self, origin: Origin) -> str | None:
        """The proxy that the environment names for a server, if any.

        Raises:
            ConnectError: it is none that is spoken here.
        """
        proxy = self._proxies.get(origin.scheme)
        if not proxy or proxy_bypass(origin.host):
            return None
        via = origin_of(proxy)
        if via is None or via.scheme != "http":
            raise ConnectError(
                ConfigError,
                f"the proxy that the environment names for {origin.scheme} is not an http:// "
                f"address; correct {origin.scheme}_proxy",
            )
        return proxy

    async def take(self, origin: Origin, threads: Threads) -> Connection:
        """A connection for one request, until `give_back`; waits until fewer than `limit` are out.

        Raises:
            ConnectError: there is none.
        """
        await self._slots.take()
        try:
            return self._kept(origin) or await self._connect(origin, threads)
        except BaseException:
            self._slots.give_back()
            raise

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """The request has ended: the connection is kept if it can be used again."""
        if connection.idle:
            self._idle.setdefault(origin, []).append((connection, monotonic()))
        else:
            connection.abort()
            self._all.discard(connection)
        self._slots.give_back()

    def _kept(self, origin: Origin) -> Connection | None:
        idle, now = self._idle.get(origin, []), monotonic()
        while idle:
            connection, since = idle.pop()
            if connection.idle and now - since < _IDLE_S and connection.silent:
                return connection
            connection.abort()
            self._all.discard(connection)
        return None

    def _make_room(self) -> None:
        """Close what is idle, the oldest first, until there is room for another connection."""
        idle = [(at, origin) for origin, kept in self._idle.items() for _, at in kept]
        idle.sort(key=lambda one: one[0])
        for _, origin in idle[: max(0, len(idle) + self._slots.used - self._limit)]:
            connection, _ = self._idle[origin].pop(0)
            connection.abort()
            self._all.discard(connection)
        self._idle = {origin: kept for origin, kept in self._idle.items() if kept}

    # -- opening

    async def trust(self, threads: Threads) -> ssl.SSLContext:
        """What certificates are checked against; read once, in a thread.

        Raises:
            ConfigError: the file of certificates cannot be read.
        """
        async with self._trusting:
            if self._trust is None:
                self._trust = await threads.run(_trust, self._ca_file)
        return self._trust

    async def _connect(self, origin: Origin, threads: Threads) -> Connection:
        self._make_room()
        connection = None
        with anyio.CancelScope() as scope:
            self._opening.add(scope)
            try:
                if not self.closed:
                    connection = await self._opened(origin, threads)
            finally:
                self._opening.discard(scope)
        if connection is not None:
            self._all.add(connection)
        if connection is None or self.closed:
            await self.aclose()  # of this one, too
            raise ConnectError(ConfigError, "the store is closed")
        return connection

    async def _opened(self, origin: Origin, threads: Threads) -> Connection:
        proxy = self.proxy_for(origin)
        context = await self.trust(threads) if origin.scheme == "https" else None
        try:
            with anyio.fail_after(_CONNECT_S):
                if proxy is None:
                    return await _secured(await _dialled(origin), origin, context)
                return await _through(proxy, origin, context)
        except (OSError, WireError) as exc:
            via = None if proxy is None else origin_of(proxy)
            failure = _failure(exc, origin, via, self._advice)
        raise failure

    async def aclose(self) -> None:
        """Close all of them, those in use as well. Again: no effect."""
        self.closed = True
        self._idle.clear()
        for scope in self._opening:
            scope.cancel()
        for connection in self._all:
            connection.abort()
        self._all.clear()
        await checkpoint()  # the loop lets go of them only now


async def _dialled(server: Origin) -> Connection:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    try:
        reached = await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_S)
    except RuntimeError as exc:  # of uvloop
        raise OSError(str(exc)) from exc
    _, connection = await loop.create_connection(Connection, sock=reached)
    return connection


async def _secured(
    connection: Connection, origin: Origin, context: ssl.SSLContext | None
) -> Connection:
    # In two steps: a cancelled connect with TLS at once leaves its transport behind.
    try:
        if context is not None:
            await connection.secure(context, origin.host)
    except BaseException:
        connection.abort()
        raise
    return connection


async def _through(proxy: str, origin: Origin, context: ssl.SSLContext | None) -> Connection:
    """A connection by way of a proxy; over TLS only the other end understands what is said."""
    via = origin_of(proxy)
    assert via is not None
    connection = await _dialled(via)
    if context is None:
        return connection
    end = f"{origin.authority.removesuffix(f':{origin.port}')}:{origin.port}"
    lines = [f"CONNECT {end} HTTP/1.1", f"Host: {end}", *proxy_lines(proxy)]
    try:
        answer, _ = await connection.ask(
            "\r\n".join([*lines, "", ""]).encode(),
            b"",
            lambda _: Sink(None),
            bodiless=True,
            tunnel=True,
        )
    except BaseException:
        connection.abort()
        raise
    if 200 <= answer.status < 300:
        return await _secured(connection, origin, context)
    connection.abort()
    raise ConnectError(
        ConfigError if answer.status in _SETTINGS else TransientError,
        f"{quote(str(origin))} is behind the proxy {quote(str(via))}, which refuses, with status "
        f"{answer.status}",
    )


def _failure(exc: Exception, origin: Origin, via: Origin | None, advice: str) -> ConnectError:
    """What it means that there is no connection; of addresses, only the servers are shown."""
    where, check = quote(str(origin)), "the endpoint"
    if via is not None:
        where, check = f"{where} by way of the proxy {quote(str(via))}", f"{origin.scheme}_proxy"
    if isinstance(exc, TimeoutError):
        return ConnectError(StalledError, f"{where} does not answer")
    if isinstance(exc, WireError):
        return ConnectError(TransientError, f"no connection to {where} ({exc}); check {check}")
    if isinstance(exc, ssl.SSLCertVerificationError):
        return ConnectError(
            ConfigError,
            f"the certificate of {where} is not trusted ({exc.verify_message}); {advice}",
        )
    if isinstance(exc, ssl.SSLError):
        return ConnectError(
            ConfigError,
            f"{where} does not speak TLS as it should; check whether it is http or https",
        )
    if isinstance(exc, socket.gaierror):
        host = quote(str(via or origin))
        return ConnectError(TransientError, f"no such host, {host}; check {check} and the network")
    number = exc.errno if isinstance(exc, OSError) else None
    reason = os.strerror(number) if number is not None and number > 0 else "no connection"
    return ConnectError(
        TransientError, f"cannot connect to {where}: {reason}; check {check}, and that it runs"
    )


def proxy_lines(proxy: str) -> list[str]:
    """The header line with the password in a proxy's address, if there is one. Pure."""
    parts = urlsplit(proxy)
    if parts.username is None:
        return []
    told = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return [f"Proxy-Authorization: Basic {base64.b64encode(told).decode()}"]


def _trust(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as exc:
        raise ConfigError(
            f"the certificates in {quote(ca_file or 'the system')} cannot be read: {exc.strerror}"
        ) from exc
    context.set_alpn_protocols(["http/1.1"])
    return context
