"""Which commit is restored, and from where, when a place or a copy turns out not to be good."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio

from ..concurrency import each
from ..errors import AsyncSyncError, IntegrityError, NotFoundError, TransferError
from ..events import FellBack, Observer, Skipped
from ..location import Location
from .base import Receipt
from .commits import Commit, candidates, damaged_error, refuse_damaged, to_restore
from .nearest import Copies, gather_copies

__all__ = ["Restore"]

_LOOK_S = 20.0  # a place that may have a copy is worth so much time, and no more


class Restore:
    """One restore.

    Args:
        remote: where commits are kept: it has to answer.
        copies: where some of them may be as well.
        find: the commits at a place.
        fetch: syncs one of them down. Both are told whether to be patient: a node that does not
            answer is waited for only if there is no other place to turn to.
    """

    def __init__(
        self,
        remote: Location,
        copies: Sequence[Location],
        find: Callable[[Location, bool], Awaitable[list[Commit]]],
        fetch: Callable[[Commit, bool], Awaitable[Receipt]],
        observe: Observer,
    ) -> None:
        self._remote, self._copies = remote, copies
        self._find, self._fetch, self._observe = find, fetch, observe

    async def run(self, step: int | None, *, fallback: bool) -> Receipt:
        """Fetch the newest commit, or that of `step`, from the nearest place that gives it.

        Raises:
            NotFoundError: there is none.
            IntegrityError: it is damaged everywhere; names the next older one unless `fallback`.
        """
        found = await self._look()
        firsts = to_restore([copies.first for copies in found], step, self._remote)
        wanted = [copies for copies in found if copies.first in firsts]
        for number, copies in enumerate(wanted):
            try:
                return await self._nearest(copies)
            except (IntegrityError, TransferError) as exc:
                if not _is_damage(exc):
                    raise
                commit, older = copies.first, firsts[number + 1 :]
                if not fallback or not older:
                    raise damaged_error(commit, str(exc), older) from exc
                used = older[0].location
                self._observe(FellBack(damaged=commit.location, used=used, reason=str(exc)))
        raise AssertionError("unreachable: the loop returns or raises")

    async def _nearest(self, copies: Copies) -> Receipt:
        for commit, next_ in zip(copies.commits, [*copies.commits[1:], None], strict=True):
            try:
                refuse_damaged(commit)
                return await self._fetch(commit, next_ is None)
            except AsyncSyncError as exc:
                if next_ is None:
                    raise
                used = next_.location
                self._observe(FellBack(damaged=commit.location, used=used, reason=str(exc)))
        raise AssertionError("unreachable: the loop returns or raises")

    async def _look(self) -> list[Copies]:
        seen = dict[Location, list[Commit]]()

        async def look(place: Location) -> None:
            try:
                if place == self._remote:
                    seen[place] = candidates(await self._find(place, True), place)
                    return
                with anyio.fail_after(_LOOK_S):
                    there = candidates(await self._find(place, False), place)
                    seen[place] = [commit for commit in there if commit.damaged is None]
            except NotFoundError:
                if not self._copies:
                    raise
            except (AsyncSyncError, TimeoutError) as exc:
                if place == self._remote:
                    raise
                why = str(exc) or f"it has not answered within {_LOOK_S:g} s"
                self._observe(Skipped(path=str(place), reason=f"no copy is read there: {why}"))

        places = [*self._copies, self._remote]
        await each(places, look)
        return gather_copies([seen.get(place, []) for place in places])


def _is_damage(error: AsyncSyncError) -> bool:
    """Whether it is the commit that is damaged, in one file or several, and nothing else."""
    if isinstance(error, TransferError):
        return all(map(_is_damage, error.failures))
    return isinstance(error, IntegrityError) and error.side != "target"
