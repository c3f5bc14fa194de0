"""sync_down: what arrives is what was committed, and what is not ours is left alone."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import asyncsync
from asyncsync.digest import CHUNK_BYTES
from asyncsync.errors import (
    ClashError,
    ConfigError,
    FormatError,
    IntegrityError,
    NotCommittedError,
    NotFoundError,
)
from asyncsync.events import Committed, Moved, Planned, Started
from asyncsync.manifest import Kind
from asyncsync.names import MANIFEST
from asyncsync.storage.local import finish
from asyncsync.storage.memory import memory_objects
from asyncsync.syncing import StorageSyncer
from asyncsync.syncing.download import Download
from asyncsync.transfer import Committed as CommittedSource
from asyncsync.units import MIB

from .trees import Events, content, disk, make, temporary

TREE: dict[str, bytes | None] = {
    "a": b"1",
    "d/b": b"two",
    "d/e/c": b"",
    "big": os.urandom(300_000),
    "hollow/inner": None,
}
FILES = 4
BYTES = 300_004


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where trees can be made, on a disk and in an object store."""
    return f"memory://{os.urandom(8).hex()}" if request.param == "memory" else str(tmp_path / "s")


@pytest.fixture
async def source(tmp_path: Path, place: str) -> Path:
    """The source of the commit at `place`/ckpt_7."""
    source = make(tmp_path / "source", TREE)
    await asyncsync.sync_up(source, f"{place}/ckpt_7")
    return source


@pytest.fixture
def commit(source: Path, place: str) -> str:
    return f"{place}/ckpt_7"


@pytest.fixture
def back(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "back"


async def _replace(source: Path, commit: str, changes: dict[str, bytes | None], *gone: str) -> None:
    make(source, changes)
    for name in gone:
        os.unlink(source / name)
    await asyncsync.sync_up(source, commit, replace=True)


# ---------------------------------------------------------------- into what


async def test_into_nothing_the_whole_tree_arrives(commit: str, back: Path) -> None:
    events = Events()
    receipt = await asyncsync.sync_down(commit, back, observe=events)

    assert content(back) == TREE
    assert os.listdir(back.parent) == ["back"]
    assert temporary(back.parent) == []
    assert (await asyncsync.verify(back)).ok
    assert (receipt.files, receipt.size_bytes) == (FILES, BYTES)
    assert (receipt.sent_files, receipt.sent_bytes) == (FILES, BYTES)
    assert (receipt.skipped_files, receipt.deleted_files) == (0, 0)
    assert (receipt.location, receipt.durability) == (str(back), "fsync")
    assert [type(event) for event in events[:2]] == [Started, Planned]
    moved = events.of(Moved)
    assert (moved[-1].moved_bytes, moved[-1].moved_files) == (BYTES, FILES)
    assert (moved[-1].total_bytes, moved[-1].total_files) == (BYTES, FILES)
    assert isinstance(events[-1], Committed)


async def test_the_restored_identity_is_that_of_the_commit(commit: str, back: Path) -> None:
    receipt = await asyncsync.sync_down(commit, back)
    report = await asyncsync.verify(commit)

    assert receipt.identity == report.identity


async def test_into_an_empty_directory_the_whole_tree_arrives(commit: str, back: Path) -> None:
    back.mkdir(parents=True)
    inode = back.stat().st_ino
    await asyncsync.sync_down(commit, back)

    assert content(back) == TREE
    assert back.stat().st_ino == inode


async def test_files_of_the_users_own_stay(commit: str, back: Path) -> None:
    own: dict[str, bytes | None] = {"notes": b"mine", "d/mine": b"too", "empty": None}
    make(back, own)
    await asyncsync.sync_down(commit, back)

    assert content(back) == {**TREE, **own}


async def test_a_file_of_the_users_own_in_the_way_is_refused_and_nothing_written(
    commit: str, back: Path
) -> None:
    make(back, {"d/b": b"mine", "z": b"z"})
    before = disk(back.parent)
    with pytest.raises(ClashError, match="d/b") as caught:
        await asyncsync.sync_down(commit, back)

    assert caught.value.paths == ("d/b",)
    assert disk(back.parent) == before


async def test_the_same_file_by_chance_is_no_clash(commit: str, back: Path) -> None:
    make(back, {"d/b": b"two"})
    receipt = await asyncsync.sync_down(commit, back)

    assert content(back) == TREE
    assert (receipt.sent_files, receipt.skipped_files) == (FILES - 1, 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"a/mine": b"a directory where a file goes"}, "a"),
        ({"d": b"a file where a directory goes"}, "d/b"),
    ],
)
async def test_another_kind_of_thing_in_the_way_is_refused(
    commit: str, back: Path, change: dict[str, bytes | None], named: str
) -> None:
    make(back, change)
    with pytest.raises(ClashError, match=named):
        await asyncsync.sync_down(commit, back)

    assert content(back) == change
    assert temporary(back) == []


@pytest.mark.parametrize("link", ["a", "d", "d/e", "hollow"])
async def test_a_link_in_the_way_is_refused_and_never_written_through(
    commit: str, back: Path, tmp_path: Path, link: str
) -> None:
    make(tmp_path / "outside", {"file": b"outside"})
    (back / link).parent.mkdir(parents=True)
    os.symlink(tmp_path / "outside", back / link)
    with pytest.raises(ClashError):
        await asyncsync.sync_down(commit, back)

    assert content(tmp_path / "outside") == {"file": b"outside"}
    assert (back / link).is_symlink()
    assert temporary(back) == []


async def test_a_target_behind_a_link_is_written_where_the_link_leads(
    commit: str, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    await asyncsync.sync_down(commit, tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == TREE


async def test_a_target_that_is_a_file_is_refused(commit: str, tmp_path: Path) -> None:
    make(tmp_path, {"file": b"mine"})
    with pytest.raises(ConfigError, match="is a file"):
        await asyncsync.sync_down(commit, tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == b"mine"


# ---------------------------------------------------------------- again


async def test_again_nothing_is_fetched_and_nothing_written(commit: str, back: Path) -> None:
    await asyncsync.sync_down(commit, back)
    before = disk(back.parent)
    receipt = await asyncsync.sync_down(commit, back)

    assert disk(back.parent) == before
    assert (receipt.sent_files, receipt.sent_bytes) == (0, 0)
    assert (receipt.skipped_files, receipt.skipped_bytes) == (FILES, BYTES)


async def test_of_a_newer_version_only_what_changed_is_fetched(
    source: Path, commit: str, back: Path
) -> None:
    await asyncsync.sync_down(commit, back)
    make(back, {"notes": b"mine"})
    big = (back / "big").stat().st_ino
    await _replace(source, commit, {"a": b"22", "new/x": b"x"}, "d/b", "d/e/c")
    receipt = await asyncsync.sync_down(commit, back)

    expected = {**TREE, "a": b"22", "new/x": b"x", "notes": b"mine", "d/e": None}
    del expected["d/b"], expected["d/e/c"]
    assert content(back) == expected
    assert (receipt.sent_files, receipt.sent_bytes, receipt.deleted_files) == (2, 3, 2)
    assert (receipt.skipped_files, receipt.skipped_bytes) == (1, 300_000)
    assert (back / "big").stat().st_ino == big
    assert (await asyncsync.verify(back)).ok


async def test_a_deleted_file_and_a_deleted_empty_directory_come_back(
    commit: str, back: Path
) -> None:
    await asyncsync.sync_down(commit, back)
    os.unlink(back / "a")
    os.rmdir(back / "hollow/inner")
    await asyncsync.sync_down(commit, back)
    os.rmdir(back / "hollow/inner")
    await asyncsync.sync_down(commit, back)

    assert content(back) == TREE


async def test_a_restored_file_that_the_user_changed_is_refused(
    source: Path, commit: str, back: Path
) -> None:
    await asyncsync.sync_down(commit, back)
    make(back, {"a": b"x"})
    await _replace(source, commit, {"d/b": b"newer"})
    with pytest.raises(ClashError, match="a"):
        await asyncsync.sync_down(commit, back)

    assert content(back) == {**TREE, "a": b"x"}


async def test_a_stale_file_that_the_user_changed_is_refused_not_deleted(
    source: Path, commit: str, back: Path
) -> None:
    await asyncsync.sync_down(commit, back)
    make(back, {"a": b"x"})
    await _replace(source, commit, {}, "a")
    with pytest.raises(ClashError, match="a"):
        await asyncsync.sync_down(commit, back)

    assert content(back) == {**TREE, "a": b"x"}


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize(
    "swap", ["a link for a file", "a directory for a file", "a link above", "a file above"]
)
async def test_what_the_user_put_in_the_place_of_a_restored_file_is_refused(
    source: Path, commit: str, back: Path, tmp_path: Path, swap: str, stale: bool
) -> None:
    outside = make(tmp_path / "outside", {"a": b"mine", "b": b"two", "e/c": b"mine"})
    await asyncsync.sync_down(commit, back)
    name = "d/b" if "above" in swap else "a"
    os.rename(back / name.split("/", maxsplit=1)[0], tmp_path / "moved")
    swaps: dict[str, Callable[[], object]] = {
        "a link for a file": lambda: os.symlink(outside / "a", back / "a"),
        "a directory for a file": lambda: make(back / "a", {"mine": b"mine"}),
        "a link above": lambda: os.symlink(outside, back / "d"),
        "a file above": lambda: make(back, {"d": b"mine"}),
    }
    swaps[swap]()
    if stale:
        await _replace(source, commit, {"other": b""}, name)
    else:
        await _replace(source, commit, {name: b"newer"})
    before = disk(back, outside)
    with pytest.raises(ClashError):
        await asyncsync.sync_down(commit, back)

    assert disk(back, outside) == before


async def test_another_commit_into_the_same_directory_takes_the_place_of_the_first(
    source: Path, place: str, commit: str, back: Path
) -> None:
    await asyncsync.sync_down(commit, back)
    make(source, {"a": b"8", "only_8": b"8"})
    os.unlink(source / "d/b")
    await asyncsync.sync_up(source, f"{place}/ckpt_8")
    await asyncsync.sync_down(f"{place}/ckpt_8", back)

    expected = {**TREE, "a": b"8", "only_8": b"8"}
    del expected["d/b"]
    assert content(back) == expected


async def test_a_restore_that_died_while_it_tidied_up_is_finished_by_the_next(
    source: Path, commit: str, back: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncsync.sync_down(commit, back)
    await _replace(source, commit, {"a": b"22", "new/x": b"x"}, "d/b")

    def die(*args: object) -> bool:
        raise OSError(5, "the machine stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(finish, "_finish", die)
        with pytest.raises(asyncsync.AsyncSyncError):
            await asyncsync.sync_down(commit, back)
    half = content(back)
    await asyncsync.sync_down(commit, back)

    expected = {**TREE, "a": b"22", "new/x": b"x"}
    del expected["d/b"]
    assert half == TREE
    assert content(back) == expected
    assert temporary(back) == []


# ---------------------------------------------------------------- a part of a tree


async def test_a_part_arrives_and_is_named_as_one(commit: str, back: Path) -> None:
    whole = await asyncsync.verify(commit)
    receipt = await asyncsync.sync_down(commit, back, include=["d/"])
    (part,) = [found async for found in asyncsync.commits(back)]

    assert content(back) == {"d/b": b"two", "d/e/c": b""}
    assert (receipt.files, receipt.sent_files) == (2, 2)
    assert part.part_of == whole.identity
    assert part.identity == receipt.identity != whole.identity


async def test_only_the_part_is_read(commit: str, back: Path) -> None:
    events = Events()
    await asyncsync.sync_down(commit, back, exclude=["big"], observe=events)

    assert events.of(Moved)[-1].total_bytes == BYTES - 300_000
    assert content(back) == {path: data for path, data in TREE.items() if path != "big"}


async def test_a_second_part_of_the_same_commit_joins_the_first(commit: str, back: Path) -> None:
    await asyncsync.sync_down(commit, back, include=["d/"])
    second = await asyncsync.sync_down(commit, back, include=["a"])
    third = await asyncsync.sync_down(commit, back)

    assert second.files == 3
    assert content(back) == TREE
    assert (third.sent_files, third.skipped_files) == (1, 3)
    assert third.identity == (await asyncsync.verify(commit)).identity


async def test_a_part_of_another_commit_is_refused(source: Path, commit: str, back: Path) -> None:
    await asyncsync.sync_down(commit, back, include=["d/"])
    await _replace(source, commit, {"a": b"newer"})
    before = disk(back)
    with pytest.raises(ClashError, match="another commit"):
        await asyncsync.sync_down(commit, back, include=["a"])

    assert disk(back) == before


async def test_a_part_of_nothing_is_not_found(commit: str, back: Path) -> None:
    with pytest.raises(NotFoundError, match="patterns"):
        await asyncsync.sync_down(commit, back, include=["weights*"])

    assert not back.exists()


async def test_damage_outside_the_part_does_not_matter(
    source: Path, commit: str, back: Path, place: str
) -> None:
    await _damage(commit, "big", lambda data: data[:-1])
    await asyncsync.sync_down(commit, back, include=["d/"])

    assert content(back) == {"d/b": b"two", "d/e/c": b""}


# ---------------------------------------------------------------- damage


async def _damage(commit: str, path: str, change: Callable[[bytes], bytes] | None) -> None:
    """Change a stored file behind asyncsync's back; None removes it."""
    if commit.startswith("memory://"):
        namespace, _, tree = commit.removeprefix("memory://").partition("/")
        objects = memory_objects(namespace)
        data = bytes((await objects.get(f"{tree}/{path}")).data)
        if change is None:
            await objects.delete(f"{tree}/{path}")
        else:
            await objects.put(f"{tree}/{path}", change(data))
        return
    file = Path(commit) / path
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


DAMAGE: dict[str, Callable[[bytes], bytes] | None] = {
    "one bit flipped": _flip,
    "its tail lost": lambda data: data[:-1],
    "all of it lost": lambda data: b"",
    "grown": lambda data: data + b"\0",
    "zeros after a crash": lambda data: bytes(len(data)),
    "missing": None,
}


@pytest.mark.parametrize("path", ["d/b", "big"])
@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_file_is_named_and_the_directory_stays_as_it_was(
    source: Path, commit: str, back: Path, damage: str, path: str
) -> None:
    await _damage(commit, path, DAMAGE[damage])
    with pytest.raises(IntegrityError, match=path) as caught:
        await asyncsync.sync_down(commit, back)
    make(back, {"notes": b"mine"})
    before = content(back)
    with pytest.raises(IntegrityError):
        await asyncsync.sync_down(commit, back)
    report = await asyncsync.verify(commit)

    assert caught.value.paths == (path,)
    assert caught.value.exit_code == 8
    assert before == content(back)
    assert os.listdir(back.parent) == ["back"]
    assert [name for name, _ in report.failures] == [path]


async def test_an_older_restore_stays_when_the_newer_version_is_damaged(
    source: Path, commit: str, back: Path
) -> None:
    await asyncsync.sync_down(commit, back)
    await _replace(source, commit, {"a": b"22", "d/b": b"newer"})
    await _damage(commit, "d/b", _flip)
    before = content(back)
    with pytest.raises(IntegrityError, match="d/b"):
        await asyncsync.sync_down(commit, back)

    assert content(back) == before == TREE
    assert temporary(back) == []


async def test_verify_names_every_damaged_file_and_reads_each_byte_once(
    tmp_path: Path, place: str
) -> None:
    files: dict[str, bytes | None] = {f"{n:03}": b"x" * 1000 for n in range(300)}
    source = make(tmp_path / "many", {**files, "big": b"b" * 400_000, "big2": b"c" * 400_000})
    await asyncsync.sync_up(source, f"{place}/many")
    damaged = [f"{n:03}" for n in range(0, 300, 7)] + ["big"]
    for path in damaged:
        await _damage(f"{place}/many", path, _flip)
    events = Events()
    report = await asyncsync.verify(f"{place}/many", observe=events)

    assert [path for path, _ in report.failures] == sorted(damaged)
    good = 300_000 + 800_000 - 43_000 - 400_000
    assert sum(event.size_bytes for event in events.of(Moved)) == good


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_flip, id="end"),
        pytest.param(lambda data: data[:100], id="truncated"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"\0" * len(data), id="zeros"),
        pytest.param(lambda data: data[:300] + b"0" + data[301:], id="inside"),
    ],
)
async def test_a_damaged_manifest_is_no_commit(
    source: Path, commit: str, back: Path, change: Callable[[bytes], bytes]
) -> None:
    await _damage(commit, MANIFEST, change)
    with pytest.raises(IntegrityError) as caught:
        await asyncsync.sync_down(commit, back)
    with pytest.raises(IntegrityError):
        await asyncsync.verify(commit)

    assert "\n" not in str(caught.value)
    assert "ckpt_7" in str(caught.value)
    assert not back.exists()


async def test_a_newer_format_says_to_upgrade(source: Path, commit: str, back: Path) -> None:
    newer = b'"asyncsync":2'
    await _damage(commit, MANIFEST, lambda data: data.replace(b'"asyncsync":1', newer, 1))
    with pytest.raises(FormatError, match="upgrade"):
        await asyncsync.sync_down(commit, back)

    assert not back.exists()


async def test_a_large_file_is_verified_by_chunks(tmp_path: Path, back: Path) -> None:
    size = 2 * CHUNK_BYTES + 5
    source = make(tmp_path / "source", {"w": os.urandom(1) * size})
    await asyncsync.sync_up(source, tmp_path / "s/ckpt")
    receipt = await asyncsync.sync_down(tmp_path / "s/ckpt", back)
    with open(tmp_path / "s/ckpt/w", "r+b") as file:
        file.seek(CHUNK_BYTES)
        file.write(b"\1\2\3")

    assert receipt.size_bytes == size
    assert (back / "w").read_bytes() == (source / "w").read_bytes()
    with pytest.raises(IntegrityError, match="chunk 1"):
        await asyncsync.sync_down(tmp_path / "s/ckpt", tmp_path / "other")


async def test_a_sparse_file_arrives_sparse_in_both_directions(tmp_path: Path, back: Path) -> None:
    source = make(tmp_path / "source", {"sparse": b""})
    with open(source / "sparse", "r+b") as file:
        for offset in (0, CHUNK_BYTES - 5, 40 * MIB, 80 * MIB - 10):
            file.seek(offset)
            file.write(b"an island")
        file.truncate(80 * MIB)
    await asyncsync.sync_up(source, tmp_path / "s/ckpt")
    await asyncsync.sync_down(tmp_path / "s/ckpt", back)

    copies = [tmp_path / "s/ckpt/sparse", back / "sparse"]
    data = (source / "sparse").read_bytes()
    assert all(copy.read_bytes() == data for copy in copies)
    assert all(copy.stat().st_blocks * 512 < MIB for copy in copies)


# ---------------------------------------------------------------- trees of other tools


async def test_a_tree_without_a_manifest_is_read_only_when_that_is_allowed(
    tmp_path: Path, back: Path
) -> None:
    make(tmp_path / "foreign", TREE)
    with pytest.raises(NotCommittedError, match="allow_unverified"):
        await asyncsync.sync_down(tmp_path / "foreign", back)
    receipt = await asyncsync.sync_down(tmp_path / "foreign", back, allow_unverified=True)

    expected = {path: data for path, data in TREE.items() if data is not None}
    assert content(back) == expected
    assert (receipt.files, receipt.sent_bytes) == (FILES, BYTES)
    assert (await asyncsync.verify(back)).ok


async def test_a_part_of_a_foreign_tree_can_be_read(tmp_path: Path, back: Path) -> None:
    make(tmp_path / "foreign", TREE)
    await asyncsync.sync_down(tmp_path / "foreign", back, allow_unverified=True, include=["d/"])

    assert content(back) == {"d/b": b"two", "d/e/c": b""}


async def test_a_foreign_tree_overwrites_nothing(tmp_path: Path, back: Path) -> None:
    make(tmp_path / "foreign", TREE)
    make(back, {"a": b"mine"})
    with pytest.raises(ClashError, match="a"):
        await asyncsync.sync_down(tmp_path / "foreign", back, allow_unverified=True)

    assert content(back) == {"a": b"mine"}


async def test_nothing_is_not_found(place: str, back: Path) -> None:
    with pytest.raises(NotFoundError):
        await asyncsync.sync_down(f"{place}/nowhere", back)

    assert not back.parent.exists()


# ---------------------------------------------------------------- while it is replaced


NEWER: dict[str, bytes | None] = {"a": b"newer", "d/b": b"newer", "z": b"z", "big": b"B" * 300_000}


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
@pytest.mark.parametrize("moment", ["manifest", "first read", "second read"])
async def test_a_reader_of_a_tree_that_is_replaced_gets_one_version_whole(
    place: str, tmp_path: Path, back: Path, kind: Kind, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "source", TREE)
    await asyncsync.sync_up(source, f"{place}/tree", kind=kind)
    make(source, NEWER)
    pending: list[Callable[[], Awaitable[object]]] = [
        lambda: asyncsync.sync_up(source, f"{place}/tree", replace=True)
    ]
    method = "read" if moment == "second read" else "read_many"
    inner = getattr(CommittedSource, method)

    async def replaced_first(self: CommittedSource, *args: object) -> object:
        while pending:
            await pending.pop()()
        return await inner(self, *args)

    if moment == "manifest":
        _after(monkeypatch, Download, "_decide", pending)
    else:
        monkeypatch.setattr(CommittedSource, method, replaced_first)
    await asyncsync.sync_down(f"{place}/tree", back)

    assert pending == []
    assert content(back) in (TREE, {**TREE, **NEWER})
    assert (await asyncsync.verify(back)).ok


def _after(
    monkeypatch: pytest.MonkeyPatch,
    owner: type[Download],
    name: str,
    pending: list[Callable[[], Awaitable[object]]],
) -> None:
    inner = getattr(owner, name)

    async def act(self: Download) -> object:
        decided = await inner(self)
        while pending:
            await pending.pop()()
        return decided

    monkeypatch.setattr(owner, name, act)


# ---------------------------------------------------------------- a dry run


async def test_a_plan_says_what_would_be_fetched_and_writes_nothing(
    source: Path, commit: str, back: Path
) -> None:
    await asyncsync.sync_down(commit, back)
    await _replace(source, commit, {"a": b"22"}, "d/b")
    before = disk(back)
    async with StorageSyncer(isolation="loop") as syncer:
        plan = await syncer.plan_down(commit, back)

    assert [file.path for file in plan.send] == ["a"]
    assert sorted(file.path for file in plan.skip) == ["big", "d/e/c"]
    assert plan.delete == ("d/b",)
    assert disk(back) == before


async def test_a_part_of_a_rolling_tree_follows_its_versions(tmp_path: Path) -> None:
    source, there, back = (tmp_path / name for name in ("source", "there", "back"))
    source.mkdir()
    async with StorageSyncer(isolation="loop") as syncer:
        for version, gone in (("one", ""), ("two", "old.log")):
            (source / "a.log").write_text(version)
            (source / "left.tmp").write_text(version)
            if gone:
                (source / gone).unlink()
            else:
                (source / "old.log").write_text(version)
            await syncer.sync_up(source, there, kind="rolling")
            await syncer.sync_down(there, back, exclude=["*.tmp"])

    assert {path.name for path in back.iterdir()} == {"a.log", ".asyncsync.json"}
    assert (back / "a.log").read_text() == "two"
