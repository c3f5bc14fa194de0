"""The suites over S3 and GCS: our fakes, and every server that can be had."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext

import pytest

from asyncsync.clock import SystemClock
from asyncsync.concurrency import Threads
from asyncsync.errors import NotFoundError, PermanentError, TransientError
from asyncsync.events import Event, Reduced
from asyncsync.storage import ObjectStore, TreeStore
from asyncsync.storage.committed import CommittedTrees
from asyncsync.storage.gcs import GcsObjects
from asyncsync.storage.objects import Capabilities
from asyncsync.storage.parts import MAX_KEY_BYTES
from asyncsync.storage.retrying import Backoff
from asyncsync.storage.s3 import S3Objects
from asyncsync.storage.wrappers import equip_objects
from asyncsync.testing import FakeClock, ObjectStoreContract, TreeStoreContract
from asyncsync.testing.values import save

from ..fakes.gcs import FakeGcs
from ..fakes.s3 import FakeS3
from ..servers import Server

# Its router knows no line breaks; a completed upload heeds If-None-Match only.
OF_MOTO = Capabilities(multipart_conditions=False, refused_characters="\n\r")
NOTHING_HEEDED = Capabilities(create_only=False, if_match=False, multipart_conditions=False)
OF_EMULATOR = Capabilities(
    create_only=False,
    if_match=False,
    multipart_conditions=False,
    min_part_bytes=1,
    max_key_bytes=MAX_KEY_BYTES,
    refused_characters="\r\n",
)
ON_PUT_ONLY = Capabilities(if_match=False, multipart_conditions=False)


@pytest.fixture
def threads() -> Iterator[Threads]:
    pool = Threads(4)
    yield pool
    pool.close()


CAPABILITIES = {
    "moto": OF_MOTO,
    "moto_tls": OF_MOTO,
    "rclone": NOTHING_HEEDED,
    "radosgw": ON_PUT_ONLY,
    "radosgw_tls": ON_PUT_ONLY,
    "gcs_emulator": OF_EMULATOR,
}
FAKES = {"fake_s3": FakeS3, "fake_gcs": FakeGcs}


def on(*servers: str) -> pytest.MarkDecorator:
    """For a suite: it runs on each of these, by the names of `FAKES` and of the fixtures."""
    return pytest.mark.parametrize("server", servers)


@asynccontextmanager
async def connected(
    server: Server | FakeS3 | FakeGcs, threads: Threads, patch: pytest.MonkeyPatch
) -> AsyncIterator[S3Objects | GcsObjects]:
    """A bucket of its own at a server."""
    for name, value in server.environ.items():
        patch.setenv(name, value)
    kind = GcsObjects if "STORAGE_EMULATOR_HOST" in server.environ else S3Objects
    bucket = server.bucket() if isinstance(server, Server) else "bucket"
    objects = kind(bucket, {}, threads=threads, clock=SystemClock(), max_requests=8)
    try:
        yield objects
    finally:
        await objects.aclose()


@pytest.fixture
async def objects(
    server: str,
    request: pytest.FixtureRequest,
    threads: Threads,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[ObjectStore]:
    """At the server of that name; says what that can do, for a suite to ask no more."""
    fake = FAKES.get(server)
    running = fake() if fake else nullcontext(request.getfixturevalue(server))
    async with running as found, connected(found, threads, monkeypatch) as objects:
        if server in CAPABILITIES:
            monkeypatch.setattr(type(objects), "capabilities", CAPABILITIES[server])
        store: ObjectStore = objects
        if server == "rclone":  # drops the connection when a file that is being read is replaced
            store = equip_objects(objects, clock=SystemClock(), backoff=Backoff(first_s=0.0))
        yield store


class Objects(ObjectStoreContract):
    @pytest.fixture
    def store(self, objects: ObjectStore) -> ObjectStore:
        return objects


class Trees(TreeStoreContract):
    """The tree suite over an ObjectStore, which the hooks go around the trees to."""

    @pytest.fixture
    async def store(self, objects: ObjectStore) -> TreeStore:
        self.reached = objects
        able = objects.capabilities
        self.line_breaks = "\n" not in able.refused_characters
        self.groups = able.create_only and able.if_match
        return CommittedTrees(objects, clock=FakeClock())

    async def plant(self, store: TreeStore, tree: str, path: str, data: bytes | None) -> None:
        if data is None:
            await self.reached.delete(f"{tree}/{path}")
        else:
            await self.reached.put(f"{tree}/{path}", data)

    async def raw(self, store: TreeStore, tree: str) -> dict[str, bytes]:
        assert [upload async for upload in self.reached.scan_uploads("")] == []
        prefix = f"{tree}/" if tree else ""
        keys = [info.key async for info in self.reached.scan(prefix)]
        return {key[len(prefix) :]: bytes((await self.reached.get(key)).data) for key in keys}


class AnswersAnotherCode(Objects):
    """To the completion of an upload that is gone these say 500, and not that it is gone."""

    async def test_an_aborted_upload_is_gone_and_aborting_may_be_repeated(
        self, store: ObjectStore
    ) -> None:
        upload = await store.create_upload("k")
        part = await store.put_part(upload, 1, b"x")
        await store.abort_upload(upload)
        await store.abort_upload(upload)

        with pytest.raises(TransientError):
            await store.complete_upload(upload, [part])
        assert [found async for found in store.scan_uploads("")] == []


@on("fake_s3", "fake_gcs")
class TestFakes(Objects): ...


@on("moto")
class TestMoto(AnswersAnotherCode): ...


@pytest.mark.slow
@on("moto_tls")
class TestMotoTls(AnswersAnotherCode): ...


@pytest.mark.slow
@pytest.mark.timeout(180)
@on("radosgw", "radosgw_tls")
class TestRados(AnswersAnotherCode): ...


@pytest.mark.slow
@on("gcs_emulator")
class TestGcsEmulator(Objects): ...


@pytest.mark.slow
@on("rclone")
class TestRclone(Objects):
    """Its objects are files, and a multipart object's tag is another one later."""

    async def test_delete_removes_one_key_and_may_be_repeated(self, store: ObjectStore) -> None:
        for key in ("trial_1", "trial_10"):
            await store.put(key, b"")
        await store.delete("trial_1")
        await store.delete("trial_1")

        assert [info.key async for info in store.scan("")] == ["trial_10"]

    async def test_a_part_put_again_replaces_the_first(self, store: ObjectStore) -> None:
        upload = await store.create_upload("k")
        await store.put_part(upload, 1, b"first")

        with pytest.raises(PermanentError):  # it says so
            await store.put_part(upload, 1, b"second")

    async def test_a_part_that_is_not_the_one_stored_is_refused(self, store: ObjectStore) -> None:
        upload = await store.create_upload("k")
        part = await store.put_part(upload, 1, b"first")

        with pytest.raises((NotFoundError, PermanentError)):
            await store.complete_upload(upload, [part._replace(tag="0" * 32)])

    async def test_parts_in_any_order_become_one_object_in_theirs(self, store: ObjectStore) -> None:
        head = b"a" * store.capabilities.min_part_bytes
        upload = await store.create_upload("k")
        second = await store.put_part(upload, 2, b"tail")
        first = await store.put_part(upload, 1, head)
        info = await store.complete_upload(upload, [first, second])

        assert (await store.get("k")).data == head + b"tail"
        assert info.size_bytes == (await store.head("k")).size_bytes


@on("fake_s3", "fake_gcs")
class TestTreesOnFakes(Trees): ...


@pytest.mark.slow
@on("moto", "moto_tls", "gcs_emulator")
class TestTreesOnServers(Trees): ...


@pytest.mark.slow
@pytest.mark.timeout(180)
@on("radosgw", "radosgw_tls")
class TestTreesOnRados(Trees): ...


@pytest.mark.slow
@on("rclone")
class TestTreesOnRclone(Trees):
    @pytest.mark.parametrize("in_place", [False, True], ids=["whole", "in place"])
    async def test_files_and_directories_may_change_places(
        self, store: TreeStore, in_place: bool
    ) -> None:
        old = await save(store, "tree", {"x": b"file"}, in_place=in_place)

        with pytest.raises(TransientError):  # its objects are files: nothing begins below one
            await save(store, "tree", {"x/y": b"below"}, over=old, in_place=in_place)
        assert await store.read_manifest("tree") == old


# ---------------------------------------------------------------- single-writer mode


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("name", "works"), [("moto", True), ("rclone", False), ("radosgw", False)])
async def test_a_store_that_ignores_conditions_is_found_out_and_announced_once(
    name: str,
    works: bool,
    request: pytest.FixtureRequest,
    threads: Threads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server: Server = request.getfixturevalue(name)
    heard: list[Event] = []
    async with connected(server, threads, monkeypatch) as objects:
        trees = CommittedTrees(objects, clock=FakeClock(), where="s3://b", observe=heard.append)
        first = await save(trees, "tree", {"a": b"one"})
        await save(trees, "tree", {"a": b"two"}, over=first)
        able = await trees.probe("tree")
        keys = [info.key async for info in objects.scan("")]

    assert able.exclusive is works
    assert [type(event) for event in heard] == ([] if works else [Reduced])
    assert keys == ["tree/.asyncsync.json", "tree/a"]
