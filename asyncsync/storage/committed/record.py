"""The attempt record: who writes or deletes a tree, and which of its objects are theirs.

It lies beside the manifest while an attempt is in progress. Whoever finds one left behind learns
from it which objects may be overwritten or deleted; everything else there is somebody else's.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from math import inf
from typing import Literal, NamedTuple

import anyio
import msgspec

from ...clock import Clock
from ...errors import (
    BusyError,
    ConflictError,
    FormatError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    TransientError,
    quote,
)
from ...manifest import MAX_MANIFEST_BYTES
from ...names import ATTEMPT
from ...units import MIB
from ..groups import group_attempt
from ..objects import Data, ObjectInfo
from .place import Place
from .sightings import TTL_S, Sightings

__all__ = [
    "TTL_S",
    "Lease",
    "Record",
    "Sightings",
    "beat",
    "hand_back",
    "let_go",
    "read_record",
    "superseded",
    "theirs",
]

_VERSION = 1
_RANGE_BYTES = 16 * MIB  # of a record, read at once
_READS = 5
_TRIALS = 2  # of conditions that a store does not seem to know: any proxy may fail once


class Record(msgspec.Struct, frozen=True, kw_only=True, rename={"version": "asyncsync_attempt"}):
    """What an attempt says of itself. Every rewrite has another `beat`, so no two are equal.

    Attributes:
        kind: what is going on.
        attempt, writer: as in the intent; writer is empty for a delete.
        replaces: identity of the commit whose manifest it is about to delete or replace.
        paths: objects that asyncsync wrote or is about to create.
        listed: files of the commit that it is about to delete or replace, added before the first
            of them is touched; for a delete, whatever it was told to delete.
        overwritten: files of the replaced commit that may hold other bytes than it says.
        released: the attempt has ended without finishing; anybody may take over at once.
        group, size: the id of the writers whose parts are gathered here, and how many they are;
            while they write, the attempt is that of their commit, and the record nobody's.
        fenced: attempts of groups that have been superseded, by this one or by one before.
    """

    version: int = _VERSION
    kind: Literal["write", "delete"]
    attempt: str
    writer: str = ""
    replaces: str | None = None
    paths: frozenset[str] = frozenset()
    listed: frozenset[str] = frozenset()
    overwritten: frozenset[str] = frozenset()
    released: bool = False
    group: str | None = None
    size: int = 0
    fenced: frozenset[str] = frozenset()
    beat: int = 0

    @property
    def commits_as(self) -> str:
        """The attempt that its commit bears."""
        return self.attempt if self.group is None else group_attempt(self.group)

    @property
    def gathers(self) -> bool:
        """Whether it is that of a group whose ranks write, each under a record of its own."""
        return self.group is not None and self.attempt == self.commits_as

    @property
    def ours(self) -> frozenset[str]:
        """What the attempt, or whoever takes over, may overwrite or delete."""
        return self.paths | self.listed


class _Held(NamedTuple):
    record: Record
    tag: str
    modified_at: float = 0.0

    def is_abandoned(self, now: float, older_than_s: float) -> bool:
        """Whether it is of an attempt that may be undone: long without a sign of life.

        `now` is by the store's own clock, on which an attempt that is alive shows itself every
        20 s. What has begun to replace a commit is not undone.
        """
        least_s = 0.0 if self.record.released else 2 * TTL_S
        old = bool(self.modified_at) and self.modified_at <= now - max(older_than_s, least_s)
        begun = self.record.replaces is not None or bool(self.record.overwritten)
        return self.record.kind == "write" and old and not begun


_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Record).decode


async def read_record(place: Place) -> _Held | None:
    """The record of a tree and its tag; None when nobody is at work.

    Raises:
        FormatError: a release that is not this one wrote it, or it is damaged.
        BusyError: somebody rewrites it faster than it can be read.
    """
    for _ in range(_READS):
        try:
            info, data = await place.objects.get(place.record_key, 0, _RANGE_BYTES)
            data = b"".join((data, *await _rest(place, info)))
            place.marks = info.marked
        except NotFoundError:
            return None
        except PreconditionError:  # rewritten between two ranges
            continue
        return _Held(_read(data, place), info.tag, info.modified_at)
    raise BusyError(
        f"{place.where}: its {ATTEMPT} changes faster than it can be read; try again",
        side="target",
    )


async def _rest(place: Place, info: ObjectInfo) -> list[Data]:
    """The record behind its first range; no store gives a large object at once."""
    if info.size_bytes > MAX_MANIFEST_BYTES:  # it lists the same paths and says less of each
        raise _unreadable(place)
    return [
        (await place.objects.get(info.key, start, start + _RANGE_BYTES, tag=info.tag)).data
        for start in range(_RANGE_BYTES, info.size_bytes, _RANGE_BYTES)
    ]


def _read(data: Data, place: Place) -> Record:
    try:
        record = _decode(data)
    except msgspec.MsgspecError as exc:
        raise _unreadable(place) from exc
    if record.version != _VERSION:
        raise _unreadable(place)
    return record


def _unreadable(place: Place) -> FormatError:
    return FormatError(
        f"{place.where}: its {ATTEMPT} is damaged or of another release; finish that sync with the "
        "release that began it, or look at the object and delete it",
        side="target",
    )


class Lease:
    """The record of a tree while it is ours.

    Attributes:
        record: as it was last written.
        inherited: the record that was taken over, if one was left behind.
    """

    def __init__(self, place: Place, clock: Clock, held: _Held, inherited: Record | None) -> None:
        self._place, self._clock = place, clock
        self.record, self._tag, _ = held
        self.inherited = inherited
        self._turn = anyio.Lock()
        self._dropped = False

    @classmethod
    async def take(cls, place: Place, wanted: Record, clock: Clock, seen: Sightings) -> Lease:
        """Announce an attempt; what an abandoned one recorded as ours stays recorded.

        Raises:
            BusyError: another attempt is at work; when it will count as abandoned.
        """
        there = await read_record(place)
        if there is None:
            tag = await _write(place, wanted, None)
            return cls(place, clock, _Held(wanted, tag), None)
        _check_free(place, there, wanted, seen)
        seen.forget(place.name)
        left = _change(there.record, paths=await _still_theirs(place, there))
        merged = _change(
            wanted,
            paths=wanted.paths | left.paths,
            listed=wanted.listed | left.listed,
            overwritten=wanted.overwritten | there.record.overwritten,
            fenced=wanted.fenced | _fenced(left, wanted),
            beat=there.record.beat + 1,
        )
        tag = await _write(place, merged, there.tag)
        return cls(place, clock, _Held(merged, tag), left)

    async def update(
        self,
        *,
        replaces: str | None = None,
        paths: Iterable[str] | None = None,
        listed: Iterable[str] | None = None,
        overwritten: Iterable[str] | None = None,
        released: bool = False,
    ) -> None:
        """Rewrite the record; None leaves a field as it is.

        This is the fence as well: it fails when somebody else has taken over.

        Raises:
            BusyError: the record is another's by now; nothing was written.
        """
        async with self._turn:
            if self._dropped:
                return
            old = self.record
            record = _change(
                old,
                replaces=replaces or old.replaces,
                paths=old.paths if paths is None else frozenset(paths),
                listed=old.listed if listed is None else frozenset(listed),
                overwritten=old.overwritten if overwritten is None else frozenset(overwritten),
                released=released,
                beat=old.beat + 1,
            )
            self._tag = await _write(self._place, record, self._tag)
            self.record = record

    async def conditions_work(self) -> bool:
        """Whether the store keeps conditions: some take them and look at nothing.

        Tried on the record itself, so that nothing else is left behind by a crash.
        """
        for _ in range(_TRIALS):
            try:
                return await self._keeps_conditions()
            except PermanentError as exc:
                if type(exc) is not PermanentError:
                    raise
        self._place.conditional = False  # it does not know them at all
        return False

    async def _keeps_conditions(self) -> bool:
        if await self._is_accepted(None):
            return False
        stale = self._tag
        try:
            await self.update()
        except PreconditionError:  # refused although it is the right one
            return False
        return not await self._is_accepted(stale)

    async def _is_accepted(self, tag: str | None) -> bool:
        """Write the record under a condition that does not hold."""
        record = _change(self.record, beat=self.record.beat + 1)
        try:
            self._tag = await _put(self._place, record, tag)
        except PreconditionError:
            return False
        self.record = record
        return True

    async def keep_alive(self) -> None:
        """Show life from time to time: somebody may be watching. Never returns.

        Raises:
            BusyError: the record is another's by now.
        """
        while True:
            await self._clock.sleep(TTL_S / 3)
            try:
                await self.update()
            except BusyError:
                raise
            except TransientError:
                continue  # whether it is still ours is decided where that matters

    async def check(self) -> None:
        """BusyError if somebody else has taken over."""
        with suppress(NotFoundError):
            info = await self._place.objects.head(self._place.record_key)
            self._place.marks = info.marked
            if info.tag == self._tag:
                return
        there = await read_record(self._place)
        if there is None or there.record.attempt != self.record.attempt:
            raise _taken_over(self._place)

    async def drop(self) -> None:
        """Remove the record: the attempt is finished. Nothing is written after that.

        Raises:
            BusyError: the record is another's by now; it stays.
        """
        async with self._turn:
            self._dropped = True
            try:
                await _delete(self._place, self._tag)
            except PreconditionError:
                # Somebody has taken over; or it is ours, by a write that was given up for lost.
                there = await read_record(self._place)
                if there is None:
                    return
                if there.record.attempt != self.record.attempt:
                    raise _taken_over(self._place) from None
                await _delete(self._place, there.tag)

    async def hand_over(self) -> None:
        """Leave the record to the ranks of the group. Nothing is written after that."""
        async with self._turn:
            self._dropped = True
            self._tag = await _write(self._place, _gathering(self.record), self._tag)


async def _still_theirs(place: Place, there: _Held) -> frozenset[str]:
    """The paths of a record that was left behind, but for those at which others wrote."""
    paths = there.record.paths - there.record.listed
    return there.record.paths & there.record.listed | await theirs(place, paths, there.modified_at)


async def theirs(place: Place, paths: frozenset[str], modified_at: float) -> frozenset[str]:
    """Those of the `paths` that an attempt had claimed at which nobody else wrote since.

    An attempt shows life as long as it writes: what the store dates past the last sign of it is
    somebody else's. Both dates are the store's; where it has none, all count as theirs. So is what
    does not bear our mark, where the store keeps it.
    """
    if not paths:
        return paths
    last = modified_at + TTL_S if modified_at else inf
    found = {path: info async for path, info in place.scan() if path in paths}
    later = {path for path, info in found.items() if info.modified_at > last}
    return paths - later - await place.unmarked(found.keys() - later)


def _fenced(left: Record, wanted: Record) -> frozenset[str]:
    if left.group is None or left.group == wanted.group:
        return left.fenced
    return left.fenced | {left.commits_as}


def _gathering(record: Record) -> Record:
    return _change(
        record, attempt=record.commits_as, writer="", released=False, beat=record.beat + 1
    )


def _check_free(place: Place, there: _Held, wanted: Record, seen: Sightings) -> None:
    record = there.record
    if wanted.group is not None and wanted.commits_as in record.fenced:
        raise superseded(place, wanted.group, record)
    if record.attempt == wanted.attempt or record.released:
        return
    if wanted.group is not None and record.gathers:
        return  # all of ours have written, or we are newer
    if record.writer and record.writer == wanted.writer:
        return  # one writer runs one sync of a target at a time: this is its own crash
    left_s = seen.left_s(place.name, there.tag)
    if left_s > 0:
        doing = "deleting" if record.kind == "delete" else "writing"
        raise BusyError(
            f"another sync is {doing} {place.where}; if it has died, try again in {left_s:.0f} s",
            side="target",
            retry_after_s=left_s,
        )


def _change(record: Record, **fields: object) -> Record:
    return msgspec.structs.replace(record, **fields)


async def _write(place: Place, record: Record, tag: str | None) -> str:
    """Put the record over the one with `tag` (None: where none is) and return its tag."""
    try:
        return await _put(place, record, tag)
    except (PreconditionError, TransientError) as exc:
        there = await read_record(place)
        if there is not None and there.record == record:
            return there.tag  # done: only the answer was lost
        if isinstance(exc, TransientError):
            raise
        if there is None or there.record.attempt != record.attempt:
            raise _taken_over(place) from exc
    # An earlier write of ours, given up for lost, had arrived after all.
    return await _put(place, record, there.tag)


async def _put(place: Place, record: Record, tag: str | None) -> str:
    condition = place.condition(absent=tag is None, tag=tag)
    data = _encode(record, order="sorted")
    return (await place.objects.put(place.record_key, data, condition=condition)).tag


def superseded(place: Place, group: str, record: Record) -> ConflictError:
    """The error for a group whose place another attempt has taken."""
    by = "another sync" if record.group is None else f"group {quote(record.group)}"
    what = f"{place.where}: group {quote(group)} has been superseded by {by}"
    return ConflictError(f"{what}; a trainer that is restarted takes another id", winner="")


def _taken_over(place: Place) -> BusyError:
    return BusyError(f"another sync has begun to write {place.where}; try again", side="target")


async def let_go(place: Place, attempt: str) -> None:
    """Give up a record that was perhaps written, when it is not known whether it was."""
    there = await read_record(place)
    if there is None or there.record.attempt != attempt:
        return
    if there.record.ours or there.record.overwritten or there.record.fenced:
        free = _change(there.record, released=True, beat=there.record.beat + 1)
        await _write(place, free, there.tag)
    else:
        await _delete(place, there.tag)


async def hand_back(place: Place, attempt: str) -> None:
    """Leave the record to the ranks of its group, if `attempt` has it."""
    there = await read_record(place)
    if there is not None and there.record.attempt == attempt:
        await _write(place, _gathering(there.record), there.tag)


async def beat(place: Place, held: _Held) -> None:
    """Show life for whoever the record is of; no effect if somebody else has just done so."""
    with suppress(PreconditionError):
        await _put(place, _change(held.record, beat=held.record.beat + 1), held.tag)


async def _delete(place: Place, tag: str) -> None:
    await place.objects.delete(place.record_key, tag=tag if place.conditional else None)
