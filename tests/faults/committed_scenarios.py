"""What a client does to a tree in an object store, and what may be seen of it at any time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from asyncsync.errors import IntegrityError, NotFoundError
from asyncsync.manifest import Header, Manifest
from asyncsync.names import new_attempt
from asyncsync.storage.committed import CommittedTrees
from asyncsync.storage.trees import Block, Intent, NewFile, TreeWriter
from asyncsync.testing.values import make_manifest, new_files

__all__ = ["CHUNK", "NEW", "OLD", "SCENARIOS", "Act", "check_whole", "sync"]

OLD = {"a": b"old", "d/kept": b"kept in both", "d/gone": b"gone", "d/big": b"big and old"}
NEW = {"a": b"new", "d/kept": b"kept in both", "e/more": b"more", "d/big": b"big and new"}
CHUNK = 4  # so that the files of eleven bytes are big ones

Act = Callable[[CommittedTrees], Awaitable[object]]


def sync(files: dict[str, bytes], *, in_place: bool, by: str = "me") -> Act:
    """What the engine does: look, send what differs, commit; the same content is confirmed."""

    async def act(store: CommittedTrees) -> None:
        try:
            old = await store.read_manifest("tree")
        except NotFoundError:
            old = None
        if old is not None and old.identity == make_manifest(files).identity:
            await store.confirm("tree")
        else:
            await send(store, files, old, in_place=in_place, by=by)

    return act


async def send(
    store: CommittedTrees, files: dict[str, bytes], old: Manifest | None, *, in_place: bool, by: str
) -> None:
    attempt = new_attempt()
    entries = make_manifest(files).files
    there = old.files if old else {}
    changed = {p: d for p, d in files.items() if p not in there or there[p] != entries[p]}
    manifest = Manifest.of(Header(attempt=attempt, writer=by), entries.values())
    intent = Intent(
        attempt=attempt,
        expect=old.identity if old else None,
        in_place=in_place,
        writer=by,
        files=new_files(changed),
    )
    async with store.begin("tree", intent) as target:
        await put(target, changed)
        try:
            await target.commit(manifest)
        except IntegrityError as exc:  # a dead attempt had overwritten what was to be kept
            await put(target, {path: files[path] for path in exc.paths})
            await target.commit(manifest)


async def put(target: TreeWriter, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        for at in range(0, max(1, len(data)), CHUNK):
            await target.write(NewFile(path, len(data)), at, Block(data[at : at + CHUNK]))


async def delete(store: CommittedTrees) -> None:
    try:
        await store.delete("tree")
    except NotFoundError:
        return


SCENARIOS: dict[str, tuple[dict[str, bytes] | None, Act, dict[str, bytes] | None]] = {
    "new": (None, sync(NEW, in_place=False), NEW),
    "update": (OLD, sync(NEW, in_place=True), NEW),
    "replace": (OLD, sync(NEW, in_place=False), NEW),
    "delete": (OLD, delete, None),
}


def check_whole(
    found: dict[str, bytes] | None,
    old: dict[str, bytes] | None,
    new: dict[str, bytes] | None,
    *,
    in_place: bool,
) -> None:
    """Old, new or not there; in place, every file is old or new until the manifest is new."""
    if found is None:
        assert old is None or not in_place
        return
    if in_place and found.keys() == (old or {}).keys():
        assert all(data in ((old or {})[p], (new or {}).get(p)) for p, data in found.items())
        return
    assert found in (old, new)
