"""Many writers of one tree in an object store: who may begin, and who completes.

The order of the steps is described in docs/formats/groups.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ...clock import Clock
from ...concurrency import beside, quietly
from ...errors import BusyError, ConflictError, NotFoundError, RefusedError
from ...manifest import Manifest
from ...names import new_attempt
from ..groups import Group
from ..trees import Durability, Gathering, Intent
from .deleting import remove
from .entering import announced, check_expected, recover
from .part import PartWriter, tend
from .parts import PartPlace, left_by, read_part
from .place import Found, Place, conflict
from .record import Lease, Record, Sightings, hand_back, read_record
from .whole import complete

__all__ = ["Groups"]


class Groups:
    """What a store does for groups.

    Args:
        take: takes the record of a tree; the place knows then whether conditions work.
    """

    def __init__(
        self,
        take: Callable[[Place, Record], Awaitable[Lease]],
        clock: Clock,
        seen: Sightings,
        durability: Durability,
    ) -> None:
        self._take, self._clock = take, clock
        self._seen, self._durability = seen, durability

    async def read_part(self, place: Place, group: Group) -> Manifest:
        return (await read_part(place, group.attempt, group.rank)).manifest

    # -- writing a part

    async def enter(self, place: Place, intent: Intent, group: Group) -> PartWriter:
        """Begin to write a part. Errors as `begin`."""
        if not place.conditional:
            raise _refused(place)
        await self._join(place, intent, group)
        mine = PartPlace(place, group.attempt, group.rank)
        record = Record(kind="write", attempt=intent.attempt, writer=group.writer)
        async with announced(mine, intent.attempt):
            # Conditions that are not known to work are tried here, where nobody else writes.
            lease = await self._take(mine, record)
            if not mine.conditional:
                await quietly(lambda: self._abandon(place, group))
                raise _refused(place)
            joined = await self._joined(place, group)
            old = await self._expected(place, intent)
            await self._check_first(place, group)
            return PartWriter(
                place,
                lease,
                intent,
                old=old,
                also=joined.paths.intersection(file.path for file in intent.files),
                durability=self._durability,
                clock=self._clock,
                seen=self._seen,
            )

    async def _join(self, place: Place, intent: Intent, group: Group) -> None:
        """See to it that the record of the tree is the group's, and that nothing else is there."""
        there = await read_record(place)
        if there is not None and there.record.group == group.id:
            if there.record.size != group.size:
                raise RefusedError(
                    f"{place.where}: {group.what} has {there.record.size} ranks there, not "
                    f"{group.size}; all ranks of one id name the same size",
                    side="target",
                )
            if there.record.gathers:
                return
        if there is None:
            # All ranks would write the same: whoever is second finds what it wanted to write.
            await Lease.take(place, _record(group, group.attempt), self._clock, self._seen)
        else:
            await self._prepare(place, intent, group)

    async def _prepare(self, place: Place, intent: Intent, group: Group) -> None:
        """Take the place over from whatever is there, alone, and clear it."""
        attempt = new_attempt()
        async with announced(place, attempt):
            lease = await self._take(place, _record(group, attempt, group.writer))
            async with beside(lease.keep_alive):
                old = await place.manifest()
                await recover(place, lease, old)
                check_expected(place, lease, old, intent.expect)
                await _clear(place, lease, old)
                await lease.hand_over()

    async def _joined(self, place: Place, group: Group) -> Record:
        """The record of the tree, which must be the group's.

        Whoever supersedes a group looks for its ranks after it has written that record.
        """
        there = await read_record(place)
        if there is None or there.record.group != group.id or not there.record.gathers:
            raise BusyError(f"another sync has begun to write {place.where}; try again")
        return there.record

    async def _expected(self, place: Place, intent: Intent) -> Found | None:
        old = await place.manifest()
        there = old.manifest.identity if old else None
        if there != intent.expect:
            group = intent.group
            if group is not None and not await left_by(place, group):
                await quietly(lambda: self._abandon(place, group))
            raise conflict(place, old)
        return old

    async def _abandon(self, place: Place, group: Group) -> None:
        """Remove a record that was made in vain."""
        there = await read_record(place)
        if there is not None and there.record.gathers and there.record.group == group.id:
            await place.objects.delete(place.record_key, tag=there.tag)

    async def _check_first(self, place: Place, group: Group) -> None:
        try:
            part = await self.read_part(place, group)
        except NotFoundError:
            return
        raise ConflictError(
            f"{place.where}: rank {group.rank} of {group.what} has left its part already",
            winner=part.identity,
        )

    # -- gathering

    async def gather(self, place: Place, intent: Intent, group: Group) -> Gathering:
        ranks = await left_by(place, group)
        header = await place.header()
        committed = header is not None and header.attempt == group.attempt
        missing = () if committed else tuple(r for r in range(group.size) if r not in ranks)
        if missing:
            await tend(place, group, self._seen)
            return Gathering(missing=missing)
        if not committed:
            return await self._complete(place, intent, group)
        there = await read_record(place)
        if ranks or (there is not None and there.record.group == group.id):
            # Who completed has died since, or is about to tidy up.
            await self._complete(place, intent, group)
        return Gathering(durability=self._durability)

    async def _complete(self, place: Place, intent: Intent, group: Group) -> Gathering:
        attempt = new_attempt()
        try:
            lease = await self._take(place, _record(group, attempt, group.writer))
            async with beside(lease.keep_alive):
                missing = await complete(place, lease, intent, group, self._durability)
        except BusyError:  # somebody else is at it
            await quietly(lambda: hand_back(place, attempt))
            return Gathering()
        except BaseException:
            await quietly(lambda: hand_back(place, attempt))
            raise
        if missing:
            await hand_back(place, attempt)
            return Gathering(missing=missing)
        return Gathering(durability=self._durability)


def _refused(place: Place) -> RefusedError:
    return RefusedError(
        f"{place.where}: the store has no conditional writes, so it cannot keep the writers of a "
        "group apart; gather the parts on a disk or in another store",
        side="target",
    )


def _record(group: Group, attempt: str, writer: str = "") -> Record:
    return Record(kind="write", attempt=attempt, writer=writer, group=group.id, size=group.size)


async def _clear(place: Place, lease: Lease, old: Found | None) -> None:
    """Delete what was left here, but for what an interrupted completion of this group replaces."""
    left = lease.inherited
    if left is None:
        return
    own = left.group == lease.record.group
    ours = left.paths if own else left.ours
    kept = frozenset(old.manifest.files) if old else frozenset()
    begun = ours if own else ours | kept
    await place.abort_uploads(begun.__contains__)
    doomed = ours - kept
    await remove(place, doomed - await place.unmarked(doomed - left.listed))
    await lease.update(paths=(), listed=None if own else ())
