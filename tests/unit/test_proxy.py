"""FaultProxy between real sockets, and what it decides without them."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import cast

import anyio
import pytest
import trustme
import uvloop

from asyncsync.errors import ConfigError
from asyncsync.testing import (
    Drop,
    FakeClock,
    FaultProxy,
    Finish,
    Flip,
    HangUp,
    Latency,
    Pace,
    Repeat,
    Reset,
    Stall,
    settle,
)
from asyncsync.testing.network import Direction, LineFault, NetworkFault, steps

DEADLINE_S = 10
REQUEST = b"GET / HTTP/1.1\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
BIG = random.Random(1).randbytes(16 * 1024 * 1024)  # more than all buffers on the way hold
BOTH: tuple[Direction, ...] = ("request", "response")


class End(asyncio.Protocol):
    """One end of a connection: what came, and how it ended."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = ""
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # that of uvloop is none by name
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._changed.set()

    def eof_received(self) -> bool:
        self.ended = "fin"
        self._changed.set()
        return True  # may still send

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = "reset" if isinstance(error, ConnectionError) else self.ended or "closed"
        self._changed.set()

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    async def until(self, true: Callable[[], bool]) -> None:
        with anyio.fail_after(DEADLINE_S):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    async def until_received(self, data: bytes) -> None:
        await self.until(lambda: len(self.received) >= len(data))
        assert self.received == data

    async def until_ended(self, how: str) -> bytes:
        """What came before the end."""
        await self.until(lambda: bool(self.ended))
        assert self.ended == how
        return bytes(self.received)


class Target:
    """What listens behind the proxy."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.port = 0
        self._accepted = asyncio.Event()

    def accept(self) -> End:
        self.ends.append(End())
        self._accepted.set()
        return self.ends[-1]

    async def end(self, number: int) -> End:
        """That of the n-th connection, once it is there."""
        with anyio.fail_after(DEADLINE_S):
            while len(self.ends) < number:
                self._accepted.clear()
                await self._accepted.wait()
        end = self.ends[number - 1]
        await end.until(lambda: hasattr(end, "transport"))
        return end


@asynccontextmanager
async def listening() -> AsyncIterator[Target]:
    target = Target()
    server = await asyncio.get_running_loop().create_server(target.accept, "127.0.0.1", 0)
    target.port = server.sockets[0].getsockname()[1]
    try:
        yield target
    finally:
        server.close()
        for end in target.ends:
            end.transport.abort()
        await server.wait_closed()
        await settle()


class Lab:
    """A proxy with a target, and clients that go away with it."""

    def __init__(self, target: Target, proxy: FaultProxy) -> None:
        self.target, self.proxy = target, proxy
        self.clients: list[End] = []

    async def dial(self) -> End:
        _, client = await asyncio.get_running_loop().create_connection(
            End, "127.0.0.1", self.proxy.port
        )
        self.clients.append(client)
        return client

    async def pair(self) -> tuple[End, End]:
        """Both ends of another connection."""
        number = len(self.target.ends) + 1
        return await self.dial(), await self.target.end(number)

    async def closed(self, number: int) -> None:
        """Wait until the proxy has done with the n-th connection."""
        with anyio.fail_after(DEADLINE_S):
            while self.proxy.connections[number - 1].is_open:
                await settle()

    async def at_rest(self, direction: Direction) -> int:
        """How many bytes have passed when no more do."""
        passed = -1
        while passed != self.proxy.passed_bytes[direction]:
            passed = self.proxy.passed_bytes[direction]
            await settle(500)
        return passed

    async def acted(self, count: int = 1) -> None:
        with anyio.fail_after(DEADLINE_S):
            await self.proxy.wait_acted(count)


@asynccontextmanager
async def lab(*faults: NetworkFault, clock: FakeClock | None = None) -> AsyncIterator[Lab]:
    async with (
        listening() as target,
        FaultProxy("127.0.0.1", target.port, *faults, clock=clock) as proxy,
    ):
        made = Lab(target, proxy)
        try:
            yield made
        finally:
            for client in made.clients:
                client.transport.abort()
            await settle()


def ordered(direction: Direction, ends: tuple[End, End]) -> tuple[End, End]:
    """Who sends in this direction, and who receives."""
    return ends if direction == "request" else (ends[1], ends[0])


# -- what happens to bytes, without sockets


def decided(faults: list[LineFault], *chunks: bytes) -> list[bytes | LineFault]:
    """All steps of a stream; bytes that follow one another are one."""
    found: list[bytes | LineFault] = []
    before = b""
    for chunk in chunks:
        for step in steps(faults, len(before), chunk, before):
            if isinstance(step, bytes) and found and isinstance(found[-1], bytes):
                found[-1] += step
            else:
                found.append(step)
        before += chunk
    return found


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Reset(at=0), ["!", b"abcdef"]),
        (Reset(at=2), [b"ab", "!", b"cdef"]),
        (Reset(at=6), [b"abcdef", "!"]),
        (Reset(at=7), [b"abcdef"]),
        (Finish(at=2), [b"ab", "!", b"cdef"]),
        (Stall(at=6), [b"abcdef", "!"]),
        (Flip(at=0), ["!", b"`bcdef"]),
        (Flip(at=5, bit=7), [b"abcde", "!", b"\xe6"]),
        (Flip(at=6), [b"abcdef"]),
        (Drop(at=0), ["!", b"bcdef"]),
        (Drop(at=1, size_bytes=3), [b"a", "!", b"ef"]),
        (Drop(at=4, size_bytes=9), [b"abcd", "!"]),
        (Drop(at=6), [b"abcdef"]),
        (Repeat(at=3, size_bytes=2), [b"abc", "!", b"bcdef"]),
        (Repeat(at=6, size_bytes=6), [b"abcdef", "!", b"abcdef"]),
        (Pace(size_bytes=4), ["!", b"abcd", "!", b"ef"]),
        (Pace(at=1, size_bytes=3), [b"a", "!", b"bcd", "!", b"ef"]),
        (Pace(at=6), [b"abcdef"]),
    ],
)
def test_a_fault_acts_at_its_offset(fault: LineFault, expected: list[bytes | str]) -> None:
    assert decided([fault], b"abcdef") == [fault if step == "!" else step for step in expected]


def test_without_faults_bytes_pass_in_one_piece() -> None:
    assert list(steps([], 7, b"abc")) == [b"abc"]


def test_what_acts_after_a_byte_acts_when_that_has_come_and_not_with_the_next() -> None:
    assert list(steps([Reset(at=3)], 0, b"abc")) == [b"abc", Reset(at=3)]
    assert list(steps([Reset(at=3)], 3, b"def")) == [b"def"]


def test_what_acts_on_a_byte_waits_for_it() -> None:
    assert list(steps([Flip(at=3)], 0, b"abc")) == [b"abc"]
    assert list(steps([Flip(at=3)], 3, b"def")) == [Flip(at=3), b"e", b"ef"]


def test_offsets_count_what_came_and_not_what_passed() -> None:
    faults = [Drop(at=0, size_bytes=2), Repeat(at=4, size_bytes=2), Flip(at=4), Stall(at=5)]

    assert decided(faults, b"abcdef") == [
        faults[0], b"cd", faults[1], b"cd", faults[2], b"d", faults[3], b"f"
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(200))
def test_it_is_the_same_however_bytes_are_cut_into_pieces(seed: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(chance.randint(1, 12))
    kinds: list[Callable[[], LineFault]] = [
        lambda: Reset(at=chance.randint(0, 13)),
        lambda: Finish(at=chance.randint(0, 13)),
        lambda: Stall(at=chance.randint(0, 13)),
        lambda: Flip(at=chance.randint(0, 13), bit=chance.randint(0, 7)),
        lambda: Drop(at=chance.randint(0, 13), size_bytes=chance.randint(1, 5)),
        lambda: Repeat(at=chance.randint(5, 13), size_bytes=chance.randint(1, 5)),
        lambda: Pace(at=chance.randint(0, 13), size_bytes=chance.randint(1, 5)),
    ]
    faults = [chance.choice(kinds)() for _ in range(chance.randint(1, 4))]
    marks = [0, *sorted(chance.sample(range(1, len(data)), chance.randrange(len(data)))), None]
    pieces = [data[a:b] for a, b in pairwise(marks)]

    assert decided(faults, *pieces) == decided(faults, data)


@pytest.mark.parametrize(
    ("fault", "met"),
    [
        (Reset(), [1, 2, 3, 4]),
        (Reset(connection=2), [2]),
        (Reset(connection=2, sticky=True), [2, 3, 4]),
        (HangUp(connection=4), [4]),
    ],
)
def test_a_fault_meets_one_connection_or_all_or_all_from_one_on(
    fault: NetworkFault, met: list[int]
) -> None:
    assert [number for number in range(1, 5) if fault.meets(number)] == met


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Reset(at=-1), "Reset: at is -1, not 0 or more"),
        (lambda: Stall(connection=0), "Stall: connection is 0, not 1 or more"),
        (lambda: Drop(size_bytes=0), "Drop: size_bytes is 0, not 1 or more"),
        (lambda: Flip(bit=8), "Flip: bit is 8, not 0 to 7"),
        (lambda: Latency(delay_s=-0.5), "Latency: delay_s is -0.5, not 0 or more"),
        (lambda: Repeat(at=2, size_bytes=3), "Repeat: size_bytes is 3, and at is only 2"),
    ],
)
def test_what_could_never_act_is_refused(make: Callable[[], NetworkFault], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()

    assert str(caught.value) == said


# -- without faults


async def test_bytes_and_ends_pass_in_both_directions() -> None:
    async with lab() as here:
        client, server = await here.pair()
        client.send(REQUEST)
        await server.until_received(REQUEST)
        client.transport.write_eof()
        assert await server.until_ended("fin") == REQUEST
        server.send(ANSWER)
        server.transport.close()
        assert await client.until_ended("fin") == ANSWER

        connection = here.proxy.connections[0]
        await here.closed(1)
        assert connection.passed_bytes == {"request": len(REQUEST), "response": len(ANSWER)}


async def test_small_pieces_are_not_held_back() -> None:
    async with lab() as here:
        await here.pair()

        for end in here.proxy.connections[0].ends:
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("direction", BOTH)
async def test_much_passes_as_it_is(direction: Direction) -> None:
    async with lab() as here:
        sender, receiver = ordered(direction, await here.pair())
        sender.send(BIG)
        sender.transport.write_eof()

        assert await receiver.until_ended("fin") == BIG


async def test_a_sender_waits_for_a_slow_receiver() -> None:
    data = BIG * 4
    async with lab() as here:
        client, server = await here.pair()
        server.transport.pause_reading()
        client.send(data)
        passed = await here.at_rest("request")
        assert client.transport.get_write_buffer_size() > len(data) / 4
        assert passed < len(data) / 2

        server.transport.resume_reading()
        await server.until_received(data)


async def test_what_was_sent_before_the_end_arrives_at_a_slow_receiver() -> None:
    async with lab() as here:
        client, server = await here.pair()
        client.transport.pause_reading()
        client.transport.write_eof()
        await server.until_ended("fin")
        server.send(BIG[: 256 * 1024])
        server.transport.close()
        await here.closed(1)
        client.transport.resume_reading()

        assert await client.until_ended("fin") == BIG[: 256 * 1024]


async def test_tls_is_bytes_like_others() -> None:
    authority = trustme.CA()
    ours, theirs = (
        ssl.create_default_context(purpose)
        for purpose in (ssl.Purpose.SERVER_AUTH, ssl.Purpose.CLIENT_AUTH)
    )
    authority.configure_trust(ours)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(len(REQUEST)) + BIG)
        await writer.drain()
        writer.close()
        ended.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=theirs)
    async with server, FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=ours)
        writer.write(REQUEST)
        assert await reader.read() == REQUEST + BIG
        writer.close()
        await ended.wait()


async def test_a_reset_by_an_end_is_one_for_the_other() -> None:
    async with lab() as here:
        for aborting in (0, 1):
            ends = await here.pair()
            sock = ends[aborting].transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            ends[aborting].transport.abort()

            assert await ends[1 - aborting].until_ended("reset") == b""


# -- faults at an offset


@pytest.mark.parametrize("at", [0, 1, 10, len(REQUEST)])
async def test_a_reset_lets_exactly_so_many_bytes_of_a_request_through(at: int) -> None:
    async with lab(Reset(at=at), Flip(at=at)) as here:
        client, server = await here.pair()
        await settle()
        assert client.ended == server.ended == ""
        client.send(REQUEST)

        assert await server.until_ended("reset") == REQUEST[:at]
        assert await client.until_ended("reset") == b""
        assert here.proxy.connections[0].passed_bytes == {"request": at, "response": 0}
        assert here.proxy.acted == [(1, Reset(at=at))]


@pytest.mark.parametrize("at", [0, 1, 20, len(ANSWER)])
async def test_a_reset_lets_exactly_so_many_bytes_of_an_answer_through(at: int) -> None:
    async with lab(Reset(on="response", at=at)) as here:
        client, server = await here.pair()
        client.send(REQUEST)
        await server.until_received(REQUEST)
        server.send(ANSWER)

        assert await client.until_ended("reset") == ANSWER[:at]
        assert await server.until_ended("reset") == REQUEST


async def test_what_comes_before_a_reset_arrives_also_at_a_slow_receiver() -> None:
    async with lab() as here:
        client, server = await here.pair()
        server.transport.pause_reading()
        client.send(BIG)
        at = await here.at_rest("request") // 2  # so much the kernel holds
        here.proxy.faults = [Reset(at=at)]
        client, server = await here.pair()
        server.transport.pause_reading()
        client.send(BIG)
        await here.at_rest("request")
        assert here.proxy.connections[1].passed_bytes["request"] == at
        assert here.proxy.connections[1].is_open
        server.transport.resume_reading()

        assert await server.until_ended("reset") == BIG[:at]


@pytest.mark.parametrize("at", [0, 1, 10, len(REQUEST)])
@pytest.mark.parametrize("direction", BOTH)
async def test_a_finish_ends_one_direction_and_the_other_goes_on(
    direction: Direction, at: int
) -> None:
    async with lab(Finish(on=direction, at=at)) as here:
        sender, receiver = ordered(direction, await here.pair())
        sender.send(REQUEST)
        sender.send(BIG)  # is taken, and lost
        assert await receiver.until_ended("fin") == REQUEST[:at]
        receiver.send(ANSWER)
        await sender.until_received(ANSWER)
        with anyio.fail_after(DEADLINE_S):
            while sender.transport.get_write_buffer_size():
                await settle()

        assert sender.ended == ""
        assert here.proxy.connections[0].passed_bytes[direction] == at


async def test_after_a_finish_the_answer_arrives_at_a_slow_client() -> None:
    answer = BIG[: 256 * 1024]
    async with lab(Finish(at=1)) as here:
        client, server = await here.pair()
        client.transport.pause_reading()
        client.send(REQUEST)
        await server.until_ended("fin")
        server.send(answer)
        server.transport.close()
        await here.at_rest("response")
        client.transport.write_eof()
        await here.closed(1)
        client.transport.resume_reading()

        assert await client.until_ended("fin") == answer


@pytest.mark.parametrize("at", [0, 1, len(REQUEST)])
@pytest.mark.parametrize("direction", BOTH)
async def test_a_stall_holds_one_direction_until_it_is_released(
    direction: Direction, at: int
) -> None:
    async with lab(Stall(on=direction, at=at)) as here:
        sender, receiver = ordered(direction, await here.pair())
        sender.send(REQUEST + b"more")
        sender.transport.write_eof()
        await here.acted()
        await settle()
        assert (bytes(receiver.received), receiver.ended) == (REQUEST[:at], "")
        receiver.send(ANSWER)
        await sender.until_received(ANSWER)

        here.proxy.release()
        assert await receiver.until_ended("fin") == REQUEST + b"more"


async def test_a_release_holds_for_what_has_stalled_and_not_for_what_will() -> None:
    async with lab(Stall(at=1), Stall(at=2)) as here:
        here.proxy.release()
        client, server = await here.pair()
        client.send(b"abc")
        await here.acted()
        here.proxy.release()
        await here.acted(2)
        await settle()

        assert server.received == b"ab"
        assert here.proxy.acted == [(1, Stall(at=1)), (1, Stall(at=2))]


@pytest.mark.parametrize(
    ("fault", "passed"),
    [
        (Flip(at=4, bit=5), b"GET \x0f HTTP/1.1\r\n\r\n"),
        (Drop(at=3, size_bytes=2), b"GET HTTP/1.1\r\n\r\n"),
        (Repeat(at=3, size_bytes=2), b"GETET / HTTP/1.1\r\n\r\n"),
    ],
)
async def test_bytes_are_flipped_dropped_or_repeated(fault: LineFault, passed: bytes) -> None:
    async with lab(fault) as here:
        client, server = await here.pair()
        for number in REQUEST:
            client.send(bytes([number]))
            await settle(10)
        client.transport.write_eof()

        assert await server.until_ended("fin") == passed
        assert here.proxy.connections[0].passed_bytes["request"] == len(passed)
        assert here.proxy.acted == [(1, fault)]


async def test_a_repeat_knows_bytes_from_far_before() -> None:
    at, size_bytes = 1_000_003, 300_001
    async with lab(Repeat(on="response", at=at, size_bytes=size_bytes)) as here:
        client, server = await here.pair()
        server.send(BIG)
        server.transport.write_eof()

        assert await client.until_ended("fin") == BIG[:at] + BIG[at - size_bytes :]


async def test_several_faults_of_both_directions_act_on_one_connection() -> None:
    faults = Flip(at=0, bit=5), Drop(on="response", at=1), Reset(on="response", at=4)
    async with lab(*faults) as here:
        client, server = await here.pair()
        client.send(b"abc")
        await server.until_received(b"Abc")
        server.send(b"defghi")

        assert await client.until_ended("reset") == b"dfg"
        assert here.proxy.acted == [(1, fault) for fault in faults]


# -- time


@pytest.mark.parametrize("direction", BOTH)
async def test_a_pace_lets_so_many_bytes_through_each_time(direction: Direction) -> None:
    clock = FakeClock()
    pace = Pace(on=direction, at=2, size_bytes=3, every_s=0.5)
    async with lab(pace, clock=clock) as here:
        sender, receiver = ordered(direction, await here.pair())
        sender.send(b"0123456789")
        sender.transport.write_eof()
        seen = []
        for _ in range(5):
            await clock.advance(0.25)
            seen.append(len(receiver.received))
        assert seen == [2, 5, 5, 8, 8]
        assert receiver.ended == ""

        await clock.advance(0.25)
        assert await receiver.until_ended("fin") == b"0123456789"
        assert here.proxy.acted == [(1, pace)]


@pytest.mark.parametrize("direction", BOTH)
async def test_a_latency_delays_bytes_and_ends_and_lets_many_be_under_way(
    direction: Direction,
) -> None:
    clock = FakeClock()
    async with lab(Latency(on=direction, delay_s=2.0), clock=clock) as here:
        sender, receiver = ordered(direction, await here.pair())
        receiver.send(ANSWER)
        await sender.until_received(ANSWER)
        seen = []
        for sent in (b"a", b"b", b"c", b"", b"", b""):
            sender.send(sent)
            await clock.advance(1.0)
            seen.append(bytes(receiver.received))
        assert seen == [b"", b"a", b"ab", b"abc", b"abc", b"abc"]

        sender.transport.write_eof()
        await clock.advance(1.5)
        assert receiver.ended == ""
        await clock.advance(0.5)
        assert await receiver.until_ended("fin") == b"abc"


async def test_with_a_latency_memory_is_bounded() -> None:
    clock = FakeClock()
    async with lab(Latency(delay_s=1.0), clock=clock) as here:
        client, server = await here.pair()
        client.send(BIG)
        await clock.advance(1.0)
        await settle(500)
        first = len(server.received)
        assert 0 < first <= 1024 * 1024 + 2 * 64 * 1024
        assert client.transport.get_write_buffer_size() > 0

        with anyio.fail_after(DEADLINE_S):
            while len(server.received) < len(BIG):
                await clock.advance(1.0)
        assert server.received == BIG


# -- which connections


async def test_only_the_nth_connection_or_all_from_it_on_are_met() -> None:
    only, onward = Reset(at=2, connection=2), Finish(at=3, connection=4, sticky=True)
    async with lab(only, onward) as here:
        ends = list[str]()
        for _ in range(5):
            client, server = await here.pair()
            client.send(REQUEST)
            client.transport.write_eof()
            await server.until(lambda server=server: bool(server.ended))  # type: ignore[misc]
            ends.append(f"{server.ended} {len(server.received)}")

        whole = f"fin {len(REQUEST)}"
        assert ends == [whole, "reset 2", whole, "fin 3", "fin 3"]
        assert here.proxy.acted == [(2, only), (4, onward), (5, onward)]
        assert [c.number for c in here.proxy.connections] == [1, 2, 3, 4, 5]
        assert here.proxy.passed_bytes == {"request": 2 * len(REQUEST) + 8, "response": 0}


async def test_other_faults_hold_for_later_connections() -> None:
    async with lab() as here:
        first, server = await here.pair()
        here.proxy.faults = [Reset(at=1)]
        second, other = await here.pair()
        first.send(b"ab")
        await server.until_received(b"ab")
        second.send(b"ab")

        assert await other.until_ended("reset") == b"a"


async def test_a_hang_up_is_an_end_without_a_byte_and_the_target_hears_nothing() -> None:
    async with lab(HangUp(connection=1)) as here:
        client = await here.dial()
        client.send(REQUEST)
        assert await client.until_ended("fin") == b""
        for _ in range(3):
            client.send(b"more")  # is taken, and lost
            await settle()
        assert (client.ended, here.proxy.connections[0].is_open) == ("fin", True)
        client.transport.close()
        await here.closed(1)
        other, server = await here.pair()
        other.send(REQUEST)
        await server.until_received(REQUEST)

        assert len(here.target.ends) == 1
        assert here.proxy.acted == [(1, HangUp(connection=1))]


async def test_refused_is_refused_until_it_is_accepted_again_on_the_same_port() -> None:
    async with lab() as here:
        client, server = await here.pair()
        for _ in range(2):
            here.proxy.refuse()
            here.proxy.refuse()
            for _ in range(2):
                with pytest.raises(ConnectionRefusedError):
                    await here.dial()
            client.send(b"x")
            await server.until_received(b"x")
            here.proxy.accept()
            here.proxy.accept()
            client, server = await here.pair()


async def test_while_connections_are_refused_nobody_gets_the_port() -> None:
    async with lab() as here:
        here.proxy.refuse()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", here.proxy.port))


async def test_later_connections_go_to_another_target() -> None:
    async with lab() as here, listening() as other:
        client, server = await here.pair()
        here.proxy.retarget("127.0.0.1", other.port)
        late = await here.dial()
        late.send(b"new")
        await (await other.end(1)).until_received(b"new")
        client.send(b"old")

        await server.until_received(b"old")


async def test_a_target_that_is_gone_is_a_reset() -> None:
    async with lab() as here:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            here.proxy.retarget("127.0.0.1", nobody.getsockname()[1])
            client = await here.dial()

            assert await client.until_ended("reset") == b""


async def test_a_target_has_a_name_or_an_address_of_ip_6() -> None:
    async with lab() as here:
        here.proxy.retarget("localhost", here.target.port)
        client, server = await here.pair()
        client.send(REQUEST)
        await server.until_received(REQUEST)

        loop, six = asyncio.get_running_loop(), Target()
        async with await loop.create_server(six.accept, "::1", 0) as listener:
            here.proxy.retarget("::1", listener.sockets[0].getsockname()[1])
            client = await here.dial()
            client.send(REQUEST)
            server = await six.end(1)
            await server.until_received(REQUEST)
            server.transport.abort()


# -- all connections at once


async def test_a_cut_resets_all_that_is_open_and_later_ones_are_well() -> None:
    async with lab(Stall(at=3, connection=2)) as here:
        pairs = [await here.pair() for _ in range(3)]
        for client, _ in pairs:
            client.send(b"abcdef")
        await here.acted()
        await pairs[0][1].until_received(b"abcdef")
        await pairs[2][1].until_received(b"abcdef")

        here.proxy.cut()
        assert [c.is_open for c in here.proxy.connections] == [False] * 3
        for number, (client, server) in enumerate(pairs):
            assert await client.until_ended("reset") == b""
            assert await server.until_ended("reset") == b"abcdef"[: 3 if number == 1 else 6]
        client, server = await here.pair()
        client.send(REQUEST)
        await server.until_received(REQUEST)


@pytest.mark.parametrize("blocked", BOTH)
async def test_in_a_partition_of_one_direction_the_other_goes_on(blocked: Direction) -> None:
    async with lab() as here:
        sender, receiver = ordered(blocked, await here.pair())
        here.proxy.partition(blocked)
        sender.send(REQUEST)
        sender.transport.write_eof()
        receiver.send(ANSWER)
        await sender.until_received(ANSWER)
        await settle()
        assert (bytes(receiver.received), receiver.ended) == (b"", "")

        here.proxy.heal(blocked)
        assert await receiver.until_ended("fin") == REQUEST


async def test_a_partition_holds_all_connections_and_new_ones_until_it_is_healed() -> None:
    async with lab() as here:
        client, server = await here.pair()
        here.proxy.partition()
        client.send(REQUEST)
        server.send(ANSWER)
        late = await here.dial()
        late.send(b"late")
        await settle()
        here.proxy.partition()
        await settle()
        assert (len(client.received), len(server.received), len(here.target.ends)) == (0, 0, 1)

        here.proxy.heal("response")
        await client.until_received(ANSWER)
        await settle()
        assert (len(server.received), len(here.target.ends)) == (0, 1)
        here.proxy.heal()
        await server.until_received(REQUEST)
        await (await here.target.end(2)).until_received(b"late")


async def test_a_partition_holds_what_is_in_the_middle_of_being_sent() -> None:
    async with lab() as here:
        client, server = await here.pair()
        server.transport.pause_reading()
        client.send(BIG)
        passed = await here.at_rest("request")
        here.proxy.partition("request")
        server.transport.resume_reading()
        await server.until(lambda: len(server.received) == passed)
        await settle()
        assert here.proxy.passed_bytes["request"] == passed < len(BIG)

        here.proxy.heal()
        await server.until_received(BIG)


@pytest.mark.parametrize("blocked", BOTH)
async def test_in_a_partition_no_end_is_heard(blocked: Direction) -> None:
    async with lab() as here:
        sender, receiver = ordered(blocked, await here.pair())
        here.proxy.partition(blocked)
        sender.transport.write_eof()
        await settle()
        assert receiver.ended == ""

        here.proxy.heal()
        assert await receiver.until_ended("fin") == b""


async def test_in_a_partition_no_fault_acts() -> None:
    async with lab(Reset(at=0)) as here:
        client, server = await here.pair()
        here.proxy.partition("request")
        client.send(REQUEST)
        await settle()
        assert (client.ended, here.proxy.acted) == ("", [])

        here.proxy.heal()
        assert await server.until_ended("reset") == b""


async def test_a_cut_reaches_through_a_partition_and_no_task_stays() -> None:
    async with lab() as here:
        await settle()
        tasks = asyncio.all_tasks()
        client, server = await here.pair()
        here.proxy.partition()
        late = await here.dial()
        await settle()
        here.proxy.cut()

        for end in (client, server, late):
            assert await end.until_ended("reset") == b""
        await settle()
        assert asyncio.all_tasks() == tasks


# -- life


async def test_leaving_ends_all_connections_and_the_port_is_free() -> None:
    faults = Stall(at=1, connection=2), Latency(connection=3, delay_s=9), HangUp(connection=4)
    async with listening() as target:
        async with FaultProxy("127.0.0.1", target.port, *faults, clock=FakeClock()) as proxy:
            here = Lab(target, proxy)
            pairs = [await here.pair() for _ in range(3)]
            await here.dial()
            for client in here.clients:
                client.send(REQUEST)
            await here.acted(3)
        await _nothing_is_open(proxy)
        for _, server in pairs:
            await server.until(lambda server=server: bool(server.ended))  # type: ignore[misc]
        for client in here.clients:
            await client.until(lambda client=client: bool(client.ended))  # type: ignore[misc]
            client.transport.abort()
        assert await pairs[0][0].until_ended("fin") == b""
        assert await pairs[0][1].until_ended("fin") == REQUEST

        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await here.dial()


async def _nothing_is_open(proxy: FaultProxy) -> None:
    gc.collect()
    left = [o for o in gc.get_objects() if isinstance(o, socket.socket) and o.fileno() >= 0]
    inet = [o for o in left if o.family == socket.AF_INET and type(o) is socket.socket]
    assert not any(c.is_open for c in proxy.connections)
    assert [o for o in inet if o.getsockname()[1] == proxy.port] == []


async def test_leaving_also_ends_what_was_accepted_at_that_moment() -> None:
    async with listening() as target:
        async with FaultProxy("127.0.0.1", target.port) as proxy:
            here = Lab(target, proxy)
            clients = [await here.dial() for _ in range(3)]
        await _nothing_is_open(proxy)

        for client in clients:
            await client.until(lambda client=client: bool(client.ended))  # type: ignore[misc]
            client.transport.abort()


async def test_what_is_raised_inside_goes_on_as_it_is() -> None:
    async with listening() as target:
        with pytest.raises(LookupError, match=r"^inside$"):
            async with FaultProxy("127.0.0.1", target.port) as proxy:
                raise LookupError("inside")
        with anyio.CancelScope() as scope:
            async with FaultProxy("127.0.0.1", target.port) as other:
                scope.cancel()
                await anyio.sleep_forever()

        assert scope.cancelled_caught
        await _nothing_is_open(proxy)
        await _nothing_is_open(other)


async def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncsync.testing.proxy._Line", None)

    async def work() -> None:
        async with lab() as here:
            await here.dial()
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await work()

    assert caught.group_contains(TypeError)


ON_ANOTHER_LOOP: list[Callable[[], Awaitable[None]]] = [
    test_bytes_and_ends_pass_in_both_directions,
    lambda: test_much_passes_as_it_is("response"),
    test_a_sender_waits_for_a_slow_receiver,
    test_a_reset_by_an_end_is_one_for_the_other,
    lambda: test_a_reset_lets_exactly_so_many_bytes_of_a_request_through(10),
    lambda: test_a_reset_lets_exactly_so_many_bytes_of_an_answer_through(0),
    lambda: test_a_finish_ends_one_direction_and_the_other_goes_on("request", 1),
    lambda: test_a_stall_holds_one_direction_until_it_is_released("response", 1),
    lambda: test_a_latency_delays_bytes_and_ends_and_lets_many_be_under_way("request"),
    test_refused_is_refused_until_it_is_accepted_again_on_the_same_port,
    test_a_target_that_is_gone_is_a_reset,
    test_a_cut_resets_all_that_is_open_and_later_ones_are_well,
    test_leaving_ends_all_connections_and_the_port_is_free,
    test_leaving_also_ends_what_was_accepted_at_that_moment,
    test_what_is_raised_inside_goes_on_as_it_is,
]


@pytest.mark.parametrize("scenario", ON_ANOTHER_LOOP)
def test_it_is_the_same_on_uvloop(scenario: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
