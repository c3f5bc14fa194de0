"""Connections to a head: how many there may be, from the first byte of a handshake to the last."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter

from aiohttp.web_server import Server
from anyio.abc import TaskGroup

from ..clock import Clock
from ..errors import ConfigError
from ..wire.limits import Limits
from .guard import source_of
from .mishaps import tell
from .protocol import PeerProtocol

__all__ = ["Connections", "listeners"]

_BACKLOG = 512
_LOOKS = 4  # in the time that an answer may stand still
_PAUSE_S = 1.0  # where there are no descriptors, there are none in the next moment either


class Connections:
    """Takes connections in, counts them, and ends those that take nothing.

    Args:
        server: whom requests are handed to.
        tls: what each has to shake hands by first.
    """

    def __init__(
        self, server: Server, limits: Limits, clock: Clock, tls: ssl.SSLContext | None = None
    ) -> None:
        self._server, self._limits, self._clock, self._tls = server, limits, clock, tls
        self._counts: Counter[str] = Counter()
        self._open: set[PeerProtocol] = set()

    def admit(self, source: str) -> bool:
        """Whether one more from there is taken; if so, it counts until `leave`."""
        total = self._counts.total()
        most = self._limits.max_connections_per_address
        if total >= self._limits.max_connections or self._counts[source] >= most:
            return False
        self._counts[source] += 1
        return True

    def leave(self, source: str) -> None:
        """It has ended."""
        self._counts[source] -= 1
        if not self._counts[source]:
            del self._counts[source]

    async def accept(self, group: TaskGroup, listener: socket.socket) -> None:
        """Take in who comes, for as long as this is awaited; handshakes are in `group`."""
        while True:
            try:
                line, where = await asyncio.get_running_loop().sock_accept(listener)
            except ConnectionError:  # who came has gone again
                continue
            except OSError as exc:  # no descriptor is left; who is there goes on meanwhile
                tell("the head cannot take in who comes", exc)
                await self._clock.sleep(_PAUSE_S)
                continue
            if self.admit(source := source_of(where[0])):
                group.start_soon(self._welcome, line, source)
            else:
                line.close()

    async def _welcome(self, line: socket.socket, source: str) -> None:
        """Shake hands, which may take as long as the head of a request."""
        protocol = PeerProtocol(self._server, self._limits, self._open.add, self._ended)
        protocol.source = source
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                line,
                ssl=self._tls,
                ssl_handshake_timeout=self._limits.header_deadline_s if self._tls else None,
            )
        except OSError:  # also what TLS calls an error: who does not speak it is let go
            pass
        except Exception as exc:  # noqa: BLE001 - whatever somebody sends, the head goes on
            tell("the head cannot shake hands", exc)
        finally:
            if not protocol.began:  # else its end is told to `_ended`
                self.leave(source)

    def _ended(self, protocol: PeerProtocol) -> None:
        self._open.discard(protocol)
        self.leave(protocol.source)

    async def watch(self) -> None:
        """End connections that take nothing of what they are sent, for as long as awaited."""
        while True:
            await self._clock.sleep(self._limits.body_idle_s / _LOOKS)
            for protocol in list(self._open):
                protocol.look(self._clock.monotonic())


async def listeners(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen: one for each address of the host, and the same port for all.

    Raises:
        ConfigError: there is no such host, or the port is taken there.
    """
    made = list[socket.socket]()
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, where in dict.fromkeys(found):
            one = socket.socket(family, socket.SOCK_STREAM)
            made.append(one)
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((where[0], made[0].getsockname()[1] or port, *where[2:]))
            one.listen(_BACKLOG)
    except OSError as exc:
        for one in made:
            one.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {exc.strerror}; choose another"
        ) from exc
    return made
