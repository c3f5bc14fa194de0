"""Found by trying to break it: what must be refused, or must work, and once did not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

import asyncsync
from asyncsync.errors import ConfigError, ConflictError, IntegrityError, RefusedError
from asyncsync.events import Moved, Skipped
from asyncsync.names import MANIFEST
from asyncsync.syncing import StorageSyncer

from .trees import Events, content, make


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "source", {"a": b"1", "d/b": b"two", "log": b"line\n"})


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "store" / "tree"


async def test_a_part_restored_to_where_the_whole_was_never_replaces_it(
    source: Path, target: Path
) -> None:
    await asyncsync.sync_up(source, target, kind="rolling")
    for path in ("a", "d/b", "log"):
        os.unlink(source / path)
    await asyncsync.sync_down(target, source, include=["d/"])
    with pytest.raises(ConflictError):
        await asyncsync.sync_up(source, target)

    assert set(content(target)) == {"a", "d/b", "log"}


async def test_a_cancellation_that_an_observer_raises_commits_nothing(
    source: Path, target: Path
) -> None:
    def careless(event: object) -> None:
        if isinstance(event, Moved):
            raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="CancelledError"):
        await asyncsync.sync_up(source, target, observe=careless)

    assert not target.exists()


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "x"}, {"links": "x"}, {"replace": "no"}]
    + [{"step": step} for step in (True, "a", 1.5, -1, 10**18)],
    ids=str,
)
async def test_what_could_not_be_read_again_is_refused_before_anything_moves(
    source: Path, target: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        await asyncsync.sync_up(source, target, **wrong)

    assert not target.exists()


async def test_a_step_may_be_an_integer_of_another_library(source: Path, target: Path) -> None:
    class Integer:
        def __index__(self) -> int:
            return 7

    await asyncsync.sync_up(source, target, step=cast("int", Integer()))
    newest = await asyncsync.latest(target)

    assert newest is not None
    assert newest.step == 7


@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("damage", [b"", b"{}", b"junk\n"])
async def test_a_tree_with_a_damaged_manifest_is_deleted_only_when_named(
    source: Path, tmp_path: Path, place: str, damage: bytes
) -> None:
    tree = str(tmp_path / "tree") if place == "disk" else f"memory://{os.urandom(8).hex()}/tree"
    await asyncsync.sync_up(source, tree)
    if place == "disk":
        Path(tree, MANIFEST).write_bytes(damage)
    else:
        from asyncsync.storage.memory import memory_objects

        await memory_objects(tree.split("/")[2]).put(f"tree/{MANIFEST}", damage)
    with pytest.raises(IntegrityError):
        await asyncsync.delete(tree)
    await asyncsync.delete(tree, allow_uncommitted=True)

    assert await asyncsync.latest(tree) is None
    await asyncsync.sync_up(source, tree)


@pytest.mark.parametrize("patterns", [{"include": ["*.none"]}, {"exclude": ["*"]}], ids=str)
async def test_patterns_that_select_nothing_commit_nothing(
    source: Path, target: Path, patterns: dict[str, list[str]]
) -> None:
    with pytest.raises(RefusedError, match="select no file"):
        await asyncsync.sync_up(source, target, **cast("dict[str, Any]", patterns))

    assert not target.exists()


async def test_patterns_reach_into_the_commits_inside(
    source: Path, target: Path, tmp_path: Path
) -> None:
    inside = make(tmp_path / "c_1", {"big": b"big", "small": b"small"})
    await asyncsync.sync_up(inside, target / "c_1")
    await asyncsync.sync_up(source, target, kind="rolling")
    await asyncsync.sync_down(target, tmp_path / "back", exclude=["c_1/big"])

    assert set(content(tmp_path / "back")) == {"a", "d/b", "log", "c_1/small"}


async def test_a_commit_inside_that_is_gone_is_named(
    source: Path, target: Path, tmp_path: Path
) -> None:
    inside = make(tmp_path / "c_1", {"x": b"x"})
    await asyncsync.sync_up(inside, target / "c_1")
    await asyncsync.sync_up(source, target, kind="rolling")
    await asyncsync.delete(target / "c_1")
    down, verified = Events(), Events()
    await asyncsync.sync_down(target, tmp_path / "back", observe=down)
    await asyncsync.verify(target, observe=verified)

    gone = Skipped(path="c_1", reason="this commit inside is gone")
    assert gone in down
    assert gone in verified


async def test_a_syncer_at_work_refuses_another_event_loop(source: Path, target: Path) -> None:
    errors: list[Exception] = []

    def elsewhere(syncer: StorageSyncer) -> None:
        try:
            asyncio.run(_up(syncer, source, target.with_name("other")))
        except Exception as exc:  # noqa: BLE001 - looked at below, in the other thread
            errors.append(exc)

    async with StorageSyncer(isolation="loop") as syncer:

        def meanwhile(event: object) -> None:
            if isinstance(event, Moved) and not errors:
                thread = threading.Thread(target=elsewhere, args=(syncer,))
                thread.start()
                thread.join()

        await syncer.sync_up(source, target, observe=meanwhile)

    assert [type(exc) for exc in errors] == [ConfigError]


async def _up(syncer: StorageSyncer, source: Path, target: Path) -> None:
    with anyio.fail_after(20):
        await syncer.sync_up(source, target)


@pytest.mark.parametrize("location", ["~no-such-user-here/x", "~"])
async def test_a_home_that_does_not_exist_is_refused(
    source: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="no such user"):
        await asyncsync.sync_up(source, location)


def test_a_file_url_may_have_one_slash() -> None:
    from asyncsync.location import Location

    assert str(Location.parse("file:/a/b")) == "/a/b"


def test_what_cannot_be_printed_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        run = subprocess.run(
            [sys.executable, "-m", "asyncsync", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert (run.returncode, run.stderr.count(b"\n")) == (1, 1)
    assert b"cannot print" in run.stderr
