"""ScriptedHead: answers requests with bytes that a test has chosen, right or wrong."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from asyncsync.wire import messages as m

__all__ = ["Asked", "ScriptedHead", "http", "reply"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came: on which connection, counted from 1, and what."""

    connection: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def route(self) -> str:
        """The path below the base, with `*` for what numbers sessions and blobs."""
        parts = self.path.removeprefix(m.BASE).split("/")
        return "/".join("*" if len(part) == 32 or part.isdigit() else part for part in parts)


Script = Callable[[Asked], "bytes | Awaitable[bytes | None] | None"]


def http(
    body: bytes = b"",
    *,
    status: str = "200 OK",
    length: int | None = None,
    **headers: str | None,
) -> bytes:
    """An answer of anybody; a header is left out by None, and `_` in its name is `-`."""
    fields = {"Content-Length": str(len(body) if length is None else length)}
    fields |= {name.replace("_", "-"): text for name, text in headers.items() if text is not None}
    lines = "".join(f"{name}: {text}\r\n" for name, text in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def reply(
    asked: Asked,
    body: object = b"",
    *,
    status: str = "200 OK",
    length: int | None = None,
    **headers: str | None,
) -> bytes:
    """An answer of a head in its frame, with a message or bytes as its body."""
    data = body if isinstance(body, bytes) else m.encode(body)
    frame = {"Asyncsync_Version": str(m.VERSION), "Asyncsync_Request": asked.headers.get(_ID)}
    return http(data, status=status, length=length, **{**frame, **headers})


_ID = m.REQUEST_ID.lower()


class ScriptedHead:
    """Listens on a free port of the loopback; use it with `async with`, in any tasks.

    Args:
        script: what a request is answered with; None: with the end of the connection.
        tls: speak TLS.

    Attributes:
        asked: the requests that came, in order.
        connections: how many were accepted.
    """

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> None:
        self.script, self._tls = script, tls
        self.asked: list[Asked] = []
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: dict[int, asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def write(self, connection: int, data: bytes) -> None:
        """Say something on that connection, asked or not."""
        self._writers[connection].write(data)

    async def end_with(self, asked: Asked, data: bytes) -> None:
        """Say that, and nothing more."""
        self.write(asked.connection, data)
        await self._writers[asked.connection].drain()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers[self.connections] = writer
        task = asyncio.ensure_future(self._serve(self.connections, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while True:
                asked = await _read(number, reader)
                self.asked.append(asked)
                found = self.script(asked)
                answer = found if isinstance(found, bytes) or found is None else await found
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


async def _read(number: int, reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    fields = (line.split(": ", 1) for line in head[1:] if line)
    headers = {name.lower(): text for name, text in fields}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(number, method, path, headers, body)
