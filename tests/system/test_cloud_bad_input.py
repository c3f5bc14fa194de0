"""What people get wrong with any cloud, and what others leave in their buckets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from anyio import to_thread

from asyncsync.errors import ClashError, ConfigError
from asyncsync.events import Kept, Reduced, Retrying
from asyncsync.names import ATTEMPT, MANIFEST
from asyncsync.storage import Deleted
from asyncsync.storage.committed.record import Record
from asyncsync.storage.objects import MARKED_TYPE

from ..fakes.s3_bucket import Stored as S3Stored
from ..fakes.s3_faults import call
from . import gcs_place, s3_place
from .gcs_place import GcsPlace
from .s3_place import S3Place, one_line, raises
from .trees import content

pytestmark = pytest.mark.one_loop

NEW = {"a": b"ONE", "c": b"three"}


@pytest.fixture(params=["s3", "gs"])
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Place | GcsPlace]:
    if request.param == "s3":
        s3_place.use_small_chunks(monkeypatch)
        async with s3_place.s3_place(tmp_path, monkeypatch) as s3:
            yield s3
    else:
        gcs_place.use_small_chunks(monkeypatch)
        async with gcs_place.gcs_place(tmp_path, monkeypatch) as gcs:
            yield gcs


def at(place: S3Place | GcsPlace, rest: str) -> str:
    return f"{place.location.partition(':')[0]}://{rest}"


# -- where


@pytest.mark.parametrize("operation", ["up", "down", "verify", "delete"])
async def test_a_bucket_that_is_not_there_is_named(
    operation: str, place: S3Place | GcsPlace
) -> None:
    with raises(ConfigError) as caught:
        await place.act(operation, at(place, "no-such-bucket/run"))

    assert one_line(caught.value, at(place, "no-such-bucket/"), "; create ")
    assert not place.events.of(Retrying)
    assert not (place.tmp_path / "restored").exists()


@pytest.mark.parametrize("rest", ["", "/x", "bucket/../x", "key:id@bucket"])
async def test_a_location_that_makes_no_sense_is_refused(
    rest: str, place: S3Place | GcsPlace
) -> None:
    with raises(ConfigError) as caught:
        await place.syncer.verify(at(place, rest))

    assert one_line(caught.value, at(place, ""))
    assert "key:id" not in str(caught.value)
    assert place.fake.requests == []


@pytest.mark.parametrize("rest", ["bucket", "bucket/", "bucket/x/", "bucket//x//y/"])
async def test_a_bucket_alone_and_slashes_at_the_end_are_fine(
    rest: str, place: S3Place | GcsPlace
) -> None:
    location, restored = at(place, rest), place.tmp_path / "restored"
    prefix = "/".join(part for part in rest.split("/")[1:] if part)
    await place.act("up", location)

    assert {k.removeprefix(prefix).lstrip("/") for k in place.objects} == {*place.tree, MANIFEST}
    await place.act("down", location)
    assert await to_thread.run_sync(content, restored) == place.tree
    assert (await place.syncer.verify(location)).ok
    await place.act("delete", location)
    assert place.objects == {}


@pytest.mark.parametrize(
    "name",
    [
        *("a b", "a+b", "a%2Fb", "ü", "\u65e5\u672c", "a&b=c", "a?b", "a#b"),
        *("~-._", "\t", "a'\"<>", "*", "[x]"),
    ],
)
async def test_odd_names_arrive_as_they_are(name: str, place: S3Place | GcsPlace) -> None:
    files = {name: b"1", f"d {name}/{name}": b"2", f"big {name}": place.tree["big"]}
    await place.up(files)

    assert place.held().keys() == {*files, MANIFEST}
    assert await place.down() == files
    await place.syncer.delete(place.location)
    assert place.held() == {}


# -- what others do


async def test_what_others_wrote_below_is_kept_and_named(place: S3Place | GcsPlace) -> None:
    theirs = {"theirs": b"1", "x.asyncsync-parts-no/00001": b"2"}
    for path, data in theirs.items():
        place.fake.put(place.key(path), data)
    await place.up()
    await place.syncer.sync_up(await place.make(NEW, "newer"), place.location, replace=True)

    deleted = await place.syncer.delete(place.location)

    assert set(deleted.kept) == set(theirs)
    assert {event.path for event in place.events.of(Kept)} == set(theirs)
    assert place.held() == theirs


async def test_what_others_wrote_under_a_name_of_ours_is_refused_and_kept(
    place: S3Place | GcsPlace,
) -> None:
    place.fake.put(place.key("a"), b"theirs")

    with raises(ClashError) as caught:
        await place.up()

    assert one_line(caught.value, "run/ckpt_7", ": a;", "move it away")
    assert place.held() == {"a": b"theirs"}


# -- a server that can less


async def test_a_server_that_ignores_conditions_is_announced_once_and_works_for_one_writer(
    place: S3Place | GcsPlace,
) -> None:
    if isinstance(place, S3Place):
        place.fake.heeds_conditions = False
    else:
        place.fake.ignores_conditions = True

    await place.up()
    await place.syncer.sync_up(await place.make(NEW, "newer"), place.location, replace=True)

    reduced = place.events.of(Reduced)
    assert len(reduced) == 1
    assert reduced[0].where == at(place, "bucket")
    assert "let only one write at a time" in reduced[0].reason
    await place.check(NEW)
    await place.syncer.delete(place.location)
    assert place.held() == {}


# -- what others put where an attempt has died


LEFT = Record(kind="write", attempt="0" * 32, writer="them", paths=frozenset({"a", "old"}))


def _put(
    place: S3Place | GcsPlace,
    path: str,
    data: bytes,
    *,
    later_s: float = 0.0,
    content_type: str = "text/plain",
) -> None:
    """An object is there all of a sudden, dated later."""
    stored = place.fake.put(place.key(path), data)
    if isinstance(place, S3Place) and isinstance(stored, S3Stored):
        place.fake.objects["bucket"][place.key(path)] = replace(
            stored,
            modified=stored.modified + later_s,
            headers={"Content-Type": content_type},
        )
    elif not isinstance(stored, S3Stored):
        stored.updated_at += later_s
        stored.content_type = content_type


async def _left(place: S3Place | GcsPlace) -> None:
    """An attempt has claimed `a` and `old` and sent only `old`."""
    _put(place, ATTEMPT, msgspec.json.encode(LEFT), content_type=MARKED_TYPE)
    _put(place, "old", b"theirs", content_type=MARKED_TYPE)


Request = tuple[str, str, str]
"""The first one to S3, or to GCS, for a path."""

COPIED = b"copied by hand"
LATER = "ten minutes later, by a tool that copies our mark"
AT_ONCE = "at once"


def _comes(place: S3Place | GcsPlace, when: str | Request) -> None:
    """Somebody else puts `a`: now, or when that request comes."""
    if when == LATER:
        _put(place, "a", COPIED, later_s=600, content_type=MARKED_TYPE)
    elif isinstance(when, str):
        _put(place, "a", COPIED)
    elif isinstance(place, S3Place):
        effect = call(lambda _: _put(place, "a", COPIED), "early")
        place.fake.faults.append(place.fault(effect, when[0], when[2]))
    else:
        place.fault(when[1], when[2], before=lambda _: _put(place, "a", COPIED))


@pytest.mark.parametrize("when", [LATER, AT_ONCE, ("PutObject", "media", "a")], ids=str)
async def test_what_came_in_place_of_a_dead_attempts_object_is_not_overwritten(
    when: str | Request, place: S3Place | GcsPlace
) -> None:
    await _left(place)
    _comes(place, when)

    with raises(ClashError) as caught:
        await place.syncer.sync_up(await place.make(NEW), place.location)

    assert caught.value.paths == ("a",)
    assert place.held() == {"a": COPIED}


async def test_what_a_dead_attempt_had_written_is_written_again(place: S3Place | GcsPlace) -> None:
    await _left(place)
    _put(place, "a", b"half of it", content_type=MARKED_TYPE)

    await place.syncer.sync_up(await place.make(NEW), place.location)

    await place.check(NEW)


@pytest.mark.parametrize("when", [LATER, AT_ONCE, ("PutObject", "media", "b")], ids=str)
async def test_what_came_in_place_of_a_dead_attempts_object_stays_in_the_new_tree(
    when: str | Request, place: S3Place | GcsPlace
) -> None:
    await _left(place)
    _comes(place, when)

    await place.syncer.sync_up(await place.make({"b": b"new"}), place.location)

    held = place.held()
    assert held.pop(MANIFEST)
    assert held == {"a": COPIED, "b": b"new"}


async def test_what_came_in_place_of_a_dead_attempts_object_stays_when_the_next_one_fails(
    place: S3Place | GcsPlace,
) -> None:
    await _left(place)
    _put(place, "b", b"others have this name")
    _comes(place, ("GetObject", "read", "b"))

    with raises(ClashError):
        await place.syncer.sync_up(await place.make({"b": b"new"}), place.location)

    assert place.held() == {"a": COPIED, "b": b"others have this name"}


@pytest.mark.parametrize("when", [LATER, AT_ONCE])
async def test_what_came_in_place_of_a_dead_attempts_object_is_not_deleted(
    when: str, place: S3Place | GcsPlace
) -> None:
    await _left(place)
    _comes(place, when)

    deleted = await place.syncer.delete(place.location)

    assert deleted == Deleted(1, ("a",))
    assert place.held() == {"a": COPIED}


async def test_what_a_manifest_lists_is_replaced_though_a_copy_has_lost_our_mark(
    place: S3Place | GcsPlace,
) -> None:
    await place.up()
    for path, data in place.held().items():
        _put(place, path, data)
    record = Record(
        kind="write", attempt="0" * 32, writer="them", listed=frozenset(place.tree), released=True
    )
    _put(place, ATTEMPT, msgspec.json.encode(record), content_type=MARKED_TYPE)
    del place.objects[place.key(MANIFEST)]

    await place.syncer.sync_up(await place.make(NEW, "newer"), place.location)

    await place.check(NEW)
