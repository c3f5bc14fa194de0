"""Messages between nodes: the vectors and tables of docs/formats/peer.md, and garbage."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync import errors
from asyncsync.digest import CHUNK_BYTES
from asyncsync.errors import (
    AsyncSyncError,
    BusyError,
    ConflictError,
    FormatError,
    IntegrityError,
    NoSpaceError,
    NotCommittedError,
    SourceChangedError,
    TransferError,
)
from asyncsync.wire import failures
from asyncsync.wire import messages as m
from asyncsync.wire.framing import extents_of, extents_text, join_batch, split_batch

PAGE = (Path(__file__).parents[2] / "docs/formats/peer.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose head begins with that."""
    table = PAGE.split(f"| {first} |", 1)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


# -- the page


def test_the_page_has_every_route_as_it_is() -> None:
    told = {
        cells[0].strip("`"): (cells[1].strip("`"), cells[2]) for cells in rows("request | path")
    }

    assert told == {
        name: (
            f"{route.method} {route.path}".replace("{session}", "SESSION").replace(
                "{blob}", "BLOB"
            ),
            ", ".join(n if n in ("any", "public") else f"`{n}`" for n in route.needs),
        )
        for name, route in m.ROUTES.items()
    }


def test_the_page_has_every_kind_of_error_with_its_status() -> None:
    told = {cells[0].strip("`"): int(cells[1]) for cells in rows("kind")}

    assert told == {kind.__name__: status for kind, status in failures._STATUS.items()}


def test_the_batch_of_the_page() -> None:
    text = bytes.fromhex(BLOCKS[0].replace("\n", ""))
    sizes = [0] * 259
    sizes[0], sizes[7] = 1, 3
    batch = split_batch(memoryview(text), sizes)

    assert join_batch([0, 7, 258]) + b"abcd" == text
    assert (batch.blobs, [*map(bytes, batch.data)]) == ([0, 7, 258], [b"a", b"bcd", b""])


def test_the_plan_of_the_page() -> None:
    first, *files = BLOCKS[1].encode().splitlines()
    begin = m.decode(first, m.Begin)
    lines = [m.decode(line, m.FileLine) for line in files]

    assert begin.tree == "exp/trial_1"
    assert [m.path_of(line.path) for line in lines] == ["weights", "\udcff"]
    assert b"".join(m.lines_of([begin, *lines])) == BLOCKS[1].encode()


def test_the_recalled_chunk_and_the_fault_of_the_page() -> None:
    held = m.decode(BLOCKS[2].encode(), m.HeldLine)
    fault = m.decode(BLOCKS[3].encode(), m.Fault)
    error = failures.error_of(409, fault, "begin")

    assert b"".join(m.lines_of([held])) == BLOCKS[2].encode()
    assert isinstance(error, ConflictError)
    assert (error.winner, str(error)) == (EMPTY, "begin: another commit is there")
    assert m.encode(fault) + b"\n" == BLOCKS[3].encode()


# -- batches and extents


@given(st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=9)), unique_by=lambda one: one[0]))
def test_a_batch_is_taken_apart_as_it_was_put_together(blobs: list[tuple[int, bytes]]) -> None:
    sizes = [0] * 31
    for number, data in blobs:
        sizes[number] = len(data)
    body = join_batch([n for n, _ in blobs]) + b"".join(data for _, data in blobs)
    if not blobs:
        with pytest.raises(FormatError):
            split_batch(memoryview(body), sizes)
        return
    batch = split_batch(memoryview(body), sizes)

    assert [(n, bytes(d)) for n, d in zip(batch.blobs, batch.data, strict=True)] == blobs


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\0",
        b"\0\0\0\1",
        b"\xff\xff\xff\xff",
        b"\0\0\0\1\0\0\0\2ab",  # not in the plan
        b"\0\0\0\1\0\0\0\0a",  # too short
        b"\0\0\0\1\0\0\0\0abc",  # too long
        b"\0\0\0\2\0\0\0\0\0\0\0\0abab",  # twice
        b"\0\0\x10\1" + bytes(4 * 4097),
    ],
)
def test_a_batch_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(FormatError):
        split_batch(memoryview(body), [2, 3])


def test_a_file_in_a_batch_is_one_chunk_at_most() -> None:
    body = memoryview(join_batch([0]) + bytes(CHUNK_BYTES + 1))

    assert len(split_batch(body[:-1], [CHUNK_BYTES]).data[0]) == CHUNK_BYTES
    with pytest.raises(FormatError, match="more than one chunk"):
        split_batch(body, [CHUNK_BYTES + 1])


@given(st.binary(max_size=40))
def test_garbage_is_a_batch_or_refused(body: bytes) -> None:
    try:
        batch = split_batch(memoryview(body), [0, 1, 2, 3])
    except FormatError:
        return
    assert join_batch(batch.blobs) + b"".join(map(bytes, batch.data)) == body


@given(st.lists(st.integers(0, CHUNK_BYTES), unique=True, max_size=20).map(sorted))
def test_extents_come_back(ends: list[int]) -> None:
    pairs = tuple(zip(ends[::2], ends[1::2], strict=False))

    assert extents_of(extents_text(pairs), CHUNK_BYTES) == pairs


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-",
        "1-",
        "-1",
        "2-1",
        "1-1",
        "0-4,2-6",
        "4-6,0-2",
        "0-101",
        "0-2,",
        "a-b",
        "0-²",
        "0 -2",
    ],
)
def test_extents_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        extents_of(text, 100)


# -- messages


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"tree":1}',
        b'{"tree":"a","more":1}',
        b'{"tree":"a","start":1e99}',
        b'{"tree":"a","start":NaN}',
        b'{"tree":"\\ud800"}',
        b"[" * 100_000,
        b'{"tree":"a"} x',
        b"\xff\xfe",
    ],
)
def test_a_message_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(FormatError, match="no Window"):
        m.decode(text, m.Window)


@given(st.binary(max_size=60))
def test_garbage_is_no_message(text: bytes) -> None:
    with pytest.raises(FormatError):
        m.decode(text, m.Begin)


@pytest.mark.parametrize("path", [["="], ["YQ=="], ["/w==", "/w=="], [], ["YQ"]])
def test_a_path_that_is_none_is_refused(path: list[str]) -> None:
    with pytest.raises(FormatError):
        m.path_of(path)


# -- errors on their way


def kinds() -> list[type[AsyncSyncError]]:
    return [kind for kind in failures._STATUS if kind is not ConflictError]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_an_error_arrives_as_what_it_was(kind: type[AsyncSyncError]) -> None:
    status, fault = failures.fault_of(kind("no room", side="target", paths=["a", "\udcff"]))
    back = failures.error_of(status, m.decode(m.encode(fault), m.Fault), "write w")

    assert type(back) is kind
    assert (str(back), back.side, back.paths) == ("write w: no room", "target", ("a", "\udcff"))


def test_an_error_keeps_what_the_caller_goes_by() -> None:
    busy = BusyError("others", retry_after_s=3.5)
    back = failures.error_of(*failures.fault_of(busy), "x")

    assert isinstance(back, BusyError)
    assert back.retry_after_s == 3.5


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (SourceChangedError("x"), "PermanentError"),
        (AsyncSyncError("x"), "PermanentError"),
        (TransferError("x", failures=[NoSpaceError("full")]), "NoSpaceError"),
        (NotCommittedError("x"), "NotCommittedError"),
        (errors.PreconditionError("x"), "PermanentError"),
    ],
)
def test_an_error_without_a_status_goes_as_the_nearest_that_has_one(
    error: AsyncSyncError, kind: str
) -> None:
    assert failures.fault_of(error)[1].kind == kind


def test_where_a_head_keeps_its_trees_is_not_told() -> None:
    _, fault = failures.fault_of(IntegrityError("w is missing in /srv/x/exp"), hide="/srv/x")
    _, root = failures.fault_of(IntegrityError("/srv/x is damaged"), hide="/srv/x/")

    assert "/srv" not in fault.message + root.message


@pytest.mark.parametrize(
    ("status", "kind"), [(404, "BusyError"), (500, "NoSuchError"), (200, "NotFoundError")]
)
def test_status_and_error_that_do_not_belong_together_are_refused(status: int, kind: str) -> None:
    with pytest.raises(FormatError):
        failures.error_of(status, m.Fault(kind=kind, message="x"), "read")


def test_what_a_head_says_is_one_line_of_bounded_length() -> None:
    fault = m.Fault(kind="BusyError", message="a\n\x1b[31m" + "b" * 10_000)
    text = str(failures.error_of(423, fault, "read"))

    assert text.isprintable()
    assert len(text) < 2100
