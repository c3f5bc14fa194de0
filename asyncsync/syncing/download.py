"""One attempt to make a local directory hold what a location holds."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import msgspec

from ..digest import chunk_count
from ..errors import (
    ClashError,
    ConfigError,
    IntegrityError,
    NotCommittedError,
    NotFoundError,
    quote,
    quote_some,
    sided,
)
from ..events import Committed, Planned, Skipped, ignore
from ..location import Location
from ..manifest import DirectoryEntry, Entry, FileEntry, Header, Manifest
from ..names import NEXT, new_attempt
from ..patterns import Selection
from ..storage import Durability, Intent, NewFile, Stored, TreeStore, TreeWriter
from ..storage.local import LocalTrees
from ..transfer import Arrived, Directory, Scan, SourceFile, Tally, Unverified
from ..transfer import Committed as CommittedSource
from .base import Path, Receipt, SyncPlan
from .decisions import LocalTree, RestorePlan, check_foreign, plan_restore
from .requests import local_path
from .tools import Tools

__all__ = ["Download", "DownloadRequest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadRequest:
    """What the caller of a download asked for."""

    remote: Location
    local: str
    selection: Selection
    allow_unverified: bool = False

    @classmethod
    def of(
        cls,
        remote_dir: Path,
        local_dir: Path,
        exclude: Sequence[str],
        include: Sequence[str],
        allow_unverified: bool,
    ) -> DownloadRequest:
        """The request, checked."""
        return cls(
            remote=Location.parse(remote_dir),
            local=local_path(local_dir),
            selection=Selection(exclude, include),
            allow_unverified=allow_unverified,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    """What to fetch, and what for.

    Attributes:
        whole: the commit; None for a tree without one, whose files are `raw`.
        wanted: what the directory is to hold of it.
        previous: what an earlier restore put there.
        complete: everything wanted is there already.
    """

    whole: Manifest | None = None
    wanted: tuple[Entry, ...] = ()
    raw: tuple[NewFile, ...] = ()
    previous: Manifest | None = None
    plan: RestorePlan = field(default_factory=lambda: RestorePlan((), (), (), ()))
    complete: bool = False


@dataclass(frozen=True, slots=True)
class _Local:
    """What a walk found in the target directory."""

    scanned: dict[str, SourceFile]
    tree: LocalTree

    @property
    def directories(self) -> frozenset[str]:
        return self.tree.directories

    @classmethod
    def of(cls, scan: Scan) -> _Local:
        files = {path: file.new for path, file in scan.files.items()}
        others = {*scan.nested, *(path for path, _ in scan.left_out)}
        directories = {entry.path for entry in scan.directories}
        for path in (*files, *others, *directories):
            while (path := path.rpartition("/")[0]) and path not in directories:
                directories.add(path)
        return cls(scan.files, LocalTree(files, frozenset(directories), frozenset(others)))


class Download:
    """One download. Arguments as for Upload; the local directory is written as any local tree.

    `expect` is the identity of the commit that has to be there.
    """

    def __init__(
        self,
        request: DownloadRequest,
        store: TreeStore,
        tree: str,
        tools: Tools,
        expect: str | None = None,
    ) -> None:
        self._expect = expect
        self._request, self._store, self._tree = request, store, tree
        self._tools, self._observe = tools, tools.observe
        self._engine, self._threads, self._clock = tools.engine, tools.threads, tools.clock
        self._target = LocalTrees("/", tools.threads)
        self._target_tree = request.local.lstrip("/")
        self._tally = Tally(tools.observe)
        self.identity: str | None = None
        """Which commit it is reading, once it knows."""

    async def plan(self) -> SyncPlan:
        """What `run` would do; writes nothing."""
        decided = await self._decide()
        fetch = [_new(entry) for entry in decided.plan.fetch]
        return SyncPlan(
            target=self._request.local,
            send=tuple(fetch) + decided.raw,
            skip=tuple(_new(entry) for entry in decided.plan.keep),
            delete=decided.plan.delete,
        )

    async def run(self) -> Receipt:
        """Fetch what is not there yet, verify it, and commit it locally.

        Raises:
            IntegrityError: what arrived is not what was committed; the directory is as it was.
            ClashError: the directory holds files of the user's own under these names.
        """
        started = self._clock.monotonic()
        await self._finish_interrupted()
        decided = await self._decide()
        receipt = await (self._fetch(decided) if decided.whole else self._fetch_raw(decided))
        nested = await self._nested(decided)
        return replace(
            receipt,
            sent_files=receipt.sent_files + sum(r.sent_files for r in nested),
            sent_bytes=receipt.sent_bytes + sum(r.sent_bytes for r in nested),
            resumed_bytes=receipt.resumed_bytes + sum(r.resumed_bytes for r in nested),
            seconds=self._clock.monotonic() - started,
        )

    async def _finish_interrupted(self) -> None:
        """Put into place what an earlier restore had committed when it was interrupted."""
        if not await self._threads.run(os.path.lexists, f"{self._request.local}/{NEXT}"):
            return
        with sided("target"):
            there = await self._target.read_header(self._target_tree)
            intent = Intent(attempt=new_attempt(), expect=there.identity, in_place=True)
            async with self._target.begin(self._target_tree, intent):
                return

    # -- deciding

    async def _decide(self) -> _Decided:
        try:
            whole = await self._store.read_manifest(self._tree)
        except NotCommittedError:
            if not self._request.allow_unverified:
                raise
            return await self._decide_raw()
        self.identity = whole.identity
        if self._expect not in (None, whole.identity):
            raise IntegrityError(
                f"{quote(str(self._request.remote))} is read from a place that has another commit "
                f"of it ({whole.identity[:12]})",
                side="source",
            )
        wanted = self._wanted(whole)
        previous = await self._previous(whole)
        files = {entry.path: entry for entry in wanted if isinstance(entry, FileEntry)}
        async with self._directory() as (directory, local):
            plan = await self._compare(files, previous.files if previous else {}, directory, local)
        self._announce(plan)
        hollow = {entry.path for entry in wanted if isinstance(entry, DirectoryEntry)}
        return _Decided(
            whole=whole,
            wanted=self._with_earlier(whole, wanted, previous),
            previous=previous,
            plan=plan,
            complete=not plan.fetch and hollow <= local.directories,
        )

    def _wanted(self, whole: Manifest) -> tuple[Entry, ...]:
        selection = self._request.selection
        if selection.everything:
            return whole.entries
        chosen = tuple(
            entry
            for entry in whole.entries
            if (
                selection.takes(entry.path)
                if isinstance(entry, FileEntry)
                else selection.takes_directory(entry.path)
            )
        )
        if whole.entries and not chosen:
            raise NotFoundError(
                f"{quote(str(self._request.remote))} holds {len(whole.files)} files, but the "
                "patterns select none of them; `ls` and verify show what there is",
                side="source",
            )
        return chosen

    async def _previous(self, whole: Manifest) -> Manifest | None:
        """What an earlier restore put into the directory."""
        try:
            with sided("target"):
                previous = await self._target.read_manifest(self._target_tree)
        except NotFoundError as exc:
            await self._threads.run(self._refuse_file, exc)
            return None
        # Of a rolling tree, a part of the new version takes the place of that of the old one.
        kinds = {previous.header.kind, whole.header.kind}
        another = previous.source != whole.identity and kinds != {"rolling"}
        if not self._request.selection.everything and another:
            raise ClashError(
                f"{quote(self._request.local)} holds (a part of) another commit, "
                f"{previous.source[:12]}; restore a part into an empty directory",
                side="target",
            )
        return previous

    def _refuse_file(self, cause: NotFoundError) -> None:
        there = self._request.local
        while not os.path.lexists(there):
            there = os.path.dirname(there)
        if not os.path.isdir(there):
            raise ConfigError(f"target {quote(there)} is a file; name a directory") from cause

    def _with_earlier(
        self, whole: Manifest, wanted: tuple[Entry, ...], previous: Manifest | None
    ) -> tuple[Entry, ...]:
        """A part of a commit joins the parts of the same commit that are there already."""
        if previous is None or self._request.selection.everything:
            return wanted
        if previous.source != whole.identity:
            return wanted
        paths = {entry.path for entry in wanted}
        return (*wanted, *(entry for entry in previous.entries if entry.path not in paths))

    async def _compare(
        self,
        wanted: Mapping[str, FileEntry],
        previous: Mapping[str, FileEntry],
        directory: Directory | None,
        local: _Local,
    ) -> RestorePlan:
        if directory is None:
            return plan_restore(wanted, LocalTree(), {}, {})
        unsure = [
            file
            for path, file in local.scanned.items()
            if any(
                path in entries and entries[path].size_bytes == file.size_bytes
                for entries in (wanted, previous)
            )
        ]
        outcome = await self._engine.check(unsure, directory, Tally(ignore))
        digests = {path: entry.digest for path, entry in outcome.entries.items()}
        if not self._request.selection.everything:
            previous = {path: entry for path, entry in previous.items() if path in wanted}
        plan = plan_restore(wanted, local.tree, digests, previous)
        if plan.clash:
            raise ClashError(
                f"{quote(self._request.local)} holds files that are not what asyncsync restored "
                f"there: {quote_some(plan.clash)}; move them away, or restore elsewhere",
                side="target",
                paths=plan.clash,
            )
        return plan

    @asynccontextmanager
    async def _directory(self) -> AsyncIterator[tuple[Directory | None, _Local]]:
        """The target directory, if it exists, and what is in it."""
        async with AsyncExitStack() as stack:
            stack.enter_context(sided("target"))
            opening = Directory.open(self._request.local, "rolling", self._threads)
            held: tuple[Directory | None, _Local] = None, _Local({}, LocalTree())
            with suppress(NotFoundError):
                one = await stack.enter_async_context(opening)
                held = one, _Local.of(await one.scan(Selection()))
            yield held

    async def _decide_raw(self) -> _Decided:
        takes = self._request.selection.takes
        raw = [f for f in await self._store.list_files(self._tree) if takes(f.path)]
        await self._threads.run(check_foreign, [f.path for f in raw], self._request.remote)
        async with self._directory() as (_, local):
            clash = sorted(local.scanned.keys() & {file.path for file in raw})
        if clash:
            raise ClashError(
                f"{quote(self._request.local)} holds files under the same names: "
                f"{quote_some(clash)}; choose an empty directory",
                side="target",
                paths=clash,
            )
        return _Decided(raw=tuple(raw))

    def _announce(self, plan: RestorePlan) -> None:
        self._observe(
            Planned(
                send_files=len(plan.fetch),
                send_bytes=sum(entry.size_bytes for entry in plan.fetch),
                skip_files=len(plan.keep),
                skip_bytes=sum(entry.size_bytes for entry in plan.keep),
                delete_files=len(plan.delete),
            )
        )

    # -- fetching

    async def _fetch(self, decided: _Decided) -> Receipt:
        assert decided.whole is not None, "only trees with a manifest come here"
        manifest = self._local_manifest(decided.whole, decided.wanted)
        there = decided.previous.identity if decided.previous else None
        if there == manifest.identity and decided.complete:
            return self._receipt(manifest, decided, await self._target.confirm(self._target_tree))
        async with self._begin(decided, keep=True) as writer:
            arrived = await self._recall(decided, writer)
            async with self._store.open(self._tree, decided.whole) as reader:
                source = CommittedSource(reader, quote(str(self._request.remote)))
                await self._engine.send(
                    decided.plan.fetch, source, writer, self._tally, arrived=arrived
                )
            durability = await writer.commit(manifest)
        return self._committed(manifest, decided, durability)

    async def _fetch_raw(self, decided: _Decided) -> Receipt:
        async with self._begin(decided) as writer:
            async with self._store.open(self._tree, None) as reader:
                outcome = await self._engine.send(
                    decided.raw, Unverified(reader), writer, self._tally
                )
            header = Header(
                name=self._request.remote.name,
                attempt=new_attempt(),
                tool=self._tools.name,
                created=round(self._clock.now(), 3),
            )
            manifest = Manifest.of(header, outcome.entries.values())
            durability = await writer.commit(manifest)
        return self._committed(manifest, decided, durability)

    @staticmethod
    async def _recall(decided: _Decided, writer: TreeWriter) -> dict[str, Arrived]:
        """What an interrupted download has fetched: the manifest tells it by its digest."""
        if not writer.resumes:
            return {}
        fetch = decided.plan.fetch
        expected = [{n: e.chunk_digest(n) for n in range(chunk_count(e.size_bytes))} for e in fetch]
        found = await writer.recall(
            [
                (_new(entry), {number: Stored(one) for number, one in digests.items()})
                for entry, digests in zip(fetch, expected, strict=True)
            ]
        )
        return {
            entry.path: Arrived({number: digests[number] for number in numbers}, current=True)
            for entry, digests, numbers in zip(fetch, expected, found, strict=True)
            if numbers
        }

    @asynccontextmanager
    async def _begin(self, decided: _Decided, *, keep: bool = False) -> AsyncIterator[TreeWriter]:
        intent = Intent(
            attempt=new_attempt(),
            expect=decided.previous.identity if decided.previous else None,
            in_place=True,
            keep=keep,
        )
        async with self._target.begin(self._target_tree, intent) as writer:
            yield writer

    @staticmethod
    def _local_manifest(whole: Manifest, wanted: tuple[Entry, ...]) -> Manifest:
        """The commit's own manifest, or one of the chosen part that says what it is a part of."""
        if len(wanted) == len(whole.entries):
            return whole
        header = msgspec.structs.replace(whole.header, part_of=whole.identity)
        return Manifest.of(header, wanted)

    def _committed(self, manifest: Manifest, decided: _Decided, durability: Durability) -> Receipt:
        local = self._request.local
        self._observe(Committed(location=local, identity=manifest.identity, durability=durability))
        return self._receipt(manifest, decided, durability)

    def _receipt(self, manifest: Manifest, decided: _Decided, durability: Durability) -> Receipt:
        return Receipt(
            location=self._request.local,
            identity=manifest.identity,
            kind=manifest.header.kind,
            files=manifest.header.files,
            size_bytes=manifest.header.size_bytes,
            sent_files=self._tally.moved_files - self._tally.resumed_files,
            sent_bytes=self._tally.moved_bytes - self._tally.resumed_bytes,
            resumed_bytes=self._tally.resumed_bytes,
            skipped_files=len(decided.plan.keep),
            skipped_bytes=sum(entry.size_bytes for entry in decided.plan.keep),
            deleted_files=len(decided.plan.delete),
            durability=durability,
        )

    async def _nested(self, decided: _Decided) -> list[Receipt]:
        """Fetch the commits inside, too, by the same patterns; one that is gone is named."""
        receipts = list[Receipt]()
        for entry in decided.whole.nested if decided.whole else ():
            if not self._request.selection.takes_directory(entry.path):
                continue
            child = Download(
                replace(
                    self._request,
                    remote=self._request.remote / entry.path,
                    local=f"{self._request.local}/{entry.path}",
                    selection=self._request.selection.below(entry.path),
                ),
                self._store,
                f"{self._tree}/{entry.path}".lstrip("/"),
                self._tools,
            )
            try:
                receipts.append(await child.run())
            except NotFoundError:
                self._observe(Skipped(path=entry.path, reason="this commit inside is gone"))
        return receipts


def _new(entry: FileEntry) -> NewFile:
    return NewFile(entry.path, entry.size_bytes, entry.mode, entry.mtime_ns)
