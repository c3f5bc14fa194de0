"""What the ranks of a group do in an object store, one after another, in any process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import ModuleType

from asyncsync import digest
from asyncsync.errors import BusyError, NotFoundError
from asyncsync.manifest import Header, Manifest
from asyncsync.names import new_attempt
from asyncsync.storage import Gathering, Group
from asyncsync.storage.committed import CommittedTrees, place, recalled, writer
from asyncsync.storage.committed.record import TTL_S
from asyncsync.storage.trees import Intent, NewFile
from asyncsync.testing import FakeClock, values
from asyncsync.testing.values import make_manifest, new_files

from .committed_scenarios import CHUNK, put

__all__ = ["PARTS", "WHOLE", "finish", "rank", "small_chunks", "until_left"]

PARTS: list[dict[str, bytes]] = [
    {"a": b"new", ".metadata": b"comes last", "same": b"in two"},
    {"d/big": b"big and new", "e/empty": b""},
    {},
    {"same": b"in two", "d/kept": b"kept in both"},
]
WHOLE = {path: data for part in PARTS for path, data in part.items()}
_SIZE = len(PARTS)


def small_chunks(set_: Callable[[ModuleType, str, int], None]) -> None:
    """Files of eleven bytes are big ones."""
    for module in (digest, place, recalled, values, writer):
        set_(module, "CHUNK_BYTES", CHUNK)


def group(number: int) -> Group:
    return Group(id="one", rank=number, size=_SIZE)


def rank(number: int) -> Callable[[CommittedTrees], Awaitable[Gathering]]:
    """What one rank does: look, leave the part unless it is there, and look for the others."""

    async def act(store: CommittedTrees) -> Gathering:
        one, expect = group(number), None
        try:
            there = await store.read_manifest("tree")
            expect = there.identity
            committed = there.header.attempt == one.attempt
        except NotFoundError:
            committed = False
        if not committed:
            await _leave(store, one, expect)
        return await store.gather("tree", _intent(one, expect))

    return act


def _intent(one: Group, expect: str | None, files: dict[str, bytes] | None = None) -> Intent:
    return Intent(attempt=new_attempt(), expect=expect, files=new_files(files or {}), group=one)


async def _leave(store: CommittedTrees, one: Group, expect: str | None) -> None:
    try:
        await store.read_part("tree", one)
    except NotFoundError:
        files = PARTS[one.rank]
        entries = make_manifest(files).entries
        manifest = Manifest.of(Header(attempt=one.attempt, writer=str(one.rank)), entries)
        async with store.begin("tree", _intent(one, expect, files)) as target:
            await put(target, files)
            for path, data in files.items():
                if len(data) > CHUNK:
                    await target.finish(NewFile(path, len(data)))
            await target.commit(manifest)


async def until_left(store: CommittedTrees, clock: FakeClock, number: int) -> Gathering:
    """Be that rank until its part is there, waiting for what is dead to count as such."""
    for _ in range(9):
        try:
            seen = await rank(number)(store)
        except BusyError as exc:
            await clock.advance(exc.retry_after_s or TTL_S)
            continue
        if number not in seen.missing:
            return seen
    raise AssertionError(f"rank {number} cannot leave its part")


async def finish(store: CommittedTrees, clock: FakeClock, *, last: int) -> None:
    """All ranks again; the `last` one completes."""
    for number in [*(n for n in range(_SIZE) if n != last), last]:
        await until_left(store, clock, number)
    for _ in range(9):
        if (await until_left(store, clock, last)).durability is not None:
            return
        await clock.advance(TTL_S + 1)
    raise AssertionError("nobody completes it")
