"""The memory that lists of files take: every one of them counts, and no token has all of it."""

from __future__ import annotations

import pytest

from asyncsync.errors import SlowDownError
from asyncsync.peer.listings import FILE_BYTES, Ledger


def test_a_token_has_half_of_the_room_and_not_a_byte_more() -> None:
    ledger = Ledger(100)
    first, second = ledger.lend("me"), ledger.lend("me")
    ledger.lend("you").grow(0, 10)
    first.grow(0, 25)
    second.grow(0, 25)
    with pytest.raises(SlowDownError):
        second.grow(0, 1)
    first.leave()
    second.grow(0, 25)

    assert ledger.held_bytes == 60


def test_all_together_have_all_of_the_room_and_not_a_byte_more() -> None:
    ledger = Ledger(100)
    for owner in ("me", "you"):
        ledger.lend(owner).grow(0, 50)
    with pytest.raises(SlowDownError):
        ledger.lend("third").grow(0, 1)

    assert ledger.held_bytes == 100


def test_one_list_may_have_all_of_the_room_and_more_if_there_is_no_other() -> None:
    ledger = Ledger(100)
    mine, another = ledger.lend("me"), ledger.lend("you")
    another.grow(0, 20)
    mine.grow(0, 80)
    with pytest.raises(SlowDownError):
        mine.grow(0, 1)
    another.leave()
    mine.grow(10**6)

    assert ledger.held_bytes == 80 + 10**6 * FILE_BYTES


def test_a_list_that_several_have_counts_once_and_until_the_last_has_left_it() -> None:
    ledger = Ledger(100)
    loan = ledger.lend("me")
    loan.grow(0, 60)
    for _ in range(2):
        with loan.share():
            pass  # it is kept by what was begun in the block
    with pytest.raises(ZeroDivisionError), loan.share():
        _ = 1 / 0
    loan.leave()
    loan.leave()
    assert ledger.held_bytes == 60

    loan.leave()
    assert ledger.held_bytes == 0


def test_a_list_that_does_not_grow_after_all_takes_no_more() -> None:
    ledger = Ledger(10 * FILE_BYTES)
    loan = ledger.lend("me")
    loan.grow(2)
    growing = loan.growing(3, 7)
    growing.__enter__()
    assert ledger.held_bytes == 5 * FILE_BYTES + 7
    assert not growing.__exit__(ValueError, ValueError("no room on the disk"), None)
    assert ledger.held_bytes == 2 * FILE_BYTES
    with loan.growing(1):
        pass

    assert ledger.held_bytes == 3 * FILE_BYTES
    loan.leave()
    assert ledger.held_bytes == 0
