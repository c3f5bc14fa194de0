"""One connection, fed by hand: what it takes for an answer, however the bytes are cut."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.storage.connection import Connection, Sink, TooLongError
from asyncsync.storage.heads import Head, WireError, field_of, read_head


class Line(asyncio.Transport):
    """A transport that keeps what is written until a test lets it leave."""

    def __init__(self, *, stuck: bool = False) -> None:
        super().__init__()
        self.sent = bytearray()
        self.aborted = False
        self.stuck, self.unsent_bytes = stuck, 0
        self.connection = Connection()
        self.below: socket.socket | None = None
        self.connection.connection_made(self)

    def write(self, data: Any) -> None:
        self.sent += data
        if self.stuck:
            self.unsent_bytes += len(data)
            self.connection.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.sent += b"".join(list_of_data)  # of some Pythons it never pauses

    def leave(self) -> None:
        self.unsent_bytes = 0
        self.connection.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.below if name == "socket" else default

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.unsent_bytes = 0
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)


async def ask(
    *pieces: bytes,
    ends: bool = False,
    into: memoryview | None = None,
    limit: int = 1000,
    bodiless: bool = False,
    body: bytes = b"",
) -> tuple[int, bytes, bool]:
    """Ask, and let these pieces arrive: status, body, and whether another request may follow."""
    line = Line()
    connection = line.connection
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
    "a coding with a space": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chun ked\r\n\r\n0\r\n\r\n",
    "a coding that is empty": b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\nhello",
    "a status that is none": b"HTTP/1.1 000 No\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a trailer that is none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\nnot a header\r\n\r\n",
    "a line feed in a value": b"HTTP/1.1 200 OK\r\nA: b\nc\r\nContent-Length: 0\r\n\r\n",
    "a carriage return in a value": b"HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 0\r\n\r\n",
    "a zero byte in a value": b"HTTP/1.1 200 OK\r\nA: b\0c\r\nContent-Length: 0\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("into", [None, 50])
@pytest.mark.parametrize("kind", WRONG)
async def test_what_makes_no_sense_is_an_error(kind: str, into: int | None) -> None:
    buffer = None if into is None else memoryview(bytearray(into))
    with pytest.raises(WireError):
        await ask(WRONG[kind], ends=True, into=buffer)


async def test_an_answer_to_nothing_closes_the_connection() -> None:
    line = Line()
    connection = line.connection
    assert connection.idle
    arrive(connection, b"HTTP/1.1 408 Too Late\r\n\r\n")

    assert line.aborted
    assert not connection.idle


async def test_a_body_is_received_where_it_is_wanted() -> None:
    connection, whole = Line().connection, bytearray(10)
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

    line = Line()
    connection = line.connection
    task = asyncio.ensure_future(connection.ask(b"x", b"", refuse, bodiless=False))
    await asyncio.sleep(0)
    arrive(connection, WHOLE["length"])
    with pytest.raises(ValueError, match="200"):
        await task

    assert line.aborted


async def _asked(
    line: Line, into: memoryview | None = None, body: bytes = b""
) -> tuple[Connection, Any]:
    """A connection on which something was asked, and the task that waits for the answer."""
    task = asyncio.ensure_future(
        line.connection.ask(b"x", body, lambda _: Sink(into, 1000), bodiless=False)
    )
    await asyncio.sleep(0)
    return line.connection, task


async def test_a_body_waits_until_there_is_room() -> None:
    """Else a transport takes all of it into memory, and a cancelled upload goes on to its end."""
    line, body = Line(stuck=True), bytes(range(256)) * 16 * 1024
    connection, task = await _asked(line, body=body)
    rounds = 0
    while not connection.sent:
        assert line.unsent_bytes <= 512 * 1024
        line.leave()
        rounds += 1
        for _ in range(3):
            await asyncio.sleep(0)
    arrive(connection, WHOLE["length"])
    await task

    assert rounds >= 3
    assert line.sent == b"x" + body


@pytest.mark.parametrize("paused", [True, False])
async def test_an_answer_before_the_end_of_a_body_stops_it(paused: bool) -> None:
    """Heard between two slices although the loop has had no reason to look."""
    line, (near, far) = Line(stuck=paused), socket.socketpair()
    with near, far:
        line.below = near
        far.send(b"an answer that the loop has not seen yet")
        connection, task = await _asked(line, body=bytes(4 * 1024 * 1024))
        arrive(connection, b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
        before = len(line.sent)
        head, body = await task

    assert (head.status, bytes(body)) == (403, b"no")
    assert len(line.sent) == before < 2 * 1024 * 1024
    assert line.aborted


async def test_an_answer_is_read_before_more_is_written() -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    with far:
        loop = asyncio.get_running_loop()
        line, connection = await loop.create_connection(Connection, sock=near)
        write, written = line.write, list[int]()

        def answered(data: Any) -> None:
            write(data)
            written.append(len(data))
            if len(written) == 1:
                far.send(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")

        line.write = answered  # type: ignore[method-assign]
        head, _ = await connection.ask(
            b"x", bytes(4 * 1024 * 1024), lambda _: Sink(None, 9), bodiless=False
        )

    assert head.status == 403
    assert len(written) == 1


async def test_what_had_arrived_when_a_write_failed_is_heard() -> None:
    """Servers refuse a body while it is sent: the write fails and only the kernel knows why."""
    line, (near, far) = Line(stuck=True), socket.socketpair()
    with near, far:
        near.setblocking(False)
        connection, task = await _asked(line, body=bytes(4 * 1024 * 1024))
        line.below = near
        far.send(b"HTTP/1.1 403 No\r\nConnection: close\r\n\r\n")
        far.send(b"no")
        far.close()
        line.aborted = True  # from here on as a transport does it whose write has failed
        connection.connection_lost(ConnectionResetError())
        head, body = await task

    assert (head.status, bytes(body)) == (403, b"no")
    assert not connection.idle


@pytest.mark.parametrize(
    "text", [b"", b"HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\nno", b"SSH-2.0"]
)
async def test_what_had_arrived_when_a_write_failed_may_be_no_answer(text: bytes) -> None:
    line, (near, far) = Line(stuck=True), socket.socketpair()
    with near, far:
        near.setblocking(False)
        connection, task = await _asked(line, body=bytes(4 * 1024 * 1024))
        line.below = near
        far.send(text)
        line.aborted = True
        connection.connection_lost(ConnectionResetError())
        with pytest.raises((WireError, ConnectionResetError)):
            await task


async def test_a_success_before_the_end_of_a_body_is_none() -> None:
    connection, task = await _asked(Line(stuck=True), body=bytes(4 * 1024 * 1024))
    arrive(connection, WHOLE["length"])
    with pytest.raises(WireError, match="before everything was sent"):
        await task


async def test_a_success_while_a_body_is_held_back_is_none() -> None:
    line = Line(stuck=True)
    connection, task = await _asked(line, body=b"body")
    arrive(connection, WHOLE["length"])
    connection.eof_received()  # which ends what was held back: it must not look as if it had left
    with pytest.raises(WireError, match="before everything was sent"):
        await task


async def test_a_success_found_when_a_write_failed_is_none() -> None:
    line, (near, far) = Line(stuck=True), socket.socketpair()
    with near, far:
        near.setblocking(False)
        connection, task = await _asked(line, body=b"body")
        line.below, line.unsent_bytes, line.aborted = near, 0, True
        far.send(WHOLE["length"])
        connection.connection_lost(ConnectionResetError())
        with pytest.raises(WireError, match="before everything was sent"):
            await task


async def test_a_request_has_left_when_nothing_of_it_is_held_back() -> None:
    line = Line(stuck=True)
    connection, task = await _asked(line, body=b"body")
    before = connection.sent
    line.leave()
    after = connection.sent
    task.cancel()

    assert (before, after) == (False, True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
async def test_what_leaves_the_kernel_moves() -> None:
    near, far = socket.socketpair()
    with far:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, sock=near)
        task = asyncio.ensure_future(
            connection.ask(b"", bytes(64 * 1024), lambda _: Sink(None), bodiless=True)
        )
        await asyncio.sleep(0)
        assert connection.sent  # nothing of it is in the transport any more
        before = connection.moved_bytes
        read = 0
        while read < 64 * 1024:
            read += len(far.recv(64 * 1024))
        after = connection.moved_bytes
        task.cancel()
        await asyncio.wait([task])

    assert after >= before + 64 * 1024


async def test_what_leaves_a_transport_moves() -> None:
    line = Line(stuck=True)
    connection, task = await _asked(line, body=b"body")
    before = connection.moved_bytes
    line.leave()
    after = connection.moved_bytes
    task.cancel()

    assert (before, after) == (0, 5)


async def test_what_moved_before_a_request_does_not_count_for_it() -> None:
    line = Line()
    connection, task = await _asked(line)
    arrive(connection, WHOLE["length"])
    await task
    line.stuck = True
    _, task = await _asked(line)
    moved_bytes = connection.moved_bytes
    task.cancel()

    assert moved_bytes == 0


async def test_what_arrives_moves() -> None:
    connection, _ = await _asked(Line())
    before = connection.moved_bytes
    arrive(connection, WHOLE["length"])

    assert connection.moved_bytes == before + len(WHOLE["length"])


async def test_what_is_cut_off_is_not_whole_because_it_has_no_length() -> None:
    connection, task = await _asked(Line())
    arrive(connection, b"HTTP/1.1 200 OK\r\n\r\npart")
    connection.connection_lost(None)  # closed by us

    with pytest.raises(WireError):
        await task


async def test_the_end_ends_an_answer_though_a_body_is_held_back() -> None:
    """A transport that has to close politely waits for the body, which nobody takes."""
    connection, task = await _asked(Line(stuck=True), body=bytes(4 * 1024 * 1024))
    arrive(connection, b"HTTP/1.1 413 Big\r\n\r\nno")
    connection.eof_received()
    head, body = await task

    assert (head.status, bytes(body)) == (413, b"no")


async def test_the_end_before_an_answer_closes_at_once() -> None:
    line = Line(stuck=True)
    connection, task = await _asked(line, body=bytes(4 * 1024 * 1024))
    connection.eof_received()
    with pytest.raises(WireError, match="ServerDisconnected"):
        await task

    assert line.aborted


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
    arrive(connection, WHOLE["length"].replace(b"200 OK", b"503 No"))
    await task

    assert not connection.idle
    assert line.aborted


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("used", [True, False])
async def test_nothing_is_written_to_a_connection_that_is_closing(used: bool, lost: bool) -> None:
    line = Line()
    if used:
        connection, task = await _asked(line)
        arrive(connection, WHOLE["length"])
        await task
        line.sent.clear()
    line.abort()
    if lost:
        await asyncio.sleep(0)
    with pytest.raises(WireError):
        await line.connection.ask(b"x", b"body", lambda _: Sink(None), bodiless=False)

    assert not line.sent


async def test_a_failure_before_a_request_is_its_failure() -> None:
    line = Line()
    arrive(line.connection, WHOLE["length"])
    with pytest.raises(WireError, match="an answer to nothing"):
        await line.connection.ask(b"x", b"body", lambda _: Sink(None), bodiless=False)


async def test_what_follows_a_failure_does_not_mend_it() -> None:
    connection, task = await _asked(Line())
    arrive(connection, b"SSH-2.0\r\n\r\n")
    arrive(connection, WHOLE["length"])
    with pytest.raises(WireError, match="answer that is not HTTP"):
        await task


async def test_what_is_too_long_says_with_which_status() -> None:
    connection, task = await _asked(Line(), memoryview(bytearray(4)))
    arrive(connection, WHOLE["chunks"])
    with pytest.raises(TooLongError) as caught:
        await task

    assert caught.value.status == 200


async def test_an_idle_connection_keeps_nobodys_memory() -> None:
    class Request:
        """What is asked for, and where it goes."""

        whole = memoryview(bytearray(5))

        def choose(self, head: Head) -> Sink:
            return Sink(self.whole)

    request, line = Request(), Line()
    gone = weakref.ref(request)
    task = asyncio.ensure_future(line.connection.ask(b"x", b"", request.choose, bodiless=False))
    await asyncio.sleep(0)
    arrive(line.connection, WHOLE["length"])
    await task
    del task, request
    Request.whole.release()  # BufferError if anything of it is still held

    assert line.connection.idle
    assert gone() is None


async def test_tls_does_not_begin_behind_what_was_said_in_clear() -> None:
    connection = Line().connection
    task = asyncio.ensure_future(
        connection.ask(b"CONNECT", b"", lambda _: Sink(None), bodiless=True, tunnel=True)
    )
    await asyncio.sleep(0)
    arrive(connection, b"HTTP/1.1 200 Go\r\n\r\n" + WHOLE["length"])
    await task
    with pytest.raises(WireError):
        await connection.secure(ssl.create_default_context(), "store.example")


# -- heads that take long


@pytest.mark.parametrize("name", [b"X", b"X-Long-" + b"a" * 200])
@pytest.mark.parametrize("blanks", [1, 200])
@pytest.mark.parametrize("end", [b" folded", b"no colon", b"NUL: \0", b"sp ace: v", b""])
def test_a_head_that_is_none_is_found_out_at_once(name: bytes, blanks: int, end: bytes) -> None:
    """Each way to read a field would be tried with each way to read all others."""
    field = name + b":" + b" " * blanks + b"v" + b"\t" * blanks
    raw = b"\r\n".join([b"HTTP/1.1 200 OK", *[field] * (60_000 // len(field)), end])
    began = time.process_time()

    with pytest.raises(WireError):
        read_head(raw)
    with pytest.raises(WireError):
        field_of(b"X:" + b" " * 60_000 + b"\0")

    assert time.process_time() - began < 2.0  # some milliseconds; it was ages
