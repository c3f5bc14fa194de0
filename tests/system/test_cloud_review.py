"""Whole syncs with clouds whose answers are right and unusual."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from asyncsync.errors import (
    BusyError,
    ClashError,
    NotFoundError,
    RefusedError,
    TransientError,
)
from asyncsync.events import Retrying
from asyncsync.names import ATTEMPT, MANIFEST
from asyncsync.storage.committed import record
from asyncsync.syncing import StorageSyncer

from ..fakes.gcs import Fault as GcsFault
from ..fakes.s3_faults import Effect, answer, call, lose_answer, write
from ..fakes.s3_wire import Reply, Request
from . import gcs_place
from .s3_place import (
    LOCATION,
    TREE,
    Hurry,
    S3Place,
    one_line,
    raises,
    s3_place,
    use_small_chunks,
)

pytestmark = pytest.mark.one_loop

NEW = {"a": b"ONE", "c": b"three"}


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Place]:
    use_small_chunks(monkeypatch)
    async with s3_place(tmp_path, monkeypatch) as place:
        yield place


# -- what was to be replaced is gone: 404, and not 412


def vanishing(place: S3Place) -> Effect:
    """The key goes away before it is replaced."""
    return call(lambda request: place.fake.objects["bucket"].pop(request.key))


async def test_a_record_that_is_gone_at_once_is_written_anew(place: S3Place) -> None:
    await place.up()
    place.fake.faults.append(place.fault(vanishing(place), "PutObject", ATTEMPT, at=2))

    await place.syncer.sync_up(await place.make(NEW, "new"), LOCATION, replace=True)

    await place.check(NEW)


async def test_a_record_that_is_gone_later_means_that_somebody_else_has_written(
    place: S3Place,
) -> None:
    await place.up()
    place.fake.faults.append(place.fault(vanishing(place), "PutObject", ATTEMPT, at=3))

    with raises(BusyError) as caught:
        await place.syncer.sync_up(await place.make(NEW, "new"), LOCATION, replace=True)

    assert one_line(caught.value, "another sync has begun to write s3://bucket/run/ckpt_7")
    await place.check()


async def test_the_same_command_started_twice_tells_the_slower_one(place: S3Place) -> None:
    """The second is the same writer: it takes over, commits and has gone by the next request."""
    await place.up({"a": b"1", "z": b"1"})
    source = await place.make(TREE, "new")

    async def second(_: Request) -> None:
        async with StorageSyncer(clock=Hurry(), isolation="loop") as other:
            await other.sync_up(source, LOCATION, replace=True)

    place.fake.on("UploadPart", call(second))
    with raises(BusyError) as caught:
        await place.syncer.sync_up(source, LOCATION, replace=True)

    assert one_line(caught.value, "another sync has begun to write", "try again")
    assert (await place.syncer.verify(LOCATION)).ok


async def test_of_two_deletions_at_once_the_slower_one_is_told(place: S3Place) -> None:
    await place.up()

    async def second(_: Request) -> None:
        clock = Hurry()
        async with StorageSyncer(clock=clock, isolation="loop") as other:
            with pytest.raises(BusyError):
                await other.delete(LOCATION)
            await clock.sleep(61)
            await other.delete(LOCATION)

    place.fake.faults.append(place.fault(call(second), "PutObject", ATTEMPT, at=2))
    with raises(NotFoundError) as caught:
        await place.syncer.delete(LOCATION)

    assert one_line(caught.value, "nothing at s3://bucket/run/ckpt_7")
    assert place.held() == {}


async def test_a_commit_that_is_gone_when_it_is_replaced_is_written_anew(place: S3Place) -> None:
    first = await place.make({"a": b"0", "z": b"1"}, "first")
    await place.syncer.sync_up(first, LOCATION, kind="rolling")
    await to_thread.run_sync((first / "a").write_bytes, b"1")
    place.fake.faults.append(place.fault(vanishing(place), "PutObject", MANIFEST))

    await place.syncer.sync_up(first, LOCATION)

    await place.check({"a": b"1", "z": b"1"})


async def test_a_deletion_whose_answer_got_lost_meets_its_own_success(place: S3Place) -> None:
    """Servers that say of a key that is gone that it is another version."""
    await place.up()

    def hook(request: Request) -> Effect | None:
        if request.operation != "DeleteObject" or "If-Match" not in request.headers:
            return None
        there = request.key in place.fake.objects["bucket"]
        return lose_answer() if there else answer(412, "PreconditionFailed")

    place.fake.hook = hook
    await place.syncer.delete(LOCATION)

    assert place.held() == {}
    assert len(place.events.of(Retrying)) >= 2


# -- a record that is large


@pytest.fixture
def left_behind(place: S3Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of a sync that broke off, longer than one range."""
    left = record.Record(kind="write", attempt="1" * 24, paths=frozenset({"a"}), released=True)
    place.fake.put(place.key(ATTEMPT), msgspec.json.encode(left))
    monkeypatch.setattr(record, "_RANGE_BYTES", 50)


@pytest.mark.usefixtures("left_behind")
async def test_a_large_record_is_read_in_ranges(place: S3Place) -> None:
    await place.up()

    reads = [
        r for r in place.fake.requests if (r.operation, r.key) == ("GetObject", place.key(ATTEMPT))
    ]
    assert {r.headers.get("Range", "")[:12] for r in reads} >= {"bytes=0-49", "bytes=50-99"}
    await place.check()


@pytest.mark.usefixtures("left_behind")
async def test_a_record_that_is_rewritten_while_it_is_read_is_read_again(place: S3Place) -> None:
    place.fake.faults.append(
        place.fault(answer(412, "PreconditionFailed"), "GetObject", ATTEMPT, at=2)
    )

    await place.up()

    assert not place.events.of(Retrying)
    await place.check()


@pytest.mark.usefixtures("left_behind")
async def test_a_record_that_never_holds_still_is_left_alone(place: S3Place) -> None:
    def hook(request: Request) -> Effect | None:
        of_record = request.operation == "GetObject" and request.key == place.key(ATTEMPT)
        wanted = of_record and "If-Match" in request.headers
        return answer(412, "PreconditionFailed") if wanted else None

    place.fake.hook = hook
    with raises(BusyError) as caught:
        await place.up()

    assert one_line(caught.value, "s3://bucket/run/ckpt_7", "faster than it can be read")


# -- answers that take long, or say nothing


async def test_an_upload_that_takes_long_to_complete_is_waited_for(
    place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the server shows by white space that it is at work."""
    loop, passed_s = asyncio.get_running_loop(), 0.0
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: real() + passed_s)

    async def deliver(request: Request, reply: Reply) -> None:
        nonlocal passed_s
        declaration, end, document = reply.body.partition(b"?>")
        write(request, reply.head(length=False) + declaration + end)
        for _ in range(8):
            for _ in range(50):  # until it has arrived; nothing tells
                await checkpoint()
            passed_s += 50.0
            write(request, b" ")
        write(request, document)

    async def slow(_: Request, reply: Reply) -> None:
        reply.delivery = deliver

    place.fake.on("CompleteMultipartUpload", Effect(change=slow))
    await place.up({"big": TREE["big"]})

    assert place.count("CompleteMultipartUpload") == 1
    assert not place.events.of(Retrying)
    await place.check({"big": TREE["big"]})


async def test_a_listing_without_a_word_is_no_empty_place(place: S3Place) -> None:
    await place.up()
    place.fake.on("ListObjectsV2", answer(200, body=b""), times=None)

    with raises(TransientError) as caught:
        await place.syncer.latest("s3://bucket/run")

    assert one_line(caught.value, "list s3://bucket/run", "the answer has no body")


@pytest.mark.parametrize("wait", ["31536000", "²"], ids=["a year", "no number"])
async def test_a_wait_that_makes_no_sense_is_not_taken_over(
    wait: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gcs_place.gcs_place(tmp_path, monkeypatch) as place:
        place.fake.faults.append(GcsFault("*", at=3, status=503, headers={"Retry-After": wait}))
        await place.up()

        assert len(place.events.of(Retrying)) == 1
        assert max(place.clock.waits) <= 300
        await place.check()


# -- limits, and what the bucket says


async def test_a_file_of_too_many_parts_is_refused_before_anything_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with s3_place(tmp_path, monkeypatch) as place:
        source = await place.make({"a": b"1", "big": b""})
        await to_thread.run_sync(os.truncate, source / "big", 157 * 2**30)
        with raises(RefusedError) as caught:
            await place.syncer.sync_up(source, LOCATION)

        assert one_line(caught.value, "big", "10000 parts")
        assert {r.method for r in place.fake.requests} == {"GET"}


async def test_a_good_lifecycle_rule_is_told(place: S3Place) -> None:
    place.fake.lifecycle = (
        "<Rule><Filter/><Status>Enabled</Status><AbortIncompleteMultipartUpload>"
        "<DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>"
    )
    found = await place.syncer.probe("s3://bucket/run")

    assert "a lifecycle rule aborts" in " ".join(found.capabilities.notes)


# -- what was sent and not waited for


async def turns(count: int) -> None:
    for _ in range(count):
        await checkpoint()


async def test_a_manifest_that_arrives_after_it_was_given_up_finds_its_files(
    place: S3Place,
) -> None:
    """The server fails every PUT of the manifest, and acts on the first of them all the same."""
    sent = list[Request]()

    async def keep(request: Request) -> Reply:
        sent.append(request)
        return Reply(500)

    fault = place.fault(Effect(instead=keep), "PutObject", MANIFEST, times=None)
    place.fake.faults.append(fault)
    with raises(TransientError):
        await place.up()
    place.fake.faults.clear()
    place.fake.put(sent[0].key, sent[0].body)

    assert await place.down() == TREE
    await place.up()
    await place.check()


async def test_what_a_failed_sync_had_under_way_does_not_come_into_being_later(
    place: S3Place,
) -> None:
    """The server has a whole PUT when another file's fails, and acts on it long after that."""
    clash, acts = asyncio.Event(), list[asyncio.Future[None]]()

    async def tell(request: Request) -> None:
        clash.set()

    async def act(request: Request) -> None:
        await turns(1000)
        place.fake.put(request.key, request.body)

    async def late(request: Request) -> None:
        await clash.wait()
        try:
            await turns(1000)
        except asyncio.CancelledError:  # the client has gone, and a real server goes on
            acts.append(asyncio.ensure_future(act(request)))
            raise

    place.fake.put(place.key("a"), b"somebody's")
    place.fake.faults += [
        place.fault(call(tell, "early"), "GetObject", "a"),
        place.fault(Effect(instead=late), "PutObject", "c"),
    ]

    with raises(ClashError):
        await place.up(NEW)
    await asyncio.gather(*acts)

    assert place.count("PutObject", "c") == 1
    assert place.held() == {"a": b"somebody's"}
