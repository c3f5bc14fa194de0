"""Bodies: as long as they say, and not waited for in vain."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from asyncsync.errors import FormatError, RefusedError, StalledError, TransientError
from asyncsync.peer.bodies import Bodies, length_of, split_lines
from asyncsync.peer.push_calls import _spread
from asyncsync.testing import FakeClock, settle
from asyncsync.units import KIB

# -- pure


def _headed(**headers: str) -> web.BaseRequest:
    named = CIMultiDict((name.replace("_", "-"), text) for name, text in headers.items())
    length = named.get("Content-Length")
    found = SimpleNamespace(headers=named, content_length=None if length is None else int(length))
    return cast("web.BaseRequest", found)


@pytest.mark.parametrize("length", [0, 1, 10])
def test_a_length_up_to_the_limit_is_a_length(length: int) -> None:
    assert length_of(_headed(Content_Length=str(length)), 10) == length


@pytest.mark.parametrize("length", [11, 2**63, 10**30])
def test_a_length_beyond_the_limit_is_refused(length: int) -> None:
    with pytest.raises(RefusedError, match="10 is the limit"):
        length_of(_headed(Content_Length=str(length)), 10)


def test_a_body_without_a_length_is_none() -> None:
    for headers in ({}, {"Transfer_Encoding": "chunked"}):
        with pytest.raises(FormatError, match="without a length"):
            length_of(_headed(**headers), 10)
    with pytest.raises(FormatError, match="without a length"):
        length_of(_headed(Content_Length="1", Transfer_Encoding="x"), 10)


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_lines_are_the_same_however_they_arrive(text: bytes, cuts: list[int]) -> None:
    text = text.replace(b"a", b"\n")
    found, rest = list[bytes](), b""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(edges):
        lines, rest = split_lines(rest, text[start:end], 100)
        found += lines

    assert [*found, rest] == text.split(b"\n")


@pytest.mark.parametrize("text", [b"12345", b"12345\n", b"\n12345", b"1\n12345\n1"])
def test_a_line_that_is_too_long_is_none(text: bytes) -> None:
    with pytest.raises(FormatError, match="too long"):
        split_lines(b"", text, 4)
    assert split_lines(b"12", b"34\n1234", 4) == ([b"1234"], b"1234")


# -- in time


class Sender:
    """The other end of one request."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        protocol = BaseProtocol(loop)
        protocol.connection_made(asyncio.Transport({"socket": None}))
        self.content = StreamReader(protocol, limit=2**40, loop=loop)
        self.aborted = False
        transport = SimpleNamespace(abort=self._abort, get_extra_info=lambda _: None)
        headers = CIMultiDict[str]()
        found = SimpleNamespace(
            content=self.content, transport=transport, headers=headers, content_length=None
        )
        self.found: Any = found

    @property
    def request(self) -> web.BaseRequest:
        return cast("web.BaseRequest", self.found)

    def _abort(self) -> None:
        self.aborted = True
        self.content.set_exception(ConnectionResetError())

    def announce(self, length: int) -> None:
        self.found.content_length = length


async def _told(bodies: Bodies, sender: Sender, length: int, within_s: float = math.inf) -> str:
    """How taking a body ends."""
    sender.announce(length)
    try:
        await bodies.whole(sender.request, length, within_s=within_s)
    except (TransientError, FormatError) as exc:
        return type(exc).__name__
    return "whole"


class Times:
    """A body that arrives as a test says, beside a clock that goes as it says."""

    def __init__(self, length: int, within_s: float = math.inf, **pace: Any) -> None:
        self.clock, self.sender = FakeClock(), Sender()
        self.bodies = Bodies(self.clock, 60, **pace)
        self.ended = ""
        self._length, self._within_s = length, within_s

    async def run(self, *steps: tuple[int, float]) -> str:
        """Send so many bytes and let so many seconds pass, again and again."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.bodies.watch)
            group.start_soon(self._take)
            await settle()
            for count, seconds in steps:
                if not self.sender.aborted:
                    self.sender.content.feed_data(bytes(count))
                await settle()
                await self.clock.advance(seconds)
            group.cancel_scope.cancel()
        return self.ended

    async def _take(self) -> None:
        self.ended = await _told(self.bodies, self.sender, self._length, self._within_s)


async def test_a_body_in_time_is_whole() -> None:
    assert await Times(3).run((1, 59), (2, 0)) == "whole"


async def test_a_body_that_stands_still_for_a_minute_is_given_up() -> None:
    assert await Times(3).run((1, 44)) == ""
    assert await Times(3).run((1, 60)) == StalledError.__name__


async def test_four_kib_a_minute_are_progress_and_less_is_none() -> None:
    assert await Times(64 * KIB).run(*[(4 * KIB, 45)] * 8) == ""
    assert await Times(64 * KIB).run(*[(512, 15)] * 8) == StalledError.__name__


async def test_a_pace_is_measured_over_a_window() -> None:
    pace = {"window_s": 60, "least_bytes_per_s": KIB}
    enough, slow = [(16 * KIB, 15)] * 20, [(14 * KIB, 15)] * 20
    assert await Times(2**30, **pace).run(*enough) == ""
    assert await Times(2**30, **pace).run(*slow) == StalledError.__name__
    early = [(600 * KIB, 15), *[(5 * KIB, 15)] * 7]
    assert await Times(2**30, **pace).run(*early) == StalledError.__name__, "what was fast once"


async def test_a_message_has_a_deadline_however_fast_it_comes() -> None:
    assert await Times(2**30, within_s=30).run(*[(64 * KIB, 5)] * 5) == ""
    assert await Times(2**30, within_s=30).run(*[(64 * KIB, 5)] * 12) == StalledError.__name__


async def test_a_body_that_ends_early_or_goes_on_is_none() -> None:
    for sent, expected in ((2, TransientError.__name__), (4, FormatError.__name__)):
        sender, bodies = Sender(), Bodies(FakeClock(), 60)
        sender.content.feed_data(bytes(sent))
        sender.content.feed_eof()
        assert await _told(bodies, sender, 3) == expected
        assert not bodies._open, "nobody watches it any more"


async def test_a_body_that_nobody_wants_is_taken_in_up_to_a_chunk() -> None:
    bodies = Bodies(FakeClock(), 60)
    for length, left in ((3, b""), (2**40, b"abc")):
        sender = Sender()
        sender.announce(length)
        sender.content.feed_data(b"abc")
        sender.content.feed_eof()
        await bodies.drop(sender.request, 30)
        assert sender.content.read_nowait() == left


@given(st.lists(st.integers(0, 40), max_size=12, unique=True), st.integers(0, 9))
def test_what_is_between_holes_comes_to_its_place_without_another_buffer(
    cuts: list[int], more: int
) -> None:
    ends = iter(sorted(cuts)[: len(cuts) // 2 * 2])
    extents = list(zip(ends, ends, strict=True))
    length = sum(end - start for start, end in extents)
    sent = bytes(range(1, length + 1))
    whole = bytearray(max(cuts, default=0) + more)
    buffer = memoryview(bytearray(b"x" * len(whole)))
    buffer[len(whole) - length :] = sent
    at = 0
    for start, end in extents:
        whole[start:end] = sent[at : at + end - start]
        at += end - start

    _spread(buffer, length, extents)

    assert buffer == whole
