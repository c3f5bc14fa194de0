"""Every route of a head has a policy, and what has none is not there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncsync.peer.application import find
from asyncsync.peer.handlers import HANDLERS
from asyncsync.wire import messages as m
from asyncsync.wire.claims import Operation
from asyncsync.wire.limits import Limits

from .raw_head import EVERYTHING, RawHead, raw_head, request

# By hand, so that a route that is added is thought about here, too.
PUBLIC = {"authority"}
FOR_ANY_TOKEN = {"hello", "renew"}
READING = {
    *("hello", "authority", "renew", "manifest", "header", "find", "glance", "files"),
    *("open", "read", "read_many", "close", "turn", "part"),
}
DELETING = {"delete", "clean"}

SESSION = "0" * 32
LIMITS = Limits(max_failed_auths_per_minute=1000)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RawHead]:
    async with raw_head(tmp_path, monkeypatch, limits=LIMITS) as place:
        yield place


@pytest.fixture
async def readonly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RawHead]:
    async with raw_head(tmp_path, monkeypatch, limits=LIMITS, readonly=True) as place:
        yield place


def test_every_route_has_a_handler_and_a_policy() -> None:
    assert HANDLERS.keys() == m.ROUTES.keys()
    for name, route in m.ROUTES.items():
        found = find(route.method, route.url(SESSION))
        assert found is not None
        assert (found.name, found.route) == (name, route)
        assert route.needs
        if name in PUBLIC:
            assert route.needs == ("public",)
        elif name in FOR_ANY_TOKEN:
            assert route.needs == ("any",)
        else:
            assert {*route.needs} <= {*Operation} - {Operation.ADMIN}
        assert route.changes is (name not in READING)
        assert (Operation.DELETE in route.needs) is (name in DELETING)
        assert name not in DELETING or route.needs == (Operation.DELETE,)


@pytest.mark.parametrize("method", METHODS)
async def test_what_is_no_route_is_not_there_for_whoever_asks(place: RawHead, method: str) -> None:
    known = {(route.method, route.url(SESSION)) for route in m.ROUTES.values()}
    for target in {target for _, target in known} | {"/", "/robots.txt", f"{m.BASE}/admin"}:
        if (method, target) in known:
            continue
        async with place.line() as line:
            await line.send(request(method, target, token=place.token))
            if method == "HEAD":  # its answer has a length and no body
                head = await line.stream.receive()
                assert head.startswith(b"HTTP/1.1 404 ")
            else:
                place.check(await line.answer(), 404, 400)


@pytest.mark.parametrize("name", m.ROUTES)
async def test_without_a_token_nothing_is_done(place: RawHead, name: str) -> None:
    before = await place.content()
    answer = await place.told(name, **_where(name), token=None)
    if name in PUBLIC:
        assert answer.status == 200
    else:
        place.check(answer, 401)
    assert await place.content() == before


@pytest.mark.parametrize("name", sorted(m.ROUTES.keys() - PUBLIC - FOR_ANY_TOKEN))
async def test_a_token_without_the_operation_is_refused(place: RawHead, name: str) -> None:
    before = await place.content()
    needs = {Operation(need) for need in m.ROUTES[name].needs}
    for operations in (EVERYTHING - needs, *({one} for one in EVERYTHING - needs)):
        token = place.head.token(operations=frozenset(operations))
        place.check(await place.told(name, **_where(name), token=token), 403)
    for operation in needs:
        token = place.head.token(operations=frozenset({operation}))
        answer = await place.told(name, **_where(name), token=token)
        assert answer.status not in (401, 403), "one of them is enough"
    assert await place.content() == before


@pytest.mark.parametrize("name", sorted(m.ROUTES.keys() - READING))
async def test_a_head_that_is_read_only_changes_nothing(readonly: RawHead, name: str) -> None:
    before = await readonly.content()
    readonly.check(await readonly.told(name, **_where(name)), 403)
    body = {"tree": "exp", "marker": "", "older_than_s": 0}
    readonly.check(await readonly.told(name, body, **_where(name)), 403)
    assert await readonly.content() == before


async def test_a_head_that_is_read_only_leaves_no_trace_of_reading(readonly: RawHead) -> None:
    before = await readonly.content()
    for name in sorted(READING):
        await readonly.told(name, {"tree": "exp"} if name != "hello" else None, **_where(name))
    assert await readonly.content() == before


def _where(name: str) -> dict[str, str]:
    return {"session": SESSION} if "{session}" in m.ROUTES[name].path else {}
