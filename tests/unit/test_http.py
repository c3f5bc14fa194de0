"""Http against servers that answer what a test tells them, byte for byte."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

import anyio
import pytest
import trustme
from anyio.lowlevel import checkpoint

from asyncsync.concurrency import Threads
from asyncsync.errors import (
    AsyncSyncError,
    ConfigError,
    PermanentError,
    StalledError,
    TransientError,
)
from asyncsync.storage import connection as connections
from asyncsync.storage import dialing
from asyncsync.storage import http as http_module
from asyncsync.storage.dialing import Origin
from asyncsync.storage.http import Answer, Http, retry_after_s

STALL_S = 0.15
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: x\r\n\r\nhello"
SECRET = "sig=very-secret"
BIG = bytes(range(256)) * 32 * 1024  # 8 MiB: more than any buffer on the way takes


class Connection:
    """One connection to the server, as a script of a test sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def head(self) -> bytes:
        """The next request up to its body."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def request(self) -> tuple[bytes, bytes]:
        """The next request: head and body."""
        head = await self.head()
        size = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                size = int(line.partition(b":")[2])
        return head, await self.reader.readexactly(size)

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_closed(self) -> None:
        """Wait until the client has gone."""
        try:
            while await self.reader.read(65536):
                continue
        except ConnectionError:
            pass


Script = Callable[[Connection], Awaitable[object]]


class Server:
    """Runs a script for every connection, then closes it."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None) -> None:
        self._script, self._tls = script, tls
        self.connections = 0
        self.closed = asyncio.Event()
        self.requests: list[bytes] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._script(Connection(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.closed.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        tasks = set[asyncio.Task[None]]()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.ensure_future(self.run(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.wait_closed()


def serving(script: Script, tls: ssl.SSLContext | None = None):  # type: ignore[no-untyped-def]
    return Server(script, tls).running()


def answers(*texts: bytes) -> Script:
    """One answer after the other on each connection, and then the end."""

    async def script(connection: Connection) -> None:
        for text in texts:
            await connection.request()
            await connection.say(text)

    return script


def sends(text: bytes) -> Script:
    """An answer, and a connection that stays open."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.say(text)
        await connection.until_closed()

    return script


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(2)
    yield threads
    threads.close()


@pytest.fixture
async def http(threads: Threads) -> AsyncIterator[Http]:
    http = Http(max_connections=4, stall_s=STALL_S)
    await http.open(threads)
    yield http
    await http.aclose()


def one_line(error: AsyncSyncError, *parts: str) -> bool:
    text = str(error)
    return text.isprintable() and all(part in text for part in parts)


# -- what is sent and what comes back


async def test_an_answer_comes_as_it_is_and_the_address_goes_as_it_is(http: Http) -> None:
    heads = list[bytes]()

    async def script(connection: Connection) -> None:
        heads.append(await connection.head())
        await connection.say(OK)

    async with serving(script) as server:
        url = f"{server.url}/b/a%2Fb%20c%C3%BC//d?x=%2B&y"
        answer = await http.send("GET", url, {"X-One": "1"}, what="get it")

    assert answer.status == 200
    assert answer.headers["etag"] == "x"
    assert answer.body == b"hello"
    assert heads[0].startswith(b"GET /b/a%2Fb%20c%C3%BC//d?x=%2B&y HTTP/1.1\r\n")
    assert b"\r\nX-One: 1\r\n" in heads[0]
    for name in (b"accept-encoding", b"user-agent", b"cookie", b"content-length", b"content-type"):
        assert name not in heads[0].lower()


@pytest.mark.parametrize("size", [0, 1, 200_000])
@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_body_goes_with_its_exact_length(method: str, size: int, http: Http) -> None:
    seen = list[tuple[bytes, bytes]]()

    async def script(connection: Connection) -> None:
        seen.append(await connection.request())
        await connection.say(OK)

    async with serving(script) as server:
        data = memoryview(BIG)[:size]
        await http.send(method, server.url, {"Content-Type": "a/b"}, what="put it", data=data)

    head, body = seen[0]
    assert body == data
    assert b"\r\nContent-Length: %d\r\n" % size in head
    assert b"chunked" not in head
    assert head.count(b"Content-Type: a/b") == 1


async def test_a_body_goes_into_the_buffer_of_the_caller(http: Http) -> None:
    buffer = memoryview(bytearray(9))
    async with serving(answers(OK)) as server:
        answer = await http.send("GET", server.url, {}, what="get it", into=buffer)

    assert isinstance(answer.body, memoryview)
    assert answer.body.obj is buffer.obj
    assert bytes(buffer) == b"hello\0\0\0\0"


async def test_a_head_has_a_length_and_no_body(http: Http) -> None:
    text = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    async with serving(answers(text, OK)) as server:
        head = await http.send("HEAD", server.url, {}, what="look at it")
        again = await http.send("GET", server.url, {}, what="get it")

    assert (head.headers["Content-Length"], head.body) == ("5", b"")
    assert again.body == b"hello"
    assert server.connections == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_like_others(status: int, http: Http) -> None:
    async with serving(answers(OK)) as other:
        text = f"HTTP/1.1 {status} Go\r\nLocation: {other.url}/x\r\nContent-Length: 0\r\n\r\n"
        async with serving(answers(text.encode())) as server:
            answer = await http.send("PUT", server.url, {}, what="put it", data=b"x")

        assert (answer.status, answer.headers["Location"]) == (status, f"{other.url}/x")
        assert other.connections == 0


@pytest.mark.parametrize("status", [400, 403, 404, 412, 429, 500, 503])
async def test_no_status_is_an_error(status: int, http: Http) -> None:
    text = b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % status
    async with serving(answers(text)) as server:
        answer = await http.send("GET", server.url, {}, what="get it", into=memoryview(b""))

    assert (answer.status, answer.body) == (status, b"no")


async def test_connections_are_kept_while_all_is_well(http: Http) -> None:
    async with serving(answers(OK, OK, OK)) as server:
        for _ in range(3):
            await http.send("PUT", server.url, {}, what="put it", data=b"x")

        assert server.connections == 1


async def test_of_a_long_error_page_64_kib_are_read_and_the_connection_is_closed(
    http: Http,
) -> None:
    text = b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(BIG)
    async with serving(sends(text + BIG)) as server:
        answer = await http.send("GET", server.url, {}, what="get it")
        await server.closed.wait()

    assert answer.status == 500
    assert answer.body == BIG[: 64 * 1024]


async def test_an_answer_before_the_body_has_gone_is_heard(http: Http) -> None:
    async def script(connection: Connection) -> None:
        await connection.head()
        await connection.say(b"HTTP/1.1 503 Slow\r\nContent-Length: 2\r\n\r\nno")
        await anyio.sleep_forever()

    async with serving(script) as server:
        answer = await http.send("PUT", server.url, {}, what="put it", data=BIG)

    assert (answer.status, answer.body) == (503, b"no")


async def test_a_connection_that_was_idle_for_long_is_not_used_again(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(dialing, "monotonic", lambda: now_s[0])
    async with serving(answers(OK, OK)) as server:
        for now_s[0] in (0.0, 14.0, 30.0):
            await http.send("GET", server.url, {}, what="get it")

        assert server.connections == 2


async def test_a_connection_on_which_more_came_is_not_used_again(http: Http) -> None:
    async with serving(sends(OK + OK.replace(b"hello", b"forge"))) as server:
        for _ in range(2):
            answer = await http.send("GET", server.url, {}, what="get it")
            assert answer.body == b"hello"

        assert server.connections == 2


async def test_connections_to_all_servers_count(http: Http) -> None:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving(answers(OK, OK))) for _ in range(6)]
        for server in servers:
            await http.send("GET", server.url, {}, what="get it")
        for server in servers[:2]:
            await server.closed.wait()

        assert [server.closed.is_set() for server in servers] == [True] * 2 + [False] * 4


async def test_nothing_is_sent_once_it_is_closed(threads: Threads) -> None:
    http, heads = Http(max_connections=1), list[bytes]()
    await http.open(threads)

    async def script(connection: Connection) -> None:
        heads.append(await connection.head())
        await http.aclose()

    errors = list[str]()

    async def ask(server: Server) -> None:
        with pytest.raises((TransientError, ConfigError)) as caught:
            await http.send("GET", server.url, {}, what="get it")
        errors.append(type(caught.value).__name__)

    async with serving(script) as server, anyio.create_task_group() as group:
        group.start_soon(ask, server)
        group.start_soon(ask, server)

    assert len(heads) == server.connections == 1
    assert sorted(errors) == ["ConfigError", "TransientError"]


async def test_what_is_being_opened_is_closed_with_the_rest(threads: Threads) -> None:
    http = Http(max_connections=1)
    await http.open(threads)

    async def silent(connection: Connection) -> None:
        assert await connection.reader.read(1)  # TLS begins, and gets no answer
        await http.aclose()
        await connection.until_closed()

    async with serving(silent) as server:
        with pytest.raises(ConfigError, match="get it: the store is closed"):
            await http.send("GET", server.url.replace("http:", "https:"), {}, what="get it")
        await server.closed.wait()


async def test_what_was_opened_while_the_rest_was_closed_is_closed(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, dialled = Http(max_connections=1), dialing._dialled
    await http.open(threads)

    async def closing(origin: Origin) -> connections.Connection:
        connection = await dialled(origin)
        with anyio.CancelScope(shield=True):
            await http.aclose()
        return connection

    monkeypatch.setattr(dialing, "_dialled", closing)
    async with serving(nothing) as server:
        with pytest.raises(ConfigError, match="get it: the store is closed"):
            await http.send("GET", server.url, {}, what="get it")
        await server.closed.wait()


async def test_a_kept_connection_that_ended_unheard_is_not_used(http: Http) -> None:
    """The loop has not looked yet; what is sent would be lost, and a write is not sent twice."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        loop, url = asyncio.get_running_loop(), f"http://127.0.0.1:{listener.getsockname()[1]}"
        for _ in range(2):
            task = asyncio.ensure_future(http.send("GET", url, {}, what="get it"))
            line, _ = await loop.sock_accept(listener)
            with line:
                await loop.sock_recv(line, 65536)
                line.send(OK)
                assert (await task).body == b"hello"


async def test_no_more_connections_are_open_than_allowed(http: Http) -> None:
    waiting, most, go = 0, 0, anyio.Event()

    async def script(connection: Connection) -> None:
        nonlocal waiting, most
        while await connection.request():
            waiting += 1
            most = max(most, waiting)
            if waiting == 4:
                go.set()
            await go.wait()
            waiting -= 1
            await connection.say(OK)

    async with serving(script) as server, anyio.create_task_group() as group:
        for _ in range(9):
            group.start_soon(partial(http.send, "GET", server.url, {}, what="get it"))

    assert most == 4
    assert server.connections == 4


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "a\r\nX-Two: b"])
async def test_a_header_cannot_begin_another(value: str, http: Http) -> None:
    async with serving(answers(OK)) as server:
        with pytest.raises(ConfigError, match="line break"):
            await http.send("GET", server.url, {"X-One": value}, what="get it")


@pytest.mark.parametrize("path", ["/a b", "/a\nX-One: 1", "/a HTTP/1.1\r\n\r\nGET /b", "/\0"])
async def test_an_address_cannot_begin_a_header(path: str, http: Http) -> None:
    async with serving(answers(OK)) as server:
        with pytest.raises(ConfigError) as caught:
            await http.send("GET", f"{server.url}{path}", {}, what="get it")

    assert one_line(caught.value, "get it: the address holds a space or a line break")


@pytest.mark.parametrize(("path", "header"), [("/\ud800", "x"), ("/", "\ud800")])
async def test_what_is_no_text_is_a_matter_of_settings(path: str, header: str, http: Http) -> None:
    async with serving(answers(OK)) as server:
        with pytest.raises(ConfigError) as caught:
            await http.send("GET", f"{server.url}{path}", {"X-One": header}, what="get it")

    assert one_line(caught.value, "get it: a setting that is sent along is no text")


async def test_an_address_is_asked_for_as_it_is_named(http: Http) -> None:
    heads = list[bytes]()

    async def script(connection: Connection) -> None:
        while True:
            heads.append(await connection.head())
            await connection.say(OK)

    async with serving(script) as server:
        at = f"127.0.0.1:{server.port}"
        for rest in ("", "?a=b", "/", "/x?y=/z", "//x"):
            await http.send("GET", f"http://user:secret@{at}{rest}", {}, what="get it")

    asked = [head.split(b"\r\n")[:2] for head in heads]
    paths = (b"/", b"/?a=b", b"/", b"/x?y=/z", b"//x")
    assert asked == [[b"GET %b HTTP/1.1" % p, b"Host: " + at.encode()] for p in paths]


# -- answers that are not whole


NOT_WHOLE = {
    "nothing": b"",
    "half of the headers": OK[:20],
    "garbage": b"garbage\r\n\r\n",
    "no body": OK[:-5],
    "half of the body": OK[:-3],
    "half of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    "no last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "a chunk without size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\nhello",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
}


@pytest.mark.parametrize("into", [None, 100], ids=["", "into a buffer"])
@pytest.mark.parametrize("kind", NOT_WHOLE)
async def test_an_answer_that_is_not_whole_is_passing_and_its_connection_is_not_used_again(
    kind: str, into: int | None, http: Http
) -> None:
    texts = [NOT_WHOLE[kind], OK]

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.say(texts.pop(0))

    async with serving(script) as server:
        buffer = None if into is None else memoryview(bytearray(into))
        with pytest.raises(TransientError) as caught:
            await http.send("GET", f"{server.url}?{SECRET}", {}, what="get it", into=buffer)
        again = await http.send("GET", server.url, {}, what="get it")

    assert one_line(caught.value, "get it: ")
    assert SECRET not in repr((caught.value, caught.value.__cause__, caught.value.__context__))
    assert again.body == b"hello"
    assert server.connections == 2


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 206 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 206 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 206 OK\r\n\r\nhello",
    ],
    ids=["length", "chunks", "until closed"],
)
async def test_more_than_fits_is_passing_and_writes_nothing_beyond(text: bytes, http: Http) -> None:
    whole = bytearray(9)
    into = memoryview(whole)[:4]
    async with serving(answers(text)) as server:
        with pytest.raises(TransientError, match="get it"):
            await http.send("GET", server.url, {}, what="get it", into=into)

    assert whole[4:] == bytes(5)


@pytest.mark.parametrize(
    "text",
    [OK, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
    ids=["length", "chunks"],
)
async def test_the_whole_where_a_range_was_asked_for_is_no_passing_trouble(
    text: bytes, http: Http
) -> None:
    async with serving(answers(text)) as server:
        with pytest.raises(PermanentError, match="does not honour ranges"):
            await http.send("GET", server.url, {}, what="get it", into=memoryview(bytearray(4)))


async def test_an_answer_too_large_to_be_taken_at_once_is_no_passing_trouble(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_module, "_PLAIN_BYTES", 4)
    async with serving(answers(OK, OK)) as server:
        with pytest.raises(PermanentError) as caught:
            await http.send("GET", server.url, {}, what="get it")
        monkeypatch.setattr(http_module, "_PLAIN_BYTES", 5)
        fits = await http.send("GET", server.url, {}, what="get it")

    assert one_line(caught.value, "get it: the answer is larger than ", "ask for it in ranges")
    assert fits.body == b"hello"


@pytest.mark.parametrize("url", ["http://me:{}@host:port/", "http://host:{}/", "http://[::1{}"])
async def test_an_address_that_is_none_is_not_shown(url: str, http: Http) -> None:
    with pytest.raises(ConfigError) as caught:
        await http.send("GET", url.format("very-secret"), {}, what="get it")

    assert one_line(caught.value, "get it: ", "check the endpoint")
    assert "very-secret" not in repr(
        (caught.value, caught.value.__cause__, caught.value.__context__)
    )


def test_a_server_may_ask_for_five_minutes_by_its_own_clock() -> None:
    date = "Wed, 21 Oct 2015 07:27:30 GMT"
    later = {
        "7": 7.0,
        " 7": 7.0,
        "31536000": 300.0,
        "9" * 400: 300.0,
        "Wed, 21 Oct 2015 07:28:00 GMT": 30.0,
        "Fri, 31 Dec 9999 23:59:59 GMT": 300.0,
        "Wed, 21 Oct 2015 07:27:00 GMT": 0.0,
        "-3": None,
        "\u00b2": None,
        "\uff17": None,
        "soon": None,
        "": None,
    }

    assert {text: retry_after_s({"Retry-After": text, "Date": date}) for text in later} == later
    assert retry_after_s({"Retry-After": date}) is None


async def test_a_password_in_the_address_is_not_named(http: Http) -> None:
    with pytest.raises(TransientError) as caught:
        await http.send("GET", "http://user:password@127.0.0.1:9/x", {}, what="get it")

    assert one_line(caught.value, "get it: cannot connect to http://127.0.0.1:9: ")
    assert "password" not in repr(caught.value)


async def test_a_body_without_length_is_as_long_as_it_comes(http: Http) -> None:
    async with serving(answers(b"HTTP/1.1 200 OK\r\n\r\nhello")) as server:
        answer = await http.send("GET", server.url, {}, what="get it")

    assert answer.body == b"hello"


async def test_a_request_is_never_sent_twice(http: Http) -> None:
    """Neither on a fresh connection nor on one that was kept and is closed by then."""
    heads = list[bytes]()

    async def script(connection: Connection) -> None:
        heads.append((await connection.request())[0])
        if len(heads) == 1:
            await connection.say(OK)
            heads.append((await connection.request())[0])

    async with serving(script) as server:
        await http.send("PUT", server.url, {}, what="put it", data=b"1")
        with pytest.raises(TransientError, match=r"put it: the connection to .* broke"):
            await http.send("PUT", server.url, {}, what="put it", data=b"2")
        with pytest.raises(TransientError, match=r"put it: the connection to .* broke"):
            await http.send("PUT", server.url, {}, what="put it", data=b"3")

    assert len(heads) == 3


# -- too slow


async def nothing(connection: Connection) -> None:
    await connection.request()
    await connection.until_closed()


async def half(connection: Connection) -> None:
    await connection.request()
    await connection.say(OK[:-3])
    await connection.until_closed()


async def unread(connection: Connection) -> None:
    await connection.head()
    await anyio.sleep_forever()


@pytest.mark.parametrize("script", [nothing, half, unread])
async def test_a_request_on_which_hardly_anything_moves_is_given_up_and_its_connection_closed(
    script: Script, http: Http
) -> None:
    async with serving(script) as server:
        with anyio.fail_after(20 * STALL_S), pytest.raises(StalledError) as caught:
            await http.send("PUT", f"{server.url}?{SECRET}", {}, what="put it", data=BIG)
        if script is not unread:
            await server.closed.wait()

    assert one_line(caught.value, f"put it: hardly anything moved for {STALL_S:g} s")


@pytest.mark.parametrize(("step", "given_up"), [(4096, False), (1, True)])
async def test_what_is_slow_is_given_up_only_if_too_little_of_it_moves(
    step: int, given_up: bool, http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    into, now_s = memoryview(bytearray(16 * step)), 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)

    async def slow(connection: Connection) -> None:
        nonlocal now_s
        await connection.request()
        await connection.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(into))
        for end in range(step, len(into) + 1, step):
            await connection.say(b"x" * step)
            while not into[end - 1]:  # that bytes have arrived sets no event
                await checkpoint()
            now_s += 0.9 * STALL_S

    async with serving(slow) as server:
        with pytest.raises(StalledError) if given_up else nullcontext():
            await http.send("GET", server.url, {}, what="get it", into=into)

    assert (into[-1] == 0) is given_up


async def test_what_leaves_slowly_is_not_given_up(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held back on the way becomes less, and nothing else shows that it moves."""
    now_s, moved_bytes = 0.0, 0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
    monkeypatch.setattr(connections.Connection, "moved_bytes", property(lambda _: moved_bytes))

    async def slow(connection: Connection) -> None:
        nonlocal now_s, moved_bytes
        await connection.request()
        for _ in range(12):
            now_s += 0.9 * STALL_S
            moved_bytes += 6 * 1024
            for _ in range(20):
                await checkpoint()
        await connection.say(OK)

    async with serving(slow) as server:
        answer = await http.send("PUT", server.url, {}, what="put it", data=b"body")

    assert answer.status == 200


@pytest.mark.parametrize("patient", [True, False])
async def test_white_space_is_a_sign_of_life_where_a_server_is_known_to_take_long(
    patient: bool, http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
    blanks = 0

    async def slow(connection: Connection) -> None:
        nonlocal now_s, blanks
        await connection.request()
        await connection.say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        while blanks < 8:
            await connection.say(b" ")
            blanks += 1
            for _ in range(50):  # until it has arrived; nothing tells
                await checkpoint()
            now_s += 0.9 * STALL_S
        await connection.say(b"x")

    async with serving(slow) as server:
        with nullcontext() if patient else pytest.raises(StalledError):
            await http.send("POST", server.url, {}, what="join it", patient=patient)

    assert (blanks == 8) is patient


@pytest.mark.one_loop
async def test_closed_it_leaves_no_timer_behind(threads: Threads) -> None:
    """The loop would hold on to the client for as long as the timer runs."""
    http = Http(max_connections=1, stall_s=3600.0)
    await http.open(threads)

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.say(OK)

    async with serving(script) as server:
        await http.send("GET", server.url, {}, what="get it")
    watch = weakref.ref(http._watch)
    await http.aclose()
    del http
    gc.collect()

    assert watch() is None


def test_a_stall_is_found_out_on_the_next_loop_too(threads: Threads) -> None:
    """The timer that watches lives for a while after the last request, perhaps not as long."""
    http = Http(max_connections=2, stall_s=STALL_S)

    async def answered(connection: Connection) -> None:
        await connection.request()
        await connection.say(OK)

    async def mute(connection: Connection) -> None:
        await connection.until_closed()

    async def ask(script: Script) -> Answer:
        await http.open(threads)
        async with serving(script) as server:
            return await http.send("GET", server.url, {}, what="get it")

    assert asyncio.run(ask(answered)).status == 200
    with pytest.raises(StalledError):
        asyncio.run(asyncio.wait_for(ask(mute), 20 * STALL_S))


async def test_cancelled_it_closes_the_connection(http: Http) -> None:
    scope = anyio.CancelScope()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.say(OK[:-3])
        scope.cancel()
        await connection.until_closed()

    async with serving(script) as server:
        with scope:
            await http.send("GET", server.url, {}, what="get it")

        assert scope.cancelled_caught
        await server.closed.wait()


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
async def test_cancelled_it_waits_for_the_answer_to_a_write_that_has_left(
    method: str, http: Http
) -> None:
    scope, done = anyio.CancelScope(), False

    async def script(connection: Connection) -> None:
        nonlocal done
        await connection.request()
        scope.cancel()
        for _ in range(20):
            await checkpoint()
        done = True
        await connection.say(OK)

    async with serving(script) as server:
        with scope:
            await http.send(method, server.url, {}, what="put it", data=b"body")

        assert scope.cancelled_caught
        assert done


async def test_cancelled_it_does_not_wait_for_a_write_that_is_held_back(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing the connection makes sure at once that nothing comes of it."""
    monkeypatch.setattr(connections.Connection, "_unsent_bytes", 1)
    scope, http = anyio.CancelScope(), Http(max_connections=1)
    await http.open(threads)

    async def script(connection: Connection) -> None:
        await connection.request()
        scope.cancel()
        await connection.until_closed()

    async with serving(script) as server:
        began = anyio.current_time()
        with scope:
            await http.send("PUT", server.url, {}, what="put it", data=b"body")

        assert scope.cancelled_caught
        assert anyio.current_time() - began < 2.5  # it would wait for 5 s
    await http.aclose()


async def test_cancelled_it_does_not_send_the_rest_of_a_write(http: Http) -> None:
    scope = anyio.CancelScope()
    arrived = 0

    async def script(connection: Connection) -> None:
        nonlocal arrived
        await connection.head()
        scope.cancel()
        await checkpoint()
        while data := await connection.reader.read(65536):
            arrived += len(data)

    async with serving(script) as server:
        with scope:
            await http.send("PUT", server.url, {}, what="put it", data=BIG)

        assert scope.cancelled_caught
        await server.closed.wait()
    assert arrived < len(BIG)


# -- no connection


async def test_a_refused_connection_names_the_server(http: Http) -> None:
    with pytest.raises(TransientError) as caught:
        await http.send("GET", f"http://127.0.0.1:9/x?{SECRET}", {}, what="get it")

    assert one_line(
        caught.value, "get it: cannot connect to http://127.0.0.1:9: Connection refused"
    )
    assert SECRET not in repr((caught.value, caught.value.__cause__))


async def test_what_uvloop_says_of_a_connection_that_fails_is_passing(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("of libuv")

    monkeypatch.setattr(dialing, "start_connection", fail)
    with pytest.raises(TransientError) as caught:
        await http.send("GET", "http://127.0.0.1:9/x", {}, what="get it")

    assert one_line(caught.value, "get it: cannot connect to http://127.0.0.1:9: no connection")


async def test_a_host_that_is_not_known_is_named_and_asked_for_again(http: Http) -> None:
    for _ in range(2):
        with pytest.raises(TransientError) as caught:
            await http.send("GET", "http://nowhere.invalid/x", {}, what="get it")

        assert one_line(caught.value, "get it: no such host, http://nowhere.invalid; check the")


@pytest.mark.parametrize("url", ["http://", "nonsense", "/x", "ftp://127.0.0.1/x"])
async def test_an_address_that_makes_no_sense_is_a_matter_of_settings(url: str, http: Http) -> None:
    with pytest.raises(ConfigError) as caught:
        await http.send("GET", url, {}, what="get it")

    assert one_line(caught.value, "get it: ", "check the endpoint")


# -- certificates


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@asynccontextmanager
async def trusting(ca_file: Path | None, threads: Threads) -> AsyncIterator[Http]:
    http = Http(max_connections=2, stall_s=5.0, ca_file=None if ca_file is None else str(ca_file))
    await http.open(threads)
    try:
        yield http
    finally:
        await http.aclose()


async def _get(server: Server, ca_file: Path | None, threads: Threads) -> Answer:
    async with trusting(ca_file, threads) as http:
        return await http.send("GET", server.url, {}, what="get it")


async def test_a_certificate_of_an_authority_that_is_trusted_is_fine(
    authority: trustme.CA, tmp_path: Path, threads: Threads
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with serving(answers(OK), _tls(authority, "127.0.0.1")) as server:
        assert (await _get(server, tmp_path / "ca.pem", threads)).body == b"hello"


async def test_over_tls_only_the_version_is_offered_that_is_spoken(
    authority: trustme.CA, tmp_path: Path, threads: Threads
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    chosen = list[str | None]()

    async def script(connection: Connection) -> None:
        tls = connection.writer.get_extra_info("ssl_object")
        chosen.append(tls.selected_alpn_protocol())
        await connection.request()
        await connection.say(OK)

    context = _tls(authority, "127.0.0.1")
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(script, context) as server:
        await _get(server, tmp_path / "ca.pem", threads)

    assert chosen == ["http/1.1"]


@pytest.mark.parametrize("polite", [True, False])
async def test_over_tls_a_success_without_length_is_none_and_a_failure_counts(
    polite: bool, authority: trustme.CA, tmp_path: Path, threads: Threads
) -> None:
    """Anybody on the way can end a connection, and that looks like the end of the body."""
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    statuses = [b"200 OK", b"503 No"]

    async def script(connection: Connection) -> None:
        await connection.request()
        text = b"HTTP/1.1 " + statuses.pop(0) + b"\r\n\r\npart"
        await connection.say(text)
        if not polite:
            raw = connection.writer.get_extra_info("socket")
            raw._sock.shutdown(socket.SHUT_WR)

    async with serving(script, _tls(authority, "127.0.0.1")) as server:
        with pytest.raises(TransientError, match="the last part is missing"):
            await _get(server, ca_file, threads)
        refused = await _get(server, ca_file, threads)

    assert (refused.status, refused.body) == (503, b"part")


async def test_over_tls_there_is_room_for_all_that_has_come(
    authority: trustme.CA, tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio gives out what does not fit a turn later, and at the end of a connection never."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    get_buffer, rooms = connections.Connection.get_buffer, list[tuple[int, int]]()

    def noted(connection: connections.Connection, sizehint: int) -> memoryview:
        buffer = get_buffer(connection, sizehint)
        rooms.append((sizehint, len(buffer)))
        return buffer

    monkeypatch.setattr(connections.Connection, "get_buffer", noted)
    text = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BIG)
    async with serving(answers(text + BIG), _tls(authority, "127.0.0.1")) as server:
        answer = await _get(server, tmp_path / "ca.pem", threads)

    assert answer.body == BIG
    assert all(room > held for held, room in rooms)


async def test_over_tls_a_body_waits_until_there_is_room(
    authority: trustme.CA, tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    paused, pause = anyio.Event(), connections.Connection.pause_writing
    held = list[int]()

    def pausing(connection: connections.Connection) -> None:
        pause(connection)
        held.append(connection._unsent_bytes)
        paused.set()

    monkeypatch.setattr(connections.Connection, "pause_writing", pausing)

    async def script(connection: Connection) -> None:
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await paused.wait()
        connection.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await connection.request()
        await connection.say(OK)

    async with serving(script, _tls(authority, "127.0.0.1")) as server:
        async with trusting(tmp_path / "ca.pem", threads) as http:
            await http.send("PUT", server.url, {}, what="put it", data=bytes(32 * 1024 * 1024))

    assert max(held) < 3 * 1024 * 1024


async def test_a_cancelled_request_over_tls_leaves_no_connection_behind(
    authority: trustme.CA, tmp_path: Path, threads: Threads
) -> None:
    ca_file, scope, ports = tmp_path / "ca.pem", anyio.CancelScope(), list[int]()
    authority.cert_pem.write_to_path(str(ca_file))

    async def script(connection: Connection) -> None:
        await connection.request()
        ports.append(connection.writer.get_extra_info("peername")[1])
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        scope.cancel()
        try:
            await anyio.sleep_forever()  # and never says goodbye
        finally:
            connection.writer.transport.abort()

    async with serving(script, _tls(authority, "127.0.0.1")) as server:
        async with trusting(ca_file, threads) as http:
            with scope:
                await http.send("GET", server.url, {}, what="get it")

        assert scope.cancelled_caught
        sockets = [o for o in gc.get_objects() if isinstance(o, socket.socket) and o.fileno() >= 0]
        inet = [s.getsockname()[1] for s in sockets if s.family == socket.AF_INET]
        assert ports[0] not in inet


@pytest.mark.parametrize("known", [True, False], ids=["another name", "unknown authority"])
async def test_a_certificate_that_is_not_trusted_is_a_matter_of_settings(
    known: bool, authority: trustme.CA, tmp_path: Path, threads: Threads
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    name = "elsewhere.example" if known else "127.0.0.1"
    async with serving(answers(OK), _tls(authority, name)) as server:
        with pytest.raises(ConfigError) as caught:
            await _get(server, tmp_path / "ca.pem" if known else None, threads)

    assert one_line(caught.value, "get it: the certificate of https://127.0.0.1", "AWS_CA_BUNDLE")


async def test_a_server_that_speaks_no_tls_is_a_matter_of_settings(threads: Threads) -> None:
    async def script(connection: Connection) -> None:
        await connection.reader.read(100)
        await connection.say(b"HTTP/1.1 400 No\r\n\r\n")

    async with serving(script) as server:
        url = server.url.replace("http:", "https:")
        async with trusting(None, threads) as http:
            with pytest.raises(ConfigError, match="http or https"):
                await http.send("GET", url, {}, what="get it")


async def test_a_file_of_certificates_that_is_not_there_is_named(
    tmp_path: Path, threads: Threads
) -> None:
    http = Http(max_connections=2, ca_file=str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError) as caught:
        await http.open(threads)

    assert one_line(caught.value, "none.pem cannot be read: No such file or directory")


async def test_a_file_without_certificates_is_named(tmp_path: Path, threads: Threads) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    http = Http(max_connections=2, ca_file=str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigError) as caught:
        await http.open(threads)

    assert one_line(caught.value, "ca.pem cannot be read")


# -- proxies


async def test_a_proxy_of_the_environment_is_asked_except_for_what_it_leaves_out(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = list[bytes]()

    async def script(connection: Connection) -> None:
        heads.append(await connection.head())
        await connection.say(OK)

    async with serving(script) as proxy, serving(answers(OK)) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with trusting(None, threads) as http:
            direct = await http.send("GET", server.url, {}, what="get it")
            passed = await http.send("GET", "http://store.example/a%2Fb", {}, what="get it")

    assert direct.body == passed.body == b"hello"
    assert heads[0].startswith(b"GET http://store.example/a%2Fb HTTP/1.1\r\n")
    assert len(heads) == 1


async def _tunnel(connection: Connection, port: int, answer: bytes) -> None:
    """What a proxy does when it is asked for a way to a server."""
    await connection.say(answer)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    async with anyio.create_task_group() as group:
        group.start_soon(pump, connection.reader, writer)
        group.start_soon(pump, reader, connection.writer)


@pytest.mark.parametrize("version", [b"1.0 200", b"1.1 200", b"1.1 299"])
async def test_through_a_proxy_tls_is_spoken_with_the_server(
    version: bytes,
    authority: trustme.CA,
    tmp_path: Path,
    threads: Threads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    heads = list[bytes]()

    async def script(connection: Connection) -> None:
        heads.append(await connection.head())
        await _tunnel(connection, server.port, b"HTTP/" + version + b" Go\r\n\r\n")

    tls = _tls(authority, "store.example")
    async with serving(script) as proxy, serving(answers(OK, OK), tls) as server:
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//us%40r:pass%20word@"))
        async with trusting(tmp_path / "ca.pem", threads) as http:
            for _ in range(2):
                answer = await http.send("GET", "https://store.example/x", {}, what="get it")
                assert answer.body == b"hello"

    assert len(heads) == 1  # the way is kept
    assert heads[0].startswith(b"CONNECT store.example:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic dXNAcjpwYXNzIHdvcmQ=\r\n" in heads[0]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n", ConfigError, "with status 407"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", ConfigError, "with status 403"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n", TransientError, "with status 502"),
        (b"SSH-2.0\r\n\r\n", TransientError, "that is not HTTP/1.1"),
        (b"", TransientError, "ServerDisconnected"),
        (b"HTTP/1.1 200 Go\r\n\r\n", TransientError, "check https_proxy"),
        (None, StalledError, "does not answer"),
    ],
)
async def test_a_proxy_that_fails_is_named_with_its_reason(
    text: bytes | None,
    error: type[AsyncSyncError],
    said: str,
    threads: Threads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialing, "_CONNECT_S", 10.0 if text is not None else STALL_S)
    async with serving(nothing if text is None else answers(text)) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//user:password@"))
        async with trusting(None, threads) as http:
            with pytest.raises(error) as caught:
                await http.send("GET", "https://store.example/x", {}, what="get it")

    assert type(caught.value) is error  # only what stalls makes fewer requests wise
    assert one_line(caught.value, "get it: ", "https://store.example ", f"proxy {proxy.url}", said)
    assert "password" not in str(caught.value)


async def test_a_proxy_of_another_kind_is_a_matter_of_settings(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "socks5://user:password@127.0.0.1:9")
    async with trusting(None, threads) as http:
        with pytest.raises(ConfigError, match=r"get it: .* not an http:// address") as caught:
            await http.send("GET", "http://store.example/x", {}, what="get it")

    assert "password" not in str(caught.value)


async def test_a_proxy_that_is_gone_is_no_connection(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://user:password@127.0.0.1:9")
    async with trusting(None, threads) as http:
        with pytest.raises(TransientError) as caught:
            await http.send("GET", "http://store.example/x", {}, what="get it")

    assert one_line(caught.value, "get it: ", "proxy http://127.0.0.1:9: Connection refused")
    assert "password" not in str(caught.value)


# -- life


async def test_opening_and_closing_again_has_no_effect(threads: Threads) -> None:
    http = Http(max_connections=2)
    await http.aclose()
    http = Http(max_connections=2)
    await http.open(threads)
    await http.open(threads)
    async with serving(answers(OK, OK)) as server:
        await http.send("GET", server.url, {}, what="get it")
        await http.aclose()
        await http.aclose()
        with pytest.raises(ConfigError, match="get it: the store is closed"):
            await http.send("GET", server.url, {}, what="get it")
        await server.closed.wait()
