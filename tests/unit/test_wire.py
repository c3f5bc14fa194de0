"""One connection, fed by hand: what it takes for an answer, however the bytes are cut."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.storage.wire import Connection, Head, Sink, WireError


class Line(asyncio.Transport):
    """A transport that keeps what is written, and takes as much as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.aborted = False
        self.unsent_bytes = 0

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.sent += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


async def ask(
    *pieces: bytes,
    ends: bool = False,
    into: memoryview | None = None,
    limit: int = 1000,
    bodiless: bool = False,
    body: bytes = b"",
) -> tuple[int, bytes, bool]:
    """Ask, and let these pieces arrive: status, body, and whether another request may follow."""
    connection, line = Connection(), Line()
    connection.connection_made(line)
    choose: Callable[[Head], Sink] = lambda _: Sink(into, limit)  # noqa: E731
    task = asyncio.ensure_future(
        connection.ask(b"GET / HTTP/1.1\r\n\r\n", body, choose, bodiless=bodiless)
    )
    await asyncio.sleep(0)
    for piece in pieces:
        arrive(connection, piece)
    if ends:
        connection.eof_received()
        connection.connection_lost(None)
    head, got = await task
    assert ends or line.aborted is not connection.idle
    return head.status, bytes(got), connection.idle


def arrive(connection: Connection, data: bytes) -> None:
    """As a transport does it: into the buffers that it is given."""
    while data:
        buffer = connection.get_buffer(-1)
        count = min(len(buffer), len(data))
        assert count, "no room for what arrives"
        buffer[:count] = data[:count]
        data = data[count:]
        connection.buffer_updated(count)


WHOLE = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "twice the same length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"
    b"content-length: 5\r\n\r\nhello",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n"
    b"0\r\n\r\n",
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n"
    b"X-Sum: 1\r\nX-More: 2\r\n\r\n",
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "no reason": b"HTTP/1.1 200\r\nContent-Length:5\r\n\r\nhello",
}


@given(st.sampled_from(sorted(WHOLE)), st.lists(st.integers(1, 150), max_size=8), st.booleans())
def test_an_answer_is_the_same_however_it_is_cut(kind: str, cuts: list[int], direct: bool) -> None:
    text = WHOLE[kind]
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(ends)]
    into = memoryview(bytearray(5)) if direct else None

    assert asyncio.run(ask(*pieces, into=into)) == (200, b"hello", True)


@given(st.binary(max_size=300), st.booleans())
def test_whatever_arrives_is_an_answer_or_an_error(data: bytes, direct: bool) -> None:
    into = memoryview(bytearray(50)) if direct else None
    try:
        asyncio.run(ask(b"HTTP/1.1 200 OK\r\n" + data, ends=True, into=into))
    except WireError:
        pass


@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 200), st.integers(0, 255))
def test_an_answer_with_a_wrong_byte_is_one_or_an_error(kind: str, at: int, value: int) -> None:
    text = bytearray(WHOLE[kind])
    text[at % len(text)] = value
    try:
        status, body, _ = asyncio.run(ask(bytes(text), ends=True))
    except WireError:
        return
    assert 200 <= status <= 999
    assert len(body) <= len(text)


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["an old version", "it says so", "more than it says", "another answer"],
)
async def test_a_connection_is_not_kept(text: bytes) -> None:
    assert await ask(text) == (200, b"hello", False)


async def test_a_body_without_length_ends_with_the_connection() -> None:
    assert await ask(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", ends=True) == (200, b"hello", False)


async def test_of_a_long_body_no_more_is_taken_than_is_wanted() -> None:
    text = b"HTTP/1.1 500 No\r\nContent-Length: 5000\r\n\r\n"

    assert await ask(text, b"x" * 700, b"x" * 700, limit=1000) == (500, b"x" * 1000, False)


@pytest.mark.parametrize("status", [204, 304])
async def test_what_has_no_body_ends_with_its_head(status: int) -> None:
    text = b"HTTP/1.1 %d No\r\nContent-Length: 5\r\n\r\n" % status

    assert await ask(text) == (status, b"", True)
    assert await ask(text.replace(b"%d" % status, b"200"), bodiless=True) == (200, b"", True)


WRONG = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a version to come": b"HTTP/2.0 200 OK\r\n\r\n",
    "a folded header": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    "a name with a space": b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding that is not known": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "a chunk longer than it says": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhello\r\n0\r\n\r\n",
    "a chunk of a huge size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"ffffffffffffffffff\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000,
    "a line without end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 70_000,
    "a length of many digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("into", [None, 50])
@pytest.mark.parametrize("kind", WRONG)
async def test_what_makes_no_sense_is_an_error(kind: str, into: int | None) -> None:
    buffer = None if into is None else memoryview(bytearray(into))
    with pytest.raises(WireError):
        await ask(WRONG[kind], ends=True, into=buffer)


async def test_an_answer_to_nothing_closes_the_connection() -> None:
    connection, line = Connection(), Line()
    connection.connection_made(line)
    assert connection.idle
    arrive(connection, b"HTTP/1.1 408 Too Late\r\n\r\n")

    assert line.aborted
    assert not connection.idle


async def test_a_body_is_received_where_it_is_wanted() -> None:
    connection, whole = Connection(), bytearray(10)
    connection.connection_made(Line())
    task = asyncio.ensure_future(
        connection.ask(b"x", b"", lambda _: Sink(memoryview(whole)), bodiless=False)
    )
    await asyncio.sleep(0)
    arrive(connection, b"HTTP/1.1 206 OK\r\nContent-Length: 10\r\n\r\n01")
    buffer = connection.get_buffer(-1)

    assert buffer.obj is whole
    assert len(buffer) == 8
    task.cancel()


async def test_what_a_body_is_chosen_for_may_refuse_it() -> None:
    def refuse(head: Head) -> Sink:
        raise ValueError(head.status)

    connection, line = Connection(), Line()
    connection.connection_made(line)
    task = asyncio.ensure_future(connection.ask(b"x", b"", refuse, bodiless=False))
    await asyncio.sleep(0)
    arrive(connection, WHOLE["length"])
    with pytest.raises(ValueError, match="200"):
        await task

    assert line.aborted


async def test_a_body_waits_until_there_is_room() -> None:
    connection, line, body = Connection(), Line(), bytes(range(256)) * 4096
    connection.connection_made(line)
    connection.pause_writing()
    task = asyncio.ensure_future(connection.ask(b"x", body, lambda _: Sink(None, 9), bodiless=True))
    await asyncio.sleep(0)
    before = len(line.sent)
    connection.resume_writing()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    arrive(connection, b"HTTP/1.1 200 OK\r\n\r\n")
    await task

    assert before < len(body)
    assert line.sent == b"x" + body


async def _asked(line: Line, into: memoryview | None = None) -> tuple[Connection, Any]:
    """A connection on which something was asked, and the task that waits for the answer."""
    connection = Connection()
    connection.connection_made(line)
    task = asyncio.ensure_future(
        connection.ask(b"x", b"", lambda _: Sink(into, 1000), bodiless=False)
    )
    await asyncio.sleep(0)
    return connection, task


async def test_what_is_cut_off_is_not_whole_because_it_has_no_length() -> None:
    connection, task = await _asked(Line())
    arrive(connection, b"HTTP/1.1 200 OK\r\n\r\npart")
    connection.connection_lost(None)  # closed by us, or over TLS without a goodbye

    with pytest.raises(WireError):
        await task


@pytest.mark.parametrize("excess", [1, 100_000])
async def test_what_follows_a_body_does_not_touch_it(excess: int) -> None:
    line, whole = Line(), bytearray(10)
    connection, task = await _asked(line, memoryview(whole))
    arrive(connection, b"HTTP/1.1 206 OK\r\nContent-Length: 10\r\n\r\n01")
    arrive(connection, b"23456789" + b"z" * excess)
    head, body = await task

    assert (head.status, bytes(body)) == (206, b"0123456789")
    assert not connection.idle
    assert line.aborted


async def test_a_connection_that_still_holds_a_body_is_not_kept() -> None:
    line = Line()
    connection, task = await _asked(line)
    line.unsent_bytes = 7
    arrive(connection, WHOLE["length"])
    await task

    assert not connection.idle
    assert line.aborted


async def test_nothing_is_written_to_a_connection_that_is_closing() -> None:
    line = Line()
    connection = Connection()
    connection.connection_made(line)
    line.abort()
    with pytest.raises(WireError):
        await connection.ask(b"x", b"body", lambda _: Sink(None), bodiless=False)

    assert not line.sent


async def test_an_idle_connection_keeps_nobodys_memory() -> None:
    whole = memoryview(bytearray(5))
    connection, task = await _asked(Line(), whole)
    arrive(connection, WHOLE["length"])
    await task
    del task
    whole.release()  # BufferError if anything of it is still held

    assert connection.idle


async def test_tls_does_not_begin_behind_what_was_said_in_clear() -> None:
    connection = Connection()
    connection.connection_made(Line())
    task = asyncio.ensure_future(
        connection.ask(b"CONNECT", b"", lambda _: Sink(None), bodiless=True, tunnel=True)
    )
    await asyncio.sleep(0)
    arrive(connection, b"HTTP/1.1 200 Go\r\n\r\n" + WHOLE["length"])
    await task
    with pytest.raises(WireError):
        await connection.secure(ssl.create_default_context(), "store.example")
