"""Following and `latest`: what counts as news, and what looking costs in requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from typing import TypeVar

import msgspec
import pytest

from asyncsync.digest import digest
from asyncsync.errors import CorruptedError, IntegrityError
from asyncsync.location import Location
from asyncsync.manifest import FileEntry, Header, Manifest, encode
from asyncsync.names import ATTEMPT, MANIFEST
from asyncsync.storage import Glance
from asyncsync.storage.committed import CommittedTrees
from asyncsync.storage.committed.record import Record
from asyncsync.storage.memory import MemoryObjects
from asyncsync.syncing.commits import Commit
from asyncsync.syncing.follow import Watch, poll
from asyncsync.syncing.newest import Look, Newest
from asyncsync.testing import FakeClock, FaultyObjects

T = TypeVar("T")

RUN = Location.parse("memory://tests/run")
attempts = (f"{number:032x}" for number in count(1))


class Counter:
    """A fault that only counts."""

    def __init__(self) -> None:
        self.requests = 0

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        self.requests += 1
        return await call()

    def taken(self) -> int:
        """Requests since the last time."""
        taken, self.requests = self.requests, 0
        return taken


class Store:
    """A store whose requests are counted, and one follower of `run` in it."""

    def __init__(self) -> None:
        self.objects = MemoryObjects()
        self.counter = Counter()
        objects = FaultyObjects(self.objects, self.counter)
        self.trees = CommittedTrees(objects, clock=FakeClock())
        self.newest = Newest()
        self.watch = Watch()

    async def commit(self, tree: str, *, entries: int = 0, **fields: object) -> Commit:
        header = Header(attempt=next(attempts), **fields)  # type: ignore[arg-type]
        names = (f"w{number}" for number in range(entries))
        manifest = Manifest.of(header, [FileEntry(name, 0, digest(b"")) for name in names])
        await self.objects.put(f"{tree}/{MANIFEST}", b"".join(encode(manifest)))
        return Commit.of(Location("memory", "tests", tree), manifest.header)

    async def begin(self, tree: str) -> None:
        """Leave what an attempt has before its commit."""
        record = Record(kind="write", attempt=next(attempts), paths=frozenset({"w"}))
        await self.objects.put(f"{tree}/{ATTEMPT}", msgspec.json.encode(record))
        await self.objects.put(f"{tree}/w", b"half")

    async def delete(self, tree: str) -> None:
        await self.objects.delete(f"{tree}/{MANIFEST}")

    async def look(self, location: Location = RUN) -> Commit | None:
        return (await self.newest.look(self.trees, location, location.path)).commit

    async def poll(self) -> Commit | None:
        async def look() -> Look:
            return await self.newest.look(self.trees, RUN, "run")

        return await poll(self.watch, self.trees, "run", look)

    async def polls(self, number: int) -> list[Commit]:
        """News of that many polls."""
        found = [await self.poll() for _ in range(number)]
        return [commit for commit in found if commit is not None]


@pytest.fixture
def store() -> Store:
    return Store()


# ---------------------------------------------------------------- latest, again and again


async def test_asking_again_without_news_costs_one_listing(store: Store) -> None:
    await store.commit("run/ckpt_1", step=1)
    newest = await store.commit("run/ckpt_2", step=2)
    first = await store.look()
    store.counter.taken()
    again = await store.look()

    assert first == again == newest
    assert store.counter.taken() == 1


async def test_only_headers_that_are_not_known_are_read(store: Store) -> None:
    for step in range(5):
        await store.commit(f"run/ckpt_{step}", step=step)
    await store.look()
    newest = await store.commit("run/ckpt_5", step=5)
    store.counter.taken()

    assert await store.look() == newest
    assert store.counter.taken() == 3  # the list, the new header and its whole manifest


async def test_a_commit_that_took_the_place_of_another_is_read_again(store: Store) -> None:
    await store.commit("run/ckpt_1", step=1)
    await store.look()
    other = await store.commit("run/ckpt_1", step=1, sequence=2)

    assert await store.look() == other


async def test_a_sealed_commit_is_asked_for_its_header_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = await store.commit("run")
    await store.commit("run/inside", step=9)
    first = await store.look()
    cost_first = store.counter.taken()
    again = await store.look()
    cost_again = store.counter.taken()
    monkeypatch.delattr(MemoryObjects, "scan")  # nothing is listed any more
    last = await store.look()
    monkeypatch.undo()
    replaced = await store.commit("run", sequence=2)

    assert first == again == last == newest
    assert (cost_first, cost_again) == (3, 1)  # list, header, manifest; then the header
    assert await store.look() == replaced


async def test_where_a_sealed_commit_was_deleted_the_newest_is_below(store: Store) -> None:
    await store.commit("run")
    below = await store.commit("run/ckpt_1", step=1)
    await store.look()
    await store.delete("run")

    assert await store.look() == below


async def test_a_location_that_is_a_rolling_tree_costs_one_listing_too(store: Store) -> None:
    await store.commit("run", kind="rolling")
    newest = await store.commit("run/ckpt_1", step=1)
    await store.look()
    store.counter.taken()

    assert await store.look() == newest
    assert store.counter.taken() == 1


async def test_no_new_commit_is_missed_however_deep_it_lies(store: Store) -> None:
    await store.commit("run/trial_1", kind="rolling", sequence=2)
    await store.commit("run/trial_2", kind="rolling", sequence=1)
    await store.look()
    beside = await store.commit("run/trial_2", kind="rolling", sequence=3)
    found_beside = await store.look()
    deeper = await store.commit("run/a/b/ckpt_1", step=1)

    assert found_beside == beside
    assert await store.look() == deeper


async def test_a_damaged_newest_is_an_error_every_time(store: Store) -> None:
    await store.commit("run/ckpt_1", step=1)
    await store.commit("run/ckpt_2", step=2)
    await store.objects.put(f"run/ckpt_2/{MANIFEST}", b"x")

    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"ckpt_2.*ckpt_1"):
            await store.look()


async def test_damage_below_the_first_line_is_noticed_although_the_header_is_known(
    store: Store,
) -> None:
    await store.commit("run/ckpt_1", step=1)
    await store.look()
    manifest = (await store.objects.get(f"run/ckpt_1/{MANIFEST}")).data
    await store.objects.put(f"run/ckpt_1/{MANIFEST}", bytes(manifest)[:-3])

    with pytest.raises(IntegrityError, match="ckpt_1"):
        await store.look()


async def test_bytes_that_were_changed_on_the_way_are_not_called_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def corrupted(*args: object, **options: object) -> None:
        raise CorruptedError("checksum")

    await store.commit("run/ckpt_1", step=1)
    monkeypatch.setattr(store.objects, "get", corrupted)

    with pytest.raises(CorruptedError, match="checksum"):
        await store.look()


async def test_only_so_many_locations_are_remembered(store: Store) -> None:
    places = [RUN / str(number) for number in range(65)]
    for place in places:
        await store.commit(place.path)
        await store.look(place)
    store.counter.taken()
    await store.look(places[-1])
    remembered = store.counter.taken()
    await store.look(places[0])

    assert remembered == 1
    assert store.counter.taken() == 3


# ---------------------------------------------------------------- news


async def test_the_newest_comes_first_and_then_what_is_newer(store: Store) -> None:
    await store.commit("run/ckpt_1", step=1)
    second = await store.commit("run/ckpt_2", step=2)
    first_news = await store.polls(5)
    third = await store.commit("run/ckpt_3", step=3)

    assert first_news == [second]
    assert await store.polls(5) == [third]


async def test_what_is_older_than_the_newest_is_no_news(store: Store) -> None:
    await store.commit("run/ckpt_2", step=2)
    await store.polls(1)
    await store.commit("run/ckpt_1", step=1)

    assert await store.polls(40) == []


async def test_that_the_newest_was_deleted_is_no_news(store: Store) -> None:
    await store.commit("run/ckpt_1", step=1)
    await store.commit("run/ckpt_2", step=2)
    await store.polls(1)
    await store.delete("run/ckpt_2")

    assert await store.polls(40) == []


async def test_what_is_committed_after_the_newest_was_deleted_is_news(store: Store) -> None:
    await store.commit("run/ckpt_2", step=2)
    await store.polls(1)
    await store.delete("run/ckpt_2")
    await store.polls(1)
    other = await store.commit("run/ckpt_1", step=1)

    assert await store.polls(5) == [other]


async def test_a_newest_that_was_replaced_is_news_within_four_polls(store: Store) -> None:
    await store.commit("run/ckpt_1", step=1)
    await store.polls(3)
    replaced = await store.commit("run/ckpt_1", step=1, sequence=2)

    assert await store.polls(4) == [replaced]


async def test_a_commit_at_the_location_itself_is_news(store: Store) -> None:
    await store.polls(1)
    first = await store.commit("run", kind="rolling")
    news = await store.polls(1)
    second = await store.commit("run", kind="rolling", sequence=2)

    assert news == [first]
    assert await store.polls(1) == [second]


async def test_a_sealed_location_is_followed_by_its_header(store: Store) -> None:
    await store.commit("run")
    await store.objects.put("run/folder/file", b"x")
    await store.polls(1)
    store.counter.taken()
    quiet = await store.polls(40)
    cost = store.counter.taken()
    replaced = await store.commit("run", sequence=2)

    assert (quiet, cost) == ([], 40)
    assert await store.polls(1) == [replaced]


async def test_a_rolling_location_of_many_files_is_followed_by_its_header(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.commit("run", kind="rolling", entries=1001)
    news = await store.polls(1)
    store.counter.taken()
    monkeypatch.delattr(MemoryObjects, "scan_level")  # it would answer in several pages
    quiet = await store.polls(29)
    cost = store.counter.taken()
    newer = await store.commit("run", kind="rolling", sequence=2, entries=1001)

    assert [commit.sequence for commit in news] == [1]
    assert (quiet, cost) == ([], 29)
    assert await store.polls(1) == [newer]


async def test_a_first_commit_below_many_files_is_noticed_within_thirty_polls(store: Store) -> None:
    await store.commit("run", kind="rolling", entries=1001)
    await store.polls(3)
    first = await store.commit("run/ckpt_1", step=1)
    news = await store.polls(30)
    second = await store.commit("run/ckpt_2", step=2)

    assert news == [first]
    assert await store.polls(1) == [second]


async def test_a_first_commit_below_few_files_is_noticed_at_the_next_poll(store: Store) -> None:
    await store.commit("run", kind="rolling", entries=10)
    await store.polls(2)
    first = await store.commit("run/ckpt_1", step=1)

    assert await store.polls(1) == [first]


async def test_after_a_sealed_location_what_is_below_is_followed(store: Store) -> None:
    await store.commit("run")
    await store.commit("run/ckpt_1", step=1)
    await store.polls(2)
    await store.delete("run")
    news = await store.polls(2)
    newer = await store.commit("run/ckpt_2", step=2)

    assert [commit.name for commit in news] == ["ckpt_1"]
    assert await store.polls(2) == [newer]


async def test_a_damaged_newest_ends_the_following(store: Store) -> None:
    await store.commit("run/ckpt_1", step=1)
    await store.polls(1)
    await store.objects.put(f"run/ckpt_2/{MANIFEST}", b"x")

    with pytest.raises(IntegrityError, match="ckpt_2"):
        await store.polls(1)


# ---------------------------------------------------------------- the cost of no news


@pytest.mark.parametrize("commits", [0, 1, 50])
async def test_a_poll_without_news_is_one_request(store: Store, commits: int) -> None:
    for step in range(commits):
        await store.commit(f"run/ckpt_{step}", step=step)
    await store.polls(1)
    store.counter.taken()
    await store.polls(100)

    assert store.counter.taken() == 100


async def test_files_of_others_are_asked_about_once_and_listed_every_thirty_polls(
    store: Store,
) -> None:
    await store.objects.put("run/notes/today", b"x")
    await store.polls(2)
    store.counter.taken()
    await store.polls(29 + 30)

    assert store.counter.taken() == 59  # two of them list everything


async def test_names_that_no_location_has_are_not_asked_about(store: Store) -> None:
    for key in ("run//x", "run/./x", "run/../x"):
        await store.objects.put(key, b"x")
    await store.polls(1)
    store.counter.taken()
    await store.polls(100)

    assert store.counter.taken() == 100


async def test_what_lies_deeper_is_noticed_within_thirty_polls(store: Store) -> None:
    first = await store.commit("run/trial/ckpt_1", step=1)
    news = await store.polls(2)
    second = await store.commit("run/trial/ckpt_2", step=2)

    assert news == [first]
    assert await store.polls(30) == [second]


async def test_a_rolling_tree_that_becomes_the_newest_is_noticed_within_thirty_polls(
    store: Store,
) -> None:
    await store.commit("run/trial_1", kind="rolling", sequence=1)
    await store.commit("run/trial_2", kind="rolling", sequence=2)
    await store.polls(1)
    newest = await store.commit("run/trial_1", kind="rolling", sequence=3)

    assert await store.polls(30) == [newest]


async def test_a_commit_that_is_being_written_is_noticed_at_the_next_poll(store: Store) -> None:
    await store.polls(1)
    await store.begin("run/ckpt_1")
    before = await store.polls(3)
    store.counter.taken()
    await store.polls(20)
    cost = store.counter.taken()
    first = await store.commit("run/ckpt_1", step=1)

    assert before == []
    assert cost == 40  # the glance, and one at the name
    assert await store.polls(1) == [first]


async def test_an_attempt_of_another_release_is_waited_for_too(store: Store) -> None:
    await store.objects.put(f"run/ckpt_1/{ATTEMPT}", b"another format")
    await store.polls(2)
    first = await store.commit("run/ckpt_1", step=1)

    assert await store.polls(1) == [first]


async def test_an_attempt_that_was_given_up_costs_less_and_less(store: Store) -> None:
    await store.begin("run/ckpt_1")
    await store.polls(1000)
    store.counter.taken()
    await store.polls(1000)

    assert store.counter.taken() < 1050


async def test_many_names_without_a_commit_are_not_asked_about_one_by_one(store: Store) -> None:
    for number in range(200):
        await store.objects.put(f"run/data_{number}/file", b"x")
    await store.polls(2)

    assert store.counter.taken() < 70


# ---------------------------------------------------------------- decisions, without a store


def test_a_name_that_comes_back_has_to_be_looked_at() -> None:
    watch = Watch()
    commit = Commit(location="memory://tests/run/a", name="a", attempt="1")
    seen = Glance("", frozenset({"a"}))
    first = watch.glanced(seen)
    watch.looked(Look({"a": commit}, "a"))

    assert first
    assert not watch.glanced(seen)
    assert not watch.glanced(Glance("", frozenset()))
    assert watch.glanced(seen)


def test_a_commit_is_told_once_even_if_it_was_out_of_sight_for_a_while() -> None:
    watch = Watch()
    commit = Commit(location="memory://tests/run/a", name="a", attempt="1")
    here = Look({"a": commit}, "a")

    assert watch.looked(here) == commit
    assert watch.looked(Look()) is None
    assert watch.looked(here) is None


def test_the_header_of_the_newest_is_asked_for_at_every_fourth_poll() -> None:
    watch = Watch()
    watch.looked(Look({"a": Commit(location="memory://tests/run/a", name="a")}, "a"))

    assert [watch.ask() for _ in range(80)] == [*["glance"] * 3, "header"] * 20
