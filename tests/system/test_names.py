"""Names: what a store can hold comes back byte for byte, the rest is refused before it moves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import asyncsync
from asyncsync.errors import RefusedError, quote
from asyncsync.storage.memory import memory_objects

from .trees import content, disk, make

TEXT: dict[str, list[str]] = {
    "spaces": [" ", " before", "after ", "in  between", "\u00a0"],
    "quotes": ["'", '"', "`", 'it\'s "so"', "\\", "\\n", "$HOME", "-rf"],
    "marks": ["#", "?", "%", "+", "&", ";", "=", "#?%+&;=", "%2e%2e%2f", "?version=1", "~", "*["],
    "newlines": ["\n", "a\nb", "\r\n", "\t", "\x01\x7f", "line\u2028end"],
    "dots": [".hidden", "...", "..two", "end.", "end..", ". ", "dir./x.", ".d/..x"],
    "twins": ["caf\u00e9", "cafe\u0301", "\u212b", "\u00c5", "A\u030a", "README", "readme"],
    "255 bytes": ["x" * 255, "\u00e9" * 127 + "y", "." * 255, "d" * 255 + "/" + "f" * 255],
    "64 levels": ["/".join("d" * 64)],
    "look like ours": ["asyncsync", ".async", "x.asyncsync.json", ".x.asyncsync-tmp-1"],
}
RAW = [os.fsdecode(name) for name in (b"\xff", b"caf\xe9", b"\xc3", b"\xed\xa0\x80", b"\xfe/\xfe")]

DEEP = "/".join("d" * 65)
LONG_KEY = "/".join("k" * 250 for _ in range(4)) + "/" + "k" * 30


def _files(names: list[str]) -> dict[str, bytes | None]:
    """Each name as that of a file, and of a directory."""
    files: dict[str, bytes | None] = {name: os.fsencode(name) for name in names}
    return files | {f"in/{name}/x": b"in " + os.fsencode(name) for name in names if "/" not in name}


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where trees can be made, on a disk and in an object store."""
    return f"memory://{os.urandom(8).hex()}" if request.param == "memory" else str(tmp_path / "s")


def _state(place: str) -> object:
    """All that a store holds: equal before and after if nobody wrote."""
    if place.startswith("memory://"):
        return dict(memory_objects(place.removeprefix("memory://"))._objects)
    return disk(Path(place))


# ---------------------------------------------------------------- byte for byte


@pytest.mark.parametrize("names", TEXT.values(), ids=TEXT)
async def test_names_come_back_byte_for_byte(names: list[str], place: str, tmp_path: Path) -> None:
    files = _files(names)
    await asyncsync.sync_up(make(tmp_path / "source", files), f"{place}/ckpt")
    await asyncsync.sync_down(f"{place}/ckpt", tmp_path / "back")

    assert content(tmp_path / "back") == files


async def test_names_that_are_not_utf_8_come_back_from_a_disk(tmp_path: Path) -> None:
    files = _files(RAW)
    await asyncsync.sync_up(make(tmp_path / "source", files), tmp_path / "s/ckpt")
    await asyncsync.sync_down(tmp_path / "s/ckpt", tmp_path / "back")

    assert content(tmp_path / "s/ckpt") == content(tmp_path / "back") == files


@pytest.mark.parametrize("names", TEXT.values(), ids=TEXT)
async def test_empty_directories_keep_such_names_too(
    names: list[str], place: str, tmp_path: Path
) -> None:
    hollow: dict[str, bytes | None] = dict.fromkeys(names)
    await asyncsync.sync_up(make(tmp_path / "source", hollow), f"{place}/ckpt")
    await asyncsync.sync_down(f"{place}/ckpt", tmp_path / "back")

    assert content(tmp_path / "back") == hollow


@pytest.mark.parametrize("name", [" a ", 'it\'s "so"', "#?%+&;=", "a\nb", "...", "x" * 255, "~"])
async def test_a_tree_itself_may_have_such_a_name(name: str, place: str, tmp_path: Path) -> None:
    source = make(tmp_path / "source", {"a": b"1"})
    await asyncsync.sync_up(source, f"{place}/{name}")
    await asyncsync.sync_up(make(source, {"a": b"2"}), f"{place}/{name}", replace=True)
    newest = await asyncsync.latest(place)
    await asyncsync.sync_down(f"{place}/{name}", tmp_path / "back" / name)

    assert newest is not None
    assert newest.location == f"{place}/{name}"
    assert content(tmp_path / "back") == {f"{name}/a": b"2"}


async def test_a_rolling_tree_keeps_twins_apart_when_one_of_them_changes(
    place: str, tmp_path: Path
) -> None:
    nfc, nfd = "caf\u00e9", "cafe\u0301"
    source = make(tmp_path / "source", {nfc: b"composed", nfd: b"decomposed"})
    await asyncsync.sync_up(source, f"{place}/trial", kind="rolling")
    os.unlink(source / nfc)
    make(source, {nfd: b"changed"})
    await asyncsync.sync_up(source, f"{place}/trial")
    await asyncsync.sync_down(f"{place}/trial", tmp_path / "back")

    assert content(tmp_path / "back") == {nfd: b"changed"}


# ---------------------------------------------------------------- refused

REFUSED = {
    "65 levels": (DEEP, "64 is the limit"),
    "an empty directory 65 levels down": (DEEP + "/", "64 is the limit"),
    "reserved": (".asyncsync-mine", "reserved"),
    "reserved, no more": (".asyncsync", "reserved"),
    "reserved, below": ("d/.asyncsync_notes", "reserved"),
    "a reserved directory": (".asyncsyncs/x", "reserved"),
}
REFUSED_IN_MEMORY = {
    "not UTF-8": (RAW[0], "UTF-8"),
    "not UTF-8, above": (RAW[1] + "/x", "UTF-8"),
    "a key too long": (LONG_KEY, "limit"),
}


async def _assert_refused(place: str, tmp_path: Path, name: str, reason: str) -> None:
    source = make(tmp_path / "source", {"good": b"1", "z": b"2" * 300_000})
    await asyncsync.sync_up(source, f"{place}/ckpt")
    make(source, {name.rstrip("/"): None if name.endswith("/") else b"bad", "good": b"3"})
    before = _state(place)
    for target, replace in ((f"{place}/ckpt", True), (f"{place}/new", False)):
        with pytest.raises(RefusedError, match=reason) as caught:
            await asyncsync.sync_up(source, target, replace=replace)

        assert caught.value.paths == (name.rstrip("/"),)
        assert quote(name.rstrip("/")) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert _state(place) == before


@pytest.mark.parametrize(("name", "reason"), REFUSED.values(), ids=REFUSED)
async def test_what_no_tree_may_hold_is_refused_by_name_before_anything_moves(
    name: str, reason: str, place: str, tmp_path: Path
) -> None:
    await _assert_refused(place, tmp_path, name, reason)


@pytest.mark.parametrize(("name", "reason"), REFUSED_IN_MEMORY.values(), ids=REFUSED_IN_MEMORY)
async def test_what_an_object_store_cannot_hold_is_refused_by_name_before_anything_moves(
    name: str, reason: str, tmp_path: Path
) -> None:
    await _assert_refused(f"memory://{os.urandom(8).hex()}", tmp_path, name, reason)


async def test_the_same_long_path_is_no_trouble_for_a_disk(tmp_path: Path) -> None:
    source = make(tmp_path / "source", {LONG_KEY: b"1"})
    await asyncsync.sync_up(source, tmp_path / "s/ckpt")

    assert content(tmp_path / "s/ckpt") == {LONG_KEY: b"1"}


async def test_every_bad_name_is_counted_and_the_first_few_are_named(
    place: str, tmp_path: Path
) -> None:
    bad = [f".asyncsync-{n:02}" for n in range(12)]
    source = make(tmp_path / "source", dict.fromkeys(bad, b""))
    with pytest.raises(RefusedError, match=r"12 name\(s\).* and 7 more") as caught:
        await asyncsync.sync_up(source, f"{place}/ckpt")

    assert sorted(caught.value.paths) == bad


async def test_an_excluded_bad_name_is_no_reason_to_refuse(place: str, tmp_path: Path) -> None:
    source = make(tmp_path / "source", {"a": b"1", ".asyncsync-mine": b"", DEEP: b""})
    receipt = await asyncsync.sync_up(source, f"{place}/ckpt", exclude=[".asyncsync-mine", "d/"])

    assert receipt.files == 1
