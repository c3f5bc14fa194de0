"""A head, spoken to by bytes on a socket, and what is around it that nobody may touch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from anyio import to_thread
from anyio.abc import SocketStream

from asyncsync.concurrency import Threads
from asyncsync.peer import PeerServer
from asyncsync.secrets import Secret
from asyncsync.storage.peer import open_trees
from asyncsync.testing.values import load, save
from asyncsync.wire import messages as m
from asyncsync.wire.claims import Operation
from asyncsync.wire.joining import Join

__all__ = ["CANARY", "EVERYTHING", "Answer", "RawHead", "raw_head", "request"]

EVERYTHING = frozenset(Operation)
CANARY = b"what lies outside of the root"
_PATIENCE_S = 20.0


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def fault(self) -> m.Fault:
        return m.decode(self.body, m.Fault)


def request(
    method: str,
    target: str,
    body: bytes = b"",
    *,
    token: Secret | None = None,
    headers: Mapping[str, str | None] | None = None,
) -> bytes:
    """A request as a worker sends it; headers that are None are left out, others added."""
    lines: dict[str, str | None] = {
        "Host": "head",
        m.VERSION_HEADER: str(m.VERSION),
        m.REQUEST_ID: "0123abcd",
        "Content-Length": str(len(body)),
        "Authorization": None if token is None else f"Bearer {token.reveal()}",
        **(headers or {}),
    }
    text = [f"{method} {target} HTTP/1.1"]
    text += [f"{name}: {value}" for name, value in lines.items() if value is not None]
    return ("\r\n".join(text) + "\r\n\r\n").encode("utf-8", "surrogateescape") + body


class Line:
    """A connection."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream, self._rest = stream, b""

    async def send(self, data: bytes) -> None:
        with suppress(anyio.BrokenResourceError):  # refused before all of it was sent
            await self.stream.send(data)

    async def _until(self, count: int) -> None:
        while len(self._rest) < count:
            self._rest += await self.stream.receive()

    async def answer(self) -> Answer | None:
        """The next answer; None: the connection has ended instead."""
        with anyio.fail_after(_PATIENCE_S):
            try:
                while b"\r\n\r\n" not in self._rest:
                    self._rest += await self.stream.receive()
                head, _, self._rest = self._rest.partition(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines)
                length = int(headers.get("Content-Length", "0"))
                await self._until(length)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                assert not self._rest, "half an answer"
                return None
        body, self._rest = self._rest[:length], self._rest[length:]
        return Answer(int(first.split(" ")[1]), headers, body)

    async def ended(self) -> bool:
        """Whether the head has closed it, without another word."""
        return await self.answer() is None


class RawHead:
    """A head and its surroundings.

    Attributes:
        token: allows everything.
    """

    def __init__(self, head: PeerServer, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.head, self.top, self._monkeypatch = head, top, monkeypatch
        self.root = top / "root"
        self.token = head.token(operations=EVERYTHING)
        self._pushes = 0

    @asynccontextmanager
    async def line(self, source: str = "127.0.0.1") -> AsyncIterator[Line]:
        host, _, port = self.head.address.rpartition(":")
        async with await anyio.connect_tcp(host, int(port), local_host=source) as stream:
            yield Line(stream)

    async def ask(self, *sent: bytes) -> Answer | None:
        """The first answer to these bytes, on a connection of their own."""
        async with self.line() as line:
            for data in sent:
                await line.send(data)
            return await line.answer()

    async def told(self, name: str, body: object = None, **where: Any) -> Answer:
        """The answer to a request, as a worker with every right asks it."""
        token = where.pop("token", self.token)
        headers = where.pop("headers", None)
        route = m.ROUTES[name]
        data = body if isinstance(body, bytes) else b"" if body is None else m.encode(body)
        answer = await self.ask(
            request(route.method, route.url(**where), data, token=token, headers=headers)
        )
        assert answer is not None
        return answer

    async def begin(self, tree: str, *files: tuple[str, int], **where: Any) -> Answer:
        """Begin a push of files with these names and sizes."""
        first = m.Begin(tree=tree, attempt="0" * 32, keep=where.pop("keep", False))
        plan = [m.FileLine(m.text_of(path), size, 0o644, 0) for path, size in files]
        return await self.told("begin", b"".join(m.lines_of([first, *plan])), **where)

    async def good_push(self) -> None:
        """A worker that does nothing unusual pushes a tree, and reads it again."""
        self._pushes += 1
        tree, files = f"good/tree_{self._pushes}", {"w": b"weights", "d/x": b"more"}
        join = Join(address=self.head.address, token=self.head.token("good"))
        self._monkeypatch.setenv("ASYNCSYNC_JOIN", join.line().reveal())
        threads = Threads(2)
        store = open_trees(self.head.address, secure=False, threads=threads, max_requests=4)
        try:
            with anyio.fail_after(_PATIENCE_S):
                await save(store, tree, files)
                assert await load(store, tree) == files
        finally:
            await store.aclose()
            threads.close()

    async def content(self) -> dict[str, bytes]:
        """All files in the root and around it, but for what `good_push` has pushed."""
        return await to_thread.run_sync(self._content)

    def _content(self) -> dict[str, bytes]:
        found = {}
        for path in self.top.rglob("*"):
            name = str(path.relative_to(self.top))
            if not name.startswith("root/good"):
                found[name] = path.read_bytes() if path.is_file() else b"/"
        return found

    def check(self, answer: Answer | None, *statuses: int) -> None:
        """It is a refusal in the frame of the protocol, and says nothing that is a secret."""
        assert answer is not None, "no answer at all"
        assert answer.status in statuses, answer
        assert answer.headers.get(m.VERSION_HEADER) == str(m.VERSION)
        assert answer.headers["Content-Type"] == m.CONTENT_TYPE
        assert "Server" not in answer.headers
        assert answer.fault.kind
        text = repr(answer).lower()
        assert self.token.reveal().lower() not in text
        assert str(self.top).lower() not in text
        for word in ("aiohttp", "python", "traceback", "html", ".py", "canary"):
            assert word not in text


@asynccontextmanager
async def raw_head(
    top: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[RawHead]:
    """A head whose root is `top/root`, with a canary beside it."""
    (top / "root").mkdir()
    (top / "canary").write_bytes(CANARY)
    async with PeerServer(str(top / "root"), **settings) as head:
        place = RawHead(head, top, monkeypatch)
        yield place
        assert (await place.content())["canary"] == CANARY
