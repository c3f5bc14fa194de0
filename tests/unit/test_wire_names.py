"""Names of trees and ids on the wire: what is plain goes through as it is, all else is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.errors import RefusedError
from asyncsync.names import ATTEMPT, LOCK, MANIFEST, NEXT, ROOT_MARKER, holder_name, parts_name
from asyncsync.wire.names import (
    MAX_TREE_BYTES,
    check_session_id,
    check_tree_name,
    is_tree_name,
    parse_index,
)

TRAVERSAL = [
    "..",
    "../x",
    "a/../../x",
    "./x",
    "x/.",
    "//x",
    "/",
    "/etc/passwd",
    "x//y",
    "x/",
    " ",
    "..\\x",
    "C:\\x",
    "C:x",
    "\\\\host\\s",
    "%2e%2e/",
    "%2e%2e%2f",
    "%252e%252e%252f",
    "..%00",
    "a\0b",
    "x\0",
    "%c0%ae%c0%ae/",
    "\udcc0\udcae\udcc0\udcae/x",  # overlong dots, as bytes that are not UTF-8
    "..;/",
    "\uff0e\uff0e/x",
    "..\uff0fx",
    "a\u2215b",
    "\u2024\u2024/x",
    "\u202ex",
    "x\u200f",
    "x ",
    "x\n",
    "\nx",
    "a\nb",
    "a\tb",
    "x" * 201,
    "/".join(["x" * 200] * 20 + ["x" * 77]),
    "/".join("d" * 65),
    "~",
    "~root",
    "$HOME",
    "-rf",
    ".hidden",
    "_x",
    "a?b",
    "a#b",
    "a*b",
    "a&b",
    "http://host/x",
    "é",
    "e\u0301",
    "\u0391",  # a Greek letter that looks like A
    "\uff11",  # a digit, and none of ours
    "\ud800",
    MANIFEST,
    f"x/{ATTEMPT}",
    ROOT_MARKER,
    LOCK,
    f"{NEXT}/x",
    holder_name("x", "tmp", "0" * 32),
    holder_name("", "trash", "0" * 32),
    parts_name("x", "0" * 32),
    f"a/{parts_name('x', '0' * 32)}/b",
]


@pytest.mark.parametrize("name", TRAVERSAL, ids=ascii)
def test_a_name_that_is_not_plain_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check_tree_name(name)

    message = str(caught.value)
    assert not is_tree_name(name)
    assert message.isprintable()
    assert len(message) < 2000
    assert message.startswith("tree ")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "exp",
        "exp/trial_1/ckpt_7",
        "a",
        "0",
        "A.b_c=d,e+f@g-h",
        "trial_lr=0.1,seed=3",
        "2026-11-29/run.1",
        "x.",
        "a..b",
        "con",
        "x" * 200,
        "/".join("d" * 64),
        "/".join(["x" * 200] * 20 + ["x" * 76]),
        "x.asyncsync-parts-1",
    ],
    ids=lambda name: name[:20],
)
def test_a_plain_name_is_taken(name: str) -> None:
    check_tree_name(name)

    assert is_tree_name(name)


def test_the_longest_name_is_as_long_as_allowed() -> None:
    assert len("/".join(["x" * 200] * 20 + ["x" * 76])) == MAX_TREE_BYTES


def test_names_in_another_case_are_other_names_and_both_are_taken() -> None:
    assert is_tree_name("Exp")
    assert is_tree_name("exp")


@given(st.text() | st.from_regex(r"[A-Za-z0-9/._=,+@-]*", fullmatch=True))
def test_what_is_taken_leads_to_one_place_below_the_root(name: str) -> None:
    if not is_tree_name(name):
        return

    assert name.isascii()
    assert name == "" or not re.search(r"(?:^|/)(?:\.|/|$)|[\\%:~\s\0]", name)


@pytest.mark.parametrize("text", ["0" * 32, "0123456789abcdef" * 2])
def test_a_session_id_is_taken(text: str) -> None:
    check_session_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 31,
        "0" * 33,
        "0" * 32 + "\n",
        " " + "0" * 31,
        "A" * 32,
        "g" * 32,
        "../" + "0" * 29,
        "\uff10" * 32,
        *TRAVERSAL,
    ],
    ids=ascii,
)
def test_what_is_no_session_id_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="is no id of a session") as caught:
        check_session_id(text)

    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "index"), [("0", 0), ("7", 7), ("10", 10), ("9999999999", 9_999_999_999)]
)
def test_an_index_is_read(text: str, index: int) -> None:
    assert parse_index(text) == index


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "+1",
        "00",
        "01",
        "1.0",
        "1e3",
        "0x1",
        "1_0",
        "1 ",
        "1\n",
        "10000000000",
        "9" * 5000,
        "\u0661",
        "\uff11",
        *TRAVERSAL,
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_what_is_no_index_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="is no index") as caught:
        parse_index(text)

    assert str(caught.value).isprintable()
