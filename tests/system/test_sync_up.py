"""sync_up: what is committed, what is refused, and what is left alone."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

import asyncsync
from asyncsync.concurrency import Threads
from asyncsync.errors import (
    BusyError,
    ClashError,
    ConfigError,
    ConflictError,
    IntegrityError,
    NotCommittedError,
    NotFoundError,
    RefusedError,
)
from asyncsync.events import Committed, Moved, Planned, Skipped, Started
from asyncsync.manifest import Kind, Manifest, decode
from asyncsync.names import MANIFEST, new_attempt
from asyncsync.storage import Durability, Intent
from asyncsync.storage.committed.writer import CommittedWriter
from asyncsync.storage.local import LocalTrees
from asyncsync.syncing import Receipt, StorageSyncer
from asyncsync.testing import FakeClock
from asyncsync.transfer import Directory, SourceFile

from .trees import Events, content, disk, headers_only_together, make, temporary, ticking

TREE: dict[str, bytes | None] = {
    "a": b"1",
    "d/b": b"two",
    "d/e/c": b"",
    "big": os.urandom(300_000),
    "hollow/inner": None,
}
FILES = 4
BYTES = 300_004


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "ckpt_7", TREE)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "store" / "run" / "ckpt_7"


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where trees can be made, on a disk and in an object store."""
    return f"memory://{os.urandom(8).hex()}" if request.param == "memory" else str(tmp_path / "s")


class SleptClock(FakeClock):
    """Time passes where somebody sleeps, at once, and not while others work."""

    async def sleep(self, seconds: float) -> None:
        await checkpoint()
        self._time += max(0.0, seconds)


async def _back(location: object, tmp_path: Path) -> dict[str, bytes | None]:
    folder = tmp_path / "back" / os.urandom(4).hex()
    await asyncsync.sync_down(str(location), folder)
    return content(folder)


# ---------------------------------------------------------------- a new commit


async def test_a_new_commit_holds_exactly_what_the_source_holds(source: Path, target: Path) -> None:
    receipt = await asyncsync.sync_up(source, target)

    assert content(target) == TREE
    assert os.listdir(target.parent) == ["ckpt_7"]
    assert temporary(target.parent) == []
    assert (await asyncsync.verify(target)).ok
    assert (receipt.files, receipt.size_bytes) == (FILES, BYTES)
    assert (receipt.sent_files, receipt.sent_bytes) == (FILES, BYTES)
    assert (receipt.skipped_files, receipt.skipped_bytes, receipt.deleted_files) == (0, 0, 0)
    assert (receipt.kind, receipt.rounds, receipt.snapshot) == ("sealed", 1, "in place")
    assert (receipt.location, receipt.durability) == (str(target), "fsync")


async def test_a_commit_comes_back_from_every_store(
    source: Path, place: str, tmp_path: Path
) -> None:
    await asyncsync.sync_up(source, f"{place}/ckpt_7")

    assert await _back(f"{place}/ckpt_7", tmp_path) == TREE


async def test_modes_and_times_of_files_come_back(source: Path, place: str, tmp_path: Path) -> None:
    os.chmod(source / "a", 0o4751)
    os.chmod(source / "d/b", 0o400)
    os.chmod(source / "hollow/inner", 0o750)
    os.utime(source / "a", ns=(1, 1_234_567_890_123_456_789))
    await asyncsync.sync_up(source, f"{place}/ckpt_7")
    await asyncsync.sync_down(f"{place}/ckpt_7", tmp_path / "back")

    modes = {
        p: stat.S_IMODE((tmp_path / "back" / p).stat().st_mode)
        for p in ("a", "d/b", "hollow/inner")
    }
    assert modes == {"a": 0o751, "d/b": 0o400, "hollow/inner": 0o750}
    assert (tmp_path / "back/a").stat().st_mtime_ns == 1_234_567_890_123_456_789


async def test_an_empty_source_makes_an_empty_commit(tmp_path: Path, place: str) -> None:
    (tmp_path / "none").mkdir()
    receipt = await asyncsync.sync_up(tmp_path / "none", f"{place}/ckpt_7")

    assert (receipt.files, receipt.size_bytes) == (0, 0)
    assert await _back(f"{place}/ckpt_7", tmp_path) == {}


async def test_events_tell_the_whole_story_in_order(source: Path, target: Path) -> None:
    events = Events()
    receipt = await asyncsync.sync_up(source, target, observe=events)

    assert [type(event) for event in events[:2]] == [Started, Planned]
    assert events.of(Planned) == [
        Planned(send_files=FILES, send_bytes=BYTES, skip_files=0, skip_bytes=0, delete_files=0)
    ]
    moved = events.of(Moved)
    assert sum(event.size_bytes for event in moved) == BYTES
    progress = [(event.moved_bytes, event.moved_files) for event in moved]
    assert progress == sorted(progress)
    last = moved[-1]
    assert (last.moved_bytes, last.moved_files) == (last.total_bytes, last.total_files)
    assert (last.total_bytes, last.total_files) == (BYTES, FILES)
    assert events[-1] == Committed(
        location=str(target), identity=receipt.identity, durability="fsync"
    )


async def test_equal_content_has_equal_identity_wherever_it_is(source: Path, place: str) -> None:
    one = await asyncsync.sync_up(source, f"{place}/one")
    os.utime(source / "a", ns=(1, 1))
    other = await asyncsync.sync_up(source, f"{place}/other")

    assert one.identity == other.identity


async def test_files_that_frameworks_take_for_the_commit_arrive_last(
    source: Path, target: Path
) -> None:
    make(source, {".metadata": b"m" * 400_000, "0/commit_success.txt": b"s"})
    events = Events()
    await asyncsync.sync_up(source, target, observe=events)

    order = [event.path for event in events.of(Moved)]
    assert set(order[-2:]) == {".metadata", "0/commit_success.txt"}


@pytest.mark.parametrize(
    ("name", "step"),
    [("checkpoint_000010", 10), ("step=7", 7), ("ckpt_7", 7), ("1000", 1000), ("v2.final", None)],
)
async def test_the_step_is_the_number_the_name_ends_in(
    source: Path, tmp_path: Path, name: str, step: int | None
) -> None:
    await asyncsync.sync_up(source, tmp_path / "s" / name)
    newest = await asyncsync.latest(tmp_path / "s")

    assert newest is not None
    assert newest.step == step


async def test_a_step_that_is_said_wins_over_the_name(source: Path, tmp_path: Path) -> None:
    await asyncsync.sync_up(source, tmp_path / "s/ckpt_7", step=0)
    newest = await asyncsync.latest(tmp_path / "s")

    assert newest is not None
    assert newest.step == 0


# ---------------------------------------------------------------- again


async def test_the_same_again_writes_nothing_at_all(source: Path, target: Path) -> None:
    first = await asyncsync.sync_up(source, target)
    before = disk(target.parent.parent)
    again = await asyncsync.sync_up(source, target)

    assert disk(target.parent.parent) == before
    assert again.identity == first.identity
    assert (again.sent_files, again.sent_bytes) == (0, 0)
    assert (again.skipped_files, again.skipped_bytes) == (FILES, BYTES)


async def test_the_same_rolling_tree_again_writes_nothing_at_all(
    source: Path, target: Path
) -> None:
    await asyncsync.sync_up(source, target, kind="rolling")
    before = disk(target.parent.parent)
    again = await asyncsync.sync_up(source, target)

    assert disk(target.parent.parent) == before
    assert (again.kind, again.sent_files, again.skipped_files) == ("rolling", 0, FILES)


async def test_the_same_content_from_elsewhere_is_the_same_commit(
    source: Path, place: str, tmp_path: Path
) -> None:
    first = await asyncsync.sync_up(source, f"{place}/ckpt_7")
    second = await asyncsync.sync_up(make(tmp_path / "twin", TREE), f"{place}/ckpt_7")

    assert (second.identity, second.sent_files) == (first.identity, 0)


# ---------------------------------------------------------------- conflict and replace


@pytest.mark.parametrize(
    "change",
    [
        {"a": b"2"},
        {"more": b"x"},
        {"more/empty": None},
    ],
)
async def test_a_changed_sealed_tree_is_a_conflict_that_names_the_winner(
    source: Path, place: str, tmp_path: Path, change: dict[str, bytes | None]
) -> None:
    first = await asyncsync.sync_up(source, f"{place}/ckpt_7")
    make(source, change)
    with pytest.raises(ConflictError, match=first.identity[:12]) as caught:
        await asyncsync.sync_up(source, f"{place}/ckpt_7")

    assert caught.value.winner == first.identity
    assert "replace" in str(caught.value)
    assert await _back(f"{place}/ckpt_7", tmp_path) == TREE


async def test_a_conflict_writes_nothing(source: Path, target: Path) -> None:
    await asyncsync.sync_up(source, target)
    before = disk(target.parent)
    make(source, {"a": b"2"})
    with pytest.raises(ConflictError):
        await asyncsync.sync_up(source, target)

    assert disk(target.parent) == before


async def test_a_changed_mode_is_a_change(source: Path, target: Path) -> None:
    await asyncsync.sync_up(source, target)
    os.chmod(source / "a", 0o700)

    with pytest.raises(ConflictError):
        await asyncsync.sync_up(source, target)


async def test_replace_takes_its_place_and_sends_only_what_differs(
    source: Path, place: str, tmp_path: Path
) -> None:
    first = await asyncsync.sync_up(source, f"{place}/ckpt_7")
    make(source, {"a": b"22", "new/x": b"x"})
    os.unlink(source / "d/b")
    os.rmdir(source / "hollow/inner")
    receipt = await asyncsync.sync_up(source, f"{place}/ckpt_7", replace=True)

    assert receipt.identity != first.identity
    assert (receipt.sent_files, receipt.sent_bytes) == (2, 3)
    assert (receipt.skipped_files, receipt.skipped_bytes) == (2, 300_000)
    assert receipt.deleted_files == 1
    expected = {**TREE, "a": b"22", "new/x": b"x", "hollow": None}
    del expected["d/b"], expected["hollow/inner"]
    assert await _back(f"{place}/ckpt_7", tmp_path) == expected
    newest = await asyncsync.latest(f"{place}/ckpt_7")
    assert newest is not None
    assert newest.sequence == 2


async def test_replace_refuses_while_files_of_others_would_go(source: Path, target: Path) -> None:
    await asyncsync.sync_up(source, target)
    make(target, {"notes.txt": b"mine"})
    make(source, {"a": b"2"})
    before = disk(target.parent)
    with pytest.raises(ClashError, match=r"notes\.txt"):
        await asyncsync.sync_up(source, target, replace=True)

    assert content(target)["notes.txt"] == b"mine"
    assert content(target)["a"] == b"1"
    assert disk(target.parent).keys() == before.keys()


async def test_a_sealed_tree_becomes_rolling_only_with_replace(source: Path, target: Path) -> None:
    await asyncsync.sync_up(source, target)
    with pytest.raises(ConflictError):
        await asyncsync.sync_up(source, target, kind="rolling")
    receipt = await asyncsync.sync_up(source, target, kind="rolling", replace=True)

    assert receipt.kind == "rolling"
    assert (await asyncsync.verify(target)).ok


# ---------------------------------------------------------------- rolling trees


async def test_a_rolling_tree_follows_its_source(source: Path, place: str, tmp_path: Path) -> None:
    await asyncsync.sync_up(source, f"{place}/trial", kind="rolling")
    make(source, {"a": b"changed", "added/x": b"x"})
    os.unlink(source / "d/b")
    os.rename(source / "big", source / "small")
    receipt = await asyncsync.sync_up(source, f"{place}/trial")

    expected = {**TREE, "a": b"changed", "added/x": b"x", "small": TREE["big"]}
    del expected["d/b"], expected["big"]
    assert await _back(f"{place}/trial", tmp_path) == expected
    assert (receipt.sent_files, receipt.skipped_files, receipt.deleted_files) == (3, 1, 2)


async def test_a_file_becomes_a_directory_and_a_directory_a_file(
    source: Path, place: str, tmp_path: Path
) -> None:
    await asyncsync.sync_up(source, f"{place}/trial", kind="rolling")
    os.unlink(source / "a")
    make(source, {"a/inside": b"was a file"})
    os.unlink(source / "d/e/c")
    os.rmdir(source / "d/e")
    make(source, {"d/e": b"was a directory"})
    os.rmdir(source / "hollow/inner")
    make(source, {"hollow/inner": b"was empty"})
    await asyncsync.sync_up(source, f"{place}/trial")

    expected = {
        "a/inside": b"was a file",
        "d/b": b"two",
        "d/e": b"was a directory",
        "big": TREE["big"],
        "hollow/inner": b"was empty",
    }
    assert await _back(f"{place}/trial", tmp_path) == expected
    if "://" not in place:
        assert content(Path(place) / "trial") == expected


def _spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of a source that are opened from now on."""
    read: list[str] = []
    inner = Directory.opened

    def spy(self: Directory, file: SourceFile) -> AbstractContextManager[object]:
        read.append(file.path)
        return inner(self, file)

    monkeypatch.setattr(Directory, "opened", spy)
    return read


async def test_only_what_changed_is_read_again(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncsync.sync_up(source, target, kind="rolling")
    make(source, {"a": b"2"})
    read = _spied(monkeypatch)
    await asyncsync.sync_up(source, target)

    assert set(read) == {"a"}


async def test_what_is_gone_from_the_source_may_stay_in_a_rolling_target(
    source: Path, place: str, tmp_path: Path
) -> None:
    async with StorageSyncer(isolation="loop") as syncer:

        async def up() -> Receipt:
            return await syncer.sync_up(source, f"{place}/trial", kind="rolling", delete=False)

        await up()
        (source / "a").unlink()
        (source / "d" / "e" / "c").unlink()  # its directory is empty from here on
        (source / "d" / "b").write_bytes(b"new")
        plan = await syncer.plan_up(source, f"{place}/trial", kind="rolling", delete=False)
        second = await up()
        same = await up()
        await syncer.sync_down(f"{place}/trial", tmp_path / "back")

        assert plan.delete == ()
        assert (second.files, second.deleted_files) == (FILES, 0)
        assert (same.sent_files, same.identity) == (0, second.identity)
        assert content(tmp_path / "back") == {**TREE, "d/b": b"new"}
        assert (await syncer.verify(f"{place}/trial")).ok
        for path in source.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert (await up()).files == FILES  # is it mounted? then nothing is lost either
        deleting = await syncer.sync_up(make(source, {"a": b"1"}), f"{place}/trial", kind="rolling")
        assert (deleting.files, deleting.deleted_files) == (1, FILES - 1)


async def test_what_stays_gives_way_to_what_needs_its_place(source: Path, place: str) -> None:
    async def up() -> Receipt:
        return await asyncsync.sync_up(source, f"{place}/trial", kind="rolling", delete=False)

    await up()
    shutil.rmtree(source / "d")
    (source / "a").unlink()
    make(source, {"a/is/now/a": b"directory", "d": b"is a file", "hollow/inner/x": b"1"})
    receipt = await up()
    there = await asyncsync.verify(f"{place}/trial")
    (source / "a" / "is" / "now" / "a").unlink()
    (source / "hollow" / "inner" / "x").rename(source / "x")
    shutil.rmtree(source / "hollow")
    again = await up()

    assert there.ok
    assert (receipt.files, receipt.deleted_files) == (4, 3)  # a, d/b, d/e/c
    assert (again.files, again.deleted_files) == (5, 0)
    assert (await asyncsync.verify(f"{place}/trial")).ok


async def test_what_is_whole_in_neither_place_does_not_stay(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"memory://{os.urandom(8).hex()}/trial"
    await asyncsync.sync_up(source, place, kind="rolling")
    (source / "a").unlink()
    (source / "d" / "b").write_bytes(b"new")
    commit = CommittedWriter.commit

    async def looks(writer: CommittedWriter, manifest: Manifest) -> Durability:
        if "a" in manifest.files:
            raise IntegrityError("overwritten by a dead attempt", side="target", paths=["a"])
        return await commit(writer, manifest)

    monkeypatch.setattr(CommittedWriter, "commit", looks)
    receipt = await asyncsync.sync_up(source, place, kind="rolling", delete=False)

    assert receipt.files == FILES - 1
    assert (await asyncsync.verify(place)).ok


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
async def test_what_was_read_and_found_the_same_is_not_read_again(
    kind: Kind, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncsync.sync_up(source, target, kind=kind)
    if kind == "rolling":  # of that it is remembered what was sent
        for path in filter(Path.is_file, source.rglob("*")):
            os.utime(path, ns=(0, 0))
        await asyncsync.sync_up(source, target)
    read = _spied(monkeypatch)
    first = await asyncsync.sync_up(source, target)
    seen, read[:] = set(read), []
    again = await asyncsync.sync_up(source, target)

    files = {path for path, held in TREE.items() if held is not None}
    assert seen == (set() if kind == "rolling" else files)
    assert not read
    assert (again.identity, again.sent_files) == (first.identity, 0)
    (source / "a").write_bytes(b"other")
    with nullcontext() if kind == "rolling" else pytest.raises(ConflictError):
        await asyncsync.sync_up(source, target)
    assert set(read) == {"a"} or kind == "sealed"


async def test_links_and_special_files_are_left_out_of_a_rolling_tree_and_named(
    source: Path, target: Path
) -> None:
    os.symlink("a", source / "link")
    os.mkfifo(source / "d/fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(source)
        listening.bind("sock")
    events = Events()
    receipt = await asyncsync.sync_up(source, target, kind="rolling", observe=events)

    named = {("link", "a symbolic link"), ("d/fifo", "a fifo"), ("sock", "a socket")}
    assert set(receipt.left_out) == named
    assert sorted((e.path, e.reason) for e in events.of(Skipped)) == sorted(named)
    assert content(target) == TREE


async def test_what_is_left_out_is_named_again_but_nothing_is_written(
    source: Path, target: Path
) -> None:
    os.symlink("a", source / "link")
    await asyncsync.sync_up(source, target, kind="rolling")
    before = disk(target.parent)
    again = await asyncsync.sync_up(source, target)

    assert disk(target.parent) == before
    assert again.left_out == (("link", "a symbolic link"),)


async def test_another_writer_of_a_rolling_tree_is_a_conflict(
    source: Path, place: str, tmp_path: Path
) -> None:
    first = await asyncsync.sync_up(source, f"{place}/trial", kind="rolling")
    other = make(tmp_path / "elsewhere", {**TREE, "a": b"theirs"})
    with pytest.raises(ConflictError, match="sync down first") as caught:
        await asyncsync.sync_up(other, f"{place}/trial", kind="rolling")

    assert caught.value.winner == first.identity
    assert await _back(f"{place}/trial", tmp_path) == TREE


async def test_files_of_others_in_a_rolling_target_stay(source: Path, target: Path) -> None:
    await asyncsync.sync_up(source, target, kind="rolling")
    make(target, {"notes.txt": b"mine", "d/mine": b"too"})
    make(source, {"a": b"2"})
    await asyncsync.sync_up(source, target)

    assert content(target) == {**TREE, "a": b"2", "notes.txt": b"mine", "d/mine": b"too"}


async def test_a_file_of_others_under_a_new_name_is_refused(source: Path, target: Path) -> None:
    await asyncsync.sync_up(source, target, kind="rolling")
    make(target, {"new": b"mine"})
    make(source, {"new": b"ours"})
    with pytest.raises(ClashError, match="new"):
        await asyncsync.sync_up(source, target)

    assert content(target) == {**TREE, "new": b"mine"}
    assert (await asyncsync.verify(target)).ok


# ---------------------------------------------------------------- origin


async def test_what_was_restored_changed_and_synced_back_is_an_update(
    source: Path, place: str, tmp_path: Path
) -> None:
    await asyncsync.sync_up(source, f"{place}/trial", kind="rolling")
    await asyncsync.sync_down(f"{place}/trial", tmp_path / "other")
    make(tmp_path / "other", {"a": b"2"})
    first = await asyncsync.sync_up(tmp_path / "other", f"{place}/trial")
    make(tmp_path / "other", {"a": b"3"})
    second = await asyncsync.sync_up(tmp_path / "other", f"{place}/trial")

    assert (first.kind, first.sent_files, second.sent_files) == ("rolling", 1, 1)
    assert await _back(f"{place}/trial", tmp_path) == {**TREE, "a": b"3"}
    with pytest.raises(ConflictError):
        await asyncsync.sync_up(make(source, {"a": b"late"}), f"{place}/trial")


async def test_a_restored_tree_is_no_origin_once_somebody_else_wrote(
    source: Path, place: str, tmp_path: Path
) -> None:
    await asyncsync.sync_up(source, f"{place}/trial", kind="rolling")
    await asyncsync.sync_down(f"{place}/trial", tmp_path / "other")
    await asyncsync.sync_up(make(source, {"a": b"newer"}), f"{place}/trial")
    make(tmp_path / "other", {"a": b"2"})

    with pytest.raises(ConflictError):
        await asyncsync.sync_up(tmp_path / "other", f"{place}/trial")


async def test_a_restored_part_is_no_origin(source: Path, place: str, tmp_path: Path) -> None:
    await asyncsync.sync_up(source, f"{place}/trial", kind="rolling")
    await asyncsync.sync_down(f"{place}/trial", tmp_path / "other", include=["a"])
    make(tmp_path / "other", {"a": b"2"})
    with pytest.raises(ConflictError):
        await asyncsync.sync_up(tmp_path / "other", f"{place}/trial")

    assert await _back(f"{place}/trial", tmp_path) == TREE


async def test_the_manifest_of_a_restored_source_is_never_sent(
    source: Path, place: str, tmp_path: Path
) -> None:
    first = await asyncsync.sync_up(source, f"{place}/ckpt_7")
    await asyncsync.sync_down(f"{place}/ckpt_7", tmp_path / "other")
    copy = await asyncsync.sync_up(tmp_path / "other", f"{place}/copy")

    assert copy.identity == first.identity
    assert copy.files == FILES


async def test_a_source_whose_restore_never_finished_is_refused(source: Path, target: Path) -> None:
    make(source, {".asyncsync-next/a": b"staged"})
    async with ticking() as clock, StorageSyncer(isolation="loop", clock=clock) as syncer:
        with pytest.raises(BusyError, match="sync down"):
            await syncer.sync_up(source, target)

    assert not target.parent.exists()


# ---------------------------------------------------------------- commits inside commits


def _nested(directory: Path) -> dict[str, str]:
    with open(directory / MANIFEST, "rb") as lines:
        return {entry.path: entry.identity for entry in decode(lines).nested}


async def test_a_commit_inside_the_target_is_not_touched_and_named_by_its_identity(
    tmp_path: Path,
) -> None:
    trial = make(tmp_path / "trial", {"log": b"1", "ckpt_1/w": b"w", "ckpt_1/v": b"v"})
    inner = await asyncsync.sync_up(trial / "ckpt_1", tmp_path / "s/trial/ckpt_1")
    before = disk(tmp_path / "s/trial/ckpt_1")
    outer = await asyncsync.sync_up(trial, tmp_path / "s/trial", kind="rolling")

    assert disk(tmp_path / "s/trial/ckpt_1") == before
    assert outer.files == 1
    assert _nested(tmp_path / "s/trial") == {"ckpt_1": inner.identity}


async def test_a_commit_made_inside_later_is_named_by_the_next_sync(tmp_path: Path) -> None:
    trial = make(tmp_path / "trial", {"log": b"1", "ckpt_1/w": b"w"})
    one = await asyncsync.sync_up(trial / "ckpt_1", tmp_path / "s/trial/ckpt_1")
    await asyncsync.sync_up(trial, tmp_path / "s/trial", kind="rolling")
    make(trial, {"log": b"12", "ckpt_2/w": b"w2"})
    two = await asyncsync.sync_up(trial / "ckpt_2", tmp_path / "s/trial/ckpt_2")
    before = disk(tmp_path / "s/trial/ckpt_1", tmp_path / "s/trial/ckpt_2")
    outer = await asyncsync.sync_up(trial, tmp_path / "s/trial")

    assert disk(tmp_path / "s/trial/ckpt_1", tmp_path / "s/trial/ckpt_2") == before
    assert (outer.files, outer.sent_files, outer.deleted_files) == (1, 1, 0)
    assert _nested(tmp_path / "s/trial") == {"ckpt_1": one.identity, "ckpt_2": two.identity}


async def test_commits_inside_are_looked_at_several_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, target = make(tmp_path / "trial", {"log": b"1"}), tmp_path / "store" / "trial"
    await asyncsync.sync_up(trial, target, kind="rolling")
    for step in range(8):
        made = make(tmp_path / "made" / f"{step}", {"w": b"%d" % step})
        await asyncsync.sync_up(made, target / f"ckpt_{step}")
    make(trial, {"log": b"12"})
    headers_only_together(monkeypatch, 8, of="ckpt_")
    with anyio.fail_after(10):
        await asyncsync.sync_up(trial, target)

    assert list(_nested(target)) == [f"ckpt_{step}" for step in range(8)]


async def test_the_files_of_a_commit_inside_are_listed_only_by_it(
    place: str, tmp_path: Path
) -> None:
    trial = make(tmp_path / "trial", {"log": b"1", "ckpt_1/w": b"w"})
    await asyncsync.sync_up(trial, f"{place}/trial", kind="rolling")
    await asyncsync.delete(f"{place}/trial")
    await asyncsync.sync_up(trial / "ckpt_1", f"{place}/trial/ckpt_1")
    outer = await asyncsync.sync_up(trial, f"{place}/trial", kind="rolling")

    assert outer.files == 1
    assert await _back(f"{place}/trial", tmp_path) == {"log": b"1", "ckpt_1/w": b"w"}


async def test_a_parent_verifies_after_a_commit_inside_it_was_deleted(
    place: str, tmp_path: Path
) -> None:
    trial = make(tmp_path / "trial", {"log": b"1", "ckpt_1/w": b"w"})
    await asyncsync.sync_up(trial / "ckpt_1", f"{place}/trial/ckpt_1")
    await asyncsync.sync_up(trial, f"{place}/trial", kind="rolling")
    await asyncsync.delete(f"{place}/trial/ckpt_1")

    assert (await asyncsync.verify(f"{place}/trial")).ok
    assert await _back(f"{place}/trial", tmp_path) == {"log": b"1"}


async def test_deleting_a_parent_deletes_the_commits_inside(place: str, tmp_path: Path) -> None:
    trial = make(tmp_path / "trial", {"log": b"1", "ckpt_1/w": b"w", "ckpt_2/w": b"w"})
    for name in ("ckpt_1", "ckpt_2"):
        await asyncsync.sync_up(trial / name, f"{place}/trial/{name}")
    await asyncsync.sync_up(trial, f"{place}/trial", kind="rolling")
    deleted = await asyncsync.delete(f"{place}/trial")

    assert (deleted.files, deleted.kept) == (3, ())
    with pytest.raises(NotFoundError):
        await asyncsync.verify(f"{place}/trial/ckpt_1")
    if "://" not in place:
        assert os.listdir(place) == []


async def test_commits_in_the_source_are_synced_as_commits_of_their_own(
    place: str, tmp_path: Path
) -> None:
    make(tmp_path / "w", {"w": b"w"})
    inner = await asyncsync.sync_up(tmp_path / "w", f"{place}/weights")
    trial = make(tmp_path / "trial", {"log": b"1"})
    await asyncsync.sync_down(f"{place}/weights", trial / "ckpt_1")
    outer = await asyncsync.sync_up(trial, f"{place}/trial", kind="rolling")

    newest = await asyncsync.latest(f"{place}/trial")
    assert outer.files == 1
    assert newest is not None
    assert newest.location.endswith("/trial/ckpt_1")
    assert newest.identity == inner.identity
    assert await _back(f"{place}/trial", tmp_path) == {"log": b"1", "ckpt_1/w": b"w"}


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
async def test_a_source_with_commits_inside_is_unchanged_the_second_time(
    place: str, tmp_path: Path, kind: Kind
) -> None:
    make(tmp_path / "w", {"w": b"w"})
    await asyncsync.sync_up(tmp_path / "w", f"{place}/weights")
    trial = make(tmp_path / "trial", {"log": b"1"})
    await asyncsync.sync_down(f"{place}/weights", trial / "inner")
    first = await asyncsync.sync_up(trial, f"{place}/trial", kind=kind)
    again = await asyncsync.sync_up(trial, f"{place}/trial", kind=kind)

    assert again.identity == first.identity
    assert again.sent_files == 0


async def test_a_commit_inside_survives_the_replacement_of_a_sealed_parent(
    place: str, tmp_path: Path
) -> None:
    make(tmp_path / "w", {"w": b"w"})
    parent = make(tmp_path / "parent", {"log": b"1"})
    await asyncsync.sync_up(parent, f"{place}/parent")
    await asyncsync.sync_up(tmp_path / "w", f"{place}/parent/inner")
    make(parent, {"log": b"2"})
    await asyncsync.sync_up(parent, f"{place}/parent", replace=True)

    assert (await asyncsync.verify(f"{place}/parent/inner")).ok
    assert await _back(f"{place}/parent", tmp_path) == {"log": b"2", "inner/w": b"w"}


async def test_a_commit_inside_that_is_being_written_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make(tmp_path / "trial", {"log": b"1", "ckpt_1/w": b"w"})
    inner = await asyncsync.sync_up(trial / "ckpt_1", tmp_path / "s/trial/ckpt_1")
    busy = [BusyError("ckpt_1 is being replaced; try again", side="source")]
    read_header = LocalTrees.read_header

    async def sometimes(self: LocalTrees, tree: str) -> object:
        if busy and tree.endswith("s/trial/ckpt_1"):
            raise busy.pop()
        return await read_header(self, tree)

    monkeypatch.setattr(LocalTrees, "read_header", sometimes)
    outer = await asyncsync.sync_up(trial, tmp_path / "s/trial", kind="rolling")

    assert outer.files == 1
    assert _nested(tmp_path / "s/trial") == {"ckpt_1": inner.identity}


# ---------------------------------------------------------------- links


async def test_links_are_refused_by_name_unless_asked_for(source: Path, target: Path) -> None:
    os.symlink("a", source / "d/link")
    with pytest.raises(RefusedError, match="d/link") as caught:
        await asyncsync.sync_up(source, target)

    assert caught.value.paths == ("d/link",)
    assert not target.parent.exists()


@pytest.mark.parametrize(("link", "leads_to"), [("link", "d/b"), ("d/e/link", "../b")])
async def test_a_followed_link_inside_the_tree_becomes_a_file(
    source: Path, target: Path, link: str, leads_to: str
) -> None:
    os.symlink(leads_to, source / link)
    await asyncsync.sync_up(source, target, links="follow")

    assert content(target) == {**TREE, link: b"two"}
    assert not (target / link).is_symlink()


@pytest.mark.parametrize("leads_to", ["../outside", "/etc/passwd", "d", "nowhere", "link"])
async def test_a_link_that_leads_elsewhere_is_refused_even_when_followed(
    source: Path, target: Path, leads_to: str
) -> None:
    make(source.parent, {"outside": b"secret"})
    os.symlink(leads_to, source / "link")
    with pytest.raises(RefusedError, match="link"):
        await asyncsync.sync_up(source, target, links="follow")

    assert not target.parent.exists()


# ---------------------------------------------------------------- patterns


async def test_patterns_choose_what_goes_up(source: Path, place: str, tmp_path: Path) -> None:
    receipt = await asyncsync.sync_up(
        source, f"{place}/ckpt_7", include=["d/", "a"], exclude=["*.tmp", "d/e/"]
    )

    assert receipt.files == 2
    assert await _back(f"{place}/ckpt_7", tmp_path) == {"a": b"1", "d/b": b"two"}


async def test_temporary_names_are_left_out_of_rolling_trees_only(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {
        "checkpoint_-00001/x": b"",
        "d/checkpoint_tmp_1": b"",
        "save_to_object_1/x": b"",
        "rank_0/x": b"",
        "d/rank_0": b"kept: only at the root is it temporary",
        ".lazy_checkpoint_marker": b"",
        "log": b"",
    }
    source = make(tmp_path / "trial", files)
    await asyncsync.sync_up(source, tmp_path / "s/rolling", kind="rolling")
    await asyncsync.sync_up(source, tmp_path / "s/sealed")

    assert set(content(tmp_path / "s/rolling")) == {"d/rank_0", "log"}
    assert content(tmp_path / "s/sealed") == files


async def test_what_patterns_exclude_from_now_on_leaves_the_target(
    source: Path, target: Path
) -> None:
    await asyncsync.sync_up(source, target, kind="rolling")
    receipt = await asyncsync.sync_up(source, target, exclude=["/big"])

    assert receipt.deleted_files == 1
    assert "big" not in content(target)


# ---------------------------------------------------------------- an empty source


async def test_an_empty_source_never_empties_a_commit(place: str, tmp_path: Path) -> None:
    source = make(tmp_path / "trial", {"log": b"1"})
    await asyncsync.sync_up(source, f"{place}/trial", kind="rolling")
    os.unlink(source / "log")
    for replace in (False, True):
        with pytest.raises(RefusedError, match="mounted"):
            await asyncsync.sync_up(source, f"{place}/trial", replace=replace)

    assert await _back(f"{place}/trial", tmp_path) == {"log": b"1"}


# ---------------------------------------------------------------- two at once


async def _both(calls: Sequence[Callable[[], Awaitable[object]]]) -> list[object]:
    """Run all at once; what each returned, or the error that tells it apart from the winner."""
    results = list[object]()

    async def run(call: Callable[[], Awaitable[object]]) -> None:
        try:
            results.append(await call())
        except (BusyError, ConflictError, NotFoundError) as exc:
            results.append(exc)

    async with anyio.create_task_group() as group:
        for call in calls:
            group.start_soon(run, call)
    return results


def _identities(results: Sequence[object]) -> list[str]:
    return [result.identity for result in results if isinstance(result, Receipt)]


async def test_two_syncs_of_the_same_content_to_one_new_target_both_succeed(
    source: Path, place: str, tmp_path: Path
) -> None:
    twin = make(tmp_path / "twin", TREE)
    async with ticking() as clock, StorageSyncer(isolation="loop", clock=clock) as one:
        async with StorageSyncer(isolation="loop", clock=clock) as other:
            results = await _both(
                [
                    lambda: one.sync_up(source, f"{place}/ckpt_7"),
                    lambda: other.sync_up(twin, f"{place}/ckpt_7"),
                ]
            )

    identities = _identities(results)
    assert len(identities) == 2
    assert len(set(identities)) == 1
    assert await _back(f"{place}/ckpt_7", tmp_path) == TREE


async def test_of_two_syncs_of_different_content_to_one_new_target_one_wins(
    source: Path, place: str, tmp_path: Path
) -> None:
    theirs: dict[str, bytes | None] = {"a": b"theirs", "z": b"z" * 300_000}
    other = make(tmp_path / "other", theirs)
    async with ticking() as clock, StorageSyncer(isolation="loop", clock=clock) as syncer:
        results = await _both(
            [
                lambda: syncer.sync_up(source, f"{place}/ckpt_7"),
                lambda: syncer.sync_up(other, f"{place}/ckpt_7"),
            ]
        )

    (identity,) = _identities(results)
    (conflict,) = [result for result in results if isinstance(result, ConflictError)]
    assert conflict.winner == identity
    winner = await _back(f"{place}/ckpt_7", tmp_path)
    assert winner in (TREE, theirs)
    if "://" not in place:
        assert content(Path(place) / "ckpt_7") == winner
        assert temporary(Path(place)) == []


async def test_two_syncs_of_one_rolling_source_at_once_leave_it_whole(
    source: Path, place: str, tmp_path: Path
) -> None:
    await asyncsync.sync_up(source, f"{place}/trial", kind="rolling")
    make(source, {"a": b"2"})
    async with ticking() as clock, StorageSyncer(isolation="loop", clock=clock) as syncer:
        results = await _both([lambda: syncer.sync_up(source, f"{place}/trial")] * 2)

    assert _identities(results)
    assert await _back(f"{place}/trial", tmp_path) == {**TREE, "a": b"2"}


async def test_a_target_that_stays_busy_is_reported_with_its_process(
    source: Path, target: Path
) -> None:
    await asyncsync.sync_up(source, target, kind="rolling")
    make(source, {"a": b"2"})
    threads, tree = Threads(1), str(target).lstrip("/")
    store = LocalTrees("/", threads)
    there = (await store.read_header(tree)).identity
    intent = Intent(attempt=new_attempt(), expect=there, in_place=True)
    async with store.begin(tree, intent), ticking(step_s=1) as clock:
        async with StorageSyncer(isolation="loop", clock=clock) as syncer:
            with pytest.raises(BusyError, match=str(os.getpid())):
                await syncer.sync_up(source, target)
    threads.close()

    assert content(target) == TREE


async def test_an_upload_while_it_is_deleted_ends_whole_or_gone(source: Path, target: Path) -> None:
    await asyncsync.sync_up(source, target, kind="rolling")
    make(source, {"a": b"2"})
    async with ticking() as clock, StorageSyncer(isolation="loop", clock=clock) as syncer:
        await _both([lambda: syncer.sync_up(source, target), lambda: syncer.delete(target)])

    assert content(target) in ({}, TREE, {**TREE, "a": b"2"})
    if content(target):
        assert (await asyncsync.verify(target)).ok
    assert temporary(target.parent) == []


# ---------------------------------------------------------------- a dry run, and settings


async def test_a_plan_says_what_would_happen_and_writes_nothing(source: Path, target: Path) -> None:
    await asyncsync.sync_up(source, target, kind="rolling")
    make(source, {"a": b"2", "new": b"n"})
    os.unlink(source / "d/b")
    before = disk(target.parent)
    async with StorageSyncer(isolation="loop") as syncer:
        plan = await syncer.plan_up(source, target)

    assert sorted(file.path for file in plan.send) == ["a", "new"]
    assert sorted(file.path for file in plan.skip) == ["big", "d/e/c"]
    assert plan.delete == ("d/b",)
    assert disk(target.parent) == before


async def test_a_plan_refuses_what_the_sync_would_refuse(source: Path, target: Path) -> None:
    await asyncsync.sync_up(source, target)
    make(source, {"a": b"2"})
    async with StorageSyncer(isolation="loop") as syncer:
        with pytest.raises(ConflictError):
            await syncer.plan_up(source, target)


async def test_a_closed_syncer_says_so(source: Path, target: Path) -> None:
    syncer = StorageSyncer(isolation="loop")
    await syncer.aclose()
    await syncer.aclose()

    with pytest.raises(ConfigError, match="closed"):
        await syncer.sync_up(source, target)


async def test_a_bandwidth_limit_slows_a_sync_down(source: Path, target: Path) -> None:
    make(source, {f"part_{number}": bytes(300_000) for number in range(5)})
    clock = SleptClock()
    async with StorageSyncer(isolation="loop", bwlimit=300_000, clock=clock) as syncer:
        receipt = await syncer.sync_up(source, target)

    # Of six seconds' worth one is there from the beginning.
    assert 5 <= receipt.seconds < 5.5


async def test_foreign_files_at_a_new_target_are_kept_and_a_clash_is_refused(
    source: Path, target: Path
) -> None:
    make(target, {"mine": b"mine"})
    with pytest.raises(NotCommittedError):
        await asyncsync.verify(target)
    await asyncsync.sync_up(source, target)
    clean = content(target)
    await asyncsync.delete(target)
    make(target, {"a": b"mine too"})
    with pytest.raises(ClashError, match="a"):
        await asyncsync.sync_up(source, target)

    assert clean == {**TREE, "mine": b"mine"}
    assert content(target) == {"a": b"mine too", "mine": b"mine"}


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
async def test_what_got_lost_at_the_target_is_sent_again_with_the_next_version(
    source: Path, target: Path, kind: Kind
) -> None:
    await asyncsync.sync_up(source, target, kind=kind)
    os.unlink(target / "a")
    make(source, {"d/b": b"newer"})
    receipt = await asyncsync.sync_up(source, target, replace=True)

    assert receipt.sent_files == 2
    assert content(target) == content(source)
    assert (await asyncsync.verify(target)).ok
