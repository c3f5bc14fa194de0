"""Committing what the ranks of a group have left, as an attempt that goes on where they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from ...concurrency import each
from ...errors import IntegrityError, NotFoundError
from ...manifest import FileEntry, Manifest
from ...names import part_name
from ..groups import Group, merge
from ..trees import Durability, Intent, NewFile, Stored
from .arriving import Arriving
from .entering import check_expected
from .parts import Part, claimed, read_part, sweep
from .place import Place
from .record import Lease
from .writer import CommittedWriter

__all__ = ["complete"]


async def complete(
    place: Place, lease: Lease, intent: Intent, group: Group, durability: Durability
) -> tuple[int, ...]:
    """Make the parts one tree. Again, also after a crash: goes on.

    Returns:
        The ranks that have to write again, because what they left is not there any more; none:
        the commit is there, and nothing else is left.

    Raises:
        RefusedError: two parts do not fit together.
        ConflictError: another commit is there than the one expected.
    """
    old = await place.manifest()
    if old is not None and old.manifest.header.attempt == group.attempt:
        paths, _ = await claimed(place)
        await place.abort_uploads(paths.__contains__)
        await sweep(place)
        await lease.drop()
        return ()
    check_expected(place, lease, old, intent.expect)
    parts = await _parts(place, group)
    if missing := tuple(rank for rank in range(group.size) if rank not in parts):
        return missing
    whole = merge({rank: part.manifest for rank, part in parts.items()}, place.where)
    paths, _ = await claimed(place, of=group.attempt)
    writer = _WholeWriter(
        place,
        lease,
        intent,
        old=old,
        fresh=False,
        durability=durability,
        also=paths.union(whole.files),
    )
    lost = await writer.take(parts, whole)
    if not lost:
        try:
            await writer.commit(whole)
        except IntegrityError as exc:
            if not exc.paths:
                raise
            lost = exc.paths
    return await _take_back(place, lease, group, parts, lost)


async def _parts(place: Place, group: Group) -> dict[int, Part]:
    """The parts that are there."""
    parts: dict[int, Part] = {}

    async def read(rank: int) -> None:
        with suppress(NotFoundError):  # taken back meanwhile
            parts[rank] = await read_part(place, group.attempt, rank)

    await each(range(group.size), read)
    return parts


async def _take_back(
    place: Place, lease: Lease, group: Group, parts: Mapping[int, Part], lost: Iterable[str]
) -> tuple[int, ...]:
    """Delete the parts that list what is not there any more; their ranks."""
    again = sorted(rank for rank, part in parts.items() if not part.paths.isdisjoint(lost))
    if again:  # what is there of it stays ours
        paths = frozenset[str]().union(*(parts[rank].paths for rank in again))
        await lease.update(paths=lease.record.paths | paths)
    for rank in again:
        await place.objects.delete(place.key(part_name(group.attempt, rank)))
    return tuple(again)


class _WholeWriter(CommittedWriter):
    async def take(self, parts: Mapping[int, Part], whole: Manifest) -> Iterable[str]:
        """Count as written what the ranks have written; what is not there any more."""
        asked = [(_file(entry), _stored(parts, entry.path)) for entry in whole.files.values()]
        held = await self.recall(asked)
        lost: list[str] = []
        for (file, stored), numbers in zip(asked, held, strict=True):
            if not file.size_bytes and not numbers:
                # One that waits has no upload: there is nothing to put into it.
                self._files.setdefault(file.path, Arriving(file)).sizes[1] = 0
            elif not stored or len(numbers) < len(stored):
                lost.append(file.path)
        return lost

    async def _abort_uploads(self) -> None:
        """The last before the record goes: what the ranks have left goes with it."""
        await super()._abort_uploads()
        await sweep(self._place)


def _file(entry: FileEntry) -> NewFile:
    return NewFile(entry.path, entry.size_bytes, entry.mode, entry.mtime_ns)


def _stored(parts: Mapping[int, Part], path: str) -> dict[int, Stored]:
    """What the lowest rank that has written a file wrote of it; the bytes are those of all."""
    for _, part in sorted(parts.items()):
        tokens = part.tokens.get(path, ())
        if tokens and all(tokens):
            return {n: Stored("", token) for n, token in enumerate(tokens)}
    return {}
