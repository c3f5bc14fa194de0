"""One attempt to make a location hold what a local directory holds."""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

from ..concurrency import each
from ..digest import digest
from ..errors import (
    BusyError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    SourceChangedError,
    quote,
)
from ..events import Committed, Planned, Skipped, SourceChanged, ignore
from ..manifest import Header, Kind, Manifest, NestedEntry
from ..names import NEXT, new_attempt, sort_key
from ..patterns import TEMPORARY_NAMES, Selection
from ..storage import Durability, Intent, TreeStore, TreeWriter
from ..storage.local import LocalTrees
from ..transfer import (
    Arrived,
    Chosen,
    Directory,
    Held,
    Journal,
    Records,
    Scan,
    Snapshots,
    SourceFile,
    Tally,
    plan_transfer,
    unstable,
)
from .base import Receipt, SyncPlan
from .decisions import may_replace, step_of
from .found import Found
from .requests import Request
from .tools import Tools

__all__ = ["Upload"]

_ROUNDS = 10
_PAUSE_S = 0.05


class Upload:
    """One upload. `run` may be called once.

    Args:
        store, tree: the target.
    """

    def __init__(self, request: Request, store: TreeStore, tree: str, tools: Tools) -> None:
        self._request, self._store, self._tree = request, store, tree
        self._tools, self._observe = tools, tools.observe
        self._engine, self._threads, self._clock = tools.engine, tools.threads, tools.clock
        self._where = quote(str(request.remote))
        self._writer = digest(
            f"{platform.node()}\n{request.local}".encode(errors="surrogateescape")
        )
        self._records = Records(request.local)
        self._tally = Tally(tools.observe)
        self._journal: Journal  # while it sends

    async def plan(self) -> SyncPlan:
        """What `run` would do; writes nothing."""
        async with self._source() as (source, previous, kind):
            found = await self._look(source, previous, kind)
            self._check_conflict(found, await self._origin())
        return SyncPlan(
            target=str(self._request.remote),
            send=tuple(file.new for file in found.plan.send),
            skip=tuple(found.scan.files[path].new for path in sorted(found.entries, key=sort_key)),
            delete=found.plan.delete,
            left_out=tuple(found.scan.left_out),
        )

    def inside(self, path: str) -> Upload:
        """The upload of a commit inside."""
        tree = f"{self._tree}/{path}".lstrip("/")
        return Upload(self._request.inside(path), self._store, tree, self._tools)

    async def hold(self, stack: AsyncExitStack, snapshots: Snapshots, *, link: bool) -> Held | None:
        """Hold the source still for as long as `stack` is open, if that can be.

        Asks the target what kind of tree it is, unless the request says that it is sealed. Raises
        what `run` would raise because of the source.
        """
        request = self._request

        async def choose(path: str) -> Chosen:
            return await (self.inside(path) if path else self)._choose()

        taking = snapshots.take(request.local, choose, links=request.links, link=link)
        return await stack.enter_async_context(taking)

    async def _choose(self) -> Chosen:
        await self._refuse_unfinished()
        await self._origin()
        if self._request.kind == "sealed":
            return Chosen("sealed", self._request.selection)
        previous = await self._previous()
        kind = self._kind(previous)
        if kind == "sealed":
            return Chosen(kind, self._request.selection)
        nested = previous.nested if previous else await self._nested_there()
        return Chosen(kind, self._selection(kind), {entry.path for entry in nested})

    async def run(self) -> Receipt:
        """Send what differs and commit.

        Raises:
            ConflictError: the target holds another commit, which this source may not replace.
            SourceChangedError: the source never held still.
        """
        started = self._clock.monotonic()
        async with self._source() as (source, previous, kind):
            found, origin = await self._look(source, previous, kind), await self._origin()
            self._check_conflict(found, origin)
            found.nested = await self._send_nested(found)
            self._check_conflict(found, origin)
            receipt = await self._send(source, found)
        return replace(receipt, seconds=self._clock.monotonic() - started)

    # -- looking

    @asynccontextmanager
    async def _source(self) -> AsyncIterator[tuple[Directory, Manifest | None, Kind]]:
        request = self._request
        previous = await self._previous()
        kind = self._kind(previous)
        opened = Directory.open(
            request.local,
            kind,
            self._threads,
            links=request.links,
            at=request.place,
            ctimes=request.held is None or request.held.way != "link",
        )
        async with opened as source:
            await self._refuse_unfinished()
            yield source, previous, kind

    def _kind(self, previous: Manifest | None) -> Kind:
        held = self._request.held
        if held is not None and held.kind == "rolling":
            return "rolling"  # what only a sealed tree has to refuse was left out
        return self._request.kind or (previous.header.kind if previous else "sealed")

    async def _refuse_unfinished(self) -> None:
        if await self._threads.run(os.path.lexists, os.path.join(self._request.place, NEXT)):
            raise BusyError(
                f"source {quote(self._request.local)} is being written, or that was interrupted; "
                "wait, or sync down to it again",
                side="source",
            )

    async def _previous(self) -> Manifest | None:
        try:
            return await self._store.read_manifest(self._tree)
        except NotFoundError:
            return None

    async def _origin(self) -> Header | None:
        """What the source was restored from: the header of its own root manifest, if it has one."""
        try:
            header = await LocalTrees("/", self._threads).read_header(
                self._request.place.lstrip("/")
            )
        except NotFoundError:
            return None
        return header

    async def _look(self, source: Directory, previous: Manifest | None, kind: Kind) -> Found:
        nested = previous.nested if previous else await self._nested_there()
        found = await self._compare(source, previous, kind, nested)
        if previous and not found.unchanged:
            # Only a sync that is going to write needs to know what was committed inside since.
            nested = await self._nested_there()
            if nested != previous.nested:
                found = await self._compare(source, previous, kind, nested)
        self._announce(found)
        return found

    async def _compare(
        self,
        source: Directory,
        previous: Manifest | None,
        kind: Kind,
        nested: tuple[NestedEntry, ...],
    ) -> Found:
        inside = {entry.path for entry in nested}
        whole = self._request.delete  # what is not seen would be deleted
        scan = await source.scan(self._selection(kind), inside=inside, whole=whole)
        for path in inside & scan.files.keys() if kind == "rolling" else ():
            del scan.files[path]
            scan.left_out.append((path, "a commit of that name is in the target"))
        held = self._request.held
        scan.left_out += held.left_out if held else ()
        for path, reason in scan.left_out:
            self._observe(Skipped(path=path, reason=reason))
        self._refuse_empty(scan, previous, kind)
        await self._settle(scan)
        known = await self._threads.run(self._records.load, held.originals if held else scan.files)
        there = previous.files if previous else {}
        found = Found(kind, previous, scan, plan_transfer(scan.files, known, there), nested)
        if kind == "rolling" and not self._request.delete:
            found.keeps = True
            gone = set(found.plan.delete).difference(entry.path for entry in found.kept())
            found.plan = replace(found.plan, delete=tuple(sorted(gone, key=sort_key)))
        await self._hash_unknown(source, found)
        return found

    async def _nested_there(self) -> tuple[NestedEntry, ...]:
        """Commits that lie inside the target: trees of their own, which this one only names."""
        try:
            trees = [found.tree async for found in self._store.find(self._tree)]
        except NotFoundError:
            return ()
        headers = dict[str, Header]()

        async def read(tree: str) -> None:
            with suppress(NotFoundError):  # deleted since the listing
                headers[tree] = await self._store.read_header(tree)

        await each([tree for tree in trees if tree != self._tree], read)
        return tuple(
            NestedEntry(tree[len(self._tree) :].lstrip("/"), headers[tree].identity)
            for tree in trees
            if tree in headers
        )

    def _selection(self, kind: Kind) -> Selection:
        asked = self._request.selection
        if kind == "sealed":
            return asked
        return replace(asked, exclude=(*TEMPORARY_NAMES, *asked.exclude))

    def _refuse_empty(self, scan: Scan, previous: Manifest | None, kind: Kind) -> None:
        patterns = self._request.selection
        if kind == "sealed" and not patterns.everything and not (scan.files or scan.nested):
            raise RefusedError(
                f"the patterns select no file of {quote(self._request.local)}; nothing was "
                "committed",
                side="source",
            )
        if previous is None or not previous.files or scan.files:
            return
        if kind == "rolling" and not self._request.delete:
            return
        raise RefusedError(
            f"source {quote(self._request.local)} is empty but {self._where} holds "
            f"{len(previous.files)} files: is it mounted? Nothing was deleted; "
            "delete the target if that is what you want",
            side="source",
        )

    async def _settle(self, scan: Scan) -> None:
        """Wait until a write that we might miss would change a time stamp."""
        wait_ns = scan.settle_ns(int(self._clock.now() * 1e9))
        if wait_ns:
            await self._clock.sleep(wait_ns / 1e9)

    async def _hash_unknown(self, source: Directory, found: Found) -> None:
        """Turn "perhaps the same" into the same or another."""
        plan = found.plan
        found.entries = {entry.path: entry for entry in plan.keep}
        if not plan.check:
            return
        outcome = await self._engine.check(plan.check, source, Tally(ignore))
        found.hashed = True
        assert found.previous is not None, "nothing is checked against nothing"
        other = list(plan.send)
        for file in plan.check:
            old, new = found.previous.files[file.path], outcome.entries.get(file.path)
            if new is not None and new.digest == old.digest:
                found.entries[file.path] = old
            else:
                other.append(file)
        found.plan = replace(plan, send=tuple(other), check=())

    def _announce(self, found: Found) -> None:
        self._observe(
            Planned(
                send_files=len(found.plan.send),
                send_bytes=sum(file.size_bytes for file in found.plan.send),
                skip_files=len(found.entries),
                skip_bytes=sum(entry.size_bytes for entry in found.entries.values()),
                delete_files=len(found.plan.delete),
            )
        )

    # -- deciding

    def _check_conflict(self, found: Found, origin: Header | None) -> None:
        previous, request = found.previous, self._request
        if previous is None or found.unchanged:
            return
        if may_replace(
            previous,
            kind=found.kind,
            origin=origin,
            writer=self._writer,
            replace=request.replace,
        ):
            return
        raise self._conflict(previous, found.kind)

    def _conflict(self, previous: Manifest, kind: Kind) -> ConflictError:
        advice = (
            "a sealed tree changes only with replace"
            if "sealed" in (kind, previous.header.kind)
            else "sync down first, or use replace"
        )
        return ConflictError(
            f"{self._where} holds another commit ({previous.identity[:12]}, "
            f"{len(previous.files)} files, step {previous.header.step}); {advice}",
            winner=previous.identity,
        )

    # -- sending

    async def _send_nested(self, found: Found) -> tuple[NestedEntry, ...]:
        """Sync the commits inside the source, each as a tree of its own, before their parent.

        Returns:
            The commits inside the target after that.
        """
        brought = set(found.scan.nested)
        kept = [entry for entry in found.nested if entry.path not in brought]
        sent = [
            NestedEntry(path, (await self.inside(path).run()).identity)
            for path in found.scan.nested
        ]
        return (*kept, *sent)

    async def _send(self, source: Directory, found: Found) -> Receipt:
        if found.previous is not None and found.unchanged:
            if found.hashed:  # to know it was the work of this sync, and need not be of the next
                await self._remember(found)
            return self._receipt(
                found.previous, found, await self._store.confirm(self._tree), rounds=1
            )
        manifest, durability, rounds = await self._write(source, found)
        found.entries = manifest.files
        if found.kind == "rolling":
            await self._remember(found)
        self._committed(manifest.identity, durability)
        return self._receipt(manifest, found, durability, rounds)

    async def _write(self, source: Directory, found: Found) -> tuple[Manifest, Durability, int]:
        """Send and commit; the number of rounds it took."""
        attempt = new_attempt()
        remembering = Journal.open(self._request.local, str(self._request.remote), self._threads)
        intent = self._intent(found, attempt)
        async with (
            remembering as self._journal,
            self._store.begin(self._tree, replace(intent, keep=self._journal.usable)) as writer,
        ):
            arrived = await self._journal.recall(writer, found.plan.send)
            rounds = await self._until_still(source, found, writer, found.plan.send, arrived)
            manifest, durability = await self._commit(source, found, writer, attempt)
        return manifest, durability, rounds

    def _intent(self, found: Found, attempt: str) -> Intent:
        return Intent(
            attempt=attempt,
            expect=found.previous.identity if found.previous else None,
            # An exchange of the whole directory would take the commits inside along.
            in_place=found.kind == "rolling" or bool(found.nested),
            writer=self._writer,
            files=found.plan.send,
        )

    def _committed(self, identity: str, durability: Durability) -> None:
        location = str(self._request.remote)
        self._observe(Committed(location=location, identity=identity, durability=durability))

    async def _commit(
        self, source: Directory, found: Found, writer: TreeWriter, attempt: str
    ) -> tuple[Manifest, Durability]:
        for again in reversed(range(_ROUNDS)):
            manifest = await self._threads.run(self._manifest, found, attempt)
            found.entries = {}  # a million entries are listed once
            try:
                return manifest, await writer.commit(manifest)
            except IntegrityError as exc:
                files = found.scan.files
                found.entries = {p: e for p, e in manifest.files.items() if p in files}
                missing = tuple(files[path] for path in exc.paths if path in files)
                lost = set[str]()
                if self._request.remote.scheme != "file":  # there, it is not ours to remove
                    lost = {entry.path for entry in found.kept()}.intersection(exc.paths)
                if not (missing or lost) or not again:
                    raise
                found.missing |= lost
            # What its manifest says that the target holds is not there, or a store has dropped
            # what was on its way: send it, too.
            sent = {file.path for file in found.plan.send}
            more = tuple(file for file in missing if file.path not in sent)
            found.plan = replace(found.plan, send=(*found.plan.send, *more))
            await self._until_still(source, found, writer, missing)
        raise AssertionError("unreachable: the loop returns or raises")

    async def _until_still(
        self,
        source: Directory,
        found: Found,
        writer: TreeWriter,
        send: tuple[SourceFile, ...],
        arrived: Mapping[str, Arrived] | None = None,
    ) -> int:
        """Send, look again, and send again what changed; return the number of rounds.

        Args:
            arrived: what `writer` holds already.

        Raises:
            SourceChangedError: something changed in every round.
        """
        for attempt in range(1, _ROUNDS + 1):
            outcome = await self._engine.send(
                send, source, writer, self._tally, arrived=arrived or {}, note=self._journal.note
            )
            arrived = None
            # There may be a million of them, and hardly ever some from before.
            found.entries = (
                {**found.entries, **outcome.entries} if found.entries else outcome.entries
            )
            changed = await self._changed(source, found, set(outcome.moving))
            if not changed:
                return attempt
            for path in sorted(changed, key=sort_key):
                self._observe(SourceChanged(path=path, attempt=attempt))
                found.entries.pop(path, None)
                await writer.discard(path)
            await self._clock.sleep(_PAUSE_S * attempt)
            send = tuple(found.scan.files[path] for path in changed if path in found.scan.files)
            await self._settle(found.scan)
        raise self._unstable(f"changed in each of {_ROUNDS} attempts to read them", changed)

    def _unstable(self, what: str, paths: Iterable[str]) -> SourceChangedError:
        return unstable(self._request.local, what, paths)

    async def _changed(self, source: Directory, found: Found, moving: set[str]) -> set[str]:
        """Paths that are not what was sent. A sealed tree must be still as a whole."""
        if found.kind == "rolling" and not moving:
            return set()
        before = found.scan
        now = await source.scan(
            self._selection(found.kind),
            inside=found.inside,
            known=before.files,
            whole=self._request.delete,
        )
        if before.files and not now.files:
            raise self._unstable("vanished while they were read", before.files)
        if found.kind == "rolling":
            # The others stay what they were when they were read; the next sync sees the rest.
            for path in moving:
                before.files.pop(path, None)
                if path in now.files:
                    before.files[path] = now.files[path]
            return moving
        found.scan = now
        gone = {path for path in before.files if path not in now.files}
        other = {path for path, file in now.files.items() if before.files.get(path) != file}
        return gone | other | moving

    async def _remember(self, found: Found) -> None:
        held = self._request.held
        files = held.originals if held else found.scan.files
        known = [(f, found.entries[path]) for path, f in files.items() if path in found.entries]
        await self._threads.run(self._records.save, known)

    # -- results

    def _manifest(self, found: Found, attempt: str) -> Manifest:
        request, previous = self._request, self._replaced(found)
        step = request.step if request.step is not None else step_of(request.remote.name)
        header = Header(
            kind=found.kind,
            name=request.remote.name,
            step=step,
            sequence=previous.header.sequence + 1 if previous else 1,
            attempt=attempt,
            writer=self._writer,
            tool=self._tools.name,
            created=round(self._clock.now(), 3),
            parent=previous.identity if previous else None,
        )
        return Manifest.of(header, [*found.entries.values(), *found.kept(), *found.others])

    def _replaced(self, found: Found) -> Manifest | None:
        return found.previous

    def _receipt(
        self, manifest: Manifest, found: Found, durability: Durability, rounds: int
    ) -> Receipt:
        kept: list[int] = []
        if len(found.plan.send) < manifest.header.files:  # else a table of a million is not needed
            sent = {file.path for file in found.plan.send}
            kept += [file.size_bytes for path, file in manifest.files.items() if path not in sent]
        return Receipt(
            location=str(self._request.remote),
            identity=manifest.identity,
            kind=manifest.header.kind,
            files=manifest.header.files,
            size_bytes=manifest.header.size_bytes,
            sent_files=self._tally.moved_files - self._tally.resumed_files,
            sent_bytes=self._tally.moved_bytes - self._tally.resumed_bytes,
            resumed_bytes=self._tally.resumed_bytes,
            skipped_files=len(kept),
            skipped_bytes=sum(kept),
            deleted_files=len(found.plan.delete),
            left_out=tuple(found.scan.left_out),
            rounds=rounds,
            durability=durability,
        )
