"""FaultProxy: a TCP proxy that does to connections what networks do, at exact offsets."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from anyio.lowlevel import checkpoint

from ..clock import Clock, SystemClock
from ..units import KIB
from .network import (
    Direction,
    Finish,
    HangUp,
    Latency,
    LineFault,
    NetworkFault,
    Pace,
    Repeat,
    Reset,
    Stall,
    steps,
)

__all__ = ["Connection", "FaultProxy"]

_BOTH: tuple[Direction, ...] = ("request", "response")
_HOST = "127.0.0.1"
_READ_BYTES = 64 * KIB
_CHUNKS = 16
"""A direction holds at most 1 MiB; then it stops reading."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_GONE = (OSError, anyio.ClosedResourceError)


class Connection:
    """One connection that was accepted.

    Attributes:
        number: which one, counted from 1.
        passed_bytes: how many bytes were sent on, by direction.
    """

    def __init__(self, number: int, faults: Iterable[NetworkFault], client: socket.socket) -> None:
        self.number = number
        self.passed_bytes: dict[Direction, int] = dict.fromkeys(_BOTH, 0)
        self.faults = [fault for fault in faults if fault.meets(number)]
        self.ends = [client]
        self.scope = anyio.CancelScope()

    @property
    def is_open(self) -> bool:
        """Whether bytes may still move."""
        return self.ends[0].fileno() >= 0

    def close(self, *, reset: bool = False) -> None:
        """End both sides, with RST if so; the second time without effect."""
        for end in self.ends:
            if end.fileno() >= 0:
                anyio.notify_closing(end)
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                end.close()
        self.scope.cancel()


class _Line:
    """One direction of a connection."""

    def __init__(self, connection: Connection, direction: Direction) -> None:
        self.connection, self.direction = connection, direction
        ends = connection.ends if direction == "request" else connection.ends[::-1]
        self.source, self.sink = ends
        self.finished = False
        own = [fault for fault in connection.faults if getattr(fault, "on", None) == direction]
        self.faults = [fault for fault in own if isinstance(fault, LineFault)]
        self.delay_s = sum(fault.delay_s for fault in own if isinstance(fault, Latency))
        self.kept_bytes = max((f.size_bytes for f in own if isinstance(f, Repeat)), default=0)


class FaultProxy:
    """Listens on a free port of 127.0.0.1 and passes bytes on, except where a fault acts.

    They pass as they are, those of TLS too, and no faster than the receiver takes them.

    ```python
    async with FaultProxy("127.0.0.1", head.port, Reset(at=100, connection=2)) as proxy:
        ...  # the second connection to proxy.address breaks after 100 bytes of its request
    ```

    Leaving it ends every connection. A target that cannot be reached is a reset.

    Args:
        host: address or name of the target.
        port: the target's.
        faults: what happens.
        clock: what `Pace` and `Latency` wait by.

    Attributes:
        port: where it listens.
        faults: they can be replaced; that holds for connections accepted from then on.
        connections: all there were, in order.
        acted: each fault that acted, with the number of the connection; in order, once each.
    """

    def __init__(
        self, host: str, port: int, *faults: NetworkFault, clock: Clock | None = None
    ) -> None:
        self.faults: Sequence[NetworkFault] = faults
        self.connections: list[Connection] = []
        self.acted: list[tuple[int, NetworkFault]] = []
        self._target = (host, port)
        self._clock = clock or SystemClock()
        self._listener: socket.socket | None = None
        self._gates: dict[Direction, anyio.Event] = {}
        self._released, self._noted = anyio.Event(), anyio.Event()

    async def __aenter__(self) -> Self:
        self._holder = _bound(0)  # nobody else gets the port while connections are refused
        self.port: int = self._holder.getsockname()[1]
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        self._group.cancel_scope.cancel()
        try:
            return await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if list(group.exceptions) != [error]:
                raise
            return False  # what the block raised goes on as it is
        finally:
            self.refuse()
            self._holder.close()
            for connection in self.connections:
                connection.close()

    @property
    def address(self) -> str:
        """`host:port` for an URL."""
        return f"{_HOST}:{self.port}"

    @property
    def passed_bytes(self) -> dict[Direction, int]:
        """How many bytes were sent on, over all connections."""
        return {way: sum(c.passed_bytes[way] for c in self.connections) for way in _BOTH}

    def retarget(self, host: str, port: int) -> None:
        """Lead later connections to another place."""
        self._target = (host, port)

    def refuse(self) -> None:
        """Listen no more, until `accept`; open connections stay."""
        if self._listener is not None:
            anyio.notify_closing(self._listener)
            self._listener.close()
            self._listener = None

    def accept(self) -> None:
        """Listen again, on the same port."""
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.listen(1024)
            self._group.start_soon(self._accept, self._listener)

    def cut(self) -> None:
        """Reset every connection, now."""
        for connection in self.connections:
            connection.close(reset=True)

    def release(self) -> None:
        """Let go on what has stalled."""
        self._released.set()
        self._released = anyio.Event()

    def partition(self, *directions: Direction) -> None:
        """Let no byte and no FIN through in these directions, or in both, until `heal`.

        While requests do not pass, a connection is accepted and not yet made to the target.
        """
        for direction in directions or _BOTH:
            self._gates.setdefault(direction, anyio.Event())

    def heal(self, *directions: Direction) -> None:
        """Let go on what waits in these directions, or in both; nothing was lost."""
        for direction in directions or _BOTH:
            if direction in self._gates:
                self._gates.pop(direction).set()

    async def wait_acted(self, count: int = 1) -> None:
        """Wait until so many faults have acted."""
        while len(self.acted) < count:
            await self._noted.wait()

    async def _accept(self, listener: socket.socket) -> None:
        while listener.fileno() >= 0:
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                try:
                    await anyio.wait_readable(listener)
                except anyio.ClosedResourceError:
                    return
            else:
                _prepare(client)
                connection = Connection(len(self.connections) + 1, self.faults, client)
                self.connections.append(connection)
                self._group.start_soon(self._serve, connection)

    async def _serve(self, connection: Connection) -> None:
        with connection.scope, _resetting(connection):
            for fault in connection.faults:
                if not isinstance(fault, LineFault):
                    self._note(connection, fault)
            if any(isinstance(fault, HangUp) for fault in connection.faults):
                connection.ends[0].shutdown(socket.SHUT_WR)
                while await _received(connection.ends[0]):
                    continue
            else:
                await self._open("request")
                connection.ends.append(await _connected(*self._target))
                async with anyio.create_task_group() as group:
                    for direction in _BOTH:
                        group.start_soon(self._pass, _Line(connection, direction))
        connection.close()

    async def _pass(self, line: _Line) -> None:
        send, receive = anyio.create_memory_object_stream[tuple[float, bytes]](_CHUNKS)
        with send, receive:
            async with anyio.create_task_group() as group:
                group.start_soon(self._take, line, send)
                await self._give(line, receive)

    async def _take(self, line: _Line, send: ObjectSendStream[tuple[float, bytes]]) -> None:
        with _resetting(line.connection):
            data = b"any"
            while data:
                data = await _received(line.source)
                await send.send((self._clock.monotonic() + line.delay_s, data))

    async def _give(self, line: _Line, receive: ObjectReceiveStream[tuple[float, bytes]]) -> None:
        start, before = 0, b""
        with _resetting(line.connection):
            while True:
                due_s, data = await receive.receive()
                if (wait_s := due_s - self._clock.monotonic()) > 0:
                    await self._clock.sleep(wait_s)
                if not data:
                    await self._finish(line)
                    return
                for step in steps(line.faults, start, data, before):
                    if not line.finished:
                        await self._act(line, step)
                start += len(data)
                before = (before + data)[-line.kept_bytes :] if line.kept_bytes else b""

    async def _act(self, line: _Line, step: bytes | LineFault) -> None:
        if isinstance(step, bytes):
            await self._send(line, step)
            return
        if isinstance(step, Reset | Finish | Stall):
            await self._open(line.direction)
            await _drained(line.sink)
        self._note(line.connection, step)
        match step:
            case Pace():
                await self._clock.sleep(step.every_s)
            case Stall():
                await self._released.wait()
            case Finish():
                await self._finish(line)
            case Reset():
                line.connection.close(reset=True)
                await checkpoint()  # and here it ends

    async def _send(self, line: _Line, data: bytes) -> None:
        view = memoryview(data)
        while view:
            await self._open(line.direction)
            try:
                sent = line.sink.send(view)
            except BlockingIOError:
                await anyio.wait_writable(line.sink)
            else:
                line.connection.passed_bytes[line.direction] += sent
                view = view[sent:]

    async def _finish(self, line: _Line) -> None:
        if not line.finished:
            await self._open(line.direction)
            line.sink.shutdown(socket.SHUT_WR)
            line.finished = True

    async def _open(self, direction: Direction) -> None:
        while (gate := self._gates.get(direction)) is not None:
            await gate.wait()

    def _note(self, connection: Connection, fault: NetworkFault) -> None:
        if (connection.number, fault) not in self.acted:
            self.acted.append((connection.number, fault))
            self._noted.set()
            self._noted = anyio.Event()


# -- sockets


@contextmanager
def _resetting(connection: Connection) -> Iterator[None]:
    """An end that broke breaks the other one."""
    try:
        yield
    except _GONE:
        connection.close(reset=True)


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((_HOST, port))
    except OSError:
        bound.close()
        raise
    return bound


def _prepare(end: socket.socket) -> None:
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _connected(host: str, port: int) -> socket.socket:
    target = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        _prepare(target)
        await asyncio.get_running_loop().sock_connect(target, (host, port))
    except BaseException:
        target.close()
        raise
    return target


async def _received(source: socket.socket) -> bytes:
    while True:
        try:
            return source.recv(_READ_BYTES)
        except BlockingIOError:
            await anyio.wait_readable(source)


async def _drained(sink: socket.socket) -> None:
    """Wait until the kernel has sent all it was given: what it still holds, a reset would lose."""
    sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1)
    await anyio.wait_writable(sink)  # it is so only with less than that unsent
