"""What a sync may do: overlap, replacing, restoring, steps in names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.digest import digest
from asyncsync.errors import ConfigError
from asyncsync.location import Location
from asyncsync.manifest import FileEntry, Header, Kind, Manifest
from asyncsync.storage import NewFile
from asyncsync.syncing.decisions import (
    LocalTree,
    RestorePlan,
    check_overlap,
    may_replace,
    plan_restore,
    step_of,
)

# ---------------------------------------------------------------- steps


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint_000010", 10),
        ("checkpoint_000000", 0),
        ("ckpt-7", 7),
        ("step=250", 250),
        ("epoch_3-step_1200", 1200),
        ("42", 42),
        ("v1.5", 5),
        ("model7", 7),
        ("9" * 18, int("9" * 18)),
        ("step_" + "0" * 30 + "5", 5),
        ("9" * 19, None),  # no training step; it would not fit 64 bits
        ("final", None),
        ("7_final", None),
        ("ckpt_7.tmp", None),
        ("", None),
        ("step_٣", None),  # a digit, but not one of ours
        ("step_7\n", None),
    ],
)
def test_the_number_that_ends_a_name_is_its_step(name: str, step: int | None) -> None:
    assert step_of(name) == step


# ---------------------------------------------------------------- overlap


@pytest.mark.parametrize(
    ("local", "remote", "reason"),
    [
        ("/a/b", "/a/b", "the same directory"),
        ("/a/b", "/a/b/", "the same directory"),
        ("/a/b", "file:///a/b", "the same directory"),
        ("/a/b", "/a/c/../b", "the same directory"),
        ("/a", "/a/b/c", "/a/b/c is inside /a"),
        ("/a/b/c", "/a", "/a/b/c is inside /a"),
        ("/", "/a", "/a is inside /"),
        ("/a", "/", "/a is inside /"),
    ],
)
def test_a_directory_is_not_synced_with_itself_or_one_around_it(
    local: str, remote: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_overlap(local, Location.parse(remote))


@pytest.mark.parametrize(
    ("local", "remote"),
    [
        ("/a/b", "/a/c"),
        ("/a/trial_1", "/a/trial_10"),
        ("/a/trial_10", "/a/trial_1"),
        ("/a/b", "memory://a/b"),
        ("/a/b", "s3://a/b"),
    ],
)
def test_directories_beside_each_other_are_synced(local: str, remote: str) -> None:
    check_overlap(local, Location.parse(remote))


# ---------------------------------------------------------------- replacing

ME, OTHER = "writer me", "writer other"


def commit(kind: Kind, writer: str) -> Manifest:
    return Manifest.of(Header(kind=kind, writer=writer), [])


def allowed(there: Kind, new: Kind, *, wrote_it: bool, restored_it: bool, replace: bool) -> bool:
    previous = commit(there, ME if wrote_it else OTHER)
    origin = previous.header if restored_it else Header(identity=digest(b"another commit"))
    return may_replace(previous, kind=new, origin=origin, writer=ME, replace=replace)


@pytest.mark.parametrize("restored_it", [False, True])
@pytest.mark.parametrize("wrote_it", [False, True])
@pytest.mark.parametrize("new", ["sealed", "rolling"])
@pytest.mark.parametrize("there", ["sealed", "rolling"])
def test_only_a_rolling_tree_whose_version_we_know_changes_unasked(
    there: Kind, new: Kind, wrote_it: bool, restored_it: bool
) -> None:
    rolling = there == new == "rolling"
    expected = rolling and (wrote_it or restored_it)

    found = allowed(there, new, wrote_it=wrote_it, restored_it=restored_it, replace=False)
    assert found is expected
    assert allowed(there, new, wrote_it=wrote_it, restored_it=restored_it, replace=True)


def test_a_source_that_was_never_restored_knows_no_version() -> None:
    previous = commit("rolling", OTHER)

    assert not may_replace(previous, kind="rolling", origin=None, writer=ME, replace=False)


def test_a_restored_part_never_takes_the_place_of_the_whole_whoever_wrote_it() -> None:
    previous = commit("rolling", ME)
    part = Header(identity=digest(b"part"), part_of=previous.identity)

    assert not may_replace(previous, kind="rolling", origin=part, writer=ME, replace=False)
    assert may_replace(previous, kind="rolling", origin=part, writer=ME, replace=True)


# ---------------------------------------------------------------- restoring


def entry(path: str, content: bytes) -> FileEntry:
    return FileEntry(path, len(content), digest(content))


def tree(files: dict[str, bytes]) -> dict[str, FileEntry]:
    return {path: entry(path, content) for path, content in files.items()}


def local_tree(files: dict[str, bytes]) -> LocalTree:
    return LocalTree({path: NewFile(path, len(content)) for path, content in files.items()})


def decide(
    wanted: dict[str, bytes], local: dict[str, bytes], previous: dict[str, bytes]
) -> dict[str, list[str]]:
    """What the plan says, without the lists that are empty."""
    digests = {path: digest(content) for path, content in local.items()}
    plan = plan_restore(tree(wanted), local_tree(local), digests, tree(previous))
    found = {
        "fetch": [one.path for one in plan.fetch],
        "keep": [one.path for one in plan.keep],
        "clash": list(plan.clash),
        "delete": list(plan.delete),
    }
    return {name: paths for name, paths in found.items() if paths}


NEW, OLD, USERS = b"new", b"old", b"the user's"


@pytest.mark.parametrize(
    ("wanted", "local", "previous", "expected"),
    [
        (NEW, None, None, "fetch"),
        (NEW, None, OLD, "fetch"),  # somebody deleted what we had restored
        (NEW, NEW, None, "keep"),
        (NEW, NEW, NEW, "keep"),
        (NEW, NEW, OLD, "keep"),  # a restore that was cut short got so far
        (NEW, OLD, OLD, "fetch"),
        (NEW, USERS, None, "clash"),
        (NEW, USERS, OLD, "clash"),
        (NEW, USERS, NEW, "clash"),
        (None, OLD, OLD, "delete"),
        (None, USERS, OLD, "clash"),
        (None, None, OLD, None),
        (None, USERS, None, None),  # the user's own: no affair of ours
    ],
)
def test_a_file_is_fetched_kept_deleted_or_left_alone(
    wanted: bytes | None, local: bytes | None, previous: bytes | None, expected: str | None
) -> None:
    def one(content: bytes | None) -> dict[str, bytes]:
        return {} if content is None else {"f": content}

    found = decide(one(wanted), one(local), one(previous))

    assert found == ({expected: ["f"]} if expected else {})


def test_a_file_that_nobody_hashed_is_never_overwritten() -> None:
    plan = plan_restore(tree({"f": NEW}), local_tree({"f": NEW}), {}, {})

    assert plan == RestorePlan(fetch=(), keep=(), clash=("f",), delete=())


@pytest.mark.parametrize(
    ("path", "blocked"),
    [
        ("file", False),  # compared by content instead
        ("directory", True),
        ("link", True),
        ("file/x", True),
        ("link/x/y", True),
        ("directory/x", False),
        ("new/x/y", False),
        ("files", False),
    ],
)
def test_what_has_a_name_on_the_way_of_a_file_blocks_it(path: str, blocked: bool) -> None:
    local = LocalTree({"file": NewFile("file", 1)}, frozenset({"directory"}), frozenset({"link"}))

    assert local.blocks(path) is blocked


def test_what_took_the_place_of_a_restored_file_is_a_clash() -> None:
    local = LocalTree(directories=frozenset({"a"}), others=frozenset({"b"}))

    plan = plan_restore({}, local, {}, tree({"a": OLD, "b/c": OLD, "d": OLD}))

    assert plan == RestorePlan(fetch=(), keep=(), clash=("a", "b/c"), delete=())


PATHS = st.sampled_from(["a", "b", "c", "sub/d"])
CONTENTS = st.sampled_from([NEW, OLD, USERS])
TREES = st.dictionaries(PATHS, CONTENTS)


@given(wanted=TREES, local=TREES, previous=TREES)
def test_carried_out_the_plan_makes_the_tree_whole_and_harms_nothing_of_the_users(
    wanted: dict[str, bytes], local: dict[str, bytes], previous: dict[str, bytes]
) -> None:
    digests = {path: digest(content) for path, content in local.items()}

    plan = plan_restore(tree(wanted), local_tree(local), digests, tree(previous))

    result = dict(local)
    for file in plan.fetch:
        result[file.path] = wanted[file.path]
    for path in plan.delete:
        del result[path]
    lost = {path for path in local if result.get(path) != local[path]}
    assert all(local[path] == previous.get(path) for path in lost), "only ours, and unchanged"
    if not plan.clash:
        assert wanted.items() <= result.items()
        assert result.keys() - wanted.keys() <= local.keys() - previous.keys()
