"""Who reads a commit from where: the origin about once, whatever readers do."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncsync.peer.turns as module
from asyncsync.peer.turns import ORIGIN, Holder, Turn, Turns

A = "a" * 64
LINE_1, LINE_3 = Holder("line 1", "exp/a"), Holder("line 3", "a")


def test_the_first_reads_from_the_origin_and_the_second_waits_for_it() -> None:
    turns = Turns()

    assert turns.ask(A, "one", 0) == Turn(ORIGIN)
    assert turns.ask(A, "two", 0) == Turn(None)
    assert turns.ask("b" * 64, "two", 0) == Turn(ORIGIN)


def test_who_has_it_gives_it_to_two_at_a_time() -> None:
    turns = Turns()
    turns.ask(A, "one", 0)
    turns.done(A, "one", LINE_1, 1)
    asked = [turns.ask(A, name, 1).source for name in ("two", "three", "four")]
    turns.done(A, "three", LINE_3, 2)
    then = [turns.ask(A, name, 2).source for name in ("four", "five", "six", "seven")]

    assert asked == [LINE_1, LINE_1, None]
    assert then == [LINE_3, LINE_1, LINE_3, None]


def test_a_turn_stays_while_its_reader_is_alive_and_not_longer() -> None:
    turns = Turns()
    turns.ask(A, "one", 0)
    kept = [turns.ask(A, "one", at).source for at in (29, 58)]
    waits = turns.ask(A, "two", 87.9)
    takes = turns.ask(A, "two", 88)

    assert (kept, waits, takes) == ([ORIGIN, ORIGIN], Turn(None), Turn(ORIGIN))


def test_nobody_is_sent_to_where_somebody_failed() -> None:
    turns = Turns()
    turns.ask(A, "one", 0)
    turns.done(A, "one", LINE_1, 0)
    turns.ask(A, "two", 0)
    turns.failed(A, "two", 1)

    assert turns.ask(A, "two", 1) == Turn(ORIGIN)


def test_who_cannot_give_it_on_is_not_named() -> None:
    turns = Turns()
    turns.ask(A, "one", 0)
    turns.done(A, "one", ORIGIN, 0)

    assert turns.ask(A, "two", 0) == Turn(ORIGIN)


def test_a_copy_is_not_believed_in_for_ever() -> None:
    turns = Turns()
    turns.done(A, "one", LINE_1, 0)

    assert turns.ask(A, "two", 899) == Turn(LINE_1)
    assert turns.ask(A, "three", 930) == Turn(ORIGIN)


@given(st.integers(1, 64))
def test_however_many_read_the_origin_is_read_once(readers: int) -> None:
    turns, left = Turns(), [f"reader {number}" for number in range(readers)]
    read, rounds = Counter[str](), 0
    while left:
        rounds += 1
        given_out = {who: turns.ask(A, who, rounds).source for who in left}
        going = {who: source for who, source in given_out.items() if source is not None}
        assert max(Counter(s for s in going.values()).values()) <= 2
        for who, source in going.items():
            read["origin" if source == ORIGIN else "others"] += 1
            turns.done(A, who, Holder(f"line of {who}", "tree"), rounds)
            left.remove(who)

    assert read.total() == readers
    assert read["origin"] == 1
    assert 3 ** (rounds - 2) <= readers


def test_copies_that_somebody_made_up_are_bounded_in_all_and_nobody_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_HOLDERS", 2)
    monkeypatch.setattr(module, "_MOST_READERS", 3)
    turns = Turns()
    for number in range(4):
        turns.done("x", "liar", Holder(f"made up {number}", ""), 0)
    asked = [turns.ask("x", f"reader {number}", 0).source for number in range(4)]
    turns.done(A, "one", LINE_1, 0)

    assert asked == [*(Holder(f"made up {n}", "") for n in (0, 1, 0)), ORIGIN]
    assert turns.ask(A, "two", 1) == Turn(ORIGIN), "it is full, and one more copy is not noted"
    turns.done("x", "liar", Holder("made up 1", ""), 500)
    turns.done(A, "one", LINE_1, 900)  # the first one is of old by now
    assert turns.ask(A, "two", 900) == Turn(LINE_1)


def test_a_thousand_readers_and_copies_are_served_at_once() -> None:
    turns, looked = Turns(), 0

    class Counted(Holder):
        def __eq__(self, other: object) -> bool:
            nonlocal looked
            looked += 1
            return super().__eq__(other)

        __hash__ = Holder.__hash__

    for number in range(1000):
        turns.done(A, "liar", Counted(f"copy {number}", ""), 0)
    for number in range(1000):
        turns.ask(A, f"reader {number}", 0)
    looked = 0
    turns.ask(A, "one more", 0)

    assert looked < 10_000
