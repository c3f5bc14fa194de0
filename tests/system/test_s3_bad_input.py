"""What people get wrong with S3: one line that says what, where and what to do."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from asyncsync.errors import (
    AccessDeniedError,
    AsyncSyncError,
    ConfigError,
    IntegrityError,
    NotCommittedError,
    NotFoundError,
    RefusedError,
    TransientError,
)
from asyncsync.events import Retrying
from asyncsync.names import MANIFEST
from asyncsync.syncing import StorageSyncer

from ..fakes.s3 import ACCESS_KEY, SECRET_KEY, Credentials
from ..fakes.s3_faults import access_denied, call, captive_page
from ..fakes.s3_wire import Request
from .s3_place import LOCATION, TREE, S3Place, one_line, raises, s3_place

pytestmark = pytest.mark.one_loop

NEW = {"a": b"ONE", "c": b"three"}


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Place]:
    async with s3_place(tmp_path, monkeypatch) as place:
        yield place


# -- where


async def test_a_wrong_region_is_answered_with_the_right_one(place: S3Place) -> None:
    place.fake.region = "eu-central-1"
    source = await place.make()

    with raises(ConfigError) as caught:
        await place.syncer.sync_up(source, LOCATION)

    assert one_line(caught.value, "s3://bucket/", "add ?region=eu-central-1 or set AWS_REGION")
    assert len(place.fake.requests) == 1
    await place.syncer.sync_up(source, f"{LOCATION}?region=eu-central-1")
    assert MANIFEST in place.held()


@pytest.mark.parametrize("region", ["no region", "../eu", "eu-west-1.example.com/", "a b"], ids=str)
async def test_a_region_that_is_none_is_refused(
    region: str, place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_REGION", region)

    with raises(ConfigError) as caught:
        await place.syncer.verify(LOCATION)

    assert one_line(caught.value, "s3://bucket")
    assert place.fake.requests == []


async def test_an_http_server_that_is_no_s3_is_found_out_by_the_first_request(
    place: S3Place,
) -> None:
    async def serve(request: web.BaseRequest) -> web.Response:
        return web.Response(text="<html>It works!</html>", content_type="text/html")

    async with RawTestServer(serve) as server:
        with raises(ConfigError) as caught:
            await place.syncer.verify(
                f"{LOCATION}?endpoint_url={str(server.make_url('')).rstrip('/')}"
            )

    assert one_line(caught.value, "run/ckpt_7", "not an S3 server", "check the endpoint")
    assert not place.events.of(Retrying)


@pytest.mark.parametrize("status", [200, 204, 404, 405, 501])
async def test_an_http_server_that_says_little_never_passes_for_a_store(
    status: int, place: S3Place
) -> None:
    async def serve(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    async with RawTestServer(serve) as server:
        endpoint = str(server.make_url("")).rstrip("/")
        with raises(AsyncSyncError) as caught:
            await place.syncer.sync_up(await place.make(), f"{LOCATION}?endpoint_url={endpoint}")

    assert one_line(caught.value, "run/ckpt_7")


@pytest.mark.parametrize("endpoint", ["localhost:1", "ftp://127.0.0.1", "http://", "http://[::1"])
async def test_an_endpoint_that_is_no_address_is_refused(endpoint: str, place: S3Place) -> None:
    with raises(ConfigError) as caught:
        await place.syncer.verify(f"{LOCATION}?endpoint_url={endpoint}")

    assert one_line(caught.value, "s3://bucket", "endpoint")


async def test_a_host_that_cannot_be_reached_is_named_after_seven_tries(place: S3Place) -> None:
    with raises(TransientError) as caught:
        await place.syncer.verify(f"{LOCATION}?endpoint_url=http://127.0.0.1:9")

    assert one_line(caught.value, "run/ckpt_7", "http://127.0.0.1:9", "Connection refused")
    assert caught.value.attempts == 7


async def test_a_host_name_that_means_nothing_is_named(place: S3Place) -> None:
    with raises(TransientError) as caught:
        await place.syncer.verify(f"{LOCATION}?endpoint_url=http://nowhere.invalid")

    assert one_line(caught.value, "no such host, http://nowhere.invalid", "check the endpoint")


async def test_behind_a_captive_page_nothing_is_there_and_nothing_is_sent(place: S3Place) -> None:
    place.fake.on(None, captive_page(), times=None)

    with raises(ConfigError) as caught:
        await place.up()

    assert one_line(caught.value, "s3://bucket/", "network login")
    assert set(place.fake.operations) <= {"GetObject", "ListObjectsV2"}
    assert len(place.fake.requests) == 1


# -- who


async def test_without_credentials_it_says_how_to_supply_them(
    place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with raises(AccessDeniedError) as caught:
        await place.up()

    assert one_line(caught.value, "no AWS credentials found", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")
    assert place.fake.requests == []


async def test_half_of_the_credentials_is_none(
    place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    with raises(AccessDeniedError) as caught:
        await place.up()

    assert one_line(caught.value, "credentials")
    assert ACCESS_KEY not in str(caught.value)


async def test_a_profile_that_is_not_there_is_named(place: S3Place) -> None:
    with raises(ConfigError) as caught:
        await place.syncer.verify(f"{LOCATION}?profile=nobody")

    assert one_line(caught.value, "s3://bucket", "nobody", "could not be found")


@pytest.mark.parametrize(
    ("known", "code", "advice"),
    [
        ({ACCESS_KEY: Credentials(secret="another")}, "SignatureDoesNotMatch", "secret key"),
        ({}, "InvalidAccessKeyId", "does not know this access key"),
        (
            {ACCESS_KEY: Credentials(secret=SECRET_KEY, token="needed")},
            "InvalidToken",
            "session token",
        ),
    ],
    ids=["wrong secret", "unknown key", "no token"],
)
@pytest.mark.parametrize("operation", ["up", "down"])
async def test_wrong_credentials_are_told_apart_and_not_tried_again(
    operation: str,
    known: dict[str, Credentials],
    code: str,
    advice: str,
    place: S3Place,
) -> None:
    place.fake.credentials = known

    with raises(AccessDeniedError) as caught:
        await (place.up() if operation == "up" else place.down())

    assert one_line(caught.value, "s3://bucket/run/ckpt_7", code, advice)
    assert SECRET_KEY not in str(caught.value)
    assert not place.events.of(Retrying)
    assert len(place.fake.requests) <= 4


async def test_credentials_that_have_expired_ask_for_new_ones(
    place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the-token")
    place.fake.credentials[ACCESS_KEY] = Credentials(
        secret=SECRET_KEY, token="the-token", expires_at=place.clock.now() - 60
    )

    with raises(AccessDeniedError) as caught:
        await place.up()

    assert one_line(caught.value, "s3://bucket/run/ckpt_7", "ExpiredToken", "new credentials")
    assert "the-token" not in str(caught.value)


@pytest.mark.parametrize("path", ["d/b", MANIFEST])
async def test_access_denied_on_one_key_names_it_on_the_way_up_and_down(
    path: str, place: S3Place
) -> None:
    place.fake.faults.append(place.fault(access_denied(), "PutObject", path, times=None))
    with raises(AccessDeniedError) as caught:
        await place.up()
    assert one_line(caught.value, f"s3://bucket/run/ckpt_7/{path}", "policy")
    assert MANIFEST not in place.held()

    place.fake.faults.clear()
    await place.up()
    place.fake.faults.append(place.fault(access_denied(), "GetObject", path, times=None))

    with raises(AccessDeniedError) as caught:
        await place.down()
    assert one_line(caught.value, f"s3://bucket/run/ckpt_7/{path}", "policy")
    assert not (place.tmp_path / "restored").exists()


# -- names


@pytest.mark.parametrize("bucket", ["UPPER", "a_b", "x", "with space", "a..b", "bücket"])
async def test_a_name_that_no_bucket_can_have_is_refused(bucket: str, place: S3Place) -> None:
    with raises(ConfigError) as caught:
        await place.syncer.verify(f"s3://{bucket}/run")

    assert one_line(caught.value, f"s3://{bucket}", "bucket")
    assert "regex" not in str(caught.value)
    assert place.count("PutObject") == 0


async def test_a_key_too_long_is_refused_before_anything_moves(place: S3Place) -> None:
    deep = "/".join(["d" * 200] * 6)
    source = await place.make({"a": b"1", f"{deep}/long": b"2"})

    with raises(RefusedError) as caught:
        await place.syncer.sync_up(source, LOCATION)

    assert str(caught.value).endswith("its key is 1221 bytes long; 1024 is the limit")
    assert caught.value.paths == (f"{deep}/long",)
    assert set(place.fake.operations).isdisjoint({"PutObject", "CreateMultipartUpload"})
    assert place.held() == {}


async def test_a_key_of_1024_bytes_is_kept(place: S3Place) -> None:
    stem = "run/ckpt_7/" + "/".join(["d" * 199] * 5)
    name = stem.removeprefix("run/ckpt_7/") + "/" + "x" * (1023 - len(stem))
    await place.up({name: b"1"})

    assert max(map(len, place.fake.objects["bucket"])) == 1024
    assert await place.down() == {name: b"1"}


async def test_a_name_that_is_not_utf8_is_refused_before_anything_moves(place: S3Place) -> None:
    source = await place.make({"a": b"1"})
    (Path(os.fsdecode(os.fsencode(source) + b"/br\xffken"))).write_bytes(b"2")

    with raises(RefusedError) as caught:
        await place.syncer.sync_up(source, LOCATION)

    assert one_line(caught.value, "not valid UTF-8", "rename")
    assert set(place.fake.operations).isdisjoint({"PutObject", "CreateMultipartUpload"})
    assert place.held() == {}


# -- what others do


async def test_a_folder_object_of_a_console_is_no_file(place: S3Place) -> None:
    place.fake.put("run/ckpt_7/", b"")
    await place.up()

    assert await place.down() == TREE
    await place.syncer.delete(LOCATION)
    assert list(place.fake.objects["bucket"]) == ["run/ckpt_7/"]


@pytest.mark.parametrize("operation", ["down", "verify"])
async def test_where_nothing_is_committed_it_says_what_is_there(
    operation: str, place: S3Place
) -> None:
    act = place.down if operation == "down" else lambda: place.syncer.verify(LOCATION)
    with raises(NotFoundError) as missing:
        await act()
    place.fake.put(place.key("theirs"), b"theirs")
    with raises(NotCommittedError) as foreign:
        await act()

    assert one_line(missing.value, "run/ckpt_7")
    assert one_line(foreign.value, "run/ckpt_7")


async def test_a_manifest_that_is_deleted_while_its_tree_is_read_does_no_harm(
    place: S3Place,
) -> None:
    await place.up()

    async def delete(request: Request) -> None:
        async with StorageSyncer(isolation="loop") as other:
            await other.delete(LOCATION)

    place.fake.faults.append(place.fault(call(delete, "early"), "GetObject", "a"))

    with raises(AsyncSyncError) as caught:
        await place.down()

    assert isinstance(caught.value, IntegrityError | NotFoundError)
    assert one_line(caught.value, "run/ckpt_7")
    assert not (place.tmp_path / "restored").exists()


async def test_a_manifest_that_is_replaced_while_its_tree_is_read_has_it_read_again(
    place: S3Place,
) -> None:
    await place.up()
    place.fake.faults.append(place.fault(await place.replaced(NEW), "GetObject", "big"))

    assert await place.down() == NEW


async def test_a_manifest_that_is_replaced_between_its_own_ranges_is_read_again(
    place: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asyncsync.storage.committed import place as committed_place

    monkeypatch.setattr(committed_place, "_RANGE_BYTES", 100)
    await place.up()
    place.fake.faults.append(place.fault(await place.replaced(NEW), "GetObject", MANIFEST, at=2))

    assert await place.down() == NEW


@pytest.mark.parametrize("data", [b"", b"{}", b"not json\n", b"\xff" * 100], ids=repr)
async def test_a_manifest_that_is_none_is_damage_and_never_deleted(
    data: bytes, place: S3Place
) -> None:
    await place.up()
    place.fake.put(place.key(MANIFEST), data)
    before = place.held()

    for act in (place.down, place.up, lambda: place.syncer.delete(LOCATION)):
        with raises(IntegrityError) as caught:
            await act()
        assert one_line(caught.value, "run/ckpt_7")
    assert {p: d for p, d in place.held().items() if p in before} == before


# -- a store that can less


async def test_a_store_without_checksums_is_used_with_those_it_has(place: S3Place) -> None:
    place.fake.accepts_checksums = False

    await place.up()

    refused = [r.status for r in place.fake.requests].count(400)
    assert 1 <= refused <= 3
    await place.check()
