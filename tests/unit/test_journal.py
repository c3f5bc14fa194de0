"""The journal of an upload as a file."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from asyncsync.concurrency import Threads
from asyncsync.storage import Stored
from asyncsync.transfer import Journal
from asyncsync.transfer.pieces import SourceFile

FILE = SourceFile("a", 3, 0o644, 1, 2, 3, 4)


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    threads = Threads(2)
    yield threads
    threads.close()


async def test_two_at_once_do_not_share_one(threads: Threads) -> None:
    async with (
        Journal.open("/a", "s3://b/c", threads) as first,
        Journal.open("/a", "s3://b/c", threads) as second,
        Journal.open("/a", "s3://b/d", threads) as third,
    ):
        assert (first.usable, second.usable, third.usable) == (True, False, True)
        await second.note([(FILE, 0, Stored("0" * 64, "token"))])


async def test_what_was_forked_meanwhile_does_not_keep_the_lock(threads: Threads) -> None:
    with suppress(ZeroDivisionError):
        async with Journal.open("/a", "s3://b/c", threads) as journal:
            inherited = os.dup(journal._fd)  # as a child process has it
            raise ZeroDivisionError
    async with Journal.open("/a", "s3://b/c", threads) as journal:
        assert journal.usable
    os.close(inherited)
