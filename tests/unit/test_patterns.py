"""Patterns: gitignore syntax, the same on every path."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.errors import ConfigError
from asyncsync.patterns import TEMPORARY_NAMES, Selection

TREE = [
    "level0.txt",
    "level0_exclude.txt",
    "subdir/level1.txt",
    "subdir/level1_exclude.txt",
    "subdir/nested/level2.txt",
    "subdir_nested_level2_exclude.txt",
    "subdir_exclude/something/somewhere.txt",
]

NAMES = ["a", "b", "ab", "a.t", "b.t", "ckpt_1"]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
PATTERNS = st.lists(
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "", "!"]),
        st.sampled_from(["", "/", "**/", "a/"]),
        st.sampled_from([*NAMES, "*.t", "*", "a*", "ckpt_[0-9]", "?", "a/**", "a/**/b"]),
        st.sampled_from(["", "", "/", "/*"]),
    ),
    max_size=4,
)


def taken(paths: Sequence[str], *exclude: str, include: tuple[str, ...] = ()) -> list[str]:
    selection = Selection(exclude=exclude, include=include)
    return [path for path in paths if selection.takes(path)]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        pytest.param(["*_exclude*"], [0, 2, 4], id="X01"),
        pytest.param(["*_exclude.txt"], [0, 2, 4, 6], id="X02"),
        pytest.param(["*_exclude/*"], [0, 1, 2, 3, 4, 5], id="X03"),
        pytest.param(["*_exclude.txt", "*_exclude/*"], [0, 2, 4], id="X04"),
        pytest.param(["subdir/*"], [0, 1, 5, 6], id="X05"),
        pytest.param(["*/level1.txt"], [0, 1, 3, 4, 5, 6], id="X06"),
    ],
)
def test_the_documented_cases_leave_what_they_say(exclude: list[str], left: list[int]) -> None:
    assert taken(TREE, *exclude) == [TREE[index] for index in left]


def test_nothing_is_left_out_without_patterns() -> None:
    assert Selection().everything
    assert not Selection(exclude=("a",)).everything
    assert not Selection(include=("a",)).everything
    assert taken(TREE) == TREE


def test_patterns_are_relative_to_the_tree_and_not_to_the_disk() -> None:
    assert taken(["a/b", "b"], "/b") == ["a/b"]
    assert taken(["x/y", "y"], "x/y") == ["y"]


def test_case_and_dots_count() -> None:
    assert taken(["A.tmp", "a.TMP", ".tmp", "a.tmpx"], "*.tmp") == ["a.TMP", "a.tmpx"]


def test_comments_and_blank_lines_leave_nothing_out() -> None:
    assert taken(["#a", "a", " "], "#a", "", "  ") == ["#a", "a", " "]
    assert taken(["#a", "!b"], "\\#a", "\\!b") == []


def test_a_later_pattern_brings_back_what_an_earlier_one_left_out() -> None:
    assert taken(["a.t", "keep.t", "d/keep.t"], "*.t", "!keep.t") == ["keep.t", "d/keep.t"]
    assert taken(["keep.t"], "!keep.t", "*.t") == []


def test_nothing_comes_back_from_inside_an_excluded_directory() -> None:
    assert taken(["d/keep.t", "keep.t"], "d/", "!keep.t") == ["keep.t"]
    assert taken(["d/keep.t", "d/other"], "d/*", "!d/keep.t") == ["d/keep.t"]


def test_include_takes_a_part_and_exclude_wins() -> None:
    paths = ["model.bin", "model.tmp", "opt/model.bin", "opt/state", "readme"]

    assert taken(paths, include=("model*",)) == ["model.bin", "model.tmp", "opt/model.bin"]
    assert taken(paths, include=("opt/",)) == ["opt/model.bin", "opt/state"]
    assert taken(paths, "*.tmp", include=("model*",)) == ["model.bin", "opt/model.bin"]


def test_an_empty_directory_takes_part_as_a_directory() -> None:
    selection = Selection(exclude=("empty/", "log*"))

    assert not selection.takes_directory("empty")
    assert not selection.takes_directory("logs")
    assert selection.takes_directory("other")
    assert selection.takes("empty")


def test_a_half_written_checkpoint_is_a_temporary_name() -> None:
    paths = [
        *("checkpoint_-00001/x", "checkpoint_tmp123/x", "sub/checkpoint_tmp9", "save_to_object1/x"),
        *("rank_0/x", ".lazy_checkpoint_marker", "checkpoint_00001/x", "sub/rank_0/x"),
    ]

    assert taken(paths, *TEMPORARY_NAMES) == ["checkpoint_00001/x", "sub/rank_0/x"]


@pytest.mark.parametrize("kind", ["exclude", "include"])
def test_one_string_is_refused_and_the_list_shown(kind: str) -> None:
    given = ("*.tmp", ()) if kind == "exclude" else ((), "*.tmp")
    with pytest.raises(ConfigError, match=rf"{kind} takes a list of patterns.*\['\*\.tmp'\]"):
        Selection(*given)


def test_a_tree_inside_is_chosen_from_by_the_same_patterns() -> None:
    below = Selection(exclude=("c_1/big", "/log"), include=("c_1",)).below("c_1")

    assert not below.takes("big")
    assert below.takes("log")
    assert not Selection(include=("c_1",)).below("c_2").takes("log")


@pytest.mark.parametrize("pattern", ["!", "a\\"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="not a gitignore pattern"):
        Selection(exclude=(pattern,))


def test_a_selection_is_a_value_that_pickles() -> None:
    selection = Selection(exclude=("*.t", "!keep.t"), include=("a*",))
    copy = pickle.loads(pickle.dumps(selection))

    assert copy == selection
    assert copy != Selection(exclude=("*.t",))
    assert hash(copy) == hash(selection)
    assert not copy.takes("a.t")


@given(PATTERNS, PATHS)
def test_nothing_below_a_pruned_directory_takes_part(patterns: list[str], path: str) -> None:
    selection = Selection(exclude=tuple(patterns))
    parents = path.split("/")[:-1]
    pruned = any(selection.prunes("/".join(parents[:n])) for n in range(1, len(parents) + 1))

    assert not (pruned and selection.takes(path))


def ignored_by_git(root: Path, paths: Sequence[str], patterns: Sequence[str]) -> set[str]:
    (root / ".git" / "info" / "exclude").write_text("".join(f"{line}\n" for line in patterns))
    result = subprocess.run(
        ["git", "-C", root, "check-ignore", "-z", "--stdin", "--no-index"],
        input="".join(f"{path}\0" for path in paths),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (0, 1), result.stderr
    return set(result.stdout.split("\0")) - {""}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    subprocess.run(["git", "init", "-q", tmp_path / "repository"], check=True)
    return tmp_path / "repository"


FILES = [
    *("a", "a.t", "keep.t", "#x", "!x", "a b", "[x]", "d/a", "d/a.t", "d/keep.t", "d/e/a"),
    *("d/e/b.t", "d/e/f/a.t", "ckpt_/f", "ckpt_1/f", "e/d/a", "log/x", "log/y/log"),
]


def left_out(root: Path, files: Sequence[str], patterns: tuple[str, ...]) -> set[str]:
    """What a selection does not take of `files`, which exist afterwards."""
    for path in files:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return set(files) - set(taken(files, *patterns))


PATTERNS_OF_GIT = pytest.mark.parametrize(
    "patterns",
    [
        ("d",),
        ("/d",),
        ("d/",),
        ("d/e",),
        ("d/*",),
        ("d/**",),
        ("**/d",),
        ("**/e/a",),
        ("d/**/a.t",),
        ("*",),
        ("*/",),
        ("/*",),
        ("/*", "!d"),
        ("*.t",),
        ("*.t", "!keep.t"),
        ("a?b", "[#!]x"),
        ("\\[x\\]", "\\#x"),
        ("log/", "!log/y/"),
        ("log/*", "!log/y/"),
        ("d/", "!keep.t"),
        ("d/*", "!d/keep.t"),
        ("*", "!*/", "!*.t"),
    ],
    ids=" ".join,
)


@PATTERNS_OF_GIT
def test_what_is_left_out_is_what_git_ignores(repository: Path, patterns: tuple[str, ...]) -> None:
    assert left_out(repository, FILES, patterns) == ignored_by_git(repository, FILES, patterns)


@pytest.mark.parametrize("patterns", [("d",), ("a",), ("*.t",)], ids=" ".join)
def test_a_newline_in_a_name_is_a_letter_like_any_other(
    repository: Path, patterns: tuple[str, ...]
) -> None:
    files = ["new\nline/d/a", "new\nline/a.t", "x.t\n"]

    assert left_out(repository, files, patterns) == ignored_by_git(repository, files, patterns)


def test_a_set_of_letters_does_not_match_the_end_of_a_directory() -> None:
    selection = Selection(exclude=("ckpt_[!0]",))

    assert not selection.prunes("ckpt_")
    assert selection.prunes("ckpt_1")
