"""The bounds of a head: whoever goes beyond one is stopped there, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from msgspec.structs import replace

from asyncsync.digest import CHUNK_BYTES, digest
from asyncsync.errors import ConfigError
from asyncsync.manifest import Manifest, encode, read_header
from asyncsync.manifest import decode as manifest_of
from asyncsync.peer import PeerServer, lasting, push_calls, quotas
from asyncsync.peer.authority import Pair
from asyncsync.peer.certificates import server_context
from asyncsync.peer.listings import FILE_BYTES
from asyncsync.peer.onward import Nowhere
from asyncsync.peer.pushes import Push
from asyncsync.peer.space import Room, Space
from asyncsync.secrets import Secret
from asyncsync.storage import Durability, NewFile, Sighting, Stored
from asyncsync.storage.local import LocalTrees
from asyncsync.storage.local.publish import Attempt
from asyncsync.testing import FakeClock
from asyncsync.testing.values import make_manifest
from asyncsync.units import KIB, MIB
from asyncsync.wire import messages as m
from asyncsync.wire.claims import Claims
from asyncsync.wire.limits import Limits
from asyncsync.wire.tokens import HeadKey, KeyRing, Revoked, narrow

from .raw_head import EVERYTHING, Answer, Line, RawHead, raw_head, request

HELLO = m.ROUTES["hello"].url()
HEADER = m.ROUTES["header"].url()
SOON_S = 0.05
DAY_S = 24 * 3600

pytestmark = pytest.mark.one_loop

Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Opens a head with these limits."""

    @asynccontextmanager
    async def opened(
        clock: FakeClock | None = None, settings: dict[str, Any] | None = None, **limits: Any
    ) -> AsyncIterator[RawHead]:
        given: dict[str, Any] = {"limits": Limits(**limits), "clock": clock, **(settings or {})}
        async with raw_head(tmp_path, monkeypatch, **given) as place:
            yield place

    return opened


def session_of(answer: Answer) -> str:
    assert answer.status == 200, answer
    return m.decode(answer.body, m.Begun).session


# -- connections


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: h\r\n", b"\r\n\r\n"])
async def test_a_head_that_never_comes_is_not_waited_for(make: Make, sent: bytes) -> None:
    async with make(header_deadline_s=SOON_S) as place, place.line() as line:
        await line.send(sent)

        assert await line.ended()
        await place.good_push()


async def test_a_head_that_drips_is_not_waited_for_either(make: Make) -> None:
    async with make(header_deadline_s=SOON_S) as place, place.line() as line:
        good = request("GET", HELLO, token=place.token)
        await line.send(good)
        assert await line.answer()
        with anyio.move_on_after(10):
            for at in range(len(good) - 1):
                await line.send(good[at : at + 1])
                await anyio.lowlevel.checkpoint()
                if line.stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno() < 0:
                    break

        assert await line.ended()


async def test_a_connection_that_is_idle_ends(make: Make) -> None:
    async with make(keep_alive_s=SOON_S) as place, place.line() as line:
        await line.send(request("GET", HELLO, token=place.token))
        assert await line.answer()

        assert await line.ended()


async def test_one_address_has_so_many_connections_and_others_have_theirs(make: Make) -> None:
    async with make(max_connections_per_address=3) as place, AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(place.line()) for _ in range(3)]
        async with place.line() as one_more:
            assert await one_more.ended()
        async with place.line("127.0.0.2") as other:
            await other.send(request("GET", HELLO, token=place.token))
            assert await other.answer()
        for line in lines:
            await line.send(request("GET", HELLO, token=place.token))
            assert await line.answer()


async def test_a_connection_that_has_ended_makes_room(make: Make) -> None:
    async with make(max_connections_per_address=1) as place:
        for _ in range(3):
            async with place.line() as line:
                await line.send(
                    request("GET", HELLO, token=place.token, headers={"Connection": "close"})
                )
                assert await line.answer()
                assert await line.ended()


@pytest.mark.slow
async def test_thousands_of_idle_connections_are_closed_and_the_head_goes_on(make: Make) -> None:
    limits = {"max_connections": 60, "max_connections_per_address": 40, "header_deadline_s": 30}
    async with make(**limits) as place:
        async with AsyncExitStack() as stack:
            for number in range(5000):
                line = place.line(f"127.0.1.{1 + number % 100}")
                if number < 60:
                    await stack.enter_async_context(line)
                else:
                    async with line as one_more:
                        assert await one_more.ended()
        await place.good_push()


@pytest.mark.slow
async def test_without_descriptors_nobody_comes_in_and_then_they_do(make: Make) -> None:
    async with make() as place, place.line() as early:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # it says so each time
        await early.send(request("GET", HELLO, token=place.token))
        assert await early.answer()
        host, _, port = place.head.address.rpartition(":")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as late:
            late.setblocking(False)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                late.connect_ex((host, int(port)))
                for _ in range(100):
                    await anyio.lowlevel.checkpoint()
                await early.send(request("GET", HELLO, token=place.token))
                assert await early.answer(), "who is there is answered"
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await place.good_push()
            late.send(request("GET", HELLO, token=place.token))
            with anyio.fail_after(10):
                await anyio.wait_readable(late)
                assert late.recv(12) == b"HTTP/1.1 200"


async def test_who_sends_and_never_listens_is_not_listened_to_and_then_let_go(make: Make) -> None:
    clock = FakeClock()
    async with make(clock, max_connections=1) as place:
        host, _, port = place.head.address.rpartition(":")
        flood = request("GET", "/nothing") * 100  # it needs no token for that
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
            raw.setblocking(False)
            raw.connect_ex((host, int(port)))
            await anyio.wait_writable(raw)
            sent = stuck = 0
            while stuck < 500:
                try:
                    sent += raw.send(flood)
                    stuck = 0
                except BlockingIOError:
                    stuck += 1
                await anyio.lowlevel.checkpoint()
                assert sent < 64 * MIB, "all of it was taken in"
            hello = request("GET", HELLO, token=place.token)
            assert await place.ask(hello) is None, "there is one place only"
            with anyio.fail_after(10):
                while await place.ask(hello) is None:
                    await clock.advance(15)


async def test_handshakes_count_to_the_connections_and_end(make: Make, tmp_path: Path) -> None:
    ca = Pair.make_authority(time.time())
    pem = ca.issue(["127.0.0.1"], time.time()).pem()
    await to_thread.run_sync((tmp_path / "head.pem").write_bytes, pem)
    context = await to_thread.run_sync(server_context, tmp_path / "head.pem")
    settings = {"tls": context, "authority": ca.certificate_pem()}
    limits = {"header_deadline_s": SOON_S, "max_connections_per_address": 2}
    async with make(settings=settings, **limits) as place, place.line() as first:
        async with place.line() as second, place.line() as third:
            assert await third.ended(), "two that have said nothing yet are all that may be"
            assert await first.ended()
            assert await second.ended()
        async with place.line() as garbage:
            await garbage.send(request("GET", HELLO, token=place.token))
            assert await _rest(garbage) < 100, "an alert at most"
        trusting = ssl.create_default_context(cadata=ca.certificate_pem())
        host, _, port = place.head.address.rpartition(":")
        for _ in range(3):
            secure = await anyio.connect_tcp(host, int(port), ssl_context=trusting)
            await secure.send(request("GET", HELLO, token=place.token))
            assert (await secure.receive()).startswith(b"HTTP/1.1 200")
            await secure.aclose()


@pytest.mark.parametrize("error", [RuntimeError, ConnectionResetError])
async def test_what_goes_wrong_with_one_connection_is_of_no_concern_to_the_others(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    loop, told = asyncio.get_running_loop(), list[str]()
    loop.set_exception_handler(lambda _, what: told.append(what["message"]))
    real, failures = loop.connect_accepted_socket, [error("of the library")]

    async def shake(protocol: Any, line: socket.socket, **how: Any) -> Any:
        if failures:
            line.close()
            raise failures.pop()
        return await real(protocol, line, **how)

    monkeypatch.setattr(loop, "connect_accepted_socket", shake)
    async with make(max_connections=4) as place:
        async with place.line() as line:
            assert await line.ended()
        await place.good_push()
        assert told == ["the head cannot shake hands"] * (error is RuntimeError)


# -- bodies


async def test_a_body_that_stands_still_is_given_up(make: Make) -> None:
    clock = FakeClock()
    async with make(clock) as place, place.line() as line:
        await line.send(request("POST", HEADER, b"{}", token=place.token)[:-1])
        await _taken_in(line)
        await clock.advance(60)

        assert await line.ended()
        await place.good_push()


async def test_a_body_that_is_slow_for_a_minute_is_given_up(make: Make) -> None:
    clock = FakeClock()
    async with make(clock, min_body_bytes_per_s=KIB) as place:
        session = session_of(await place.begin("exp", ("w", CHUNK_BYTES)))
        async with place.line() as line:
            await line.send(_part(place, session, CHUNK_BYTES))
            for _ in range(5):  # 5 KiB in 12 s each: progress, and not enough
                await line.send(bytes(5 * KIB))
                await _taken_in(line)
                await clock.advance(12)
            await clock.advance(30)

            assert await line.ended()


async def test_a_message_has_to_be_there_in_time(make: Make) -> None:
    clock = FakeClock()
    async with make(clock, min_body_bytes_per_s=1) as place, place.line() as line:
        await line.send(request("POST", HEADER, b" " * MIB, token=place.token)[:-MIB])
        for _ in range(3):
            await line.send(b" " * 8 * KIB)
            await _taken_in(line)
            await clock.advance(15)

        assert await line.ended()


async def test_the_body_of_a_stranger_is_not_waited_for(make: Make) -> None:
    clock = FakeClock()
    async with make(clock, min_body_bytes_per_s=1) as place, place.line() as line:
        await line.send(request("POST", HEADER, b" " * MIB)[:-MIB])
        for _ in range(3):
            await line.send(b" " * 8 * KIB)
            await _taken_in(line)
            await clock.advance(15)

        assert await line.ended()


async def test_who_takes_nothing_of_an_answer_is_given_up(make: Make) -> None:
    clock = FakeClock()
    async with make(clock) as place:
        data = os.urandom(CHUNK_BYTES)
        await to_thread.run_sync((place.root / "w").write_bytes, data)
        opened = await place.told("open", m.Open(tree=""))
        session = m.decode(opened.body, m.Opened).session
        async with place.line() as line:
            target = m.ROUTES["read"].url(session)
            headers = {"Range": f"bytes=0-{CHUNK_BYTES - 1}"}
            await line.send(request("GET", target, token=place.token, headers=headers))
            await line.stream.receive(1)
            for _ in range(5):
                await clock.advance(60)
            assert await _rest(line) < CHUNK_BYTES, "the connection ended before"
        await place.good_push()


async def _rest(line: Line) -> int:
    """How much comes before the connection ends."""
    count = 0
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            count += len(await line.stream.receive())
    return count


async def _taken_in(line: Line) -> None:
    """Wait until the other end has had its turn."""
    del line
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def _part(place: RawHead, session: str, size: int) -> bytes:
    target = m.ROUTES["write"].url(session)
    headers = {"Content-Length": str(size), m.OFFSET: "0"}
    return request("PATCH", target, token=place.token, headers=headers)


# -- one token among others


async def test_one_token_does_not_keep_the_others_waiting(make: Make) -> None:
    async with make(max_connections_per_token=2) as place, AsyncExitStack() as stack:
        session = session_of(await place.begin("exp", ("w", 3)))
        for _ in range(2):  # both of its turns are taken by bodies that never end
            line = await stack.enter_async_context(place.line())
            await line.send(_part(place, session, 3) + b"a")
            await _taken_in(line)
        waiting = await stack.enter_async_context(place.line())
        await waiting.send(request("GET", HELLO, token=place.token))

        await place.good_push()
        with anyio.move_on_after(SOON_S) as scope:
            await waiting.answer()
        assert scope.cancelled_caught
        await line.send(b"bc")
        assert await line.answer()
        assert await waiting.answer()


async def test_one_token_does_not_hold_all_of_the_memory(make: Make) -> None:
    async with make(settings={"memory_bytes": 2 * CHUNK_BYTES}) as place:
        plan = [(f"w{number}", CHUNK_BYTES) for number in range(4)]
        session = session_of(await place.begin("exp", *plan))
        async with AsyncExitStack() as stack:
            for number in range(4):
                line = await stack.enter_async_context(place.line())
                target = m.ROUTES["write"].url(session, number)
                headers = {"Content-Length": str(CHUNK_BYTES), m.OFFSET: "0"}
                await line.send(request("PATCH", target, b"x", token=place.token, headers=headers))
                await _taken_in(line)

            token, status = place.head.token("other"), 0
            with anyio.move_on_after(10):
                begun = await place.begin("other", ("w", CHUNK_BYTES), token=token)
                wrote = await place.told(
                    "write",
                    bytes(CHUNK_BYTES),
                    session=session_of(begun),
                    token=token,
                    headers={m.OFFSET: "0"},
                )
                status = wrote.status
            assert status == 200, "it waits for memory that another token holds"


async def test_who_walks_through_directories_leaves_threads_for_the_others(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = list[str](), anyio.Event()

    async def find(_: object, tree: str) -> AsyncIterator[Sighting]:
        begun.append(tree)
        await gate.wait()
        yield Sighting(tree, "tag")

    monkeypatch.setattr(LocalTrees, "find", find)
    async with make(hash_threads=1) as place, AsyncExitStack() as stack:
        lines = []
        for tree in ("a", "b", "c"):
            for _ in range(3):
                line = await stack.enter_async_context(place.line())
                asked = m.encode(m.TreeName(tree=tree))
                target = m.ROUTES["find"].url()
                await line.send(request("POST", target, asked, token=place.head.token(tree)))
                await _taken_in(line)
                lines.append(line)
        assert begun == ["a", "a", "a", "b"], "each token is another one here: half of 8 threads"
        await place.good_push()
        gate.set()
        answers = [await line.answer() for line in lines]
        assert {answer.status for answer in answers if answer} == {200}


async def test_one_token_walks_twice_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate = list[str](), anyio.Event()

    async def list_files(_: object, tree: str) -> list[NewFile]:
        begun.append(tree)
        await gate.wait()
        return []

    monkeypatch.setattr(LocalTrees, "list_files", list_files)
    async with make(hash_threads=1) as place, AsyncExitStack() as stack:
        lines = []
        for tree in ("a", "b", "c"):
            line = await stack.enter_async_context(place.line())
            asked = m.encode(m.TreeName(tree=tree))
            await line.send(request("POST", m.ROUTES["files"].url(), asked, token=place.token))
            await _taken_in(line)
            lines.append(line)
        assert begun == ["a", "b"]
        gate.set()
        for line in lines:
            assert await line.answer()
        assert begun == ["a", "b", "c"]


async def test_so_many_chunks_are_hashed_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = list[int](), threading.Event()

    def slow(data: memoryview) -> str:
        begun.append(len(data))
        gate.wait(10)
        return digest(data)

    monkeypatch.setattr(push_calls, "digest", slow)
    async with make(hash_threads=2) as place, AsyncExitStack() as stack:
        session = session_of(await place.begin("exp", ("a", 1), ("b", 2), ("c", 3)))
        lines = []
        for number in range(3):
            line = await stack.enter_async_context(place.line())
            body = bytes(number + 1)
            target = m.ROUTES["write"].url(session, number)
            headers = {m.OFFSET: "0"}
            await line.send(request("PATCH", target, body, token=place.token, headers=headers))
            lines.append(line)
        with anyio.fail_after(10):
            while len(begun) < 2:
                await anyio.lowlevel.checkpoint()
        await _taken_in(line)
        assert len(begun) == 2
        gate.set()
        for line in lines:
            answer = await line.answer()
            assert answer is not None
            assert answer.status == 200


async def test_a_message_and_a_plan_are_as_long_as_their_limits_and_no_longer(make: Make) -> None:
    plan = b"".join(m.lines_of([m.Begin(tree="exp", attempt="0" * 32)]))
    async with make(max_json_bytes=50, max_manifest_bytes=len(plan)) as place:
        said = m.encode(m.TreeName(tree="exp"))
        assert (await place.told("glance", said.ljust(50))).status == 200
        place.check(await place.told("glance", said.ljust(51)), 422)
        session_of(await place.told("begin", plan))
        place.check(await place.told("begin", plan + b"\n"), 422)
        absurd = {"Content-Length": str(2**62)}
        for name in ("glance", "begin"):
            place.check(await place.told(name, said, headers=absurd), 422)


async def test_a_head_of_a_request_is_as_long_as_its_limits_and_no_longer(make: Make) -> None:
    async with make(max_request_line_bytes=100, max_header_bytes=2100, max_headers=8) as place:
        good = {"token": place.token}
        for fields, value, path, status in (
            (3, 2090, 0, 200),
            (4, 10, 0, 400),
            (1, 2200, 0, 400),
            (1, 10, 100, 400),
        ):
            more: dict[str, str | None] = {f"X{n}": "x" * value for n in range(fields)}
            target = HELLO + "x" * path
            answer = await place.ask(request("GET", target, **good, headers=more))
            assert answer is not None
            assert answer.status == status, (fields, value, path)


async def test_all_addresses_together_have_so_many_connections(make: Make) -> None:
    async with make(max_connections=2) as place:
        async with place.line("127.0.0.2") as first, place.line("127.0.0.3"):
            async with place.line("127.0.0.4") as third:
                assert await third.ended()
            await first.send(request("GET", HELLO, token=place.token))
            assert await first.answer()


async def test_a_batch_is_read_up_to_its_limit_and_no_further(make: Make) -> None:
    async with make() as place:
        for name, size in (("large", CHUNK_BYTES + MIB), ("small", 1)):
            await to_thread.run_sync((place.root / name).touch)
            await to_thread.run_sync(os.truncate, place.root / name, size)
        opened = await place.told("open", m.Open(tree=""))
        session = m.decode(opened.body, m.Opened).session
        for blobs in ([0], [0, 1], [1] * 4097):
            place.check(await place.told("read_many", m.Blobs(blobs=blobs), session=session), 422)
        answer = await place.told("read_many", m.Blobs(blobs=[1] * 4096), session=session)
        assert answer.body == bytes(4096)


# -- tokens that are not good


async def test_who_guesses_waits_longer_each_time_and_a_good_token_never(make: Make) -> None:
    clock = FakeClock()
    limits = {"max_failed_auths_per_minute": 3, "max_auth_delay_s": 8}
    async with make(clock, **limits) as place:
        answers = [await place.told("hello", token=Secret("as1.guess")) for _ in range(8)]
        for answer in answers[:3]:
            place.check(answer, 401)
        for answer, wait_s in zip(answers[3:], ["1", "2", "4", "8", "8"], strict=True):
            place.check(answer, 429)
            assert answer.headers["Retry-After"] == wait_s
            assert answer.fault.retry_after_s == float(wait_s)
        assert (await place.told("hello")).status == 200

        await clock.advance(60)
        place.check(await place.told("hello", token=None), 401)


async def test_what_is_revoked_is_refused_at_once_and_a_new_key_is_taken_up(make: Make) -> None:
    ring = KeyRing((HeadKey.new(),))
    async with make(settings={"keys": ring}) as place:
        session = session_of(await place.begin("exp", ("w", 3)))
        other = place.head.token("exp")
        place.head.use_keys(KeyRing(ring.keys, Revoked(experiments=frozenset({"exp"}))))
        place.check(await place.told("header", {"tree": "exp"}, token=other), 401)

        place.head.use_keys(KeyRing(ring.keys, Revoked(experiments=frozenset({""}))))
        place.check(await place.told("commit", b"", session=session), 401)
        assert (await place.told("find", {"tree": "exp"}, token=other)).status in (200, 404)

        place.head.use_keys(ring.rotated(HeadKey.new(), now=0, overlap_s=1))
        place.check(await place.told("find", {"tree": "exp"}, token=other), 401)
        token = place.head.token("exp")
        assert (await place.told("find", {"tree": "exp"}, token=token)).status in (200, 404)


# -- what a push may take


async def test_a_token_has_so_many_open_pushes(make: Make) -> None:
    async with make(max_sessions_per_token=2) as place:
        first = session_of(await place.begin("a", ("w", 1)))
        session_of(await place.begin("b", ("w", 1)))
        place.check(await place.begin("c", ("w", 1)), 429)
        await place.good_push()

        await place.told("leave", m.Leave(), session=first)
        session_of(await place.begin("c", ("w", 1)))


async def test_a_push_has_so_many_bytes_and_files(make: Make) -> None:
    async with make(max_push_bytes=10, max_files=3) as place:
        place.check(await place.begin("exp", ("w", 11)), 422)
        place.check(await place.begin("exp", *((f"{n}", 1) for n in range(4))), 422)
        session = session_of(await place.begin("exp", ("a", 5), ("b", 4)))
        line = ["c", 2, 420, 0]
        place.check(await place.told("plan", [line], session=session), 422)
        line[1] = 1
        assert (await place.told("plan", [line], session=session)).status == 200
        line[0], line[1] = "d", 0
        place.check(await place.told("plan", [line], session=session), 422)


async def test_lists_of_files_of_all_tokens_have_so_much_memory(make: Make) -> None:
    one = FILE_BYTES + len('["w",1,420,0]')
    async with make(max_listing_bytes=4 * one) as place:
        mine, yours = place.head.token("mine"), place.head.token("yours")
        first = session_of(await place.begin("mine/1", ("w", 1), token=mine))
        session_of(await place.begin("mine/2", ("w", 1), token=mine))
        place.check(await place.begin("mine/3", ("w", 1), token=mine), 429)
        session_of(await place.begin("yours/1", ("w", 1), token=yours))
        other = session_of(await place.begin("yours/2", ("w", 1), token=yours))
        place.check(await place.begin("third", ("w", 1)), 429)
        more = [["x", 1, 420, 0]]
        place.check(await place.told("plan", more, session=other, token=yours), 429)

        await place.told("leave", m.Leave(), session=first, token=mine)
        session_of(await place.begin("mine/3", ("w", 1), token=mine))


async def test_who_begins_again_needs_no_memory_for_two_lists(make: Make) -> None:
    async with make(max_listing_bytes=3 * FILE_BYTES) as place:
        for _ in range(3):
            session_of(await place.begin("exp", ("a", 1), ("b", 1)))


async def test_many_readers_of_one_commit_share_its_list(make: Make) -> None:
    async with make(max_listing_bytes=3 * FILE_BYTES, max_sessions_per_token=9) as place:
        await place.good_push()
        text = (await place.told("manifest", {"tree": "good/tree_1"})).body
        asked = m.Open(tree="good/tree_1", identity=read_header(text.splitlines(True)[0]).identity)
        opened = [await place.told("open", asked) for _ in range(8)]
        assert {answer.status for answer in opened} == {200}
        place.check(await place.told("open", m.Open(tree="good/tree_1")), 429)

        for answer in opened:
            session = m.decode(answer.body, m.Opened).session
            read = await place.told("read_many", m.Blobs(blobs=[0, 1]), session=session)
            assert read.body == b"moreweights"
            await place.told("close", session=session)
        assert (await place.told("open", m.Open(tree="good/tree_1"))).status == 200


async def test_what_a_push_needed_is_not_kept_when_it_is_over(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[Push]()
    let_go = Push.forget

    def forget(push: Push) -> None:
        seen.append(push)
        let_go(push)

    monkeypatch.setattr(Push, "forget", forget)
    async with make() as place:
        session = session_of(await place.begin("exp"))
        text = b"".join(encode(make_manifest({})))
        for _ in range(2):
            assert (await place.told("commit", text, session=session)).status == 200
        assert [(push.files, push.intent.files) for push in seen] == [([], ())]


async def test_a_session_whose_number_nobody_has_heard_of_ends_soon(make: Make) -> None:
    clock = FakeClock()
    async with make(clock) as place:
        await place.good_push()
        opened = [await place.told("open", m.Open(tree="good/tree_1")) for _ in range(2)]
        lost, used = (m.decode(answer.body, m.Opened).session for answer in opened)
        asked = m.Blobs(blobs=[0])
        assert (await place.told("read_many", asked, session=used)).status == 200
        await clock.advance(50)
        await clock.advance(20)

        place.check(await place.told("read_many", asked, session=lost), 410)
        assert (await place.told("read_many", asked, session=used)).status == 200


async def test_what_is_announced_at_the_same_time_counts_together(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Space, "_look", lambda _: Room(3))
    async with make(max_files=5) as place:
        large = await asyncio.gather(*(place.begin(tree, ("w", 2)) for tree in ("a", "b")))
        many = [(str(number), 0) for number in range(3)]
        other = place.head.token("x")
        pushes = (place.begin(f"x/{n}", *many, token=other) for n in range(2))
        long = await asyncio.gather(*pushes)

        assert sorted(answer.status for answer in large) == [200, 507]
        assert sorted(answer.status for answer in long) == [200, 429]


async def test_who_adds_to_a_plan_that_is_over_takes_nothing_for_good(make: Make) -> None:
    line = ["x", 0, 420, 0]
    async with make(max_listing_bytes=4 * FILE_BYTES) as place:
        session = session_of(await place.begin("exp"))
        text = b"".join(encode(make_manifest({})))
        assert (await place.told("commit", text, session=session)).status == 200
        for _ in range(3):
            place.check(await place.told("plan", [line], session=session), 410)

        session_of(await place.begin("other", ("w", 1), token=place.head.token("other")))


async def test_a_plan_that_is_refused_takes_no_memory(make: Make) -> None:
    async with make(max_push_bytes=2, max_listing_bytes=6 * FILE_BYTES) as place:
        session_of(await place.begin("other", ("a", 1), token=place.head.token("other")))
        session = session_of(await place.begin("exp", ("a", 1)))
        for _ in range(9):
            place.check(await place.told("plan", [["b", 2, 420, 0]], session=session), 422)

        more = await place.told("plan", [["b", 1, 420, 0]], session=session)
        assert more.status == 200


async def test_what_is_added_at_the_same_time_counts_together(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make(max_push_bytes=3) as place:
        session = session_of(await place.begin("exp", ("a", 1)))
        _together(monkeypatch, 2)
        more = (place.told("plan", [[name, 2, 420, 0]], session=session) for name in "bc")
        found = await asyncio.gather(*more)

        assert sorted(answer.status for answer in found) == [200, 422]


def _together(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """So many look for room at the same time."""
    look, waiting, all_there = Space.room, list[int](), anyio.Event()

    async def at_once(space: Space) -> Room:
        waiting.append(1)
        if len(waiting) == count:
            all_there.set()
        await all_there.wait()
        return await look(space)

    monkeypatch.setattr(Space, "room", at_once)


async def test_who_begins_again_at_once_needs_no_room_for_two(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Space, "_look", lambda _: Room(3))
    async with make() as place:
        _together(monkeypatch, 2)
        found = await asyncio.gather(*(place.begin("exp", ("w", 2)) for _ in range(2)))

        assert [answer.status for answer in found] == [200, 200]


@pytest.mark.parametrize("again", [True, False])
async def test_who_has_hung_up_begins_nothing_and_takes_over_from_nobody(
    make: Make, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    look, looks, ready = Space.room, list[int](), anyio.Event()

    async def first_waits(space: Space) -> Room:
        looks.append(1)
        if len(looks) == 1:
            await ready.wait()
        found = await look(space)
        looks.append(2)
        return found

    async def hellos() -> None:
        for _ in range(2):
            assert (await place.told("hello")).status == 200

    monkeypatch.setattr(Space, "room", first_waits)
    async with make(max_sessions_per_token=1) as place:
        route = m.ROUTES["begin"]
        body = b"".join(m.lines_of([m.Begin(tree="exp", attempt="0" * 32)]))
        async with place.line() as line:
            await line.send(request(route.method, route.url(), body, token=place.token))
            with anyio.fail_after(10):
                while not looks:
                    await anyio.lowlevel.checkpoint()
        await hellos()
        session = session_of(await place.begin("exp")) if again else ""
        ready.set()
        while looks.count(2) < 1 + again:
            await anyio.lowlevel.checkpoint()
        await hellos()

        session = session or session_of(await place.begin("other"))
        text = b"".join(encode(make_manifest({})))
        assert (await place.told("commit", text, session=session)).status == 200


async def test_of_a_recall_only_chunks_that_there_may_be_are_held(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = list[str]()

    def stored(found: str) -> Stored:
        noted.append(found)
        return Stored(found)

    monkeypatch.setattr(push_calls, "Stored", stored)
    async with make() as place:
        session = session_of(await place.begin("exp", ("w", 1)))
        line = m.HeldLine(0, list(range(-9, 999)), ["0" * 64] * 1008)
        body = b"".join(m.lines_of([line]))
        answer = await place.told("recall", body, session=session)

        assert m.decode(answer.body, m.Held).held == []
        assert len(noted) == 1
        place.check(await place.told("recall", b"[1,[],[]]\n", session=session), 400)


async def test_a_manifest_is_held_once_however_often_its_commit_is_asked_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits, ready, read = Attempt.commit, threading.Event(), list[int]()

    def waits(attempt: Attempt, manifest: Manifest) -> Durability:
        assert ready.wait(10)
        return commits(attempt, manifest)

    def decode(lines: list[bytes]) -> Manifest:
        read.append(1)
        return manifest_of(lines)

    monkeypatch.setattr(Attempt, "commit", waits)
    monkeypatch.setattr(push_calls, "decode", decode)
    monkeypatch.setattr(lasting, "_ANSWER_S", SOON_S)
    async with make() as place:
        session = session_of(await place.begin("exp"))
        text = b"".join(encode(make_manifest({})))
        for _ in range(4):
            place.check(await place.told("commit", text, session=session), 503)
        assert len(read) == 1
        ready.set()
        while (answer := await place.told("commit", text, session=session)).status != 200:
            place.check(answer, 503)


async def test_a_path_has_to_be_within_the_limits_of_the_head(make: Make) -> None:
    limits = {"max_component_bytes": 4, "max_path_bytes": 8, "max_depth": 3}
    async with make(**limits) as place:
        for path in ("abcde", "abcd/abcd", "a/b/c/d"):
            place.check(await place.begin("exp", (path, 1)), 422)
        session_of(await place.begin("exp", ("abcd/abc", 1), ("a/b/c", 1)))


def _capped(place: RawHead, **caps: int) -> Secret:
    now = 1_700_000_000
    claims = Claims.new("exp", now=now, operations=EVERYTHING, life_s=2**31, **caps)
    return place.head._guard.keys.mint(claims)  # a head makes such tokens by its command line


async def test_a_token_pushes_no_more_in_its_life_than_it_may(make: Make) -> None:
    async with make() as place:
        token = _capped(place, max_bytes=10, max_files=3)
        place.check(await place.begin("exp", ("w", 11), token=token), 507)
        place.check(await place.begin("exp", *((f"{n}", 0) for n in range(4)), token=token), 507)
        session = session_of(await place.begin("exp", ("a", 6), ("b", 4), token=token))
        place.check(await place.begin("exp/x", ("w", 1), token=token), 507)
        headers = {m.OFFSET: "0"}
        wrote = await place.told("write", b"123456", session=session, token=token, headers=headers)
        assert wrote.status == 200

        await place.told("leave", m.Leave(), session=session, token=token)
        place.check(await place.begin("exp", ("w", 5), token=token), 507)
        session_of(await place.begin("exp", ("w", 4), token=token))


async def test_a_cap_holds_also_when_a_token_is_narrowed_or_renewed(make: Make) -> None:
    clock = FakeClock()
    async with make(clock) as place:
        keys, start = place.head._guard.keys, clock.now()
        claims = Claims.new("exp", now=start, operations=EVERYTHING, max_bytes=10)
        wide = keys.mint(claims)
        short = narrow(wide, replace(claims, expires_at=int(start) + 60))

        async def others_push() -> None:
            other = Claims.new("exp", now=clock.now(), operations=EVERYTHING, max_bytes=10)
            session_of(await place.begin("exp/other", ("w", 1), token=keys.mint(other)))

        session = session_of(await place.begin("exp/a", ("w", 10), token=short))
        headers = {m.OFFSET: "0"}
        wrote = await place.told("write", b"x" * 10, session=session, token=short, headers=headers)
        assert wrote.status == 200
        clock._time += 4 * DAY_S
        await others_push()
        place.check(await place.begin("exp/b", ("w", 1), token=wide), 507)

        renewed = m.decode((await place.told("renew", token=wide)).body, m.Renewed).token
        clock._time += 4 * DAY_S
        await others_push()
        place.check(await place.begin("exp/b", ("w", 1), token=wide), 401)
        place.check(await place.begin("exp/b", ("w", 1), token=Secret(renewed)), 507)


async def test_what_a_token_has_pushed_is_known_when_the_head_starts_anew(
    make: Make, tmp_path: Path
) -> None:
    ring, file = KeyRing((HeadKey.new(),)), tmp_path / "quotas.json"
    settings = {"keys": ring, "quota_file": file}
    async with make(settings=settings) as place:
        token = _capped(place, max_bytes=10)
        session_of(await place.begin("exp", ("w", 6), token=token))
        killed = await to_thread.run_sync(file.read_bytes)
    await to_thread.run_sync(file.write_bytes, killed)

    async with PeerServer(str(place.root), keys=ring, quota_file=file) as head:
        place.head = head
        place.check(await place.begin("exp", ("w", 5), token=token), 507)
        session_of(await place.begin("exp", ("w", 4), token=token))


async def test_a_count_that_cannot_be_written_ends_no_head(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what["message"]))
    settings = {"keys": KeyRing((HeadKey.new(),)), "quota_file": tmp_path / "quotas.json"}
    async with make(settings=settings) as place:
        token = _capped(place, max_bytes=10)
        session = session_of(await place.begin("exp", ("w", 6), token=token))
        monkeypatch.setattr(quotas, "write_private", _disk_is_full)

        left = await place.told("leave", m.Leave(), session=session, token=token)
        assert left.status == 200
        place.check(await place.begin("exp", ("w", 1), token=token), 503)
        await place.good_push()
        assert told == ["the head cannot count what this token pushes"] * 2
        monkeypatch.undo()
        place.check(await place.begin("exp", ("w", 5), token=token), 507)


def _disk_is_full(path: Path, *_: object, **__: object) -> None:
    raise ConfigError(f"cannot write {path}: No space left on device")


async def test_what_cannot_be_noted_for_later_is_said_and_tried_again(make: Make) -> None:
    told = list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what["message"]))

    class Full(Nowhere):
        async def queue(self, tree: str, identity: str) -> None:
            del tree, identity
            _disk_is_full(Path("/secret/state"))

    onward = Full()
    async with make(settings={"onward": onward}) as place:
        session = session_of(await place.begin("exp"))
        text = b"".join(encode(make_manifest({})))
        answer = await place.told("commit", text, session=session)
        place.check(answer, 503)
        assert b"secret" not in answer.body
        assert told == ["the head cannot note what has to be carried on"]
        onward.queue = Nowhere().queue  # type: ignore[method-assign]
        assert (await place.told("commit", text, session=session)).status == 200


DAMAGES = [b"", b"{", b"{}", b"[]", b'{"asyncsync_quotas":2,"tokens":{}}']


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_count_is_not_taken_for_none(
    make: Make, tmp_path: Path, damage: bytes
) -> None:
    file = tmp_path / "quotas.json"
    await to_thread.run_sync(file.write_bytes, damage)
    await to_thread.run_sync(file.chmod, 0o600)

    with pytest.raises(ConfigError, match="damaged"):
        async with make(settings={"quota_file": file}):
            pass


async def test_what_has_to_stay_free_of_the_disk_stays_free(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Space, "_look", lambda _: Room(10))
    async with make() as place:
        place.check(await place.begin("exp", ("w", 11)), 507)
        session = session_of(await place.begin("exp", ("w", 6)))
        place.check(await place.begin("other", ("w", 5)), 507)
        place.check(await place.told("plan", [["x", 5, 420, 0]], session=session), 507)

        await place.told("leave", m.Leave(), session=session)
        session_of(await place.begin("other", ("w", 10)))


async def test_a_push_that_nobody_asks_for_anything_gives_its_room_back(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Space, "_look", lambda _: Room(10))
    clock = FakeClock()
    async with make(clock) as place:
        session = session_of(await place.begin("exp", ("w", 10)))
        place.check(await place.begin("other", ("w", 1)), 507)

        await clock.advance(910)
        with anyio.fail_after(10):  # a thread takes away what was staged
            while (again := await place.begin("other", ("w", 10))).status == 507:
                await anyio.lowlevel.checkpoint()
        session_of(again)
        place.check(await place.told("leave", m.Leave(), session=session), 410)


async def test_what_an_abandoned_push_has_sent_is_removed_in_the_end(make: Make) -> None:
    clock = FakeClock()
    async with make(clock, session_expiry_s=3600) as place:
        session = session_of(await place.begin("exp/x", ("w", 3), keep=True))
        headers = {m.OFFSET: "0"}
        assert (await place.told("write", b"abc", session=session, headers=headers)).status == 200
        await place.told("leave", m.Leave(keep=True), session=session)
        await clock.advance(3600 / 24)
        assert [name for name in await place.content() if "tmp-" in name], "it may be gone on with"

        await to_thread.run_sync(_age, place.root)
        await clock.advance(3600 / 24)
        await _settled(lambda: not any("tmp-" in str(path) for path in place.root.rglob("*")))


def _age(root: Path) -> None:
    """As if an hour had gone by since anything was written."""
    for path in sorted(root.rglob("*"), reverse=True):
        at = path.stat().st_mtime - 3601
        os.utime(path, (at, at))


async def _settled(holds: Callable[[], bool]) -> None:
    """Wait for what a thread is about to do."""
    with anyio.fail_after(10):
        while not await to_thread.run_sync(holds):
            await anyio.lowlevel.checkpoint()


@pytest.mark.root
async def test_a_disk_that_is_full_is_507_and_nothing_of_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(disk_reserve_bytes=0, disk_reserve_ratio=0)
    async with mounted(tmp_path / "disk") as disk:
        async with raw_head(disk, monkeypatch, limits=limits) as place:
            place.check(await place.begin("exp", ("w", 2 * MIB)), 507)
            monkeypatch.setattr(Space, "_look", lambda _: Room(2**40))  # another program is quicker
            session = session_of(await place.begin("exp", ("w", 2 * MIB)))
            answer = await place.told(
                "write", bytes(2 * MIB), session=session, headers={m.OFFSET: "0"}
            )
            place.check(answer, 507)
            assert (await place.told("leave", m.Leave(), session=session)).status == 200
            assert set(await place.content()) == {"canary", "root"}
            await place.good_push()


@asynccontextmanager
async def mounted(folder: Path) -> AsyncIterator[Path]:
    """A file system of one MiB."""
    await to_thread.run_sync(folder.mkdir)
    await anyio.run_process(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)])
    try:
        yield folder
    finally:
        await anyio.run_process(["umount", str(folder)])


# -- a head that cannot be


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.1.2.3", "head.example", "127.0.0.1.evil"]
)
def test_no_head_is_open_to_others_without_tls(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="needs TLS"):
        PeerServer(str(tmp_path), host=host)


async def test_a_root_that_is_missing_is_an_error_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no directory"):
        async with PeerServer(str(tmp_path / "missing")):
            pass
    assert os.listdir(tmp_path) == []


async def test_a_port_that_is_taken_is_an_error(make: Make, tmp_path: Path) -> None:
    async with make() as place:
        port = int(place.head.address.rpartition(":")[2])
        with pytest.raises(ConfigError, match="choose another"):
            async with PeerServer(str(place.root), port=port):
                pass
        await place.good_push()


async def test_a_root_that_goes_away_is_an_error_for_those_who_push(make: Make) -> None:
    async with make() as place:
        await to_thread.run_sync(place.root.rmdir)
        place.check(await place.begin("exp", ("w", 1)), 404, 422, 507)
        place.check(await place.told("header", {"tree": "exp"}), 404)
        assert (await place.told("hello")).status == 200
        await to_thread.run_sync(place.root.mkdir)


async def test_nothing_is_acknowledged_while_another_directory_has_the_place_of_the_root(
    make: Make,
) -> None:
    async with make() as place:
        session = session_of(await place.begin("exp"))
        away = place.top / "away"

        def swap() -> None:
            place.root.rename(away)
            place.root.mkdir()

        def swap_back() -> None:
            place.root.rmdir()
            away.rename(place.root)

        await to_thread.run_sync(swap)
        text = b"".join(encode(make_manifest({})))
        place.check(await place.begin("other", ("w", 1)), 503)
        place.check(await place.told("commit", text, session=session), 503)
        await to_thread.run_sync(swap_back)
        assert (await place.told("commit", text, session=session)).status == 200


async def test_the_marker_of_another_root_is_told_and_not_replaced(make: Make) -> None:
    async with make() as place:
        first = m.decode((await place.told("mark", m.Mark(tree="", marker=b"mine"))).body, m.Marked)
        other = m.decode(
            (await place.told("mark", m.Mark(tree="", marker=b"other"))).body, m.Marked
        )
        assert first.marker == other.marker == b"mine"
