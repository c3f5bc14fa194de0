"""Carrying one commit from a store to another: the same commit, not one like it."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..concurrency import Threads
from ..digest import digest
from ..errors import ConflictError, IntegrityError, NotFoundError, quote
from ..events import ignore
from ..location import Location
from ..manifest import FileEntry, Manifest
from ..names import new_attempt
from ..storage import Durability, Intent, Stored, TreeStore, TreeWriter
from ..transfer import Committed, Engine, Journal, SourceFile, Tally

__all__ = ["Carried", "Carrier"]

_ROUNDS = 3

Begin = Callable[[str, str], Awaitable[None]]
"""Hears which commit is about to be sent, and which one is there; empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What arrived, and how much of it had to be sent."""

    manifest: Manifest
    durability: Durability
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """Reads from `source` and writes below `place`, which `target` holds.

    Every chunk that is read is compared with the manifest; what a disk has changed does not go on.
    Interrupted, the next attempt goes on where this one was.
    """

    root: str
    source: TreeStore
    place: Location
    target: TreeStore
    above: str
    engine: Engine
    threads: Threads

    async def carry(self, tree: str, ours: Container[str], begin: Begin) -> Carried:
        """Bring the commit that is at `tree` there.

        Args:
            ours: the commits that may have been brought there before; their place may be taken.
            begin: is awaited before anything there is touched.

        Raises:
            NotFoundError: there is none.
            ConflictError: somebody else's is there.
            IntegrityError: files are not what the manifest says.
        """
        manifest = await self.source.read_manifest(tree)
        there = f"{self.above}/{tree}".strip("/")
        try:
            previous = await self.target.read_manifest(there)
        except NotFoundError:
            previous = None
        if previous is not None and previous.identity == manifest.identity:
            return Carried(manifest=manifest, durability=await self.target.confirm(there))
        self._refuse_foreign(tree, manifest, previous, ours)
        await begin(manifest.identity, previous.identity if previous else "")
        return await self._write(tree, there, manifest, previous)

    def _refuse_foreign(
        self, tree: str, manifest: Manifest, previous: Manifest | None, ours: Container[str]
    ) -> None:
        if previous is None or previous.identity == manifest.header.parent:
            return
        if previous.identity in ours:
            return
        if previous.header.writer == manifest.header.writer:
            return
        where = quote(str(self._at(tree)))
        raise ConflictError(
            f"{where} holds another commit ({previous.identity[:12]}), which did not come from "
            "this head; delete it there, or let the head carry trees to another place",
            winner=previous.identity,
        )

    def _at(self, tree: str) -> Location:
        return self.place / tree if tree else self.place

    async def _write(
        self, tree: str, there: str, manifest: Manifest, previous: Manifest | None
    ) -> Carried:
        send = tuple(_missing(manifest, previous))
        source, target = f"{self.root}/{tree}", str(self._at(tree))
        intent = Intent(
            attempt=new_attempt(),
            expect=previous.identity if previous else None,
            in_place=manifest.header.kind == "rolling" or _nests(manifest) or _nests(previous),
            writer=digest(f"{platform.node()}\n{source}".encode(errors="surrogateescape")),
            files=send,
        )
        async with (
            Journal.open(source, target, self.threads) as journal,
            self.source.open(tree, manifest) as reader,
            self.target.begin(there, replace(intent, keep=journal.usable)) as writer,
        ):
            committed = Committed(reader, quote(source))
            durability = await self._send(manifest, send, committed, writer, journal)
        sent = sum(entry.size_bytes for entry in send)
        return Carried(manifest=manifest, durability=durability, sent_bytes=sent)

    async def _send(
        self,
        manifest: Manifest,
        send: Sequence[FileEntry],
        source: Committed,
        writer: TreeWriter,
        journal: Journal,
    ) -> Durability:
        arrived = await journal.recall(writer, [_as_source(entry) for entry in send])
        note = partial(_note, journal)
        for left in reversed(range(_ROUNDS)):
            await self.engine.send(send, source, writer, Tally(ignore), arrived=arrived, note=note)
            try:
                return await writer.commit(manifest)
            except IntegrityError as exc:
                send = [manifest.files[path] for path in exc.paths if path in manifest.files]
                if not (send and left):
                    raise
            arrived = {}  # what the target was said to hold, and does not
        raise AssertionError("unreachable: the loop returns or raises")


def _missing(manifest: Manifest, previous: Manifest | None) -> Iterator[FileEntry]:
    """The files that are not there already."""
    held = previous.files if previous else {}
    for path, entry in manifest.files.items():
        old = held.get(path)
        if old is None or (old.digest, old.mode) != (entry.digest, entry.mode):
            yield entry


def _nests(manifest: Manifest | None) -> bool:
    return manifest is not None and bool(manifest.nested)


def _as_source(entry: FileEntry) -> SourceFile:
    """An entry as a journal knows files: two of another content differ in their stamps."""
    content = int(entry.digest[:15], 16)
    return SourceFile(
        entry.path, entry.size_bytes, entry.mode, entry.mtime_ns, content, device=0, inode=0
    )


async def _note(journal: Journal, rows: Sequence[tuple[FileEntry, int, Stored]]) -> None:
    await journal.note([(_as_source(entry), number, stored) for entry, number, stored in rows])
