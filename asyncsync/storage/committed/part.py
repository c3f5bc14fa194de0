"""One rank's attempt to write its part into an object store."""

from __future__ import annotations

import anyio

from ...clock import Clock
from ...concurrency import beside, each
from ...errors import ClashError, ConflictError, NotFoundError, PreconditionError, TransientError
from ...manifest import FileEntry, Manifest
from ...names import is_commit_file
from ..groups import Group
from ..objects import Data
from ..trees import Durability, Intent, NewFile
from .arriving import object_token
from .parts import PartPlace, claimed, part_text, read_part
from .place import Found, Place
from .record import TTL_S, Lease, Sightings, beat, read_record, superseded
from .stale import gone
from .writer import CommittedWriter

__all__ = ["PartWriter", "tend"]


async def tend(place: Place, group: Group, seen: Sightings) -> None:
    """Show that a group lives, if none of its ranks has done so for a while.

    Raises:
        ConflictError: somebody has taken its place.
    """
    there = await read_record(place)
    if there is None:
        return  # it has just been committed, or has to begin anew
    if group.attempt in there.record.fenced:
        raise superseded(place, group.id, there.record)
    ours = there.record.gathers and there.record.group == group.id
    if ours and seen.left_s(place.name, there.tag) <= TTL_S * 2 / 3:
        await beat(place, there)


class PartWriter(CommittedWriter):
    """Writes as any other attempt, under the record of its rank, and leaves a part.

    What frameworks take for the sign of a complete checkpoint waits in uploads.
    """

    def __init__(
        self,
        place: Place,
        lease: Lease,
        intent: Intent,
        *,
        old: Found | None,
        also: frozenset[str],
        durability: Durability,
        clock: Clock,
        seen: Sightings,
    ) -> None:
        group = intent.group
        assert group is not None, "the caller looks"
        part_place = PartPlace(place, group.attempt, group.rank)
        super().__init__(
            part_place, lease, intent, old=old, fresh=False, durability=durability, also=also
        )
        self._tree, self._group, self._clock, self._seen = place, group, clock, seen
        self._tags: dict[str, str] = {}  # of objects that are there whole
        self._misfits: set[str] = set()  # another rank's, with other bytes: merging will say so

    async def keep_alive(self) -> None:
        async with beside(super().keep_alive):
            while True:
                await self._clock.sleep(TTL_S / 3)
                try:
                    await tend(self._tree, self._group, self._seen)
                except TransientError:
                    continue  # others show life as well

    # -- writing

    def _waits(self, path: str) -> bool:
        return super()._waits(path) or is_commit_file(path)

    async def discard(self, path: str) -> None:
        self._tags.pop(path, None)
        self._misfits.discard(path)
        await super().discard(path)

    async def finish(self, file: NewFile) -> str:
        try:
            return await super().finish(file)
        except ClashError as exc:
            await self._doubt(file.path, exc)
            return ""

    async def _write(self, file: NewFile, offset: int, data: Data) -> str:
        try:
            return await super()._write(file, offset, data)
        except ClashError as exc:  # another rank wrote there at the same moment
            await self._doubt(file.path, exc)
            return await super()._write(file, offset, data)

    async def _put(self, path: str, data: Data) -> str:
        tag = self._tags[path] = await super()._put(path, data)
        return tag

    async def _compare(self, file: NewFile, offset: int, data: Data) -> str:
        try:
            tag = self._tags[file.path] = await super()._compare(file, offset, data)
        except (ClashError, NotFoundError) as exc:
            await self._doubt(file.path, exc)
            return ""
        return tag

    async def _doubt(self, path: str, error: ClashError | NotFoundError) -> None:
        """Raise `error`, unless another rank has taken the name: then merging will tell."""
        if path not in await self._others():
            raise error
        self._misfits.add(path)

    async def _others(self) -> frozenset[str]:
        """Where other ranks may have written."""
        group = self._group
        return (await claimed(self._place, of=group.attempt, but_rank=group.rank))[0]

    # -- leaving the part

    async def commit(self, manifest: Manifest) -> Durability:
        if not self.finished:
            self._check_whole(manifest)
            await self._publish_all(manifest)
            await self.lease.update()  # the fence
            await self._leave(manifest)
            await self.lease.drop()
            self.finished = True
        return self._durability

    async def _publish_all(self, manifest: Manifest) -> None:
        stale = {p for p in (*self._sent, *self._leftover) if p not in manifest.files}
        stale -= await self._claims.others(stale)
        await self._place.delete(gone(stale, manifest))
        await each([path for path in self._files if path in manifest.files], self._show)
        doubtful = [path for path in self._doubtful if path in manifest.files]
        for path in doubtful:
            try:
                await self._check_doubtful(manifest)
            except ClashError as exc:
                await self._doubt(exc.paths[0], exc)
            there = await self._place.head(path)
            self._tags[path] = there.tag if there else ""

    async def _show(self, path: str) -> None:
        if not self._waits(path):
            state = self._files[path]
            try:
                await self._publish_file(state)
            except ClashError as exc:
                await self._doubt(path, exc)

    async def _leave(self, manifest: Manifest) -> None:
        files = manifest.files
        tokens = {path: self._tokens(entry) for path, entry in files.items()}
        strays = self.lease.record.paths - files.keys()
        data = await anyio.to_thread.run_sync(part_text, self._group, manifest, tokens, strays)
        self._announced = True
        try:
            condition = self._place.condition(absent=True)
            await self._place.objects.put(self._place.manifest_key, data, condition=condition)
        except (PreconditionError, TransientError) as exc:
            there = await self._part()
            if there is None and isinstance(exc, TransientError):
                raise
            if there is None or there.identity != manifest.identity:
                raise ConflictError(
                    f"{self._place.where}: rank {self._group.rank} of {self._group.what} has left "
                    "another part; a trainer that is restarted takes another id for its group",
                    winner=there.identity if there else "",
                ) from exc

    def _tokens(self, entry: FileEntry) -> tuple[str, ...]:
        count = len(entry.chunks) or 1
        if entry.path in self._misfits:
            return ("",) * count
        state = self._files.get(entry.path)
        if state is not None and not state.published and state.upload is not None:
            return tuple(state.token(number) for number in sorted(state.sizes))
        tag = self._tags.get(entry.path) or (state.tag if state else "")
        return (object_token(tag) if tag else "",) * count

    async def _part(self) -> Manifest | None:
        try:
            return (await read_part(self._place, self._group.attempt, self._group.rank)).manifest
        except NotFoundError:
            return None

    # -- leaving without it

    async def leave(self, *, keep: bool = False) -> None:
        await super().leave(keep=keep or self._announced)

    async def _abort_uploads(self) -> None:
        """Those of an earlier attempt of this rank; another rank's of the same file stay."""
        if self.lease.inherited is not None:
            others = await self._others()
            await self._place.abort_uploads(lambda p: self._is_ours(p) and p not in others)

    async def _listed(self) -> frozenset[str]:
        part = await self._part() if self._announced else None
        return frozenset(part.files) if part else frozenset()
