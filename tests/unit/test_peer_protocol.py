"""What a head relies on in aiohttp that aiohttp does not promise; and bounds of connections."""

from __future__ import annotations

import ast
import asyncio
import inspect
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from asyncsync.peer import application, bodies, protocol
from asyncsync.peer.connections import Connections
from asyncsync.peer.protocol import PeerProtocol
from asyncsync.testing import FakeClock
from asyncsync.wire.limits import Limits

# For the next release of aiohttp: what has another name or meaning there breaks a deadline, a bound
# or the frame of answers.
PRIVATE = {
    "_loop",
    "_max_msg_queue_size",
    "_messages",
    "_parser",
    "_prepare_hook",
    "_request_count",
    "_request_in_progress",
}
OVERRIDDEN = {
    *("connection_made", "connection_lost", "data_received", "handle_error", "resume_writing"),
}


def _own_names(module: object) -> set[str]:
    """Attributes that begin with an underscore and that a class of ours sets or defines."""
    found = set[str]()
    for node in ast.walk(ast.parse(inspect.getsource(cast("Any", module)))):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name != "_prepare_hook"
        ):
            found.add(node.name)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return (found | {"_replace"}) - {"_parser"}  # that one is of named tuples


def _touched(module: object) -> set[str]:
    tree = ast.parse(inspect.getsource(cast("Any", module)))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)}
    private = {name for name in names if name.startswith("_") and not name.startswith("__")}
    return private - _own_names(module)


def test_no_other_private_attribute_of_aiohttp_is_touched() -> None:
    found = _touched(protocol) | _touched(bodies) | _touched(application)

    assert found == PRIVATE


def _made(server: web.Server, limits: Limits) -> PeerProtocol:
    return PeerProtocol(server, limits, lambda _: None, lambda _: None)


async def test_those_attributes_are_there() -> None:
    server = web.Server(cast("Any", None))
    made = _made(server, Limits())
    plain = RequestHandler(server, loop=made._loop)

    for name in PRIVATE - {"_prepare_hook"}:
        assert hasattr(plain, name), name
    for name in OVERRIDDEN:
        assert inspect.isfunction(getattr(RequestHandler, name)), name
        assert name in vars(PeerProtocol)
    assert inspect.iscoroutinefunction(web.BaseRequest._prepare_hook)
    for method in (StreamReader.read_nowait, StreamReader.feed_eof, StreamReader.is_eof):
        assert callable(method)


async def test_the_limits_reach_the_parser() -> None:
    limits = Limits(max_request_line_bytes=11, max_header_bytes=12, max_headers=13, keep_alive_s=14)
    made = _made(web.Server(cast("Any", None)), limits)

    assert (made.max_line_size, made.max_field_size, made.max_headers) == (11, 12, 13)
    assert made.keepalive_timeout == 14
    assert made._lingering_time == 0
    made.body_was_taken()
    assert made._parser is not None


@pytest.mark.parametrize("first", ["a", "b"])
def test_connections_are_counted_by_address_and_together(first: str) -> None:
    limits = Limits(max_connections=3, max_connections_per_address=2)
    connections = Connections(cast("Any", None), limits, FakeClock())

    assert [connections.admit(a) for a in (first, "c", first, first, "d")] == [
        *(True, True, True, False, False)
    ]
    connections.leave("c")
    assert connections.admit("d")
    connections.leave(first)
    connections.leave(first)
    assert [connections.admit(first) for _ in range(3)] == [True, True, False]


class _Line(asyncio.Transport):
    """One that has so much to send."""

    def __init__(self) -> None:
        super().__init__()
        self.left_bytes, self.closing, self.aborted = 0, False, False

    def get_write_buffer_size(self) -> int:
        return self.left_bytes

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = True


async def _line_after(*looks: tuple[float, int, str]) -> bool:
    """Whether a connection is ended that looks so at these times."""
    made, line = _made(web.Server(cast("Any", None)), Limits(body_idle_s=60)), _Line()
    made._line = line
    for now, line.left_bytes, what in looks:
        line.closing = what == "closing"
        if what == "drained":
            made._paused = True
            made.resume_writing()
        made.look(now)
    return line.aborted


@pytest.mark.parametrize("what", ["", "closing"])
async def test_what_nobody_takes_is_waited_for_as_long_as_a_body(what: str) -> None:
    assert not await _line_after((0, 9000, what), (59, 9000, what))
    assert await _line_after((0, 9000, what), (60, 9000, what))
    assert await _line_after((0, 9000, what), (30, 9000 - 4095, what), (60, 4000, what))


async def test_a_connection_that_is_closed_and_has_nothing_to_send_ends_as_well() -> None:
    assert await _line_after((0, 0, "closing"), (60, 0, "closing"))


async def test_who_takes_what_it_is_sent_or_is_sent_nothing_goes_on() -> None:
    assert not await _line_after((0, 0, ""), (60, 0, ""), (120, 0, ""))
    assert not await _line_after((0, 9000, ""), (60, 9000 - 4096, ""), (120, 0, ""))
    assert not await _line_after((0, 9000, ""), (60, 9000, "drained"), (119, 9000, ""))
