"""One connection to a head: how long it may keep us waiting.

aiohttp has no deadlines for heads, nor for who takes no answers, and copies a body four times on
its way. What is done here instead touches attributes of its `RequestHandler` that are not public;
tests/unit/test_peer_protocol.py says which, for the next release of aiohttp.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
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

__all__ = ["PeerProtocol"]

_READ_BYTES = 512 * KIB
_PROGRESS_BYTES = 4 * KIB


class PeerProtocol(RequestHandler):
    """A connection that keeps nobody waiting for long.

    Args:
        begins, ends: are told when it has shaken hands, and when it is lost after that.

    Attributes:
        source: what it counts to.
        began: whether it has shaken hands.
    """

    __slots__ = (
        *("_begins", "_deadline", "_ends", "_heads", "_left_bytes", "_limits", "_line"),
        *("_moved", "_still_since", "began", "source"),
    )

    def __init__(
        self,
        server: Server,
        limits: Limits,
        begins: Callable[[PeerProtocol], object],
        ends: Callable[[PeerProtocol], object],
    ) -> None:
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
        self._limits, self._begins, self._ends = limits, begins, ends
        self.source, self.began = "", False
        self._deadline: asyncio.TimerHandle | None = None
        self._heads = 0
        self._line: asyncio.Transport | None = None
        self._left_bytes, self._moved, self._still_since = 0, False, math.inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._line, self.began = cast("asyncio.Transport", transport), True
        self._begins(self)
        self._wait_for_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_has_come()
        if self._line is not None:
            self._line = None
            self._ends(self)
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._moved = True  # nearly all that there was has been taken
        super().resume_writing()

    def look(self, now: float) -> None:
        """End it if hardly anything is taken of what it is sent, for as long as a body may idle.

        aiohttp would wait for ever; and one that is closed stays open until all has been taken.
        """
        if (line := self._line) is None:
            return
        before, self._left_bytes = self._left_bytes, line.get_write_buffer_size()
        moved = self._moved or before - self._left_bytes >= _PROGRESS_BYTES
        self._moved = False
        if moved or not (self._left_bytes or line.is_closing()):
            self._still_since = math.inf
        else:
            self._still_since = min(self._still_since, now)
        if now - self._still_since >= self._limits.body_idle_s:
            line.abort()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._request_in_progress and not self._messages:
            self._wait_for_head()
        super().data_received(data)
        if self._request_count > self._heads:
            self._heads = self._request_count
            self._head_has_come()

    def _wait_for_head(self) -> None:
        self._deadline = self._loop.call_later(self._limits.header_deadline_s, self._too_late)

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
        limits = self._limits
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
