"""PeerTrees: the TreeStore that another node serves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ...clock import Clock
from ...concurrency import Threads, finish, quietly
from ...digest import ALGORITHM, CHUNK_BYTES
from ...errors import (
    ConflictError,
    CorruptedError,
    FormatError,
    IntegrityError,
    PermanentError,
    TransientError,
    is_interruption,
    quote,
)
from ...manifest import MAX_MANIFEST_BYTES, VERSION, Header, Manifest, decode
from ...secrets import Secret
from ...wire import messages as m
from ...wire.failures import plain
from ...wire.joining import Join
from ..groups import Group
from ..trees import (
    Deleted,
    Durability,
    Gathering,
    Glance,
    Intent,
    NewFile,
    Sighting,
    TreeCapabilities,
    TreeReader,
    TreeWriter,
)
from ..turns import Became, Turn
from .credentials import Access
from .link import Link
from .reader import Reader
from .values import digest_of, durability_of, length_of, member_of
from .writer import Writer

__all__ = ["PeerTrees", "open_joined", "open_trees"]

_REMEMBERED = 1000
_MOST = 2**63  # of what is counted
_GRACE_S = 2.0  # for the number of a session, without which nobody can end it


def open_trees(
    authority: str,
    *,
    secure: bool,
    threads: Threads,
    max_requests: int,
    clock: Clock | None = None,
) -> PeerTrees:
    """The trees of the head at `HOST:PORT`. Connects to nothing."""
    link = Link(authority, secure=secure, threads=threads, max_requests=max_requests, clock=clock)
    return PeerTrees(link, threads)


def open_joined(line: Secret, *, threads: Threads, max_requests: int, clock: Clock) -> PeerTrees:
    """The trees of the head, or of another worker, that a join string leads to.

    Raises:
        ConfigError: it is none.
    """
    join = Join.parse(line)
    link = Link(
        join.address,
        secure=join.fingerprint is not None,
        threads=threads,
        max_requests=max_requests,
        clock=clock,
        access=Access.of(join),
    )
    return PeerTrees(link, threads)


class PeerTrees:
    """Trees that a head keeps. See TreeStore for what every method promises."""

    def __init__(self, link: Link, threads: Threads) -> None:
        self._link, self._threads = link, threads
        self._confirmed: dict[str, Durability] = {}

    def _at(self, tree: str) -> str:
        return quote(f"{self._link.where}/{tree}")

    async def read_manifest(self, tree: str) -> Manifest:
        what = f"read the manifest of {self._at(tree)}"
        self._confirmed.pop(tree, None)
        found, level = await self._manifest(
            "manifest", lambda start: m.Window(tree=tree, start=start), what
        )
        if level is not None:
            self._confirmed[tree] = durability_of(level, what)
            if len(self._confirmed) > _REMEMBERED:
                del self._confirmed[next(iter(self._confirmed))]
        return found

    async def _manifest(
        self, name: str, asked: Callable[[int], m.Window], what: str
    ) -> tuple[Manifest, str | None]:
        """A manifest, window by window, and what its commit survives if that was said."""
        text, total, windows = bytearray(), -1, 0
        while len(text) != total:
            answer = await self._link.ask(name, asked(len(text)), what=what)
            length, before = length_of(answer.headers.get(m.TOTAL), what), total
            if before in (-1, length):
                level, total = answer.headers.get(m.DURABILITY), length
            else:
                raise TransientError(f"{what}: it was replaced meanwhile; try again")
            text += answer.body
            windows += 1
            if not answer.body or not len(text) <= total <= MAX_MANIFEST_BYTES:
                raise PermanentError(
                    f"{what}: the head sends {len(text)} bytes of {total}; upgrade it"
                )
        lines = bytes(text).splitlines(keepends=True)
        try:
            return await self._threads.run(decode, lines), level
        except FormatError:
            raise
        except IntegrityError as exc:
            if windows > 1:  # of two versions, perhaps, that are as long as each other
                raise CorruptedError(f"{what}: {exc}; try again") from exc
            raise

    async def read_header(self, tree: str) -> Header:
        what = f"read the header of {self._at(tree)}"
        found = await self._link.told(Header, "header", m.TreeName(tree=tree), what=what)
        if (found.version, found.digest, found.chunk_bytes) != (VERSION, ALGORITHM, CHUNK_BYTES):
            raise FormatError(f"{what}: it is of another version; upgrade asyncsync")
        for identity in (found.identity, found.parent, found.part_of):
            digest_of(identity or found.identity, what)
        counts = (found.epoch, found.step or 0, found.sequence, found.files, found.size_bytes)
        if not all(0 <= count < _MOST for count in counts):
            raise self._link.foreign(what, "a number in it makes no sense")
        return found

    async def find(self, tree: str) -> AsyncIterator[Sighting]:
        what = f"look for commits in {self._at(tree)}"
        found = await self._link.told(list[m.Sight], "find", m.TreeName(tree=tree), what=what)
        for sight in found:
            path = sight.tree if sight.tree == tree == "" else self._link.path_of(sight.tree, what)
            if tree and path != tree and not path.startswith(f"{tree}/"):
                raise self._link.foreign(what, f"it names {quote(path[:100])}")
            yield Sighting(path, sight.tag)

    async def glance(self, tree: str) -> Glance:
        what = f"look at {self._at(tree)}"
        seen = await self._link.told(m.Seen, "glance", m.TreeName(tree=tree), what=what)
        names = frozenset(self._link.path_of(name, what) for name in seen.names)
        if any("/" in name for name in names):
            raise self._link.foreign(what, "it names what does not lie there")
        return Glance(seen.tag, names)

    async def list_files(self, tree: str) -> list[NewFile]:
        what = f"list {self._at(tree)}"
        listed = await self._link.told(list[m.FileLine], "files", m.TreeName(tree=tree), what=what)
        return [
            NewFile(self._link.path_of_file(f, what), f.size_bytes, f.mode & 0o777, f.mtime_ns)
            for f in listed
        ]

    @asynccontextmanager
    async def open(self, tree: str, manifest: Manifest | None) -> AsyncIterator[TreeReader]:
        reader = Reader(self._link, tree, manifest, self._at(tree))
        try:
            await finish(reader.begin, grace_s=_GRACE_S)
            yield reader
        finally:
            await quietly(reader.end)

    @asynccontextmanager
    async def begin(self, tree: str, intent: Intent) -> AsyncIterator[TreeWriter]:
        self._confirmed.pop(tree, None)
        writer = Writer(self._link, tree, intent, self._at(tree))
        try:
            await finish(writer.begin, grace_s=_GRACE_S)
            yield writer
        except BaseException as exc:
            keep = intent.keep and is_interruption(exc)
            await quietly(lambda: writer.end(keep=keep))
            raise
        await quietly(lambda: writer.end(keep=False))

    async def read_part(self, tree: str, group: Group) -> Manifest:
        what = f"read the part of rank {group.rank} at {self._at(tree)}"
        member = member_of(group)
        found, _ = await self._manifest(
            "part", lambda start: m.PartWindow(tree=tree, start=start, group=member), what
        )
        return found

    async def gather(self, tree: str, intent: Intent) -> Gathering:
        assert intent.group is not None, "a group is what is gathered"
        what = f"gather the parts at {self._at(tree)}"
        asked = m.Gather(
            tree=tree,
            attempt=intent.attempt,
            expect=intent.expect,
            writer=intent.writer,
            group=member_of(intent.group),
        )
        said = await self._link.told(m.Gathered, "gather", asked, what=what)
        level = None if said.durability is None else durability_of(said.durability, what)
        return Gathering(missing=tuple(said.missing), durability=level)

    async def delete(
        self, tree: str, *, expect: str | None = None, uncommitted: bool = False
    ) -> Deleted:
        asked = m.Delete(tree=tree, expect=expect, uncommitted=uncommitted)
        what = f"delete {self._at(tree)}"
        try:
            done = await self._link.told(m.Deletion, "delete", asked, what=what)
        except ConflictError as exc:
            if expect is not None or not exc.winner:
                raise
            asked.expect = exc.winner  # whichever commit is there: a head has to be told which
            done = await self._link.told(m.Deletion, "delete", asked, what=what)
        return Deleted(done.files, tuple(self._link.path_of(one, what) for one in done.kept))

    async def clean(self, tree: str, *, older_than_s: float) -> list[str]:
        asked = m.Clean(tree=tree, older_than_s=older_than_s)
        what = f"clean {self._at(tree)}"
        done = await self._link.told(m.Cleaned, "clean", asked, what=what)
        return [self._link.path_of(one, what) if one else "" for one in done.trees]

    async def confirm(self, tree: str) -> Durability:
        if (level := self._confirmed.pop(tree, None)) is not None:
            return level  # that of the commit that was read just now
        return (await self.onward(tree))[0]

    async def onward(self, tree: str) -> tuple[Durability, str | None]:
        """What the commit survives, and why the head cannot carry it on.

        Empty: it can, or has; None: it carries nothing on.
        """
        what = f"confirm {self._at(tree)}"
        said = await self._link.told(m.Level, "confirm", m.TreeName(tree=tree), what=what)
        failure = None if said.onward is None else plain(said.onward)
        return durability_of(said.durability, what), failure

    async def hello(self) -> m.Hello:
        """What the head says of itself, and of our token."""
        what = f"ask {self._link.where}"
        return self._link.read(m.Hello, await self._link.ask("hello", what=what), what)

    async def mark_root(self, tree: str, marker: bytes) -> bytes:
        what = f"mark {self._at(tree)}"
        asked = m.Mark(tree=tree, marker=marker)
        return (await self._link.told(m.Marked, "mark", asked, what=what)).marker

    async def probe(self, tree: str) -> TreeCapabilities:
        what = f"probe {self._at(tree)}"
        found = await self._link.told(m.Probed, "probe", m.TreeName(tree=tree), what=what)
        return TreeCapabilities(
            durability=durability_of(found.durability, what),
            exclusive=found.exclusive,
            raw_names=found.raw_names,
            case_sensitive=found.case_sensitive,
            keeps_normalization=found.keeps_normalization,
            notes=tuple(found.notes),
        )

    async def turn(
        self,
        tree: str,
        identity: str,
        reader: str,
        became: Became,
        *,
        line: str = "",
        held: str = "",
    ) -> Turn:
        """See `Turns`."""
        asked = m.Turn(
            tree=tree, identity=identity, reader=reader, became=became, line=line, held=held
        )
        said = await self._link.told(m.Sent, "turn", asked, what=f"read {self._at(tree)} by turns")
        return Turn(said.go, said.line, said.held)

    async def aclose(self) -> None:
        await self._link.aclose()
