"""Reads and pushes that are under way: who has them, when they end, and what is remembered."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import anyio
import pytest

from asyncsync.digest import CHUNK_BYTES, digest
from asyncsync.errors import (
    BusyError,
    ConflictError,
    FormatError,
    IntegrityError,
    NoSpaceError,
    NotFoundError,
    SlowDownError,
)
from asyncsync.names import new_attempt
from asyncsync.peer.listings import FILE_BYTES, Ledger, Listing
from asyncsync.peer.pushes import Push
from asyncsync.peer.sessions import Read, Sessions
from asyncsync.storage import Block, Intent, NewFile, TreeStore
from asyncsync.storage.committed import CommittedTrees
from asyncsync.storage.memory import MemoryObjects
from asyncsync.testing import FakeClock, settle
from asyncsync.testing.values import make_manifest, save
from asyncsync.wire.failures import GoneError, WorkingError

FILES = {"a": b"one", "b": b"two"}
DATA = tuple(FILES.values())


class Stage:
    """Pushes into memory."""

    def __init__(self, sessions: Sessions[Push], clock: FakeClock, store: Any) -> None:
        self.sessions, self.clock, self.store = sessions, clock, store
        self.settled: list[Push] = []
        self.trees = 0

    def push(self, owner: str = "me", files: dict[str, bytes] | None = None, **intent: Any) -> Push:
        planned = [NewFile(path, len(data)) for path, data in (files or FILES).items()]
        wanted = Intent(attempt=new_attempt(), files=planned, **intent)
        self.trees += 1
        return Push(f"exp/{self.trees}", owner, self.clock, wanted, planned)


@asynccontextmanager
async def stage(most: int = 3) -> AsyncIterator[Stage]:
    clock = FakeClock()
    store = CommittedTrees(MemoryObjects(), clock=clock)
    async with anyio.create_task_group() as group:
        found = cast("Stage", None)

        async def settle(push: Push) -> None:
            found.settled.append(push)

        sessions = Sessions[Push](group, store, most=most, idle_s=900, over=settle)
        found = Stage(sessions, clock, store)
        with anyio.fail_after(10):
            yield found
            await sessions.close()


async def test_a_session_is_for_whoever_began_it() -> None:
    async with stage() as place:
        push = await place.sessions.begin(place.push("me"))

        assert place.sessions.get(push.number, "me") is push
        for number, owner in ((push.number, "you"), ("0" * 32, "me")):
            with pytest.raises(GoneError):
                place.sessions.get(number, owner)


async def test_one_owner_has_so_many_and_another_has_its_own() -> None:
    async with stage(most=2) as place:
        first = await place.sessions.begin(place.push("me"))
        await place.sessions.begin(place.push("me"))
        with pytest.raises(SlowDownError, match="more than 2"):
            await place.sessions.begin(place.push("me"))
        await place.sessions.begin(place.push("you"))

        await first.end()
        await place.sessions.begin(place.push("me"))


async def test_a_session_that_cannot_begin_is_not_there() -> None:
    async with stage(most=1) as place:
        push = place.push("me", expect="0" * 64)
        with pytest.raises(ConflictError):
            await place.sessions.begin(push)

        assert place.sessions.all == []
        assert place.settled == [push]
        await place.sessions.begin(place.push("me"))


async def test_who_was_taken_over_hears_that_and_not_that_it_is_gone() -> None:
    async with stage() as place:
        old = await place.sessions.begin(place.push("me"))
        other = await place.sessions.begin(place.push("you"))
        await place.sessions.fence(lambda one: one.owner == "me")

        with pytest.raises(BusyError, match="taken over"):
            place.sessions.get(old.number, "me")
        assert place.sessions.get(other.number, "you") is other
        assert place.settled == [old]


async def test_a_session_ends_when_nobody_has_asked_for_15_minutes() -> None:
    async with stage() as place:
        idle = await place.sessions.begin(place.push("me"))
        busy = await place.sessions.begin(place.push("you"))
        await place.clock.advance(899)
        await place.sessions.sweep()
        assert len(place.sessions.all) == 2

        with busy:
            await place.clock.advance(1)
            await place.sessions.sweep()
            assert place.sessions.all == [busy]
        with pytest.raises(GoneError):
            place.sessions.get(idle.number, "me")
        await place.clock.advance(899)
        await place.sessions.sweep()
        assert place.sessions.all == [busy], "the time counts from the end of the last request"


async def test_a_commit_answers_again_with_the_same_and_only_with_that() -> None:
    async with stage() as place:
        push = await place.sessions.begin(place.push("me"))
        for number, data in enumerate(FILES.values()):
            await push.write(number, 0, Block(data), digest(data))
        manifest = make_manifest(FILES)
        first = await push.commit(manifest)

        again = place.sessions.get(push.number, "me")
        assert await again.commit(manifest) == first
        with pytest.raises(FormatError, match="something else"):
            await again.commit(make_manifest({"a": b"other"}))
        assert push.left_bytes == push.left_files == 0


async def test_what_arrived_otherwise_than_it_was_sent_has_to_be_sent_again() -> None:
    async with stage() as place:
        push = await place.sessions.begin(place.push("me"))
        for number, data in enumerate(FILES.values()):
            await push.write(number, 0, Block(data), digest(data if number else b"damaged"))
        with pytest.raises(IntegrityError, match="sent again") as caught:
            await push.commit(make_manifest(FILES))

        assert caught.value.paths == ("a",)
        assert (push.left_bytes, push.left_files) == (3, 1)
        await push.write(0, 0, Block(b"one"), digest(b"one"))
        await push.commit(make_manifest(FILES))


async def test_what_has_not_arrived_is_counted_once() -> None:
    async with stage() as place:
        push = await place.sessions.begin(place.push("me"))
        assert (push.left_bytes, push.left_files) == (6, 2)
        for _ in range(3):
            await push.write(0, 0, Block(b"one"), digest(b"one"))
        assert (push.left_bytes, push.left_files) == (3, 1)

        push.extend([NewFile("c", 2 * CHUNK_BYTES)])
        assert (push.left_bytes, push.left_files) == (3 + 2 * CHUNK_BYTES, 2)
        await push.discard("a")
        assert (push.left_bytes, push.left_files) == (6 + 2 * CHUNK_BYTES, 3)


@pytest.mark.parametrize("blob", [-1, 2, 2**40])
async def test_a_file_that_is_not_in_the_plan_is_none(blob: int) -> None:
    async with stage() as place:
        with pytest.raises(FormatError, match="not in the plan"):
            place.push().file(blob)


async def test_nobody_reads_in_a_session_that_is_over() -> None:
    clock = FakeClock()
    store = CommittedTrees(MemoryObjects(), clock=clock)
    await save(store, "exp", FILES)
    async with anyio.create_task_group() as group:
        reads = Sessions[Read](group, store, most=1, idle_s=1)
        listing = Listing(await store.list_files("exp"))
        read = await reads.begin(Read("exp", "me", clock, listing))
        assert [read.file(blob).path for blob in (0, 1)] == ["a", "b"]
        with read.using():
            pass
        await read.end()

        with pytest.raises(GoneError):
            read.using().__enter__()
        with pytest.raises(GoneError):
            reads.get(read.number, "me")


async def test_of_a_push_that_is_over_only_its_answer_is_kept() -> None:
    async with stage() as place:
        push = await place.sessions.begin(place.push())
        await push.write_many(
            [(push.file(n), memoryview(d), digest(d)) for n, d in enumerate(DATA)]
        )
        writer = weakref.ref(push.writer)
        await push.commit(make_manifest(FILES))
        await anyio.lowlevel.checkpoint()
        gc.collect()

        assert place.sessions.get(push.number, "me") is push
        assert writer() is None


async def test_only_so_many_that_are_over_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncsync.peer.sessions._REMEMBERED", 2)
    async with stage() as place:
        fenced = []
        for _ in range(3):
            fenced.append(await place.sessions.begin(place.push()))
            await place.sessions.fence(lambda _: True)

        with pytest.raises(GoneError):
            place.sessions.get(fenced[0].number, "me")
        for push in fenced[1:]:
            with pytest.raises(BusyError):
                place.sessions.get(push.number, "me")


# -- what looks at all that has arrived


class Held:
    """A store whose writer waits when it is told to, and then fails with `error`, if any."""

    resumes = False

    def __init__(self, waits_in: str, error: Exception | None = None) -> None:
        self.waits_in, self.error = waits_in, error
        self.begun, self.ready = anyio.Event(), anyio.Event()
        self.calls: list[str] = []

    @asynccontextmanager
    async def begin(self, *_: object) -> AsyncIterator[Held]:
        yield self

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.waits_in:
            self.begun.set()
            await self.ready.wait()
            if self.error is not None:
                raise self.error

    async def write(self, *_: object) -> None:
        await self._call("write")

    async def write_many(self, *_: object) -> None:
        await self._call("write_many")

    async def discard(self, *_: object) -> None:
        await self._call("discard")

    async def recall(self, files: Sequence[object]) -> list[frozenset[int]]:
        await self._call("recall")
        return [frozenset[int]() for _ in files]

    async def commit(self, *_: object) -> str:
        await self._call("commit")
        return "fsync"


@asynccontextmanager
async def held(waits_in: str, error: Exception | None = None) -> AsyncIterator[tuple[Push, Held]]:
    """A push to such a store."""
    async with stage() as place:
        store = Held(waits_in, error)
        place.sessions._store = cast("TreeStore", store)
        yield await place.sessions.begin(place.push()), store


@pytest.mark.parametrize("name", ["commit", "recall"])
async def test_nothing_arrives_or_goes_while_all_of_it_is_looked_at(name: str) -> None:
    async with held(name) as (push, store), anyio.create_task_group() as group:
        if name == "commit":
            group.start_soon(push.commit, make_manifest(FILES))
        else:
            group.start_soon(push.recall, [], "asked")
        await store.begun.wait()
        file = push.file(0)
        for late in (
            push.write(0, 0, Block(b"one"), digest(b"one")),
            push.write_many([(file, memoryview(b"one"), digest(b"one"))]),
            push.discard("a"),
        ):
            with pytest.raises(WorkingError):
                await late
        assert store.calls == [name]
        store.ready.set()


@pytest.mark.parametrize("name", ["write", "write_many"])
async def test_what_arrives_while_a_commit_is_asked_for_is_compared_with_it(name: str) -> None:
    async with held(name) as (push, store), anyio.create_task_group() as group:
        wrong = digest(b"damaged")
        if name == "write":
            group.start_soon(push.write, 0, 0, Block(b"one"), wrong)
        else:
            group.start_soon(push.write_many, [(push.file(0), memoryview(b"one"), wrong)])
        await store.begun.wait()
        failures = list[Exception]()

        async def commit() -> None:
            try:
                await push.commit(make_manifest(FILES))
            except IntegrityError as exc:
                failures.append(exc)

        group.start_soon(commit)
        await settle()
        assert store.calls == [name]
        store.ready.set()
        await settle()

        assert [str(one) for one in failures] == [
            "a did not arrive as it was sent; it has to be sent again"
        ]
        assert store.calls == [name, "discard"]


async def test_a_file_that_is_being_dropped_is_not_written_meanwhile() -> None:
    async with held("discard") as (push, store), anyio.create_task_group() as group:
        group.start_soon(push.discard, "a")
        await store.begun.wait()
        group.start_soon(push.write, 0, 0, Block(b"one"), digest(b"one"))
        await settle()
        assert store.calls == ["discard"]
        store.ready.set()
        await settle()

        assert store.calls == ["discard", "write"]
        assert push.left_files == 1


async def test_who_waits_for_a_commit_hears_how_it_failed_and_it_can_be_asked_for_anew() -> None:
    error = NoSpaceError("the disk is full")
    async with held("commit", error) as (push, store), anyio.create_task_group() as group:
        heard = list[Exception]()

        async def ask(wait: Callable[[], Awaitable[object]]) -> None:
            try:
                await wait()
            except NoSpaceError as exc:
                heard.append(exc)

        group.start_soon(ask, partial(push.commit, make_manifest(FILES)))
        await store.begun.wait()
        assert push.busy
        group.start_soon(ask, push.idle)
        await settle()
        store.ready.set()
        await settle()

        assert heard == [error, error]
        store.error = None
        assert await push.commit(make_manifest(FILES)) == "fsync"
        await push.idle()


async def test_what_has_been_sent_is_not_forgotten_by_a_recall() -> None:
    async with held("") as (push, store):
        await push.write(0, 0, Block(b"one"), digest(b"one"))
        with pytest.raises(FormatError, match="before anything is sent"):
            await push.recall([], "asked")

        assert store.calls == ["write"]


async def test_a_file_that_is_in_the_plan_twice_gives_no_more_back_than_was_announced() -> None:
    async with held("") as (push, _):
        push.extend([NewFile("a", 2 * CHUNK_BYTES)])
        announced = push.left_bytes
        for _ in range(3):
            await push.write(2, CHUNK_BYTES, Block(bytes(CHUNK_BYTES)), digest(b""))
            await push.write(0, 0, Block(b"one"), digest(b"one"))
            await push.discard("a")

        assert push.left_bytes == announced


async def test_who_cannot_share_a_list_leaves_it_to_those_who_have_it() -> None:
    clock = FakeClock()
    store = CommittedTrees(MemoryObjects(), clock=clock)
    await save(store, "exp", FILES)
    async with anyio.create_task_group() as group:
        reads = Sessions[Read](group, store, most=1, idle_s=1)
        listing = Listing(await store.list_files("exp"))
        ledger = Ledger(10 * FILE_BYTES)
        first, second = (Read("exp", owner, clock, listing) for owner in ("me", "you"))
        first.loan = ledger.lend("me")
        first.loan.grow(2)
        await reads.begin(first)
        reads._store = cast("TreeStore", Gone())
        with pytest.raises(NotFoundError), first.loan.share() as second.loan:
            await reads.begin(second)

        assert ledger.held_bytes == 2 * FILE_BYTES
        await first.end()
        await settle()
        assert ledger.held_bytes == 0


class Gone:
    """A store in which nothing is any more."""

    @asynccontextmanager
    async def open(self, *_: object) -> AsyncIterator[None]:
        raise NotFoundError("it was deleted")
        yield
