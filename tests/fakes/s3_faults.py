"""What can go wrong at the fake S3 server. Every function here makes the effect of a `Fault`."""

from __future__ import annotations

import asyncio
import inspect
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from .s3_wire import Delivery, Page, Reply, Request, S3Error, error_reply

__all__ = [
    "Effect",
    "Faucet",
    "Fault",
    "Step",
    "access_denied",
    "answer",
    "call",
    "captive_page",
    "changed",
    "conflict",
    "error_in_200",
    "expired_token",
    "flipped",
    "internal_error",
    "listing",
    "loop_pages",
    "lose_answer",
    "no_checksum",
    "no_length",
    "omit_keys",
    "other_range",
    "refuse_checksum",
    "repeat_page",
    "request_timeout",
    "reset",
    "slow_down",
    "stalled",
    "stalled_request",
    "swapped",
    "throttled",
    "trickled",
    "truncated",
    "truncated_xml",
    "vanished_upload",
    "wrong_checksum",
    "wrong_content_range",
    "wrong_etag",
    "wrong_region",
]


Step = Callable[[Request], Awaitable[Reply | None]]


@dataclass(slots=True, kw_only=True)
class Effect:
    """Where a fault takes a hand; each step may be left out.

    Attributes:
        begin: before the body is read; a reply ends the matter, and nothing has happened.
        instead: after the body is read; a reply stands for what would have been done.
        page: changes a page of a listing, given the request, that page and the first one.
        change: changes the answer, after the effect.
    """

    begin: Step | None = None
    instead: Step | None = None
    page: Callable[[Request, Page, Page], Page] | None = None
    change: Callable[[Request, Reply], Awaitable[None]] | None = None


@dataclass(slots=True)
class Fault:
    """An effect and the requests that it hits.

    Attributes:
        operation: the only one it hits, such as "PutObject"; None: any.
        key: the only key it hits; None: any.
        at: which of those requests is the first, counted from 1 when the fault was added.
        times: how many of them from there on; None: all.
        seen: how many of those requests there were so far.
    """

    effect: Effect
    operation: str | None = None
    key: str | None = None
    at: int = 1
    times: int | None = 1
    seen: int = 0

    def hits(self, request: Request) -> bool:
        """Whether it is this request's turn; asked once for each request."""
        if self.operation not in {None, request.operation} or self.key not in {None, request.key}:
            return False
        self.seen += 1
        return self.seen >= self.at and (self.times is None or self.seen < self.at + self.times)


class Faucet:
    """Lets a body through: so many bytes as a test has poured, all once it is open.

    Any thread may pour. `waiting` counts the deliveries that have nothing left to send.
    """

    def __init__(self, size_bytes: int = 0) -> None:
        self._left = size_bytes
        self._is_open = False
        self._sleepers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self.waiting = 0

    def pour(self, size_bytes: int) -> None:
        self._left += size_bytes
        self._wake()

    def open(self) -> None:
        self._is_open = True
        self._wake()

    async def take(self, most: int) -> int:
        """How many bytes may go now: waits until it is at least one."""
        while not self._is_open and self._left <= 0:
            await self._sleep()
        granted = most if self._is_open else min(most, self._left)
        self._left -= granted
        return granted

    async def _sleep(self) -> None:
        me = (asyncio.get_running_loop(), asyncio.Event())
        self._sleepers.append(me)
        self.waiting += 1
        try:
            await me[1].wait()
        finally:
            self.waiting -= 1
            self._sleepers.remove(me)

    def _wake(self) -> None:
        for loop, event in tuple(self._sleepers):
            loop.call_soon_threadsafe(event.set)


# -- answers that stand for the effect


def answer(
    status: int,
    code: str = "",
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    early: bool = False,
) -> Effect:
    """An answer, and nothing has happened; `early`: before the body of the request was read."""

    async def reply(request: Request) -> Reply:
        if body is not None:
            return Reply(status, dict(headers or {}), body)
        return error_reply(S3Error(status, code, headers=headers), request.key)

    return Effect(begin=reply) if early else Effect(instead=reply)


def slow_down(retry_after_s: int | None = 1) -> Effect:
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return answer(503, "SlowDown", headers=headers)


def throttled(retry_after_s: int = 1) -> Effect:
    return answer(429, "TooManyRequests", headers={"Retry-After": str(retry_after_s)})


def internal_error() -> Effect:
    return answer(500, "InternalError")


def request_timeout() -> Effect:
    return answer(400, "RequestTimeout")


def expired_token() -> Effect:
    return answer(400, "ExpiredToken")


def access_denied() -> Effect:
    return answer(403, "AccessDenied")


def conflict() -> Effect:
    return answer(409, "ConditionalRequestConflict")


def wrong_region(region: str = "eu-west-1") -> Effect:
    return answer(301, "PermanentRedirect", headers={"x-amz-bucket-region": region})


def vanished_upload() -> Effect:
    """For one request; to end an upload for good, take it out of `fake.uploads`."""
    return answer(404, "NoSuchUpload")


def captive_page() -> Effect:
    page = b"<!doctype html><html><body>Please log in to the network</body></html>"
    return answer(200, headers={"Content-Type": "text/html"}, body=page)


def refuse_checksum() -> Effect:
    """Once; for a store that never takes them, set `fake.accepts_checksums = False`."""
    return answer(400, "InvalidRequest")


def error_in_200(code: str = "InternalError", *, done: bool = False) -> Effect:
    """Status 200 with an error document; `done`: although it has happened."""

    async def change(request: Request, reply: Reply) -> None:
        reply.headers = {"Content-Type": "application/xml"}
        reply.status, reply.body = 200, error_reply(S3Error(200, code), request.key).body

    async def instead(request: Request) -> Reply:
        reply = Reply()
        await change(request, reply)
        return reply

    return Effect(change=change) if done else Effect(instead=instead)


# -- answers that are changed after the effect


def call(
    function: Callable[[Request], Awaitable[object] | object],
    when: Literal["early", "before", "after"] = "before",
) -> Effect:
    """Call the test's function: before the body is read, before the effect, or after it.

    The function runs on the server's loop and may be `async`.
    """

    async def run(request: Request, _: Reply | None = None) -> None:
        result = function(request)
        if inspect.isawaitable(result):
            await result

    if when == "early":
        return Effect(begin=run)
    return Effect(instead=run) if when == "before" else Effect(change=run)


def changed(alter: Callable[[Reply], None]) -> Effect:
    """The answer, altered after the effect."""

    async def change(request: Request, reply: Reply) -> None:
        alter(reply)

    return Effect(change=change)


def wrong_etag() -> Effect:
    """The ETag header, or the one in the answer to CompleteMultipartUpload, is another one."""
    other = '"00000000000000000000000000000000"'

    def alter(reply: Reply) -> None:
        if "ETag" in reply.headers:
            reply.headers["ETag"] = other
        before, start, rest = reply.body.partition(b"<ETag>")
        if start and reply.headers.get("Content-Type") == "application/xml":
            reply.body = before + start + other.encode() + rest[rest.index(b"</ETag>") :]

    return changed(alter)


def wrong_checksum() -> Effect:
    def alter(reply: Reply) -> None:
        for name in _checksum_headers(reply):
            reply.headers[name] = "AAAAAA=="

    return changed(alter)


def no_checksum() -> Effect:
    def alter(reply: Reply) -> None:
        for name in _checksum_headers(reply):
            del reply.headers[name]

    return changed(alter)


def _checksum_headers(reply: Reply) -> list[str]:
    names = [name for name in reply.headers if name.startswith("x-amz-checksum-")]
    return [name for name in names if name != "x-amz-checksum-type"]


def flipped(position: int = 0) -> Effect:
    """One bit of the body is another one."""

    def alter(reply: Reply) -> None:
        body = bytearray(reply.body)
        body[position] ^= 1
        reply.body = bytes(body)

    return changed(alter)


def wrong_content_range() -> Effect:
    """The Content-Range of a 206 names bytes one further on; the body is right."""

    def alter(reply: Reply) -> None:
        if "Content-Range" in reply.headers:
            span, _, size = reply.headers["Content-Range"].removeprefix("bytes ").partition("/")
            first, last = map(int, span.split("-"))
            reply.headers["Content-Range"] = f"bytes {first + 1}-{last + 1}/{size}"

    return changed(alter)


def other_range(first: int, last: int) -> Effect:
    """A 206 for bytes that nobody has asked for."""

    async def change(request: Request, reply: Reply) -> None:
        size = reply.headers["Content-Range"].rpartition("/")[2]
        reply.headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        reply.body = bytes(last - first + 1)

    return Effect(change=change)


def truncated_xml() -> Effect:
    def alter(reply: Reply) -> None:
        reply.body = reply.body[: len(reply.body) // 2]

    return changed(alter)


def swapped() -> Effect:
    """The answers of two requests are exchanged. Give the fault `times=2`."""
    first: list[tuple[Reply, asyncio.Event]] = []

    async def change(request: Request, reply: Reply) -> None:
        if not first:
            first.append((reply, asyncio.Event()))
            await first[0][1].wait()
            return
        other, done = first.pop()
        for name in ("status", "headers", "body"):
            mine, theirs = getattr(reply, name), getattr(other, name)
            setattr(reply, name, theirs)
            setattr(other, name, mine)
        done.set()

    return Effect(change=change)


# -- listings


def listing(change: Callable[[Request, Page, Page], Page]) -> Effect:
    """`change(request, page, first)` makes the page that is sent; `first` is the first one."""
    return Effect(page=change)


def repeat_page() -> Effect:
    """The page is the first one once more; the token goes on as it should."""
    return listing(lambda _, page, first: first._replace(next_token=page.next_token))


def loop_pages() -> Effect:
    """The page is the first one, with its token. Sticky, the listing never ends."""
    return listing(lambda _request, _page, first: first)


def omit_keys(*keys: str) -> Effect:
    def change(request: Request, page: Page, first: Page) -> Page:
        return page._replace(keys=tuple(key for key in page.keys if key not in keys))

    return listing(change)


# -- connections


def abort(request: Request) -> None:
    """Close the connection with a reset, whatever is on its way."""
    transport = request.http.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()


def write(request: Request, data: bytes) -> None:
    if request.http.transport is not None:
        request.http.transport.write(data)


async def _reset(request: Request, reply: Reply) -> None:
    request.status = 0
    abort(request)


def reset_reply() -> Reply:
    return Reply(delivery=_reset)


def _delivered(delivery: Delivery) -> Effect:
    async def change(request: Request, reply: Reply) -> None:
        reply.delivery = delivery

    return Effect(change=change)


def reset(when: Literal["before", "request", "effect", "headers", "body"] = "before") -> Effect:
    """The connection is reset.

    Before anything is read, in the middle of the request's body, after the effect (so that the
    answer is lost), in the middle of the answer's headers, or in the middle of its body.
    """

    async def begin(request: Request) -> Reply:
        if when == "request":
            size = int(request.headers.get("Content-Length", "0"))
            await request.http.content.readexactly(size // 2)
        return reset_reply()

    async def deliver(request: Request, reply: Reply) -> None:
        head = reply.head()
        sent = head[: len(head) // 2] if when == "headers" else head
        if when == "body":
            sent += reply.body[: len(reply.body) // 2]
        write(request, sent)
        await _reset(request, reply)

    if when in {"before", "request"}:
        return Effect(begin=begin)
    return _delivered(_reset if when == "effect" else deliver)


def lose_answer() -> Effect:
    """It has happened, and the client cannot know."""
    return reset("effect")


def truncated(sent: int | None = None) -> Effect:
    """`sent` bytes of the body, half of it by default, and then the connection is closed."""

    async def deliver(request: Request, reply: Reply) -> None:
        write(request, reply.head() + reply.body[: len(reply.body) // 2 if sent is None else sent])

    return _delivered(deliver)


def no_length(sent: int | None = None) -> Effect:
    """A body without Content-Length, ended by closing; `sent`: earlier than it should."""

    async def deliver(request: Request, reply: Reply) -> None:
        reply.headers.pop("Content-Length", None)
        write(request, reply.head(length=False) + reply.body[:sent])

    return _delivered(deliver)


def trickled(faucet: Faucet) -> Effect:
    """The headers at once, and as much of the body as the test pours."""

    async def deliver(request: Request, reply: Reply) -> None:
        write(request, reply.head())
        sent = 0
        while sent < len(reply.body):
            count = await faucet.take(len(reply.body) - sent)
            write(request, reply.body[sent : sent + count])
            sent += count

    return _delivered(deliver)


def stalled(faucet: Faucet | None = None, *, sent: int = 0) -> Effect:
    """The headers and `sent` bytes, and no more until the faucet, if there is one, is open."""
    held = faucet or Faucet()
    held.pour(sent)
    return trickled(held)


def stalled_request(faucet: Faucet | None = None) -> Effect:
    """The body of the request is not read before the faucet, if there is one, is open."""
    held = faucet or Faucet()

    async def begin(request: Request) -> None:
        await held.take(1)

    return Effect(begin=begin)
