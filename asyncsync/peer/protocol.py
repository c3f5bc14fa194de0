"""Connections to a head: how many there may be, and how long one may keep us waiting.

aiohttp has neither deadlines for heads nor bounds for connections, and copies a body four times on
its way. What is done here instead touches attributes of its `RequestHandler` that are not public;
tests/unit/test_peer_protocol.py says which, for the next release of aiohttp.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast

from aiohttp import web
from aiohttp.http import HttpRequestParser
from aiohttp.web_protocol import RequestHandler, RequestPayloadError
from aiohttp.web_server import Server

from ..errors import FormatError
from ..units import KIB
from ..wire.failures import fault_of
from ..wire.limits import Limits
from ..wire.messages import CONTENT_TYPE, encode

__all__ = ["Connections", "PeerProtocol"]

_READ_BYTES = 512 * KIB


class Connections:
    """Makes the protocol of each connection, and counts them.

    Args:
        server: whom requests are handed to.
    """

    def __init__(self, server: Server, limits: Limits) -> None:
        self.limits, self._server = limits, server
        self._open: Counter[str] = Counter()

    def __call__(self) -> PeerProtocol:
        return PeerProtocol(self, self._server)

    def admit(self, address: str) -> bool:
        """Whether one more from there is taken; if so, it counts until `leave`."""
        total = self._open.total()
        most = self.limits.max_connections_per_address
        if total >= self.limits.max_connections or self._open[address] >= most:
            return False
        self._open[address] += 1
        return True

    def leave(self, address: str) -> None:
        """It has ended."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


class PeerProtocol(RequestHandler):
    """A connection that has to be admitted, and whose heads have to come in time."""

    __slots__ = ("_address", "_connections", "_deadline", "_heads")

    def __init__(self, connections: Connections, server: Server) -> None:
        limits = connections.limits
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=cast("Any", None),
            auto_decompress=False,
            keepalive_timeout=limits.keep_alive_s,
            max_line_size=limits.max_request_line_bytes,
            max_field_size=limits.max_header_bytes,
            max_headers=limits.max_headers,
            lingering_time=0.0,
            read_bufsize=_READ_BYTES,
        )
        self._connections, self._address = connections, ""
        self._deadline: asyncio.TimerHandle | None = None
        self._heads = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        if self._connections.admit(address):
            self._address = address
            self._wait_for_head()
        else:
            cast("asyncio.Transport", transport).abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_has_come()
        if self._address:
            self._connections.leave(self._address)
            self._address = ""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._request_in_progress and not self._messages:
            self._wait_for_head()
        super().data_received(data)
        if self._request_count > self._heads:
            self._heads = self._request_count
            self._head_has_come()

    def _wait_for_head(self) -> None:
        self._deadline = self._loop.call_later(
            self._connections.limits.header_deadline_s, self._too_late
        )

    def _head_has_come(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no request. What was in it may be a secret: nobody is told, no log either.

        Raises:
            ConnectionError: something has been answered already.
        """
        del status, exc, message
        if request.writer.output_size > 0:
            raise ConnectionError
        code, fault = fault_of(FormatError("this is no request; nothing was read of it"))
        response = web.Response(status=code, body=encode(fault), content_type=CONTENT_TYPE)
        response.force_close()
        return response

    def body_was_taken(self) -> None:
        """The body of this request has been received past the parser, as a whole."""
        limits = self._connections.limits
        self._parser = HttpRequestParser(
            self,
            self._loop,
            _READ_BYTES,
            max_line_size=limits.max_request_line_bytes,
            max_field_size=limits.max_header_bytes,
            max_headers=limits.max_headers,
            payload_exception=RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=self._max_msg_queue_size,
        )
