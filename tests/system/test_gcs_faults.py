"""Syncs with a Cloud Storage that does something wrong: the tree ends whole or not there at all."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncsync.errors import (
    AccessDeniedError,
    ConfigError,
    ConflictError,
    IntegrityError,
    RefusedError,
    TransientError,
)
from asyncsync.events import Retrying
from asyncsync.names import ATTEMPT, MANIFEST
from asyncsync.storage.gcs import connection
from asyncsync.storage.http import Http
from asyncsync.storage.parts import MAX_KEY_BYTES
from asyncsync.syncing import Receipt, StorageSyncer

from ..fakes.gcs import FakeGcs, Fault, omit_items, repeat_items, wrong_crc32c, wrong_size
from ..fakes.gcs_calls import Seen
from .gcs_place import CHUNK, GRANULE, LOCATION, TREE, GcsPlace, gcs_place, use_small_chunks
from .s3_place import Hurry, one_line, raises

pytestmark = pytest.mark.one_loop

NEW = {"a": b"ONE", "d/b": b"two", "big": TREE["big"][::-1]}
STALL_S = 0.2


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_chunks(monkeypatch)


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GcsPlace]:
    async with gcs_place(tmp_path, monkeypatch) as place:
        yield place


def use_short_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "Http", partial(Http, stall_s=STALL_S))


WHOLE = f"bytes 0-{CHUNK - 1}/{CHUNK}"
REST = f"bytes {GRANULE}-{CHUNK - 1}/{CHUNK}"


def asked(place: GcsPlace) -> list[Seen]:
    """The questions how much the server holds of the part."""
    of_part = f"bytes */{CHUNK}"
    return [r for r in place.fake.requests if r.headers.get("Content-Range") == of_part]


def sessions(place: GcsPlace) -> int:
    """How many were opened for the part; one more was for the marker of its upload."""
    return place.fake.count("start") - 1


# -- resumable uploads (faults 140 to 144)


async def test_what_the_server_holds_of_a_chunk_is_not_sent_again(place: GcsPlace) -> None:
    place.part_fault("chunk", keep=GRANULE)

    await place.up()

    assert place.chunks() == [WHOLE, REST]
    assert not place.events.of(Retrying)
    await place.check()


async def test_an_answer_without_a_range_has_the_server_asked_what_it_holds(
    place: GcsPlace,
) -> None:
    place.part_fault("chunk", keep=GRANULE, bare=True)

    await place.up()

    assert place.chunks() == [WHOLE, REST]
    assert len(asked(place)) == 1
    await place.check()


async def test_a_server_that_keeps_nothing_of_a_chunk_gets_it_again(place: GcsPlace) -> None:
    place.part_fault("chunk", keep=0, bare=True)

    await place.up()

    assert place.chunks() == [WHOLE, WHOLE]
    await place.check()


async def test_a_server_that_never_keeps_anything_is_an_error_in_the_end(place: GcsPlace) -> None:
    place.part_fault("chunk", keep=0, times=None)

    with raises(TransientError) as caught:
        await place.up()

    assert one_line(caught.value, "gs://bucket/run/ckpt_7/big", "keeps no more than 0 bytes")
    assert MANIFEST not in place.held()
    place.fake.faults.clear()
    await place.up()
    await place.check()


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("operation", ["chunk", "status"])
async def test_a_session_that_is_over_is_followed_by_another_one(
    operation: str, status: int, place: GcsPlace
) -> None:
    if operation == "status":
        place.part_fault("chunk", keep=GRANULE, drop=True)
    place.part_fault(operation, expire=status)

    await place.up()

    assert sessions(place) == 2
    assert place.chunks() == [WHOLE, WHOLE]
    await place.check()


async def test_a_server_whose_sessions_all_end_early_is_an_error_and_no_obstacle(
    place: GcsPlace,
) -> None:
    place.part_fault("chunk", expire=410, times=None)

    with raises(TransientError) as caught:
        await place.up()

    assert one_line(caught.value, "gs://bucket/run/ckpt_7/big", "sessions before their time")
    assert MANIFEST not in place.held()

    place.fake.faults.clear()
    await place.up()
    await place.check()


@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_after_an_error_of_the_server_a_chunk_goes_on_where_it_was(
    status: int, place: GcsPlace
) -> None:
    place.part_fault("chunk", status=status, headers={"Retry-After": "7"}, keep=GRANULE)

    await place.up()

    assert place.chunks() == [WHOLE, REST]
    assert sessions(place) == 1
    assert place.clock.waits.count(7.0) == 1
    await place.check()


async def test_a_chunk_whose_connection_breaks_goes_on_where_it_was(place: GcsPlace) -> None:
    place.part_fault("chunk", drop=True, keep=GRANULE)

    await place.up()

    assert place.chunks() == [WHOLE, REST]
    assert sessions(place) == 1
    await place.check()


async def test_a_chunk_that_breaks_again_and_again_makes_progress_all_the_same(
    place: GcsPlace,
) -> None:
    for at in (1, 2, 3):
        place.part_fault("chunk", at=at, drop=True, keep=GRANULE if at == 2 else 0)

    await place.up()

    assert place.chunks() == [WHOLE, WHOLE, REST, REST]
    await place.check()


async def test_when_the_last_answer_is_lost_the_server_is_asked_and_nothing_sent_again(
    place: GcsPlace,
) -> None:
    place.part_fault("chunk", lost=True)

    await place.up()

    assert place.chunks() == [WHOLE]
    assert [seen.status for seen in asked(place)] == [200]
    await place.check()


@pytest.mark.parametrize("alter", [wrong_crc32c, wrong_size])
@pytest.mark.parametrize("operation", ["chunk", "status"])
async def test_a_part_that_was_not_kept_as_sent_is_deleted_and_sent_again(
    operation: str, alter: Callable[[Any], Any], place: GcsPlace
) -> None:
    if operation == "status":
        place.part_fault("chunk", lost=True)
    place.part_fault(operation, alter=alter)

    await place.up()

    deleted = next(seen for seen in place.fake.requests if seen.operation == "delete")
    assert deleted.name.endswith("/00001")
    assert deleted.query["ifGenerationMatch"]
    assert place.chunks() == [WHOLE, WHOLE]
    assert [event.attempt for event in place.events.of(Retrying)] == [1]
    await place.check()


@pytest.mark.parametrize("alter", [wrong_crc32c, wrong_size])
@pytest.mark.parametrize(
    ("operation", "path"),
    [("media", "a"), ("media", MANIFEST), ("media", ATTEMPT), ("compose", "big")],
)
async def test_an_object_that_was_not_kept_as_sent_is_deleted_and_sent_again(
    operation: str, path: str, alter: Callable[[Any], Any], place: GcsPlace
) -> None:
    place.fault(operation, path, alter=alter)

    await place.up()

    assert place.events.of(Retrying)
    assert place.count(operation, path) >= 2
    await place.check()


# -- every request, broken off or refused once


WRITES = ["media", "start", "chunk", "compose"]


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("operation", [*WRITES, "delete", "list", "read"])
@pytest.mark.parametrize("at", [1, 2])
async def test_a_connection_that_breaks_before_or_after_any_request_does_no_harm(
    at: int, operation: str, done: bool, place: GcsPlace
) -> None:
    place.fake.faults.append(Fault(operation, at=at, drop=not done, lost=done))

    await place.up()

    await place.check()


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("operation", [*WRITES, "list", "read"])
async def test_an_error_of_the_server_is_retried_after_the_time_it_names(
    operation: str, status: int, place: GcsPlace
) -> None:
    place.fake.faults.append(Fault(operation, status=status, times=3, headers={"Retry-After": "7"}))

    await place.up()

    assert place.clock.waits.count(7.0) == min(3, place.fake.count(operation))
    await place.check()


@pytest.mark.parametrize("operation", ["media", "chunk", "compose"])
async def test_an_error_of_the_server_that_stays_is_one_line_after_some_tries(
    operation: str, place: GcsPlace
) -> None:
    page = "<html><body>Bad Gateway</body></html>"
    place.fake.faults.append(Fault(operation, status=502, body=page, times=None))

    with raises(TransientError) as caught:
        await place.up()

    assert one_line(caught.value, "gs://bucket/run/ckpt_7", "502")
    assert "html" not in str(caught.value)
    assert MANIFEST not in place.held()
    place.fake.faults.clear()
    await place.up()
    await place.check()


# -- reading


@pytest.mark.parametrize(
    "effect",
    [{"drop": True}, {"lost": True}, {"truncate": 100}, {"truncate": 0}, {"flip": 12}],
    ids=str,
)
@pytest.mark.parametrize("path", ["a", "big", MANIFEST])
async def test_an_answer_that_breaks_off_or_changes_on_the_way_is_asked_for_again(
    path: str, effect: dict[str, Any], place: GcsPlace
) -> None:
    await place.up()
    place.fault("read", path, **effect)

    assert await place.down() == TREE


async def test_an_answer_that_stops_is_given_up_and_asked_for_again(
    place: GcsPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_short_stalls(monkeypatch)
    await place.up()
    place.fault("read", "big", stall=1000)

    assert await place.down() == TREE
    assert len(place.events.of(Retrying)) == 1


async def test_a_request_that_nobody_answers_is_sent_again(
    place: GcsPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_short_stalls(monkeypatch)
    place.fault("media", "a", stall=0)

    await place.up()

    assert [event.reason.partition(": ")[2] for event in place.events.of(Retrying)] == [
        f"hardly anything moved for {STALL_S:g} s"
    ]
    await place.check()


async def test_bytes_that_are_damaged_every_time_become_an_error_and_nothing_visible(
    place: GcsPlace,
) -> None:
    await place.up()
    place.fault("read", "big", flip=80, times=None)

    with raises(IntegrityError) as caught:
        await place.down()

    assert one_line(caught.value, "big")
    assert not (place.tmp_path / "restored").exists()
    assert [path for path, _ in (await place.syncer.verify(LOCATION)).failures] == ["big"]


async def test_an_object_kept_as_gzip_is_read_as_it_is_kept(place: GcsPlace) -> None:
    packed = {"a.gz": gzip.compress(b"x" * 1000), "b": b"plain"}
    await place.up(packed)
    place.fake.put(place.key("a.gz"), packed["a.gz"], content_encoding="gzip")

    assert await place.down() == packed
    assert (await place.syncer.verify(LOCATION)).ok


async def test_a_tree_that_is_replaced_between_two_ranges_is_never_mixed(place: GcsPlace) -> None:
    await place.up()

    def replace(_: int) -> None:
        place.fake.put(place.key("big"), NEW["big"])

    place.fault("read", "big", at=2, before=replace)

    with raises(IntegrityError) as caught:
        await place.down()

    assert one_line(caught.value, "big")
    assert not (place.tmp_path / "restored").exists()


# -- what stands between us and the server


@pytest.mark.parametrize("operation", ["media", "list", "start", "chunk", "compose"])
async def test_a_captive_page_is_never_taken_for_an_answer(operation: str, place: GcsPlace) -> None:
    place.fake.faults.append(Fault.captive(operation))

    with raises(ConfigError) as caught:
        await place.up()

    assert one_line(caught.value, "gs://bucket/run/ckpt_7", "login page")
    assert not place.events.of(Retrying)
    assert MANIFEST not in place.held()
    place.fake.faults.clear()
    await place.up()
    await place.check()


@pytest.mark.parametrize("operation", ["up", "down", "verify", "delete"])
async def test_behind_a_captive_page_nothing_is_there(operation: str, place: GcsPlace) -> None:
    place.fake.faults.append(Fault.captive())

    with raises(ConfigError) as caught:
        await place.act(operation)

    assert one_line(caught.value, "gs://bucket/run/ckpt_7", "STORAGE_EMULATOR_HOST", "login page")
    assert len(place.fake.requests) <= 3
    assert not (place.tmp_path / "restored").exists()


@pytest.mark.parametrize("operation", ["media", "list", "chunk", "read"])
@pytest.mark.parametrize("status", [301, 307])
async def test_a_redirect_is_an_error_and_the_other_host_hears_nothing(
    status: int, operation: str, place: GcsPlace
) -> None:
    async with FakeGcs() as other:
        headers = {"Location": f"{other.url}/storage/v1/b/bucket/o"}
        place.fake.faults.append(Fault(operation, status=status, headers=headers, times=None))

        with raises(ConfigError) as caught:
            await place.up()

        assert other.requests == []
    assert one_line(caught.value, "gs://bucket/run/ckpt_7", "endpoint")


@pytest.mark.parametrize("operation", ["up", "down", "verify", "delete"])
async def test_a_server_that_cannot_be_reached_is_named_after_seven_tries(
    operation: str, place: GcsPlace
) -> None:
    await place.fake.aclose()

    with raises(TransientError) as caught:
        await place.act(operation)

    assert one_line(caught.value, "gs://bucket/run/ckpt_7", "cannot connect")
    assert caught.value.attempts == 7


# -- what people get wrong


@pytest.mark.parametrize("path", ["d/b", "big", MANIFEST])
async def test_access_denied_on_one_object_names_it_on_the_way_up_and_down(
    path: str, place: GcsPlace
) -> None:
    place.fake.denied.add(place.key(path))
    with raises(AccessDeniedError) as caught:
        await place.up()
    assert one_line(caught.value, f"gs://bucket/run/ckpt_7/{path}", "role")
    assert MANIFEST not in place.held()

    place.fake.denied.clear()
    await place.up()
    place.fake.denied.add(place.key(path))

    with raises(AccessDeniedError) as caught:
        await place.down()
    assert one_line(caught.value, f"gs://bucket/run/ckpt_7/{path}", "role")
    assert not (place.tmp_path / "restored").exists()


async def test_a_key_too_long_for_its_parts_is_refused_before_anything_moves(
    place: GcsPlace,
) -> None:
    deep = "/".join(["d" * 200] * 4) + "/" + "x" * 180
    source = await place.make({"a": b"1", deep: b"2"})

    with raises(RefusedError) as caught:
        await place.syncer.sync_up(source, LOCATION)

    assert f"{MAX_KEY_BYTES} is the limit" in str(caught.value)
    assert caught.value.paths == (deep,)
    assert place.held() == {}


# -- what others do


async def test_nothing_is_deleted_by_a_listing_that_repeats_itself(place: GcsPlace) -> None:
    await place.up()
    before = place.held()
    place.fake.faults.append(Fault("list", alter=repeat_items, times=None))

    with raises(IntegrityError) as caught:
        await place.syncer.delete(LOCATION)

    assert one_line(caught.value, "gs://bucket/run/ckpt_7", "repeats itself")
    assert place.held() == before
    await place.check()


async def test_a_listing_that_omits_files_keeps_none_of_them_from_being_deleted(
    place: GcsPlace,
) -> None:
    await place.up()
    place.fake.faults.append(Fault("list", alter=omit_items, times=None))

    await place.syncer.delete(LOCATION)

    assert place.held() == {}


async def test_reading_asks_for_no_listing(place: GcsPlace) -> None:
    await place.up()
    before = place.fake.count("list")

    assert await place.down() == TREE
    assert (await place.syncer.verify(LOCATION)).ok
    assert place.fake.count("list") == before


# -- conditions and two writers


class Patient(Hurry):
    """A clock on which every wait for others ends when `over` is set: whoever else writes is done.

    A wait until a file that was just written looks old enough is a short one.
    """

    def __init__(self, over: anyio.Event) -> None:
        super().__init__()
        self._over = over

    async def sleep(self, seconds: float) -> None:
        if seconds > 1:
            await self._over.wait()
        await super().sleep(seconds)


@pytest.mark.parametrize("ahead", range(4))
async def test_of_two_writers_one_commits_and_the_other_is_told_which(
    ahead: int, place: GcsPlace
) -> None:
    receipts, conflicts = list[Receipt](), list[ConflictError]()
    one, two = await place.make(TREE, "one"), await place.make(NEW, "two")
    begun, over = anyio.Event(), anyio.Event()
    place.fake.faults.append(Fault(at=1 + 2 * ahead, before=lambda _: begun.set()))

    async def write(source: Path) -> None:
        async with StorageSyncer(isolation="loop", clock=Patient(over)) as syncer:
            try:
                receipts.append(await syncer.sync_up(source, LOCATION))
            except ConflictError as exc:
                conflicts.append(exc)
            over.set()

    async with anyio.create_task_group() as group:
        group.start_soon(write, one)
        await begun.wait()
        group.start_soon(write, two)

    assert len(receipts) == len(conflicts) == 1
    assert conflicts[0].winner == receipts[0].identity
    await place.check(TREE if place.held()["a"] == TREE["a"] else NEW)


# -- tokens (fault 147)


@pytest.fixture
def guarded(place: GcsPlace, monkeypatch: pytest.MonkeyPatch) -> GcsPlace:
    """The server wants tokens, and gives them to those who have its credentials.

    A location cannot name another server than Google's that wants credentials; here every one does.
    """
    place.fake.tokens = set()
    file = place.tmp_path / "credentials.json"
    file.write_text(json.dumps(place.fake.credentials()))
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    monkeypatch.setattr(connection, "_ROOT", place.fake.url)
    return place


async def test_one_token_is_fetched_for_all_requests(guarded: GcsPlace) -> None:
    await guarded.up()

    assert len(guarded.fake.issued) == 1
    assert (await guarded.syncer.verify(LOCATION)).ok


@pytest.mark.parametrize("operation", ["media", "start", "compose", "delete", "list"])
async def test_a_token_that_is_refused_in_the_middle_is_renewed_once(
    operation: str, guarded: GcsPlace
) -> None:
    guarded.fake.faults.append(Fault(operation, status=401))

    await guarded.up()

    assert len(guarded.fake.issued) == 2


async def test_tokens_that_have_expired_when_they_come_are_an_error_at_once(
    guarded: GcsPlace,
) -> None:
    guarded.fake.issue_expired = True

    with raises(AccessDeniedError) as caught:
        await guarded.up()

    assert one_line(caught.value, "gs://bucket/run/ckpt_7", "expired", "gcloud auth")
    assert len(guarded.fake.requests) <= 8
    guarded.fake.issue_expired = False
    await guarded.up()
    assert (await guarded.syncer.verify(LOCATION)).ok


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_credentials_that_are_refused_are_an_error_at_once(
    status: int, guarded: GcsPlace
) -> None:
    guarded.fake.faults.append(Fault("token", status=status, times=None))

    with raises(AccessDeniedError) as caught:
        await guarded.up()

    assert one_line(caught.value, "credentials", str(status), "GOOGLE_APPLICATION_CREDENTIALS")
    assert guarded.fake.count("token") == len(guarded.fake.requests) == 1
    guarded.fake.faults.clear()
    await guarded.up()
    assert (await guarded.syncer.verify(LOCATION)).ok


async def test_a_token_server_that_is_down_is_asked_again(guarded: GcsPlace) -> None:
    down = [("token", 503), ("read", 401)]
    guarded.fake.faults.append(Fault("token", status=503, times=3))
    await guarded.up()
    assert guarded.fake.count("token") == 4

    guarded.fake.faults += [Fault(kind, status=status, times=None) for kind, status in down]
    with raises(TransientError) as caught:
        await guarded.syncer.verify(LOCATION)

    assert one_line(caught.value, "no token for Google Cloud Storage yet (503)")


async def test_tokens_that_end_in_the_middle_of_a_sync_are_renewed_before(
    guarded: GcsPlace,
) -> None:
    guarded.fake.token_expires_in_s = 1
    guarded.fake.faults += [
        Fault("media", status=503, headers={"Retry-After": "60"}, at=at) for at in (2, 4)
    ]

    await guarded.up()

    assert len(guarded.fake.issued) == 3
    assert all(seen.status != 401 for seen in guarded.fake.requests)


@pytest.mark.parametrize("text", ["", "{}", "{'a'", "[1]", '{"type": "odd"}'])
async def test_a_file_that_holds_no_credentials_is_named(text: str, guarded: GcsPlace) -> None:
    (guarded.tmp_path / "credentials.json").write_text(text)

    with raises(AccessDeniedError) as caught:
        await guarded.up()

    assert one_line(caught.value, "credentials", "GOOGLE_APPLICATION_CREDENTIALS")
    assert guarded.fake.requests == []


# -- cancellation


@pytest.mark.parametrize("at", [1, 3, 5, 7, 9, 11, 13, 15])
async def test_after_a_sync_that_is_cancelled_the_next_one_leaves_no_temporary_objects(
    at: int, place: GcsPlace
) -> None:
    cancelled = False
    with anyio.CancelScope() as scope:

        def cancel(number: int) -> None:
            if number == at:
                scope.cancel()

        place.fake.faults.append(Fault(times=None, before=cancel))
        await place.up()
    cancelled = scope.cancelled_caught

    assert cancelled or MANIFEST in place.held()
    await place.up()
    await place.check()


async def test_temporary_objects_of_a_writer_that_died_go_with_the_next_commit(
    place: GcsPlace,
) -> None:
    """Every request fails from then on, so nothing could be tidied."""
    place.fake.faults.append(Fault("compose", before=dead_from(place)))
    with raises(TransientError):
        await place.up()
    assert [path for path in place.held() if "-parts-" in path]
    place.fake.faults.clear()

    await place.up()

    await place.check()


def dead_from(place: GcsPlace) -> Callable[[int], None]:
    """For `Fault.before`: no request is answered any more."""
    return lambda _: place.fake.faults.append(Fault(times=None, drop=True))
