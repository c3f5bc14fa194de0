from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from functools import partial

import pytest

from asyncsync.concurrency import Threads, beside
from asyncsync.errors import ConfigError, RefusedError, TransientError
from asyncsync.events import ignore
from asyncsync.location import Location
from asyncsync.storage import Stores
from asyncsync.storage.peer import PeerTrees
from asyncsync.storage.registry import check_scheme
from asyncsync.storage.retrying import RetryBudget
from asyncsync.storage.trees import Glance
from asyncsync.testing import FakeClock
from asyncsync.wire.claims import Claims
from asyncsync.wire.joining import Join
from asyncsync.wire.tokens import HeadKey, KeyRing


@pytest.fixture
async def stores() -> AsyncIterator[Stores]:
    threads = Threads(2)
    opened = Stores(threads=threads, clock=FakeClock())
    yield opened
    await opened.aclose()
    threads.close()


async def test_all_stores_retry_out_of_one_budget(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    earned: list[RetryBudget] = []

    def succeeded(budget: RetryBudget) -> None:
        earned.append(budget)

    monkeypatch.setattr(RetryBudget, "succeeded", succeeded)
    for bucket in ("one", "two"):
        store, tree = await stores.open(Location.parse(f"memory://{bucket}/run"), ignore)
        await store.glance(tree)

    assert len(earned) == 2
    assert earned[0] is earned[1]


async def test_a_store_is_opened_once_and_shared(stores: Stores) -> None:
    for tree in ("a", "b"):
        await stores.open(Location.parse(f"s3://bucket/{tree}"), ignore)
    one = dict(stores._open)
    await stores.open(Location.parse("s3://bucket/a?region=eu-west-1"), ignore)

    assert len(one) == 1
    assert len(stores._open) == 2


async def test_only_stores_with_connections_belong_to_a_loop(stores: Stores) -> None:
    await stores.open(Location.parse("memory://x/tree"), ignore)
    await stores.open(Location.parse("/tmp/tree"), ignore)
    before = stores.connected
    await stores.open(Location.parse("gs://bucket/tree"), ignore)

    assert (before, stores.connected) == (False, True)


async def test_the_tree_is_named_by_the_rest_of_the_location(stores: Stores) -> None:
    names = [
        (await stores.open(Location.parse(text), ignore))[1]
        for text in ("s3://bucket", "s3://bucket/", "s3://bucket/exp/ckpt/", "/data/exp")
    ]

    assert names == ["", "", "exp/ckpt", "data/exp"]


async def test_what_is_not_installed_says_what_to_install(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith("asyncsync.storage.s3")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["asyncsync.storage"], "s3", raising=False)
    monkeypatch.setitem(sys.modules, "aiohappyeyeballs", None)
    for name in ("http", "dialing"):
        monkeypatch.delitem(sys.modules, f"asyncsync.storage.{name}", raising=False)
        monkeypatch.delattr(sys.modules["asyncsync.storage"], name, raising=False)

    with pytest.raises(ConfigError, match=r"pip install 'asyncsync\[s3\]'"):
        await stores.open(Location.parse("s3://bucket/x"), ignore)


@pytest.mark.parametrize("scheme", ["peer", "peers"])
async def test_a_head_is_not_asked_before_it_is_needed(stores: Stores, scheme: str) -> None:
    trees, tree = await stores.open(Location.parse(f"{scheme}://host:7070/exp/a"), ignore)

    assert tree == "exp/a"
    with pytest.raises(ConfigError, match="asyncsync join"):
        await trees.read_manifest(tree)


async def test_another_node_is_let_go_of_when_it_has_been_read(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = list[PeerTrees]()

    async def aclose(self: PeerTrees) -> None:
        closed.append(self)

    monkeypatch.setattr(PeerTrees, "aclose", aclose)
    token = KeyRing((HeadKey.new(),)).mint(Claims.new("", now=0.0))
    line = Join(address="127.0.0.1:9", token=token).line()
    async with stores.joined(line, ignore):
        assert not closed

    assert len(closed) == 1
    assert not stores.connected


@pytest.mark.parametrize("tree", ["a b", "ckpt?x=1", "\udcff", ".hidden"])
async def test_a_name_that_no_head_takes_is_refused_before_one_is_asked(
    stores: Stores, tree: str
) -> None:
    with pytest.raises(RefusedError, match="choose another name"):
        await stores.open(Location.parse(f"peer://host:7070/exp/{tree}"), ignore)


@pytest.mark.parametrize(
    "scheme", ["file", "memory", "s3", "gs", "peer", "peers", "az", "hdfs", "webhdfs", "sftp"]
)
def test_a_known_scheme_is_accepted_without_looking(scheme: str) -> None:
    check_scheme(scheme)


def test_an_unknown_scheme_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="s3://, gs://"):
        check_scheme("bogus")


@pytest.mark.parametrize(("patient", "tries"), [(True, 7), (False, 2)])
async def test_a_head_that_is_started_anew_is_waited_for_unless_there_is_another_place(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, patient: bool, tries: int
) -> None:
    asked = 0

    async def glance(self: PeerTrees, tree: str) -> Glance:
        nonlocal asked
        asked += 1
        raise TransientError("connection refused")

    monkeypatch.setattr(PeerTrees, "glance", glance)
    location = Location.parse("peer://127.0.0.1:9/exp")
    store, tree = await stores.open(location, ignore, patient=patient)
    clock = stores._clock
    assert isinstance(clock, FakeClock)

    async with beside(partial(passing, clock)):
        with pytest.raises(TransientError):
            await store.glance(tree)
    assert asked == tries


async def passing(clock: FakeClock) -> None:
    while True:
        await clock.advance(1)
