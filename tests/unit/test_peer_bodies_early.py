"""A body that is there before anybody asks for it, as happens to a head that is busy."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import cast

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol

from asyncsync.peer.bodies import Bodies
from asyncsync.testing import FakeClock

BODY = bytes(range(256)) * 2048


async def test_what_has_arrived_as_a_whole_is_not_waited_for_on_the_connection() -> None:
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)  # its parser is done with the body, and may not be paused
    content = StreamReader(protocol, limit=2**20, loop=loop)
    content.feed_data(BODY)
    content.feed_eof()
    near, far = socket.socketpair()
    with near, far:
        transport = SimpleNamespace(get_extra_info=lambda name: near if name == "socket" else None)
        request = SimpleNamespace(content=content, transport=transport, protocol=None)
        into = memoryview(bytearray(len(BODY)))
        await Bodies(FakeClock(), 60).fill(cast("web.BaseRequest", request), into)

    assert into == BODY
