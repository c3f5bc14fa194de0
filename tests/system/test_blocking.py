"""The functions for programs that are not async."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from asyncsync import oneshot, sync
from asyncsync.errors import NotFoundError

from .trees import content, make

TREE = {"a": b"one", "d/b": b"two"}


def test_every_function_does_what_its_async_twin_does(tmp_path: Path) -> None:
    source, target = make(tmp_path / "source", TREE), tmp_path / "runs/ckpt_3"

    receipt = sync.sync_up(source, target)
    newest = sync.latest(tmp_path / "runs")
    found = sync.commits(tmp_path / "runs")

    assert newest is not None
    assert (newest.identity, found) == (receipt.identity, [newest])
    assert sync.verify(target).ok
    assert sync.sync_down(target, tmp_path / "down").files == 2
    assert sync.restore(tmp_path / "runs", tmp_path / "back").files == 2
    assert content(tmp_path / "down") == content(tmp_path / "back") == TREE
    assert sync.delete(target).files == 2
    with pytest.raises(NotFoundError):
        sync.verify(target)


@pytest.mark.one_loop
async def test_where_a_loop_is_running_they_work_too(tmp_path: Path) -> None:
    receipt = sync.sync_up(make(tmp_path / "source", TREE), tmp_path / "to")

    assert receipt.files == 2


@pytest.mark.parametrize("name", ["sync_up", "sync_down", "restore", "delete", "verify", "latest"])
def test_they_take_what_their_async_twins_take(name: str) -> None:
    blocking, twin = getattr(sync, name), getattr(oneshot, name)

    assert inspect.signature(blocking) == inspect.signature(twin)
    assert blocking.__doc__ == twin.__doc__
