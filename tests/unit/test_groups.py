"""Groups in an object store, beside what every tree store promises for them."""

from __future__ import annotations

import pytest

from asyncsync.errors import BusyError, ConflictError, IntegrityError, NotFoundError
from asyncsync.names import MANIFEST, part_name
from asyncsync.storage import Gathering
from asyncsync.storage.committed import CommittedTrees
from asyncsync.storage.committed.record import TTL_S
from asyncsync.storage.memory import MemoryObjects
from asyncsync.testing import FakeClock
from asyncsync.testing.contract_groups import leave, ranks, see
from asyncsync.testing.values import load, save

FIRST, SECOND = ranks("one", 2)
PART = f"tree/{part_name(FIRST.attempt, 0)}"


def trees(memory: MemoryObjects, clock: FakeClock | None = None) -> CommittedTrees:
    """Another process each time."""
    return CommittedTrees(memory, clock=clock or FakeClock())


async def keys(memory: MemoryObjects) -> set[str]:
    return {info.key async for info in memory.scan("")}


async def test_a_group_that_shows_life_keeps_other_syncs_out() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    store, other = trees(memory, clock), trees(memory, clock)
    await leave(store, FIRST, {"a": b"x"})
    for _ in range(5):
        with pytest.raises(BusyError, match="another sync is writing tree"):
            await save(other, "tree", {"b": b"y"})
        await clock.advance(TTL_S / 2)
        await see(store, FIRST)
    await leave(store, SECOND, {"b": b"x"})
    await see(store, SECOND)

    assert await load(store, "tree") == {"a": b"x", "b": b"x"}


async def test_a_group_that_shows_no_life_is_taken_over_and_swept() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    other = trees(memory, clock)
    await leave(trees(memory), FIRST, {"a": b"x", "b": b"x"})
    with pytest.raises(BusyError):
        await save(other, "tree", {"b": b"y"})
    await clock.advance(TTL_S)
    await save(other, "tree", {"b": b"y"})

    assert await load(other, "tree") == {"b": b"y"}
    assert await keys(memory) == {"tree/b", f"tree/{MANIFEST}"}
    with pytest.raises(ConflictError):
        await leave(trees(memory), FIRST, {"a": b"x"})


async def test_a_sync_that_is_at_work_is_waited_for() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    store = trees(memory, clock)
    await memory.put("tree/.asyncsync-attempt.json", _RECORD)
    with pytest.raises(BusyError):
        await leave(store, FIRST, {"a": b"x"})
    await clock.advance(TTL_S)
    await leave(store, FIRST, {"a": b"x"})
    await leave(store, SECOND, {})
    await see(store, FIRST)

    assert await keys(memory) == {"tree/a", f"tree/{MANIFEST}"}


_RECORD = b'{"asyncsync_attempt":1,"kind":"write","attempt":"00","paths":["dead"]}'


@pytest.mark.parametrize("now", [None, b"other"], ids=["gone", "another"])
async def test_a_part_of_which_a_file_is_not_as_it_was_is_sent_again(now: bytes | None) -> None:
    memory = MemoryObjects()
    await leave(trees(memory), FIRST, {"a": b"x", "b": b"y"})
    await leave(trees(memory), SECOND, {"c": b"z"})
    if now is None:
        await memory.delete("tree/a")
    else:
        await memory.put("tree/a", now)
    seen = await see(trees(memory), SECOND)
    with pytest.raises(NotFoundError):
        await trees(memory).read_part("tree", FIRST)
    await leave(trees(memory), FIRST, {"a": b"x", "b": b"y"})
    await see(trees(memory), SECOND)

    assert seen == Gathering(missing=(0,))
    assert await load(trees(memory), "tree") == {"a": b"x", "b": b"y", "c": b"z"}
    assert await keys(memory) == {"tree/a", "tree/b", "tree/c", f"tree/{MANIFEST}"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace(b'"tokens":[[', b'"tokens":[["more"],['),
        lambda text: text.replace(b'{"asyncsync_part":1', b'{"asyncsync_part":2'),
        lambda text: text.replace(b'["f","a",1,', b'["f","a",2,'),
    ],
    ids=["empty", "cut", "tokens", "version", "manifest"],
)
async def test_a_damaged_part_is_named_and_nothing_committed(damage: object) -> None:
    memory = MemoryObjects()
    await leave(trees(memory), FIRST, {"a": b"x"})
    await leave(trees(memory), SECOND, {})
    text = bytes((await memory.get(PART)).data)
    changed = damage(text)  # type: ignore[operator]
    await memory.put(PART, changed)

    assert changed != text
    with pytest.raises(IntegrityError, match=r"the part \.asyncsync-part-"):
        await see(trees(memory), SECOND)
    with pytest.raises(NotFoundError):
        await trees(memory).read_header("tree")


async def test_what_an_abandoned_group_left_goes_with_a_delete() -> None:
    memory, clock = MemoryObjects(), FakeClock()
    old = await save(trees(memory), "tree", {"a": b"old"})
    await leave(trees(memory), FIRST, {"a": b"x", "b": b"x"}, expect=old.identity)
    store = trees(memory, clock)
    with pytest.raises(BusyError):
        await store.delete("tree")
    await clock.advance(TTL_S)
    await store.delete("tree")

    assert await keys(memory) == set()
    assert [upload async for upload in memory.scan_uploads("")] == []
