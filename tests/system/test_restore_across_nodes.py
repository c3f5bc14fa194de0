"""A trial that moves, and many workers that want the same tree: who reads what from where."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncsync import StorageSyncer
from asyncsync.errors import AsyncSyncError, ConfigError, IntegrityError, NotFoundError
from asyncsync.events import Event, FellBack, Skipped
from asyncsync.peer import PeerServer, handlers
from asyncsync.secrets import Secret
from asyncsync.wire.claims import Operation
from asyncsync.wire.joining import Join

Calls = Counter[tuple[str, str]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Which tree was opened for reading where: by the root of the server."""
    found: Calls = Counter()
    opened = handlers.HANDLERS["open"]

    async def counted(head: Any, call: Any) -> Any:
        found[head.root, "open"] += 1
        return await opened(head, call)

    monkeypatch.setitem(handlers.HANDLERS, "open", counted)
    return found


@pytest.fixture
async def head(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PeerServer]:
    del calls  # before the server takes its handlers
    root = tmp_path / "head"
    root.mkdir()
    async with PeerServer(str(root)) as head:
        line = head.join_string(operations=frozenset(Operation))
        monkeypatch.setenv("ASYNCSYNC_JOIN", line.reveal())
        yield head


@pytest.fixture
async def syncer() -> AsyncIterator[StorageSyncer]:
    async with StorageSyncer(isolation="loop") as syncer:
        yield syncer


def checkpoint(place: Path, step: int) -> Path:
    made = place / f"checkpoint_{step:06}"
    made.mkdir(parents=True)
    (made / "weights").write_bytes(b"%d" % step * 1000)
    return made


# -- the nearest good copy


async def test_the_newest_commit_comes_from_the_nearest_place(
    head: PeerServer, syncer: StorageSyncer, calls: Calls, tmp_path: Path
) -> None:
    heard: list[Event] = []
    there = f"{head.location}/exp/trial"
    for step in (1, 2):
        made = checkpoint(tmp_path / "work", step)
        await syncer.sync_up(made, f"{there}/{made.name}")
    kept = tmp_path / "disk"
    await syncer.sync_up(tmp_path / "work/checkpoint_000002", kept / "checkpoint_000002")
    await syncer.restore(there, tmp_path / "back", copies=[kept], observe=heard.append)

    assert (tmp_path / "back/weights").read_bytes() == b"2" * 1000
    assert calls.total() == 0
    assert [e for e in heard if isinstance(e, FellBack | Skipped)] == []


async def test_a_near_copy_that_is_older_is_not_taken(
    head: PeerServer, syncer: StorageSyncer, tmp_path: Path
) -> None:
    kept = tmp_path / "disk"
    for step, place in ((1, str(kept)), (2, f"{head.location}/exp/trial")):
        made = checkpoint(tmp_path / "work", step)
        await syncer.sync_up(made, f"{place}/{made.name}")
    await syncer.restore(f"{head.location}/exp/trial", tmp_path / "back", copies=[kept])

    assert (tmp_path / "back/weights").read_bytes() == b"2" * 1000


async def test_a_copy_that_is_newer_than_what_arrived_is_restored(
    head: PeerServer, syncer: StorageSyncer, tmp_path: Path
) -> None:
    kept = tmp_path / "disk"
    for step, place in ((1, f"{head.location}/exp/trial"), (2, str(kept))):
        made = checkpoint(tmp_path / "work", step)
        await syncer.sync_up(made, f"{place}/{made.name}")
    await syncer.restore(f"{head.location}/exp/trial", tmp_path / "back", copies=[kept])

    assert (tmp_path / "back/weights").read_bytes() == b"2" * 1000


async def test_a_damaged_copy_is_passed_over_and_named(
    head: PeerServer, syncer: StorageSyncer, tmp_path: Path
) -> None:
    heard: list[Event] = []
    made, kept = checkpoint(tmp_path / "work", 1), tmp_path / "disk"
    for place in (f"{head.location}/exp/trial", str(kept)):
        await syncer.sync_up(made, f"{place}/{made.name}")
    (kept / made.name / "weights").write_bytes(b"x" * 1000)
    there = f"{head.location}/exp/trial"
    await syncer.restore(there, tmp_path / "back", copies=[kept], observe=heard.append)

    assert (tmp_path / "back/weights").read_bytes() == b"1" * 1000
    (fell,) = [event for event in heard if isinstance(event, FellBack)]
    assert (fell.damaged, fell.used) == (f"{kept}/{made.name}", f"{there}/{made.name}")


async def test_a_worker_that_is_gone_does_not_keep_anybody_from_restoring(
    head: PeerServer, syncer: StorageSyncer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    made = checkpoint(tmp_path / "work", 1)
    there = f"{head.location}/exp/trial"
    await syncer.sync_up(made, f"{there}/{made.name}")
    copies = ["peer://127.0.0.1:9/exp/trial", str(tmp_path / "nothing")]
    await syncer.restore(there, tmp_path / "back", copies=copies, observe=heard.append)

    assert (tmp_path / "back/weights").read_bytes() == b"1" * 1000
    (skipped,) = [event for event in heard if isinstance(event, Skipped)]
    assert skipped.path == "peer://127.0.0.1:9/exp/trial"


async def test_where_commits_are_kept_has_to_answer(syncer: StorageSyncer, tmp_path: Path) -> None:
    made, kept = checkpoint(tmp_path / "work", 1), tmp_path / "disk"
    await syncer.sync_up(made, kept / made.name)

    with pytest.raises(ConfigError, match="no token"):
        await syncer.restore("peer://127.0.0.1:9/exp", tmp_path / "back", copies=[kept])
    with pytest.raises(NotFoundError):
        await syncer.restore(tmp_path / "none", tmp_path / "back")


# -- one from another


Worker = Callable[[int], Awaitable[tuple[StorageSyncer, PeerServer, Path]]]


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    """A worker: what it restores with, by what others read it there, and where."""
    async with AsyncExitStack() as stack:

        async def make(number: int) -> tuple[StorageSyncer, PeerServer, Path]:
            place = tmp_path / f"worker_{number}"
            place.mkdir()
            mine = await stack.enter_async_context(PeerServer(str(place), readonly=True))
            own = await stack.enter_async_context(StorageSyncer(isolation="loop"))
            return own, mine, place

        yield make


async def save(head: PeerServer, syncer: StorageSyncer, work: Path) -> str:
    made = checkpoint(work, 7)
    await syncer.sync_up(made, f"{head.location}/exp/c7")
    return f"{head.location}/exp/c7"


async def test_many_workers_read_it_once_from_the_head_and_then_from_one_another(
    head: PeerServer, syncer: StorageSyncer, worker: Worker, calls: Calls, tmp_path: Path
) -> None:
    there = await save(head, syncer, tmp_path / "work")
    workers = [await worker(number) for number in range(6)]

    async def restore(own: StorageSyncer, mine: PeerServer, place: Path) -> None:
        await own.sync_down(there, place / "c7", share=mine.share("c7"))

    async with anyio.create_task_group() as group:
        for one in workers:
            group.start_soon(restore, *one)

    assert [(place / "c7/weights").read_bytes() for _, _, place in workers] == [b"7" * 1000] * 6
    assert calls[str(tmp_path / "head"), "open"] == 1
    assert calls.total() == 6


async def test_a_worker_serves_what_it_has_over_tls_of_its_own(
    head: PeerServer, syncer: StorageSyncer, calls: Calls, tmp_path: Path
) -> None:
    there = await save(head, syncer, tmp_path / "work")
    for number in range(2):
        (tmp_path / f"scratch{number}").mkdir()
    async with (
        PeerServer(str(tmp_path / "scratch0"), readonly=True, tls="own") as mine,
        PeerServer(str(tmp_path / "scratch1"), readonly=True, tls="own") as its,
    ):
        share = mine.share("c7")
        await syncer.sync_down(there, tmp_path / "scratch0" / "c7", share=share)
        await syncer.sync_down(there, tmp_path / "scratch1" / "c7", share=its.share("c7"))

    assert mine.location.startswith("peers://127.0.0.1:")
    assert Join.parse(Secret(share.line)).fingerprint
    assert (tmp_path / "scratch1" / "c7" / "weights").read_bytes() == b"7" * 1000
    assert calls == {(str(tmp_path / name), "open"): 1 for name in ("head", "scratch0")}


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_tls_of_its_own_is_for_one_address(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="by which others reach this node"):
        async with PeerServer(str(tmp_path), host=host, readonly=True, tls="own"):
            pass


async def test_who_says_that_it_has_it_and_does_not_is_passed_over(
    head: PeerServer, syncer: StorageSyncer, worker: Worker, tmp_path: Path
) -> None:
    there = await save(head, syncer, tmp_path / "work")
    first, mine, place = await worker(1)
    await first.sync_down(there, place / "c7", share=mine.share("c7"))
    shutil.rmtree(place / "c7")
    heard: list[Event] = []
    second, its, other = await worker(2)
    await second.sync_down(there, other / "c7", share=its.share("c7"), observe=heard.append)

    assert (other / "c7/weights").read_bytes() == b"7" * 1000
    assert len([event for event in heard if isinstance(event, FellBack)]) == 1


async def test_who_gives_something_else_is_found_out(
    head: PeerServer, syncer: StorageSyncer, worker: Worker, tmp_path: Path
) -> None:
    there = await save(head, syncer, tmp_path / "work")
    first, mine, place = await worker(1)
    await first.sync_down(there, place / "c7", share=mine.share("c7"))
    shutil.rmtree(place / "c7")
    await first.sync_up(checkpoint(tmp_path / "other", 8), place / "c7")  # a good commit, not this
    second, its, other = await worker(2)
    await second.sync_down(there, other / "c7", share=its.share("c7"))

    assert (other / "c7/weights").read_bytes() == b"7" * 1000


async def test_who_has_restored_a_part_gives_it_to_nobody(
    head: PeerServer, syncer: StorageSyncer, worker: Worker, calls: Calls, tmp_path: Path
) -> None:
    heard: list[Event] = []
    there = await save(head, syncer, tmp_path / "work")
    for number in (1, 2):
        own, mine, place = await worker(number)
        await own.sync_down(
            there, place / "c7", include=["w*"], share=mine.share("c7"), observe=heard.append
        )

    assert [event for event in heard if isinstance(event, FellBack)] == []
    assert calls[str(tmp_path / "head"), "open"] == 2


async def test_a_version_that_comes_while_another_is_read_by_turns_is_read_instead(
    head: PeerServer, syncer: StorageSyncer, worker: Worker, tmp_path: Path
) -> None:
    there, made = f"{head.location}/exp/trial", checkpoint(tmp_path / "work", 1)
    await syncer.sync_up(made, there, kind="rolling")
    own, mine, place = await worker(1)
    turn, replaced = handlers.HANDLERS["turn"], False

    async def late(head: Any, call: Any) -> Any:
        nonlocal replaced
        if not replaced:  # the reader knows which version it wants by now
            replaced = True
            await anyio.Path(made / "weights").write_bytes(b"new")
            await syncer.sync_up(made, there, kind="rolling")
        return await turn(head, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(handlers.HANDLERS, "turn", late)
        await own.sync_down(there, place / "trial", share=mine.share("trial"))

    assert (place / "trial/weights").read_bytes() == b"new"


async def test_what_the_origin_cannot_give_is_an_error(
    head: PeerServer, syncer: StorageSyncer, worker: Worker, tmp_path: Path
) -> None:
    there = await save(head, syncer, tmp_path / "work")
    (tmp_path / "head/exp/c7/weights").write_bytes(b"x" * 1000)
    first, mine, place = await worker(1)

    with pytest.raises(IntegrityError):
        await first.sync_down(there, place / "c7", share=mine.share("c7"))
    assert not (place / "c7").exists()


async def test_turns_are_for_what_a_head_keeps(
    syncer: StorageSyncer, worker: Worker, tmp_path: Path
) -> None:
    made = checkpoint(tmp_path / "work", 1)
    await syncer.sync_up(made, tmp_path / "disk")
    first, mine, place = await worker(1)

    with pytest.raises(ConfigError, match="whose turn"):
        await first.sync_down(tmp_path / "disk", place / "c", share=mine.share("c"))


async def test_a_worker_that_is_read_from_takes_nothing_and_shows_nothing_else(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, mine, place = await worker(1)
    (place / "c7").mkdir()
    monkeypatch.setenv("ASYNCSYNC_JOIN", mine.share("c7").line)

    for tree in ("c7", "other"):
        with pytest.raises(AsyncSyncError, match=r"read-only|does not allow"):
            await own.sync_up(checkpoint(tmp_path / tree, 1), f"{mine.location}/{tree}")
