"""CommittedTrees: the TreeStore over any ObjectStore."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from ...clock import Clock
from ...concurrency import beside, quietly
from ...errors import (
    BusyError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    is_interruption,
)
from ...events import Observer, Reduced, ignore
from ...manifest import Header, Manifest
from ...names import (
    MANIFEST,
    ROOT_MARKER,
    holder_name,
    new_attempt,
)
from ..groups import Group
from ..objects import ObjectStore
from ..trees import (
    Deleted,
    Durability,
    Gathering,
    Glance,
    Intent,
    NewFile,
    Sighting,
    TreeCapabilities,
    TreeReader,
    TreeWriter,
)
from .deleting import delete
from .entering import announced, check_expected, recover
from .groups import Groups
from .looking import absent, recorded, visible
from .parts import absorb
from .place import Place, of_tree
from .reader import CommittedReader
from .record import Lease, Record, Sightings, read_record
from .writer import CommittedWriter

__all__ = ["CommittedTrees"]

_SINGLE_WRITER = (
    "conditional writes do not work: two writers of one tree are not kept apart, let only one "
    "write at a time"
)

_DATE_S = 1.0  # what a store says of time it says in whole seconds
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
        self._groups = Groups(self._take, clock, self._seen, durability)

    async def read_manifest(self, tree: str) -> Manifest:
        place = self._place(tree)
        found = await place.manifest()
        if found is None:
            raise await absent(place)
        return found.manifest

    async def read_header(self, tree: str) -> Header:
        place = self._place(tree)
        header = await place.header()
        if header is None:
            raise await absent(place)
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
        async with aclosing(visible(place)) as found:
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
        keep = False
        if intent.group is None:
            writer = await self._enter(place, intent)
        else:
            writer = await self._groups.enter(place, intent, intent.group)
        try:
            async with beside(writer.keep_alive):
                await writer.announce(intent.files)
                yield writer
        except BaseException as exc:
            keep = intent.keep and is_interruption(exc)
            raise
        finally:
            if not writer.finished:
                await quietly(lambda: writer.leave(keep=keep))

    async def read_part(self, tree: str, group: Group) -> Manifest:
        return await self._groups.read_part(self._place(tree), group)

    async def gather(self, tree: str, intent: Intent) -> Gathering:
        assert intent.group is not None, "a group gathers"
        return await self._groups.gather(self._place(tree), intent, intent.group)

    async def delete(
        self, tree: str, *, expect: str | None = None, uncommitted: bool = False
    ) -> Deleted:
        place = self._place(tree)
        if not uncommitted and await place.header() is None and await read_record(place) is None:
            raise await absent(place)
        record = Record(kind="delete", attempt=new_attempt())
        async with announced(place, record.attempt):
            lease = await self._take(place, record)
            async with beside(lease.keep_alive):  # who takes over would be deleted from, too
                return await delete(place, lease, expect, uncommitted=uncommitted)

    async def clean(self, tree: str, *, older_than_s: float) -> list[str]:
        offset_s = (await self._objects.examine()).clock_offset_s or 0.0
        now = self._clock.now() + offset_s + _DATE_S
        cleaned: list[str] = []
        for name in await recorded(self._place(tree)):
            place = self._place(name)
            # Somebody may be at work after all, or it is damaged: that is for people to look at.
            with suppress(BusyError, ConflictError, IntegrityError):
                left = await read_record(place)
                if left is None or not left.is_abandoned(now, older_than_s):
                    continue
                self._seen.expire(name, left.tag)
                header = await place.header()
                expect = header.identity if header else None
                async with self.begin(name, Intent(attempt=new_attempt(), expect=expect)):
                    pass
                cleaned.append(name)
        return cleaned

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
        """Take the record, and what was left by superseded groups."""
        lease = await self._taken(place, record)
        if lease.record.fenced:
            await absorb(place, lease)
        return lease

    async def _taken(self, place: Place, record: Record) -> Lease:
        """Take the record; whoever does so first finds out whether conditions work."""
        if self._is_known or await read_record(place) is not None:
            await self._know(place)  # taking over relies on them
        if self._conditional is not None:
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

    @property
    def _is_known(self) -> bool:
        known = self._objects.capabilities.assured or not self._declared
        return known or self._conditional is not None

    async def _know(self, place: Place) -> None:
        """Find out whether conditions work, unless it is known."""
        if self._objects.capabilities.assured or not self._declared:
            self._learn(self._declared)
        elif self._conditional is None:
            await self._prove(place)
        place.conditional = bool(self._conditional)

    async def _prove(self, place: Place) -> None:
        """Find out whether conditions work, beside the tree, where nobody else writes."""
        attempt = new_attempt()
        aside = Place(self._objects, place.key(holder_name("", "tmp", attempt)), conditional=True)
        record = Record(kind="write", attempt=attempt)
        async with announced(aside, attempt):
            lease, place.conditional = await self._try(aside, record)
            await lease.drop()
        self._learn(place.conditional)

    async def _enter(self, place: Place, intent: Intent) -> CommittedWriter:
        record = Record(kind="write", attempt=intent.attempt, writer=intent.writer)
        async with announced(place, intent.attempt):
            lease = await self._take(place, record)
            old = await place.manifest()
            await recover(place, lease, old)
            check_expected(place, lease, old, intent.expect)
            return CommittedWriter(
                place,
                lease,
                intent,
                old=old,
                fresh=old is None and lease.inherited is None and await place.is_empty(),
                durability=self._durability,
            )
