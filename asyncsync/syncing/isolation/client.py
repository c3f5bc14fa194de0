"""The caller's side of the engine's socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from typing import Any, Literal, cast

import anyio
from anyio import to_thread

from ...concurrency import settled
from ...errors import ConfigError, TransientError
from ...events import Observer, ignore
from ...names import new_attempt
from .launch import Address, engines
from .messages import (
    VERSION,
    Bye,
    Call,
    Cancel,
    Cancelled,
    Ended,
    Failed,
    Frames,
    Happened,
    Hello,
    Item,
    Message,
    Next,
    Refused,
    Returned,
    Welcome,
    encode,
)
from .values import error_of, event_of, result_of

__all__ = ["Client"]

_START_S = 60.0
_CLEANUP_S = 120.0


class _LostError(Exception):
    """The connection has ended."""


class _Pending:
    """A call without an answer yet.

    Attributes:
        ended: the last word of the engine; None: it has ended without one.
        item: the next item of a stream, or the same.
        broken: what the caller's observer raised.
        cancelled: by the caller.
    """

    def __init__(self, method: str, observe: Observer) -> None:
        self.method, self.observe = method, observe
        self.ended: asyncio.Future[Ended | None] = asyncio.get_running_loop().create_future()
        self.item: asyncio.Future[Item | Ended | None] = self.ended.get_loop().create_future()
        self.broken: BaseException | None = None
        self.cancelled = False

    def expect_item(self) -> None:
        """Wait for one more item."""
        self.item = self.ended.get_loop().create_future()

    def settle(self, answer: Item | Ended | None) -> None:
        """Take an answer."""
        if not isinstance(answer, Item) and not self.ended.done():
            self.ended.set_result(answer)
        if not self.item.done():
            self.item.set_result(answer)


class _Connection(asyncio.Protocol):
    """From one event loop to the engine. No task belongs to it: it acts when it is called."""

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self._frames = Frames()
        self._calls: dict[int, _Pending] = {}
        self._number = 0
        self._transport: asyncio.WriteTransport | None = None
        self._leaving = False  # it cancels what it was not asked to: it is told to stop
        self._greeted: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pid = 0

    # -- from the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._take(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for future in (self._greeted, self._gone):
            if not future.done():
                future.set_result(None)
        for call in self._calls.values():
            call.settle(None)

    def _take(self, message: Message) -> None:
        match message:
            case Welcome() | Refused() if not self._greeted.done():
                self._greeted.set_result(message)
            case Happened():
                self._tell(message)
            case Item() | Returned() | Failed() | Cancelled() if message.id in self._calls:
                call = self._calls[message.id]
                self._leaving |= isinstance(message, Cancelled) and not call.cancelled
                call.settle(message)

    def _tell(self, message: Happened) -> None:
        """Hand an event to its observer; what that raises ends the calls that it belongs to."""
        call = None if message.id is None else self._calls.get(message.id)
        if message.id is not None and (call is None or call.broken is not None):
            return
        concerned = list(self._calls) if message.id is None else [message.id]
        observe = self._observe if call is None else call.observe
        try:
            observe(event_of(message.event, message.fields))
        except BaseException as exc:  # noqa: BLE001 - is raised where the calls are awaited
            for number in concerned:
                self._calls[number].broken = exc
                self._cancel(number)

    # -- to the socket

    def _send(self, message: Message) -> None:
        if self._transport is not None:
            self._transport.write(encode(message))

    @property
    def open(self) -> bool:
        """Whether there is an engine at the other end that takes calls."""
        return self._transport is not None and not self._leaving

    async def greet(self, hello: Hello) -> None:
        """Wait until the engine is there.

        Raises:
            _LostError: it is not.
            ConfigError: it speaks another version.
        """
        self._send(hello)
        with anyio.move_on_after(_START_S):
            await asyncio.wait([self._greeted])
        answer = self._greeted.result() if self._greeted.done() else None
        if isinstance(answer, Refused):
            raise ConfigError(f"the engine refuses: {answer.reason}")
        if not isinstance(answer, Welcome):
            raise _LostError
        self.pid = answer.pid

    async def call(self, method: str, arguments: Mapping[str, Any], observe: Observer) -> Any:
        """Call a method of the syncer and wait for its end, also when this is cancelled."""
        number, pending = self._begin(method, arguments, observe)
        try:
            await self._wait(number, pending, pending.ended)
            return result_of(method, self._value(pending))
        finally:
            del self._calls[number]

    async def stream(self, method: str, arguments: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """The items of a stream, each looked for when it is asked for."""
        number, pending = self._begin(method, arguments, ignore)
        try:
            await self._wait(number, pending, pending.item)
            while isinstance(item := pending.item.result(), Item):
                yield result_of(method, item.value)
                pending.expect_item()
                self._send(Next(number))
                await self._wait(number, pending, pending.item)
            self._value(pending)
        finally:
            if not pending.ended.done():
                await self._end(number, pending)
            del self._calls[number]

    def _begin(
        self, method: str, arguments: Mapping[str, Any], observe: Observer
    ) -> tuple[int, _Pending]:
        self._number += 1
        pending = self._calls[self._number] = _Pending(method, observe)
        self._send(Call(self._number, method, dict(arguments), observe is not ignore))
        if self._transport is None:
            pending.settle(None)
        return self._number, pending

    async def _wait(self, number: int, pending: _Pending, answer: asyncio.Future[Any]) -> None:
        try:
            if not answer.done():
                await asyncio.wait([answer])
        except asyncio.CancelledError:
            await self._end(number, pending)
            raise

    def _cancel(self, number: int) -> None:
        self._calls[number].cancelled = True
        self._send(Cancel(number))

    async def _end(self, number: int, pending: _Pending) -> None:
        """Cancel a call and wait until what it did is cleaned up."""
        self._cancel(number)
        with anyio.CancelScope(shield=True):
            await settled(pending.ended, _CLEANUP_S)

    def _value(self, pending: _Pending) -> Any:
        if pending.broken is not None:
            raise pending.broken
        match pending.ended.result():
            case Returned(value=value):
                return value
            case Failed(error=error):
                raise error_of(error)
            case answer:
                how = "was stopped" if answer else "has ended unexpectedly"
                raise TransientError(
                    f"{pending.method}: the engine, process {self.pid}, {how} before it was done; "
                    "run it again: another one starts and goes on from there"
                )

    async def aclose(self) -> None:
        """End it; what still runs is cancelled."""
        self._send(Bye())
        if self._transport is not None:
            self._transport.close()
            with anyio.CancelScope(shield=True):
                await settled(self._gone, _CLEANUP_S)


async def _guard(connection: _Connection) -> AsyncGenerator[None, None]:
    """Ends a connection when it is closed; event loops close their generators when they end."""
    try:
        yield
    finally:
        await connection.aclose()


class Client:
    """A syncer in the engine, for any number of event loops.

    Args:
        kind: whether the engine is a process or a thread.
        settings: of the syncer.
        observe: hears what concerns the syncer as a whole.
    """

    def __init__(
        self,
        kind: Literal["process", "thread"],
        settings: Mapping[str, Any],
        observe: Observer,
    ) -> None:
        self._kind, self._observe = kind, observe
        self._hello = Hello(VERSION, new_attempt(), dict(settings))
        self._connections: dict[asyncio.AbstractEventLoop, _Connection] = {}
        self._guards: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}
        self._connecting: dict[asyncio.AbstractEventLoop, anyio.Lock] = {}
        self._program = os.getpid()
        self._closed = False

    async def call(self, method: str, arguments: Mapping[str, Any], observe: Observer) -> Any:
        """Call a method.

        Raises:
            TransientError: the engine did not start, or ended before the call did.
            AsyncSyncError: what the method raises.
        """
        return await (await self._connection()).call(method, arguments, observe)

    async def stream(self, method: str, arguments: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Iterate over what a method gives."""
        items = (await self._connection()).stream(method, arguments)
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()

    async def _connection(self) -> _Connection:
        self._check_open()
        self._forget_loops()
        loop = asyncio.get_running_loop()
        async with self._connecting.setdefault(loop, anyio.Lock()):
            connection = self._connections.get(loop)
            if connection is None or not connection.open:
                await self._let_go(loop)
                connection = self._connections[loop] = await self._connect()
                self._guards[loop] = _guard(connection)
                await anext(self._guards[loop])
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("this StorageSyncer is closed; open a new one")
        if self._program != os.getpid():  # forked: what is connected is the parent's
            _PARENTS.append((self._connections, self._guards))
            self._connections, self._guards, self._connecting = {}, {}, {}
            self._program = os.getpid()

    def _forget_loops(self) -> None:
        """A program may run one for every call; with its loop, a connection has ended."""
        for loop in [one for one in list(self._connecting) if one.is_closed()]:
            for kept in (self._connections, self._guards, self._connecting):
                kept.pop(loop, None)

    async def _connect(self) -> _Connection:
        for _ in range(2):  # one may leave at the very moment in which we come
            address = await to_thread.run_sync(engines.find, self._kind)
            with suppress(OSError, _LostError):
                return await self._connected(address)
            engines.forget(address)
        said = await to_thread.run_sync(address.last_words)
        raise TransientError(f"the engine does not start{said}")

    async def _connected(self, address: Address) -> _Connection:
        loop = asyncio.get_running_loop()
        connection = _Connection(self._observe)
        await loop.create_unix_connection(lambda: connection, address.socket)
        try:
            await connection.greet(self._hello)
        except BaseException:
            await connection.aclose()
            raise
        return connection

    async def aclose(self) -> None:
        """End the connections. Again: no effect."""
        self._closed = True
        for loop in list(self._guards):
            if loop is asyncio.get_running_loop():
                await self._let_go(loop)
            elif not loop.is_closed():
                asyncio.run_coroutine_threadsafe(self._let_go(loop), loop)

    async def _let_go(self, loop: asyncio.AbstractEventLoop) -> None:
        if (guard := self._guards.pop(loop, None)) is not None:
            del self._connections[loop]
            await guard.aclose()


_PARENTS: list[object] = []  # connections of a parent, which a child must not close
