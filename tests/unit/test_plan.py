"""What to send: the plan of a transfer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncsync.digest import digest
from asyncsync.manifest import FileEntry
from asyncsync.names import sort_key
from asyncsync.transfer import SourceFile, plan_transfer

OLD, NEW = digest(b"old"), digest(b"new")


def source(path: str, size_bytes: int = 3, mode: int = 0o644) -> SourceFile:
    return SourceFile(path, size_bytes, mode, mtime_ns=1, ctime_ns=2, device=3, inode=4)


def entry(path: str, found: str = OLD, size_bytes: int = 3, mode: int = 0o644) -> FileEntry:
    return FileEntry(path, size_bytes, found, mode)


def decide(
    file: SourceFile | None, known: FileEntry | None, there: FileEntry | None
) -> dict[str, list[str]]:
    """What the plan says about the one file `f`, without the lists that are empty."""
    plan = plan_transfer(
        {"f": file} if file else {},
        {"f": known} if known else {},
        {"f": there} if there else {},
    )
    found = {
        "send": [one.path for one in plan.send],
        "check": [one.path for one in plan.check],
        "keep": [one.path for one in plan.keep],
        "delete": list(plan.delete),
    }
    return {name: paths for name, paths in found.items() if paths}


def test_what_is_not_there_is_sent() -> None:
    assert decide(source("f"), None, None) == {"send": ["f"]}


def test_what_is_not_there_is_sent_although_its_digest_is_known() -> None:
    assert decide(source("f"), entry("f"), None) == {"send": ["f"]}


def test_another_size_is_sent_without_hashing() -> None:
    assert decide(source("f", size_bytes=4), None, entry("f")) == {"send": ["f"]}


def test_another_mode_is_sent() -> None:
    assert decide(source("f", mode=0o755), entry("f", mode=0o755), entry("f")) == {"send": ["f"]}


def test_the_same_size_alone_is_no_proof() -> None:
    assert decide(source("f"), None, entry("f")) == {"check": ["f"]}


def test_the_same_digest_is_kept() -> None:
    assert decide(source("f"), entry("f"), entry("f")) == {"keep": ["f"]}


def test_another_digest_is_sent() -> None:
    assert decide(source("f"), entry("f", NEW), entry("f")) == {"send": ["f"]}


def test_what_is_gone_from_the_source_is_deleted() -> None:
    assert decide(None, None, entry("f")) == {"delete": ["f"]}


def test_what_was_hashed_and_is_gone_is_no_matter() -> None:
    assert decide(None, entry("f"), None) == {}


def test_what_is_kept_is_the_entry_of_the_target_with_its_time() -> None:
    there = FileEntry("f", 3, OLD, 0o644, mtime_ns=99)

    assert plan_transfer({"f": source("f")}, {"f": entry("f")}, {"f": there}).keep == (there,)


# A tiny model: what a file contains, who knows its digest, and what the plan makes of the target.

PATHS = st.sampled_from(["a", "b", "sub/c", "sub0", "é", "\udcff", "\U0001f331"])
CONTENTS = st.sampled_from([b"", b"old", b"new", b"longer"])
TREES = st.dictionaries(PATHS, CONTENTS)


def listed(tree: dict[str, bytes]) -> dict[str, FileEntry]:
    return {path: entry(path, digest(data), len(data)) for path, data in tree.items()}


@given(local=TREES, target=TREES, hashed=st.sets(PATHS))
def test_carried_out_the_plan_makes_the_target_equal_and_sends_nothing_twice(
    local: dict[str, bytes], target: dict[str, bytes], hashed: set[str]
) -> None:
    files = {path: source(path, len(data)) for path, data in local.items()}
    known = {path: one for path, one in listed(local).items() if path in hashed}

    plan = plan_transfer(files, known, listed(target))

    result = dict(target)
    for file in (*plan.send, *plan.check):
        result[file.path] = local[file.path]
    for path in plan.delete:
        del result[path]
    assert result == local
    assert all(target.get(file.path) != local[file.path] for file in plan.send)
    assert all(file.path not in hashed for file in plan.check)
    planned = [file.path for file in (*plan.send, *plan.check)]
    assert sorted(planned + [kept.path for kept in plan.keep]) == sorted(local)


@given(local=TREES, target=TREES)
def test_the_plan_is_in_the_order_of_its_input_and_of_bytes(
    local: dict[str, bytes], target: dict[str, bytes]
) -> None:
    ordered = {path: source(path, len(local[path])) for path in sorted(local, key=sort_key)}

    plan = plan_transfer(ordered, {}, listed(target))

    sent, checked = [f.path for f in plan.send], [f.path for f in plan.check]
    assert sent == sorted(sent, key=sort_key)
    assert checked == sorted(checked, key=sort_key)
    assert list(plan.delete) == sorted(plan.delete, key=sort_key)
