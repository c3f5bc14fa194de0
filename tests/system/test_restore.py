"""latest, commits and restore: which commit is the newest, and what happens when it is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

import asyncsync
from asyncsync import StorageSyncer
from asyncsync.errors import DeadlineError, FormatError, IntegrityError, NotFoundError
from asyncsync.events import FellBack
from asyncsync.manifest import Header, Manifest, encode
from asyncsync.names import MANIFEST, new_attempt
from asyncsync.syncing.download import Download

from .trees import Events, content, disk, headers_only_together, make


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def back(tmp_path: Path) -> Path:
    return tmp_path / "back"


async def _commit(tmp_path: Path, location: Path, text: bytes = b"w") -> None:
    source = make(tmp_path / "sources" / os.urandom(4).hex(), {"w": text})
    await asyncsync.sync_up(source, location)


def _empty_commit(location: Path, **fields: object) -> None:
    """A commit whose header says what the test needs."""
    header = Header(attempt=new_attempt(), name=location.name, **fields)  # type: ignore[arg-type]
    location.mkdir(parents=True)
    (location / MANIFEST).write_bytes(b"".join(encode(Manifest.of(header, []))))


async def _names(location: Path) -> list[str]:
    return [commit.name async for commit in asyncsync.commits(location)]


# ---------------------------------------------------------------- which is the newest


async def test_commits_are_ordered_by_the_number_of_their_step(tmp_path: Path, store: Path) -> None:
    for step in (10, 9, 100):
        await _commit(tmp_path, store / f"ckpt_{step}")
    newest = await asyncsync.latest(store)

    assert await _names(store) == ["ckpt_100", "ckpt_10", "ckpt_9"]
    assert newest is not None
    assert (newest.step, newest.location) == (100, str(store / "ckpt_100"))


async def test_time_stamps_of_files_do_not_count(tmp_path: Path, store: Path) -> None:
    for step in (2, 1):
        await _commit(tmp_path, store / f"ckpt_{step}")
    for path in (store / "ckpt_1", store / "ckpt_1" / MANIFEST):
        os.utime(path, (2e9, 2e9))
    newest = await asyncsync.latest(store)

    assert newest is not None
    assert newest.step == 2


async def test_a_later_run_beats_a_higher_step_and_a_later_version_the_clock(store: Path) -> None:
    _empty_commit(store / "old_run", epoch=1, step=900, created=9e9)
    _empty_commit(store / "new_run", epoch=2, step=3)
    _empty_commit(store / "new_run_again", epoch=2, step=3, sequence=2)
    _empty_commit(store / "no_step", epoch=2, sequence=7, created=9e9)

    assert await _names(store) == ["new_run_again", "new_run", "no_step", "old_run"]


async def test_commits_far_below_are_found_and_directories_without_one_are_not(
    tmp_path: Path, store: Path
) -> None:
    await _commit(tmp_path, store / "exp/trial_1/ckpt_1")
    await _commit(tmp_path, store / "exp/trial_2/ckpt_2")
    make(store / "exp/trial_3/ckpt_9", {"w": b"no manifest"})

    assert await _names(store) == ["ckpt_2", "ckpt_1"]


async def test_attempts_and_trash_are_no_commits(tmp_path: Path, store: Path) -> None:
    await _commit(tmp_path, store / "ckpt_1")
    for name in (".ckpt_2.asyncsync-tmp-", ".ckpt_3.asyncsync-trash-"):
        _empty_commit(store / f"{name}{'0' * 32}" / "tree", step=9)

    assert await _names(store) == ["ckpt_1"]


async def test_a_restored_part_never_counts_as_the_newest(tmp_path: Path, store: Path) -> None:
    source = make(tmp_path / "source", {"w": b"w", "v": b"v"})
    await asyncsync.sync_up(source, store / "a/ckpt_1")
    await asyncsync.sync_up(source, tmp_path / "elsewhere/ckpt_9")
    await asyncsync.sync_down(tmp_path / "elsewhere/ckpt_9", store / "b/ckpt_9", include=["w"])
    newest = await asyncsync.latest(store)

    assert newest is not None
    assert newest.step == 1


async def test_of_a_trial_the_newest_is_its_newest_checkpoint_not_itself(
    tmp_path: Path, store: Path
) -> None:
    trial = make(tmp_path / "trial", {"log": b"1"})
    await asyncsync.sync_up(trial, store / "trial_1", kind="rolling")
    alone = await asyncsync.latest(store / "trial_1")
    await _commit(tmp_path, store / "trial_1/ckpt_3")
    newest = await asyncsync.latest(store / "trial_1")

    assert alone is not None
    assert alone.kind == "rolling"
    assert newest is not None
    assert newest.step == 3


async def test_of_a_checkpoint_the_newest_is_itself(tmp_path: Path, store: Path) -> None:
    await _commit(tmp_path, store / "ckpt_3")
    await _commit(tmp_path, store / "ckpt_3/extra_9")
    newest = await asyncsync.latest(store / "ckpt_3")

    assert newest is not None
    assert newest.step == 3


async def test_where_nothing_is_there_is_no_newest(store: Path) -> None:
    absent = await asyncsync.latest(store)
    store.mkdir()

    assert absent is None
    assert await asyncsync.latest(store) is None


# ---------------------------------------------------------------- restoring


async def test_restore_takes_the_newest_or_the_step_asked_for(
    tmp_path: Path, store: Path, back: Path
) -> None:
    for step in (9, 10):
        await _commit(tmp_path, store / f"ckpt_{step}", b"%d" % step)
    newest = await asyncsync.restore(store, back / "newest")
    await asyncsync.restore(store, back / "nine", step=9)

    assert newest.location == str(back / "newest")
    assert content(back) == {"newest/w": b"10", "nine/w": b"9"}


async def test_a_step_that_is_not_there_is_not_found_and_those_there_are_named(
    tmp_path: Path, store: Path, back: Path
) -> None:
    for step in (9, 10):
        await _commit(tmp_path, store / f"ckpt_{step}")
    with pytest.raises(NotFoundError, match="10, 9"):
        await asyncsync.restore(store, back, step=11)

    assert not back.exists()


async def test_a_part_of_the_newest_can_be_restored(
    tmp_path: Path, store: Path, back: Path
) -> None:
    source = make(tmp_path / "source", {"model": b"m", "optimizer": b"o"})
    await asyncsync.sync_up(source, store / "ckpt_1")
    await asyncsync.restore(store, back, include=["model*"])

    assert content(back) == {"model": b"m"}


async def test_where_there_is_no_commit_nothing_is_restored(store: Path, back: Path) -> None:
    store.mkdir()
    with pytest.raises(NotFoundError, match="no commit"):
        await asyncsync.restore(store, back)

    assert not back.exists()


# ---------------------------------------------------------------- when the newest is damaged


async def _three(tmp_path: Path, store: Path) -> None:
    for step in (1, 2, 3):
        await _commit(tmp_path, store / f"ckpt_{step}", b"%d" % step)


@pytest.mark.parametrize("damaged", ["w", MANIFEST])
async def test_a_damaged_newest_is_named_with_the_older_one_and_not_passed_over(
    tmp_path: Path, store: Path, back: Path, damaged: str
) -> None:
    await _three(tmp_path, store)
    (store / "ckpt_3" / damaged).write_bytes(b"x")
    before = disk(store)
    with pytest.raises(IntegrityError, match=r"ckpt_3.*ckpt_2") as caught:
        await asyncsync.restore(store, back)

    assert "\n" not in str(caught.value)
    assert not back.exists()
    assert disk(store) == before


@pytest.mark.parametrize("damaged", ["w", MANIFEST])
async def test_a_fallback_that_was_asked_for_uses_the_older_one_and_says_so(
    tmp_path: Path, store: Path, back: Path, damaged: str
) -> None:
    await _three(tmp_path, store)
    for step in (3, 2):
        (store / f"ckpt_{step}" / damaged).write_bytes(b"x")
    events = Events()
    await asyncsync.restore(store, back, fallback=True, observe=events)

    assert content(back) == {"w": b"1"}
    told = [(Path(e.damaged).name, Path(e.used).name) for e in events.of(FellBack)]
    assert told == [("ckpt_3", "ckpt_2"), ("ckpt_2", "ckpt_1")]


async def test_when_all_are_damaged_the_fallback_fails_and_writes_nothing(
    tmp_path: Path, store: Path, back: Path
) -> None:
    await _three(tmp_path, store)
    for step in (1, 2, 3):
        (store / f"ckpt_{step}/w").unlink()
    with pytest.raises(IntegrityError, match="no older one"):
        await asyncsync.restore(store, back, fallback=True)

    assert not back.exists()


async def test_latest_names_a_damaged_newest_and_the_next(tmp_path: Path, store: Path) -> None:
    await _three(tmp_path, store)
    (store / "ckpt_3" / MANIFEST).write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"ckpt_3.*ckpt_2"):
        await asyncsync.latest(store)

    listed = [commit async for commit in asyncsync.commits(store)]
    assert [commit.name for commit in listed] == ["ckpt_3", "ckpt_2", "ckpt_1"]
    assert listed[0].damaged


async def test_latest_notices_damage_below_the_first_line_of_a_manifest(
    tmp_path: Path, store: Path
) -> None:
    await _three(tmp_path, store)
    manifest = store / "ckpt_3" / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-30])

    with pytest.raises(IntegrityError, match=r"ckpt_3.*ckpt_2"):
        await asyncsync.latest(store)


async def test_a_commit_of_a_newer_release_is_never_passed_over_in_silence(
    tmp_path: Path, store: Path, back: Path
) -> None:
    await _three(tmp_path, store)
    manifest = store / "ckpt_3" / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"asyncsync":1', b'"asyncsync":2', 1))
    with pytest.raises(IntegrityError, match="upgrade"):
        await asyncsync.restore(store, back)
    with pytest.raises(FormatError):
        await asyncsync.verify(store / "ckpt_3")

    assert not back.exists()


async def test_a_damaged_trial_still_offers_its_checkpoints(
    tmp_path: Path, store: Path, back: Path
) -> None:
    trial = make(tmp_path / "trial", {"log": b"1"})
    await asyncsync.sync_up(trial, store / "trial_1", kind="rolling")
    await _commit(tmp_path, store / "trial_1/ckpt_3", b"3")
    (store / "trial_1" / MANIFEST).write_bytes(b"x")
    with pytest.raises(IntegrityError, match="ckpt_3"):
        await asyncsync.restore(store / "trial_1", back)
    await asyncsync.restore(store / "trial_1", back, fallback=True)

    assert content(back) == {"w": b"3"}


async def test_a_damaged_step_that_was_asked_for_has_no_substitute(
    tmp_path: Path, store: Path, back: Path
) -> None:
    await _three(tmp_path, store)
    (store / "ckpt_2/w").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="ckpt_2"):
        await asyncsync.restore(store, back, step=2, fallback=True)

    assert not back.exists()


@pytest.mark.parametrize("fallback", [False, True])
async def test_a_damaged_manifest_where_it_is_restored_to_is_not_called_one_of_the_commit(
    tmp_path: Path, store: Path, back: Path, fallback: bool
) -> None:
    await _three(tmp_path, store)
    await asyncsync.restore(store, back)
    (back / MANIFEST).write_bytes(b"x")
    events = Events()
    with pytest.raises(IntegrityError, match=f"^{back}: not a manifest") as caught:
        await asyncsync.restore(store, back, fallback=fallback, observe=events)

    assert caught.value.side == "target"
    assert events.of(FellBack) == []


# ---------------------------------------------------------------- many of them


@pytest.mark.parametrize("look", ["commits", "latest"])
async def test_the_headers_of_many_commits_are_asked_for_several_at_a_time(
    tmp_path: Path, store: Path, look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(8):
        await _commit(tmp_path, store / f"ckpt_{step}")
    headers_only_together(monkeypatch, 8, of="ckpt_")
    with anyio.fail_after(10):
        if look == "commits":
            assert await _names(store) == [f"ckpt_{step}" for step in reversed(range(8))]
        else:
            newest = await asyncsync.latest(store)
            assert newest is not None
            assert newest.step == 7


# ---------------------------------------------------------------- within a time


async def test_the_time_that_is_over_is_that_of_all_places_together(
    tmp_path: Path, store: Path, back: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (store, tmp_path / "copy"):
        await _commit(tmp_path, place / "ckpt_1")
    tried = list[object]()

    async def run(download: Download) -> None:
        tried.append(download)
        await anyio.sleep_forever()

    monkeypatch.setattr(Download, "run", run)
    async with StorageSyncer(isolation="loop", sync_timeout=0.2) as syncer:
        with pytest.raises(DeadlineError, match=r"restore .*store: not finished within 0.2 s"):
            await syncer.restore(store, back, copies=[tmp_path / "copy"])

    assert len(tried) <= 1  # on a slow machine it is over before
