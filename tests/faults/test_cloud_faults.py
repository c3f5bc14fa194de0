"""Every request of a commit to S3 and to GCS fails, or loses its answer, once or from then on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal, Protocol

import anyio
import pytest

from asyncsync.clock import SystemClock
from asyncsync.concurrency import Threads
from asyncsync.errors import AsyncSyncError, BusyError, NotFoundError
from asyncsync.names import MANIFEST
from asyncsync.storage import ObjectStore
from asyncsync.storage.committed import CommittedTrees, writer
from asyncsync.testing import FakeClock
from asyncsync.testing.values import load

from ..fakes.gcs import FakeGcs
from ..fakes.gcs import Fault as GcsFault
from ..fakes.s3 import FakeS3
from ..fakes.s3_faults import Effect, lose_answer, reset
from ..fakes.s3_wire import Request
from ..system.s3_place import Hurry
from .cloud_victims import Victims
from .committed_scenarios import CHUNK, SCENARIOS, Act, check_whole, sync

Kind = Literal["fails", "answer lost"]
When = Literal["before", "after"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK_BYTES", CHUNK)


class World(Protocol):
    """A store over HTTP whose requests can fail, and what is in it."""

    objects: ObjectStore
    environ: dict[str, str]

    def empty(self) -> None: ...
    def put(self, key: str, data: bytes) -> None: ...
    def fail(self, number: int, kind: Kind, *, sticky: bool) -> None: ...
    def kill(self, number: int, when: When, action: Callable[[], None]) -> None: ...
    def heal(self) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def held(self) -> dict[str, bytes]: ...
    @property
    def unfinished(self) -> int: ...


class S3World:
    def __init__(self, fake: FakeS3, objects: ObjectStore) -> None:
        self.fake, self.objects, self.environ = fake, objects, fake.environ

    def empty(self) -> None:
        self.heal()
        self.fake.objects["bucket"].clear()
        self.fake.uploads.clear()

    def put(self, key: str, data: bytes) -> None:
        self.fake.put(key, data)

    def fail(self, number: int, kind: Kind, *, sticky: bool) -> None:
        effect = reset("request") if kind == "fails" else lose_answer()
        self.fake.requests.clear()
        self.fake.on(None, effect, at=number)
        if sticky:
            self.fake.dead_from = number + 1

    def kill(self, number: int, when: When, action: Callable[[], None]) -> None:
        def hook(request: Request) -> Effect | None:
            if request.number != number or when == "after":
                return None
            action()
            return reset("before")

        def after_hook(request: Request) -> None:
            if request.number == number and when == "after":
                action()

        self.fake.requests.clear()
        self.fake.hook, self.fake.after_hook = hook, after_hook

    def heal(self) -> None:
        self.fake.faults.clear()
        self.fake.hook = self.fake.after_hook = None
        self.fake.dead_from = None

    @property
    def count(self) -> int:
        return len(self.fake.requests)

    @property
    def held(self) -> dict[str, bytes]:
        return {key: stored.data for key, stored in self.fake.objects["bucket"].items()}

    @property
    def unfinished(self) -> int:
        return len(self.fake.uploads)


class GcsWorld:
    def __init__(self, fake: FakeGcs, objects: ObjectStore) -> None:
        self.fake, self.objects = fake, objects
        self.environ = {"STORAGE_EMULATOR_HOST": fake.url}

    def empty(self) -> None:
        self.heal()
        self.fake.objects.clear()
        self.fake.sessions.clear()

    def put(self, key: str, data: bytes) -> None:
        self.fake.put(key, data)

    def fail(self, number: int, kind: Kind, *, sticky: bool) -> None:
        self.fake.requests.clear()
        fault = (
            GcsFault(at=number, drop=True) if kind == "fails" else GcsFault(at=number, lost=True)
        )
        self.fake.faults.append(fault)
        if sticky:
            self.fake.faults.append(GcsFault.dead_from(number + 1))

    def kill(self, number: int, when: When, action: Callable[[], None]) -> None:
        async def act(seen: int) -> None:
            action()

        self.fake.requests.clear()
        self.fake.faults.append(
            GcsFault(at=number, before=act, drop=when == "before", lost=when == "after")
        )

    def heal(self) -> None:
        self.fake.faults.clear()

    @property
    def count(self) -> int:
        return len(self.fake.requests)

    @property
    def held(self) -> dict[str, bytes]:
        return {name: stored.data for name, stored in self.fake.objects.items()}

    @property
    def unfinished(self) -> int:
        return sum(".asyncsync-parts-" in name for name in self.fake.objects)


@asynccontextmanager
async def s3_world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    from asyncsync.storage.s3 import S3Objects

    async with FakeS3() as fake:
        for name, value in fake.environ.items():
            monkeypatch.setenv(name, value)
        threads = Threads(4)
        objects = S3Objects("bucket", {}, threads=threads, clock=SystemClock(), max_requests=8)
        try:
            yield S3World(fake, objects)
        finally:
            await objects.aclose()
            threads.close()


@asynccontextmanager
async def gcs_world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    from asyncsync.storage.gcs import GcsObjects

    async with FakeGcs("bucket") as fake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
        threads = Threads(4)
        objects = GcsObjects("bucket", {}, threads=threads, clock=Hurry(), max_requests=8)
        try:
            yield GcsWorld(fake, objects)
        finally:
            await objects.aclose()
            threads.close()


WORLDS = {"s3": s3_world, "gcs": gcs_world}


class Client:
    """A client of the world, and the clock by which it takes others for dead."""

    def __init__(self, world: World) -> None:
        self.world, self.clock = world, FakeClock()

    def trees(self) -> CommittedTrees:
        return CommittedTrees(self.world.objects, clock=self.clock)

    async def content(self) -> dict[str, bytes] | None:
        try:
            manifest = await self.trees().read_manifest("tree")
        except NotFoundError:
            return None
        held = self.world.held
        return {path: held[f"tree/{path}"] for path in manifest.files}

    async def finish(self, act: Act) -> None:
        """The next run, by another process; it waits until a dead attempt counts as such."""
        trees = self.trees()
        try:
            await act(trees)
        except BusyError as exc:
            await self.clock.advance(exc.retry_after_s or 0)
            await act(trees)

    async def check_finished(self, expected: dict[str, bytes] | None) -> None:
        names = {f"tree/{path}" for path in (*expected, MANIFEST)} if expected else set[str]()

        assert self.world.held.keys() == names | {"tree/foreign", "tree2/a"}
        assert self.world.unfinished == 0
        assert self.world.held["tree/foreign"] == b"theirs"
        if expected is not None:
            assert await load(self.trees(), "tree") == expected


async def prepare(world: World, old: dict[str, bytes] | None) -> Client:
    """What a scenario starts from, beside things that are none of our business."""
    world.empty()
    client = Client(world)
    if old is not None:
        await sync(old, in_place=True)(client.trees())
    world.put("tree/foreign", b"theirs")
    world.put("tree2/a", b"neighbor")
    return client


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", ["fails", "answer lost"])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("name", WORLDS)
async def test_no_failing_request_leaves_half_a_tree_and_the_next_run_finishes(
    name: str, scenario: str, kind: Kind, sticky: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, act, new = SCENARIOS[scenario]
    async with WORLDS[name](monkeypatch) as world:
        number, happened = 0, True
        while happened:
            number += 1
            client = await prepare(world, old)
            world.fail(number, kind, sticky=sticky)
            acknowledged = True
            try:
                await act(client.trees())
            except AsyncSyncError:
                acknowledged = False
            happened = world.count >= number
            world.heal()
            found = await client.content()

            check_whole(found, old, new, in_place=scenario == "update")
            assert not acknowledged or found == new, number
            await client.finish(act)
            await client.check_finished(new)
        assert number > 10


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", WORLDS)
async def test_killed_at_any_request_the_tree_is_whole_and_the_next_run_finishes(
    name: str, scenario: str, when: When, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, act, new = SCENARIOS[scenario]
    async with WORLDS[name](monkeypatch) as world, Victims(name, world.environ) as victims:
        number, happened = 0, True
        while happened:
            number += 1
            client = await prepare(world, old)
            world.kill(number, when, victims.kill)
            with anyio.fail_after(60):
                status = await victims.run(scenario)
            happened = world.count >= number
            world.heal()
            found = await client.content()

            assert status == (-9 if happened else 0), number
            check_whole(found, old, new, in_place=scenario == "update")
            await client.finish(act)
            await client.check_finished(new)
        assert number > 10
