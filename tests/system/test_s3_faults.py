"""Syncs with an S3 server that does something wrong: the tree ends whole or not there at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

import pytest

from asyncsync.errors import (
    AccessDeniedError,
    AsyncSyncError,
    ClashError,
    ConfigError,
    IntegrityError,
    NotFoundError,
    PermanentError,
    StalledError,
    TransientError,
)
from asyncsync.events import Retrying
from asyncsync.names import ATTEMPT, MANIFEST
from asyncsync.testing import settle

from ..fakes.s3 import Credentials, FakeS3
from ..fakes.s3_faults import (
    Effect,
    access_denied,
    answer,
    call,
    captive_page,
    changed,
    conflict,
    error_in_200,
    expired_token,
    flipped,
    internal_error,
    loop_pages,
    lose_answer,
    no_length,
    omit_keys,
    other_range,
    repeat_page,
    request_timeout,
    reset,
    slow_down,
    stalled,
    stalled_request,
    swapped,
    throttled,
    truncated,
    truncated_xml,
    wrong_checksum,
    wrong_content_range,
    wrong_etag,
)
from ..fakes.s3_wire import Reply, Request
from .s3_place import (
    CHUNK,
    LOCATION,
    TREE,
    S3Place,
    one_line,
    raises,
    s3_place,
    use_short_stalls,
    use_small_chunks,
)

pytestmark = pytest.mark.one_loop

NEW = {"a": b"ONE", "d/b": b"two", "big": TREE["big"][::-1]}
HTML = b"<html><body>Bad Gateway</body></html>"
STALL_S = 0.2
LONGEST = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # what may be waited for between two tries, in seconds


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_chunks(monkeypatch)


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Place]:
    async with s3_place(tmp_path, monkeypatch) as place:
        yield place


def resent(alter: Callable[[bytes], bytes]) -> Effect:
    """The body of the request, altered on its way to the server."""

    def change(request: Request) -> None:
        request.body = alter(request.body)

    return call(change)


def page(status: int) -> Effect:
    return answer(status, headers={"Content-Type": "text/html"}, body=HTML)


# -- connections that break


@pytest.mark.parametrize(
    ("operation", "when"),
    [
        (operation, when)
        for operation in (
            "PutObject",
            "CreateMultipartUpload",
            "UploadPart",
            "CompleteMultipartUpload",
        )
        for when in ("before", "request", "effect", "headers", "body")
        if when != "body" or "Multipart" in operation  # an answer to a PUT has none
    ],
)
async def test_a_reset_at_any_position_of_a_write_is_retried(
    operation: str,
    when: Literal["before", "request", "effect", "headers", "body"],
    place: S3Place,
) -> None:
    place.fake.on(operation, reset(when), at=2 if operation == "UploadPart" else 1)

    await place.up()

    assert place.events.of(Retrying)
    await place.check()


@pytest.mark.parametrize("when", ["before", "effect", "headers", "body"])
async def test_a_reset_at_any_position_of_a_read_is_retried(
    when: Literal["before", "effect", "headers", "body"], place: S3Place
) -> None:
    await place.up()
    for path in ("big", "a", MANIFEST):
        place.fake.faults += [place.fault(reset(when), "GetObject", path)]

    assert await place.down() == TREE
    assert place.events.of(Retrying)


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
async def test_a_connection_closed_in_the_middle_of_a_body_is_retried(
    operation: str, place: S3Place
) -> None:
    def close(request: Request) -> None:
        assert request.http.transport is not None
        request.http.transport.close()

    place.fake.on(operation, call(close, "early"), at=2)

    await place.up()

    assert place.events.of(Retrying)
    await place.check()


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "CompleteMultipartUpload"])
async def test_a_request_on_which_nothing_moves_is_given_up_and_sent_again(
    operation: str, place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_short_stalls(monkeypatch, STALL_S)
    place.fake.on(operation, stalled_request())

    await place.up()

    assert [e.reason.partition(": ")[2] for e in place.events.of(Retrying)] == [
        f"hardly anything moved for {STALL_S:g} s"
    ]
    await place.check()


@pytest.mark.parametrize("sent", [0, 100, CHUNK - 1])
async def test_an_answer_that_stops_is_given_up_and_asked_for_again(
    sent: int, place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_short_stalls(monkeypatch, STALL_S)
    await place.up()
    place.fake.faults.append(place.fault(stalled(sent=sent), "GetObject", "big", at=3))

    assert await place.down() == TREE
    assert len(place.events.of(Retrying)) == 1


async def test_an_answer_that_stops_every_time_is_an_error_after_seven_tries(
    place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_short_stalls(monkeypatch, STALL_S / 4)
    await place.up()
    place.fake.faults.append(place.fault(stalled(sent=1000), "GetObject", "big", times=None))

    with raises(StalledError) as caught:
        await place.down()

    assert one_line(caught.value, "s3://bucket/run/ckpt_7/big", "hardly anything moved")
    assert caught.value.attempts == 7
    assert not (place.tmp_path / "restored").exists()


async def test_a_server_that_is_gone_is_an_error_after_seven_tries_with_growing_waits(
    place: S3Place,
) -> None:
    await place.up()
    await place.fake.__aexit__()
    place.clock.waits.clear()

    with raises(TransientError) as caught:
        await place.down()

    assert one_line(caught.value, place.fake.url, "Connection refused")
    assert caught.value.attempts == 7
    assert len(place.clock.waits) == 6
    assert all(w <= most for w, most in zip(place.clock.waits, LONGEST, strict=True))

    await place.fake.__aenter__()  # on the same port
    assert await place.down() == TREE


async def test_a_server_that_restarts_in_the_middle_of_a_sync_does_no_harm(
    place: S3Place,
) -> None:
    place.fake.on("UploadPart", reset("request"), at=2, times=3)
    place.fake.on("PutObject", lose_answer(), at=6, times=2)

    await place.up()

    await place.check()


# -- bytes that change on the way


def _flip(data: bytes, position: int = 0) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit flipped at the start": _flip,
    "a bit flipped at the end": lambda data: _flip(data, len(data) - 1),
    "a byte dropped": lambda data: data[: len(data) // 2] + data[len(data) // 2 + 1 :],
    "a byte doubled": lambda data: data[:1] + data,
    "a byte moved": lambda data: data[1:] + data[:1],
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_bytes_damaged_on_the_way_up_are_sent_again(damage: str, place: S3Place) -> None:
    place.fake.faults += [
        place.fault(resent(DAMAGE[damage]), "PutObject", "a"),
        place.fault(resent(DAMAGE[damage]), "UploadPart", "big", at=2),
        place.fault(resent(DAMAGE[damage]), "PutObject", MANIFEST),
    ]

    await place.up()

    assert len(place.events.of(Retrying)) == 3
    await place.check()


@pytest.mark.parametrize("damage", DAMAGE)
async def test_bytes_damaged_on_the_way_down_are_asked_for_again(
    damage: str, place: S3Place
) -> None:
    def alter(reply: Reply) -> None:
        reply.body = DAMAGE[damage](reply.body)

    await place.up()
    place.fake.faults += [
        place.fault(changed(alter), "GetObject", "a"),
        place.fault(changed(alter), "GetObject", "big", at=2),
    ]

    assert await place.down() == TREE


async def test_bytes_that_are_damaged_every_time_become_an_error_and_nothing_visible(
    place: S3Place,
) -> None:
    await place.up()
    place.fake.faults.append(place.fault(flipped(), "GetObject", "big", times=None))

    with raises(IntegrityError) as caught:
        await place.down()

    assert one_line(caught.value, "big", LOCATION)
    assert not (place.tmp_path / "restored").exists()
    report = await place.syncer.verify(LOCATION)
    assert [path for path, _ in report.failures] == ["big"]


async def test_a_manifest_damaged_on_the_way_is_not_believed(place: S3Place) -> None:
    await place.up()
    place.fake.faults.append(place.fault(flipped(40), "GetObject", MANIFEST, times=None))

    with raises(IntegrityError) as caught:
        await place.down()

    assert one_line(caught.value, "run/ckpt_7")
    assert not (place.tmp_path / "restored").exists()


def _length(digits: Callable[[int], int]) -> Effect:
    def alter(reply: Reply) -> None:
        whole = reply.head() + reply.body

        async def deliver(request: Request, reply: Reply) -> None:
            size = len(reply.body)
            told = whole.replace(b"Content-Length: %d" % size, b"Content-Length: %d" % digits(size))
            assert request.http.transport is not None
            request.http.transport.write(told)

        reply.delivery = deliver

    return changed(alter)


HEADERS = {
    "a smaller length": _length(lambda size: size - 1),
    "a larger length": _length(lambda size: size + 1),
    "another range": wrong_content_range(),
    "bytes nobody asked for": other_range(0, 99),
    "no length, cut off": no_length(100),
    "cut off": truncated(),
    "another tag": wrong_etag(),
}


@pytest.mark.parametrize("damage", HEADERS)
async def test_an_answer_whose_headers_are_wrong_is_not_believed(
    damage: str, place: S3Place
) -> None:
    await place.up()
    place.fake.faults.append(place.fault(HEADERS[damage], "GetObject", "big", at=3))

    assert await place.down() == TREE


async def test_answers_to_two_reads_that_are_swapped_are_never_taken_for_each_other(
    place: S3Place,
) -> None:
    files = {"a": b"one", "b": b"two", "c": b"33333"}
    await place.up(files)
    effect = swapped()
    place.fake.faults += [place.fault(effect, "GetObject", path) for path in ("a", "b")]

    assert await place.down() == files  # each file was read once more


async def test_answers_to_two_writes_that_are_swapped_are_told_apart(place: S3Place) -> None:
    files = {"a": b"one", "b": b"two"}
    effect = swapped()
    place.fake.faults += [place.fault(effect, "PutObject", path) for path in files]

    await place.up(files)

    assert len(place.events.of(Retrying)) == 2
    await place.check(files)


# -- what stands between us and the server


@pytest.mark.parametrize("status", [502, 504])
async def test_a_page_of_a_proxy_that_has_lost_the_server_is_passing(
    status: int, place: S3Place
) -> None:
    for operation in ("PutObject", "UploadPart", "CompleteMultipartUpload", "ListObjectsV2"):
        place.fake.on(operation, page(status), at=2 if operation == "PutObject" else 1)

    await place.up()

    assert len(place.events.of(Retrying)) == 4
    await place.check()


async def test_such_a_page_that_stays_is_one_line_without_the_page(place: S3Place) -> None:
    place.fake.on(None, page(502), times=None)

    with raises(TransientError) as caught:
        await place.up()

    assert one_line(caught.value, "s3://bucket/run/ckpt_7", "502")
    assert "html" not in str(caught.value)
    assert caught.value.attempts == 7


@pytest.mark.parametrize(
    "operation",
    ["GetObject", "PutObject", "ListObjectsV2", "UploadPart", "CompleteMultipartUpload"],
)
async def test_a_captive_page_is_never_taken_for_an_answer_of_s3(
    operation: str, place: S3Place
) -> None:
    place.fake.on(operation, captive_page(), at=2, times=None)
    if operation in {"UploadPart", "CompleteMultipartUpload"}:
        place.fake.faults[-1].at = 1

    with raises(ConfigError) as caught:
        await place.up()

    assert one_line(caught.value, "s3://bucket/run/ckpt_7", "network login")
    assert not place.events.of(Retrying)
    assert MANIFEST not in place.held()
    place.fake.faults.clear()
    await place.up()
    await place.check()


@pytest.mark.parametrize("status", [301, 307])
@pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "ListObjectsV2"])
async def test_a_redirect_is_an_error_and_the_other_host_hears_nothing(
    operation: str, status: int, place: S3Place
) -> None:
    async with FakeS3() as other:
        location = {"Location": f"{other.url}/bucket/run/ckpt_7/a"}
        place.fake.on(operation, answer(status, headers=location, body=b""), times=None)

        with raises(ConfigError) as caught:
            await place.up()

        assert other.requests == []
    assert one_line(caught.value, "s3://bucket", str(status), "endpoint")
    assert not place.events.of(Retrying)


# -- a server that cannot keep up


@pytest.mark.parametrize("effect", [slow_down(7), throttled(7)], ids=["503", "429"])
async def test_who_is_asked_to_slow_down_waits_as_long_as_was_asked(
    effect: Effect, place: S3Place
) -> None:
    place.fake.faults += [
        place.fault(effect, "PutObject", "a", times=3),
        place.fault(effect, "UploadPart", "big", times=2),
        place.fault(effect, "PutObject", MANIFEST),
    ]

    await place.up()

    waits = [event.wait_s for event in place.events.of(Retrying)]
    assert waits == [7.0] * 6
    assert place.clock.waits.count(7.0) == 6
    await place.check()


async def test_without_a_time_to_wait_the_waits_grow(place: S3Place) -> None:
    place.fake.faults.append(place.fault(slow_down(None), "PutObject", "a", times=None))

    with raises(TransientError) as caught:
        await place.up()

    waits = [event.wait_s for event in place.events.of(Retrying)]
    assert one_line(caught.value, "run/ckpt_7/a", "SlowDown")
    assert caught.value.attempts == 7
    assert all(wait <= most for wait, most in zip(waits, LONGEST, strict=True))


async def test_a_server_that_asks_to_slow_down_gets_fewer_requests_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"f{number:03}": b"%d" % number for number in range(64)}
    async with s3_place(tmp_path, monkeypatch, max_requests=16) as place:
        peaks, now, full = list[int](), 0, asyncio.Event()

        async def hook(request: Request) -> Effect | None:
            nonlocal now
            if request.operation != "PutObject" or request.key.endswith((MANIFEST, ATTEMPT)):
                return None
            now += 1
            peaks.append(now)
            first = len(peaks) <= 16
            if len(peaks) == 16:
                full.set()
            await (full.wait() if first else settle(200))
            now -= 1
            return slow_down(1) if first else None

        place.fake.hook = hook

        await place.up(files)

        assert max(peaks[:16]) == 16
        assert max(peaks[17:28]) <= 9
        await place.check(files)


# -- errors of the server


@pytest.mark.parametrize(
    "effect",
    [internal_error(), request_timeout(), answer(500), answer(503), answer(408)],
    ids=["InternalError", "RequestTimeout", "500", "503", "408"],
)
@pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
async def test_three_errors_of_the_server_in_a_row_do_no_harm(
    operation: str, effect: Effect, place: S3Place
) -> None:
    number = {"UploadPart": "2"}.get(operation)
    left = [1, 2, 3]

    def hook(request: Request) -> Effect | None:
        wanted = request.operation == operation and request.key.endswith(("/a", "/big"))
        if not left or not wanted or request.query.get("partNumber") != number:
            return None
        left.pop()
        return effect

    place.fake.hook = hook

    await place.up()

    assert [event.attempt for event in place.events.of(Retrying)] == [1, 2, 3]
    await place.check()


async def test_an_error_of_the_server_that_stays_is_reported_after_seven_tries(
    place: S3Place,
) -> None:
    place.fake.faults.append(place.fault(internal_error(), "UploadPart", "big", times=None))

    with raises(TransientError) as caught:
        await place.up()

    assert one_line(caught.value, "run/ckpt_7/big", "InternalError")
    assert caught.value.attempts == 7
    assert MANIFEST not in place.held()
    place.fake.faults.clear()
    await place.up()
    await place.check()


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
async def test_an_error_inside_a_success_is_an_error_and_then_it_is_looked_at(
    done: bool, place: S3Place
) -> None:
    place.fake.on("CompleteMultipartUpload", error_in_200(done=done))

    await place.up()

    assert len(place.events.of(Retrying)) == 1
    await place.check()


@pytest.mark.parametrize("path", ["a", MANIFEST, ATTEMPT])
async def test_a_wrong_checksum_in_an_answer_has_the_object_sent_again(
    path: str, place: S3Place
) -> None:
    await place.syncer.sync_up(await place.make({"x": b""}, "other"), "s3://bucket/other")
    before = place.count("PutObject", path)
    place.fake.faults.append(place.fault(wrong_checksum(), "PutObject", path))

    await place.up()

    assert place.count("PutObject", path) >= before + 2
    await place.check()


async def test_a_wrong_checksum_of_a_part_or_of_the_whole_has_it_sent_again(
    place: S3Place,
) -> None:
    place.fake.on("UploadPart", wrong_checksum(), at=2)
    place.fake.on("CompleteMultipartUpload", wrong_checksum())

    await place.up()

    assert place.count("UploadPart") >= 6
    await place.check()


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        ("PutObject", "a"),
        ("PutObject", MANIFEST),
        ("PutObject", ATTEMPT),
        ("CompleteMultipartUpload", "big"),
    ],
)
async def test_a_wrong_tag_in_an_answer_does_no_harm(
    operation: str, path: str, place: S3Place
) -> None:
    place.fake.faults.append(place.fault(wrong_etag(), operation, path))

    await place.up()

    await place.check()


async def test_after_a_wrong_tag_of_a_part_the_file_is_sent_again(place: S3Place) -> None:
    place.fake.on("UploadPart", wrong_etag())

    await place.up()

    await place.check()
    assert place.fake.operations.count("CompleteMultipartUpload") == 2


async def test_a_store_that_never_tells_the_right_tag_of_a_part_is_given_up(
    place: S3Place,
) -> None:
    fault = place.fake.on("UploadPart", wrong_etag(), times=None)

    with raises(NotFoundError) as caught:
        await place.up()

    assert one_line(caught.value, "run/ckpt_7/big", "InvalidPart")
    assert MANIFEST not in place.held()
    assert not place.fake.uploads
    place.fake.faults.remove(fault)
    await place.up()
    await place.check()


@pytest.mark.parametrize("operation", ["PutObject", "CompleteMultipartUpload"])
async def test_a_conflict_of_two_requests_is_retried(operation: str, place: S3Place) -> None:
    place.fake.on(operation, conflict(), at=3 if operation == "PutObject" else 1)

    await place.up()

    assert len(place.events.of(Retrying)) == 1
    await place.check()


@pytest.mark.parametrize("path", ["a", "big", MANIFEST])
async def test_a_lost_answer_to_a_conditional_write_is_found_out_by_looking(
    path: str, place: S3Place
) -> None:
    operation = "CompleteMultipartUpload" if path == "big" else "PutObject"
    place.fake.faults.append(place.fault(lose_answer(), operation, path))

    await place.up()

    await place.check()


# -- uploads that the store has dropped


def _drop(place: S3Place) -> Effect:
    """The upload is gone, as when a lifecycle rule or an administrator has aborted it."""
    return call(lambda request: place.fake.uploads.pop(request.query["uploadId"]), "early")


@pytest.mark.parametrize(
    ("operation", "at"),
    [("UploadPart", 1), ("UploadPart", 3), ("UploadPart", 5), ("CompleteMultipartUpload", 1)],
)
@pytest.mark.parametrize("scenario", ["new", "replace", "update"])
async def test_an_upload_that_the_store_has_dropped_is_begun_again(
    scenario: str, operation: str, at: int, place: S3Place
) -> None:
    if scenario != "new":
        kind: Literal["rolling", "sealed"] = "rolling" if scenario == "update" else "sealed"
        await place.syncer.sync_up(await place.make(), LOCATION, kind=kind)
    place.fake.on(operation, _drop(place), at=at)

    await place.syncer.sync_up(await place.make(NEW), LOCATION, replace=scenario == "replace")

    await place.check(NEW)
    assert await place.down() == NEW


@pytest.mark.parametrize("scenario", ["new", "replace", "update"])
async def test_all_uploads_dropped_at_once_are_begun_again(scenario: str, place: S3Place) -> None:
    if scenario != "new":
        kind: Literal["rolling", "sealed"] = "rolling" if scenario == "update" else "sealed"
        await place.syncer.sync_up(await place.make(), LOCATION, kind=kind)
    drop_all = call(lambda _: place.fake.uploads.clear(), "early")
    for operation in ("UploadPart", "CompleteMultipartUpload"):
        place.fake.on(operation, drop_all, at=3 if operation == "UploadPart" else 1)

    await place.syncer.sync_up(await place.make(NEW), LOCATION, replace=scenario == "replace")

    await place.check(NEW)
    assert await place.down() == NEW


# -- credentials and clocks


async def test_credentials_that_expire_in_the_middle_are_looked_up_once(place: S3Place) -> None:
    place.fake.on("UploadPart", expired_token(), at=2)

    await place.up()

    assert place.count("UploadPart") == 6
    assert not place.events.of(Retrying)
    await place.check()


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "AccessDenied"])
async def test_credentials_that_stay_refused_are_an_error_at_once_and_the_next_run_goes_on(
    code: str, place: S3Place
) -> None:
    place.fake.on("UploadPart", answer(403, code), times=None)

    with raises(AccessDeniedError) as caught:
        await place.up()

    assert one_line(caught.value, "run/ckpt_7/big", code)
    assert not place.events.of(Retrying)
    assert place.clock.waits.count(0) == len([w for w in place.clock.waits if not w])
    assert place.count("UploadPart") <= 2 * 5
    assert MANIFEST not in place.held()
    place.fake.faults.clear()
    await place.up()
    await place.check()


async def test_a_key_that_is_withdrawn_in_the_middle_is_replaced_by_the_new_one(
    place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rotate(request: Request) -> None:
        place.fake.credentials = {"AKIANEW": Credentials(secret="new-secret")}
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANEW")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "new-secret")

    place.fake.on("UploadPart", call(rotate, "early"), at=2)

    await place.up()

    assert not place.events.of(Retrying)
    await place.check()


@pytest.mark.parametrize("offset_s", [3600.0, -3600.0])
async def test_a_clock_that_is_an_hour_off_is_corrected_once(
    offset_s: float, place: S3Place
) -> None:
    place.fake.clock_offset_s = offset_s

    await place.up()

    assert [r.status for r in place.fake.requests].count(403) <= 2
    await place.check()


async def test_a_clock_that_jumps_in_the_middle_is_corrected(place: S3Place) -> None:
    def jump(request: Request) -> None:
        place.fake.clock_offset_s = 3600

    place.fake.on("CreateMultipartUpload", call(jump, "early"))

    await place.up()

    assert not place.events.of(Retrying)
    await place.check()


async def test_a_clock_that_nothing_corrects_is_an_error_that_names_both_times(
    place: S3Place,
) -> None:
    place.fake.on(None, answer(403, "RequestTimeTooSkewed"), times=None)

    with raises(PermanentError) as caught:
        await place.up()

    assert one_line(caught.value, "set the clock", "here it is", "GMT, there")
    assert not place.events.of(Retrying)


# -- listings that do not tell the truth


async def test_reading_asks_for_no_listing(place: S3Place) -> None:
    await place.up()
    place.fake.requests.clear()

    assert await place.down() == TREE
    assert (await place.syncer.verify(LOCATION)).ok
    assert "ListObjectsV2" not in place.fake.operations


@pytest.mark.parametrize("lag", [1, 3, 1000])
async def test_a_listing_that_lags_decides_nothing(lag: int, place: S3Place) -> None:
    place.fake.list_lag = lag

    await place.up()
    await place.check()
    assert await place.down() == TREE
    await place.syncer.sync_up(await place.make(NEW), LOCATION, replace=True)
    await place.check(NEW)
    await place.syncer.delete(LOCATION)

    assert place.held() == {}


async def test_a_foreign_file_that_no_listing_shows_is_kept(place: S3Place) -> None:
    place.fake.put(place.key("a"), b"theirs")
    place.fake.on("ListObjectsV2", omit_keys(place.key("a")), times=None)

    with raises(ClashError) as caught:
        await place.up()

    assert one_line(caught.value, "run/ckpt_7", ": a;")
    assert place.held() == {"a": b"theirs"}


@pytest.mark.parametrize(
    "effect",
    [repeat_page(), loop_pages(), truncated_xml(), answer(200, body=b"<html>")],
    ids=["repeats", "loops", "cut off", "a page"],
)
async def test_nothing_is_deleted_by_a_listing_that_makes_no_sense(
    effect: Effect, place: S3Place
) -> None:
    place.fake.page_size = 2
    await place.up()
    before = place.held()
    place.fake.on("ListObjectsV2", effect, at=2, times=None)

    with raises(AsyncSyncError) as caught:
        await place.syncer.delete(LOCATION)

    assert one_line(caught.value, "s3://bucket/run/ckpt_7")
    assert place.held() == before
    await place.check()


async def test_a_listing_that_omits_files_keeps_none_of_them_from_being_deleted(
    place: S3Place,
) -> None:
    await place.up()
    place.fake.on("ListObjectsV2", omit_keys(place.key("a"), place.key("big")), times=None)

    await place.syncer.delete(LOCATION)

    assert place.held() == {}


# -- objects that change while they are read


async def test_a_tree_that_is_replaced_between_two_ranges_is_read_again(
    place: S3Place,
) -> None:
    await place.up()
    place.fake.faults.append(place.fault(await place.replaced(NEW), "GetObject", "big", at=3))

    assert await place.down() == NEW


@pytest.mark.parametrize("heeds", [True, False], ids=["412", "another tag"])
async def test_an_object_that_others_replace_between_two_ranges_is_damage(
    heeds: bool, place: S3Place
) -> None:
    await place.up()
    place.fake.heeds_conditions = heeds
    there = place.fake.objects["bucket"][place.key("big")].data

    def replace(request: Request) -> None:
        place.fake.put(place.key("big"), there[::-1])

    place.fake.faults.append(place.fault(call(replace, "early"), "GetObject", "big", at=3))

    with raises(IntegrityError) as caught:
        await place.down()

    assert one_line(caught.value, "big", "run/ckpt_7")
    assert not (place.tmp_path / "restored").exists()


# -- regions, buckets, deleting


@pytest.mark.parametrize("status", [301, 307, 400])
async def test_a_bucket_in_another_region_is_named_by_the_first_request(
    status: int, place: S3Place
) -> None:
    code = "AuthorizationHeaderMalformed" if status == 400 else "PermanentRedirect"
    there = {"x-amz-bucket-region": "eu-west-1"}
    place.fake.on(None, answer(status, code, headers=there), times=None)

    with raises(ConfigError) as caught:
        await place.up()

    assert one_line(caught.value, "s3://bucket/", "eu-west-1", "?region=eu-west-1")
    assert len(place.fake.requests) <= 2


async def test_where_deleting_is_not_allowed_a_delete_says_so_and_the_tree_stays(
    place: S3Place,
) -> None:
    await place.up()
    place.fake.on("DeleteObject", access_denied(), times=None)

    with raises(AccessDeniedError) as caught:
        await place.syncer.delete(LOCATION)

    assert one_line(caught.value, "delete", "run/ckpt_7", "policy")
    place.fake.faults.clear()
    assert await place.down() == TREE
