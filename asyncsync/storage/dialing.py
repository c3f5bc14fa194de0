"""Connections to servers: where they lead, how they are opened, and which are kept."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from time import monotonic
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio
from aiohappyeyeballs import start_connection
from anyio.lowlevel import checkpoint

from ..concurrency import Budget, Threads
from ..errors import ConfigError, quote
from .wire import Connection, Sink

__all__ = ["ConnectError", "Connections", "Origin", "origin_of", "proxy_header"]

_CONNECT_S = 15.0
_IDLE_S = 15.0  # stores close idle connections after 20 s and less
_PORTS = {"http": 80, "https": 443}
_NEXT_ADDRESS_S = 0.25


class ConnectError(Exception):
    """No connection: why, in words."""


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


class Connections:
    """Connections that are kept for the next request.

    Args:
        limit: at once.
        ca_file: certificates to trust instead of the system's.
    """

    def __init__(self, limit: int, ca_file: str | None) -> None:
        self._slots, self._limit = Budget(limit), limit
        self._ca_file = ca_file
        self._trust: ssl.SSLContext | None = None
        self._trusting = anyio.Lock()
        self._proxies = getproxies()
        self._idle: dict[Origin, list[tuple[Connection, float]]] = {}
        self._all: set[Connection] = set()
        self.closed = False

    def proxy_for(self, origin: Origin) -> str | None:
        """The proxy that the environment names for a server, if any."""
        proxy = self._proxies.get(origin.scheme)
        return proxy if proxy and not proxy_bypass(origin.host) else None

    @asynccontextmanager
    async def lend(self, origin: Origin, threads: Threads) -> AsyncIterator[Connection]:
        """A connection for one request; waits until fewer than `limit` are in use.

        Raises:
            ConnectError, OSError: there is none.
        """
        async with self._slots.borrow():
            connection = self._kept(origin)
            if connection is None:
                self._make_room()
                connection = await self._connect(origin, threads)
            if self.closed:
                connection.abort()
                raise ConnectError("is not asked any more: the store was closed")
            try:
                yield connection
            finally:
                if connection.idle and not self.closed:
                    self._idle.setdefault(origin, []).append((connection, monotonic()))
                else:
                    connection.abort()
                    self._all.discard(connection)

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
        proxy = self.proxy_for(origin)
        context = await self.trust(threads) if origin.scheme == "https" else None
        if self.closed:
            raise ConnectError("is not asked any more: the store was closed")
        try:
            with anyio.fail_after(_CONNECT_S):
                if proxy is None:
                    connection = await _secured(origin, context)
                else:
                    connection = await _through(proxy, origin, context)
        except TimeoutError:
            raise ConnectError("does not answer") from None
        self._all.add(connection)
        return connection

    async def aclose(self) -> None:
        """Close all of them, those in use as well. Again: no effect."""
        self.closed = True
        self._idle.clear()
        for connection in self._all:
            connection.abort()
        self._all.clear()
        await checkpoint()  # the loop lets go of them only now


async def _dialled(host: str, port: int) -> Connection:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    reached = await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_S, interleave=1)
    try:
        _, connection = await loop.create_connection(Connection, sock=reached)
    except BaseException:
        reached.close()
        raise
    return connection


async def _secured(origin: Origin, context: ssl.SSLContext | None) -> Connection:
    # In two steps: a cancelled connect with TLS at once leaves its transport behind.
    connection = await _dialled(origin.host, origin.port)
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
    if via is None or via.scheme != "http":
        raise ConfigError("the proxy that the environment names is not an http:// address")
    connection = await _dialled(via.host, via.port)
    if context is None:
        return connection
    end = f"{origin.authority.removesuffix(f':{origin.port}')}:{origin.port}"
    head = f"CONNECT {end} HTTP/1.1\r\nHost: {end}\r\n{proxy_header(proxy)}\r\n"
    try:
        answer, _ = await connection.ask(
            head.encode(), b"", lambda _: Sink(None), bodiless=True, tunnel=True
        )
        if answer.status == 200:
            await connection.secure(context, origin.host)
            return connection
    except BaseException:
        connection.abort()
        raise
    connection.abort()
    raise ConnectError(f"is behind a proxy that refuses, with status {answer.status}")


def proxy_header(proxy: str) -> str:
    """The header line with the password in a proxy's address; empty where there is none. Pure."""
    parts = urlsplit(proxy)
    if parts.username is None:
        return ""
    told = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return f"Proxy-Authorization: Basic {base64.b64encode(told).decode()}\r\n"


def _trust(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as exc:
        raise ConfigError(
            f"the certificates in {quote(ca_file or 'the system')} cannot be read: {exc.strerror}"
        ) from exc
    context.set_alpn_protocols(["http/1.1"])
    return context
