"""One attempt to write a tree into an object store: data first, the manifest last.

A new tree is written straight to its keys: without a manifest nobody reads it. Where a commit is
replaced, every file waits in an upload of its own, invisible, until `commit` completes them. So
leaving an attempt costs the old commit nothing, and between the first and the last completion lie
a few small requests rather than the whole transfer. A store has no atomic step over several keys,
and this is what readers meet in that window:

- a whole tree (not in place): the old manifest is deleted before the first completion, so they
  see no commit; then the new one;
- in place: the old manifest stays until the new one replaces it. A file that is already the new
  version has another digest than the manifest says: it is never taken for the old one, the reader
  asks for the manifest again. What only the old version lists is deleted after the new manifest is
  there, so that nothing is missing that a manifest promises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from ...concurrency import each
from ...digest import CHUNK_BYTES
from ...errors import (
    AsyncSyncError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    TransientError,
    quote_some,
)
from ...manifest import Manifest
from ...names import is_commit_file
from ..objects import Condition, Data, Upload
from ..trees import Block, Durability, File, Intent, NewFile, Stored
from .arriving import Arriving, not_whole, object_token
from .claims import Claims
from .place import Found, Place, clash, conflict
from .recalled import Recalled
from .record import Lease
from .stale import gone, in_the_way

__all__ = ["CommittedWriter"]

_MAX_LOSSES = 2  # of one file: a store that drops more will not ever hold it


class CommittedWriter:
    """See TreeWriter for what every method promises.

    Args:
        lease: the attempt record, held.
        old: the commit that is replaced.
        fresh, also: see Claims.
    """

    def __init__(
        self,
        place: Place,
        lease: Lease,
        intent: Intent,
        *,
        old: Found | None,
        fresh: bool,
        durability: Durability,
        also: frozenset[str] = frozenset(),
    ) -> None:
        self._place, self.lease, self._intent = place, lease, intent
        self._old, self._durability = old, durability
        self._old_paths = frozenset(old.manifest.files) if old else frozenset()
        self._claims = Claims(place, lease, old=self._old_paths, fresh=fresh, also=also)
        self._leftover = self._claims.leftover
        self._absent: set[str] = set()  # of what was left, when it was recalled
        self._sent: dict[str, int] = {}  # written whole at once: the bytes of each, or -1: perhaps
        self._files: dict[str, Arriving] = {}
        self._doubtful: dict[str, Upload | None] = {}  # with the upload that is not to be found
        self._publishing: Manifest | None = None
        self._uploading: set[str] = set()
        self._unlisted = self._announced = self._visible = self.finished = False

    async def keep_alive(self) -> None:
        """Show life from time to time. Never returns; raises when somebody has taken over."""
        await self.lease.keep_alive()

    # -- going on where an interrupted attempt was

    @property
    def resumes(self) -> bool:
        return self.lease.inherited is not None

    async def recall(
        self, files: Sequence[tuple[NewFile, Mapping[int, Stored]]]
    ) -> list[frozenset[int]]:
        left = await Recalled.look(self._place)
        if self._place.conditional:  # then nothing that comes later is written over
            self._absent = set(self._leftover - left.objects.keys())
        known = [(file, chunks) for file, chunks in files if self._claims.knows(file.path)]
        states = {file.path: left.arriving(self._place, file, c) for file, c in known}
        held = {path: frozenset(n - 1 for n in state.sizes) for path, state in states.items()}
        self._files = {path: state for path, state in states.items() if state.sizes}
        begun = {path: s.upload for path, s in self._files.items() if s.upload is not None}
        self._uploading |= begun.keys()
        self._doubtful |= {path: up for path, up in begun.items() if self._files[path].published}
        return [held.get(file.path, frozenset()) for file, _ in files]

    # -- writing

    async def write(self, file: NewFile, offset: int, block: Block) -> str:
        return await self._write(file, offset, block.data)

    async def write_many(self, files: Sequence[tuple[NewFile, Data]]) -> list[str]:
        tokens: dict[str, str] = {}

        async def store(item: tuple[NewFile, Data]) -> None:
            tokens[item[0].path] = await self._write(item[0], 0, item[1])

        await self._claims.add([file.path for file, _ in files])
        await each(files, store)
        return [tokens[file.path] for file, _ in files]

    async def discard(self, path: str) -> None:
        if path in self._sent:
            self._sent[path] = -1
        self._doubtful.pop(path, None)
        file = self._files.pop(path, None)
        if file is not None and file.upload is not None:
            await self._place.objects.abort_upload(file.upload)

    async def announce(self, files: Iterable[File]) -> None:
        """Claim at once what is going to be written."""
        await self._claims.add([file.path for file in files])

    async def finish(self, file: NewFile) -> str:
        state = self._files.get(file.path)
        if state is not None and state.whole and not self._waits(file.path):
            await self._publish_file(state)
            return state.token(len(state.sizes))
        return ""

    async def _write(self, file: NewFile, offset: int, data: Data) -> str:
        if not self._claims.knows(file.path):
            self._place.check([file])
            await self._claims.add([file.path])
        foreign = file.path in self._claims.foreign
        if not self._waits(file.path) and file.size_bytes <= CHUNK_BYTES and not foreign:
            tag = await self._put(file.path, data)
            self._sent[file.path] = len(data)
            self._files.pop(file.path, None)  # an upload of it that was lost
            return object_token(tag) if tag else ""
        state = self._files.setdefault(file.path, Arriving(file))
        number = offset // CHUNK_BYTES + 1
        if foreign:
            await self._compare(file, offset, data)
            state.sizes[number] = len(data)
        elif file.size_bytes:
            self._uploading.add(file.path)
            await state.put_part(self._place.objects, self._place.key(file.path), number, data)
        else:
            state.sizes[number] = 0
        return state.token(number)

    def _waits(self, path: str) -> bool:
        """Whether a file stays invisible, in an upload, until the commit."""
        return self._old is not None

    async def _compare(self, file: NewFile, offset: int, data: Data) -> str:
        """A file that is not ours has the name: it may stay when it holds the very same bytes.

        Returns:
            Its tag.
        """
        end = offset + len(data)
        # One byte more than listed shows an object that is longer.
        end += end == file.size_bytes
        found = await self._place.objects.get(self._place.key(file.path), offset, end)
        if found.data != data:
            raise clash(self._place, file.path)
        return found.info.tag

    # -- publishing single files

    async def _put(self, path: str, data: Data) -> str:
        """Store a file whole; its tag."""
        key = self._place.key(path)

        condition = await self._condition(path)
        try:
            return (await self._place.objects.put(key, data, condition=condition)).tag
        except PreconditionError:
            if path in self._absent:  # it has come since, perhaps late from the attempt before
                self._absent.discard(path)
                return await self._put(path, data)
            # Our own earlier success, whose answer got lost, holds the same bytes.
            there = await self._place.objects.get(key, 0, len(data) + 1)
            if there.data != data:
                raise await self._beaten(path) from None
            return there.info.tag

    async def _beaten(self, path: str) -> AsyncSyncError:
        """Why a conditional write of ours was refused."""
        await self.lease.check()
        self._sent.pop(path, None)
        await self._claims.give_up(path)
        return clash(self._place, path)

    async def _publish_file(self, state: Arriving) -> None:
        """Make a file that has arrived whole visible under its name. Again: no effect."""
        path = state.new.path
        if state.published or path in self._claims.foreign:
            return
        if state.upload is None:  # an empty file has no parts
            state.tag = await self._put(path, b"")
            state.published = True
        else:
            state.published = await self._complete(state, state.upload)

    async def _complete(self, state: Arriving, upload: Upload) -> bool:
        """Whether the object is there; if not, the upload is gone and the file is to be resent."""
        parts = [state.parts[number] for number in sorted(state.parts)]
        condition = await self._condition(state.new.path)
        if not self._place.objects.capabilities.multipart_conditions:
            condition = None
        try:
            info = await self._place.objects.complete_upload(upload, parts, condition=condition)
            state.tag = info.tag
        except (PreconditionError, NotFoundError) as exc:
            if state.new.path in self._absent:  # as in _put
                self._absent.discard(state.new.path)
                return await self._complete(state, upload)
            there = await self._place.head(state.new.path)
            lost = isinstance(exc, NotFoundError)
            if there is not None and there.size_bytes == state.new.size_bytes:
                # Our own earlier success, whose answer got lost, looks like this.
                self._doubtful[state.new.path] = upload if lost else None
            elif lost:
                state.lose(upload)
                if state.losses > _MAX_LOSSES:
                    raise
                return False
            else:
                raise await self._beaten(state.new.path) from None
        return True

    async def _condition(self, path: str) -> Condition | None:
        """Create only; or replace exactly the object of ours that is there now.

        The object is looked at before the record, so that nobody who takes over in between is
        overwritten: what they write has another tag.
        """
        left = path in self._leftover and path not in self._absent
        may_be_there = path in self._old_paths or left or path in self._sent
        self._sent[path] = -1
        if not may_be_there:
            return self._place.condition(absent=True)
        there = await self._place.head(path)
        await self.lease.check()
        if there is None:
            return self._place.condition(absent=True)
        if self._place.marks and not there.marked and not self._claims.is_certain(path):
            raise await self._beaten(path)
        return self._place.condition(tag=there.tag)

    # -- commit

    async def commit(self, manifest: Manifest) -> Durability:
        if not self._visible:
            self._check_whole(manifest)
        if self._publishing is None:
            await self._check_kept(manifest)
            await self._fence()
            self._publishing = manifest
        await self._publish(manifest)
        await self._tidy(manifest)
        return self._durability

    def _check_whole(self, manifest: Manifest) -> None:
        old = self._old.manifest.files if self._old else {}
        missing = not_whole(manifest, self._files, self._sent, old)
        if missing:
            raise IntegrityError(
                f"{quote_some(missing)} did not arrive whole in {self._place.where}; send again",
                side="target",
                paths=missing,
            )

    async def _check_kept(self, manifest: Manifest) -> None:
        """Read what should stay but may have been overwritten by an attempt that crashed."""
        suspects = self.lease.record.overwritten & self._old_paths & manifest.files.keys()
        kept = [manifest.files[path] for path in suspects if path not in self._files]
        if wrong := await self._place.differing(kept):
            raise IntegrityError(
                f"an interrupted sync has changed {quote_some(wrong)} in {self._place.where}; "
                "send again",
                side="target",
                paths=wrong,
            )

    async def _fence(self) -> None:
        """The last look at the record, and the note that makes the rest finishable by anybody."""
        if self._old is None:
            await self.lease.update()
            return
        record = self.lease.record
        await self.lease.update(
            replaces=self._old.manifest.identity,
            listed=record.listed | self._old_paths,
            overwritten=record.overwritten | (self._files.keys() & self._old_paths),
        )

    async def _publish(self, manifest: Manifest) -> None:
        """Everything up to the moment the commit is visible. Again: goes on where it was."""
        if self._visible:
            return
        stale = {p for p in chain(self._sent, self._leftover) if p not in manifest.files}
        stale -= await self._claims.others(stale)
        if self._old is not None and not self._intent.in_place:
            await self._delete_manifest(self._old)
            stale |= self._old_paths
        await self._place.delete(in_the_way(stale | self._old_paths, manifest))
        states = [state for path, state in self._files.items() if path in manifest.files]
        states = [state for state in states if not state.published]
        for last in (False, True):
            group = [state for state in states if is_commit_file(state.new.path) is last]
            await each(group, self._publish_file)
        await self._check_doubtful(manifest)
        await self._place.delete(gone(stale, manifest))
        await self._put_manifest(manifest)
        self._visible = True

    async def _delete_manifest(self, old: Found) -> None:
        if self._unlisted:
            return
        tag = old.tag if self._place.conditional else None
        try:
            await self._place.objects.delete(self._place.manifest_key, tag=tag)
        except PreconditionError:
            raise conflict(self._place, await self._place.manifest()) from None
        self._unlisted = True

    async def _check_doubtful(self, manifest: Manifest) -> None:
        """See that what may be another's is ours, and that no upload was lost on the way."""
        doubtful = [path for path in self._doubtful if path in manifest.files]
        for path in await self._place.differing([manifest.files[path] for path in doubtful]):
            upload = self._doubtful.pop(path)
            if upload is None:
                raise await self._beaten(path)
            self._files[path].lose(upload)
        self._check_whole(manifest)

    async def _put_manifest(self, manifest: Manifest) -> None:
        over = self._old if self._intent.in_place else None
        condition = self._place.condition(absent=over is None, tag=over.tag if over else None)
        try:
            if not self._place.conditional:
                await self._expect(over)
            self._announced = True
            await self._place.put_manifest(manifest, condition)
        except PreconditionError:
            self._announced = False
            there = await self._place.manifest()
            if there is not None and self._is_displaced(there):
                await self._place.put_manifest(manifest, self._place.condition(tag=there.tag))
            elif there is None or there.manifest.identity != manifest.identity:
                raise conflict(self._place, there) from None
        except TransientError:
            there = await self._place.manifest()
            if there is None or there.manifest.header != manifest.header:
                raise
        except AsyncSyncError:
            self._announced = False
            raise

    def _is_displaced(self, there: Found) -> bool:
        """Whether a commit came late, from the attempt from which this one has taken over.

        It is acknowledged to nobody, and its files are ours by now.
        """
        left, old = self.lease.inherited, self._old
        is_theirs = left is not None and left.commits_as == there.manifest.header.attempt
        return is_theirs and (old is None or old.tag != there.tag)

    async def _expect(self, over: Found | None) -> None:
        """Where conditions do not work: look instead. Right as long as there is one writer."""
        there = await self._place.manifest()
        if (there.tag if there else None) != (over.tag if over else None):
            raise PreconditionError(f"{self._place.where} holds another commit by now")

    async def _tidy(self, manifest: Manifest) -> None:
        """What is left to do once the commit is visible. Again: no effect."""
        if self.finished:
            return
        if self._intent.in_place and (stale := gone(self._old_paths, manifest)):
            await self.lease.check()
            await self._place.delete(stale)
        await self._abort_uploads()
        await self.lease.drop()
        self.finished = True

    async def _abort_uploads(self) -> None:
        if self._uploading or self.lease.inherited is not None:
            await self._place.abort_uploads(self._is_ours)

    async def _abort_unfinished(self) -> None:
        """Abort the uploads that this attempt has begun itself, whoever holds the record by now."""
        files = [state for state in self._files.values() if not state.published]
        uploads = [state.upload for state in files if state.upload is not None]
        await each(uploads, self._place.objects.abort_upload)

    def _is_ours(self, path: str) -> bool:
        return path in self._uploading or self._claims.is_ours(path)

    # -- leaving without a commit

    async def leave(self, *, keep: bool = False) -> None:
        """Undo the attempt; or leave it to the next one.

        That is where it has begun to replace a commit, and where its manifest is on the way: it may
        arrive later, and must find its files; and where the next one is to go on (`keep`).

        What is done here may stop anywhere: the record goes last, and whoever finds it goes on.
        """
        keep = keep and bool(self._files or self._sent or self.resumes)
        if not keep:
            await self._abort_unfinished()
        await self.lease.check()
        manifest = self._publishing
        if manifest is not None and await self._place.header() == manifest.header:
            await self._tidy(manifest)
            return
        if keep:
            await self._listed()  # a commit that came late has other files below it by now
        else:
            await self._abort_uploads()
        if keep or self._announced or (manifest is not None and self._old is not None):
            await self.lease.update(released=True)
            return
        kept = await self._claims.others(self._leftover - self._sent.keys())
        await self._place.delete((self._sent.keys() | self._leftover) - kept - await self._listed())
        if self.lease.record.overwritten:
            await self.lease.update(paths=(), released=True)
        else:
            await self.lease.drop()

    async def _listed(self) -> frozenset[str]:
        """What a commit that is there by now consists of; one that came late is taken away."""
        there = await self._place.manifest()
        if there is None or not self._is_displaced(there):
            return frozenset(there.manifest.files) if there else frozenset()
        await self._delete_manifest(there)
        return frozenset()
