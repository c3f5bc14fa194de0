from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.errors import (
    BusyError,
    ConflictError,
    DeadlineError,
    IntegrityError,
    TransferError,
    TransientError,
)
from asyncsync.events import Moved
from asyncsync.syncing.isolation.messages import Call, Cancel, Frames, Happened, Message, encode
from asyncsync.syncing.isolation.values import error_of, error_value, event_of, event_value

VECTOR = bytes.fromhex("00000060") + (
    rb'{"type":"Call","id":1,"method":"delete","arguments":{"remote_dir":"/d/\udcff"},'
    rb'"observed":false}'
)
NAMES = st.text(st.characters(exclude_categories=[]), max_size=20)


def test_a_call_looks_as_the_format_says() -> None:
    call = Call(1, "delete", {"remote_dir": "/d/\udcff"}, False)

    assert encode(call) == VECTOR
    assert list(Frames().feed(VECTOR)) == [call]


@given(st.lists(NAMES, max_size=3), st.integers(1, 50))
def test_messages_arrive_however_the_stream_is_cut(names: list[str], size: int) -> None:
    sent: list[Message] = [Call(7, "sync_up", {name: names}, True) for name in names]
    sent.append(Cancel(7))
    stream = b"".join(map(encode, sent))
    frames = Frames()

    found = [m for at in range(0, len(stream), size) for m in frames.feed(stream[at : at + size])]

    assert found == sent


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\2{}",
        b"\0\0\0\1{",
        b"\0\0\0\2[]",
        b'\0\0\0\x11{"type":"Delete"}',
        b"\0\0\0\1\xff",
    ],
)
def test_what_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        list(Frames().feed(frame))


@pytest.mark.parametrize(
    "error",
    [
        ConflictError("another", winner="abc"),
        BusyError("busy", side="target", paths=["a\udcff"], retry_after_s=3.5),
        IntegrityError("damaged", side="source", paths=["x", "y"]),
        DeadlineError("too late"),
        TransferError("two", failures=[IntegrityError("one", paths=["a"]), TransientError("b")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_with_all_it_says(error: Exception) -> None:
    [message] = Frames().feed(encode(Happened(None, "x", error_value(error))))
    assert isinstance(message, Happened)
    found = error_of(message.fields)

    assert type(found) is type(error)
    assert str(found) == str(error)
    expected = {k: repr(v) for k, v in vars(error).items()}
    assert {k: repr(v) for k, v in vars(found).items()} == expected


def test_an_error_that_is_not_ours_is_a_defect_and_says_where() -> None:
    try:
        _ = os.environ["KEY"]
    except KeyError as exc:
        found = error_of(error_value(exc))

    assert isinstance(found, RuntimeError)
    assert str(found) == "KeyError in the engine: 'KEY'"
    assert "test_engine_messages.py" in found.__notes__[0]


def test_an_event_arrives_as_it_was() -> None:
    event = Moved(
        path="a\udcff", size_bytes=1, moved_bytes=2, total_bytes=3, moved_files=4, total_files=5
    )

    assert event_of("Moved", event_value(event)) == event
