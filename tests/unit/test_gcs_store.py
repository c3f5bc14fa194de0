"""GcsObjects against a Google Cloud Storage in memory that fails on demand."""

from __future__ import annotations

import base64
import gc
import gzip
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web
from anyio.lowlevel import checkpoint

from asyncsync.concurrency import Threads, each_bounded
from asyncsync.errors import (
    AccessDeniedError,
    AsyncSyncError,
    ConfigError,
    CorruptedError,
    IntegrityError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    RefusedError,
    SlowDownError,
    TransientError,
)
from asyncsync.storage.gcs import GcsObjects
from asyncsync.storage.gcs import connection as connection_module
from asyncsync.storage.gcs.answers import examined, failure, hash_of, stored
from asyncsync.storage.gcs.connection import _AsEncoded
from asyncsync.storage.http import Answer, Http
from asyncsync.storage.objects import Condition, Examined, ObjectStore, Part, Upload
from asyncsync.storage.parts import part_key
from asyncsync.testing import FakeClock, ObjectStoreContract
from asyncsync.units import MIB
from tests.fakes.gcs import FakeGcs, Fault, repeat_items, wrong_crc32c, wrong_size
from tests.unit.test_http import Connection, serving


class Sleepless(FakeClock):
    """A clock on which every wait is over at once."""

    def __init__(self) -> None:
        super().__init__()
        self.passed_s = 0.0

    def monotonic(self) -> float:
        return self.passed_s

    async def sleep(self, seconds: float) -> None:
        self.passed_s += seconds


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what a test gives."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
async def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeGcs]:
    """A server that wants a token, and credentials with which it gives one."""
    async with FakeGcs() as server:
        server.tokens = set()
        file = tmp_path / "credentials.json"
        file.write_text(json.dumps(server.credentials()))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        yield server


@asynccontextmanager
async def connected(
    url: str | None, *, clock: FakeClock | None = None, bucket: str = "bucket"
) -> AsyncIterator[GcsObjects]:
    threads = Threads(2)
    options = {} if url is None else {"endpoint_url": url}
    store = GcsObjects(
        bucket, options, threads=threads, clock=clock or Sleepless(), max_requests=16
    )
    try:
        yield store
    finally:
        await store.aclose()
        threads.close()


@pytest.fixture
async def gcs(fake: FakeGcs) -> AsyncIterator[GcsObjects]:
    async with connected(fake.url) as store:
        yield store


@pytest.fixture
async def emulated(fake: FakeGcs, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GcsObjects]:
    """The same server as an emulator, which asks for no token."""
    fake.tokens = None
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url.removeprefix("http://"))
    async with connected(None) as store:
        yield store


class TestGcs(ObjectStoreContract):
    @pytest.fixture
    async def store(self, gcs: GcsObjects) -> ObjectStore:
        return gcs


def some(size_bytes: int) -> bytes:
    return bytes(n % 251 for n in range(1000)) * (size_bytes // 1000 + 1)


def replacing(fake: FakeGcs, name: str, data: bytes) -> Callable[[int], None]:
    """For `Fault.before`: somebody else puts an object there."""

    def put(_: int) -> None:
        fake.put(name, data)

    return put


async def upload_of(
    store: GcsObjects, fake: FakeGcs, count: int, *, size_bytes: int = 3
) -> tuple[Upload, list[Part], bytes]:
    """An upload of `count` small parts; they are put into the server directly."""
    upload = await store.create_upload("k")
    parts, whole = [], b""
    for number in range(1, count + 1):
        data = b"%05d" % number + b"x" * (number % size_bytes)
        made = fake.put(part_key(upload, number), data)
        parts.append(Part(number, str(made.generation), len(data)))
        whole += data
    return upload, parts, whole


# ---------------------------------------------------------------- put


async def test_making_a_store_connects_to_nothing(gcs: GcsObjects, fake: FakeGcs) -> None:
    assert fake.requests == []


async def test_an_option_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="no option region"):
        GcsObjects("b", {"region": "x"}, threads=Threads(1), clock=FakeClock(), max_requests=1)


async def test_a_small_object_goes_in_one_request_with_its_checksum(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    await gcs.put("k", b"bytes")
    seen = fake.requests[-1]

    assert fake.count("media") == 1
    assert hash_of({"X-Goog-Hash": seen.headers["X-Goog-Hash"]}) == fake.objects["k"].crc32c


@pytest.mark.parametrize("alter", [wrong_crc32c, wrong_size])
async def test_an_object_that_was_not_kept_as_sent_is_removed(
    gcs: GcsObjects, fake: FakeGcs, alter: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    fake.faults.append(Fault(operation="media", alter=alter))

    with pytest.raises(CorruptedError, match="not what was sent"):
        await gcs.put("k", b"bytes")
    assert fake.objects == {}


async def test_removing_what_was_not_kept_as_sent_leaves_what_came_later(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    fake.faults += [
        Fault(operation="media", alter=wrong_crc32c),
        Fault(operation="delete", before=replacing(fake, "k", b"theirs")),
    ]

    with pytest.raises(CorruptedError):
        await gcs.put("k", b"bytes")
    assert fake.objects["k"].data == b"theirs"


async def test_bytes_that_changed_on_the_way_up_are_worth_another_try(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    message = json.dumps({"error": {"message": "Provided CRC32C does not match"}})
    fake.faults.append(Fault(operation="media", status=400, body=message))

    with pytest.raises(CorruptedError):
        await gcs.put("k", b"bytes")


async def test_a_large_object_that_breaks_off_is_continued(gcs: GcsObjects, fake: FakeGcs) -> None:
    data = some(9 * MIB)
    fake.faults.append(Fault(operation="chunk", keep=4 * MIB, drop=True))
    info = await gcs.put("k", data)

    assert fake.objects["k"].data == data
    assert info.tag == str(fake.objects["k"].generation)
    asked = [seen.operation for seen in fake.requests]
    assert asked == ["token", "start", "chunk", "status", "chunk"]
    assert fake.requests[-1].size_bytes == len(data) - 4 * MIB


async def test_a_large_object_whose_answer_got_lost_is_not_sent_again(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    data = some(9 * MIB)
    fake.faults.append(Fault(operation="chunk", lost=True))
    await gcs.put("k", data, condition=Condition(absent=True))

    assert fake.objects["k"].data == data
    assert fake.count("chunk") == 1


async def test_a_large_object_whose_session_ended_gets_another(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    data = some(9 * MIB)
    fake.faults += [Fault(operation="chunk", drop=True), Fault(operation="status", expire=410)]
    await gcs.put("k", data)

    assert fake.objects["k"].data == data
    assert fake.count("start") == 2


async def test_a_large_object_that_was_not_kept_as_sent_is_removed(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    fake.faults.append(Fault(operation="chunk", alter=wrong_crc32c))

    with pytest.raises(CorruptedError):
        await gcs.put("k", some(9 * MIB))
    assert fake.objects == {}


async def test_a_large_object_keeps_the_condition(gcs: GcsObjects, fake: FakeGcs) -> None:
    old = await gcs.put("k", b"old")
    fake.put("k", b"theirs")

    for condition in (Condition(absent=True), Condition(tag=old.tag)):
        with pytest.raises(PreconditionError):
            await gcs.put("k", some(9 * MIB), condition=condition)
    assert fake.count("chunk") == 0


async def test_a_name_that_the_service_does_not_take_is_refused_before(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    for key, error in (("two\nlines", RefusedError), ("k" * 1000, PermanentError)):
        with pytest.raises(error):
            await gcs.put(key, b"x")
        with pytest.raises(error):
            await gcs.create_upload(key)

    assert fake.requests == []


# ---------------------------------------------------------------- get


async def test_a_large_object_is_read_whole_without_a_buffer(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    data = some(17 * MIB)
    made = fake.put("k", data)
    found = await gcs.get("k", 5)

    assert found.data == data[5:]
    assert found.info.size_bytes == len(data)
    assert fake.count("read") == 2
    assert fake.requests[-1].query["ifGenerationMatch"] == str(made.generation)


async def test_an_object_replaced_between_two_ranges_is_noticed(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    fake.put("k", some(17 * MIB))
    fake.faults.append(Fault(operation="read", at=2, before=replacing(fake, "k", some(17 * MIB))))

    with pytest.raises(PreconditionError):
        await gcs.get("k")


async def test_an_object_that_grows_when_its_end_was_met_is_read_again(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    fake.put("k", b"01234")
    fake.faults.append(Fault(operation="get", before=replacing(fake, "k", b"0123456789")))
    with pytest.raises(TransientError, match="took its place"):
        await gcs.get("k", 5, 10)

    assert (await gcs.get("k", 5, 10)).data == b"56789"


async def test_an_answer_of_another_version_is_noticed_where_conditions_are_ignored(
    gcs: GcsObjects, fake: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fake.put("k", b"old")
    fake.put("k", b"new")
    monkeypatch.setattr("tests.fakes.gcs._check", lambda *_: None)

    for span in ((0, None), (5, 10), (1, 1)):
        with pytest.raises(PreconditionError):
            await gcs.get("k", *span, tag=str(old.generation))


async def test_an_object_kept_as_gzip_comes_as_it_is_kept(gcs: GcsObjects, fake: FakeGcs) -> None:
    packed = gzip.compress(b"text" * 100)
    fake.put("k", packed, content_encoding="gzip")

    assert (await gcs.get("k")).data == packed
    assert (await gcs.get("k", 3, 9)).data == packed[3:9]
    assert (await gcs.get("k")).info.size_bytes == len(packed)


async def test_bytes_that_changed_on_the_way_down_are_noticed(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    fake.put("k", some(2 * MIB))
    fake.faults.append(Fault(operation="read", flip=12345))

    with pytest.raises(CorruptedError, match="not those that are stored"):
        await gcs.get("k")


async def test_an_answer_that_ends_early_is_noticed(gcs: GcsObjects, fake: FakeGcs) -> None:
    fake.put("k", b"0123456789")
    fake.faults.append(Fault(operation="read", truncate=5))

    with pytest.raises(TransientError):
        await gcs.get("k")


@asynccontextmanager
async def answering(
    handler: Callable[[web.BaseRequest], web.Response], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[GcsObjects]:
    """A store whose server answers everything so."""

    async def serve(request: web.BaseRequest) -> web.Response:
        return handler(request)

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
    try:
        async with connected(None) as store:
            yield store
    finally:
        await runner.cleanup()


STORED_AS_GZIP = {"X-Goog-Generation": "1", "X-Goog-Stored-Content-Encoding": "gzip"}
OTHER_RANGE = {"X-Goog-Generation": "1", "Content-Range": "bytes 1-3/10"}
WHOLE = {"X-Goog-Generation": "1"}


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (200, STORED_AS_GZIP, b"text", "unpacked on the way"),
        (206, OTHER_RANGE, b"123", "other bytes than the range"),
        (206, WHOLE, b"012", "other bytes than the range"),
    ],
)
async def test_bytes_other_than_those_asked_for_are_refused(
    status: int,
    headers: dict[str, str],
    body: bytes,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = lambda _: web.Response(status=status, headers=headers, body=body)  # noqa: E731
    async with answering(answer, monkeypatch) as store:
        with pytest.raises(PermanentError, match=message):
            await store.get("k", 0, 3)


async def test_a_server_that_ignores_ranges_serves_only_who_wants_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = lambda _: web.Response(headers=WHOLE, body=b"0123456789")  # noqa: E731
    async with answering(answer, monkeypatch) as store:
        whole = await store.get("k", 0, 100)
        with pytest.raises(PermanentError, match="other bytes"):
            await store.get("k", 5, 10)
        with pytest.raises(PermanentError, match="other bytes"):
            await store.get("k", 0, 5)

    assert (whole.data, whole.info.size_bytes) == (b"0123456789", 10)


async def test_fewer_bytes_than_the_range_has_are_worth_another_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    headers = {"X-Goog-Generation": "1", "Content-Range": "bytes 0-4/10"}
    answer = lambda _: web.Response(status=206, headers=headers, body=b"012")  # noqa: E731
    async with answering(answer, monkeypatch) as store:
        with pytest.raises(TransientError, match="3 of 5 bytes"):
            await store.get("k", 0, 5)


# ---------------------------------------------------------------- delete


async def test_a_version_that_is_gone_cannot_be_replaced(gcs: GcsObjects, fake: FakeGcs) -> None:
    gone = Condition(tag=(await gcs.put("k", b"1")).tag)
    await gcs.delete("k")
    upload, parts, _ = await upload_of(gcs, fake, 2)

    with pytest.raises(PreconditionError):
        await gcs.put("k", b"2", condition=gone)
    with pytest.raises(PreconditionError):
        await gcs.put("k", bytes(9 * MIB), condition=gone)
    with pytest.raises(PreconditionError):
        await gcs.complete_upload(upload, parts, condition=gone)
    assert "k" not in fake.objects


async def test_deleting_a_version_that_goes_meanwhile_is_no_error(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    made = await gcs.put("k", b"x")
    fake.faults.append(Fault(operation="delete", status=412))
    fake.objects.clear()
    await gcs.delete("k", tag=made.tag)

    assert fake.count("get") == 1


# ---------------------------------------------------------------- listings


async def test_a_listing_has_pages(gcs: GcsObjects, fake: FakeGcs) -> None:
    keys = [f"d/{n:04}" for n in range(2100)]
    for key in keys:
        fake.put(key, b"")

    assert [info.key async for info in gcs.scan("d/")] == keys
    assert fake.count("list") == 3


async def test_a_listing_that_repeats_itself_is_an_error(gcs: GcsObjects, fake: FakeGcs) -> None:
    fake.put("k", b"")
    fake.faults.append(Fault(operation="list", alter=repeat_items))

    with pytest.raises(IntegrityError, match="repeats itself"):
        _ = [info async for info in gcs.scan("")]


async def test_a_listing_that_never_ends_is_an_error(gcs: GcsObjects, fake: FakeGcs) -> None:
    empty = {"kind": "storage#objects", "nextPageToken": base64.b64encode(b"again").decode()}
    fake.faults.append(Fault(operation="list", times=None, alter=lambda _: empty))

    with pytest.raises(IntegrityError, match="repeats itself"):
        _ = [info async for info in gcs.scan("")]


async def test_a_page_that_is_no_listing_is_not_an_empty_one(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    fake.faults.append(Fault(operation="list", alter=lambda _: {"status": "ok"}))

    with pytest.raises(ConfigError, match="not a Google Cloud Storage server"):
        _ = [info async for info in gcs.scan("")]


async def test_temporary_parts_show_up_only_as_uploads(gcs: GcsObjects, fake: FakeGcs) -> None:
    fake.put("d/a", b"x")
    upload = await gcs.create_upload("d/k")
    await gcs.put_part(upload, 1, b"x")

    assert [info.key async for info in gcs.scan("d/")] == ["d/a"]
    assert [info.key async for info in gcs.scan_level("d/")] == ["d/a"]
    assert [info.key async for info in gcs.scan_level("")] == ["d/"]
    assert [found async for found in gcs.scan_uploads("d/")] == [upload]
    assert [found async for found in gcs.scan_uploads("e/")] == []


# ---------------------------------------------------------------- multipart


@pytest.mark.parametrize("count", [1, 32, 33, 70])
async def test_any_number_of_parts_is_joined_and_nothing_stays(
    gcs: GcsObjects, fake: FakeGcs, count: int
) -> None:
    upload, parts, whole = await upload_of(gcs, fake, count)
    info = await gcs.complete_upload(upload, parts)

    assert fake.objects.keys() == {"k"}
    assert fake.objects["k"].data == whole
    assert (info.size_bytes, info.tag) == (len(whole), str(fake.objects["k"].generation))
    assert fake.count("compose") == (1 if count <= 32 else 1 + -(-count // 32))


@pytest.mark.slow
async def test_more_parts_than_two_levels_hold_are_joined(gcs: GcsObjects, fake: FakeGcs) -> None:
    upload, parts, whole = await upload_of(gcs, fake, 1100)
    await gcs.complete_upload(upload, parts)

    assert fake.objects.keys() == {"k"}
    assert fake.objects["k"].data == whole
    assert fake.count("compose") == 35 + 2 + 1


async def test_parts_that_are_not_named_are_left_out_and_removed(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    upload, parts, _ = await upload_of(gcs, fake, 3)
    await gcs.complete_upload(upload, [parts[0], parts[2]])

    assert fake.objects["k"].data == b"00001x00003"
    assert fake.objects.keys() == {"k"}


async def test_a_part_that_is_gone_is_named(gcs: GcsObjects, fake: FakeGcs) -> None:
    upload, parts, _ = await upload_of(gcs, fake, 3)
    await gcs.delete(part_key(upload, 2))

    with pytest.raises(NotFoundError, match="part 2 of k is not the one stored"):
        await gcs.complete_upload(upload, parts)
    assert "k" not in fake.objects


@pytest.mark.parametrize("alter", [wrong_crc32c, wrong_size])
async def test_parts_that_were_joined_wrongly_leave_nothing_and_can_be_joined_again(
    gcs: GcsObjects, fake: FakeGcs, alter: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    upload, parts, whole = await upload_of(gcs, fake, 3)
    fake.faults.append(Fault(operation="compose", alter=alter))
    with pytest.raises(CorruptedError):
        await gcs.complete_upload(upload, parts)
    between = "k" in fake.objects
    await gcs.complete_upload(upload, parts)

    assert not between
    assert fake.objects["k"].data == whole


async def test_a_part_replaced_while_it_is_joined_is_noticed(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    upload, parts, _ = await upload_of(gcs, fake, 3)
    name = part_key(upload, 2)
    fake.faults.append(Fault(operation="compose", before=replacing(fake, name, b"99999")))

    with pytest.raises(CorruptedError):
        await gcs.complete_upload(upload, parts)
    assert "k" not in fake.objects


async def test_joining_that_broke_off_is_finished_the_next_time(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    upload, parts, whole = await upload_of(gcs, fake, 70)
    fake.faults.append(Fault(operation="compose", at=2, status=503))
    with pytest.raises(SlowDownError):
        await gcs.complete_upload(upload, parts)
    found = [found async for found in gcs.scan_uploads("")]
    await gcs.complete_upload(upload, parts)

    assert found == [upload]
    assert fake.objects["k"].data == whole
    assert fake.objects.keys() == {"k"}


async def test_joining_whose_answer_got_lost_meets_its_own_success(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    upload, parts, whole = await upload_of(gcs, fake, 3)
    fake.faults.append(Fault(operation="compose", lost=True))
    with pytest.raises(TransientError):
        await gcs.complete_upload(upload, parts, condition=Condition(absent=True))
    with pytest.raises(PreconditionError):
        await gcs.complete_upload(upload, parts, condition=Condition(absent=True))

    assert fake.objects["k"].data == whole


async def test_a_cancelled_compose_leaves_no_connection_in_use() -> None:
    """The answer has begun when its caller is cancelled, and comes whole all the same."""
    scope, threads = anyio.CancelScope(), Threads(1)
    http = Http(max_connections=2)
    await http.open(threads)

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        scope.cancel()
        for _ in range(20):
            await checkpoint()
        await connection.say(b"{}")
        await connection.until_closed()

    async with serving(script) as server:
        session = _AsEncoded(http, 2)
        with scope:
            await session.post(f"{server.url}/o/x/compose", data=b"body")

        assert scope.cancelled_caught
        assert session._session.connector is not None
        assert not session._session.connector._acquired
        await session.aclose()
        await http.aclose()
    threads.close()


def sessions() -> list[aiohttp.ClientSession]:
    """Those of aiohttp that are open."""
    found = [o for o in gc.get_objects() if isinstance(o, aiohttp.ClientSession)]
    return [session for session in found if not session.closed]


async def test_connecting_again_after_a_failure_leaves_no_session_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    async with connected("http://127.0.0.1:9") as store:
        for _ in range(2):
            with pytest.raises(AccessDeniedError):
                await store.head("k")

    assert not sessions()


async def test_connecting_again_after_a_cancelled_attempt_leaves_no_session_open(
    fake: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.put("k", b"data")
    began, go, real = threading.Event(), threading.Event(), connection_module._credentials

    def slow(session: Any, threads: Threads) -> Any:
        began.set()
        go.wait(10)
        return real(session, threads)

    monkeypatch.setattr(connection_module, "_credentials", slow)
    async with connected(fake.url) as store:
        async with anyio.create_task_group() as group:
            group.start_soon(store.head, "k")
            while not began.is_set():
                await checkpoint()
            group.cancel_scope.cancel()
            go.set()
        await store.head("k")

    assert not sessions()


async def test_who_waits_for_the_connection_when_it_is_closed_does_not_open_it(
    fake: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stores = Http.open, list[GcsObjects]()

    async def closing(http: Http, threads: Threads) -> None:
        await real(http, threads)
        await stores[0].aclose()

    monkeypatch.setattr(Http, "open", closing)
    errors = list[Exception]()

    async def look(store: GcsObjects) -> None:
        try:
            await store.head("k")
        except ConfigError as exc:
            errors.append(exc)

    async with connected(fake.url) as store:
        stores.append(store)
        async with anyio.create_task_group() as group:
            group.start_soon(look, store)
            group.start_soon(look, store)
        assert len(errors) == 2
        assert not sessions()


async def test_what_is_closed_does_not_connect(fake: FakeGcs) -> None:
    async with connected(fake.url) as store:
        await store.aclose()
        with pytest.raises(ConfigError, match="closed"):
            await store.head("k")
        assert not sessions()


@pytest.mark.parametrize("turns", range(1, 5))
async def test_closing_while_it_connects_leaves_no_session_open(turns: int, fake: FakeGcs) -> None:
    async def look(store: GcsObjects) -> None:
        with pytest.raises(ConfigError, match="closed"):
            await store.head("k")

    async with connected(fake.url) as store:
        async with anyio.create_task_group() as group:
            group.start_soon(look, store)
            for _ in range(turns):
                await checkpoint()
            await store.aclose()
        assert not sessions()


async def test_a_cancelled_close_leaves_no_session_open(gcs: GcsObjects, fake: FakeGcs) -> None:
    fake.put("k", b"data")
    await gcs.head("k")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await gcs.aclose()

    assert not sessions()


@pytest.mark.parametrize("proxy", ["socks5://me:secret@127.0.0.1:9", "me:secret@127.0.0.1:9"])
async def test_a_proxy_of_another_kind_is_refused_for_every_request(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://store.example")
    async with connected(None) as store:
        for call in (store.head("k"), store.get("k", start=0, end=5)):
            with pytest.raises(ConfigError, match="not an http:// address") as caught:
                await call
            assert "secret" not in repr(_chain(caught.value))


async def test_a_proxy_of_another_kind_is_refused_for_tokens(
    fake: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY")
    async with connected(fake.url) as store:
        with pytest.raises(ConfigError, match="not an http:// address"):
            await store.head("k")


async def test_leftovers_do_not_spoil_a_success(gcs: GcsObjects, fake: FakeGcs) -> None:
    upload, parts, whole = await upload_of(gcs, fake, 3)
    fake.faults.append(Fault(operation="delete", times=None, status=503))
    await gcs.complete_upload(upload, parts)
    fake.faults.clear()
    found = [found async for found in gcs.scan_uploads("")]
    await gcs.abort_upload(upload)

    assert found == [upload]
    assert fake.objects.keys() == {"k"}
    assert fake.objects["k"].data == whole


async def test_an_upload_is_gone_only_when_all_of_it_is(gcs: GcsObjects, fake: FakeGcs) -> None:
    upload, _, _ = await upload_of(gcs, fake, 3)
    fake.faults.append(Fault(operation="delete", status=503))
    with pytest.raises(SlowDownError):
        await gcs.abort_upload(upload)
    await gcs.abort_upload(upload)

    assert fake.objects == {}


async def test_an_id_of_another_store_names_no_upload(gcs: GcsObjects) -> None:
    upload = Upload("k", "2~something-else")
    await gcs.abort_upload(upload)

    with pytest.raises(NotFoundError):
        await gcs.complete_upload(upload, [Part(1, "1", 1)])


# ---------------------------------------------------------------- without compose


@pytest.mark.parametrize("status", [405, 501])
async def test_a_server_without_compose_is_asked_once(
    gcs: GcsObjects, fake: FakeGcs, status: int
) -> None:
    fake.faults.append(Fault(operation="compose", times=None, status=status))
    kept = []
    for _ in range(2):
        upload, parts, whole = await upload_of(gcs, fake, 5)
        await gcs.complete_upload(upload, parts)
        kept.append(fake.objects.pop("k").data)

    assert kept == [whole, whole]
    assert fake.count("compose") == 1
    assert fake.objects == {}


async def test_copying_keeps_the_condition_and_parts_without_bytes(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    fake.faults.append(Fault(operation="compose", times=None, status=501))
    upload = await gcs.create_upload("k")
    parts = [await gcs.put_part(upload, n, data) for n, data in enumerate([b"", b"ab", b""], 1)]
    await gcs.complete_upload(upload, parts, condition=Condition(absent=True))
    again = await gcs.create_upload("k")
    part = await gcs.put_part(again, 1, b"")
    with pytest.raises(PreconditionError):
        await gcs.complete_upload(again, [part], condition=Condition(absent=True))
    middle = fake.objects["k"].data
    await gcs.complete_upload(again, [part])

    assert middle == b"ab"
    assert fake.objects["k"].data == b""


async def test_copying_takes_a_chunk_at_a_time(gcs: GcsObjects, fake: FakeGcs) -> None:
    fake.faults.append(Fault(operation="compose", times=None, status=501))
    upload = await gcs.create_upload("k")
    data = some(9 * MIB)
    parts = [await gcs.put_part(upload, number, data) for number in (1, 2)]
    fake.requests.clear()
    await gcs.complete_upload(upload, parts)

    assert fake.objects["k"].data == data * 2
    assert [seen.size_bytes for seen in fake.requests if seen.operation == "chunk"] == [
        16 * MIB,
        2 * len(data) - 16 * MIB,
    ]


async def test_an_emulator_that_hangs_up_on_compose_cannot_do_it(
    emulated: GcsObjects, fake: FakeGcs
) -> None:
    fake.faults.append(Fault(operation="compose", times=None, drop=True))
    upload, parts, whole = await upload_of(emulated, fake, 3)
    await emulated.complete_upload(upload, parts)

    assert fake.objects["k"].data == whole


async def test_the_service_that_hangs_up_on_compose_is_asked_again(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    fake.faults.append(Fault(operation="compose", drop=True))
    upload, parts, whole = await upload_of(gcs, fake, 3)
    with pytest.raises(TransientError):
        await gcs.complete_upload(upload, parts)
    await gcs.complete_upload(upload, parts)

    assert fake.objects["k"].data == whole
    assert fake.count("compose") == 2


async def test_an_emulator_with_a_condition_that_fails_can_compose(
    emulated: GcsObjects, fake: FakeGcs
) -> None:
    fake.put("k", b"theirs")
    upload, parts, _ = await upload_of(emulated, fake, 3)

    with pytest.raises(PreconditionError):
        await emulated.complete_upload(upload, parts, condition=Condition(absent=True))
    assert fake.count("start") == 1  # of the marker


# ---------------------------------------------------------------- tokens


async def test_a_token_is_fetched_once_for_everybody(gcs: GcsObjects, fake: FakeGcs) -> None:
    await each_bounded(8, [f"k{n}" for n in range(16)], lambda key: _put(gcs, key))

    assert len(fake.issued) == 1


async def _put(store: ObjectStore, key: str) -> None:
    await store.put(key, b"x")


async def test_a_token_that_is_refused_is_renewed_once(gcs: GcsObjects, fake: FakeGcs) -> None:
    assert fake.tokens is not None
    await gcs.put("k", b"old")
    fake.tokens.clear()
    await gcs.put("k", b"new")
    fake.tokens.clear()
    await gcs.head("k")

    assert len(fake.issued) == 3
    assert fake.objects["k"].data == b"new"


async def test_tokens_that_are_always_refused_are_no_credentials(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    fake.issue_expired = True

    for request in (gcs.put("k", b"x"), gcs.head("k")):
        with pytest.raises(AccessDeniedError, match="GOOGLE_APPLICATION_CREDENTIALS"):
            await request
    assert len(fake.issued) == 3


async def test_many_requests_with_one_refused_token_renew_it_once(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    assert fake.tokens is not None
    await gcs.put("k", b"x")
    fake.tokens.clear()
    await each_bounded(8, [f"k{n}" for n in range(8)], lambda key: _put(gcs, key))

    assert len(fake.issued) == 2


async def test_a_token_is_renewed_before_it_ends(fake: FakeGcs) -> None:
    clock = Sleepless()
    async with connected(fake.url, clock=clock) as store:
        await store.put("k", b"x")
        clock.passed_s = 3300
        await store.put("k", b"x")
        before = len(fake.issued)
        clock.passed_s = 3400
        await store.put("k", b"x")

    assert (before, len(fake.issued)) == (1, 2)


async def test_a_token_serves_to_its_end_when_there_is_no_other(fake: FakeGcs) -> None:
    clock = Sleepless()
    async with connected(fake.url, clock=clock) as store:
        await store.put("k", b"old")
        fake.faults.append(Fault(operation="token", times=None, status=503))
        clock.passed_s = 3500
        await store.put("k", b"new")
        clock.passed_s = 3601
        with pytest.raises(TransientError, match="token"):
            await store.put("k", b"late")

    assert fake.objects["k"].data == b"new"


async def test_the_metadata_server_gives_tokens(
    fake: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module("gcloud.aio.auth")  # which looks at the variable when it is loaded
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("GCE_METADATA_HOST", fake.url.removeprefix("http://"))
    async with connected(fake.url) as store:
        await store.put("k", b"x")

    assert fake.requests[0].headers["Metadata-Flavor"] == "Google"
    assert "k" in fake.objects


async def test_a_service_account_signs_for_its_tokens(
    fake: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {"type": "service_account", "client_email": "a@example", "private_key": key.decode()}
    file = tmp_path / "account.json"
    file.write_text(json.dumps({**account, "token_uri": f"{fake.url}/token"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    async with connected(fake.url) as store:
        await store.put("k", b"x")

    assert "k" in fake.objects


@pytest.mark.parametrize("form", ["text", "json"])
async def test_a_token_of_somebody_else_is_read_from_its_file_and_exchanged(
    fake: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text('{"id": "theirs"}' if form == "json" else "theirs\n")
    source = {"file": str(theirs), "format": {"type": form, "subject_token_field_name": "id"}}
    account = {
        "type": "external_account",
        "audience": "//iam.example/pool",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{fake.url}/token",
        "credential_source": source,
    }
    file = tmp_path / "account.json"
    file.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    async with connected(fake.url) as store:
        await store.put("k", b"x")

    assert fake.requests[0].operation == "token"
    assert "k" in fake.objects


async def test_without_credentials_the_error_says_how_to_supply_them(
    fake: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    async with connected(fake.url) as store:
        with pytest.raises(AccessDeniedError, match="set GOOGLE_APPLICATION_CREDENTIALS"):
            await store.head("k")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("no JSON", "holds no credentials"),
        ("[]", "holds no credentials"),
        ("{}", "holds no credentials"),
        ('{"type": "unheard of"}', "not supported"),
        ('{"type": "authorized_user"}', "make no sense"),
    ],
)
async def test_credentials_that_are_none_are_named(
    fake: FakeGcs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    message: str,
) -> None:
    file = tmp_path / "broken.json"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    async with connected(fake.url) as store:
        with pytest.raises(AccessDeniedError, match=message):
            await store.head("k")


async def test_credentials_that_are_refused_are_no_credentials(
    gcs: GcsObjects, fake: FakeGcs
) -> None:
    fake.faults.append(Fault(operation="token", times=None, status=400, body="invalid_grant"))

    with pytest.raises(AccessDeniedError, match="refused"):
        await gcs.put("k", b"x")


async def test_no_failure_shows_a_token_or_a_session(gcs: GcsObjects, fake: FakeGcs) -> None:
    await gcs.put("k", b"x")
    secrets = [*fake.issued, "upload_id", "fake-client-secret", "fake-refresh-token"]
    errors: list[AsyncSyncError] = []
    for fault in (Fault(status=400), Fault(drop=True), Fault(status=401, times=2)):
        for request in (gcs.put, gcs.get, gcs.head, gcs.delete, gcs.put_part):
            fake.faults[:] = [fault]
            fault.met = 0
            with pytest.raises(AsyncSyncError) as caught:
                await _call(request)
            errors.append(caught.value)
    fake.faults[:] = [Fault(operation="chunk", status=400)]
    with pytest.raises(AsyncSyncError) as caught:
        await gcs.put("k", some(9 * MIB))
    errors.append(caught.value)

    shown = " ".join(f"{one!r}" for error in errors for one in _chain(error))
    assert [secret for secret in secrets if secret in shown] == []


async def _call(request: Any) -> None:
    if request.__name__ == "put_part":
        await request(Upload("k", "0" * 32), 1, b"x")
    else:
        await request("k", *([b"x"] if request.__name__ == "put" else []))


def _chain(error: BaseException | None) -> list[BaseException]:
    return [error, *_chain(error.__cause__), *_chain(error.__context__)] if error else []


# ---------------------------------------------------------------- what answers mean


async def test_a_captive_page_is_not_taken_for_the_service(gcs: GcsObjects, fake: FakeGcs) -> None:
    fake.faults.append(Fault.captive())

    for request in (gcs.put("k", b"x"), gcs.head("k"), gcs.get("k"), gcs.put("k", some(9 * MIB))):
        with pytest.raises(ConfigError, match="not a Google Cloud Storage server"):
            await request
    with pytest.raises(ConfigError):
        _ = [info async for info in gcs.scan("")]


async def test_a_bucket_that_is_missing_is_named(fake: FakeGcs) -> None:
    async with connected(fake.url, bucket="none") as store:
        for request in (
            store.put("k", b"x"),
            store.head("k"),
            store.get("k"),
            store.delete("k"),
            store.put("k", some(9 * MIB)),
            store.examine(),
        ):
            with pytest.raises(ConfigError, match=r"gs://none.*no such bucket"):
                await request
        with pytest.raises(ConfigError, match="no such bucket"):
            _ = [info async for info in store.scan("")]


async def test_an_object_that_is_denied_is_named(gcs: GcsObjects, fake: FakeGcs) -> None:
    fake.put("k", b"x")
    fake.denied.add("k")

    for request in (gcs.put("k", b"x"), gcs.head("k"), gcs.get("k"), gcs.delete("k")):
        with pytest.raises(AccessDeniedError, match="gs://bucket/k"):
            await request


async def test_a_server_that_is_not_there_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    async with connected(None) as store:
        for request in (store.put("k", b"x"), store.head("k")):
            with pytest.raises(TransientError, match="cannot connect"):
                await request


JSON = {"Content-Type": "application/json"}
PAGE = {"Content-Type": "text/html"}


def said(message: str, reason: str = "x") -> bytes:
    return json.dumps({"error": {"message": message, "errors": [{"reason": reason}]}}).encode()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(400, JSON, said("Required")), PermanentError),
        (Answer(400, JSON, said("Provided CRC32C differs")), CorruptedError),
        (Answer(401, JSON, said("Invalid Credentials")), AccessDeniedError),
        (Answer(403, JSON, said("no access")), AccessDeniedError),
        (Answer(403, JSON, said("slow", "rateLimitExceeded")), SlowDownError),
        (Answer(404, JSON, said("No such object: b/k")), NotFoundError),
        (Answer(404, PAGE, b"No such object: b/the bucket does not exist"), NotFoundError),
        (Answer(404, {}, b""), NotFoundError),
        (Answer(404, JSON, said("The specified bucket does not exist.")), ConfigError),
        (Answer(404, PAGE, b"<html>Error 404"), ConfigError),
        (Answer(302, {}, b""), ConfigError),
        (Answer(408, {}, b""), TransientError),
        (Answer(409, JSON, said("conflict")), TransientError),
        (Answer(412, JSON, said("conditionNotMet")), PreconditionError),
        (Answer(418, JSON, b'{"error": "invalid"}'), PermanentError),
        (Answer(429, {}, b""), SlowDownError),
        (Answer(500, PAGE, b"<html>oops"), TransientError),
        (Answer(501, {}, b""), PermanentError),
        (Answer(503, {}, b""), SlowDownError),
    ],
)
def test_a_status_stands_for_one_error(answer: Answer, error: type[Exception]) -> None:
    found = failure("get gs://b/k", answer)

    assert isinstance(found, error)
    assert str(found).startswith("get gs://b/k: ")
    assert "\n" not in str(found)
    assert "<" not in str(found)


def test_retry_after_is_seconds_or_a_time() -> None:
    date = "Sat, 21 Nov 2026 08:00:00 GMT"
    later = "Sat, 21 Nov 2026 08:00:09 GMT"
    waits = [
        failure("x", Answer(503, headers, b"")).retry_after_s  # type: ignore[attr-defined]
        for headers in (
            {"Retry-After": "7"},
            {"Retry-After": later, "Date": date},
            {"Retry-After": later},
            {"Retry-After": "soon"},
            {"Retry-After": "31536000"},
            {},
        )
    ]

    assert waits == [7, 9, None, None, 300, None]


def test_an_object_without_its_fields_is_none() -> None:
    for found in ({}, {"name": "k", "size": "x", "generation": "1"}, {"name": "k"}):
        with pytest.raises(ConfigError):
            stored("look at gs://b/k", found)


def test_a_checksum_is_found_among_others() -> None:
    value = base64.b64encode(b"1234").decode()

    assert hash_of({"X-Goog-Hash": f"md5=x==, crc32c={value}"}) == value
    assert hash_of({}) is None


# ---------------------------------------------------------------- examine


async def test_the_bucket_says_what_people_should_know(gcs: GcsObjects, fake: FakeGcs) -> None:
    fake.bucket_resource = {
        "softDeletePolicy": {"retentionDurationSeconds": "604800"},
        "versioning": {"enabled": True},
        "retentionPolicy": {"retentionPeriod": "60"},
        "lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {"age": 30}}]},
    }
    found = await gcs.examine()

    assert found.clock_offset_s is not None
    assert [note.split()[0:3] for note in found.notes] == [
        ["soft", "delete", "keeps"],
        ["the", "bucket", "keeps"],
        ["a", "retention", "policy"],
        ["a", "lifecycle", "rule"],
    ]
    assert "for 7 days" in found.notes[0]


async def test_settings_that_may_not_be_read_are_no_failure(gcs: GcsObjects, fake: FakeGcs) -> None:
    fake.faults.append(Fault(operation="bucket", status=403))
    found = await gcs.examine()

    assert "storage.buckets.get" in found.notes[0]


def test_a_plain_bucket_is_not_worth_a_word() -> None:
    lifecycle = {"rule": [{"action": {"type": "AbortIncompleteMultipartUpload"}}]}
    bucket = {"softDeletePolicy": {"retentionDurationSeconds": "0"}, "lifecycle": lifecycle}

    assert examined(bucket, 0.5) == Examined(0.5)
