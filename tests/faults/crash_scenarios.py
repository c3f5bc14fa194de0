"""The operations that may die at any moment, and what must be true of the disk afterwards."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from asyncsync.concurrency import Threads
from asyncsync.digest import digest
from asyncsync.errors import NotCommittedError, NotFoundError
from asyncsync.manifest import DirectoryEntry, Entry, FileEntry, Header, Kind, Manifest
from asyncsync.names import MANIFEST, is_ours, new_attempt
from asyncsync.storage import Durability, Group, Intent, NewFile
from asyncsync.storage.local import LocalTrees
from asyncsync.syncing import StorageSyncer

__all__ = [
    "ALONE",
    "FIRST",
    "FRONT_DOOR",
    "GROUPS",
    "SCENARIOS",
    "SECOND",
    "TREE",
    "Scenario",
    "Tree",
    "assert_tidy",
    "look",
    "manifest_of",
    "open_store",
    "put",
    "without_renameat2",
]

TREE = "runs/ckpt"


@dataclass(frozen=True)
class Tree:
    """What a tree holds: bytes by path, and its empty directories."""

    files: dict[str, bytes]
    empty: tuple[str, ...] = ()


# Between the two a file changes, one stays, one becomes a directory, a file and empty directories
# go, and others come: whatever an update can meet.
FIRST = Tree({"a/one": b"1" * 700, "a/two": b"2" * 90, "b/three": b"3" * 10}, ("hollow",))
SECOND = Tree({"a/one": b"I" * 900, "a/two": b"2" * 90, "b/three/x": b"x"}, ("void/inner",))


def manifest_of(tree: Tree) -> Manifest:
    """The manifest of a new attempt to commit `tree`."""
    entries: list[Entry] = [
        FileEntry(path, len(data), digest(data)) for path, data in tree.files.items()
    ]
    entries += [DirectoryEntry(path) for path in tree.empty]
    return Manifest.of(Header(attempt=new_attempt(), name="ckpt"), entries)


async def put(store: LocalTrees, tree: Tree, *, in_place: bool = False) -> Durability | None:
    """Make `tree` the commit at TREE, whatever is there, as a sync would: unchanged files stay."""
    manifest = manifest_of(tree)
    there = await _there(store)
    intent = Intent(
        attempt=manifest.header.attempt,
        expect=there.identity if there else None,
        in_place=in_place,
    )
    old = there.files if there else {}
    async with store.begin(TREE, intent) as writer:
        if there and there.identity == manifest.identity:
            return None
        for path, data in tree.files.items():
            if path not in old or old[path].digest != manifest.files[path].digest:
                await writer.write_many([(NewFile(path, len(data)), data)])
        return await writer.commit(manifest)


async def _there(store: LocalTrees) -> Manifest | None:
    try:
        return await store.read_manifest(TREE)
    except NotFoundError:
        return None


async def _delete(store: LocalTrees) -> None:
    try:
        await store.delete(TREE)
    except NotCommittedError:
        raise
    except NotFoundError:
        return


# Four ranks whose parts are SECOND: one file is in two of them, and one rank has nothing.
PARTS = (
    Tree({"a/one": b"I" * 900}),
    Tree({"a/two": b"2" * 90, "b/three/x": b"x"}),
    Tree({}),
    Tree({"a/two": b"2" * 90}, ("void/inner", "b")),
)


async def _ranks(store: LocalTrees) -> None:
    """What four ranks of a group do, one after another; each goes on where it was."""
    for rank, part in enumerate(PARTS):
        await _rank(store, Group(id="one", rank=rank, size=len(PARTS)), part)


_OLD, _NEW = Tree({"a": b"old"}), Tree({"a": b"new"})


async def _one_rank(store: LocalTrees) -> None:
    await _rank(store, Group(id="one", rank=0, size=1), _NEW)


async def _rank(store: LocalTrees, group: Group, part: Tree) -> None:
    there = await _there(store)
    expect = there.identity if there else None
    if there is None or there.header.attempt != group.attempt:
        await _leave(store, group, part, expect)
    await store.gather(TREE, Intent(attempt=new_attempt(), expect=expect, group=group))


async def _leave(store: LocalTrees, group: Group, part: Tree, expect: str | None) -> None:
    with suppress(NotFoundError):
        await store.read_part(TREE, group)
        return
    entries = manifest_of(part).entries
    manifest = Manifest.of(Header(attempt=group.attempt, name="ckpt"), entries)
    async with store.begin(
        TREE, Intent(attempt=new_attempt(), expect=expect, group=group)
    ) as writer:
        await writer.write_many([(NewFile(p, len(d)), d) for p, d in part.files.items()])
        await writer.commit(manifest)


@contextmanager
def without_renameat2() -> Iterator[None]:
    """A file system that can neither exchange two names nor rename without replacing."""
    local = "asyncsync.storage.local"
    with (
        mock.patch(f"{local}.publish.exchange", return_value=False),
        mock.patch(f"{local}.publish.rename_new", return_value=False),
        mock.patch(f"{local}.trash.rename_new", return_value=False),
    ):
        yield


@dataclass(frozen=True)
class Scenario:
    """One operation of the local store: what is there before, what after, and how to get there.

    Attributes:
        limits: what the file system cannot do while it runs.
    """

    before: Tree | None
    after: Tree | None
    act: Callable[[LocalTrees], Awaitable[None]]
    limits: Callable[[], object] = field(default=nullcontext)

    async def prepare(self, base: str) -> None:
        """Commit what is there before."""
        if self.before is not None:
            with open_store(base) as store:
                await put(store, self.before)

    async def run(self, base: str) -> None:
        """The operation, in one thread, so that the n-th call is always the same one."""
        with open_store(base) as store, self.limits():  # type: ignore[attr-defined]
            await self.act(store)


async def _new(store: LocalTrees) -> None:
    await put(store, FIRST)


async def _update(store: LocalTrees) -> None:
    await put(store, SECOND, in_place=True)


async def _replace(store: LocalTrees) -> None:
    await put(store, SECOND)


SCENARIOS = {
    "new": Scenario(None, FIRST, _new),
    "update": Scenario(FIRST, SECOND, _update),
    "replace": Scenario(FIRST, SECOND, _replace),
    "replace-by-two-renames": Scenario(FIRST, SECOND, _replace, without_renameat2),
    "delete": Scenario(FIRST, None, _delete),
}


GROUPS: dict[str, Scenario] = {
    "group": Scenario(None, SECOND, _ranks),
    "group-replace": Scenario(FIRST, SECOND, _ranks),
}
# Every state that a power cut may leave of more would be too many.
ALONE: dict[str, Scenario] = {
    "group-of-one": Scenario(None, _NEW, _one_rank),
    "group-of-one-replace": Scenario(_OLD, _NEW, _one_rank),
}


@dataclass(frozen=True)
class FrontDoor(Scenario):
    """One operation as users call it. The directories that are synced lie beside the base."""

    act: Callable[[LocalTrees], Awaitable[None]] = _delete
    kind: Kind = "sealed"

    async def prepare(self, base: str) -> None:
        """Make the sources that are missing, and commit what is there before."""
        for tree in (self.before, self.after):
            if tree is not None and not os.path.exists(_source(base, tree)):
                _make_source(_source(base, tree), tree)
        if self.before is not None:
            await self._sync(base, self.before)

    async def run(self, base: str) -> None:
        with self.limits():  # type: ignore[attr-defined]
            await self._sync(base, self.after)

    async def _sync(self, base: str, tree: Tree | None) -> None:
        async with StorageSyncer(isolation="loop", max_requests=1, max_files=1) as syncer:
            if tree is not None:
                source = _source(base, tree)
                await syncer.sync_up(source, f"{base}/{TREE}", kind=self.kind, replace=True)
                return
            with suppress(NotFoundError):
                await syncer.delete(f"{base}/{TREE}")


def _source(base: str, tree: Tree) -> str:
    return f"{os.path.dirname(base)}/source-{'first' if tree is FIRST else 'second'}"


def _make_source(directory: str, tree: Tree) -> None:
    for path in tree.empty:
        os.makedirs(f"{directory}/{path}")
    for path, data in tree.files.items():
        os.makedirs(os.path.dirname(f"{directory}/{path}"), exist_ok=True)
        Path(f"{directory}/{path}").write_bytes(data)


FRONT_DOOR: dict[str, Scenario] = {
    "sync-up-new": FrontDoor(None, FIRST),
    "sync-up-rolling": FrontDoor(FIRST, SECOND, kind="rolling"),
    "sync-up-replace": FrontDoor(FIRST, SECOND),
    "sync-up-replace-by-two-renames": FrontDoor(FIRST, SECOND, limits=without_renameat2),
    "sync-delete": FrontDoor(FIRST, None),
}


@contextmanager
def open_store(base: str) -> Iterator[LocalTrees]:
    """A store with one thread that has seen nothing before."""
    threads = Threads(1)
    try:
        yield LocalTrees(base, threads)
    finally:
        threads.close()


async def look(base: str) -> Tree | None:
    """What a fresh reader sees; every byte is compared with the digest committed.

    Raises:
        Exception: whatever a reader would, but for "nothing is there", which is None.
    """
    with open_store(base) as store:
        try:
            manifest = await store.read_manifest(TREE)
        except NotCommittedError:  # files without a manifest are half a tree
            raise
        except NotFoundError:
            return None
        paths = [NewFile(e.path, e.size_bytes) for e in manifest.files.values()]
        async with store.open(TREE, manifest) as reader:
            contents = await reader.read_many(paths)
    files = {file.path: data for file, data in zip(paths, contents, strict=True)}
    for path, data in files.items():
        assert digest(data) == manifest.files[path].digest, f"{path} is not what was committed"
    return Tree(files, tuple(d.path for d in manifest.directories))


def assert_tidy(base: str, expected: Tree | None, *, committed: bool = True) -> None:
    """Below `base` is exactly the tree: no stray, no holder, no lock, no missing directory."""
    found: set[str] = set()
    for directory, folders, files in os.walk(base):
        above = os.path.relpath(directory, base)
        found |= {os.path.normpath(f"{above}/{name}") for name in files}
        found |= {os.path.normpath(f"{above}/{name}/") + "/" for name in folders}
    assert {path for path in found if _is_temporary(path)} == set()
    if expected is None:
        assert {path for path in found if path.startswith(TREE)} == set()
        return
    wanted = {f"{TREE}/{MANIFEST}"} if committed else set[str]()
    wanted |= {f"{TREE}/{path}" for path in expected.files}
    folders_wanted = {f"{TREE}/{path}" for path in expected.empty}
    for path in wanted | folders_wanted | {f"{TREE}/."}:
        while path := path.rpartition("/")[0]:
            folders_wanted = folders_wanted | {path}
    assert found == wanted | {f"{path}/" for path in folders_wanted}


def _is_temporary(path: str) -> bool:
    return any(is_ours(part) for part in path.split("/")) and path != f"{TREE}/{MANIFEST}"
