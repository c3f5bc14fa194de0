"""Trees to write and read in the suites for a TreeStore."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from ..digest import CHUNK_BYTES, digest, tree_digest
from ..manifest import Entry, FileEntry, Header, Kind, Manifest
from ..names import new_attempt
from ..storage.trees import Block, Intent, NewFile, TreeStore, TreeWriter

__all__ = [
    "BIG",
    "NEW",
    "OLD",
    "Files",
    "both_ways",
    "load",
    "make_manifest",
    "new_files",
    "save",
    "write",
]

Files = Mapping[str, bytes]

BIG = bytes(range(256)) * (2 * CHUNK_BYTES // 256) + b"tail"

OLD = {"a": b"one", "d/b": b"two", "gone": b"three"}
NEW = {"a": b"one", "d/b": b"changed", "d/new": b"four"}

both_ways = pytest.mark.parametrize("in_place", [False, True], ids=["whole", "in place"])


def _entry(path: str, data: bytes) -> FileEntry:
    chunks = [
        digest(data[at : at + CHUNK_BYTES]) for at in range(0, max(1, len(data)), CHUNK_BYTES)
    ]
    listed = tuple(chunks) if len(chunks) > 1 else ()
    return FileEntry(path, len(data), tree_digest(chunks), chunks=listed)


def make_manifest(
    files: Files, *, attempt: str = "", kind: Kind = "sealed", others: Iterable[Entry] = ()
) -> Manifest:
    """The manifest of `files` and of `others`: empty directories, commits inside."""
    header = Header(kind=kind, name="tree", attempt=attempt or new_attempt())
    return Manifest.of(header, [*(_entry(p, d) for p, d in files.items()), *others])


def new_files(files: Files) -> tuple[NewFile, ...]:
    """The files as an intent or a read names them."""
    return tuple(NewFile(path, len(data)) for path, data in files.items())


async def write(writer: TreeWriter, files: Files) -> None:
    """Write every file: the small ones together, the big ones chunk by chunk."""
    small = [(NewFile(p, len(d)), d) for p, d in files.items() if len(d) <= CHUNK_BYTES]
    await writer.write_many(small)
    for path, data in files.items():
        if len(data) > CHUNK_BYTES:
            for at in range(0, len(data), CHUNK_BYTES):
                block = Block(data[at : at + CHUNK_BYTES])
                await writer.write(NewFile(path, len(data)), at, block)


async def save(
    store: TreeStore,
    tree: str,
    files: Files,
    *,
    over: Manifest | None = None,
    in_place: bool = False,
    writer: str = "",
    others: Iterable[Entry] = (),
) -> Manifest:
    """Commit `files`; what `over`, the commit that is replaced, holds already is not written."""
    there = over.files if over is not None else {}
    send = {p: d for p, d in files.items() if p not in there or there[p].digest != digest(d)}
    attempt = new_attempt()
    kind: Kind = "rolling" if in_place else "sealed"
    manifest = make_manifest(files, attempt=attempt, kind=kind, others=others)
    intent = Intent(
        attempt=attempt,
        expect=over.identity if over is not None else None,
        in_place=in_place,
        writer=writer,
        files=new_files(send),
    )
    async with store.begin(tree, intent) as target:
        await write(target, send)
        await target.commit(manifest)
    return manifest


async def load(store: TreeStore, tree: str) -> dict[str, bytes]:
    """The files of the commit at `tree`, each checked against its digest."""
    manifest = await store.read_manifest(tree)
    files = [NewFile(e.path, e.size_bytes) for e in manifest.files.values()]
    small = [file for file in files if file.size_bytes <= CHUNK_BYTES]
    async with store.open(tree, manifest) as reader:
        found = dict(zip([f.path for f in small], await reader.read_many(small), strict=True))
        for file in files:
            if file not in small:
                found[file.path] = b"".join(
                    [
                        bytes((await reader.read(file, at, min(at + CHUNK_BYTES, file[1]))).data)
                        for at in range(0, file.size_bytes, CHUNK_BYTES)
                    ]
                )
    for path, data in found.items():
        assert _entry(path, data).digest == manifest.files[path].digest, path
    return found
