"""Paths a tree may hold, and the names that are asyncsync's own."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.errors import RefusedError
from asyncsync.names import (
    ATTEMPT,
    LOCK,
    MANIFEST,
    NEXT,
    ROOT_MARKER,
    check_path,
    check_set,
    holder_name,
    holder_of,
    is_commit_file,
    is_ours,
    is_snapshot,
    new_attempt,
    sort_key,
)

A, B = "a" * 32, "0123456789abcdef" * 2


# ---------------------------------------------------------------- paths

REFUSED = {
    "..": "relative",
    "../x": "relative",
    "a/../../x": "relative",
    "./x": "relative",
    "x/.": "relative",
    "//x": "relative",
    "/etc/passwd": "relative",
    "x//y": "relative",
    "x/": "relative",
    "": "relative",
    "a\0b": "NUL",
    "..\0": "NUL",
    "x" * 256: "256 bytes long; 255",
    "é" * 128: "256 bytes long; 255",
    "/".join(["x" * 240] * 17)[:4096]: "4096 bytes long; 4095",
    "/".join("d" * 65): "65 levels deep; 64",
    "\ud800": "surrogate",
    "\udcc3\udca9": "spells",  # bytes that are UTF-8 have the other spelling
    MANIFEST: "reserved",
    f"sub/{ATTEMPT}": "reserved",
    ROOT_MARKER: "reserved",
    f"{NEXT}/x": "reserved",
    LOCK: "reserved",
    ".asyncsync": "reserved",
    ".asyncsync-of-my-own": "reserved",
    f".victim.asyncsync-tmp-{A}/old/x": "temporary directory",
    f"sub/.victim.asyncsync-trash-{A}": "temporary directory",
    f".victim.asyncsync-snap-{A}/tree/x": "temporary directory",
    f"x.asyncsync-parts-{B}/00001": "temporary directory",
    f"sub/x.asyncsync-parts-{B}/mine": "temporary directory",
    f"a\nb.asyncsync-parts-{B}": "temporary directory",
}

PLAIN = [
    # Traversal somewhere else, but plain names here: nothing decodes or folds them.
    "..\\x",
    "C:\\x",
    "\\\\host\\s",
    "%2e%2e/x",
    "%2e%2e%2f",
    "%252e%252e%252f",
    "..%00",
    "%c0%ae%c0%ae/x",
    "..;/x",
    "\uff0e\uff0e/x",  # full-width full stops
    "..\uff0fx",  # full-width solidus
    "..\u2215x",  # division slash
    "\u2024\u2024/x",  # one dot leaders
    "\u202ex",  # right-to-left override
    "trailing.",
    "trailing ",
    " ",
    "new\nline",
    "~",
    "~root",
    "$HOME",
    "-rf",
    "con",
    "what?",
    "#hash",
    "http://host/x".replace("//", "/"),
    "...",
    "x" * 255,
    "/".join("d" * 64),
    "/".join(["x" * 240] * 17)[:4095],
    "caf\udce9",
    "asyncsync.json",
    ".asyncsyn",
    "my.asyncsync.json",
    f"victim.asyncsync-tmp-{A}",
    f".victim.asyncsync-tmp-{A[1:]}",
    f".victim.asyncsync-old-{A}",
    f"x.asyncsync-parts-{A[1:]}/00001",
    f"x.asyncsync-parts-{A}0/00001",
    f"x.asyncsync-parts-{A.upper()}/00001",
]


@pytest.mark.parametrize("path", REFUSED)
def test_a_path_that_leads_elsewhere_or_cannot_be_kept_is_refused_with_the_reason(
    path: str,
) -> None:
    with pytest.raises(RefusedError, match=REFUSED[path]) as caught:
        check_path(path)

    assert caught.value.paths == (path,)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", PLAIN)
def test_what_is_only_odd_is_a_plain_name(path: str) -> None:
    check_path(path)


@given(st.binary(min_size=1, max_size=40))
def test_whatever_is_accepted_stays_below_the_root_and_has_one_spelling(raw: bytes) -> None:
    path = os.fsdecode(raw)
    try:
        check_path(path)
    except RefusedError:
        return

    assert os.path.normpath("/root/" + path) == "/root/" + path
    assert os.fsdecode(os.fsencode(path)) == path


def test_the_order_is_that_of_bytes() -> None:
    names = ["sub0a", "sub/a", "sub-a", "é", "e\u0301", "\udcff", "z", "\U0001f331"]

    assert sorted(names, key=sort_key) == [
        "e\u0301",
        "sub-a",
        "sub/a",
        "sub0a",
        "z",
        "é",
        "\U0001f331",
        "\udcff",
    ]


# ---------------------------------------------------------------- sets of paths


@pytest.mark.parametrize(
    ("files", "directories", "nested", "reason"),
    [
        (["a", "a"], [], [], "a refused: it is listed twice"),
        (["b", "a", "b", "a"], [], [], "a refused: it is listed twice"),
        ([], ["d", "d"], [], "d refused: it is listed twice"),
        ([], ["d"], ["d"], "d refused: it is listed twice"),
        (["a", "a/b"], [], [], "a refused: it is a file and a directory"),
        (["a", "a/b/c"], [], [], "a refused: it is a file and a directory"),
        (["a", "a-b", "a/b"], [], [], "a refused: it is a file and a directory"),
        (["a"], ["a"], [], "a refused: it is a file and a directory"),
        (["a"], ["a/b"], [], "a refused: it is a file and a directory"),
        (["a"], [], ["a"], "a refused: it is a file and a directory"),
        (["a"], [], ["a/b"], "a refused: it is a file and a directory"),
        (["n/a"], [], ["n"], "n refused: it is a commit of its own"),
        (["n/b/a"], [], ["n"], "n refused: it is a commit of its own"),
        ([], ["n/d"], ["n"], "n refused: it is a commit of its own"),
    ],
)
def test_a_set_that_no_tree_can_hold_is_refused(
    files: list[str], directories: list[str], nested: list[str], reason: str
) -> None:
    with pytest.raises(RefusedError, match=reason):
        check_set(files, directories, nested)


@pytest.mark.parametrize(
    ("files", "directories", "nested"),
    [
        ([], [], []),
        (["a", "A"], [], []),
        (["é", "e\u0301"], [], []),
        (["a/b", "a/c", "ab"], ["a/d", "e"], ["n", "a/n"]),
        ([], ["checkpoints"], ["checkpoints/1"]),  # empty at the source, commits at the target
        ([], [], ["n", "n/n"]),
    ],
)
def test_a_set_that_a_disk_can_hold_is_accepted(
    files: list[str], directories: list[str], nested: list[str]
) -> None:
    check_set(files, directories, nested)


@pytest.mark.timeout(5)  # quadratic, it would take three times as long
def test_a_large_set_with_one_double_takes_linear_time() -> None:
    files = [f"directory/{number}" for number in range(30_000)]

    with pytest.raises(RefusedError, match="directory/29999 refused: it is listed twice"):
        check_set([*files, files[-1]])


# ---------------------------------------------------------------- holders

COMPONENTS = st.one_of(
    st.binary(min_size=1, max_size=255).map(lambda raw: raw.replace(b"/", b"_")),
    st.sampled_from([b"trial_1", b"trial_10", b".trial_1", b"x" * 255, b"x" * 254 + b"y"]),
).filter(lambda raw: b"\0" not in raw and raw not in (b".", b".."))
NAMES = COMPONENTS.map(os.fsdecode)
KINDS = st.sampled_from(["tmp", "trash", "snap"])


@given(name=NAMES, kind=KINDS)
def test_a_holder_is_found_again_and_fits_a_directory_entry(name: str, kind: str) -> None:
    holder = holder_name(name, kind, A)

    assert holder_of(holder, name) == kind
    assert is_ours(holder)
    assert len(os.fsencode(holder)) <= 255


@given(name=NAMES, other=NAMES, kind=KINDS)
def test_the_holder_of_one_tree_is_never_taken_for_that_of_another(
    name: str, other: str, kind: str
) -> None:
    if name != other:
        assert holder_of(holder_name(name, kind, A), other) is None


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("trial_1", "trial_10"),
        ("trial_10", "trial_1"),
        ("x" * 255, "x" * 254),
        ("x" * 254 + "y", "x" * 254 + "z"),
        ("\udcff" * 255, "\udcff" * 254 + "\udcfe"),
        ("caf\udce9", "café"),
        (f"t.asyncsync-tmp-{A}", "t"),
    ],
)
def test_names_that_begin_alike_have_different_holders(name: str, other: str) -> None:
    assert holder_of(holder_name(name, "tmp", A), other) is None
    assert holder_of(holder_name(other, "tmp", A), name) is None


def test_attempts_on_one_tree_have_different_holders_even_when_its_name_is_long() -> None:
    assert holder_name("x" * 255, "tmp", A) != holder_name("x" * 255, "tmp", B)


def test_a_short_name_is_readable_in_its_holder() -> None:
    assert holder_name("ckpt", "trash", A) == f".ckpt.asyncsync-trash-{A}"


def test_without_a_name_the_holder_is_inside_the_tree_and_ours() -> None:
    inside = holder_name("", "tmp", A)

    assert inside == f".asyncsync-tmp-{A}"
    assert is_ours(inside)


def test_the_snapshot_of_any_tree_is_told_from_other_holders() -> None:
    kinds = ("tmp", "trash", "snap")

    assert [is_snapshot(holder_name("ckpt", kind, A)) for kind in kinds] == [False, False, True]
    assert is_snapshot(holder_name("x" * 255, "snap", A))
    assert not is_snapshot(f"ckpt.asyncsync-snap-{A}")


@pytest.mark.parametrize(
    "entry", ["ckpt", ".ckpt", f".ckpt.asyncsync-tmp-{A}0", f".ckpt.asyncsync-tmp-{A[:-1]}G", ""]
)
def test_other_entries_are_nobodys_holder(entry: str) -> None:
    assert holder_of(entry, "ckpt") is None


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (MANIFEST, True),
        (ATTEMPT, True),
        (ROOT_MARKER, True),
        (LOCK, True),
        (NEXT, True),
        (f".asyncsync-tmp-{A}", True),
        (f".a b\n.asyncsync-trash-{B}", True),
        ("asyncsync.json", False),
        (".asyncsync-mine", False),  # reserved, so refused by name rather than left out
        (f".asyncsync-tmp-{A[:-1]}", False),
        (f"ckpt.asyncsync-tmp-{A}", False),
        (f".ckpt.asyncsync-old-{A}", False),
        (f"x.asyncsync-parts-{A}", False),  # never on a disk, so a walk does not pass over it
        ("", False),
    ],
)
def test_what_asyncsync_makes_is_told_from_what_only_looks_like_it(name: str, ours: bool) -> None:
    assert is_ours(name) is ours


def test_an_attempt_is_32_hexadecimal_digits_and_never_the_same() -> None:
    attempts = {new_attempt() for _ in range(100)}

    assert len(attempts) == 100
    assert all(len(a) == 32 and set(a) <= set("0123456789abcdef") for a in attempts)


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("0/commit_success.txt", True),
        ("_CHECKPOINT_METADATA", True),
        (".metadata", True),
        (".snapshot_metadata", True),
        ("model.safetensors.index.json", True),
        ("latest", True),
        ("latest_checkpointed_iteration.txt", True),
        ("latest/weights", False),
        ("model.safetensors", False),
        ("my.metadata", False),
    ],
)
def test_the_commit_files_of_frameworks_are_known(path: str, last: bool) -> None:
    assert is_commit_file(path) is last


@pytest.mark.parametrize("attempt", ["", "a" * 31, "A" * 32, "/../../x", "a" * 32 + "\n"])
def test_nothing_is_named_by_what_is_no_attempt(attempt: str) -> None:
    for name in ("", "ckpt"):
        with pytest.raises(ValueError, match="32 hexadecimal digits"):
            holder_name(name, "tmp", attempt)
