"""Trees that others wrote: what in them can be fetched, what cannot be kept, and what stays."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from anyio import to_thread

import asyncsync
from asyncsync.errors import NotFoundError, RefusedError
from asyncsync.events import Kept
from asyncsync.names import MANIFEST

from . import gcs_place, s3_place
from .gcs_place import GcsPlace
from .s3_place import S3Place, one_line, raises
from .trees import content, make

pytestmark = pytest.mark.one_loop

PARTS = f"x.asyncsync-parts-{'0123456789abcdef' * 2}"


@pytest.fixture(params=["s3", "gs"])
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Place | GcsPlace]:
    cloud = s3_place.s3_place if request.param == "s3" else gcs_place.gcs_place
    async with cloud(tmp_path, monkeypatch) as place:
        yield place


async def fetch(place: S3Place | GcsPlace, *exclude: str) -> dict[str, bytes | None]:
    """Fetch the tree as it is; what is on disk then."""
    target = place.tmp_path / "restored"
    await place.syncer.sync_down(place.location, target, allow_unverified=True, exclude=exclude)
    return await to_thread.run_sync(content, target)


# -- fetching


async def test_the_markers_that_consoles_make_for_folders_are_no_files(
    place: S3Place | GcsPlace,
) -> None:
    for path, data in {"": b"", "a": b"1", "empty/": b"", "d/": b"", "d/b": b"2"}.items():
        place.fake.put(place.key(path), data)

    assert await fetch(place) == {"a": b"1", "d/b": b"2"}


async def test_where_only_markers_are_there_is_nothing(place: S3Place | GcsPlace) -> None:
    place.fake.put(place.key(""), b"")
    place.fake.put(place.key("d/"), b"")

    with pytest.raises(NotFoundError):
        await fetch(place)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/x", "name /x refused: it must be relative, without empty"),
        ("../../x", "name ../../x refused: it must be relative"),
        ("./x", "name ./x refused: it must be relative"),
        ("d//x", "name d//x refused: it must be relative"),
        ("full/", "name full/ refused: it must be relative"),
        ("ok/x", "name ok refused: it is a file and a directory"),
        ("n" * 256, "a component is 256 bytes long; 255 is the limit"),
        (".asyncsync-x", "names that begin with .asyncsync are reserved"),
    ],
)
async def test_a_name_that_no_directory_can_hold_is_refused_before_anything_is_written(
    path: str, reason: str, place: S3Place | GcsPlace
) -> None:
    for name in ("ok", path):
        place.fake.put(place.key(name), b"1")
    with raises(RefusedError) as caught:
        await fetch(place)

    assert one_line(caught.value, place.location, reason, "; exclude it")
    assert caught.value.paths
    assert os.listdir(place.tmp_path) == []
    assert await fetch(place, "*", "!ok") == {"ok": b"1"}


async def test_an_object_with_bytes_under_the_name_of_the_tree_itself_is_refused(
    place: S3Place | GcsPlace,
) -> None:
    place.fake.put(place.key(""), b"bytes")
    place.fake.put(place.key("ok"), b"1")

    with pytest.raises(RefusedError, match="name '' refused"):
        await fetch(place)


# -- finding


@pytest.mark.parametrize("below", ["run//", "run/../other/", "run/./", "run/d//"])
async def test_a_manifest_where_no_location_leads_is_no_commit(
    below: str, place: S3Place | GcsPlace
) -> None:
    await place.up()
    place.fake.put(below + MANIFEST, place.held()[MANIFEST])
    parent = place.location.rpartition("/")[0]

    found = [commit.location async for commit in place.syncer.commits(parent)]
    assert found == [place.location]


# -- deleting


async def test_a_folders_marker_that_a_delete_keeps_is_named(place: S3Place | GcsPlace) -> None:
    await place.up()
    for path in ("", "d/"):
        place.fake.put(place.key(path), b"")
    deleted = await place.syncer.delete(place.location)

    assert deleted.kept == ("run/ckpt_7/", "d/")
    assert [event.path for event in place.events.of(Kept)] == ["run/ckpt_7/", "d/"]


# -- files that look like parts of ours


@pytest.mark.parametrize("path", [f"{PARTS}/00001", f"d/{PARTS}/00001", f"{PARTS}/any", PARTS])
async def test_a_file_that_looks_like_a_part_is_refused_before_anything_moves(
    path: str, place: S3Place | GcsPlace
) -> None:
    with raises(RefusedError) as caught:
        await place.up({"x": b"small", path: b"precious"})

    assert caught.value.paths == (path,)
    assert place.held() == {}


@pytest.mark.parametrize("scheme", ["", "local://"])
async def test_such_a_file_is_refused_on_a_disk_too(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = await to_thread.run_sync(make, tmp_path / "source", {f"{PARTS}/00001": b"precious"})
    with pytest.raises(RefusedError, match="temporary directory of asyncsync"):
        await asyncsync.sync_up(source, f"{scheme}store/run")

    assert not (tmp_path / "store").exists()
