"""What a head knows of commits: nothing that could be old, and not too much."""

from __future__ import annotations

from asyncsync.peer import known
from asyncsync.peer.known import Known


def test_what_a_commit_survives_is_known_of_that_commit_only() -> None:
    told = Known()
    told.note("a", "one", "fsync")

    assert (told.level("a", "one"), told.level("a", "two"), told.level("b", "one")) == (
        "fsync", None, None,
    )  # fmt: skip


def test_a_manifest_is_known_by_its_tag() -> None:
    told = Known()
    told.note("a", "one", "fsync")
    told.keep("a", "one", "tag 1", b"text")

    assert told.text("a", "tag 1") == ("one", b"text")
    assert told.text("a", "tag 2") is None
    assert told.text("b", "tag 1") is None
    assert told.level("a", "one") == "fsync"


def test_another_commit_takes_the_place_of_all_that_was_known() -> None:
    told = Known()
    told.keep("a", "one", "tag 1", b"text")
    told.note("a", "two", "reduced")

    assert told.text("a", "tag 1") is None
    assert told.level("a", "one") is None


def test_no_tag_is_no_manifest() -> None:
    told = Known()
    told.keep("a", "one", "", b"text")

    assert told.text("a", "") is None


def test_the_oldest_are_forgotten_by_number_and_by_bytes() -> None:
    told = Known()
    for number in range(known._MOST + 1):
        told.note(f"{number}", "x", "fsync")
    big = bytes(known._TEXT_BYTES)
    for number in range(5):
        told.keep(f"big {number}", "x", "tag", big)
    told.keep("too big", "x", "tag", big + b"x")

    assert told.level("0", "x") is None
    assert [told.text(f"big {n}", "tag") is not None for n in range(5)] == [False] + [True] * 4
    assert told.text("too big", "tag") is None
