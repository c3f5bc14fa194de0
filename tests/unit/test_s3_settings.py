"""Where the environment alone says where a bucket is, what the SDK would have said is found."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from asyncsync.storage.http import Answer
from asyncsync.storage.s3 import sdk
from asyncsync.storage.s3.connection import _any_exists, bucket_url
from asyncsync.storage.s3.credentials import _find
from asyncsync.storage.s3.settings import Settings, plain_settings, settings_files

HERE = "http://127.0.0.1:9000"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


async def asked(bucket: str, options: dict[str, str]) -> Settings:
    """The settings as the SDK finds them."""
    async with AsyncExitStack() as stack:
        loaded = await asyncio.to_thread(sdk.load, options)
        client = await sdk.open_client(loaded, stack)
        return Settings(await sdk.base_url(client, bucket), loaded.region, loaded.ca_file)


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        ({}, {"AWS_ENDPOINT_URL": HERE}),
        ({}, {"AWS_ENDPOINT_URL": f"{HERE}/"}),
        ({}, {"AWS_ENDPOINT_URL": "https://store.example"}),
        ({}, {"AWS_ENDPOINT_URL": "https://store.example:443"}),
        ({}, {"AWS_ENDPOINT_URL": "http://store:80", "AWS_DEFAULT_REGION": "eu-west-1"}),
        ({}, {"AWS_ENDPOINT_URL": HERE, "AWS_ENDPOINT_URL_S3": "http://other:9000"}),
        ({}, {"AWS_ENDPOINT_URL": HERE, "AWS_ENDPOINT_URL_S3": ""}),
        ({}, {"AWS_ENDPOINT_URL": HERE, "AWS_REGION": "here", "AWS_DEFAULT_REGION": "there"}),
        ({}, {"AWS_ENDPOINT_URL": HERE, "AWS_CA_BUNDLE": "/some/file.pem"}),
        ({"endpoint_url": HERE}, {"AWS_ENDPOINT_URL": "http://other:9000"}),
        ({"endpoint_url": HERE, "region": "mine"}, {"AWS_REGION": "here"}),
        ({"endpoint_url": HERE, "addressing": "path"}, {}),
    ],
)
async def test_plain_settings_are_those_that_the_sdk_finds(
    options: dict[str, str], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    plain = plain_settings("a-bucket", options, environ)

    assert plain is not None
    assert plain == await asked("a-bucket", options)


@pytest.mark.parametrize(
    ("bucket", "options", "environ"),
    [
        ("bucket", {}, {}),
        ("bucket", {"endpoint_url": ""}, {"AWS_ENDPOINT_URL": HERE}),
        ("bucket", {"addressing": "virtual"}, {"AWS_ENDPOINT_URL": HERE}),
        ("bucket", {"addressing": "other"}, {"AWS_ENDPOINT_URL": HERE}),
        ("bucket", {"profile": "mine"}, {"AWS_ENDPOINT_URL": HERE}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": HERE, "AWS_PROFILE": "mine"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": HERE, "AWS_USE_FIPS_ENDPOINT": "true"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": HERE, "AWS_USE_DUALSTACK_ENDPOINT": "true"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": HERE, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": "https://s3.eu-west-1.amazonaws.com"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": "https://vpce-1.s3.eu-west-1.vpce.amazonaws.com"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": "https://s3.eu-west-1.api.aws"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": "https://me:secret@store.example"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": "https://store.example/prefix"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": "https://store.example?token=1"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": "HTTPS://Store.example"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": "https://[::1]:9000"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": "store.example"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": HERE, "AWS_REGION": "not a region"}),
        ("two.words", {}, {"AWS_ENDPOINT_URL": HERE}),
        ("Bucket", {}, {"AWS_ENDPOINT_URL": HERE}),
        ("b", {}, {"AWS_ENDPOINT_URL": HERE}),
        ("arn:aws:s3:us-east-1:1:accesspoint/p", {}, {"AWS_ENDPOINT_URL": HERE}),
        ("bucket--use1-az4--x-s3", {}, {"AWS_ENDPOINT_URL": HERE}),
        ("name-o0b1d075431d83bebde8xz5w8ijx1qzlbp3i3kuse10--op-s3", {}, {"AWS_ENDPOINT_URL": HERE}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": HERE, "AWS_RETRY_MODE": "bogus"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": HERE, "AWS_SOMETHING_NEW": "1"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": HERE, "AWS_REGION": "1"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": "http://a..b:9000"}),
        ("bucket", {}, {"AWS_ENDPOINT_URL": "http://h-"}),
    ],
)
def test_whatever_is_not_plain_is_left_to_the_sdk(
    bucket: str, options: dict[str, str], environ: dict[str, str]
) -> None:
    assert plain_settings(bucket, options, environ) is None


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": HERE},
        {"endpoint_url": f"{HERE}/pre"},
        {"endpoint_url": "http://store.example/pre/", "addressing": "virtual"},
        {"endpoint_url": "http://store.example", "addressing": "virtual"},
        {},
    ],
)
async def test_a_listing_is_asked_for_where_the_sdk_would(options: dict[str, str]) -> None:
    seen: list[str] = []

    async def exchange(method: str, url: str, headers: object, body: bytes) -> Answer:
        seen.append(url)
        return Answer(200, {}, b"<ListBucketResult/>")

    async with AsyncExitStack() as stack:
        client = await sdk.open_client(await asyncio.to_thread(sdk.load, options), stack)
        base_url = await sdk.base_url(client, "bucket")
        sdk.send_through(client, exchange)
        await client.list_objects_v2(Bucket="bucket", Prefix="p")

    assert [url.partition("?")[0] for url in seen] == [bucket_url(base_url, "bucket")]


def test_the_files_that_may_say_more_are_those_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = settings_files({})
    named = {"AWS_CONFIG_FILE": "/a", "AWS_SHARED_CREDENTIALS_FILE": "/b"}
    session = sdk.new_session(None)
    assert usual == tuple(
        session.get_config_variable(name) for name in ("config_file", "credentials_file")
    )
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    session = sdk.new_session(None)

    assert settings_files(named) == tuple(
        session.get_config_variable(name) for name in ("config_file", "credentials_file")
    )


def test_a_file_is_looked_for_as_the_sdk_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").touch()
    monkeypatch.setenv("FOLDER", str(tmp_path))

    assert _any_exists(["$FOLDER/config"])
    assert _any_exists(["~/config"])
    assert not _any_exists(["~/.aws/config", "~nobody-of-that-name/config", "$NOTHING/config"])


def test_where_nothing_may_be_seen_there_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, **_: object) -> None:
        raise PermissionError(errno.EACCES, "no", str(path))

    monkeypatch.setattr(os, "stat", refuse)

    assert not _any_exists(["~/.aws/config"])


# ---------------------------------------------------------------- credentials


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"AWS_SESSION_TOKEN": "new"},
        {"AWS_SECURITY_TOKEN": "old"},
        {"AWS_SESSION_TOKEN": "new", "AWS_SECURITY_TOKEN": "old"},
        {"AWS_SESSION_TOKEN": "new", "AWS_SECURITY_TOKEN": ""},
        {"AWS_PROFILE": "mine"},
    ],
)
def test_named_credentials_are_those_that_the_sdk_finds(
    environ: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".aws").mkdir()
    (home / ".aws/credentials").write_text(
        "[default]\naws_access_key_id=1\naws_secret_access_key=2\n"
        "[mine]\naws_access_key_id=3\naws_secret_access_key=4\n"
    )
    environ = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"} | environ
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    theirs = sdk.new_session(None).get_credentials().get_frozen_credentials()

    ours = _find(None).get_frozen_credentials()

    assert (ours.access_key, ours.secret_key) == (theirs.access_key, theirs.secret_key)
    assert ours.token == theirs.token
    assert "secret" not in repr(_find(None))


def test_a_profile_that_is_asked_for_counts_more_than_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".aws").mkdir()
    (home / ".aws/credentials").write_text("[mine]\naws_access_key_id=3\naws_secret_access_key=4\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert _find("mine").get_frozen_credentials().access_key == "3"
