"""S3Objects against a server that does what it is told to do wrong."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import traceback
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from botocore.exceptions import UnknownServiceError
from botocore.loaders import create_loader

from asyncsync.clock import SystemClock
from asyncsync.concurrency import Threads
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
from asyncsync.storage.objects import Capabilities, Condition, ObjectInfo, ObjectStore, Upload
from asyncsync.storage.s3 import S3Objects, credentials, sdk
from asyncsync.storage.s3 import listing as listing_module
from asyncsync.testing import ObjectStoreContract

from ..fakes.s3 import ACCESS_KEY, SECRET_KEY, Credentials, FakeS3, Reply
from ..fakes.s3_faults import (
    Effect,
    access_denied,
    answer,
    captive_page,
    changed,
    error_in_200,
    expired_token,
    listing,
    loop_pages,
    other_range,
    repeat_page,
    slow_down,
    truncated_xml,
    wrong_checksum,
    wrong_content_range,
    wrong_etag,
    wrong_region,
)

TOKEN = "session-token-that-nobody-may-see"
LIFECYCLE = """<Rule><ID>a</ID><Status>Enabled</Status>
<Filter><Prefix></Prefix></Filter>
<AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation>
</AbortIncompleteMultipartUpload></Rule>"""
OLDER = LIFECYCLE.replace("<Filter><Prefix></Prefix></Filter>", "<Prefix></Prefix>")
PARTIAL = LIFECYCLE.replace("<Prefix></Prefix>", "<Prefix>logs/</Prefix>")
TAGGED = LIFECYCLE.replace("<Prefix></Prefix>", "<Tag><Key>a</Key><Value>b</Value></Tag>")


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeS3]:
    async with FakeS3(page_size=3) as fake:
        for name, value in fake.environ.items():
            monkeypatch.setenv(name, value)
        yield fake


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(2)
    yield threads
    threads.close()


@asynccontextmanager
async def opened(bucket: str = "bucket", **options: str) -> AsyncIterator[S3Objects]:
    threads = Threads(2)
    store = S3Objects(bucket, options, threads=threads, clock=SystemClock(), max_requests=8)
    try:
        yield store
    finally:
        await store.aclose()
        threads.close()


@pytest.fixture
async def store(fake: FakeS3) -> AsyncIterator[S3Objects]:
    async with opened() as store:
        yield store


def sent(fake: FakeS3, operation: str, header: str) -> list[str | None]:
    """That header of every such request so far."""
    return [r.headers.get(header) for r in fake.requests if r.operation == operation]


class TestContract(ObjectStoreContract):
    @pytest.fixture
    async def store(self, fake: FakeS3) -> AsyncIterator[ObjectStore]:
        async with opened() as store:
            yield store


# ---------------------------------------------------------------- where it connects


def test_models_are_those_of_the_sdk_and_of_the_users_directories(tmp_path: Path) -> None:
    """Our loader reads what botocore's own reads; the user's model comes before the SDK's."""
    mine = tmp_path / "s3" / "2006-03-01"
    mine.mkdir(parents=True)
    (mine / "paginators-1.json").write_text('{"pagination": {"mine": {}}}')
    ours, theirs = sdk._loader(str(tmp_path)), create_loader(str(tmp_path))

    for kind in ("service-2", "waiters-2", "paginators-1", "endpoint-rule-set-1"):
        assert ours.load_service_model("s3", kind) == theirs.load_service_model("s3", kind)
    assert "mine" in ours.load_service_model("s3", "paginators-1")["pagination"]
    with pytest.raises(UnknownServiceError):
        ours.load_service_model("none", "service-2")


def test_constructing_loads_no_sdk() -> None:
    code = """
import sys
from asyncsync.clock import SystemClock
from asyncsync.concurrency import Threads
from asyncsync.storage.s3 import S3Objects
S3Objects("b", {}, threads=Threads(1), clock=SystemClock())
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )

    assert not {"botocore", "aiobotocore"} & set(done.stdout.split())


CONFIG = """
[profile frankfurt]
region = eu-central-1
[profile local]
endpoint_url = http://127.0.0.1:9
"""


@pytest.mark.parametrize(
    ("environ", "options", "expected"),
    [
        ({}, {}, "https://bucket.s3.amazonaws.com/"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, {}, "https://bucket.s3.eu-west-1.amazonaws.com/"),
        (
            {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_REGION": "eu-west-2"},
            {},
            "https://bucket.s3.eu-west-2.amazonaws.com/",
        ),
        (
            {"AWS_REGION": "eu-west-2"},
            {"region": "cn-north-1"},
            "https://bucket.s3.cn-north-1.amazonaws.com.cn/",
        ),
        ({"AWS_PROFILE": "frankfurt"}, {}, "https://bucket.s3.eu-central-1.amazonaws.com/"),
        ({}, {"profile": "frankfurt"}, "https://bucket.s3.eu-central-1.amazonaws.com/"),
        ({}, {"profile": "local"}, "http://127.0.0.1:9/bucket/"),
        ({}, {"addressing": "path"}, "https://s3.amazonaws.com/bucket/"),
        ({"AWS_ENDPOINT_URL": "http://store.example"}, {}, "http://store.example/bucket/"),
        (
            {"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b"},
            {},
            "http://b/bucket/",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://a"},
            {"endpoint_url": "HTTPS://Store.example/s3"},
            "https://store.example/s3/bucket/",
        ),
        (
            {},
            {"endpoint_url": "http://store.example:9000", "addressing": "virtual"},
            "http://bucket.store.example:9000/",
        ),
        ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, {}, "https://bucket.s3.dualstack.us-east-1"),
    ],
)
async def test_the_address_follows_options_environment_and_profile(
    threads: Threads,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environ: dict[str, str],
    options: dict[str, str],
    expected: str,
) -> None:
    (tmp_path / "config").write_text(CONFIG)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    loaded = await threads.run(sdk.load, options)
    async with AsyncExitStack() as stack:
        found = await sdk.base_url(await sdk.open_client(loaded, stack), "bucket")

    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("bucket", "options", "reason"),
    [
        ("bucket", {"addressing": "sideways"}, "addressing is auto, path, virtual; not sideways"),
        ("bucket", {"profile": "nobody"}, r"The config profile \(nobody\) could not be found"),
        (
            "bucket",
            {"endpoint_url": "store.example"},
            "the endpoint is not the address of a server",
        ),
        ("Not/A_Bucket!", {}, "Invalid bucket name"),
        ("bucket--use1-az4--x-s3", {}, "directory buckets are not supported"),
    ],
)
async def test_settings_that_make_no_sense_are_named(
    bucket: str, options: dict[str, str], reason: str
) -> None:
    async with opened(bucket, **options) as store:
        with pytest.raises(ConfigError, match=reason):
            await store.head("k")


@pytest.mark.parametrize(
    "endpoint",
    ["http://h:9/?token={}", "http://me:{}@h:port", "me:{}@h:9", "ftp://me:{}@h", "http://h:{}"],
)
async def test_an_endpoint_that_makes_no_sense_is_not_shown(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.format("canary"))
    async with opened() as store:
        with pytest.raises(ConfigError, match="check endpoint_url and AWS_ENDPOINT_URL") as caught:
            await store.head("k")

    assert "canary" not in "".join(traceback.format_exception(caught.value))


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The clients of the SDK that were made."""
    made: list[object] = []
    real = sdk.open_client

    async def counted(loaded: sdk.Loaded, stack: AsyncExitStack) -> object:
        made.append(loaded)
        return await real(loaded, stack)

    monkeypatch.setattr(sdk, "open_client", counted)
    return made


async def test_many_first_requests_open_one_client(fake: FakeS3, clients: list[object]) -> None:
    async with opened() as store, anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(store.create_upload, "k")

    assert len(clients) == 1
    assert fake.operations == ["CreateMultipartUpload"] * 50


async def test_nobody_waits_for_the_sdk_where_the_environment_says_everything(
    fake: FakeS3, clients: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(profile: str | None) -> None:
        raise AssertionError("botocore was asked for credentials")

    monkeypatch.setattr(credentials, "new_session", load)
    async with opened() as store:
        await store.put("k", b"x")
        assert (await store.get("k")).data == b"x"
        assert (await store.head("k")).size_bytes == 1
        assert await keys(store) == ["k"]
        await store.delete("k")

    assert not clients


async def test_openings_that_fail_leave_nothing_behind(
    fake: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    async with opened() as store:
        for _ in range(3):
            with pytest.raises(ConfigError, match=r"none\.pem"):
                await store.head("k")

        assert not store._connection._stack._exit_callbacks  # type: ignore[attr-defined]
        assert store._connection._client is None


async def test_what_a_file_says_is_found_by_the_sdk(
    fake: FakeS3, clients: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    async with opened() as store:
        with pytest.raises(ConfigError, match="the region 'eu-north-1' is wrong"):
            await store.put("k", b"x")

    assert len(clients) == 1


async def test_an_opening_that_failed_is_tried_again(
    fake: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    async with opened() as store:
        with pytest.raises(ConfigError):
            await store.put("k", b"x")
        monkeypatch.delenv("AWS_PROFILE")
        await store.put("k", b"x")

    assert fake.objects["bucket"]["k"].data == b"x"


async def test_nothing_is_asked_after_closing(fake: FakeS3) -> None:
    async with opened() as store:
        await store.put("k", b"x")
        async with anyio.create_task_group() as group:
            group.start_soon(store.aclose)
            group.start_soon(store.aclose)

        with pytest.raises(ConfigError, match="the store is closed"):
            await store.head("k")


async def test_a_redirect_is_not_followed(fake: FakeS3, store: S3Objects) -> None:
    for operation in ("GetObject", "ListObjectsV2"):
        fake.on(operation, answer(307, headers={"Location": fake.url + "/elsewhere"}, body=b""))

    with pytest.raises(ConfigError, match="check the endpoint and the region"):
        await store.get("k")
    with pytest.raises(ConfigError, match="check the endpoint and the region"):
        await keys(store)
    assert len(fake.requests) == 2


@pytest.mark.parametrize("operation", ["GetObject", "PutObject", "ListObjectsV2", "HeadObject"])
async def test_a_captive_page_is_not_an_object(
    fake: FakeS3, store: S3Objects, operation: str
) -> None:
    fake.on(operation, captive_page(), times=None)
    calls: dict[str, Callable[[], object]] = {
        "GetObject": lambda: store.get("k"),
        "PutObject": lambda: store.put("k", b"x"),
        "HeadObject": lambda: store.head("k"),
        "ListObjectsV2": lambda: keys(store),
    }

    with pytest.raises(ConfigError, match="not an S3 server"):
        await calls[operation]()  # type: ignore[misc]


async def test_a_wrong_region_names_the_right_one(fake: FakeS3) -> None:
    async with opened(region="eu-central-1") as store:
        for call in (store.head("k"), store.put("k", b"x"), keys(store)):
            with pytest.raises(ConfigError, match=r"us-east-1: add \?region=us-east-1"):
                await call
    async with opened() as store:
        fake.on("HeadObject", wrong_region("eu-west-3"))
        fake.on("GetObject", wrong_region("eu-west-3"))
        with pytest.raises(ConfigError, match=r"add \?region=eu-west-3"):
            await store.head("k")


async def test_a_missing_bucket_is_a_matter_of_settings(fake: FakeS3) -> None:
    async with opened("nowhere") as store:
        for call in (store.put("k", b""), store.get("k"), store.delete("k"), keys(store)):
            with pytest.raises(ConfigError, match="create the bucket"):
                await call


# ---------------------------------------------------------------- credentials


async def test_without_credentials_it_says_how_to_supply_them(
    fake: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with opened() as store:
        with pytest.raises(AccessDeniedError, match="set AWS_ACCESS_KEY_ID"):
            await store.head("k")

    assert fake.requests == []


@pytest.mark.parametrize(
    "program",
    [
        "echo canary >&2; exit 1",
        "echo canary",
        "printf 'canary\\377' >&2; exit 1",
        """echo '{"Version": "canary"}'""",
    ],
)
async def test_what_a_program_for_credentials_says_is_not_shown(
    program: str, fake: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "program").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "program").chmod(0o755)
    _without_keys(monkeypatch, tmp_path, "program")
    async with opened() as store:
        with pytest.raises(AccessDeniedError, match=r"credential_process .* run it by") as caught:
            await store.head("k")

    assert "canary" not in "".join(traceback.format_exception(caught.value))


async def test_a_program_for_credentials_that_is_not_there_is_named(
    fake: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_keys(monkeypatch, tmp_path, "none")
    async with opened() as store:
        with pytest.raises(ConfigError, match=f"find AWS credentials: .*{tmp_path}/none"):
            await store.head("k")


def _without_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str) -> None:
    """Only a program gives credentials."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    config = f"[default]\ncredential_process = {tmp_path / program} --password canary\n"
    (tmp_path / "config").write_text(config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


async def test_a_wrong_secret_is_named_as_such(
    fake: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    async with opened() as store:
        with pytest.raises(AccessDeniedError, match="check the secret key"):
            await store.put("k", b"")
        with pytest.raises(AccessDeniedError, match="check the secret key"):
            await store.head("k")


async def test_credentials_that_have_expired_are_looked_up_anew_once(
    fake: FakeS3, store: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("k", b"old")
    fake.credentials = {"AKIANEW": Credentials(secret="new", token=TOKEN)}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANEW")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "new")
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    await store.put("k", b"new")
    await store.head("k")

    assert fake.objects["bucket"]["k"].data == b"new"
    assert fake.operations == ["PutObject"] * 3 + ["HeadObject"]


async def test_a_head_with_expired_credentials_works_too(
    fake: FakeS3, store: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("k", b"12345")
    fake.credentials = {"AKIANEW": Credentials(secret="new")}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANEW")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "new")

    assert (await store.head("k")).size_bytes == 5


async def test_credentials_that_stay_refused_are_an_error_after_two_requests(
    fake: FakeS3, store: S3Objects
) -> None:
    fake.on(None, expired_token(), times=None)

    with pytest.raises(AccessDeniedError, match="supply new credentials"):
        await store.put("k", b"x")
    assert fake.operations == ["PutObject"] * 2


def _process(tmp_path: Path, *lives: timedelta) -> Path:
    """A program that gives out credentials, each with its own life, and notes that it ran."""
    outputs = [
        {
            "Version": 1,
            "AccessKeyId": f"AKIA{number}",
            "SecretAccessKey": f"secret-{number}",
            "SessionToken": f"token-{number}",
            "Expiration": (datetime.now(UTC) + life).isoformat(),
        }
        for number, life in enumerate(lives, start=1)
    ]
    for number, output in enumerate(outputs):
        (tmp_path / f"{number}.json").write_text(json.dumps(output))
    program = tmp_path / "program"
    program.write_text(
        f'#!/bin/sh\ncd {tmp_path}\nn=$(cat runs 2>/dev/null | wc -l)\necho >>runs\ncat "$n.json"\n'
    )
    program.chmod(0o700)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    return tmp_path / "config"


async def test_credentials_about_to_expire_are_renewed_once_for_all_that_wait(
    fake: FakeS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = _process(tmp_path, timedelta(minutes=5), timedelta(hours=1))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fake.credentials = {
        f"AKIA{n}": Credentials(secret=f"secret-{n}", token=f"token-{n}") for n in (1, 2)
    }
    fake.put("k", b"x")
    async with opened() as store:
        await store.head("k")
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(store.head, "k")

    assert len((tmp_path / "runs").read_text()) == 2
    assert ACCESS_KEY not in str(sent(fake, "HeadObject", "Authorization"))
    assert "AKIA2/" in str(sent(fake, "HeadObject", "Authorization")[-1])


ROLE = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<Credentials><AccessKeyId>AKIAROLE</AccessKeyId><SecretAccessKey>role-secret</SecretAccessKey>
<SessionToken>role-token</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleResult></AssumeRoleResponse>"""


async def test_a_role_is_assumed_and_nothing_of_that_is_logged(
    fake: FakeS3,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.credentials = {"AKIAROLE": Credentials(secret="role-secret", token="role-token")}
    (tmp_path / "config").write_text(
        "[profile worker]\nrole_arn = arn:aws:iam::123456789012:role/worker\n"
        "credential_source = Environment\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)

    async def assume(_: web.BaseRequest) -> web.Response:
        return web.Response(text=ROLE, content_type="text/xml")

    async with RawTestServer(assume) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", str(sts.make_url("/")))
        async with opened(profile="worker") as store:
            await store.put("k", b"x")

    assert "AKIAROLE/" in str(sent(fake, "PutObject", "Authorization"))
    assert "botocore" in caplog.text
    for secret in ("role-secret", "role-token", TOKEN, SECRET_KEY):
        assert secret not in caplog.text


async def test_a_clock_that_is_wrong_is_corrected_once_for_all(
    fake: FakeS3, store: S3Objects
) -> None:
    fake.clock_offset_s = 3600.0
    await store.put("k", b"x")
    await store.put("k", b"y")
    await store.head("k")

    assert fake.operations == ["PutObject"] * 3 + ["HeadObject"]


@pytest.mark.parametrize("offset_s", [3600.0, -3600.0])
async def test_a_head_or_a_listing_may_be_the_first_to_meet_a_wrong_clock(
    fake: FakeS3, offset_s: float
) -> None:
    fake.put("k", b"x")
    fake.clock_offset_s = offset_s
    async with opened() as first:
        assert (await first.head("k")).size_bytes == 1
    async with opened() as second:
        assert await keys(second) == ["k"]


async def test_a_clock_that_cannot_be_corrected_is_shown(fake: FakeS3, store: S3Objects) -> None:
    fake.on(None, answer(403, "RequestTimeTooSkewed"), times=None)

    with pytest.raises(PermanentError, match=r"here it is .* GMT, there .* GMT; set the clock"):
        await store.put("k", b"x")
    assert len(fake.requests) == 2


async def test_secrets_stay_out_of_every_log_error_and_repr(
    fake: FakeS3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.credentials = {ACCESS_KEY: Credentials(secret=SECRET_KEY, token=TOKEN)}
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    seen: list[str] = []
    async with opened() as store:
        await store.put("k", b"x")
        await keys(store)
        upload = await store.create_upload("big")
        part = await store.put_part(upload, 1, b"x")
        await store.complete_upload(upload, [part])
        fake.on(None, access_denied(), times=None)
        for call in (store.put("k", b"x"), store.head("k"), keys(store)):
            with pytest.raises(AccessDeniedError) as caught:
                await call
            seen.append(repr(caught.value))
        seen.append(repr(vars(store)) + repr(vars(store._connection)))
        seen.append(repr(vars(store._connection._chain)))
    text = caplog.text + "".join(seen)
    signatures = [s for r in fake.requests for s in re.findall(r"Signature=(\w+)", str(r.headers))]

    assert "botocore" in caplog.text
    assert signatures
    for secret in (SECRET_KEY, TOKEN, *signatures):
        assert secret not in text


# ---------------------------------------------------------------- checksums


async def test_bodies_carry_a_checksum_and_an_answer_that_differs_is_corruption(
    fake: FakeS3, store: S3Objects
) -> None:
    await store.put("k", b"123456789")
    fake.on("PutObject", wrong_checksum())

    with pytest.raises(CorruptedError):
        await store.put("k", b"123456789")
    assert sent(fake, "PutObject", "x-amz-checksum-crc32") == ["y/Q5Jg=="] * 2


async def test_a_store_that_rejects_checksums_is_asked_without_once_and_remembered(
    fake: FakeS3, store: S3Objects
) -> None:
    fake.accepts_checksums = False
    await store.put("k", b"one")
    await store.put("k", b"two" * 100_000)

    assert [bool(text) for text in sent(fake, "PutObject", "x-amz-checksum-crc32")] == [
        True,
        False,
        False,
    ]
    assert [bool(text) for text in sent(fake, "PutObject", "Content-MD5")] == [False, True, True]
    fake.on("PutObject", wrong_etag())
    with pytest.raises(CorruptedError):
        await store.put("k", b"three")


async def test_a_refusal_for_another_reason_does_not_end_checksums(
    fake: FakeS3, store: S3Objects
) -> None:
    fake.on("PutObject", answer(501, "NotImplemented"), times=2)
    with pytest.raises(PermanentError):
        await store.put("k", b"one", condition=Condition(absent=True))
    await store.put("k", b"two")

    assert sent(fake, "PutObject", "x-amz-checksum-crc32")[-1] is not None


async def test_a_store_that_takes_no_notice_of_checksums_is_checked_by_its_tags(
    fake: FakeS3, store: S3Objects
) -> None:
    fake.echoes_checksums = False
    fake.on("PutObject", wrong_etag())
    with pytest.raises(CorruptedError):
        await store.put("k", b"one")
    await store.put("k", b"one")

    assert sent(fake, "PutObject", "Content-MD5") == [None, "+XxdKZQb+xsv2rCHSQargg=="]


async def test_an_encrypted_objects_tag_is_not_taken_for_a_digest(
    fake: FakeS3, store: S3Objects
) -> None:
    async def encrypted(request: object, reply: object) -> None:
        reply.headers["ETag"] = '"00000000000000000000000000000000"'  # type: ignore[attr-defined]
        reply.headers["x-amz-server-side-encryption"] = "aws:kms"  # type: ignore[attr-defined]

    fake.echoes_checksums = False
    fake.on("PutObject", Effect(change=encrypted), times=None)

    assert (await store.put("k", b"one")).tag == "0" * 32


async def _uploaded(store: S3Objects, *parts: bytes) -> ObjectInfo:
    upload = await store.create_upload("big")
    done = [await store.put_part(upload, n, data) for n, data in enumerate(parts, start=1)]
    return await store.complete_upload(upload, done)


async def test_an_upload_is_completed_with_the_checksum_and_size_of_the_whole(
    fake: FakeS3, store: S3Objects
) -> None:
    info = await _uploaded(store, b"12345", b"6789")
    stored = fake.objects["bucket"]["big"]

    assert stored.checksum == ("crc32", "y/Q5Jg==", "FULL_OBJECT")
    assert (info.size_bytes, info.tag) == (9, stored.etag.strip('"'))
    assert sent(fake, "CompleteMultipartUpload", "x-amz-checksum-crc32") == ["y/Q5Jg=="]
    assert sent(fake, "CompleteMultipartUpload", "x-amz-mp-object-size") == ["9"]


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "CompleteMultipartUpload"])
async def test_a_store_that_rejects_checksums_of_uploads_is_asked_without_and_remembered(
    fake: FakeS3, store: S3Objects, operation: str
) -> None:
    fake.on(operation, answer(400, "InvalidRequest"))
    await _uploaded(store, b"12345", b"6789")
    await _uploaded(store, b"12345", b"6789")

    assert fake.operations.count(operation) == 3
    assert sent(fake, "CompleteMultipartUpload", "x-amz-mp-object-size")[-1] is None
    assert sent(fake, "CreateMultipartUpload", "x-amz-checksum-type")[-1] is None
    assert fake.objects["bucket"]["big"].data == b"123456789"


async def test_a_store_without_checksums_takes_uploads(fake: FakeS3, store: S3Objects) -> None:
    fake.accepts_checksums = False
    await _uploaded(store, b"12345", b"6789")

    assert fake.objects["bucket"]["big"].data == b"123456789"


async def test_another_process_may_complete_an_upload(fake: FakeS3, store: S3Objects) -> None:
    upload = await store.create_upload("big")
    parts = [await store.put_part(upload, 1, b"12345")]
    async with opened() as other:
        parts.append(await other.put_part(upload, 2, b"6789"))
        await other.complete_upload(upload, parts)

    assert fake.objects["bucket"]["big"].data == b"123456789"


async def test_an_error_inside_a_success_is_an_error(fake: FakeS3, store: S3Objects) -> None:
    fake.on("CompleteMultipartUpload", error_in_200("InternalError"))
    fake.on("CompleteMultipartUpload", error_in_200("SlowDown"), at=2)

    for kind in (TransientError, SlowDownError):
        with pytest.raises(kind, match="complete the upload of s3://bucket/big"):
            await _uploaded(store, b"12345")


async def test_a_document_behind_the_white_space_of_a_slow_answer_is_read(
    fake: FakeS3, store: S3Objects
) -> None:
    def slow(reply: Reply) -> None:
        reply.body = b" " * 5000 + reply.body

    fake.on("CompleteMultipartUpload", changed(slow))

    assert (await _uploaded(store, b"12345")).tag.endswith("-1")
    assert fake.operations.count("HeadObject") == 0


async def test_a_completed_upload_without_a_tag_is_looked_at(
    fake: FakeS3, store: S3Objects
) -> None:
    async def without(request: object, reply: object) -> None:
        body = re.sub(rb"<ETag>.*</ETag>", b"<ETag></ETag>", reply.body)  # type: ignore[attr-defined]
        reply.body = body  # type: ignore[attr-defined]

    fake.on("CompleteMultipartUpload", Effect(change=without))

    assert (await _uploaded(store, b"12345")).tag.endswith("-1")


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("effect", [wrong_content_range(), other_range(0, 1)])
async def test_another_range_than_the_one_asked_for_is_refused(
    fake: FakeS3, store: S3Objects, effect: Effect
) -> None:
    fake.put("k", b"0123456789")
    fake.on("GetObject", effect)

    with pytest.raises(TransientError, match="another range"):
        await store.get("k", 2, 5)


async def test_a_store_without_ranges_is_said_to_be_one(fake: FakeS3, store: S3Objects) -> None:
    whole = answer(200, headers={"ETag": '"a"', "x-amz-request-id": "1"}, body=b"0123456789")
    fake.on("GetObject", whole, times=None)

    assert (await store.get("k", 0, 20)).info.size_bytes == 10
    for start, end in ((2, 5), (2, None), (0, 5)):
        with pytest.raises(PermanentError, match="does not honour ranges"):
            await store.get("k", start, end)


async def test_a_range_with_status_200_counts_if_it_is_named(
    fake: FakeS3, store: S3Objects
) -> None:
    headers = {"ETag": '"a"', "Content-Range": "bytes 2-4/10"}
    fake.on("GetObject", answer(200, headers=headers, body=b"234"))
    found = await store.get("k", 2, 5)

    assert (bytes(found.data), found.info.size_bytes) == (b"234", 10)


async def test_another_object_is_noticed_even_if_the_store_ignores_conditions(
    fake: FakeS3, store: S3Objects
) -> None:
    fake.heeds_conditions = False
    old = await store.put("k", b"old")
    await store.put("k", b"new")

    for start, end in ((0, None), (0, 2), (5, 9), (1, 1)):
        with pytest.raises(PreconditionError):
            await store.get("k", start, end, tag=old.tag)


async def test_bytes_of_an_encoded_object_come_as_they_are(fake: FakeS3, store: S3Objects) -> None:
    body = b"\x1f\x8bnot really gzip"
    headers = {"ETag": '"a"', "Content-Encoding": "gzip", "x-amz-request-id": "1"}
    fake.on("GetObject", answer(200, headers=headers, body=body))

    assert (await store.get("k")).data == body


async def test_slowing_down_tells_for_how_long(fake: FakeS3, store: S3Objects) -> None:
    fake.on("PutObject", slow_down(7))
    fake.on("ListObjectsV2", slow_down(8))

    with pytest.raises(SlowDownError) as bulk:
        await store.put("k", b"x")
    with pytest.raises(SlowDownError) as control:
        await keys(store)
    assert (bulk.value.retry_after_s, control.value.retry_after_s) == (7, 8)


@pytest.mark.parametrize("key", ["k" * 1025, "\u00e9" * 513])
async def test_a_key_that_is_too_long_is_not_sent(fake: FakeS3, store: S3Objects, key: str) -> None:
    with pytest.raises(PermanentError, match="longer than 1024 bytes"):
        await store.put(key, b"x")
    assert fake.requests == []


async def test_a_key_that_is_not_utf8_is_refused(store: S3Objects) -> None:
    with pytest.raises(RefusedError, match="not UTF-8"):
        await store.put("bad\udcff", b"x")
    with pytest.raises(RefusedError, match="not UTF-8"):
        await store.create_upload("bad\udcff")


async def test_a_body_too_large_for_one_put_is_refused(
    store: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3Objects, "capabilities", Capabilities(max_put_bytes=3))

    with pytest.raises(PermanentError, match="use an upload"):
        await store.put("k", b"1234")


# ---------------------------------------------------------------- listings


async def keys(store: S3Objects, prefix: str = "") -> list[str]:
    return [info.key async for info in store.scan(prefix)]


@pytest.mark.parametrize("effect", [repeat_page(), loop_pages()])
async def test_a_listing_that_repeats_itself_is_an_error(
    fake: FakeS3, store: S3Objects, effect: Effect
) -> None:
    for number in range(10):
        fake.put(f"k{number}", b"")
    fake.on("ListObjectsV2", effect, at=2, times=None)

    with pytest.raises(IntegrityError, match="repeats itself"):
        await keys(store)
    assert len(fake.requests) < 5


async def test_empty_pages_without_end_are_an_error(fake: FakeS3, store: S3Objects) -> None:
    fake.put("k", b"")
    tokens = (urlsafe_b64encode(b"k%d" % n).decode() for n in range(10_000))
    endless = listing(lambda _, page, __: page._replace(keys=(), next_token=next(tokens)))
    fake.on("ListObjectsV2", endless, times=None)

    with pytest.raises(IntegrityError, match="does not end"):
        await keys(store)


async def test_a_listing_of_something_else_is_an_error(fake: FakeS3, store: S3Objects) -> None:
    fake.put("other", b"")
    fake.put("k/1", b"")
    foreign = listing(lambda _, page, __: page._replace(keys=("other",)))
    fake.on("ListObjectsV2", foreign)

    with pytest.raises(IntegrityError, match="it holds other"):
        await keys(store, "k/")


async def test_a_listing_without_a_word_is_not_an_empty_one(fake: FakeS3, store: S3Objects) -> None:
    fake.put("k", b"1")
    fake.on("ListObjectsV2", answer(200, body=b""))

    with pytest.raises(TransientError, match="list s3://bucket/: the answer has no body"):
        [info async for info in store.scan("")]
    assert [info.key async for info in store.scan("")] == ["k"]


async def test_a_listing_cut_off_is_passing(fake: FakeS3, store: S3Objects) -> None:
    fake.put("k", b"")
    fake.on("ListObjectsV2", truncated_xml())

    with pytest.raises(TransientError):
        await keys(store)
    assert await keys(store) == ["k"]


PAGE = """<?xml version="1.0"?>
<ListBucketResult{namespace}><IsTruncated>false</IsTruncated>{encoding}{items}</ListBucketResult>"""
ITEM = "<Contents><Key>{}</Key><Size>{}</Size><ETag>&quot;e&quot;</ETag>{}</Contents>"


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'])
@pytest.mark.parametrize(
    ("encoding", "name"), [("", "a+b%20c"), ("<EncodingType>url</EncodingType>", "a b c")]
)
@pytest.mark.parametrize(
    ("modified", "at"),
    [
        ("", 0.0),
        ("<LastModified>1970-01-01T00:01:00.000Z</LastModified>", 60.0),
        ("<LastModified>1970-01-01T00:01:00</LastModified>", 60.0),
        ("<LastModified>1970-01-01T01:01:00+01:00</LastModified>", 60.0),
        ("<LastModified> Thu, 01 Jan 1970 00:01:00 GMT </LastModified>", 60.0),
    ],
)
async def test_servers_say_what_they_hold_in_more_than_one_way(
    fake: FakeS3,
    store: S3Objects,
    namespace: str,
    encoding: str,
    name: str,
    modified: str,
    at: float,
) -> None:
    item = ITEM.format("a+b%20c", 7, modified)
    page = PAGE.format(namespace=namespace, encoding=encoding, items=item)
    fake.on("ListObjectsV2", answer(200, body=b"  \n" + page.encode()))

    assert [info async for info in store.scan("")] == [ObjectInfo(name, 7, "e", at)]


@pytest.mark.parametrize(
    "item",
    [
        ITEM.format("k", "many", ""),
        ITEM.format("k", 1, "<LastModified>yesterday</LastModified>"),
        "<Contents><Size>1</Size></Contents>",
        "<CommonPrefixes></CommonPrefixes>",
        "<CommonPrefixes><Prefix>a/</Prefix><Prefix>b/</Prefix></CommonPrefixes>",
        "<Contents><Key>a</Key><Key>b</Key><Size>1</Size></Contents>",
        "<IsTruncated>true</IsTruncated>",
    ],
)
async def test_a_listing_that_leaves_something_out_is_no_listing(
    fake: FakeS3, store: S3Objects, item: str
) -> None:
    page = PAGE.format(namespace="", encoding="", items=item)
    fake.on("ListObjectsV2", answer(200, body=page.encode()))

    with pytest.raises(TransientError, match="not a whole document"):
        await keys(store)


@pytest.mark.parametrize(
    ("code", "kind"), [("InternalError", TransientError), ("SlowDown", SlowDownError)]
)
async def test_a_listing_that_fails_after_it_began_is_tried_again(
    fake: FakeS3, store: S3Objects, code: str, kind: type[TransientError]
) -> None:
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
    fake.on("ListObjectsV2", answer(200, body=body))

    with pytest.raises(kind):
        await keys(store)
    assert await keys(store) == []


@pytest.mark.parametrize("encoding", ["nope", "shift_jis", "iso-8859-1"])
async def test_a_listing_is_utf8_whatever_it_says(
    fake: FakeS3, store: S3Objects, encoding: str
) -> None:
    page = PAGE.format(namespace="", encoding="", items=ITEM.format("\u00e9", 1, ""))
    page = page.replace('"1.0"', f'"1.0" encoding="{encoding}"')
    fake.on("ListObjectsV2", answer(200, body=page.encode()))

    assert await keys(store) == ["\u00e9"]


async def test_another_document_is_not_an_empty_listing(fake: FakeS3, store: S3Objects) -> None:
    fake.on("ListObjectsV2", answer(200, body=b"<Other></Other>"))

    with pytest.raises(ConfigError, match="not an S3 server"):
        await keys(store)


async def test_one_level_is_listed_in_few_requests(fake: FakeS3, store: S3Objects) -> None:
    for key in ("t/a", "t/b/1", "t/b/2", "t/b/3", "t/b/4", "t/c d/1", "t/e", "u"):
        fake.put(key, b"12")
    found = [(info.key, info.size_bytes) async for info in store.scan_level("t/")]

    assert found == [("t/a", 2), ("t/b/", 0), ("t/c d/", 0), ("t/e", 2)]
    assert len(fake.requests) == 2


async def test_pages_that_hold_only_deeper_names_are_not_empty(
    fake: FakeS3, store: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_module, "_MAX_EMPTY_PAGES", 1)
    for number in range(10):
        fake.put(f"{number}/x", b"")
    found = [info.key async for info in store.scan_level("")]

    assert found == [f"{number}/" for number in range(10)]


async def test_uploads_with_odd_names_are_found_page_by_page(
    fake: FakeS3, store: S3Objects
) -> None:
    names = ["a+b", "a b", "%2F", "line\nbreak", "\u00e9", "x", "y"]
    made = [await store.create_upload(name) for name in names]
    found = [upload async for upload in store.scan_uploads("")]

    assert sorted(found, key=lambda u: u.key) == sorted(made, key=lambda u: u.key)


async def test_a_list_of_uploads_that_repeats_itself_is_an_error(
    fake: FakeS3, store: S3Objects
) -> None:
    for number in range(4):
        await store.create_upload(f"k{number}")

    async def repeat(request: object, reply: object) -> None:
        first.append(reply.body)  # type: ignore[attr-defined]
        reply.body = first[0]  # type: ignore[attr-defined]

    first: list[bytes] = []
    fake.on("ListMultipartUploads", Effect(change=repeat), times=None)

    with pytest.raises(IntegrityError, match="repeats itself"):
        [upload async for upload in store.scan_uploads("")]


async def test_an_upload_that_vanished_is_not_found(store: S3Objects) -> None:
    gone = Upload("k", "no-such-upload")

    with pytest.raises(NotFoundError):
        await store.put_part(gone, 1, b"x")
    await store.abort_upload(gone)


async def test_a_version_that_is_gone_cannot_be_replaced(fake: FakeS3, store: S3Objects) -> None:
    gone = Condition(tag=(await store.put("k", b"1")).tag)
    await store.delete("k")
    upload = await store.create_upload("k")
    part = await store.put_part(upload, 1, b"2")

    with pytest.raises(PreconditionError, match="put s3://bucket/k: it is gone by now"):
        await store.put("k", b"2", condition=gone)
    with pytest.raises(PreconditionError, match=r"complete .* it is gone by now"):
        await store.complete_upload(upload, [part], condition=gone)
    await store.abort_upload(upload)
    with pytest.raises(NotFoundError, match="begin it again"):
        await store.complete_upload(upload, [part], condition=gone)


async def test_a_delete_that_was_done_already_is_done(fake: FakeS3, store: S3Objects) -> None:
    """Some servers say of a key that is gone that it is another version."""
    tag = (await store.put("k", b"1")).tag
    await store.delete("k", tag=tag)
    fake.on("DeleteObject", answer(412, "PreconditionFailed"), times=None)

    await store.delete("k", tag=tag)
    await store.put("k", b"2")
    with pytest.raises(PreconditionError):
        await store.delete("k", tag=tag)


@pytest.mark.parametrize("etag", ['W/"x"', '"x"', "x"])
async def test_a_tag_goes_back_as_it_came(etag: str, fake: FakeS3, store: S3Objects) -> None:
    def weaken(reply: Reply) -> None:
        reply.headers["ETag"] = etag

    fake.put("k", b"1")
    fake.on(None, changed(weaken), times=None)
    fake.heeds_conditions = False
    tag = (await store.head("k")).tag
    fetched = await store.get("k", tag=tag)
    await store.delete("k", tag=tag)

    wanted = etag if etag.startswith("W/") else '"x"'
    assert fetched.info.tag == tag
    assert sent(fake, "GetObject", "If-Match") == [wanted]
    assert sent(fake, "DeleteObject", "If-Match") == [wanted]


# ---------------------------------------------------------------- examining


@pytest.mark.parametrize(
    ("lifecycle", "effect", "note"),
    [
        (LIFECYCLE, None, "a lifecycle rule aborts incomplete multipart uploads, wherever"),
        (OLDER, None, "a lifecycle rule aborts incomplete multipart uploads, wherever"),
        (PARTIAL, None, "abort uploads only below logs/; elsewhere, a rule"),
        (PARTIAL + LIFECYCLE, None, "wherever they are"),
        (TAGGED, None, "no lifecycle rule aborts uploads; a rule"),
        (None, None, "the bucket has no lifecycle rules"),
        (LIFECYCLE.replace("Enabled", "Disabled"), None, "no lifecycle rule aborts uploads"),
        (None, access_denied(), "may not be read"),
        (None, answer(501, "NotImplemented"), "the store has no lifecycle rules"),
    ],
)
async def test_examining_tells_the_clock_and_what_keeps_uploads_from_staying(
    fake: FakeS3,
    store: S3Objects,
    lifecycle: str | None,
    effect: Effect | None,
    note: str,
) -> None:
    fake.lifecycle = lifecycle
    fake.clock_offset_s = 120.0
    if effect is not None:
        fake.on("GetBucketLifecycleConfiguration", effect)
    found = await store.examine()

    assert found.clock_offset_s == pytest.approx(120, abs=10)
    (said,) = found.notes
    assert note in said


async def test_a_bucket_that_is_not_there_cannot_be_examined(fake: FakeS3) -> None:
    async with opened("nowhere") as store:
        with pytest.raises(AsyncSyncError):
            await store.examine()
