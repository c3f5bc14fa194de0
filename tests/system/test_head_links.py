"""A head and whoever may write below its root by another way: no link leads it elsewhere."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from anyio import to_thread

from asyncsync.concurrency import Threads
from asyncsync.errors import AsyncSyncError, ConfigError, RefusedError
from asyncsync.storage import NewFile, TreeStore
from asyncsync.storage.local import HeldRoot, LocalTrees, fs
from asyncsync.testing.values import save

CANARY = b"what lies outside of the root"
DATA = b"what was pushed"
TREE = "exp/trial/ckpt"
ROUNDS = 40


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that looks like all that a head might look for, and is not below its root."""
    outside = tmp_path / "outside"
    for below in ("ckpt", "trial/ckpt", "."):
        (outside / below).mkdir(parents=True, exist_ok=True)
        (outside / below / "weights").write_bytes(CANARY)
    return outside


@pytest.fixture(params=["openat2", "by component"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TreeStore]:
    if request.param != "openat2":
        monkeypatch.setattr(fs, "_has_openat2", lambda: False)
    (tmp_path / "root").mkdir()
    threads = Threads(4)
    store = LocalTrees(await threads.run(HeldRoot, str(tmp_path / "root")), threads)
    yield store
    await store.aclose()
    threads.close()


def content(top: Path) -> dict[str, object]:
    """All that is there: names, what files hold, and when directories were written to."""
    found: dict[str, object] = {".": top.stat().st_mtime_ns}
    for path in top.rglob("*"):
        what = path.stat().st_mtime_ns if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(top))] = what
    return found


async def pull(store: TreeStore, tree: str) -> bytes:
    async with store.open(tree, None) as reader:
        (found,) = await reader.read_many([NewFile("weights", len(DATA))])
        return found


@contextmanager
def flipping(one: Path, other: Path) -> Iterator[None]:
    """Swap two names again and again, for as long as the context lasts."""
    above = os.open(one.parent, os.O_RDONLY | os.O_DIRECTORY)
    enough = threading.Event()

    def flip() -> None:
        while not enough.is_set():
            with suppress(FileNotFoundError):  # the one that is a tree was deleted
                fs.exchange(above, one.name, above, other.name)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
        os.close(above)


@pytest.mark.slow
@pytest.mark.parametrize("flipped", ["exp", "exp/trial", "exp/trial/ckpt"])
async def test_a_component_that_becomes_a_link_and_back_leads_nowhere_else(
    store: TreeStore, tmp_path: Path, outside: Path, flipped: str
) -> None:
    real = tmp_path / "root" / flipped
    await save(store, TREE, {"weights": DATA})
    (real.parent / "link").symlink_to(outside)
    before = await to_thread.run_sync(content, outside)
    done = dict.fromkeys(ACTS, 0)
    tried = 0
    with flipping(real, real.parent / "link"):
        while tried < ROUNDS or not done["find"]:  # and some of it has met a directory
            tried += 1
            for name in done:
                tree = f"{TREE}-{done['push']}" if flipped != TREE else TREE
                with suppress(AsyncSyncError):
                    await ACTS[name](store, tree)
                    done[name] += 1

    assert await to_thread.run_sync(content, outside) == before


async def pull_all(store: TreeStore, tree: str) -> None:
    assert await pull(store, tree) == DATA, "what is read is never the canary"


async def find(store: TreeStore, tree: str) -> None:
    async for _ in store.find(tree.partition("/")[0]):
        pass


ACTS: dict[str, Callable[[TreeStore, str], Awaitable[object]]] = {
    "push": lambda store, tree: save(store, tree, {"weights": DATA}),
    "pull": pull_all,
    "find": find,
    "delete": lambda store, tree: store.delete(tree, uncommitted=True),
    "clean": lambda store, tree: store.clean(tree, older_than_s=0),
    "mark": lambda store, tree: store.mark_root(tree, b"marker"),
    "confirm": lambda store, tree: store.confirm(tree),
    "probe": lambda store, tree: store.probe(tree),
    "glance": lambda store, tree: store.glance(tree),
    "list": lambda store, tree: store.list_files(tree),
}


@pytest.mark.parametrize("link", ["exp", "exp/trial", "exp/trial/ckpt"])
@pytest.mark.parametrize("name", [name for name in ACTS if name != "find"])
async def test_a_link_on_the_way_is_refused_by_its_name_and_not_by_its_target(
    store: TreeStore, tmp_path: Path, outside: Path, link: str, name: str
) -> None:
    place = tmp_path / "root" / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside)
    before = await to_thread.run_sync(content, outside)

    with pytest.raises(AsyncSyncError) as caught:
        await ACTS[name](store, TREE)

    assert await to_thread.run_sync(content, outside) == before
    assert str(tmp_path) not in str(caught.value)
    assert "outside" not in str(caught.value)
    if link != TREE:
        assert isinstance(caught.value, RefusedError)
        assert f"{link} is a link" in str(caught.value)


async def test_a_link_that_is_there_when_a_directory_is_made_is_not_followed(
    store: TreeStore, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(name: str, mode: int = 0o777, *, dir_fd: int) -> None:
        os.symlink(outside, name, dir_fd=dir_fd)
        raise FileExistsError(name)

    before = await to_thread.run_sync(content, outside)
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", late)
        with pytest.raises(AsyncSyncError):
            await save(store, TREE, {"weights": DATA})

    assert await to_thread.run_sync(content, outside) == before


async def test_a_link_among_the_trees_is_not_found(
    store: TreeStore, tmp_path: Path, outside: Path
) -> None:
    await save(store, TREE, {"weights": DATA})
    (tmp_path / "root" / "exp" / "link").symlink_to(tmp_path / "root" / "exp" / "trial")

    assert [one.tree async for one in store.find("")] == [TREE]
    assert (await store.glance("exp")).names == {"trial"}


@pytest.mark.parametrize("tree", ["..", "../outside", "a/../../outside", "/etc", "./../outside"])
async def test_a_name_that_leads_out_is_refused_by_the_trees_too(
    store: TreeStore, outside: Path, tree: str
) -> None:
    before = await to_thread.run_sync(content, outside)

    for name in ("push", "pull", "delete", "clean", "confirm"):
        with pytest.raises(RefusedError, match="outside of the root"):
            await ACTS[name](store, tree)

    assert await to_thread.run_sync(content, outside) == before


async def test_the_root_itself_is_not_deleted_and_nothing_is_made_beside_it(
    store: TreeStore, tmp_path: Path
) -> None:
    await save(store, "", {"weights": DATA})
    with pytest.raises(ConfigError, match="the root"):
        await store.delete("")
    await store.clean("", older_than_s=0)

    assert os.listdir(tmp_path) == ["root"]
    assert await pull(store, "") == DATA
