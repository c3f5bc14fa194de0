"""What a head relies on in aiohttp that aiohttp does not promise; and bounds of connections."""

from __future__ import annotations

import ast
import inspect
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from asyncsync.peer import application, bodies, protocol
from asyncsync.peer.protocol import Connections, PeerProtocol
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
OVERRIDDEN = {"connection_made", "connection_lost", "data_received", "handle_error"}


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


async def test_those_attributes_are_there() -> None:
    server = web.Server(cast("Any", None))
    made = Connections(server, Limits())()
    plain = RequestHandler(server, loop=made._loop)

    for name in PRIVATE - {"_prepare_hook"}:
        assert hasattr(plain, name), name
    for name in OVERRIDDEN:
        assert inspect.isfunction(vars(RequestHandler)[name]), name
        assert name in vars(PeerProtocol)
    assert inspect.iscoroutinefunction(web.BaseRequest._prepare_hook)
    for method in (StreamReader.read_nowait, StreamReader.feed_eof, StreamReader.is_eof):
        assert callable(method)


async def test_the_limits_reach_the_parser() -> None:
    limits = Limits(max_request_line_bytes=11, max_header_bytes=12, max_headers=13, keep_alive_s=14)
    made = Connections(web.Server(cast("Any", None)), limits)()

    assert (made.max_line_size, made.max_field_size, made.max_headers) == (11, 12, 13)
    assert made.keepalive_timeout == 14
    assert made._lingering_time == 0
    made.body_was_taken()
    assert made._parser is not None


@pytest.mark.parametrize("first", ["a", "b"])
def test_connections_are_counted_by_address_and_together(first: str) -> None:
    limits = Limits(max_connections=3, max_connections_per_address=2)
    connections = Connections(cast("Any", None), limits)

    assert [connections.admit(a) for a in (first, "c", first, first, "d")] == [
        *(True, True, True, False, False)
    ]
    connections.leave("c")
    assert connections.admit("d")
    connections.leave(first)
    connections.leave(first)
    assert [connections.admit(first) for _ in range(3)] == [True, True, False]
