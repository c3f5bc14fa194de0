"""Many writers of one commit, as users call them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncsync
from asyncsync import Group, Receipt, StorageSyncer
from asyncsync.errors import (
    AsyncSyncError,
    ConfigError,
    ConflictError,
    DeadlineError,
    RefusedError,
)
from asyncsync.events import Committed
from asyncsync.names import MANIFEST
from asyncsync.storage import Durability
from asyncsync.storage.local.fs import rename_over
from asyncsync.storage.local.trash import sweep
from asyncsync.storage.memory import memory_objects
from asyncsync.syncing.part import PartUpload, Patience
from asyncsync.syncing.requests import upload_request
from asyncsync.testing import FakeClock

from .trees import Events, content, make, ticking

Tree = Mapping[str, bytes | None]
Rank = Callable[..., Coroutine[Any, Any, Receipt]]

PARTS: list[Tree] = [
    {"shard/0": b"zero", "config.json": b"{}", ".metadata": b"all"},
    {"shard/1": os.urandom(300_000), "config.json": b"{}"},
    {"shard/2": b"", "log": b"x"},
    {},
]
WHOLE = {path: data for part in PARTS for path, data in part.items()}


@pytest.fixture(params=["disk", "objects"])
async def target(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A place for a checkpoint; nothing but it is left in the end."""
    if request.param == "disk":
        (tmp_path / "store").mkdir()
        yield str(tmp_path / "store" / "ckpt_7")
        return
    name = f"memory://{tmp_path.name}{os.urandom(4).hex()}"
    yield f"{name}/ckpt_7"


async def raw(target: str, tmp_path: Path) -> set[str]:
    """What is there, with what is hidden; directories do not count."""
    if target.startswith("memory://"):
        objects = memory_objects(target.removeprefix("memory://").partition("/")[0])
        return {info.key.removeprefix("ckpt_7/") async for info in objects.scan("")}
    found = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    return {str(path.relative_to(target)) for path in found if path.is_relative_to(target)} | {
        str(path) for path in found if not path.is_relative_to(target)
    }


def group(rank: int, id: str = "one", size: int = 4, deadline_s: float = 1800.0) -> Group:
    return Group(id=id, rank=rank, size=size, deadline_s=deadline_s)


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[Rank]:
    """A function that is a rank: it uploads a part, and says what came of it. Time flies."""
    async with (
        ticking(step_s=0.5) as clock,
        StorageSyncer(isolation="loop", clock=clock) as syncer,
    ):

        async def rank(one: Group, target: str, part: Tree, **more: Any) -> Receipt:
            name = f"{one.id}-{one.rank}"
            source = await anyio.to_thread.run_sync(make, tmp_path / name, part)
            receipt: Receipt = await syncer.sync_up(source, target, group=one, **more)
            return receipt

        yield rank


async def all_ranks(
    rank: Rank,
    target: str,
    parts: list[Tree],
    id: str = "one",
    **more: Any,
) -> list[Receipt]:
    """Run all ranks at once."""
    receipts: dict[int, Receipt] = {}

    async def run(number: int) -> None:
        one = group(number, id, len(parts))
        receipts[number] = await rank(one, target, parts[number], **more)

    async with anyio.create_task_group() as tasks:
        for number in range(len(parts)):
            tasks.start_soon(run, number)
    return [receipts[number] for number in sorted(receipts)]


async def test_a_commit_that_is_deleted_at_once_is_not_waited_for(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = PartUpload._look_for_parts

    async def gone(upload: PartUpload) -> Durability | None:
        durability = await look(upload)
        if durability is not None:
            await asyncsync.delete(target)
        return durability

    monkeypatch.setattr(PartUpload, "_look_for_parts", gone)
    async with running(tmp_path) as rank:
        with pytest.raises(ConflictError, match="was committed, and that commit has been deleted"):
            await rank(group(0, size=1), target, PARTS[0])


async def test_all_ranks_get_the_receipt_of_the_whole(target: str, tmp_path: Path) -> None:
    async with running(tmp_path) as rank:
        receipts = await all_ranks(rank, target, PARTS)
    latest = await asyncsync.latest(target)
    await asyncsync.sync_down(target, tmp_path / "back")

    assert latest is not None
    assert {receipt.identity for receipt in receipts} == {latest.identity}
    assert {receipt.files for receipt in receipts} == {len(WHOLE)}
    assert [receipt.sent_files for receipt in receipts] == [len(part) for part in PARTS]
    assert latest.step == 7
    assert content(tmp_path / "back") == WHOLE
    assert await raw(target, tmp_path) == {*WHOLE, MANIFEST}


async def test_the_commit_is_told_to_every_rank(target: str, tmp_path: Path) -> None:
    events = Events()
    async with running(tmp_path) as rank:
        await all_ranks(rank, target, PARTS, observe=events)

    assert len(events.of(Committed)) == 4


async def test_a_missing_rank_is_named_and_what_was_sent_stays(target: str, tmp_path: Path) -> None:
    caught: list[DeadlineError] = []
    async with running(tmp_path) as rank:

        async def wait(number: int) -> None:
            with pytest.raises(DeadlineError) as error:
                await rank(group(number, deadline_s=600), target, PARTS[number])
            caught.append(error.value)

        async with anyio.create_task_group() as tasks:
            for number in (0, 2):
                tasks.start_soon(wait, number)
        receipts = await all_ranks(rank, target, PARTS)

    assert [error.missing for error in caught] == [(1, 3)] * 2
    assert "ranks 1, 3 of 4 have left no part" in str(caught[0])
    assert [receipt.sent_files for receipt in receipts] == [0, 2, 0, 0]
    assert await raw(target, tmp_path) == {*WHOLE, MANIFEST}


def test_a_missing_rank_is_named_when_the_syncers_time_is_over() -> None:
    asked = upload_request(
        "/part", "/target", (), (), None, "refuse", replace=False, delete=True, group=group(0)
    )
    patience = Patience(asked, FakeClock())
    patience.missing = (1, 3)
    with pytest.raises(DeadlineError, match="ranks 1, 3 of 4 have left no part") as caught:
        with patience.naming():
            raise DeadlineError("sync up: not finished within 60 s")

    assert caught.value.missing == (1, 3)


async def test_a_late_rank_finds_the_commit(target: str, tmp_path: Path) -> None:
    async with running(tmp_path) as rank:
        first = await all_ranks(rank, target, PARTS)
        again = await rank(group(1), target, {})

    assert (again.identity, again.files) == (first[0].identity, len(WHOLE))
    assert again.sent_files == 0


async def test_two_ranks_with_different_bytes_are_told_both(target: str, tmp_path: Path) -> None:
    parts: list[Tree] = [{"a": b"1", "same": b"s"}, {"a": b"2", "same": b"s"}, {"c": b"3"}]
    caught: list[AsyncSyncError] = []
    async with running(tmp_path) as rank:

        async def fail(number: int) -> None:
            with pytest.raises(RefusedError, match="ranks 0 and 1 both hold a,") as error:
                await rank(group(number, size=3), target, parts[number])
            caught.append(error.value)

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(fail, number)

    assert [error.paths for error in caught] == [("a",)] * 3
    with pytest.raises(asyncsync.NotFoundError):
        await asyncsync.verify(target)


async def test_a_restarted_trainer_takes_another_id_and_nothing_mixes(
    target: str, tmp_path: Path
) -> None:
    new: list[Tree] = [{"shard/0": b"new"}, {"shard/1": b"new"}]
    caught: list[AsyncSyncError] = []
    waiting = [anyio.Event() for _ in range(3)]
    async with running(tmp_path) as rank:

        async def old(number: int) -> None:
            events = Events(waiting[number].set)  # it has begun when it has moved something
            with pytest.raises(ConflictError) as error:
                await rank(group(number, "old"), target, PARTS[number], observe=events)
            caught.append(error.value)

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(old, number)
            for event in waiting:
                await event.wait()
            await all_ranks(rank, target, new, "new")
    await asyncsync.sync_down(target, tmp_path / "back")

    assert len(caught) == 3
    assert content(tmp_path / "back") == {"shard/0": b"new", "shard/1": b"new"}
    assert await raw(target, tmp_path) == {"shard/0", "shard/1", MANIFEST}


async def test_the_newest_group_is_committed_without_what_the_older_left(
    target: str, tmp_path: Path
) -> None:
    new: list[Tree] = [{"shard/0": b"new"}, {"shard/1": b"new"}]
    async with running(tmp_path) as rank:
        for number in (0, 1):
            with pytest.raises(DeadlineError):
                await rank(group(number, "old", deadline_s=1), target, PARTS[number])
        await all_ranks(rank, target, new, "new")
        with pytest.raises(ConflictError, match="replace"):
            await rank(group(2, "old"), target, PARTS[2])
    await asyncsync.sync_down(target, tmp_path / "back")

    assert content(tmp_path / "back") == {"shard/0": b"new", "shard/1": b"new"}
    assert await raw(target, tmp_path) == {"shard/0", "shard/1", MANIFEST}


async def test_a_commit_is_replaced_on_demand_only(target: str, tmp_path: Path) -> None:
    await asyncsync.sync_up(make(tmp_path / "old", {"old": b"x", "log": b"y"}), target)
    async with running(tmp_path) as rank:
        with pytest.raises(ConflictError, match="replace"):
            await rank(group(0), target, PARTS[0])
        before = await raw(target, tmp_path)
        receipts = await all_ranks(rank, target, PARTS, "two", replace=True)

    assert before == {"old", "log", MANIFEST}
    assert (await asyncsync.verify(target)).ok
    assert receipts[0].files == len(WHOLE)
    assert await raw(target, tmp_path) == {*WHOLE, MANIFEST}


async def test_whoever_sweeps_while_a_group_is_removed_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, swept = tmp_path / "there" / "ckpt", list[str]()

    def swept_before(at: int, old: str, to: int, new: str) -> None:
        if "-group-" in old and len(swept) < 2:
            swept.append(old)
            sweep(at, target.name, str(target))
        rename_over(at, old, to, new)

    monkeypatch.setattr("asyncsync.storage.local.group.rename_over", swept_before)
    async with running(tmp_path) as rank:
        await rank(group(0, size=1), str(target), PARTS[0])

    assert len(swept) == 2
    assert (await asyncsync.verify(target)).ok
    assert os.listdir(target.parent) == [target.name]


async def test_a_rank_may_not_leave_another_part(target: str, tmp_path: Path) -> None:
    async with running(tmp_path) as rank:
        with pytest.raises(DeadlineError):
            await rank(group(0, deadline_s=1), target, {"a": b"x"})
        (tmp_path / "one-0" / "a").write_bytes(b"changed")
        with pytest.raises(ConflictError, match="left a part of other content"):
            await rank(group(0), target, {})


async def test_a_group_has_one_size_and_one_step(target: str, tmp_path: Path) -> None:
    async with running(tmp_path) as rank:
        with pytest.raises(DeadlineError):
            await rank(group(0, size=2, deadline_s=1), target, {"a": b"x"}, step=1)
        with pytest.raises(RefusedError, match="has 2 ranks there, not 3"):
            await rank(group(1, size=3), target, {"b": b"x"})
        with pytest.raises(RefusedError, match="rank 0 says step 1 and rank 1 step 2"):
            await rank(group(1, size=2), target, {}, step=2)


async def test_commits_inside_are_refused(target: str, tmp_path: Path) -> None:
    await asyncsync.sync_up(make(tmp_path / "inside", {"x": b"x"}), f"{target}/inside")
    async with running(tmp_path) as rank:
        with pytest.raises(RefusedError, match="commits inside"):
            await rank(group(0, size=1), target, {"a": b"x"}, replace=True)

    assert (await asyncsync.verify(f"{target}/inside")).ok


async def test_a_snapshot_of_a_part_can_be_taken(target: str, tmp_path: Path) -> None:
    parts = [make(tmp_path / str(rank), {f"shard/{rank}": b"before"}) for rank in range(2)]
    async with StorageSyncer(isolation="loop") as syncer:
        saves = [
            await syncer.sync_up(part, target, group=group(rank, size=2), snapshot=True)
            for rank, part in enumerate(parts)
        ]
        for rank, part in enumerate(parts):
            (part / "shard" / str(rank)).write_bytes(b"after!")
        receipts = [await saved.durable() for saved in saves]
    await asyncsync.sync_down(target, tmp_path / "back")

    assert receipts[0].identity == receipts[1].identity
    assert content(tmp_path / "back") == {"shard/0": b"before", "shard/1": b"before"}


async def test_the_engines_process_takes_groups(tmp_path: Path) -> None:
    target = str(tmp_path / "store" / "ckpt")
    (tmp_path / "store").mkdir()
    async with StorageSyncer() as syncer:
        source = make(tmp_path / "zero", {"a": b"x"})
        with pytest.raises(DeadlineError) as caught:
            await syncer.sync_up(source, target, group=group(0, size=2, deadline_s=0.5))
        async with anyio.create_task_group() as tasks:
            for rank, name in enumerate(("zero", "one")):
                part = make(tmp_path / name, {} if rank == 0 else {"b": b"y"})

                async def go(part: Path, rank: int) -> None:
                    await syncer.sync_up(part, target, group=group(rank, size=2))

                tasks.start_soon(go, part, rank)

    assert caught.value.missing == (1,)
    assert content(Path(target)) == {"a": b"x", "b": b"y"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"id": ""}, "id is printable text"),
        ({"id": "a\nb"}, "id is printable text"),
        ({"id": "a" * 201}, "id is printable text"),
        ({"rank": 4}, "rank 4 is none of a group of 4"),
        ({"rank": -1}, "rank -1 is none"),
        ({"rank": 0.5}, "rank is a whole number"),
        ({"size": 0}, "size is 1 to"),
        ({"deadline_s": 0}, "deadline_s must be above 0"),
    ],
)
def test_a_group_that_cannot_be_is_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Group(**{"id": "one", "rank": 0, "size": 4, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [{"kind": "rolling"}, {"replace": "own"}], ids=["rolling", "own"])
async def test_what_no_group_can_do_is_refused(more: dict[str, object], tmp_path: Path) -> None:
    async with running(tmp_path) as rank:
        with pytest.raises(ConfigError, match="a group commits a sealed tree"):
            await rank(group(0), str(tmp_path / "target"), {}, **more)
