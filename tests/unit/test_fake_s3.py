"""The fake S3 server against an independent client, and its faults one by one."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.request import Request as SimpleRequest
from urllib.request import urlopen

import aiohttp
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError
from multidict import CIMultiDictProxy

from ..fakes import s3_faults as faults
from ..fakes.s3 import ACCESS_KEY, SECRET_KEY, Credentials, FakeS3, threaded
from ..fakes.s3_faults import Faucet
from ..servers import Server, TlsFiles

SESSION = get_session()  # keeps the parsed models from one test to the next


@pytest.fixture
async def fake() -> AsyncIterator[FakeS3]:
    async with FakeS3() as server:
        yield server


@pytest.fixture
async def plain() -> AsyncIterator[FakeS3]:
    """Takes requests without signatures, for tests that send them by hand."""
    async with FakeS3(check_signatures=False) as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        session._retry_connection = False  # or it would send a put again by itself
        yield session


@asynccontextmanager
async def client(
    url: str,
    *,
    key: str = ACCESS_KEY,
    secret: str = SECRET_KEY,
    token: str | None = None,
    ca: str | None = None,
) -> AsyncIterator[Any]:
    config = AioConfig(retries={"max_attempts": 0}, s3={"addressing_style": "path"})
    async with SESSION.create_client(
        "s3",
        endpoint_url=url,
        verify=ca or False,  # without TLS no certificates need to be read
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        aws_session_token=token,
        config=config,
    ) as made:
        yield made


def code(caught: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def crc(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


Got = tuple[int, CIMultiDictProxy[str], bytes]


async def send(
    http: aiohttp.ClientSession,
    fake: FakeS3,
    method: str,
    path: str,
    data: bytes = b"",
    **headers: str,
) -> Got:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{fake.url}/bucket/{path}"
    async with http.request(
        method, url, data=data or None, headers=named, allow_redirects=False
    ) as answer:
        return answer.status, answer.headers, await answer.read()


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - it comes true on the server's side
        await asyncio.sleep(0.001)


# -- as S3 does it


async def test_an_object_is_put_read_described_listed_and_deleted(fake: FakeS3) -> None:
    key = "a b/ü+=&?%.bin"
    async with client(fake.url) as s3:
        put = await s3.put_object(Bucket="bucket", Key=key, Body=b"hello", Metadata={"a": "b"})
        got = await s3.get_object(Bucket="bucket", Key=key)
        data = await got["Body"].read()
        head = await s3.head_object(Bucket="bucket", Key=key)
        listed = await s3.list_objects_v2(Bucket="bucket")
        await s3.delete_object(Bucket="bucket", Key=key)

    assert data == b"hello"
    assert put["ETag"] == got["ETag"] == head["ETag"] == listed["Contents"][0]["ETag"]
    assert (head["ContentLength"], head["Metadata"]) == (5, {"a": "b"})
    assert put["ChecksumCRC32"] == got["ChecksumCRC32"] == crc(b"hello")
    assert listed["Contents"][0]["Key"] == key
    assert fake.objects["bucket"] == {}
    assert fake.operations == [
        "PutObject",
        "GetObject",
        "HeadObject",
        "ListObjectsV2",
        "DeleteObject",
    ]


async def refusals(s3: Any, bucket: str) -> list[tuple[int, str]]:
    """The answers to requests that every S3 refuses, one after the other."""
    put = await s3.put_object(Bucket=bucket, Key="k", Body=b"old")
    found = []
    for call in (
        s3.put_object(Bucket=bucket, Key="k", Body=b"x", IfNoneMatch="*"),
        s3.put_object(Bucket=bucket, Key="k", Body=b"x", IfMatch='"other"'),
        s3.put_object(Bucket=bucket, Key="none", Body=b"x", IfMatch='"other"'),
        s3.delete_object(Bucket=bucket, Key="k", IfMatch='"other"'),
        s3.delete_object(Bucket=bucket, Key="none", IfMatch='"other"'),
        s3.get_object(Bucket=bucket, Key="k", IfMatch='"other"'),
        s3.get_object(Bucket=bucket, Key="k", IfNoneMatch=put["ETag"]),
        s3.get_object(Bucket=bucket, Key="none"),
        s3.head_object(Bucket=bucket, Key="none"),
        s3.get_object(Bucket="no-such-bucket", Key="k"),
        s3.get_object(Bucket=bucket, Key="k", Range="bytes=3-"),
        s3.list_parts(Bucket=bucket, Key="k", UploadId="none"),
        s3.get_bucket_lifecycle_configuration(Bucket=bucket),
    ):
        with pytest.raises(ClientError) as caught:
            await call
        found.append(code(caught))
    return found


EXPECTED = [
    (412, "PreconditionFailed"),
    (412, "PreconditionFailed"),
    (404, "NoSuchKey"),
    (412, "PreconditionFailed"),
    (404, "NoSuchKey"),
    (412, "PreconditionFailed"),
    (304, "304"),
    (404, "NoSuchKey"),
    (404, "404"),
    (404, "NoSuchBucket"),
    (416, "InvalidRange"),
    (404, "NoSuchUpload"),
    (404, "NoSuchLifecycleConfiguration"),
]


async def test_what_s3_refuses_is_refused_with_its_codes(fake: FakeS3) -> None:
    async with client(fake.url) as s3:
        found = await refusals(s3, "bucket")

    assert found == EXPECTED
    assert fake.objects["bucket"]["k"].data == b"old"


@pytest.mark.slow
async def test_moto_refuses_the_same(moto: Server) -> None:
    async with client(moto.url) as s3:
        assert await refusals(s3, moto.bucket()) == EXPECTED


async def test_over_tls_a_checksum_comes_behind_the_body(tls_files: TlsFiles) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls_files.certificate, tls_files.key)
    async with FakeS3(tls=context) as fake, client(fake.url, ca=tls_files.ca) as s3:
        await s3.put_object(Bucket="bucket", Key="k", Body=b"data")

    assert "aws-chunked" in fake.requests[0].headers["Content-Encoding"]
    assert fake.objects["bucket"]["k"].data == b"data"
    assert fake.objects["bucket"]["k"].checksum == ("crc32", crc(b"data"), "FULL_OBJECT")


async def test_of_twenty_conditional_creations_one_wins(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    answers = await asyncio.gather(
        *(send(http, plain, "PUT", "k", b"%d" % n, If_None_Match="*") for n in range(20))
    )

    assert sorted(status for status, _, _ in answers) == [200] + [412] * 19


@pytest.mark.parametrize(
    ("asked", "given", "data"),
    [
        ("bytes=1-3", "bytes 1-3/10", b"123"),
        ("bytes=7-", "bytes 7-9/10", b"789"),
        ("bytes=7-99", "bytes 7-9/10", b"789"),
        ("bytes=-2", "bytes 8-9/10", b"89"),
    ],
)
async def test_a_range_is_answered_with_206(
    plain: FakeS3, http: aiohttp.ClientSession, asked: str, given: str, data: bytes
) -> None:
    plain.put("k", b"0123456789")

    status, headers, body = await send(http, plain, "GET", "k", Range=asked)

    assert (status, headers["Content-Range"], body) == (206, given, data)


async def test_a_host_name_may_name_the_bucket(plain: FakeS3, http: aiohttp.ClientSession) -> None:
    plain.put("a/b", b"data")

    host = f"bucket.localhost:{plain.port}"
    async with http.get(f"{plain.url}/a/b", headers={"Host": host}) as answer:
        assert await answer.read() == b"data"


async def test_listings_come_in_pages_by_level_and_from_a_key_on(fake: FakeS3) -> None:
    fake.page_size = 2
    keys = ["a/1", "a/2", "b", "c/1", "c/d/1", "e &+é"]
    for key in reversed(keys):
        fake.put(key, b"")
    async with client(fake.url) as s3:
        pages = s3.get_paginator("list_objects_v2")
        flat = [p async for p in pages.paginate(Bucket="bucket")]
        level = [p async for p in pages.paginate(Bucket="bucket", Delimiter="/")]
        inner = await s3.list_objects_v2(Bucket="bucket", Prefix="c/", Delimiter="/")
        later = await s3.list_objects_v2(Bucket="bucket", StartAfter="c/d/1", MaxKeys=1)

    assert [o["Key"] for page in flat for o in page["Contents"]] == keys
    names = [c["Prefix"] for page in level for c in page.get("CommonPrefixes", ())]
    assert names == ["a/", "c/"]
    assert [o["Key"] for page in level for o in page.get("Contents", ())] == ["b", "e &+é"]
    assert [c["Prefix"] for c in inner["CommonPrefixes"]] == ["c/d/"]
    assert [o["Key"] for o in later["Contents"]] == ["e &+é"]


@pytest.mark.parametrize("kind", ["COMPOSITE", "FULL_OBJECT"])
async def test_a_multipart_upload_becomes_an_object(fake: FakeS3, kind: str) -> None:
    async with client(fake.url) as s3:
        where = {"Bucket": "bucket", "Key": "k"}
        made = await s3.create_multipart_upload(
            **where, ChecksumAlgorithm="CRC32", ChecksumType=kind
        )
        where["UploadId"] = made["UploadId"]
        parts = []
        for number, data in ((1, b"first"), (2, b"second")):
            part = await s3.upload_part(**where, PartNumber=number, Body=data)
            named = {"ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]}
            parts.append({"PartNumber": number, **named})
        listed = await s3.list_parts(**where)
        uploads = await s3.list_multipart_uploads(Bucket="bucket", Prefix="k")
        done = await s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})

    stored = fake.objects["bucket"]["k"]
    assert stored.data == b"firstsecond"
    assert done["ETag"] == stored.etag
    assert stored.etag.endswith('-2"')
    assert done["ChecksumType"] == kind
    if kind == "FULL_OBJECT":
        assert done["ChecksumCRC32"] == crc(b"firstsecond")
    else:
        assert done["ChecksumCRC32"].endswith("-2")
    assert [part["Size"] for part in listed["Parts"]] == [5, 6]
    assert [upload["UploadId"] for upload in uploads["Uploads"]] == [made["UploadId"]]
    assert fake.uploads == {}


async def test_uploads_are_refused_with_the_codes_of_s3(fake: FakeS3) -> None:
    fake.min_part_bytes = 6
    fake.put("k", b"old")
    found = []
    async with client(fake.url) as s3:
        where = {"Bucket": "bucket", "Key": "k"}
        made = await s3.create_multipart_upload(**where)
        where["UploadId"] = made["UploadId"]
        tags = [
            (await s3.upload_part(**where, PartNumber=n, Body=data))["ETag"]
            for n, data in ((1, b"small"), (2, b"enough"), (3, b"end"))
        ]
        one, two, end = ({"PartNumber": n + 1, "ETag": tag} for n, tag in enumerate(tags))
        for parts, condition in (
            ([one, two], {}),
            ([two, one], {}),
            ([{"PartNumber": 2, "ETag": '"other"'}], {}),
            ([{"PartNumber": 9, "ETag": '"other"'}], {}),
            ([two, end], {"IfNoneMatch": "*"}),
            ([two, end], {"IfMatch": '"other"'}),
        ):
            with pytest.raises(ClientError) as caught:
                await s3.complete_multipart_upload(
                    **where, **condition, MultipartUpload={"Parts": parts}
                )
            found.append(code(caught))
        await s3.abort_multipart_upload(**where)
        with pytest.raises(ClientError) as caught:
            await s3.upload_part(**where, PartNumber=1, Body=b"late")
        found.append(code(caught))

    assert found == [
        (400, "EntityTooSmall"),
        (400, "InvalidPartOrder"),
        (400, "InvalidPart"),
        (400, "InvalidPart"),
        (412, "PreconditionFailed"),
        (412, "PreconditionFailed"),
        (404, "NoSuchUpload"),
    ]
    assert fake.objects["bucket"]["k"].data == b"old"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_MD5": "AAAAAAAAAAAAAAAAAAAAAA=="},
        {"x_amz_checksum_crc32": "AAAAAA=="},
        {"x_amz_checksum_sha256": "AAAAAA=="},
    ],
)
async def test_a_body_that_is_not_the_one_promised_is_refused(
    plain: FakeS3, http: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    status, _, body = await send(http, plain, "PUT", "k", b"data", **headers)

    assert (status, plain.objects["bucket"]) == (400, {})
    assert b"<Code>BadDigest</Code>" in body


async def test_a_lifecycle_rule_can_be_read(fake: FakeS3) -> None:
    async with client(fake.url) as s3:
        with pytest.raises(ClientError) as caught:
            await s3.get_bucket_lifecycle_configuration(Bucket="bucket")
        days = "<DaysAfterInitiation>7</DaysAfterInitiation>"
        inner = f"<AbortIncompleteMultipartUpload>{days}</AbortIncompleteMultipartUpload>"
        fake.lifecycle = f"<Rule><Status>Enabled</Status>{inner}</Rule>"
        answer = await s3.get_bucket_lifecycle_configuration(Bucket="bucket")

    assert code(caught) == (404, "NoSuchLifecycleConfiguration")
    assert answer["Rules"][0]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}


# -- who asks


async def refusal(fake: FakeS3, **settings: str) -> tuple[int, str]:
    async with client(fake.url, **settings) as s3:
        with pytest.raises(ClientError) as caught:
            await s3.list_objects_v2(Bucket="bucket")
    return code(caught)


async def test_who_signs_wrongly_is_refused(fake: FakeS3) -> None:
    assert await refusal(fake, key="AKIAUNKNOWN") == (403, "InvalidAccessKeyId")
    assert await refusal(fake, secret="wrong") == (403, "SignatureDoesNotMatch")
    assert await refusal(fake, token="unexpected") == (400, "InvalidToken")


async def test_a_session_token_expires(fake: FakeS3) -> None:
    fake.credentials["ASIA"] = Credentials(
        secret=SECRET_KEY, token="token", expires_at=fake.now() + 60
    )
    async with client(fake.url, key="ASIA", token="token") as s3:
        await s3.list_objects_v2(Bucket="bucket")
    fake.clock_offset_s = 120

    assert await refusal(fake, key="ASIA", token="token") == (400, "ExpiredToken")


async def test_a_clock_that_is_off_is_refused_and_told_the_time(
    fake: FakeS3, http: aiohttp.ClientSession
) -> None:
    fake.clock_offset_s = 3600

    async with client(fake.url) as s3:
        with pytest.raises(ClientError) as caught:
            await s3.list_objects_v2(Bucket="bucket")

    assert code(caught) == (403, "RequestTimeTooSkewed")
    date = caught.value.response["ResponseMetadata"]["HTTPHeaders"]["date"]
    assert parsedate_to_datetime(date).timestamp() == pytest.approx(time.time() + 3600, abs=10)


async def test_another_region_is_refused_and_told_the_right_one(fake: FakeS3) -> None:
    fake.region = "eu-west-1"

    async with client(fake.url) as s3:
        await s3.list_objects_v2(Bucket="bucket")

    assert fake.requests[0].status == 400
    assert fake.requests[-1].status == 200  # the client followed what it was told


async def test_a_request_without_signature_is_refused(
    fake: FakeS3, http: aiohttp.ClientSession
) -> None:
    status, _, body = await send(http, fake, "GET", "k")

    assert (status, b"AccessDenied" in body) == (403, True)


# -- switches


async def test_conditions_can_mean_nothing(plain: FakeS3, http: aiohttp.ClientSession) -> None:
    plain.heeds_conditions = False
    plain.put("k", b"old")

    status, _, _ = await send(http, plain, "PUT", "k", b"new", If_None_Match="*")

    assert (status, plain.objects["bucket"]["k"].data) == (200, b"new")


async def test_checksum_headers_can_be_refused_or_left_unanswered(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    plain.echoes_checksums = False
    _, quiet, _ = await send(http, plain, "PUT", "k", b"new", x_amz_checksum_crc32=crc(b"new"))
    plain.accepts_checksums = False
    status, _, _ = await send(http, plain, "PUT", "k", b"x", x_amz_checksum_crc32=crc(b"x"))

    assert "x-amz-checksum-crc32" not in quiet
    assert (status, plain.objects["bucket"]["k"].data) == (400, b"new")


async def test_a_listing_can_lag_behind(plain: FakeS3, http: aiohttp.ClientSession) -> None:
    for key in ("a", "b"):
        plain.put(key, b"")
    await send(http, plain, "DELETE", "a")
    plain.list_lag = 2

    _, _, body = await send(http, plain, "GET", "?list-type=2")

    assert (b"<Key>a</Key>" in body, b"<Key>b</Key>" in body) == (True, False)


# -- faults: which requests they hit


async def test_a_fault_hits_the_requests_it_is_meant_for(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    plain.on("PutObject", faults.slow_down(3), at=2, times=2)

    answers = [await send(http, plain, "PUT", "k", b"%d" % n) for n in range(4)]
    other, _, _ = await send(http, plain, "GET", "k")

    assert [status for status, _, _ in answers] == [200, 503, 503, 200]
    assert answers[1][1]["Retry-After"] == "3"
    assert b"<Code>SlowDown</Code>" in answers[1][2]
    assert [request.status for request in plain.requests] == [200, 503, 503, 200, 200]
    assert other == 200


async def test_a_sticky_fault_stays_and_one_for_a_key_leaves_others_alone(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    plain.faults.append(faults.Fault(faults.access_denied(), key="secret", times=None))

    answers = [await send(http, plain, "PUT", key, b"x") for key in ("secret", "k", "secret")]

    assert [status for status, _, _ in answers] == [403, 200, 403]


async def test_a_hook_decides_by_the_number_of_the_request(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    after: list[tuple[int, bool]] = []
    plain.hook = lambda request: faults.throttled() if request.number == 2 else None
    plain.after_hook = lambda request: after.append(
        (request.number, "k" in plain.objects["bucket"])
    )

    answers = [await send(http, plain, "PUT", "k", b"x") for _ in range(3)]

    assert [status for status, _, _ in answers] == [200, 429, 200]
    assert after == [(1, True), (3, True)]


async def test_a_server_can_be_dead_from_a_request_on(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    plain.dead_from = 2
    await send(http, plain, "PUT", "k", b"x")

    for _ in range(3):
        with pytest.raises(aiohttp.ClientConnectionError):
            await send(http, plain, "PUT", "k", b"y")

    assert plain.objects["bucket"]["k"].data == b"x"


@pytest.mark.parametrize("when", ["early", "before", "after"])
async def test_the_tests_own_function_can_be_called_at_a_request(
    plain: FakeS3, http: aiohttp.ClientSession, when: Any
) -> None:
    seen: list[tuple[bytes, bool]] = []

    async def look(request: Any) -> None:
        seen.append((request.body, "k" in plain.objects["bucket"]))

    plain.on("PutObject", faults.call(look, when))
    status, _, _ = await send(http, plain, "PUT", "k", b"x")

    expected = {"early": (b"", False), "before": (b"x", False), "after": (b"x", True)}
    assert (status, seen) == (200, [expected[when]])


# -- faults: answers


@pytest.mark.parametrize(
    ("effect", "status", "name"),
    [
        (faults.internal_error(), 500, "InternalError"),
        (faults.request_timeout(), 400, "RequestTimeout"),
        (faults.expired_token(), 400, "ExpiredToken"),
        (faults.conflict(), 409, "ConditionalRequestConflict"),
        (faults.wrong_region("eu-west-1"), 301, "PermanentRedirect"),
        (faults.vanished_upload(), 404, "NoSuchUpload"),
        (faults.refuse_checksum(), 400, "InvalidRequest"),
        (faults.error_in_200("SlowDown"), 200, "SlowDown"),
        (faults.answer(403, "ExpiredToken", early=True), 403, "ExpiredToken"),
    ],
)
async def test_an_answer_can_stand_for_the_effect(
    plain: FakeS3,
    http: aiohttp.ClientSession,
    effect: faults.Effect,
    status: int,
    name: str,
) -> None:
    plain.on("PutObject", effect)

    got, _, body = await send(http, plain, "PUT", "k", b"x")

    assert (got, plain.objects["bucket"]) == (status, {})
    assert f"<Code>{name}</Code>".encode() in body


async def test_a_captive_page_is_html_with_status_200(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    plain.on(None, faults.captive_page())

    status, headers, body = await send(http, plain, "PUT", "k", b"x")

    assert (status, headers["Content-Type"]) == (200, "text/html")
    assert b"<html>" in body


async def test_an_error_can_follow_the_effect_with_status_200(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    plain.on("PutObject", faults.error_in_200(done=True))

    status, headers, body = await send(http, plain, "PUT", "k", b"x")

    assert (status, "k" in plain.objects["bucket"], "ETag" in headers) == (200, True, False)
    assert b"<Error>" in body


async def test_tags_checksums_and_bits_can_be_wrong(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    plain.on("PutObject", faults.wrong_etag())
    plain.on("PutObject", faults.wrong_checksum())
    plain.on("PutObject", faults.no_checksum(), at=2)
    plain.on("GetObject", faults.flipped(1))
    good = crc(b"data")
    _, first, _ = await send(http, plain, "PUT", "k", b"data", x_amz_checksum_crc32=good)
    _, second, _ = await send(http, plain, "PUT", "k", b"data", x_amz_checksum_crc32=good)
    _, _, body = await send(http, plain, "GET", "k")

    etag = plain.objects["bucket"]["k"].etag
    assert (first["ETag"] == etag, first["x-amz-checksum-crc32"]) == (False, "AAAAAA==")
    assert (second["ETag"], second.get("x-amz-checksum-crc32")) == (etag, None)
    assert body == b"d`ta"


async def test_the_tag_of_a_completed_upload_can_be_wrong(fake: FakeS3) -> None:
    fake.on("CompleteMultipartUpload", faults.wrong_etag())
    async with client(fake.url) as s3:
        where = {"Bucket": "bucket", "Key": "k"}
        where["UploadId"] = (await s3.create_multipart_upload(**where))["UploadId"]
        part = await s3.upload_part(**where, PartNumber=1, Body=b"x")
        parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
        done = await s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})

    assert done["ETag"].strip('"') == "0" * 32


async def test_ranges_can_be_wrong(plain: FakeS3, http: aiohttp.ClientSession) -> None:
    plain.put("k", b"0123456789")
    plain.on("GetObject", faults.wrong_content_range())
    plain.on("GetObject", faults.other_range(5, 6), at=2)

    first = await send(http, plain, "GET", "k", Range="bytes=1-2")
    second = await send(http, plain, "GET", "k", Range="bytes=1-2")

    assert (first[0], first[1]["Content-Range"], first[2]) == (206, "bytes 2-3/10", b"12")
    assert (second[0], second[1]["Content-Range"], len(second[2])) == (206, "bytes 5-6/10", 2)


async def test_answers_can_be_swapped(plain: FakeS3, http: aiohttp.ClientSession) -> None:
    plain.put("a", b"of a")
    plain.put("b", b"of b")
    plain.on("GetObject", faults.swapped(), times=2)

    a, b = await asyncio.gather(send(http, plain, "GET", "a"), send(http, plain, "GET", "b"))

    assert (a[2], b[2]) == (b"of b", b"of a")


# -- faults: listings


@pytest.mark.parametrize(
    ("effect", "at", "expected"),
    [
        (faults.repeat_page(), 2, "abab" + "ef"),
        (faults.omit_keys("c"), 2, "abdef"),
        (faults.listing(lambda request, page, first: page._replace(keys=())), 1, "cdef"),
    ],
)
async def test_pages_can_repeat_or_lack_keys(
    fake: FakeS3, effect: faults.Effect, at: int, expected: str
) -> None:
    fake.page_size = 2
    for key in "abcdef":
        fake.put(key, b"")
    fake.on("ListObjectsV2", effect, at=at)
    async with client(fake.url) as s3:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bucket")
        found = "".join([o["Key"] async for page in pages for o in page.get("Contents", ())])

    assert found == expected


async def test_a_listing_can_loop_or_end_in_the_middle(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    plain.page_size = 1
    plain.put("a", b"")
    plain.put("b", b"")
    _, _, first = await send(http, plain, "GET", "?list-type=2")
    token = first.partition(b"<NextContinuationToken>")[2].partition(b"<")[0].decode()
    plain.on("ListObjectsV2", faults.loop_pages(), times=2)
    plain.on("ListObjectsV2", faults.truncated_xml(), at=3)
    again = [
        (await send(http, plain, "GET", f"?list-type=2&continuation-token={token}"))[2]
        for _ in range(3)
    ]

    assert again[:2] == [first, first]
    assert b"</ListBucketResult>" not in again[2]


# -- faults: connections


@pytest.mark.parametrize(
    ("when", "happened"),
    [("before", False), ("request", False), ("effect", True), ("headers", True)],
)
async def test_a_connection_can_be_reset_anywhere(
    plain: FakeS3, http: aiohttp.ClientSession, when: Any, happened: bool
) -> None:
    plain.on("PutObject", faults.reset(when))

    with pytest.raises(aiohttp.ClientError):
        await send(http, plain, "PUT", "k", bytes(100_000))

    assert ("k" in plain.objects["bucket"]) == happened
    assert plain.requests[0].status == 0


async def test_a_connection_can_be_reset_in_the_middle_of_an_answer(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    plain.put("k", bytes(1000))
    plain.on("GetObject", faults.reset("body"))

    async with http.get(f"{plain.url}/bucket/k") as answer:
        assert len(await answer.content.readexactly(500)) == 500
        with pytest.raises(aiohttp.ClientError):
            await answer.content.read()


async def test_an_answer_can_be_lost_after_the_effect(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    plain.on("PutObject", faults.lose_answer())

    with pytest.raises(aiohttp.ClientConnectionError):
        await send(http, plain, "PUT", "k", b"x")

    assert plain.objects["bucket"]["k"].data == b"x"


async def test_a_body_can_be_shorter_than_it_says(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    plain.put("k", bytes(1000))
    plain.on("GetObject", faults.truncated(10))

    with pytest.raises(aiohttp.ClientPayloadError):
        await send(http, plain, "GET", "k")


async def test_a_body_can_come_without_length(plain: FakeS3, http: aiohttp.ClientSession) -> None:
    plain.put("k", bytes(1000))
    plain.on("GetObject", faults.no_length(10))

    status, headers, body = await send(http, plain, "GET", "k")

    assert (status, "Content-Length" in headers, len(body)) == (200, False, 10)


async def test_a_body_can_trickle_as_the_test_pours(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    faucet = Faucet()
    plain.put("k", b"0123456789")
    plain.on("GetObject", faults.trickled(faucet))

    async with http.get(f"{plain.url}/bucket/k") as answer:
        await until(lambda: faucet.waiting)
        faucet.pour(3)
        first = await answer.content.readexactly(3)
        await until(lambda: faucet.waiting)
        faucet.open()
        rest = await answer.content.read()

    assert (first, rest) == (b"012", b"3456789")


async def test_a_stalled_body_is_held_until_the_client_goes(
    plain: FakeS3, http: aiohttp.ClientSession
) -> None:
    faucet = Faucet()
    plain.put("k", b"0123456789")
    plain.on("GetObject", faults.stalled(faucet, sent=4))

    async with http.get(f"{plain.url}/bucket/k") as answer:
        assert await answer.content.readexactly(4) == b"0123"
        await until(lambda: faucet.waiting)
    await until(lambda: not faucet.waiting)


async def test_a_stalled_body_does_not_keep_the_server_from_ending(
    http: aiohttp.ClientSession,
) -> None:
    async with FakeS3(check_signatures=False) as fake:
        fake.put("k", b"0123456789")
        fake.on("GetObject", faults.stalled())
        answer = await http.get(f"{fake.url}/bucket/k")

    with pytest.raises(aiohttp.ClientError):
        await answer.read()


async def test_a_request_can_stay_unread(plain: FakeS3, http: aiohttp.ClientSession) -> None:
    faucet = Faucet()
    plain.on("PutObject", faults.stalled_request(faucet))

    async with asyncio.TaskGroup() as group:
        put = group.create_task(send(http, plain, "PUT", "k", bytes(100_000)))
        await until(lambda: faucet.waiting)
        assert plain.objects["bucket"] == {}
        faucet.open()

    assert put.result()[0] == 200


# -- elsewhere


def test_a_server_in_a_thread_shows_its_state() -> None:
    with threaded(FakeS3(check_signatures=False)) as fake:
        fake.put("k", b"data")
        fake.on("GetObject", faults.flipped(), at=2)
        bodies = [urlopen(f"{fake.url}/bucket/k").read() for _ in range(2)]
        urlopen(SimpleRequest(f"{fake.url}/bucket/new", data=b"x", method="PUT")).close()

    assert bodies == [b"data", b"eata"]
    assert fake.objects["bucket"]["new"].data == b"x"
