"""Two ranks of a group that see all parts at the same moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncsync.concurrency import Threads
from asyncsync.names import new_attempt
from asyncsync.storage.local import LocalTrees, group
from asyncsync.storage.local.place import Root
from asyncsync.storage.trees import Intent
from asyncsync.testing.contract_groups import leave, ranks, see

ONE, OTHER = ranks("one", 2)


async def _left(folder: Path) -> LocalTrees:
    """Where both ranks have left their parts."""
    store = LocalTrees(str(folder), Threads(2))
    await leave(store, ONE, {"a": b"1"})
    await leave(store, OTHER, {"b": b"2"})
    return store


def _complete(folder: Path) -> None:
    intent = Intent(attempt=new_attempt(), group=OTHER)
    group.gather(Root(str(folder)), "tree", intent, lambda: "fsync")


async def test_parts_that_the_commit_has_used_up_are_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await _left(tmp_path)
    found, overtaken = group._Home.ranks, list[object]()

    def late(home: group._Home) -> dict[int, str]:
        """Somebody else completes it, after this one has seen that there is no commit yet."""
        if not overtaken:
            overtaken.append(home)
            _complete(tmp_path)
        return found(home)

    monkeypatch.setattr(group._Home, "ranks", late)
    gathered = await see(store, ONE)

    assert overtaken
    assert (gathered.missing, gathered.durability) == ((), "fsync")


async def test_who_comes_second_to_complete_a_group_finds_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await _left(tmp_path)
    locked, overtaken = group._Home.locked, list[object]()

    @contextlib.contextmanager
    def late(home: group._Home) -> Iterator[None]:
        """Somebody else completes it, after this one has seen that nobody had."""
        if not overtaken:
            overtaken.append(home)
            _complete(tmp_path)
        with locked(home):
            yield

    monkeypatch.setattr(group._Home, "locked", late)
    gathered = await see(store, ONE)

    assert overtaken
    assert gathered.durability == "fsync"
    assert set((await store.read_manifest("tree")).files) == {"a", "b"}
