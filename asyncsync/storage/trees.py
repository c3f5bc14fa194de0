"""The TreeStore protocol: what the engine knows of a place that holds trees, and its values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from ..manifest import Header, Manifest
from .groups import Group
from .objects import Data

__all__ = [
    "Block",
    "Deleted",
    "Durability",
    "File",
    "Gathering",
    "Glance",
    "Intent",
    "NewFile",
    "Sighting",
    "Stored",
    "TreeCapabilities",
    "TreeReader",
    "TreeStore",
    "TreeWriter",
]

Durability = Literal["memory", "reduced", "fsync", "received", "head-fsync", "cloud"]
"""What an acknowledged commit survives: the end of the process (no), a power cut perhaps (the file
system cannot sync directories), a power cut; the loss of this machine, and a power cut of the head
perhaps (its file system cannot sync directories), or surely; the loss of any machine."""


class NewFile(NamedTuple):
    """A file as it is about to be written; its digest may not be known yet."""

    path: str
    size_bytes: int
    mode: int = 0o644
    mtime_ns: int = 0


class File(Protocol):
    """What there is to know of a file that is going to be written, whoever keeps it."""

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...


class Block(NamedTuple):
    """Consecutive bytes of a file.

    `extents` lists the (start, end) ranges, relative to the block, that are not holes; None means
    all of it. Bytes outside the extents are zero in `data`.
    """

    data: Data
    extents: tuple[tuple[int, int], ...] | None = None


class Stored(NamedTuple):
    """A chunk that an attempt has stored: its digest, and by what the place knows it again."""

    digest: str
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What a writer is about to do to a tree.

    Attributes:
        attempt: 32 hexadecimal digits, unique to this attempt.
        expect: identity of the commit that it replaces; None: there must be none.
        in_place: replace file by file, keep what is not ours (rolling trees, restores into a
            directory that is in use); otherwise the whole tree is exchanged at once.
        writer: who writes: a digest of machine and source. An attempt that the same writer left
            behind is taken over at once; that of another only when it shows no life.
        files: what it is going to write, as far as it is known: names and sizes that the place
            cannot hold are refused before anything moves, and the rest is announced at once.
        keep: when it is interrupted (`is_interruption`), what was written stays, invisible, for
            the next attempt that also says `keep`. That one calls `recall` before it writes.
        group: it is one of many writers. Its commit, with the attempt of the group, leaves a part
            that `read_part` finds; the tree is there when `gather` has seen all parts. It writes
            all files, in a tree of its own kind: whole, not in place.
    """

    attempt: str
    expect: str | None = None
    in_place: bool = False
    writer: str = ""
    files: Sequence[File] = ()
    keep: bool = False
    group: Group | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """How far many writers have got.

    Attributes:
        missing: ranks whose part is not there, in order; none: somebody is about to commit.
        durability: of their commit, which is there then; None: it is not.
    """

    missing: tuple[int, ...] = ()
    durability: Durability | None = None


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a delete did. `kept` are paths in the tree that are not ours and stayed."""

    files: int = 0
    kept: tuple[str, ...] = ()


class Sighting(NamedTuple):
    """A tree with a manifest. The tag changes whenever the manifest does."""

    tree: str
    tag: str


class Glance(NamedTuple):
    """What can be seen of a tree without looking into it.

    Attributes:
        tag: of its own manifest; empty when there is none.
        names: of what lies directly below it and could be trees.
    """

    tag: str
    names: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeCapabilities:
    """What a probe found out about a place.

    Attributes:
        durability: the level that an acknowledged commit reaches there.
        exclusive: two writers of one name are kept apart by the store itself; False means
            single-writer mode: correct for one writer, announced.
        raw_names: names that are not UTF-8 can be stored.
        case_sensitive: `a` and `A` are two names.
        keeps_normalization: NFC and NFD spellings of a text are two names.
        clock_offset_s: the store's clock minus ours; None where it has none of its own.
        notes: what is missing or reduced, one sentence each, for people.
    """

    durability: Durability = "fsync"
    exclusive: bool = True
    raw_names: bool = True
    case_sensitive: bool = True
    keeps_normalization: bool = True
    clock_offset_s: float | None = None
    notes: tuple[str, ...] = ()


class TreeReader(Protocol):
    """Reads the files of one tree. Bytes are as stored: the caller compares digests."""

    async def read(
        self, file: NewFile, start: int, end: int, into: memoryview | None = None
    ) -> Block:
        """Bytes `start` to `end` (exclusive) of one file; put into `into` when that is given.

        Raises:
            IntegrityError: the file is missing or shorter than that.
            TransientError: worth another try.
        """
        ...

    async def read_many(self, files: Sequence[NewFile]) -> list[bytes]:
        """Whole small files, in the order asked for. Errors as `read`."""
        ...


class TreeWriter(Protocol):
    """One attempt to write a tree. Nothing is visible before `commit` returns."""

    @property
    def resumes(self) -> bool:
        """Whether an interrupted attempt may have left something to `recall`."""
        ...

    async def recall(
        self, files: Sequence[tuple[NewFile, Mapping[int, Stored]]]
    ) -> list[frozenset[int]]:
        """Which chunks, by number from 0, an interrupted attempt has stored and are still there.

        They count as written; everything else that it left is forgotten.
        """
        ...

    async def write(self, file: NewFile, offset: int, block: Block) -> str:
        """Store a part of a file: one of its 16 MiB chunks. They come in any order, also at once.

        A file is complete when its parts add up to `size_bytes`.

        Returns:
            The token by which `recall` knows it again; may be a secret.
        """
        ...

    async def write_many(self, files: Sequence[tuple[NewFile, Data]]) -> list[str]:
        """Store whole small files; a token for each, as `write` returns it."""
        ...

    async def finish(self, file: NewFile) -> str:
        """All parts of a large file are there: what is left to do for it is done now.

        Without this it is done by `commit`, which then takes longer. The token is for the last
        part, in place of that which `write` has returned; empty: that one stays.
        """
        ...

    async def discard(self, path: str) -> None:
        """Forget what was written of a file, all or part: it changed or vanished at the source.

        No part of it may be on its way. Unknown paths are no error.
        """
        ...

    async def commit(self, manifest: Manifest) -> Durability:
        """Make `manifest` the tree, all of it at once for every reader, and durable.

        Files that were not written must be in the tree that is replaced, under the same digest;
        on a disk, in place, they may also lie there already and be what the caller compared.
        Files of that tree that the manifest does not list disappear. Calling it again after a lost
        answer has the same effect as once.

        Raises:
            ConflictError: another commit is there than the one expected.
            ClashError: a file that is not ours is in the way.
            IntegrityError: files of the replaced tree that should stay (`paths`) are not what it
                says, or files have not arrived whole; write them and commit again.
        """
        ...


class TreeStore(Protocol):
    """A place that holds trees by name. Names are paths without slashes at either end.

    Every implementation passes `asyncsync.testing.TreeStoreContract`.
    """

    async def read_manifest(self, tree: str) -> Manifest:
        """The commit at `tree`, from the store, never from memory.

        Raises:
            NotFoundError: nothing is there.
            NotCommittedError: files are there, without a manifest.
            IntegrityError: the manifest is damaged (or FormatError: of a newer version).
            BusyError: it is being replaced at this moment.
        """
        ...

    async def read_header(self, tree: str) -> Header:
        """The header alone: cheap, and not checked against the entries. Errors as above."""
        ...

    def find(self, tree: str) -> AsyncIterator[Sighting]:
        """The trees with a manifest: `tree` itself and those below it, in no order.

        A listing may lag behind: whoever needs the commit reads it.

        Raises:
            NotFoundError: there is nothing at all.
        """
        ...

    async def glance(self, tree: str) -> Glance:
        """Whether something may have changed at or directly below `tree`.

        That is one small request for every thousand names there. Where there is nothing, nothing
        is seen; that is no error.
        """
        ...

    async def list_files(self, tree: str) -> list[NewFile]:
        """Every file below `tree`, ours or not, without asyncsync's own; NotFoundError if none."""
        ...

    def open(self, tree: str, manifest: Manifest | None) -> AbstractAsyncContextManager[TreeReader]:
        """Read files of `tree`: those of `manifest`, or whatever lies there when it is None."""
        ...

    def begin(self, tree: str, intent: Intent) -> AbstractAsyncContextManager[TreeWriter]:
        """Start to write `tree`, first finishing or sweeping what a crash left there.

        Leaving the block without a commit, by error or cancellation, leaves the tree as it was,
        and nothing of the attempt behind unless `intent.keep` says otherwise.

        Raises:
            ConflictError: the commit that is there is not the one expected.
            BusyError: another attempt is writing.
            RefusedError: the place cannot hold one of `intent.files`, or keep the writers of a
                group apart; or the group has another size.
        """
        ...

    async def read_part(self, tree: str, group: Group) -> Manifest:
        """What this rank of the group has left; NotFoundError if it has left nothing."""
        ...

    async def gather(self, tree: str, intent: Intent) -> Gathering:
        """Look whether all ranks of `intent.group` have left their parts, and commit if they have.

        Shows that the group lives. Whoever asks again and again hears of the commit, whichever rank
        made it; one that was made long ago is found as well. Nothing is kept between two calls.

        Raises:
            ConflictError: another commit is there than `intent.expect`, or a newer group has
                superseded this one.
            RefusedError: two parts do not fit together (`merge`); nothing was committed.
        """
        ...

    async def delete(
        self, tree: str, *, expect: str | None = None, uncommitted: bool = False
    ) -> Deleted:
        """Delete a tree and the commits inside it: the manifest first, so that no reader sees half.

        Files that no manifest lists stay and are reported. After a crash the next call finishes.

        Args:
            expect: identity that must be there; None takes whichever commit is.
            uncommitted: delete files without a manifest too: the user named them.

        Raises:
            NotFoundError, NotCommittedError, IntegrityError, ConflictError: nothing was deleted.
        """
        ...

    async def clean(self, tree: str, *, older_than_s: float) -> list[str]:
        """Remove what interrupted attempts at `tree` and below left, and nobody has gone on with.

        Only what asyncsync itself recorded, or named, as its own, and only after `older_than_s`
        seconds without a sign of life. Commits stay, and so does a replacement that has begun to
        be visible: whoever runs that sync again finishes it.

        Returns:
            Where something was removed.
        """
        ...

    async def confirm(self, tree: str) -> Durability:
        """Make the commit that is at `tree` as durable as the place allows, and say how much.

        For acknowledging a commit that an earlier attempt may have left unflushed.
        """
        ...

    async def mark_root(self, tree: str, marker: bytes) -> bytes:
        """Write the marker of a storage root, once; return the one that is there."""
        ...

    async def probe(self, tree: str) -> TreeCapabilities:
        """Find out, by trying, what the place can do; leaves nothing behind."""
        ...

    async def aclose(self) -> None:
        """Let go of connections and threads. Again: no effect."""
        ...
