"""Forwarding: what is committed at a head is carried on to where its loss does not matter."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

import anyio
from msgspec.structs import replace

from ..clock import Clock, SystemClock
from ..concurrency import Threads
from ..errors import (
    AsyncSyncError,
    ConfigError,
    IntegrityError,
    NotFoundError,
    TransferError,
    TransientError,
    quote,
)
from ..events import ignore
from ..location import Location
from ..manifest import Header
from ..storage import Stores, TreeStore, check_scheme
from ..storage.local import HeldRoot, LocalTrees
from ..syncing import check_overlap
from ..transfer import Bounds, Engine
from ..wire.failures import plain
from .agenda import Agenda
from .carrying import Carried, Carrier
from .events import Forwarded, Listener, NotForwarded, Vanished
from .notes import Note, Notes

__all__ = ["Forwarding", "check_place"]

_AT_ONCE = 4  # trees; the files of each move side by side anyway
_PERMANENT_S = 3600.0  # somebody may have changed what was in the way
_HURRIED_S = 60.0
_MOST_GONE = 20_000  # notes of trees that are gone: by them, what is there is known as ours
_SCAN_AGAIN_S = 60.0
_SCANS_SELDOM = 20.0  # times as long as the last one took there is none


class Forwarding:
    """Carries every commit below `root` on to `place`; see `Onward`.

    A commit is noted on the disk before it is acknowledged, and the note says that it waits until
    it has arrived. Of several versions of one tree the newest stands for all. What fails is tried
    again for ever, after longer and longer pauses, and holds up nothing else. What was committed
    and not noted, because of a crash or past the head, is found when it starts, and each minute.

    Use `open`.
    """

    forwards = True

    def __init__(self, carrier: Carrier, notes: Notes, *, clock: Clock, listen: Listener) -> None:
        self._carrier, self._notes = carrier, notes
        self._clock, self._listen = clock, listen
        self._threads = carrier.threads
        self._known: dict[str, Note] = {}
        self._unsure = set[str]()  # trees whose note may not be on the disk
        self._asked = Counter[str]()  # how often a tree has been queued
        self._tried_at: dict[str, float] = {}
        self._agenda, self._turn = Agenda(clock), anyio.Lock()
        self._looked, self._progress = anyio.Event(), anyio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        root: str,
        place: Location,
        state: Path,
        *,
        clock: Clock | None = None,
        listen: Listener = lambda event: None,
        target: TreeStore | None = None,
    ) -> AsyncIterator[Self]:
        """Carry on for as long as the block lasts; what is under way then goes on next time.

        Args:
            state: a private directory.
            target: what holds `place`; None: what its scheme says.

        Raises:
            ConfigError: the place cannot be one.
        """
        check_place(root, place)
        clock = clock or SystemClock()
        threads, notes = Threads(8), Notes(state, place)
        stores, undo = Stores(threads=threads, clock=clock), AsyncExitStack()
        try:
            root = await threads.run(os.path.realpath, root)
            # As a head serves them: others may write below the root, and no link leads out of it.
            source = LocalTrees(await threads.run(HeldRoot, root), threads)
            undo.push_async_callback(source.aclose)
            await threads.run(notes.open)
            above = place.path.strip("/")
            if target is None:
                target, above = await stores.open(place, ignore)
            carrier = Carrier(
                root=root.rstrip("/"),
                source=source,
                place=place,
                target=target,
                above=above,
                engine=Engine(Bounds(), clock),
                threads=threads,
            )
            forwarding = cls(carrier, notes, clock=clock, listen=listen)
            forwarding._take(await threads.run(notes.load))
            async with anyio.create_task_group() as group:
                for _ in range(_AT_ONCE):
                    group.start_soon(forwarding._work)
                group.start_soon(forwarding._look)
                yield forwarding
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await stores.aclose()
                await undo.aclose()
            threads.close()

    # -- what a head asks

    async def queue(self, tree: str, identity: str) -> None:
        async with self._turn:
            self._asked[tree] += 1
            note = self._known.get(tree)
            if note is not None and note.identity == identity and tree not in self._unsure:
                self._hurry(note)
                return
            self._agenda.recovered(tree)
            try:
                note = self._note(tree)
                await self._write(replace(note, identity=identity, failure="", permanent=False))
            finally:  # not acknowledged, but it stands: whoever asked may never ask again
                self._agenda.plan(tree)

    def has(self, tree: str, identity: str) -> bool:
        note = self._note(tree)
        return not note.begun and note.forwarded == identity != ""

    def failure(self, tree: str, identity: str) -> str:
        note = self._note(tree)
        if not (note.waits and note.permanent and note.identity == identity):
            return ""
        root = self._carrier.root  # where that is, is nobody's business
        return note.failure.replace(f"{root}/", "").replace(root, "the root")

    @property
    def waiting(self) -> int:
        """How many trees have to be carried on."""
        return sum(note.waits for note in self._known.values())

    async def wait_idle(self) -> None:
        """Until everything that is committed has been carried on."""
        await self._looked.wait()
        while self.waiting or self._agenda.running:
            self._progress = anyio.Event()
            await self._progress.wait()

    # -- notes

    def _take(self, notes: dict[str, Note]) -> None:
        self._known = notes
        for tree, note in notes.items():
            if note.waits:
                self._agenda.plan(tree)

    def _note(self, tree: str) -> Note:
        return self._known.get(tree) or Note(tree=tree, identity="")

    async def _write(self, note: Note) -> None:
        """Note it. Interrupted or failed, it counts as not noted, and whoever asks again notes it.

        It is known from here on all the same: to carry on too much does no harm.
        """
        self._known[note.tree] = note
        self._unsure.add(note.tree)
        try:
            await self._threads.run(self._notes.write, note)
        except ConfigError as exc:
            # Where the head keeps its state is nobody's business.
            raise TransientError(
                "the head cannot note that this commit has to be carried on; look at the disk of "
                "its state"
            ) from exc
        self._unsure.discard(note.tree)

    def _hurry(self, note: Note) -> None:
        """Try again now what somebody had to change something for: who asks for it may have."""
        tree, now = note.tree, self._clock.monotonic()
        tried_at = self._tried_at.get(tree, -math.inf)
        if note.waits and note.permanent and now - tried_at >= _HURRIED_S:
            self._agenda.plan(tree)

    # -- doing it

    async def _work(self) -> None:
        while True:
            tree = await self._agenda.next()
            asked = self._asked[tree]
            self._tried_at[tree] = self._clock.monotonic()
            try:
                await self._do(tree, asked)
            except Exception as exc:  # noqa: BLE001 - whatever it is, it holds up nothing else
                await self._failed(tree, asked, exc)
            finally:
                self._agenda.release(tree)
                self._progress.set()
            note = self._known.get(tree)
            if note is not None and note.waits and not self._agenda.has(tree):
                self._agenda.plan(tree)

    async def _do(self, tree: str, asked: int) -> None:
        try:
            carried = await self._carry(tree)
        except _VanishedError:
            await self._vanished(tree)
        else:
            await self._arrived(tree, asked, carried)

    async def _carry(self, tree: str) -> Carried:
        while True:
            note = self._note(tree)
            ours = {note.forwarded, note.begun}
            before = await self._header(tree)
            try:
                return await self._carrier.carry(tree, ours, partial(self._begun, tree))
            except (IntegrityError, NotFoundError, TransferError):
                now = await self._header(tree)
                if (now.identity, now.attempt) == (before.identity, before.attempt):
                    raise  # it was not replaced while it was read

    async def _header(self, tree: str) -> Header:
        try:
            return await self._carrier.source.read_header(tree)
        except NotFoundError as exc:
            raise _VanishedError from exc

    async def _begun(self, tree: str, identity: str, there: str) -> None:
        """Note it first: else nobody would know the commit there for ours after a crash."""
        async with self._turn:
            note = self._note(tree)
            if (note.begun, note.forwarded) != (identity, there):
                await self._write(replace(note, begun=identity, forwarded=there))

    async def _arrived(self, tree: str, asked: int, carried: Carried) -> None:
        manifest = carried.manifest
        async with self._turn:
            note, found = self._note(tree), manifest.identity
            # What was queued before the tree was read is that commit, or one that it replaced.
            newest = note.identity if self._asked[tree] != asked else found
            self._agenda.recovered(tree)
            await self._write(Note(tree=tree, identity=newest, forwarded=found))
        self._listen(
            Forwarded(
                tree=tree,
                identity=found,
                location=str(self._place_of(tree)),
                files=manifest.header.files,
                size_bytes=manifest.header.size_bytes,
                sent_bytes=carried.sent_bytes,
                durability=carried.durability,
            )
        )

    async def _vanished(self, tree: str) -> None:
        """Nothing is to be carried on; what arrived before is known as ours all the same."""
        async with self._turn:
            note = self._note(tree)
            if note.forwarded or note.begun:
                await self._write(replace(note, identity="", failure="", permanent=False))
            else:
                await self._forget(tree)
        self._listen(Vanished(tree=tree))

    async def _forget(self, tree: str) -> None:
        self._known.pop(tree, None)
        self._tried_at.pop(tree, None)
        await self._threads.run(self._notes.remove, tree)
        self._asked.pop(tree, None)
        self._agenda.recovered(tree)

    async def _failed(self, tree: str, asked: int, error: Exception) -> None:
        # A tree that is being replaced at that moment looks as if it were damaged, once.
        permanent = not _passes(error, first=not self._agenda.has_failed(tree))
        reason = plain(str(error) if isinstance(error, AsyncSyncError) else repr(error))
        wait_s = self._agenda.failed(tree)
        if permanent:
            wait_s = _PERMANENT_S
        if self._asked[tree] != asked:  # there is a newer one
            wait_s = 0.0
        async with self._turn:
            note = self._known.get(tree)
            if note is not None:
                try:
                    await self._write(replace(note, failure=reason, permanent=permanent))
                except TransientError:
                    pass  # a note of the failure is for --status only: the event says it, too
            self._agenda.plan(tree, wait_s)
        self._tell(tree, reason, permanent=permanent, wait_s=wait_s)

    def _tell(self, tree: str, reason: str, *, permanent: bool, wait_s: float) -> None:
        where = str(self._place_of(tree))
        self._listen(
            NotForwarded(
                tree=tree, location=where, reason=reason, permanent=permanent, wait_s=wait_s
            )
        )

    def _place_of(self, tree: str) -> Location:
        return self._carrier.place / tree if tree else self._carrier.place

    # -- what nobody has queued

    async def _look(self) -> None:
        """Queue what was committed and never noted, again and again; forget what has gone.

        So arrives what a crash kept from being noted, and what others write below the root past
        the head: what is fetched there, or trained.
        """
        tags = dict[str, str]()
        while True:
            began_s, before = self._clock.monotonic(), set(self._known)
            try:
                await self._forget_old(before - await self._queue_all(tags))
            except Exception as exc:  # noqa: BLE001 - what is queued goes on, and it is tried again
                reason = str(exc) if isinstance(exc, AsyncSyncError) else repr(exc)
                self._tell("", reason, permanent=False, wait_s=_SCAN_AGAIN_S)
            else:
                self._looked.set()
            took_s = self._clock.monotonic() - began_s
            await self._clock.sleep(max(_SCAN_AGAIN_S, _SCANS_SELDOM * took_s))

    async def _queue_all(self, tags: dict[str, str]) -> set[str]:
        """The trees that are there. What has a tag of `tags` has been looked at.

        Raises:
            AsyncSyncError: one of them cannot be read, or noted; all others were queued.
        """
        seen, failures = set[str](), list[AsyncSyncError]()
        try:
            async for sight in self._carrier.source.find(""):
                seen.add(sight.tree)
                if tags.get(sight.tree) == sight.tag:
                    continue
                try:
                    if await self._queue_found(sight.tree):
                        tags[sight.tree] = sight.tag
                except AsyncSyncError as exc:
                    failures.append(exc)
        except NotFoundError:
            pass  # the root has gone, or was never used: nothing is committed there
        for tree in tags.keys() - seen:
            del tags[tree]
        for failure in failures[:1]:
            raise failure
        return seen

    async def _queue_found(self, tree: str) -> bool:
        """Queue what is committed there, unless it has arrived; whether there is anything."""
        try:
            header = await self._carrier.source.read_header(tree)
        except (NotFoundError, IntegrityError):
            return False  # gone by now; or damaged, which readers are told
        if not self.has(tree, header.identity):
            await self.queue(tree, header.identity)
        return True

    async def _forget_old(self, gone: set[str]) -> None:
        """Keep only so many notes of trees that are not there any more."""
        old = [tree for tree, note in self._known.items() if tree in gone and not note.waits]
        for tree in old[: max(0, len(old) - _MOST_GONE)]:
            async with self._turn:
                if (
                    tree not in self._agenda.running and not self._note(tree).waits
                ):  # it is still gone
                    await self._forget(tree)


class _VanishedError(Exception):
    """The tree was deleted from the head."""


def check_place(root: str, place: Location) -> None:
    """Refuse a place that nothing can be carried on to.

    Raises:
        ConfigError: and says why.
    """
    check_scheme(place.scheme)
    if place.scheme == "memory":
        raise ConfigError(f"{quote(str(place))} ends with the head; carry trees to another place")
    check_overlap(root, place)


def _passes(error: Exception, *, first: bool) -> bool:
    """Whether nobody has to change anything before it goes well. Pure."""
    if isinstance(error, TransferError):
        return all(_passes(one, first=first) for one in error.failures)
    return isinstance(error, TransientError) or (first and isinstance(error, IntegrityError))
