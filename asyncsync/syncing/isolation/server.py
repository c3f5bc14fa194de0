"""The engine's side of the socket: runs what callers ask for."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Callable, Collection
from contextlib import aclosing
from dataclasses import replace
from typing import cast

import anyio
import anyio.abc
import msgspec

from ...events import Event, Moved, Observer, ignore
from ..loop_syncer import LoopSyncer
from .messages import (
    VERSION,
    Bye,
    Call,
    Cancel,
    Cancelled,
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
from .turns import turn
from .values import METHODS, STREAMS, error_value, event_value

__all__ = ["Server"]

_FINISHED = ("sync_up", "delete")  # also when nobody waits for it any more
_KNOWN = METHODS.keys() | STREAMS.keys()
_IDLE_S = 30.0
_LOOK_S = 0.5
_MERGE_S = 0.1


class _Shared:
    """A syncer, and how many connections and calls use it."""

    def __init__(self, syncer: LoopSyncer) -> None:
        self.syncer = syncer
        self.users = 0


class Server:
    """Serves one listening socket until nobody needs it any more.

    Args:
        is_orphan: whether the program that started the engine is gone.
    """

    def __init__(self, listener: socket.socket, is_orphan: Callable[[], bool]) -> None:
        self._listener, self._is_orphan = listener, is_orphan
        self._syncers: dict[str, _Shared] = {}
        self._peers: dict[str, set[_Peer]] = {}
        self._connected: set[_Peer] = set()
        self._busy = 0
        self._turn = 0

    async def run(self) -> None:
        """Serve. Cancelled: what runs is cancelled and cleaned up, then this ends."""
        loop = asyncio.get_running_loop()
        self._over = anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                server = await loop.create_unix_server(lambda: _Peer(self), sock=self._listener)
                self._rest()
                try:
                    await self._over.wait()
                finally:
                    server.close()
                    group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._hang_up()

    async def _hang_up(self) -> None:
        """Close all connections: also of who came just now, and has not said anything yet."""
        for peer in list(self._connected):
            await peer.hang_up()

    # -- who is there

    def connected(self, peer: _Peer) -> None:
        """Somebody has come."""
        self._connected.add(peer)

    def disconnected(self, peer: _Peer) -> None:
        """And gone."""
        self._connected.discard(peer)

    def enter(self, peer: _Peer, hello: Hello) -> None:
        """A caller says which syncer it uses; several may use the same."""
        if hello.syncer not in self._syncers:
            told = _Relay(lambda message: self._tell_all(hello.syncer, message), None)
            syncer = LoopSyncer(observe=told, turn=turn, **hello.settings)
            self._syncers[hello.syncer] = _Shared(syncer)
        self._peers.setdefault(hello.syncer, set()).add(peer)
        self._use(hello.syncer)

    def leave(self, peer: _Peer, syncer: str) -> None:
        """A caller has gone; its calls go on unless it said that they should not."""
        self._peers[syncer].discard(peer)
        self._release(syncer)

    def _tell_all(self, syncer: str, message: Message) -> None:
        for peer in self._peers.get(syncer, ()):
            peer.send(message)

    def _use(self, syncer: str) -> LoopSyncer:
        self._syncers[syncer].users += 1
        self._busy += 1
        self._turn += 1
        return self._syncers[syncer].syncer

    def _release(self, syncer: str) -> None:
        shared = self._syncers[syncer]
        shared.users -= 1
        if not shared.users:
            del self._syncers[syncer], self._peers[syncer]
            self._group.start_soon(self._close, shared.syncer)
        else:
            self._rested()

    async def _close(self, syncer: LoopSyncer) -> None:
        with anyio.CancelScope(shield=True):
            await syncer.aclose()
        self._rested()

    def _rested(self) -> None:
        self._busy -= 1
        self._rest()

    def _rest(self) -> None:
        """Leave after a while in which nobody comes; soon if nobody can."""
        self._turn += 1
        if not self._busy:
            self._look(self._turn, _IDLE_S)

    def _look(self, turn: int, left_s: float) -> None:
        if turn != self._turn:  # somebody has come since
            return
        if left_s <= 0 or self._is_orphan():
            self._over.set()
        else:
            asyncio.get_running_loop().call_later(_LOOK_S, self._look, turn, left_s - _LOOK_S)

    # -- calls

    def start(self, call: Call, peer: _Peer, syncer: str) -> anyio.CancelScope:
        """Begin to run a call; the scope ends it early."""
        scope = anyio.CancelScope()
        self._group.start_soon(self._run, call, peer, syncer, scope)
        self._use(syncer)
        return scope

    async def _run(self, call: Call, peer: _Peer, name: str, scope: anyio.CancelScope) -> None:
        relay = _Relay(peer.send, call.id)
        outcome: Message = Cancelled(call.id)
        try:
            with scope:
                outcome = await self._outcome(call, peer, self._syncers[name].syncer, relay)
        finally:
            relay.flush()
            peer.end(call.id, outcome)
            self._release(name)

    async def _outcome(self, call: Call, peer: _Peer, syncer: LoopSyncer, relay: _Relay) -> Message:
        observe: Observer = relay if call.observed else ignore
        try:
            if call.method in STREAMS:
                await self._stream(call, peer, syncer)
                return Returned(call.id, None)
            value = await syncer.call(call.method, call.arguments, observe)
            return Returned(call.id, msgspec.to_builtins(value))
        except Exception as exc:  # noqa: BLE001 - it is the caller's
            return Failed(call.id, error_value(exc))

    async def _stream(self, call: Call, peer: _Peer, syncer: LoopSyncer) -> None:
        async with aclosing(syncer.stream(call.method, call.arguments)) as items:
            async for item in items:
                more = peer.gate(call.id)
                peer.send(Item(call.id, msgspec.to_builtins(item)))
                await more.wait()


class _Relay:
    """An observer that sends events on, and merges what comes too fast to look at."""

    def __init__(self, send: Callable[[Message], None], call: int | None) -> None:
        self._send, self._call = send, call
        self._waiting: Moved | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Moved):
            self.flush()
            self._put(event)
        elif self._timer is None:
            self._put(event)
            self._timer = asyncio.get_running_loop().call_later(_MERGE_S, self.flush)
        else:
            earlier = self._waiting.size_bytes if self._waiting else 0
            self._waiting = replace(event, size_bytes=event.size_bytes + earlier)

    def flush(self) -> None:
        """Send what has been held back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting is not None:
            event, self._waiting = self._waiting, None
            self._put(event)

    def _put(self, event: Event) -> None:
        self._send(Happened(self._call, type(event).__name__, event_value(event)))


class _Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._frames = Frames()
        self._transport: asyncio.WriteTransport | None = None
        self._syncer: str | None = None
        self._calls: dict[int, tuple[Call, anyio.CancelScope]] = {}
        self._gates: dict[int, anyio.Event] = {}
        self._lost = anyio.Event()

    # -- from the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._server.connected(self)
        peer = transport.get_extra_info("socket")
        if _user_of(peer) != os.getuid():
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except ValueError as exc:
            self._refuse(str(exc))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.disconnected(self)
        self._lost.set()
        self._cancel(kept=_FINISHED)
        if self._syncer is not None:
            self._server.leave(self, self._syncer)

    def _take(self, message: Message) -> None:
        match message:
            case Hello() if self._syncer is None:
                self._greet(message)
            case Call() if self._syncer is not None and message.method in _KNOWN:
                scope = self._server.start(message, self, self._syncer)
                self._calls[message.id] = (message, scope)
            case Next() if message.id in self._gates:
                self._gates.pop(message.id).set()
            case Next():
                pass  # the stream has ended meanwhile
            case Cancel():
                if message.id in self._calls:
                    self._calls[message.id][1].cancel()
            case Bye():
                self._cancel()
            case _:
                self._refuse(f"{type(message).__name__} is not expected here")

    def _cancel(self, kept: Collection[str] = ()) -> None:
        for call, scope in self._calls.values():
            if call.method not in kept:
                scope.cancel()

    def _greet(self, hello: Hello) -> None:
        if hello.version != VERSION:
            self._refuse(f"version {hello.version} of the protocol; this engine speaks {VERSION}")
            return
        self._server.enter(self, hello)
        self._syncer = hello.syncer
        self.send(Welcome(VERSION, os.getpid()))

    def _refuse(self, reason: str) -> None:
        self.send(Refused(reason))
        if self._transport is not None:
            self._transport.close()

    async def hang_up(self) -> None:
        """Close it; what has not gone out by now, nobody reads."""
        self._syncer = None  # it has ended with all others
        if self._transport is not None:
            self._transport.abort()
        await self._lost.wait()

    # -- to the socket

    def send(self, message: Message) -> None:
        """Send, unless nobody is there to hear it."""
        if self._transport is not None:
            self._transport.write(encode(message))

    def gate(self, call: int) -> anyio.Event:
        """Is set when the next item of a stream is asked for."""
        self._gates[call] = anyio.Event()
        return self._gates[call]

    def end(self, call: int, outcome: Message) -> None:
        """A call is over."""
        self._calls.pop(call, None)
        self._gates.pop(call, None)
        self.send(outcome)


def _user_of(peer: socket.socket) -> int:
    """The user at the other end."""
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return cast("int", struct.unpack("3i", raw)[1])
    return os.getuid()  # the directory of the socket keeps others out
