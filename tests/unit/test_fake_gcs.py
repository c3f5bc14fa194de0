"""The fake Cloud Storage: what it enforces, and the faults that it produces."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import crc32c
import pytest
from yarl import URL

from tests.fakes.gcs import (
    GRANULE_BYTES,
    FakeGcs,
    Fault,
    Stored,
    omit_items,
    repeat_items,
    wrong_crc32c,
    wrong_size,
)

UPLOAD = "/upload/storage/v1/b/bucket/o"
OBJECTS = "/storage/v1/b/bucket/o"


@pytest.fixture
async def fake() -> AsyncIterator[FakeGcs]:
    async with FakeGcs() as server:
        yield server


@pytest.fixture
async def http(fake: FakeGcs) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fake.url, auto_decompress=False) as session:
        session._retry_connection = False  # by itself it would send a request a second time
        yield session


def insert(name: str, **more: str) -> dict[str, str]:
    return {"uploadType": "media", "name": name, **more}


async def begin(http: aiohttp.ClientSession, name: str, **more: str) -> str:
    params = {"uploadType": "resumable", **more}
    async with http.post(UPLOAD, params=params, json={"name": name}) as answer:
        assert answer.status == 200
        return answer.headers["Location"]


async def send(
    http: aiohttp.ClientSession, uri: str, data: bytes, span: str
) -> tuple[int, str | None, Any]:
    """A chunk, or with no data a question: status, Range and JSON of the answer."""
    headers = {"Content-Range": f"bytes {span}"}
    async with http.put(uri, data=data, headers=headers) as answer:
        body = await answer.read()
        return answer.status, answer.headers.get("Range"), json.loads(body) if body else None


async def test_an_object_comes_back_with_its_generation_and_hashes(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    name = "a/b #?%+é"
    async with http.post(UPLOAD, params=insert(name), data=b"bytes") as answer:
        made = await answer.json()
    url = URL(f"{fake.url}{OBJECTS}/{quote(name, safe='')}?alt=media", encoded=True)
    async with http.get(url) as answer:
        data, headers = await answer.read(), answer.headers
    crc = base64.b64encode(crc32c.crc32c(b"bytes").to_bytes(4, "big")).decode()

    assert (data, headers["x-goog-generation"]) == (b"bytes", made["generation"])
    assert made["crc32c"] == crc
    assert headers["x-goog-hash"] == f"crc32c={crc},md5={made['md5Hash']}"
    assert fake.objects[name].data == b"bytes"


@pytest.mark.parametrize(
    ("span", "status", "data"),
    [("2-4", 206, b"234"), ("7-", 206, b"789"), ("-2", 206, b"89"), ("10-", 416, None)],
)
async def test_a_range_is_cut_to_the_object(
    fake: FakeGcs, http: aiohttp.ClientSession, span: str, status: int, data: bytes | None
) -> None:
    fake.put("k", b"0123456789")
    params, headers = {"alt": "media"}, {"Range": f"bytes={span}"}
    async with http.get(f"{OBJECTS}/k", params=params, headers=headers) as answer:
        body = await answer.read()

    assert answer.status == status
    assert data is None or body == data


async def test_preconditions_are_enforced(fake: FakeGcs, http: aiohttp.ClientSession) -> None:
    old = fake.put("k", b"old")
    new = fake.put("k", b"new")
    statuses = []
    for params in ({"ifGenerationMatch": "0"}, {"ifGenerationMatch": str(old.generation)}):
        async with http.post(UPLOAD, params=insert("k", **params), data=b"x") as answer:
            statuses.append(answer.status)
        async with http.delete(f"{OBJECTS}/k", params=params) as answer:
            statuses.append(answer.status)
    async with http.get(f"{OBJECTS}/k", params={"generation": str(old.generation)}) as answer:
        statuses.append(answer.status)
    match = {"ifGenerationMatch": str(new.generation)}
    async with http.delete(f"{OBJECTS}/k", params=match) as answer:
        statuses.append(answer.status)

    assert statuses == [412, 412, 412, 412, 404, 204]
    assert fake.objects == {}


async def test_a_wrong_checksum_is_refused(fake: FakeGcs, http: aiohttp.ClientSession) -> None:
    headers = {"X-Goog-Hash": "crc32c=AAAAAA=="}
    async with http.post(UPLOAD, params=insert("k"), data=b"x", headers=headers) as answer:
        status = answer.status

    assert (status, fake.objects) == (400, {})


async def test_a_multipart_upload_takes_the_checksum_from_its_first_part(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    data = b"\r\n--lines\n\r\n"
    for name, checked in (("right", data), ("wrong", b"other")):
        resource = {"name": name, "crc32c": Stored("k", checked, 0).crc32c}
        body = (
            b"--sep\r\nContent-Type: application/json\r\n\r\n"
            + json.dumps(resource).encode()
            + b"\r\n--sep\r\nContent-Type: text/plain\r\n\r\n"
            + data
            + b"\r\n--sep--\r\n"
        )
        kind = {"Content-Type": "multipart/related; boundary=sep"}
        params = {"uploadType": "multipart"}
        async with http.post(UPLOAD, params=params, data=body, headers=kind):
            pass

    assert {name: stored.data for name, stored in fake.objects.items()} == {"right": data}


# ---------------------------------------------------------------- resumable uploads


async def test_a_resumable_upload_persists_multiples_of_the_granule(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    data = os.urandom(2 * GRANULE_BYTES + 100)
    uri = await begin(http, "k")
    empty = await send(http, uri, b"", "*/*")
    first = await send(http, uri, data[: GRANULE_BYTES + 10], f"0-{GRANULE_BYTES + 9}/*")
    rest = data[GRANULE_BYTES:]
    last = await send(http, uri, rest, f"{GRANULE_BYTES}-{len(data) - 1}/{len(data)}")
    again = await send(http, uri, b"", f"*/{len(data)}")

    assert empty == (308, None, None)
    assert first == (308, f"bytes=0-{GRANULE_BYTES - 1}", None)
    assert (last[0], again[0], last[2]["size"]) == (200, 200, str(len(data)))
    assert again[2] == last[2]
    assert fake.objects["k"].data == data


async def test_a_gap_is_refused_and_an_overlap_is_not_taken_twice(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    data = os.urandom(2 * GRANULE_BYTES)
    uri = await begin(http, "k")
    gap = await send(http, uri, b"x", "5-5/*")
    await send(http, uri, data[:GRANULE_BYTES], f"0-{GRANULE_BYTES - 1}/*")
    whole = await send(http, uri, data, f"0-{len(data) - 1}/{len(data)}")

    assert (gap[0], whole[0]) == (400, 200)
    assert fake.objects["k"].data == data


async def test_the_precondition_holds_when_an_upload_ends(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    uri = await begin(http, "k", ifGenerationMatch="0")
    fake.put("k", b"theirs")
    status, _, _ = await send(http, uri, b"mine", "0-3/4")

    assert status == 412
    assert fake.objects["k"].data == b"theirs"


async def test_a_chunk_can_be_kept_in_part(fake: FakeGcs, http: aiohttp.ClientSession) -> None:
    data = os.urandom(3 * GRANULE_BYTES)
    uri = await begin(http, "k")
    fake.faults.append(Fault("chunk", keep=GRANULE_BYTES + 1))
    fake.faults.append(Fault("chunk", at=2, keep=0, bare=True))
    short = await send(http, uri, data, f"0-{len(data) - 1}/{len(data)}")
    bare = await send(http, uri, data, f"0-{len(data) - 1}/{len(data)}")

    assert short[:2] == (308, f"bytes=0-{GRANULE_BYTES - 1}")
    assert bare[:2] == (308, None)


async def test_a_cut_chunk_is_kept_as_far_as_it_came(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    data = os.urandom(3 * GRANULE_BYTES)
    uri = await begin(http, "k")
    fake.faults.append(Fault("chunk", drop=True, keep=GRANULE_BYTES + 1))
    with pytest.raises(aiohttp.ClientError):
        await send(http, uri, data, f"0-{len(data) - 1}/{len(data)}")

    assert await send(http, uri, b"", "*/*") == (308, f"bytes=0-{GRANULE_BYTES - 1}", None)


async def test_a_session_can_expire_and_be_cancelled(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    expired, cancelled = await begin(http, "a"), await begin(http, "b")
    fake.faults.append(Fault("chunk", expire=410))
    async with http.delete(cancelled) as answer:
        ended = answer.status

    assert ended == 499
    for uri, status in ((expired, 410), (expired, 410), (cancelled, 499)):
        headers = {"Content-Range": "bytes 0-0/1"}
        async with http.put(uri, data=b"x", headers=headers) as answer:
            assert answer.status == status


# ---------------------------------------------------------------- listing, composing, copying


async def test_a_listing_comes_in_pages_with_prefixes(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    for name in ("a/1", "a/2", "b", "c/d", "e"):
        fake.put(name, b"x")
    params = {"delimiter": "/", "maxResults": "2", "fields": "items(name),prefixes,nextPageToken"}
    pages = []
    while params.get("pageToken") != "":
        async with http.get(OBJECTS, params=params) as answer:
            page = await answer.json()
        params["pageToken"] = page.pop("nextPageToken", "")
        pages.append(page)

    assert pages == [
        {"items": [{"name": "b"}], "prefixes": ["a/"]},
        {"items": [{"name": "e"}], "prefixes": ["c/"]},
    ]


async def test_compose_joins_at_most_32_objects_of_given_generations(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    parts = [fake.put(f"p{n}", b"%d" % n) for n in range(3)]
    sources: list[dict[str, Any]] = [
        {"name": p.name, "objectPreconditions": {"ifGenerationMatch": p.generation}} for p in parts
    ]
    statuses = []
    for asked in (sources, sources * 11, [{"name": "none"}]):
        body = {"sourceObjects": asked}
        async with http.post(f"{OBJECTS}/whole/compose", json=body) as answer:
            statuses.append(answer.status)
    fake.put("p0", b"other")
    async with http.post(f"{OBJECTS}/late/compose", json={"sourceObjects": sources}) as answer:
        statuses.append(answer.status)
    whole = fake.objects["whole"]

    assert statuses == [200, 400, 404, 412]
    assert (whole.data, whole.components) == (b"012", 3)
    assert "md5Hash" not in whole.resource()


async def test_gzip_is_undone_for_whoever_does_not_accept_it(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    fake.put("k", gzip.compress(b"text"), content_encoding="gzip")
    bodies = []
    for accepted in ("identity", "gzip"):
        headers = {"Accept-Encoding": accepted}
        async with http.get(f"{OBJECTS}/k?alt=media", headers=headers) as answer:
            bodies.append(await answer.read())

    assert bodies == [b"text", fake.objects["k"].data]


# ---------------------------------------------------------------- tokens


async def test_tokens_are_demanded_and_handed_out(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    fake.put("k", b"x")
    fake.tokens = set()
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    async with http.get(f"{OBJECTS}/k") as answer:
        without = answer.status
    async with http.get(path) as answer:
        unflavoured = answer.status
    async with http.post("/token", data={"grant_type": "refresh_token"}) as answer:
        token = await answer.json()
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    async with http.get(f"{OBJECTS}/k", headers=headers) as answer:
        granted = answer.status
    fake.issue_expired = True
    async with http.get(path, headers={"Metadata-Flavor": "Google"}) as answer:
        expired = await answer.json()

    assert (without, unflavoured, granted, token["expires_in"]) == (401, 403, 200, 3600)
    assert expired["access_token"] not in fake.tokens


async def test_an_unknown_bucket_and_a_denied_object_are_refused(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    fake.put("secret", b"x")
    fake.denied.add("secret")
    async with http.get("/storage/v1/b/other/o") as answer:
        unknown = answer.status
    async with http.get(f"{OBJECTS}/secret") as answer:
        denied = answer.status

    assert (unknown, denied) == (404, 403)


# ---------------------------------------------------------------- faults


async def test_a_fault_hits_the_requests_it_names(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    fake.put("k", b"x")
    fake.faults.append(Fault("get", at=2, times=2, status=503, headers={"Retry-After": "7"}))
    answers = []
    for _ in range(4):
        async with http.get(f"{OBJECTS}/k") as answer:
            answers.append((answer.status, answer.headers.get("Retry-After")))

    assert answers == [(200, None), (503, "7"), (503, "7"), (200, None)]


async def test_a_lost_answer_has_had_its_effect(fake: FakeGcs, http: aiohttp.ClientSession) -> None:
    fake.faults.append(Fault("media", lost=True))
    with pytest.raises(aiohttp.ClientError):
        await http.post(UPLOAD, params=insert("k"), data=b"x")

    assert fake.objects["k"].data == b"x"
    assert [(seen.status, seen.answered) for seen in fake.requests] == [(200, False)]


async def test_a_dead_server_does_nothing(fake: FakeGcs, http: aiohttp.ClientSession) -> None:
    fake.faults.append(Fault.dead_from(2))
    async with http.post(UPLOAD, params=insert("a"), data=b"x"):
        pass
    for name in ("b", "c"):
        with pytest.raises(aiohttp.ClientError):
            await http.post(UPLOAD, params=insert(name), data=b"x")

    assert list(fake.objects) == ["a"]


@pytest.mark.parametrize("fault", [Fault("read", truncate=3), Fault("read", flip=9)])
async def test_a_body_can_be_damaged(
    fake: FakeGcs, http: aiohttp.ClientSession, fault: Fault
) -> None:
    fake.put("k", b"0123456789")
    fake.faults.append(fault)
    async with http.get(f"{OBJECTS}/k?alt=media") as answer:
        if fault.flip is None:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        else:
            assert await answer.read() == b"0323456789"


async def test_a_body_can_stall(fake: FakeGcs, http: aiohttp.ClientSession) -> None:
    fake.put("k", b"0123456789")
    fake.faults.append(Fault("read", stall=4))
    async with http.get(f"{OBJECTS}/k?alt=media") as answer:
        begun = await answer.content.readexactly(4)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await answer.content.readany()

    assert begun == b"0123"


async def test_answers_can_lie(fake: FakeGcs, http: aiohttp.ClientSession) -> None:
    for name in ("a", "b"):
        fake.put(name, b"x")
    lies = [
        Fault("get", alter=wrong_crc32c),
        Fault("get", at=2, alter=wrong_size),
        Fault("list", alter=repeat_items),
        Fault("list", at=2, alter=omit_items),
    ]
    fake.faults.extend(lies)
    told = []
    for path in (f"{OBJECTS}/a", f"{OBJECTS}/a", OBJECTS, OBJECTS):
        async with http.get(path) as answer:
            told.append(await answer.json())

    assert (told[0]["crc32c"], told[1]["size"]) == ("AAAAAA==", "2")
    assert [[item["name"] for item in page["items"]] for page in told[2:]] == [
        ["a", "b", "b"],
        ["b"],
    ]


async def test_a_captive_page_answers_everything(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    fake.faults.append(Fault.captive())
    async with http.post(UPLOAD, params=insert("k"), data=b"x") as answer:
        page = await answer.text()

    assert (answer.status, answer.content_type, fake.objects) == (200, "text/html", {})
    assert "<html>" in page


async def test_a_test_is_called_before_a_request(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    called: list[int] = []
    fake.faults.append(Fault(at=2, before=called.append))
    for _ in range(3):
        async with http.get(OBJECTS):
            pass

    assert called == [2]


@pytest.mark.slow
def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "tests.fakes.gcs", "bucket"]
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root), "PYTHONSAFEPATH": ""}
    with subprocess.Popen(
        command, cwd=root, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline()
        process.terminate()

    assert url.startswith("http://127.0.0.1:")


async def test_it_can_ignore_conditions_as_some_emulators_do(
    fake: FakeGcs, http: aiohttp.ClientSession
) -> None:
    fake.put("k", b"old")
    fake.ignores_conditions = True
    params = insert("k", ifGenerationMatch="0")
    async with http.post(UPLOAD, params=params, data=b"new") as answer:
        status = answer.status

    assert (status, fake.objects["k"].data) == (200, b"new")
