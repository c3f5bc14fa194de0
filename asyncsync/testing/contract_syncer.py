"""What every AsyncSyncer must do, as tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from ..errors import ConfigError, NotFoundError
from ..syncing import AsyncSyncer

__all__ = ["SyncerContract"]

_PLAIN = ("level0.txt", "subdir/level1.txt", "subdir/nested/level2.txt")
_EXCLUDE_FILES = (
    "level0_exclude.txt",
    "subdir/level1_exclude.txt",
    "subdir_nested_level2_exclude.txt",
)
_EXCLUDE_DIRECTORY = ("subdir_exclude/something/somewhere.txt",)
_TREE = {name: name.encode() * 100 for name in (*_PLAIN, *_EXCLUDE_FILES, *_EXCLUDE_DIRECTORY)}

_HARD_NAMES = {
    "-rf": b"",
    "a b/ c ": b"spaces",
    "$HOME;`id`&.txt": b"shell",
    'it\'s "quoted" {source}': b"quotes",
    "l\u00e4ngs/\u5317\u4eac": b"text",
    "#?%+=[*]": b"marks",
}

_EXCLUDED = pytest.mark.parametrize(
    ("exclude", "left"),
    [
        pytest.param(["*_exclude*"], _PLAIN, id="X01"),
        pytest.param(["*_exclude.txt"], _PLAIN + _EXCLUDE_DIRECTORY, id="X02"),
        pytest.param(["*_exclude/*"], _PLAIN + _EXCLUDE_FILES, id="X03"),
        pytest.param(["*_exclude.txt", "*_exclude/*"], _PLAIN, id="X04"),
    ],
)


class SyncerContract:
    """What every AsyncSyncer must do.

    A subclass supplies the fixtures `syncer`, which closes what it opens, and `remote`: the place
    of a directory in which nothing is, at which the syncer can make trees.

    Attributes:
        any_tree: False for a remote that refuses names of trees that are not plain.
    """

    any_tree = True

    @pytest.fixture
    def syncer(self) -> AsyncSyncer:
        raise NotImplementedError("the subclass has to supply the syncer under test")

    @pytest.fixture
    def remote(self) -> str:
        raise NotImplementedError("the subclass has to supply a fresh remote location")

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        """A local directory with seven small files, in two of which the name says "exclude"."""
        return _make(tmp_path / "source", _TREE)

    async def test_a_tree_goes_up_and_comes_back_when_its_source_is_gone(
        self, syncer: AsyncSyncer, remote: str, tree: Path, tmp_path: Path
    ) -> None:
        await syncer.sync_up(tree, f"{remote}/trial_1")
        shutil.rmtree(tree)
        await syncer.sync_down(f"{remote}/trial_1", tree)

        assert _files(tree) == _TREE

    async def test_names_arrive_byte_for_byte(
        self, syncer: AsyncSyncer, remote: str, tmp_path: Path
    ) -> None:
        source = _make(tmp_path / "it's - a 'source'", _HARD_NAMES)
        tree = f"{remote}/trial 1's" if self.any_tree else f"{remote}/trial_1"

        await syncer.sync_up(source, tree)
        await syncer.sync_down(tree, tmp_path / "- back")

        assert _files(tmp_path / "- back") == _HARD_NAMES

    async def test_the_same_tree_again_is_no_error(
        self, syncer: AsyncSyncer, remote: str, tree: Path, tmp_path: Path
    ) -> None:
        await syncer.sync_up(tree, f"{remote}/trial_1")
        await syncer.sync_up(tree, f"{remote}/trial_1")
        await syncer.sync_down(f"{remote}/trial_1", tmp_path / "back")

        assert _files(tmp_path / "back") == _TREE

    async def test_two_trees_at_once_both_arrive(
        self, syncer: AsyncSyncer, remote: str, tree: Path, tmp_path: Path
    ) -> None:
        other = _make(tmp_path / "other", {"weights": b"w" * 5000})
        async with anyio.create_task_group() as group:
            group.start_soon(syncer.sync_up, tree, f"{remote}/trial_1")
            group.start_soon(syncer.sync_up, other, f"{remote}/trial_2")
        await syncer.sync_down(f"{remote}/trial_1", tmp_path / "back_1")
        await syncer.sync_down(f"{remote}/trial_2", tmp_path / "back_2")

        assert _files(tmp_path / "back_1") == _TREE
        assert _files(tmp_path / "back_2") == {"weights": b"w" * 5000}

    @_EXCLUDED
    async def test_what_patterns_exclude_does_not_go_up(
        self,
        syncer: AsyncSyncer,
        remote: str,
        tree: Path,
        tmp_path: Path,
        exclude: list[str],
        left: tuple[str, ...],
    ) -> None:
        await syncer.sync_up(tree, f"{remote}/trial_1", exclude=exclude)
        await syncer.sync_down(f"{remote}/trial_1", tmp_path / "back")

        assert sorted(_files(tmp_path / "back")) == sorted(left)

    @_EXCLUDED
    async def test_what_patterns_exclude_does_not_come_down_or_the_call_is_refused(
        self,
        syncer: AsyncSyncer,
        remote: str,
        tree: Path,
        tmp_path: Path,
        exclude: list[str],
        left: tuple[str, ...],
    ) -> None:
        await syncer.sync_up(tree, f"{remote}/trial_1")
        try:
            await syncer.sync_down(f"{remote}/trial_1", tmp_path / "back", exclude=exclude)
        except ConfigError:
            left = ()

        assert sorted(_files(tmp_path / "back")) == sorted(left)

    async def test_one_string_is_not_a_list_of_patterns(
        self, syncer: AsyncSyncer, remote: str, tree: Path
    ) -> None:
        with pytest.raises(ConfigError, match="list"):
            await syncer.sync_up(tree, f"{remote}/trial_1", exclude="*.txt")

    async def test_a_missing_source_is_not_found(
        self, syncer: AsyncSyncer, remote: str, tmp_path: Path
    ) -> None:
        with pytest.raises(NotFoundError):
            await syncer.sync_up(tmp_path / "nowhere", f"{remote}/trial_1")

        with pytest.raises(NotFoundError):
            await syncer.sync_down(f"{remote}/trial_1", tmp_path / "back")

    async def test_a_file_is_not_a_source(
        self, syncer: AsyncSyncer, remote: str, tree: Path
    ) -> None:
        with pytest.raises(ConfigError):
            await syncer.sync_up(tree / "level0.txt", f"{remote}/trial_1")

    async def test_a_missing_remote_is_not_found_and_makes_no_directory(
        self, syncer: AsyncSyncer, remote: str, tmp_path: Path
    ) -> None:
        with pytest.raises(NotFoundError):
            await syncer.sync_down(f"{remote}/trial_1", tmp_path / "back")

        assert not (tmp_path / "back").exists()

    async def test_a_deleted_tree_is_gone_and_its_namesakes_are_not(
        self, syncer: AsyncSyncer, remote: str, tree: Path, tmp_path: Path
    ) -> None:
        await syncer.sync_up(tree, f"{remote}/trial_1")
        await syncer.sync_up(tree, f"{remote}/trial_10")
        await syncer.delete(f"{remote}/trial_1")
        await syncer.sync_down(f"{remote}/trial_10", tmp_path / "back")

        assert _files(tmp_path / "back") == _TREE
        with pytest.raises(NotFoundError):
            await syncer.sync_down(f"{remote}/trial_1", tmp_path / "gone")

    async def test_deleting_what_is_not_there_is_not_found(
        self, syncer: AsyncSyncer, remote: str
    ) -> None:
        with pytest.raises(NotFoundError):
            await syncer.delete(f"{remote}/trial_1")

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
    async def test_cancelled_on_the_way_up_nothing_or_everything_is_there(
        self, syncer: AsyncSyncer, remote: str, tree: Path, tmp_path: Path, turns: int
    ) -> None:
        await _cancelled(turns, lambda: syncer.sync_up(tree, f"{remote}/trial_1"))
        try:
            await syncer.sync_down(f"{remote}/trial_1", tmp_path / "back")
        except NotFoundError:
            return

        assert _files(tmp_path / "back") == _TREE

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
    async def test_cancelled_on_the_way_down_nothing_or_everything_is_there(
        self, syncer: AsyncSyncer, remote: str, tree: Path, tmp_path: Path, turns: int
    ) -> None:
        await syncer.sync_up(tree, f"{remote}/trial_1")
        await _cancelled(turns, lambda: syncer.sync_down(f"{remote}/trial_1", tmp_path / "back"))

        assert _files(tmp_path / "back") in ({}, _TREE)

    async def test_after_a_cancellation_the_next_attempt_finishes(
        self, syncer: AsyncSyncer, remote: str, tree: Path, tmp_path: Path
    ) -> None:
        await _cancelled(8, lambda: syncer.sync_up(tree, f"{remote}/trial_1"))
        await syncer.sync_up(tree, f"{remote}/trial_1")
        await syncer.sync_down(f"{remote}/trial_1", tmp_path / "back")

        assert _files(tmp_path / "back") == _TREE

    async def test_closing_again_has_no_effect(self, syncer: AsyncSyncer) -> None:
        await syncer.aclose()
        await syncer.aclose()

    def test_it_is_an_async_syncer(self, syncer: AsyncSyncer) -> None:
        assert isinstance(syncer, AsyncSyncer)


def _make(directory: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def _files(directory: Path) -> dict[str, bytes]:
    """Relative name -> content, without what asyncsync itself keeps beside them."""
    return {
        os.fspath(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(".asyncsync")
    }


async def _cancelled(turns: int, call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run `call()` and cancel it after that many turns of the event loop."""
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
