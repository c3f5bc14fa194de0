"""Locations: URLs and paths, read without touching anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.errors import ConfigError
from asyncsync.location import Location

COMPONENT = st.text(
    st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=8
).filter(lambda text: text not in (".", ".."))


@pytest.mark.parametrize(
    ("text", "scheme", "authority", "path"),
    [
        ("/data/run", "file", "", "/data/run"),
        ("/data//run/./x/..", "file", "", "/data/run"),
        ("file:///data/a%20b", "file", "", "/data/a b"),
        ("file://localhost/data", "file", "", "/data"),
        ("FILE:///data", "file", "", "/data"),
        ("/a/s3://b", "file", "", "/a/s3:/b"),
        ("C://x", "file", "", None),
        ("s3://bucket", "s3", "bucket", ""),
        ("S3://Bucket/Run/", "s3", "Bucket", "Run"),
        ("s3://bucket//a//b/", "s3", "bucket", "a/b"),
        ("s3://bucket/a%20b", "s3", "bucket", "a%20b"),
        ("s3://bucket/what?", "s3", "bucket", "what?"),
        ("gs://bucket/what?b", "gs", "bucket", "what?b"),
        ("memory://m/a=1?b=2", "memory", "m", "a=1?b=2"),
        ("memory://m/x", "memory", "m", "x"),
        ("peer://host:7070/trial", "peer", "host:7070", "trial"),
        ("abfs+x.y-z://c/d", "abfs+x.y-z", "c", "d"),
    ],
)
def test_text_becomes_a_location(text: str, scheme: str, authority: str, path: str | None) -> None:
    location = Location.parse(text)

    expected = os.path.abspath(text) if path is None else path
    assert (location.scheme, location.authority, location.path) == (scheme, authority, expected)


def test_paths_are_made_absolute_where_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")

    assert Location.parse("run/1").path == f"{tmp_path}/run/1"
    assert Location.parse(Path("run/1")).path == f"{tmp_path}/run/1"
    assert Location.parse("-rf").path == f"{tmp_path}/-rf"
    assert Location.parse("host:dir").path == f"{tmp_path}/host:dir"
    assert Location.parse("./s3:/dir").path == f"{tmp_path}/s3:/dir"
    assert Location.parse("~/run").path == "/home/me/run"


def test_a_location_is_its_own_reading() -> None:
    location = Location.parse("s3://bucket/run")

    assert Location.parse(location) is location


def test_options_are_those_that_a_scheme_knows() -> None:
    location = Location.parse("s3://bucket/run?endpoint_url=http://localhost:9000&region=eu")

    assert location.path == "run"
    assert location.options == {"endpoint_url": "http://localhost:9000", "region": "eu"}
    with pytest.raises(ConfigError, match=r"takes the options .*region.*; not colour"):
        Location.parse("s3://bucket/run?colour=blue")


def test_google_may_be_another_server() -> None:
    location = Location.parse("gs://bucket/run?endpoint_url=http://localhost:9000")

    assert location.path == "run"
    assert location.options == {"endpoint_url": "http://localhost:9000"}
    with pytest.raises(ConfigError, match="takes the options endpoint_url; not region"):
        Location.parse("gs://bucket/run?region=eu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty or holds a NUL"),
        ("a\0b", "empty or holds a NUL"),
        ("s3://", "needs a name"),
        ("s3:///run", "needs a name"),
        ("memory://", "needs a name"),
        ("s3://bucket/../other", "no meaning"),
        ("s3://bucket/./x", "no meaning"),
        ("file://server/share", "names a host; write file:///path"),
        (Path("s3://bucket/run"), "begins with s3://, with two slashes"),  # which makes it one
        ("peers:/host:7420/run", "begins with peers://, with two slashes; write ./peers:/"),
    ],
)
def test_what_is_no_location_is_refused(text: str | Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Location.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA:hunter2@bucket/run",
        "https://hunter2@host/x",
        "s3://bucket/run?aws_secret_access_key=hunter2",
        "s3://bucket/run?region=eu&token=hunter2",
        "gs://bucket/run?X-Goog-Signature=hunter2",
        "https://host/x?sv=1&sig=hunter2",
        "file:///x?password=hunter2",
        "memory://m/x?account_key=hunter2",
        "webhdfs://host:9870/x?delegation=hunter2",
        "s3://bucket/run?endpoint_url=http://me:hunter2@host",
        "s3://bucket/run?endpoint_url=http://host/%3Fx=hunter2",
        "gs://bucket/run?endpoint_url=http://host/?token=hunter2",
    ],
)
def test_a_key_in_a_location_is_refused_and_not_echoed(text: str) -> None:
    with pytest.raises(ConfigError, match="leave it out") as caught:
        Location.parse(text)
    assert "hunter2" not in str(caught.value)


def test_a_vanished_current_directory_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    with pytest.raises(ConfigError, match="current directory does not exist"):
        Location.parse("run")
    assert Location.parse("/run").path == "/run"


def test_a_name_is_the_last_component() -> None:
    assert Location.parse("s3://bucket/a/b").name == "b"
    assert Location.parse("/a/b").name == "b"
    assert Location.parse("s3://bucket").name == ""
    assert Location.parse("/").name == ""


@given(st.lists(COMPONENT, min_size=1, max_size=4), COMPONENT)
def test_a_location_below_is_written_and_read_again(components: list[str], name: str) -> None:
    for root in ("/", "/data", "memory://m", "memory://m/x"):
        below = Location.parse(root) / "/".join(components) / name

        assert below.name == name
        assert Location.parse(str(below)) == below


def test_a_location_pickles() -> None:
    location = Location.parse("s3://bucket/run?region=eu")

    assert pickle.loads(pickle.dumps(location)) == location
