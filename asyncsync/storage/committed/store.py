"""CommittedTrees: the TreeStore over any ObjectStore."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager, suppress

from ...clock import Clock
from ...concurrency import beside, quietly
from ...errors import (
    AsyncSyncError,
    BusyError,
    ConflictError,
    IntegrityError,
    NotCommittedError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    is_interruption,
)
from ...events import Observer, Reduced, ignore
from ...manifest import Header, Manifest
from ...names import (
    ATTEMPT,
    MANIFEST,
    ROOT_MARKER,
    holder_name,
    is_commit_file,
    is_ours,
    new_attempt,
)
from ..objects import ObjectStore
from ..trees import (
    Deleted,
    Durability,
    Glance,
    Intent,
    NewFile,
    Sighting,
    TreeCapabilities,
    TreeReader,
    TreeWriter,
)
from .place import Found, Place, conflict, of_tree
from .reader import CommittedReader
from .record import Lease, Record, Sightings, let_go, read_record
from .writer import CommittedWriter

__all__ = ["CommittedTrees"]

_SINGLE_WRITER = (
    "conditional writes do not work: two writers of one tree are not kept apart, let only one "
    "write at a time"
)

_NO_NAMES = frozenset({"", ".", ".."})  # keys may hold them, but no location leads there


class CommittedTrees:
    """Trees in an object store: data under the names of the source, the manifest last.

    Two writers of one tree are kept apart by conditional writes. Where the store has none (it says
    so, or `probe` finds out), one writer at a time is right and two are not noticed.

    See TreeStore for what every method promises.

    Args:
        objects: where the bytes live; closed with this.
        clock: decides when an attempt that shows no life is abandoned.
        durability: what a write acknowledged by `objects` survives.
        where: the store, as events name it.
        observe: hears when there turns out to be no protection against a second writer.
    """

    def __init__(
        self,
        objects: ObjectStore,
        *,
        clock: Clock,
        durability: Durability = "memory",
        where: str = "",
        observe: Observer = ignore,
    ) -> None:
        self._objects, self._clock, self._durability = objects, clock, durability
        self._where, self._observe = where, observe
        self._conditional: bool | None = None
        self._seen = Sightings(clock)

    async def read_manifest(self, tree: str) -> Manifest:
        place = self._place(tree)
        found = await place.manifest()
        if found is None:
            raise await _absent(place)
        return found.manifest

    async def read_header(self, tree: str) -> Header:
        place = self._place(tree)
        header = await place.header()
        if header is None:
            raise await _absent(place)
        return header

    async def find(self, tree: str) -> AsyncIterator[Sighting]:
        place, empty = self._place(tree), True
        async with aclosing(place.scan()) as found:
            async for path, info in found:
                empty = False
                components = path.split("/")
                if components[-1] == MANIFEST and not _NO_NAMES.intersection(components):
                    yield Sighting(info.key.removesuffix(MANIFEST).rstrip("/"), info.tag)
        if empty and tree:  # the root is there even when nothing is in it
            raise NotFoundError(f"nothing at {place.where}; check the spelling")

    async def glance(self, tree: str) -> Glance:
        place = self._place(tree)
        tag, names = "", set[str]()
        async for info in self._objects.scan_level(place.prefix):
            if info.key.endswith("/"):
                names.add(info.key[len(place.prefix) : -1])
            elif info.key == place.manifest_key:
                tag = info.tag
        return Glance(tag, frozenset(filter(of_tree, names - _NO_NAMES)))

    async def list_files(self, tree: str) -> list[NewFile]:
        place = self._place(tree)
        async with aclosing(_visible(place)) as found:
            files = [file async for file in found]
        if not files:
            raise NotFoundError(f"no files at {place.where}")
        return files

    @asynccontextmanager
    async def open(self, tree: str, manifest: Manifest | None) -> AsyncIterator[TreeReader]:
        del manifest  # files are found by name
        yield CommittedReader(self._place(tree))

    @asynccontextmanager
    async def begin(self, tree: str, intent: Intent) -> AsyncIterator[TreeWriter]:
        place = self._place(tree)
        place.check(intent.files)
        writer, keep = await self._enter(place, intent), False
        try:
            async with beside(writer.lease.keep_alive):
                await writer.announce(intent.files)
                yield writer
        except BaseException as exc:
            keep = intent.keep and is_interruption(exc)
            raise
        finally:
            if not writer.finished:
                await quietly(lambda: writer.leave(keep=keep))

    async def delete(
        self, tree: str, *, expect: str | None = None, uncommitted: bool = False
    ) -> Deleted:
        place = self._place(tree)
        if not uncommitted and await place.header() is None and await read_record(place) is None:
            raise await _absent(place)
        record = Record(kind="delete", attempt=new_attempt())
        async with _announced(place, record.attempt):
            lease = await self._take(place, record)
            async with beside(lease.keep_alive):  # who takes over would be deleted from, too
                return await _delete(place, lease, expect, uncommitted=uncommitted)

    async def confirm(self, tree: str) -> Durability:
        header = await self.read_header(tree)
        if await read_record(self._place(tree)) is not None:
            # Its attempt may have ended between the manifest and the last of the cleaning up.
            left = Intent(attempt=new_attempt(), expect=header.identity, writer=header.writer)
            with suppress(BusyError, ConflictError):  # somebody is at work: theirs to finish
                async with self.begin(tree, left):
                    pass
        return self._durability

    async def mark_root(self, tree: str, marker: bytes) -> bytes:
        key = self._place(tree).key(ROOT_MARKER)
        try:
            return bytes((await self._objects.get(key)).data)
        except NotFoundError:
            pass
        try:
            await self._objects.put(key, marker, condition=self._place(tree).condition(absent=True))
        except PreconditionError:  # somebody was faster, or our own answer got lost
            return bytes((await self._objects.get(key)).data)
        return marker

    async def probe(self, tree: str) -> TreeCapabilities:
        place = self._place(tree)
        held = await read_record(place)
        if held is not None and held.record.kind == "delete" and await place.header() is None:
            with suppress(BusyError, NotFoundError):  # somebody is finishing it, or has
                await self.delete(tree)
        examined = await self._objects.examine()
        await self._prove(place)
        notes = ["names that are not UTF-8 are refused", *examined.notes]
        if not place.conditional:
            notes.append(_SINGLE_WRITER)
        return TreeCapabilities(
            durability=self._durability,
            exclusive=place.conditional,
            raw_names=False,
            clock_offset_s=examined.clock_offset_s,
            notes=tuple(notes),
        )

    async def aclose(self) -> None:
        await self._objects.aclose()

    # -- helpers

    def _place(self, tree: str) -> Place:
        conditional = self._declared and self._conditional is not False
        return Place(self._objects, tree, conditional=conditional, store=self._where)

    @property
    def _declared(self) -> bool:
        return self._objects.capabilities.create_only and self._objects.capabilities.if_match

    def _learn(self, works: bool) -> None:
        if not works and self._conditional is None:
            self._observe(Reduced(where=self._where or "the store", reason=_SINGLE_WRITER))
        self._conditional = works

    async def _take(self, place: Place, record: Record) -> Lease:
        """Take the record; whoever does so first finds out whether conditions work."""
        if self._objects.capabilities.assured or not self._declared:
            self._learn(self._declared)
        elif self._conditional is None and await read_record(place) is not None:
            await self._prove(place)  # taking over relies on them
        if self._conditional is not None:
            place.conditional = self._conditional
            return await Lease.take(place, record, self._clock, self._seen)
        lease, works = await self._try(place, record)
        self._learn(works)
        return lease

    async def _try(self, place: Place, record: Record) -> tuple[Lease, bool]:
        """Take the record and find out whether conditions work; the place goes by it from now."""
        try:
            lease = await Lease.take(place, record, self._clock, self._seen)
        except PermanentError as exc:
            if type(exc) is not PermanentError:
                raise
            place.conditional = False  # the store does not seem to know the condition at all
            lease = await Lease.take(place, record, self._clock, self._seen)
            place.conditional = True  # it may have been a proxy that failed once
        works = place.conditional = await lease.conditions_work()
        return lease, works

    async def _prove(self, place: Place) -> None:
        """Find out whether conditions work, beside the tree, where nobody else writes."""
        attempt = new_attempt()
        aside = Place(self._objects, place.key(holder_name("", "tmp", attempt)), conditional=True)
        record = Record(kind="write", attempt=attempt)
        async with _announced(aside, attempt):
            lease, place.conditional = await self._try(aside, record)
            await lease.drop()
        self._learn(place.conditional)

    async def _enter(self, place: Place, intent: Intent) -> CommittedWriter:
        record = Record(kind="write", attempt=intent.attempt, writer=intent.writer)
        async with _announced(place, intent.attempt):
            lease = await self._take(place, record)
            old = await place.manifest()
            await _recover(place, lease, old)
            _check_expected(place, lease, old, intent.expect)
            return CommittedWriter(
                place,
                lease,
                intent,
                old=old,
                fresh=old is None and lease.inherited is None and await place.is_empty(),
                durability=self._durability,
            )


@asynccontextmanager
async def _announced(place: Place, attempt: str) -> AsyncIterator[None]:
    """Give the record up when the block fails, written or not."""
    try:
        yield
    except BaseException:
        await quietly(lambda: let_go(place, attempt))
        raise


async def _recover(place: Place, lease: Lease, old: Found | None) -> None:
    """Settle what the attempt that was taken over leaves open.

    A delete whose manifest is still there has deleted nothing, and is forgotten; else it is
    finished. What a committed attempt overwrote is as its manifest says.
    """
    left = lease.inherited
    if left is None:
        return
    if left.kind == "delete":
        if old is None:
            await _remove(place, left.ours)
        lease.inherited = None
        await lease.update(paths=(), listed=(), overwritten=())
    elif old is not None and old.manifest.header.attempt == left.attempt:
        await lease.update(overwritten=())


def _check_expected(place: Place, lease: Lease, old: Found | None, expect: str | None) -> None:
    """ConflictError unless the commit that is there is the one expected.

    The expected one may have been deleted by an attempt to replace it that crashed.
    """
    there = old.manifest.identity if old else None
    left = lease.inherited
    was_replacing = old is None and left is not None and left.replaces == expect
    if there != expect and not was_replacing:
        raise conflict(place, old)


# ---------------------------------------------------------------- looking


async def _visible(place: Place) -> AsyncGenerator[NewFile, None]:
    """Every file that is there, but for those of an attempt that is not committed.

    An empty object whose name ends in a slash is no file: consoles make such ones for folders.
    """
    held = await read_record(place)
    hidden = held.record.ours if held is not None else frozenset()
    if hidden:
        found = await place.manifest()
        hidden -= found.manifest.files.keys() if found is not None else frozenset()
    async with aclosing(place.scan()) as objects:
        async for path, info in objects:
            marker = info.key.endswith("/") and not info.size_bytes
            if of_tree(path) and path not in hidden and not marker:
                mtime_ns = int(info.modified_at * 1e9)
                yield NewFile(path, info.size_bytes, mtime_ns=mtime_ns)


async def _absent(place: Place) -> AsyncSyncError:
    """The error for a tree without a manifest."""
    async with aclosing(_visible(place)) as found:
        async for file in found:
            del file
            return NotCommittedError(
                f"{place.where} is not a commit: there are files, but no manifest"
            )
    return NotFoundError(f"nothing at {place.where}, or it is being replaced; check the spelling")


# ---------------------------------------------------------------- deleting


async def _delete(place: Place, lease: Lease, expect: str | None, *, uncommitted: bool) -> Deleted:
    old = await _readable(place, uncommitted=uncommitted)
    swept = await _sweep(place, lease, old)
    if expect is not None and (old is None or old.manifest.identity != expect):
        raise conflict(place, old)
    if old is None and not uncommitted:
        if not swept:
            raise await _absent(place)
        return await _finished(place, lease, swept)
    paths = await _everything(place) if old is None else await _listed(place, old.manifest)
    if not paths and not swept and old is None:
        raise await _absent(place)
    await lease.update(replaces=old.manifest.identity if old else None, listed=paths)
    if old is not None:
        await _delete_manifest(place, old)
    await _remove(place, paths)
    await place.abort_uploads(paths.__contains__)
    return await _finished(place, lease, swept | paths)


async def _readable(place: Place, *, uncommitted: bool) -> Found | None:
    """The commit; None for one whose manifest is damaged, when its files are to go all the same."""
    try:
        return await place.manifest()
    except IntegrityError:
        if not uncommitted:
            raise
        return None


async def _sweep(place: Place, lease: Lease, old: Found | None) -> frozenset[str]:
    """Delete what an abandoned attempt left; its paths."""
    left = lease.inherited
    if left is None or (left.kind == "delete" and old is not None):
        return frozenset()
    ours = left.ours - (old.manifest.files.keys() if old else frozenset())
    await place.abort_uploads(left.ours.__contains__)
    await _remove(place, ours)
    await lease.update(paths=(), listed=())
    return ours


async def _delete_manifest(place: Place, old: Found) -> None:
    tag = old.tag if place.conditional else None
    try:
        await place.objects.delete(place.manifest_key, tag=tag)
    except PreconditionError:
        raise conflict(place, await place.manifest()) from None


async def _remove(place: Place, paths: Iterable[str]) -> None:
    """Delete objects: what says that a tree is complete before the tree, ours and frameworks'."""
    paths = frozenset(paths)
    marks = {path for path in paths if path.rpartition("/")[2] in (MANIFEST, ATTEMPT)}
    commit_files = {path for path in paths - marks if is_commit_file(path)}
    await place.delete(marks)
    await place.delete(commit_files)
    await place.delete(paths - marks - commit_files)


async def _finished(place: Place, lease: Lease, removed: frozenset[str]) -> Deleted:
    # A console's marker of the tree's own folder has no path: its key says what is meant.
    kept = [path or place.prefix async for path, _ in place.scan() if of_tree(path)]
    await lease.drop()
    return Deleted(sum(map(of_tree, removed)), tuple(kept))


async def _listed(place: Place, manifest: Manifest) -> frozenset[str]:
    """What a commit consists of, with the commits inside it. IntegrityError if one is damaged.

    What a probe left that was killed goes with it.
    """
    inside = [path async for path, _ in place.scan() if "/" in path]
    paths = {*manifest.files, *filter(_is_of_probe, inside)}
    for path in [path for path in inside if path.rpartition("/")[2] == MANIFEST]:
        below = path.removesuffix(MANIFEST)
        nested = Place(place.objects, place.key(below).rstrip("/"), conditional=place.conditional)
        found = await nested.manifest()
        if found is not None:
            paths |= {path, *(below + name for name in found.manifest.files)}
    return frozenset(paths)


def _is_of_probe(path: str) -> bool:
    holder, _, name = path.rpartition("/")
    return name == ATTEMPT and is_ours(holder.rpartition("/")[2])


def _is_mark(path: str) -> bool:
    return path.rpartition("/")[2] in (MANIFEST, ATTEMPT)


async def _everything(place: Place) -> frozenset[str]:
    """Every file that is there, and the marks of commits and attempts inside."""
    return frozenset(
        [
            path
            async for path, _ in place.scan()
            if of_tree(path) or path == MANIFEST or ("/" in path and _is_mark(path))
        ]
    )
