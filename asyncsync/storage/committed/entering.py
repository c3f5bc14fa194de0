"""What every attempt begins with: its record, what the one before left, and what it expects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ...concurrency import quietly
from .deleting import remove
from .place import Found, Place, conflict
from .record import Lease, let_go

__all__ = ["announced", "check_expected", "recover"]


@asynccontextmanager
async def announced(place: Place, attempt: str) -> AsyncIterator[None]:
    """Give the record up when the block fails, written or not."""
    try:
        yield
    except BaseException:
        await quietly(lambda: let_go(place, attempt))
        raise


async def recover(place: Place, lease: Lease, old: Found | None) -> None:
    """Settle what the attempt that was taken over leaves open.

    A delete whose manifest is still there has deleted nothing, and is forgotten; else it is
    finished. What a committed attempt overwrote is as its manifest says.
    """
    left = lease.inherited
    if left is None:
        return
    if left.kind == "delete":
        if old is None:
            await remove(place, left.ours)
        lease.inherited = None
        await lease.update(paths=(), listed=(), overwritten=())
    elif old is not None and old.manifest.header.attempt == left.commits_as:
        await lease.update(overwritten=())


def check_expected(place: Place, lease: Lease, old: Found | None, expect: str | None) -> None:
    """ConflictError unless the commit that is there is the one expected.

    The expected one may have been deleted by an attempt to replace it that crashed.
    """
    there = old.manifest.identity if old else None
    left = lease.inherited
    was_replacing = old is None and left is not None and left.replaces == expect
    if there != expect and not was_replacing:
        raise conflict(place, old)
