"""Resumable uploads against servers that forget, refuse and hang up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from asyncsync.errors import (
    AccessDeniedError,
    PreconditionError,
    SlowDownError,
    TransientError,
)
from asyncsync.secrets import Secret
from asyncsync.storage.gcs.resumable import upload
from asyncsync.storage.http import Answer
from asyncsync.storage.objects import Data
from asyncsync.testing import FakeClock
from asyncsync.units import KIB

UNIT = 256 * KIB
ADDRESS = "https://storage.example/upload?upload_id=canary"


class Sleepless(FakeClock):
    """A clock on which every wait is over at once."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


class Fails:
    """An answer instead of what the server would say.

    Args:
        keep: bytes of the chunk that are taken all the same.
        headers: of the answer.
        status: None: no answer.
        forget: what was kept before is lost.
    """

    def __init__(
        self,
        status: int | None,
        keep: int = 0,
        headers: Mapping[str, str] | None = None,
        *,
        forget: bool = False,
    ) -> None:
        self.status, self.keep, self.headers = status, keep, headers or {}
        self.forget = forget


class Server:
    """Keeps what it gets. `plan` says how each request to a session goes; None: well."""

    def __init__(self, plan: Sequence[Fails | None] = ()) -> None:
        self.plan = list(plan)
        self.asked: list[str] = []
        self.sessions = 0
        self.held = b""
        self.sent_bytes = 0

    async def start(self) -> Secret:
        self.sessions += 1
        self.held = b""
        return Secret(ADDRESS)

    async def send(self, session: Secret, content_range: str, data: Data) -> Answer:
        assert session.reveal() == ADDRESS
        self.asked.append(content_range.removeprefix("bytes "))
        self.sent_bytes += len(data)
        span, _, total = self.asked[-1].partition("/")
        fails = self.plan.pop(0) if self.plan else None
        if span != "*":
            start = int(span.partition("-")[0])
            assert start <= len(self.held), "a gap"
            taken = data if fails is None else data[: fails.keep]
            self.held = self.held[:start] + bytes(taken)
        if fails is None:
            return self._done() if len(self.held) == int(total) else self._more()
        if fails.forget:
            self.held = b""
        if fails.status is None:
            raise TransientError("the connection broke")
        return Answer(fails.status, fails.headers, b"")

    def _done(self) -> Answer:
        return Answer(200, {}, json.dumps({"size": str(len(self.held))}).encode())

    def _more(self) -> Answer:
        span = {"Range": f"bytes=0-{len(self.held) - 1}"} if self.held else {}
        return Answer(308, span, b"")


async def send(
    server: Server, data: bytes, *, chunk_bytes: int | None = None, clock: FakeClock | None = None
) -> Mapping[str, Any]:
    async def read(start: int, end: int) -> Data:
        return memoryview(data)[start:end]

    return await upload(
        server,
        read,
        len(data),
        chunk_bytes=chunk_bytes,
        what="put gs://bucket/k",
        clock=clock or Sleepless(),
    )


def data_of(units: float) -> bytes:
    return bytes(n % 251 for n in range(int(units * UNIT)))


# ---------------------------------------------------------------- as it should go


async def test_everything_goes_in_one_request() -> None:
    server, data = Server(), data_of(2.5)
    found = await send(server, data)

    assert found == {"size": str(len(data))}
    assert server.held == data
    assert server.asked == [f"0-{len(data) - 1}/{len(data)}"]


async def test_chunks_are_multiples_of_what_the_protocol_allows() -> None:
    server, data = Server(), data_of(2.5)
    await send(server, data, chunk_bytes=UNIT + 1000)
    size = len(data)

    assert server.held == data
    assert server.asked == [
        f"0-{UNIT - 1}/{size}",
        f"{UNIT}-{2 * UNIT - 1}/{size}",
        f"{2 * UNIT}-{size - 1}/{size}",
    ]


async def test_a_chunk_is_never_smaller_than_the_protocol_allows() -> None:
    server = Server()
    await send(server, data_of(1.5), chunk_bytes=1)

    assert len(server.asked) == 2


async def test_nothing_at_all_can_be_uploaded() -> None:
    server = Server()
    found = await send(server, b"")

    assert found == {"size": "0"}
    assert server.asked == ["*/0"]


# ---------------------------------------------------------------- going on


async def test_after_a_short_range_it_asks_and_goes_on_from_there() -> None:
    server = Server([Fails(308, UNIT, {"Range": f"bytes=0-{UNIT - 1}"})])
    data = data_of(2.5)
    await send(server, data)
    size = len(data)

    assert server.held == data
    assert server.asked == [f"0-{size - 1}/{size}", f"*/{size}", f"{UNIT}-{size - 1}/{size}"]


async def test_a_chunk_that_was_kept_in_part_is_completed_before_the_next() -> None:
    server = Server([None, Fails(308, UNIT, {"Range": f"bytes=0-{3 * UNIT - 1}"})])
    data = data_of(6)
    await send(server, data, chunk_bytes=2 * UNIT)
    size = len(data)

    assert server.held == data
    assert server.asked[1:4] == [
        f"{2 * UNIT}-{4 * UNIT - 1}/{size}",
        f"*/{size}",
        f"{3 * UNIT}-{5 * UNIT - 1}/{size}",
    ]


async def test_after_an_answer_without_range_it_asks_what_was_kept() -> None:
    server = Server([Fails(308, UNIT)])
    data = data_of(2)
    await send(server, data)
    size = len(data)

    assert server.held == data
    assert server.asked == [f"0-{size - 1}/{size}", f"*/{size}", f"{UNIT}-{size - 1}/{size}"]


@pytest.mark.parametrize("status", [None, 408, 429, 500, 502, 503, 504])
async def test_after_a_failure_only_what_is_missing_is_sent(status: int | None) -> None:
    server = Server([Fails(status, UNIT)])
    data = data_of(2.5)
    await send(server, data)
    size = len(data)

    assert server.held == data
    assert server.asked[1:] == [f"*/{size}", f"{UNIT}-{size - 1}/{size}"]
    assert server.sent_bytes == 2 * size - UNIT


async def test_a_question_that_fails_is_asked_again() -> None:
    server = Server([Fails(None, UNIT), Fails(503), Fails(None)])
    data = data_of(2)
    await send(server, data)
    size = len(data)

    assert server.asked[1:4] == [f"*/{size}"] * 3
    assert server.held == data


async def test_a_final_answer_that_got_lost_is_asked_for() -> None:
    data = data_of(1.5)
    server = Server([Fails(None, len(data))])
    found = await send(server, data)

    assert found == {"size": str(len(data))}
    assert server.asked[1:] == [f"*/{len(data)}"]
    assert server.sent_bytes == len(data)


async def test_a_whole_object_that_is_not_finished_yet_is_asked_for() -> None:
    data = data_of(1)
    server = Server([Fails(308, len(data), {"Range": f"bytes=0-{len(data) - 1}"})])
    found = await send(server, data)

    assert found == {"size": str(len(data))}
    assert server.sent_bytes == len(data)


async def test_a_server_that_lost_bytes_gets_them_again() -> None:
    server, data = Server([None, None, Fails(503, forget=True)]), data_of(7)
    await send(server, data, chunk_bytes=UNIT)
    size = len(data)

    assert server.held == data
    assert server.asked[3:5] == [f"*/{size}", f"0-{UNIT - 1}/{size}"]


async def test_a_server_that_keeps_losing_bytes_is_given_up() -> None:
    server = Server([None, Fails(503, forget=True), None] * 9)

    with pytest.raises(SlowDownError):
        await send(server, data_of(7), chunk_bytes=UNIT)
    assert len(server.asked) == 11


# ---------------------------------------------------------------- waiting


async def test_it_waits_as_long_as_the_server_asks() -> None:
    clock = Sleepless()
    server = Server([Fails(429, headers={"Retry-After": "7"})])
    await send(server, data_of(1), clock=clock)

    assert clock.waits == [7]


async def test_without_a_word_it_waits_longer_each_time() -> None:
    clock = Sleepless()
    server = Server([Fails(500), Fails(500), Fails(500)])
    await send(server, data_of(1), clock=clock)

    assert clock.waits == [0.5, 1, 2]


async def test_progress_renews_the_patience() -> None:
    clock = Sleepless()
    plan = [fails for _ in range(6) for fails in (Fails(None, UNIT), None)]
    server, data = Server(plan), data_of(7)
    await send(server, data, clock=clock)

    assert server.held == data
    assert set(clock.waits) == {0.5}


# ---------------------------------------------------------------- sessions that end


@pytest.mark.parametrize("status", [404, 410])
async def test_a_session_that_is_over_is_followed_by_another_from_the_start(status: int) -> None:
    server, data = Server([None, Fails(status)]), data_of(2)
    await send(server, data, chunk_bytes=UNIT)
    size = len(data)

    assert server.sessions == 2
    assert server.held == data
    assert server.asked[2] == f"0-{UNIT - 1}/{size}"


async def test_a_session_may_end_while_it_is_asked() -> None:
    server, data = Server([Fails(None, UNIT), Fails(410)]), data_of(2)
    await send(server, data)

    assert server.sessions == 2
    assert server.held == data


async def test_sessions_that_keep_ending_are_given_up() -> None:
    server = Server([Fails(410)] * 9)

    with pytest.raises(TransientError, match="ended 3 upload sessions"):
        await send(server, data_of(1))
    assert server.sessions == 3


# ---------------------------------------------------------------- giving up


async def test_without_progress_the_last_failure_goes_up() -> None:
    server = Server([Fails(None), Fails(503, headers={"Retry-After": "3"})] * 9)

    with pytest.raises(SlowDownError, match="asks for fewer requests") as caught:
        await send(server, data_of(1))
    assert caught.value.retry_after_s == 3
    assert len(server.asked) == 4


async def test_a_server_that_keeps_nothing_is_given_up() -> None:
    server = Server([Fails(308), None] * 9)

    with pytest.raises(TransientError, match="keeps no more than 0 bytes"):
        await send(server, data_of(1))
    assert len(server.asked) < 10


async def test_a_server_that_never_finishes_is_given_up() -> None:
    data = data_of(1)
    held = {"Range": f"bytes=0-{len(data) - 1}"}
    server = Server([Fails(308, len(data), held)] * 9)

    with pytest.raises(TransientError, match="keeps no more"):
        await send(server, data)
    assert server.sent_bytes == len(data)


async def test_a_server_that_claims_more_than_there_is_is_not_believed() -> None:
    server = Server([Fails(308, UNIT, {"Range": f"bytes=0-{5 * UNIT - 1}"})] * 9)

    with pytest.raises(TransientError):
        await send(server, data_of(1))


@pytest.mark.parametrize(("status", "error"), [(412, PreconditionError), (403, AccessDeniedError)])
async def test_what_will_fail_again_is_not_tried_again(status: int, error: type[Exception]) -> None:
    server = Server([Fails(status)])

    with pytest.raises(error):
        await send(server, data_of(1))
    assert len(server.asked) == 1


async def test_no_error_shows_the_address_of_the_session() -> None:
    for plan in ([Fails(410)] * 9, [Fails(500)] * 9, [Fails(403)], [Fails(308)] * 9):
        with pytest.raises(Exception, match="gs://bucket/k") as caught:
            await send(Server(plan), data_of(1))

        assert "canary" not in f"{caught.value!r} {caught.value.__cause__!r}"
