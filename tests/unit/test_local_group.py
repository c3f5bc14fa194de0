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


async def test_who_comes_second_to_complete_a_group_finds_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalTrees(str(tmp_path), Threads(2))
    one, other = ranks("one", 2)
    await leave(store, one, {"a": b"1"})
    await leave(store, other, {"b": b"2"})
    locked, overtaken = group._Home.locked, list[object]()

    @contextlib.contextmanager
    def late(home: group._Home) -> Iterator[None]:
        """Somebody else completes it, after this one has seen that nobody had."""
        if not overtaken:
            overtaken.append(home)
            intent = Intent(attempt=new_attempt(), group=other)
            group.gather(Root(str(tmp_path)), "tree", intent, lambda: "fsync")
        with locked(home):
            yield

    monkeypatch.setattr(group._Home, "locked", late)
    gathered = await see(store, one)

    assert overtaken
    assert gathered.durability == "fsync"
    assert set((await store.read_manifest("tree")).files) == {"a", "b"}
