"""Which names of a tree are ours to write: each is recorded before the first byte goes there."""

from __future__ import annotations

from collections.abc import Iterable

import anyio

from ...concurrency import each
from .place import Place
from .record import Lease

__all__ = ["Claims"]


class Claims:
    """The names of one attempt.

    Args:
        old: what the commit lists that is replaced.
        fresh: nothing was there when the attempt began, so no name needs to be looked up.
        also: names that others had recorded, for whom this attempt works.

    Attributes:
        leftover: names that an earlier attempt had recorded.
        foreign: names at which somebody else's files are.
    """

    def __init__(
        self,
        place: Place,
        lease: Lease,
        *,
        old: frozenset[str],
        fresh: bool,
        also: frozenset[str] = frozenset(),
    ) -> None:
        self._place, self._lease, self._old, self._fresh = place, lease, old, fresh
        self._also = also
        self.leftover = (lease.record.ours | also) - old
        self.foreign: set[str] = set()
        self._wanted: set[str] = set()
        self._claiming = anyio.Lock()

    def knows(self, path: str) -> bool:
        """Whether it is clear whose a name is."""
        return self.is_ours(path) or path in self.foreign

    def is_ours(self, path: str) -> bool:
        """Whether this or an earlier attempt may have written there."""
        record = self._lease.record
        known = path in self._old or path in record.paths or path in record.listed
        return known or path in self._also

    def is_certain(self, path: str) -> bool:
        """Whether a manifest listed it: then it is ours, whoever wrote there last."""
        return path in self._old or path in self._lease.record.listed

    async def others(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of the claimed `paths` at which somebody else wrote."""
        return await self._place.unmarked(path for path in paths if not self.is_certain(path))

    async def add(self, paths: Iterable[str]) -> None:
        """Claim names; those that somebody has already become `foreign`."""
        new = [path for path in paths if not self.knows(path)]
        if not new:
            return
        self._wanted.update(new)
        async with self._claiming:  # whoever gets here first claims for all who wait
            wanted, self._wanted = self._wanted, set()
            wanted.update(new)
            wanted.difference_update([path for path in wanted if self.knows(path)])
            if wanted:
                await self._add_all(wanted)

    async def _add_all(self, wanted: set[str]) -> None:
        foreign: set[str] = set()

        async def look(path: str) -> None:
            if await self._place.head(path) is not None:
                foreign.add(path)

        if not self._fresh:
            await each(wanted, look)
        wanted -= foreign
        if wanted:
            await self._lease.update(paths=self._lease.record.paths | wanted)
        self.foreign |= foreign

    async def give_up(self, path: str) -> None:
        """A name turned out to be somebody else's."""
        self.foreign.add(path)
        record = self._lease.record
        await self._lease.update(paths=record.paths - {path}, listed=record.listed - {path})
