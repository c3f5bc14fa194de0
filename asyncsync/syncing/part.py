"""One rank's upload of its part, and its wait for the others until all of it is committed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..clock import Clock
from ..errors import BusyError, ConflictError, DeadlineError, NotFoundError, RefusedError, quote
from ..manifest import Header, Kind, Manifest
from ..names import new_attempt
from ..storage import Durability, Intent, TreeStore
from ..transfer import Scan
from .base import Receipt
from .decisions import may_replace
from .found import Found
from .requests import Request
from .tools import Tools
from .upload import Upload

__all__ = ["PartUpload", "Patience"]

_FIRST_S, _FACTOR, _CAP_S = 0.25, 1.5, 15.0
_SHOWN = 10


class Patience:
    """How long a rank waits for the others, and for whom; without a group for nobody.

    Attributes:
        missing: the ranks that had left no part when it last looked.
    """

    def __init__(self, request: Request, clock: Clock) -> None:
        self._group, self._where, self._clock = request.group, str(request.remote), clock
        self._until = clock.monotonic() + (self._group.deadline_s if self._group else 0.0)
        self._period_s = _FIRST_S
        self.missing: tuple[int, ...] = ()

    async def pause(self) -> None:
        """Wait a little, longer each time. DeadlineError when the time is over."""
        left_s = self._until - self._clock.monotonic()
        if left_s <= 0:
            raise self._over()
        await self._clock.sleep(min(self._period_s, left_s))
        self._period_s = min(self._period_s * _FACTOR, _CAP_S)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Say whose parts are missing also when another limit of time has ended the block."""
        try:
            yield
        except DeadlineError as exc:
            raise (exc if exc.missing or not self.missing else self._over()) from exc.__cause__

    def _over(self) -> DeadlineError:
        group, count = self._group, len(self.missing)
        assert group is not None, "nobody else waits"
        shown = ", ".join(map(str, self.missing[:_SHOWN]))
        more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
        who = f"rank{'s' if count > 1 else ''} {shown}{more}" if count else "nobody"
        what = "left no part" if count else "completed it"
        verb = "have" if count > 1 else "has"
        error = DeadlineError(
            f"{group.what} at {quote(self._where)}: {who} of {group.size} {verb} {what} in time; "
            "what was sent stays: run it again with the same id, or all with another"
        )
        error.missing = self.missing
        return error


class PartUpload(Upload):
    """See Upload. Retried with the same `patience`, it waits no longer for that."""

    def __init__(
        self, request: Request, store: TreeStore, tree: str, tools: Tools, patience: Patience
    ) -> None:
        super().__init__(request, store, tree, tools)
        assert request.group is not None, "the caller looks"
        self._group, self._patience = request.group, patience
        self._there: Manifest | None = None
        self._sent: Receipt | None = None

    async def run(self) -> Receipt:
        """Leave the part, unless it is there, and return when all of the group is committed.

        Raises:
            ConflictError: another commit is there, a newer group has superseded this one, or this
                rank has left another part.
            RefusedError: two parts do not fit together; nothing was committed.
            DeadlineError: names the ranks whose parts are missing.
        """
        started, looked_again = self._clock.monotonic(), False
        durability: Durability | None = None
        while True:
            self._there = await super()._previous()
            if self._there is not None and self._there.header.attempt == self._group.attempt:
                receipt = await self._whole(self._there, durability)
                return replace(receipt, seconds=self._clock.monotonic() - started)
            if durability is not None:
                raise self._replaced_since()
            try:
                if self._sent is None:
                    self._sent = await self._leave()
                durability = await self._gather()
            except BusyError:
                await self._patience.pause()
            except ConflictError:
                # A commit has come since we looked: perhaps our own.
                if looked_again:
                    raise
                looked_again = True

    def _replaced_since(self) -> ConflictError:
        there = self._there
        return ConflictError(
            f"{self._where}: {self._group.what} was committed, and that commit has been deleted or "
            "replaced since; ask for what is there now",
            winner=there.identity if there else "",
        )

    async def _whole(self, whole: Manifest, durability: Durability | None) -> Receipt:
        if durability is None:  # a commit of earlier: who made it may have left something
            durability = (await self._look_for_parts()) or await self._store.confirm(self._tree)
        self._committed(whole.identity, durability)
        header = whole.header
        sent = self._sent or Receipt(
            location=str(self._request.remote), identity="", kind="sealed", files=0, size_bytes=0
        )
        return replace(
            sent,
            identity=header.identity,
            files=header.files,
            size_bytes=header.size_bytes,
            durability=durability,
        )

    async def _gather(self) -> Durability | None:
        """Wait for the others; None when this rank has to send again."""
        while True:
            durability = await self._look_for_parts()
            if durability is not None:
                return durability
            if self._group.rank in self._patience.missing:
                self._sent = None
                return None
            await self._patience.pause()

    async def _look_for_parts(self) -> Durability | None:
        seen = await self._store.gather(self._tree, self._expecting())
        self._patience.missing = seen.missing
        return seen.durability

    # -- the part, as a tree of its own

    async def _leave(self) -> Receipt:
        async with self._source() as (source, left, kind):
            found = await self._look(source, left, kind)
            self._refuse_inside(found)
            self._check_conflict(found, None)
            if left is not None:
                return self._receipt(left, found, "memory", rounds=1)
            manifest, durability, rounds = await self._write(source, found)
            return self._receipt(manifest, found, durability, rounds)

    async def _previous(self) -> Manifest | None:
        try:
            return await self._store.read_part(self._tree, self._group)
        except NotFoundError:
            return None

    def _refuse_inside(self, found: Found) -> None:
        for entry in (*found.scan.nested, *(entry.path for entry in found.nested)):
            raise RefusedError(
                f"a group cannot commit over or with commits inside, such as {quote(entry)}; "
                "choose another target, or exclude it",
                paths=[entry],
            )

    def _refuse_empty(self, scan: Scan, previous: Manifest | None, kind: Kind) -> None:
        """A rank may have nothing to say."""

    def _check_conflict(self, found: Found, origin: Header | None) -> None:
        if found.previous is not None and not found.unchanged:
            raise ConflictError(
                f"{self._where}: rank {self._group.rank} of {self._group.what} has left a part of "
                "other content; a trainer that is restarted takes another id for its group",
                winner=found.previous.identity,
            )
        there, wanted = self._there, self._request.replace
        if there is not None and not may_replace(
            there, kind="sealed", origin=origin, writer="", replace=wanted
        ):
            raise self._conflict(there, "sealed")

    def _expecting(self) -> Intent:
        expect = self._there.identity if self._there else None
        return Intent(attempt=new_attempt(), expect=expect, writer=self._writer, group=self._group)

    def _intent(self, found: Found, attempt: str) -> Intent:
        return replace(self._expecting(), attempt=attempt, files=found.plan.send)

    def _manifest(self, found: Found, attempt: str) -> Manifest:
        return super()._manifest(found, self._group.attempt)

    def _replaced(self, found: Found) -> Manifest | None:
        return self._there
