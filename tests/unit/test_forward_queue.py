"""Forwarding: every commit of a head arrives, whatever fails and wherever it is killed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncsync.concurrency import Threads, beside
from asyncsync.errors import (
    AccessDeniedError,
    ConfigError,
    IntegrityError,
    TransferError,
    TransientError,
)
from asyncsync.head import (
    Forwarded,
    Forwarding,
    HeadEvent,
    Note,
    Notes,
    NotForwarded,
    Vanished,
)
from asyncsync.head import forwarding as forwarding_module
from asyncsync.location import Location
from asyncsync.manifest import Header
from asyncsync.storage import Sighting
from asyncsync.storage.local import LocalTrees
from asyncsync.syncing import StorageSyncer
from asyncsync.testing import FakeClock

pytestmark = pytest.mark.one_loop

Errors = Callable[[str, str], BaseException | anyio.Event | None]


class Heard(list[HeadEvent]):
    """What the head told; whoever waits for the n-th event is woken by it."""

    def __init__(self) -> None:
        super().__init__()
        self._more = anyio.Event()

    def __call__(self, event: HeadEvent) -> None:
        self.append(event)
        self._more.set()

    async def until(self, number: int) -> HeadEvent:
        while len(self) < number:
            self._more = anyio.Event()
            await self._more.wait()
        return self[number - 1]


class Faulty:
    """A TreeStore that asks before and after every call whether it fails, or what it waits for."""

    def __init__(self, inner: Any, fault: Errors) -> None:
        self._inner, self._fault = inner, fault

    async def _meet(self, when: str, name: str) -> None:
        found = self._fault(when, name)
        if isinstance(found, anyio.Event):
            await found.wait()
        elif found is not None:
            raise found

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name in ("resumes", "capabilities"):
            return found

        async def call(*args: Any, **options: Any) -> Any:
            await self._meet("before", name)
            result = await found(*args, **options)
            await self._meet("after", name)
            return result

        return call

    @asynccontextmanager
    async def begin(self, *args: Any) -> AsyncIterator[Any]:
        await self._meet("before", "begin")
        async with self._inner.begin(*args) as writer:
            yield Faulty(writer, self._fault)


class Place:
    """A root with commits, a place to carry them to, and a state."""

    def __init__(self, folder: Path) -> None:
        self.root, self.cloud, self.state = folder / "root", folder / "cloud", folder / "state"
        self.work, self.clock, self.heard = folder / "work", FakeClock(), Heard()
        for made in (self.root, self.cloud, self.work):
            made.mkdir()
        self.state.mkdir(mode=0o700)
        self.threads = Threads(2)

    async def commit(self, tree: str, text: str, **options: Any) -> str:
        source = self.work / tree.replace("/", "_")
        source.mkdir(exist_ok=True)
        (source / "w").write_text(text)
        async with StorageSyncer(isolation="loop") as syncer:
            where = self.root / tree
            receipt = await syncer.sync_up(source, where, **options)
        return str(receipt.identity)

    @asynccontextmanager
    async def forwarding(self, fault: Errors | None = None) -> AsyncIterator[Forwarding]:
        target: Any = LocalTrees("/", self.threads)
        if fault is not None:
            target = Faulty(target, fault)
        opened = Forwarding.open(
            str(self.root),
            Location.parse(self.cloud),
            self.state,
            clock=self.clock,
            listen=self.heard,
            target=target if fault is not None else None,
        )
        async with opened as forwarding:
            yield forwarding

    async def idle(self, forwarding: Forwarding) -> None:
        """Wait until all has arrived, while time goes on."""
        async with beside(self._tick):
            await forwarding.wait_idle()

    async def _tick(self) -> None:
        while True:
            await self.clock.advance(1)
            await self.threads.run(os.getpid)  # disks have their turn, too

    async def identity(self, tree: str, folder: Path) -> str | None:
        async with StorageSyncer(isolation="loop") as syncer:
            newest = await syncer.latest(folder / tree)
        return newest.identity if newest else None

    async def notes(self) -> dict[str, Note]:
        return await self.threads.run(Notes(self.state, Location.parse(self.cloud)).load)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def first(*errors: BaseException, name: str = "begin") -> Errors:
    """The first calls of that name fail."""
    left = list(errors)

    def fault(when: str, called: str) -> BaseException | None:
        return left.pop(0) if left and (when, called) == ("before", name) else None

    return fault


async def test_a_commit_is_noted_on_the_disk_before_it_is_acknowledged(place: Place) -> None:
    def never(when: str, name: str) -> BaseException | None:
        return TransientError("the cloud is away") if name != "aclose" else None

    identity = await place.commit("exp/ckpt_1", "one")
    async with place.forwarding(never) as forwarding:
        await forwarding.queue("exp/ckpt_1", identity)

        noted = (await place.notes())["exp/ckpt_1"]

        assert (noted.identity, noted.waits) == (identity, True)
        assert not forwarding.has("exp/ckpt_1", identity)


async def test_what_is_queued_arrives_as_the_same_commit(place: Place) -> None:
    identity = await place.commit("exp/ckpt_1", "one", step=41)
    async with place.forwarding() as forwarding:
        await forwarding.queue("exp/ckpt_1", identity)
        event = await place.heard.until(1)

        assert forwarding.has("exp/ckpt_1", identity)
        assert not forwarding.has("exp/ckpt_1", "00" * 32)

    assert isinstance(event, Forwarded)
    assert (event.tree, event.identity, event.sent_bytes) == ("exp/ckpt_1", identity, 3)
    root, cloud = (folder / "exp/ckpt_1/.asyncsync.json" for folder in (place.root, place.cloud))
    assert root.read_bytes() == cloud.read_bytes()
    assert not (await place.notes())["exp/ckpt_1"].waits


async def test_a_rolling_tree_with_commits_inside_arrives_as_it_is(place: Place) -> None:
    await place.commit("exp/trial", "log 1", kind="rolling")
    await place.commit("exp/trial/ckpt_1", "one")
    identity = await place.commit("exp/trial", "log 2", kind="rolling")
    async with place.forwarding() as forwarding:
        await place.idle(forwarding)
        await place.commit("exp/trial/ckpt_2", "two")
        await forwarding.queue("exp/trial/ckpt_2", "what it was")
        newest = await place.commit("exp/trial", "log 3", kind="rolling")
        await forwarding.queue("exp/trial", newest)
        await place.idle(forwarding)

    assert identity != newest
    async with StorageSyncer(isolation="loop") as syncer:
        found = {c.name: c.identity async for c in syncer.commits(place.cloud)}
        there = {c.name: c.identity async for c in syncer.commits(place.root)}
        assert (await syncer.verify(place.cloud / "exp/trial")).ok
    assert found == there
    assert sorted(found) == ["ckpt_1", "ckpt_2", "trial"]


async def test_of_several_versions_the_newest_stands_for_all(place: Place) -> None:
    async with place.forwarding(
        first(TransientError("away"), TransientError("away"))
    ) as forwarding:
        for text in ("one", "two", "three"):
            identity = await place.commit("t", text, kind="rolling")
            await forwarding.queue("t", identity)
        await place.idle(forwarding)

    assert [event.identity for event in place.heard if isinstance(event, Forwarded)][-1] == identity
    assert await place.identity("t", place.cloud) == identity
    assert len(await place.notes()) == 1


async def test_a_failure_that_passes_is_met_with_growing_pauses(place: Place) -> None:
    errors = [TransientError(f"away {n}") for n in range(12)]
    await place.commit("t", "one")
    async with place.forwarding(first(*errors)) as forwarding:
        for number in range(12):
            event = await place.heard.until(number + 1)
            assert isinstance(event, NotForwarded)
            assert (await place.notes())["t"].failure == f"away {number}"
            await place.clock.advance(event.wait_s)
        await place.idle(forwarding)
        assert not forwarding._agenda.has_failed("t")

    waits = [event.wait_s for event in place.heard if isinstance(event, NotForwarded)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]
    assert ((await place.notes())["t"].failure, (await place.notes())["t"].waits) == ("", False)


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (TransferError("two", failures=[TransientError("away"), TransientError("away")]), False),
        (TransferError("two", failures=[TransientError("away"), AccessDeniedError("no")]), True),
        (IntegrityError("as a tree looks that is being replaced just then"), False),
    ],
)
async def test_only_what_somebody_has_to_change_waits_for_that(
    place: Place, error: Exception, permanent: bool
) -> None:
    await place.commit("t", "one")
    async with place.forwarding(first(error)):
        event = await place.heard.until(1)

    assert isinstance(event, NotForwarded)
    assert (event.permanent, event.wait_s) == (permanent, 3600 if permanent else 1)


async def test_a_failure_that_stays_is_visible_and_holds_up_nothing_else(place: Place) -> None:
    def denied(when: str, name: str) -> BaseException | None:
        return AccessDeniedError("no") if name == "begin" and len(place.heard) == 0 else None

    identity = await place.commit("a", "one")
    async with place.forwarding(denied) as forwarding:
        event = await place.heard.until(1)
        await forwarding.queue("b", await place.commit("b", "two"))
        await place.heard.until(2)

        assert isinstance(event, NotForwarded)
        assert (event.tree, event.permanent, event.wait_s) == ("a", True, 3600)
        assert (await place.notes())["a"].permanent
        assert (await place.notes())["a"].failure == "no"
        assert await place.identity("b", place.cloud)

        await place.clock.advance(3600)  # it is tried again all the same
        await place.idle(forwarding)
        assert forwarding.has("a", identity)


async def test_who_asks_for_what_failed_for_good_hears_why_and_has_it_tried_again(
    place: Place,
) -> None:
    denied = AccessDeniedError(f"{place.root}/t: no")
    identity = await place.commit("t", "one")
    async with place.forwarding(first(denied, denied)) as forwarding:
        await place.heard.until(1)

        assert forwarding.failure("t", identity) == "t: no"
        assert forwarding.failure("t", "another") == forwarding.failure("x", identity) == ""
        await forwarding.queue("t", identity)  # at once, it is not tried again
        assert forwarding._agenda._at == {"t": 1}
        await place.clock.advance(60)
        await forwarding.queue("t", identity)
        await place.heard.until(2)
        await place.clock.advance(60)
        await forwarding.queue("t", identity)
        await place.heard.until(3)

        assert forwarding.has("t", identity)
        assert forwarding.failure("t", identity) == ""


async def test_a_new_version_does_not_wait_for_the_pause_of_the_last_one(place: Place) -> None:
    await place.commit("t", "one", kind="rolling")
    async with place.forwarding(first(AccessDeniedError("no"))) as forwarding:
        await place.heard.until(1)
        await forwarding.queue("t", await place.commit("t", "two", kind="rolling"))
        await place.idle(forwarding)

    assert await place.identity("t", place.cloud) == await place.identity("t", place.root)


async def test_what_is_committed_while_the_version_before_is_carried_on_follows_it(
    place: Place,
) -> None:
    entered, gate = anyio.Event(), anyio.Event()

    def hold(when: str, name: str) -> anyio.Event | None:
        if (when, name) != ("before", "commit"):
            return None
        entered.set()
        return gate

    first = await place.commit("t", "one", kind="rolling")
    async with place.forwarding(hold) as forwarding:
        await entered.wait()
        second = await place.commit("t", "two", kind="rolling")
        await forwarding.queue("t", second)
        gate.set()
        await place.idle(forwarding)

    assert [e.identity for e in place.heard if isinstance(e, Forwarded)] == [first, second]
    assert await place.identity("t", place.cloud) == second


async def test_a_version_that_came_during_an_attempt_does_not_wait_because_that_failed(
    place: Place,
) -> None:
    entered, gate = anyio.Event(), anyio.Event()

    def hold(when: str, name: str) -> BaseException | anyio.Event | None:
        if name != "commit" or place.heard:
            return None
        if when == "before":
            entered.set()
            return gate
        return AccessDeniedError("no")

    await place.commit("t", "one", kind="rolling")
    async with place.forwarding(hold) as forwarding:
        await entered.wait()
        await forwarding.queue("t", await place.commit("t", "two", kind="rolling"))
        gate.set()
        event = await place.heard.until(1)
        await place.idle(forwarding)

    assert isinstance(event, NotForwarded)
    assert (event.permanent, event.wait_s) == (True, 0)
    assert (place.cloud / "t" / "w").read_text() == "two"


async def test_what_a_disk_has_changed_is_not_carried_on(place: Place) -> None:
    await place.commit("t", "good")
    (place.root / "t" / "w").write_text("evil")
    async with place.forwarding():
        await place.heard.until(1)
        await place.clock.advance(1)
        event = await place.heard.until(2)

    assert isinstance(event, NotForwarded)
    assert event.permanent
    assert "w in" in event.reason
    assert not (place.cloud / "t").exists()


async def test_what_somebody_else_put_there_stays(place: Place, tmp_path: Path) -> None:
    await place.commit("t", "ours")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "w").write_text("theirs")
    async with StorageSyncer(isolation="loop") as syncer:
        await syncer.sync_up(tmp_path / "theirs", place.cloud / "t")
    async with place.forwarding():
        event = await place.heard.until(1)

    assert isinstance(event, NotForwarded)
    assert "which did not come from this head" in event.reason
    assert (place.cloud / "t" / "w").read_text() == "theirs"


async def test_what_takes_the_place_of_a_deleted_tree_takes_it_there_as_well(
    place: Place,
) -> None:
    """Whoever runs a training again, perhaps on another node, uses its names again."""
    async with place.forwarding() as forwarding:
        await forwarding.queue("t", await place.commit("t", "one"))
        await place.idle(forwarding)
        async with StorageSyncer(isolation="loop") as syncer:
            await syncer.delete(place.root / "t")
        await place.clock.advance(60)
        place.work = await made(place.work.with_name("another"))
        identity = await place.commit("t", "two")
        await forwarding.queue("t", identity)
        await place.idle(forwarding)

        assert forwarding.has("t", identity)
    assert await place.identity("t", place.cloud) == identity


async def made(folder: Path) -> Path:
    await anyio.Path(folder).mkdir()
    return folder


@pytest.mark.parametrize("vanishes", [False, True])
async def test_what_arrived_unnoticed_is_known_as_ours(place: Place, vanishes: bool) -> None:
    """Its answer was lost, and the next version is of another writer."""

    def lost(when: str, name: str) -> BaseException | None:
        error = (when, name) == ("after", "commit") and not place.heard
        return TransientError("no answer") if error else None

    await place.commit("t", "one")
    async with place.forwarding(lost) as forwarding:
        await place.heard.until(1)
        noted = (await place.notes())["t"]
        if vanishes:
            shutil.rmtree(place.root / "t")
            await place.clock.advance(1)
            await place.heard.until(2)
        place.work = await made(place.work.with_name("another"))
        identity = await place.commit("t", "two", replace=True)
        await forwarding.queue("t", identity)
        await place.idle(forwarding)

        assert (noted.forwarded, noted.begun) == ("", noted.identity)
        assert forwarding.has("t", identity)


async def test_a_version_that_comes_back_is_not_taken_for_there_while_another_may_be(
    place: Place,
) -> None:
    entered, goes_on = anyio.Event(), anyio.Event()

    def slow(when: str, name: str) -> anyio.Event | None:
        if (when, name) == ("after", "commit") and len(place.heard) == 1:
            entered.set()
            return goes_on
        return None

    async with place.forwarding(slow) as forwarding:
        one = await place.commit("t", "one", replace=True)
        await forwarding.queue("t", one)
        await place.heard.until(1)
        await forwarding.queue("t", await place.commit("t", "two", replace=True))
        await entered.wait()
        assert await place.commit("t", "one", replace=True) == one
        await forwarding.queue("t", one)

        assert not forwarding.has("t", one)
        assert (await place.notes())["t"].waits
        goes_on.set()
        await place.idle(forwarding)
        assert forwarding.has("t", one)
    assert await place.identity("t", place.cloud) == one


async def test_a_checkpoint_that_was_replaced_is_replaced_there(place: Place) -> None:
    await place.commit("t", "one")
    async with place.forwarding() as forwarding:
        await place.idle(forwarding)
        await forwarding.queue("t", await place.commit("t", "two", replace=True))
        await place.idle(forwarding)

    assert (place.cloud / "t" / "w").read_text() == "two"


async def test_a_tree_that_was_deleted_meanwhile_is_told_and_waits_no_more(place: Place) -> None:
    identity = await place.commit("t", "one")
    async with place.forwarding(first(TransientError("away"))) as forwarding:
        await forwarding.queue("t", identity)
        await place.heard.until(1)
        async with StorageSyncer(isolation="loop") as syncer:
            await syncer.delete(place.root / "t")
        await place.clock.advance(1)
        await place.idle(forwarding)

    assert Vanished(tree="t") in place.heard  # a look at the whole root may have met the delete
    assert not (await place.notes())["t"].waits


async def test_trees_that_vanished_while_the_head_was_down_do_not_end_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.commit("t", "one")
    async with place.forwarding(first(TransientError("away"), name="read_manifest")):
        await place.heard.until(1)
    shutil.rmtree(place.root / "t")
    find = LocalTrees.find

    async def late(self: LocalTrees, tree: str) -> AsyncIterator[Sighting]:
        await place.heard.until(2)  # its turn has come while the root was looked at
        async for sight in find(self, tree):
            yield sight

    monkeypatch.setattr(LocalTrees, "find", late)
    async with place.forwarding() as forwarding:
        await place.idle(forwarding)

    assert place.heard[1:] == [Vanished(tree="t")]
    assert (await place.notes()) == {}


async def test_of_a_tree_that_vanished_before_any_of_it_arrived_nothing_is_kept(
    place: Place,
) -> None:
    async with place.forwarding(first(TransientError("away"), name="read_manifest")) as forwarding:
        await place.idle(forwarding)
        await forwarding.queue("t", await place.commit("t", "one"))
        await place.heard.until(1)
        shutil.rmtree(place.root / "t")
        await place.idle(forwarding)

        assert place.heard[-1] == Vanished(tree="t")
        assert [*forwarding._known, *forwarding._asked, *forwarding._tried_at] == []
        assert not forwarding._agenda.has_failed("t")


async def test_a_note_that_cannot_be_removed_does_not_end_the_head(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Notes, tree: str) -> None:
        raise OSError(errno.EROFS, "read-only")

    await place.commit("t", "one")
    async with place.forwarding(first(TransientError("away"), name="read_manifest")):
        await place.heard.until(1)
    shutil.rmtree(place.root / "t")
    monkeypatch.setattr(Notes, "remove", broken)
    async with place.forwarding():
        event = await place.heard.until(2)

    assert isinstance(event, NotForwarded)
    assert "read-only" in event.reason


async def test_what_is_written_below_the_root_past_the_head_arrives_as_well(place: Place) -> None:
    async with place.forwarding() as forwarding:
        await place.idle(forwarding)
        for text in ("one", "two"):
            identity = await place.commit("fetched", text, kind="rolling")
            await place.clock.advance(60)
            await place.heard.until(len(place.heard) + 1)

        assert forwarding.has("fetched", identity)


async def test_of_trees_that_are_gone_the_newest_notes_stay(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding_module, "_MOST_GONE", 1)
    async with place.forwarding() as forwarding:
        for tree in ("t", "newer"):
            await forwarding.queue(tree, await place.commit(tree, "one"))
        await place.idle(forwarding)
    async with StorageSyncer(isolation="loop") as syncer:
        for tree in ("t", "newer"):
            await syncer.delete(place.root / tree)
    async with place.forwarding() as forwarding:
        await place.idle(forwarding)

    assert list(await place.notes()) == ["newer"]
    assert (place.cloud / "t" / "w").exists()  # nothing is deleted there because it is gone here


async def test_a_commit_that_was_never_noted_is_found_at_the_next_start(place: Place) -> None:
    identity = await place.commit("deep/er/t", "one")
    async with place.forwarding() as forwarding:
        await place.idle(forwarding)

        assert forwarding.has("deep/er/t", identity)


async def test_a_damaged_note_counts_as_none(place: Place) -> None:
    await place.commit("t", "one")
    async with place.forwarding() as forwarding:
        await place.idle(forwarding)
    [note] = (place.state / "forward").rglob("*.json")
    note.write_bytes(note.read_bytes()[:-9])

    async with place.forwarding() as forwarding:
        await place.idle(forwarding)

    assert not (await place.notes())["t"].waits
    assert place.heard[-1].sent_bytes == 0  # type: ignore[union-attr]


async def test_a_tree_whose_name_is_no_text_is_carried_on_and_ends_no_head(place: Place) -> None:
    await place.commit("t", "one")
    name = os.fsdecode(b"\xff")
    (place.root / "t").rename(place.root / name)
    await place.commit("x", "two")
    for _ in range(2):
        async with place.forwarding() as forwarding:
            await place.idle(forwarding)

    assert (place.cloud / name / "w").read_text() == "one"
    assert (place.cloud / "x" / "w").read_text() == "two"
    assert {tree: note.waits for tree, note in (await place.notes()).items()} == {
        name: False,
        "x": False,
    }


async def test_a_tree_that_cannot_be_read_holds_up_no_other_and_ends_no_head(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, errors = LocalTrees.read_header, [AccessDeniedError("not ours"), OSError("broken")]

    async def read_header(store: LocalTrees, tree: str) -> Header:
        if tree == "a" and errors:
            raise errors.pop(0)
        return await read(store, tree)

    monkeypatch.setattr(LocalTrees, "read_header", read_header)
    for tree in "ab":
        await place.commit(tree, tree)
    async with place.forwarding() as forwarding:
        assert "not ours" in (await place.heard.until(1)).reason  # type: ignore[union-attr]
        assert (await place.heard.until(2)).tree == "b"  # type: ignore[union-attr]
        await place.clock.advance(60)
        assert "broken" in (await place.heard.until(3)).reason  # type: ignore[union-attr]
        await place.clock.advance(60)
        await place.idle(forwarding)

    assert (place.cloud / "a" / "w").read_text() == "a"


async def test_a_long_reason_can_be_read_again(place: Place) -> None:
    await place.commit("t", "one")
    reason = "away\n" + "x" * 100_000
    async with place.forwarding(first(TransientError(reason))):
        await place.heard.until(1)

    assert (await place.notes())["t"].failure == f"away?{'x' * 1995}"


async def test_what_a_kill_left_of_a_note_is_removed(place: Place) -> None:
    async with place.forwarding():
        pass
    [directory] = (place.state / "forward").iterdir()
    (directory / ".t.json.0011").write_text('{"v":')

    async with place.forwarding():
        pass

    assert os.listdir(directory) == []


async def test_another_place_gets_everything_anew(place: Place, tmp_path: Path) -> None:
    await place.commit("t", "one")
    async with place.forwarding() as forwarding:
        await place.idle(forwarding)
    place.cloud = tmp_path / "other"
    place.cloud.mkdir()

    async with place.forwarding() as forwarding:
        await place.idle(forwarding)

    assert (place.cloud / "t" / "w").read_text() == "one"


async def test_what_cannot_be_noted_is_not_acknowledged_but_noted_when_asked_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Notes, note: Note) -> None:
        raise ConfigError(f"cannot write {place.state}") from OSError(errno.ENOSPC, "full")

    identity = await place.commit("t", "one")
    away = [TransientError("away")] * 9
    async with place.forwarding(first(*away)) as forwarding:
        await place.heard.until(1)
        monkeypatch.setattr(Notes, "write", full)
        with pytest.raises(TransientError, match="cannot note") as info:
            await forwarding.queue("t", "another")
        with pytest.raises(TransientError):
            await forwarding.queue("t", "another")
        with pytest.raises(TransientError):
            await forwarding.queue("new", "whoever has committed it never asks again")
        monkeypatch.undo()
        await forwarding.queue("t", "another")

        assert (await place.notes())["t"].identity == "another"
        await place.idle(forwarding)
    assert Vanished(tree="new") in place.heard  # it was looked at all the same
    assert str(place.state) not in str(info.value)
    assert identity


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("memory://x/y", "ends with the head"),
        ("{root}/inside", "overlap"),
        ("gopher://x/y", "unknown scheme"),
    ],
)
async def test_a_place_that_cannot_be_one_is_refused(place: Place, where: str, says: str) -> None:
    location = Location.parse(where.format(root=place.root))

    with pytest.raises(ConfigError, match=says):
        async with Forwarding.open(str(place.root), location, place.state):
            pass


# ---------------------------------------------------------------- killed anywhere


class Killed(BaseException):
    """Nothing of the program runs any more."""


class Moments:
    """Kills at the n-th moment: each call has one before it and one after."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.happened = False

    def __call__(self, when: str, name: str) -> BaseException | None:
        if self.happened:
            return Killed()  # nothing happens after it
        if name == "aclose":
            return None
        self._left -= 1
        self.happened = self._left == 0
        return Killed() if self.happened else None


async def _live(place: Place, moments: Moments, acknowledged: list[str]) -> None:
    """Two versions of one tree and one of another, each acknowledged when it is queued."""
    async with place.forwarding(moments) as forwarding:
        for tree, text in (("t", "one"), ("other", "two"), ("t", "three")):
            identity = await place.commit(tree, text, kind="rolling")
            await forwarding.queue(tree, identity)
            acknowledged.append(identity)
        await place.idle(forwarding)


async def _killed(place: Place, moments: Moments, acknowledged: list[str]) -> bool:
    try:
        await _live(place, moments, acknowledged)
    except* Killed:
        pass
    return moments.happened


@pytest.mark.slow
async def test_killed_at_any_moment_all_that_was_committed_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Notes.write
    current: list[Moments] = []

    def noted(self: Notes, note: Note) -> None:
        for when in ("before", "after"):
            if current and (error := current[0](when, "note")) is not None:
                raise error
            if when == "before":
                write(self, note)

    monkeypatch.setattr(Notes, "write", noted)
    for number in count(1):
        folder = tmp_path / str(number)
        folder.mkdir()
        place, moments, acknowledged = Place(folder), Moments(number), list[str]()
        current[:] = [moments]
        killed = await _killed(place, moments, acknowledged)
        current.clear()

        async with place.forwarding() as forwarding:
            noted_after = await place.notes()
            await place.idle(forwarding)

        for tree in ("t", "other"):
            there = await place.identity(tree, place.root)
            assert await place.identity(tree, place.cloud) == there, f"killed at {number}"
            assert there is None or (await place.notes())[tree].forwarded == there
        assert len(noted_after) >= len(set(acknowledged[:2])), f"killed at {number}"
        if not killed:
            break

    assert number > 20
