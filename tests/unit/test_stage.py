"""What is left in a stage, and what of it may be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncsync.digest import CHUNK_BYTES, digest
from asyncsync.storage.local.cleaning import clean
from asyncsync.storage.local.place import Root
from asyncsync.storage.local.stage import Stage
from asyncsync.storage.local.unfinished import forget_others, unfinished
from asyncsync.storage.trees import Block, NewFile

HOLDER = ".ckpt.asyncsync-tmp-" + "0" * 32
DAY_S = 86_400


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def _left(parent: int, files: dict[str, bytes]) -> None:
    """A stage that an interrupted attempt has left."""
    stage = Stage(parent, HOLDER, "ckpt")
    stage.write_many([(NewFile(path, len(data)), data) for path, data in files.items()])
    stage.stays = True
    stage.close()


def test_a_second_name_of_a_committed_file_is_not_touched(tmp_path: Path, parent: int) -> None:
    """Unchanged files of the commit that is replaced are linked into the stage."""
    _left(parent, {"a": b"one"})
    committed = tmp_path / "committed"
    committed.write_bytes(b"two")
    committed.chmod(0o444)
    os.link(committed, tmp_path / HOLDER / "tree" / "b")
    stage = Stage(parent, HOLDER, "ckpt", resumes=True)
    stage.forget_others({"a", "b"})
    there = stage.are_there([(NewFile("a", 3), 0, digest(b"one")), (NewFile("b", 3), 0, "")])
    stage.close()

    assert there == [True, False]
    assert committed.read_bytes() == b"two"
    assert committed.stat().st_mode & 0o777 == 0o444


def test_names_count_as_they_are_spelt(tmp_path: Path, parent: int) -> None:
    """A disk that folds names would open `Model` as `model`, and it would be swept later."""
    _left(parent, {"Model": b"one", "other": b"two"})
    tree = os.open(tmp_path / HOLDER / "tree", os.O_RDONLY)
    forget_others(tree, {"model", "other"})
    left = os.listdir(tree)
    os.close(tree)

    assert left == ["other"]


def test_no_file_is_opened_before_it_is_written_to(tmp_path: Path, parent: int) -> None:
    """Thousands may lack a chunk."""
    size = CHUNK_BYTES + 1
    stage = Stage(parent, HOLDER, "ckpt")
    for name in "abcdef":
        stage.write(NewFile(name, size), CHUNK_BYTES, Block(b"z"))
    stage.stays = True
    stage.close()
    stage = Stage(parent, HOLDER, "ckpt", resumes=True)
    before = len(os.listdir("/proc/self/fd"))
    stage.forget_others(set("abcdef"))
    stage.recall([(NewFile(name, size), {1}) for name in "abcdef"])
    after = len(os.listdir("/proc/self/fd"))
    stage.write(NewFile("a", size), 0, Block(bytes(CHUNK_BYTES)))

    assert after == before
    assert stage.written == {"a"}
    stage.close()


def test_a_stage_is_as_old_as_the_last_write_into_it(tmp_path: Path, parent: int) -> None:
    _left(parent, {"d/a": b"one"})
    tree = tmp_path / HOLDER / "tree"
    long_ago = tree.stat().st_mtime - 2 * DAY_S
    os.utime(tree, (long_ago, long_ago))
    stage = Stage(parent, HOLDER, "ckpt", resumes=True)
    stage.forget_others({"d/a"})
    os.utime(tree, (long_ago, long_ago))
    stage.write(NewFile("d/b", 2 * CHUNK_BYTES), 0, Block(b"x"))
    stage.stays = True
    stage.close()

    assert clean(Root(str(tmp_path)), "ckpt", DAY_S) == []
    os.utime(tree, (long_ago, long_ago))
    assert clean(Root(str(tmp_path)), "ckpt", DAY_S) == [str(tmp_path / HOLDER)]


def test_of_two_stages_the_one_written_to_last_is_gone_on_with(tmp_path: Path, parent: int) -> None:
    _left(parent, {"a": b"one"})
    os.rename(tmp_path / HOLDER, tmp_path / HOLDER.replace("0", "1"))
    os.utime(tmp_path / HOLDER.replace("0", "1") / "tree", (1, 1))
    _left(parent, {"a": b"one"})

    assert unfinished(parent, "ckpt") == HOLDER
