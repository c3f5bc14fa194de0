"""The newest commit at a location, found with few requests by whoever asks again and again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from ..concurrency import each
from ..errors import CorruptedError, IntegrityError, NotFoundError
from ..location import Location
from ..storage import Sighting, TreeStore
from .commits import Commit, candidates, damaged_error, read_commit, refuse_damaged

__all__ = ["Look", "Newest"]

_LOCATIONS = 64  # that are remembered
_COMMITS = 10_000  # of one location that are


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be seen at a location.

    Attributes:
        commits: by path below the location; the empty path is the location itself. Where that is
            a sealed commit, what is inside was not looked at.
        newest: path of the newest one; None when there is none.
    """

    commits: Mapping[str, Commit] = field(default_factory=dict)
    newest: str | None = None

    @property
    def commit(self) -> Commit | None:
        """The newest one."""
        return None if self.newest is None else self.commits[self.newest]

    @property
    def is_sealed(self) -> bool:
        """Whether the location itself is a checkpoint: its own header says all there is to say."""
        return self.newest == "" and self.commits[""].kind == "sealed"


@dataclass(frozen=True, slots=True)
class _Memory:
    """The last look, and the good headers it rests on."""

    look: Look = field(default_factory=Look)
    read: Mapping[Sighting, Commit] = field(default_factory=dict)


class Newest:
    """Looks at locations and remembers what it saw there.

    A look lists everything below, so that no new commit is missed wherever it lies: without news
    that is all, one request for every thousand objects or so. Where the location itself is a sealed
    commit, its header is asked for instead. What is new is read, and nothing else.
    """

    def __init__(self) -> None:
        self._memories: dict[str, _Memory] = {}

    async def look(self, store: TreeStore, location: Location, tree: str) -> Look:
        """What is at and below `location`, which is `tree` in its store.

        Raises:
            IntegrityError: the newest commit is damaged; names the next one.
        """
        memory = self._memories.get(str(location), _Memory())
        if not await _is_same_checkpoint(store, tree, memory.look):
            memory = await _Search(store, location, tree, memory).run()
        self._remember(str(location), memory)
        return memory.look

    def _remember(self, key: str, memory: _Memory) -> None:
        self._memories.pop(key, None)  # whoever asked last is forgotten last
        if len(memory.read) <= _COMMITS:
            self._memories[key] = memory
        if len(self._memories) > _LOCATIONS:
            del self._memories[next(iter(self._memories))]


async def _is_same_checkpoint(store: TreeStore, tree: str, look: Look) -> bool:
    if not look.is_sealed:
        return False
    try:
        return (await store.read_header(tree)).attempt == look.commits[""].attempt
    except (NotFoundError, IntegrityError):
        return False


class _Search:
    """One look. `run` is called once."""

    def __init__(self, store: TreeStore, location: Location, tree: str, memory: _Memory) -> None:
        self._store, self._location, self._tree = store, location, tree
        self._memory = memory
        self._found: dict[Sighting, Commit | None] = {}

    async def run(self) -> _Memory:
        await each(await self._list(), self._read)
        commits = {self._path(s): commit for s, commit in self._found.items() if commit}
        newest = await self._newest(commits)
        read = {s: c for s, c in self._found.items() if c and c.damaged is None and s.tag}
        return _Memory(Look(commits, newest), read)

    def _path(self, sighting: Sighting) -> str:
        return sighting.tree[len(self._tree) :].lstrip("/")

    async def _list(self) -> list[Sighting]:
        """All there is; where the location itself is a sealed commit, only that."""
        sightings = list[Sighting]()
        # A listing that is left early has to be closed; that of every store can be.
        listing = cast("AsyncGenerator[Sighting, None]", self._store.find(self._tree))
        try:
            async with aclosing(listing):
                async for sighting in listing:
                    sightings.append(sighting)
                    if sighting.tree == self._tree and _is_sealed(await self._read(sighting)):
                        return [sighting]
        except NotFoundError:
            return []
        return sightings

    async def _read(self, sighting: Sighting) -> Commit | None:
        """The commit that was sighted, from the store unless it is known."""
        if sighting not in self._found:
            self._found[sighting] = self._memory.read.get(sighting) or await read_commit(
                self._store, self._location, self._tree, sighting.tree
            )
        return self._found[sighting]

    async def _newest(self, commits: dict[str, Commit]) -> str | None:
        """Path of the newest one, whose whole manifest is good; those that are gone are dropped."""
        paths = {commit.location: path for path, commit in commits.items()}
        ordered = sorted(commits.values(), key=lambda commit: commit.order, reverse=True)
        chosen = candidates(ordered, self._location)
        for number, commit in enumerate(chosen):
            path = paths[commit.location]
            if commit is self._memory.look.commit:  # not merely equal: nobody touched it since
                return path
            try:
                checked = await self._checked(path, commit)
            except NotFoundError:
                del commits[path]
            except CorruptedError:  # on the way, not in the store
                raise
            except IntegrityError as exc:
                raise damaged_error(commit, str(exc), chosen[number + 1 :]) from exc
            else:
                if checked != commit:  # replaced since its header was read
                    commits[path] = checked
                return path
        return None

    async def _checked(self, path: str, commit: Commit) -> Commit:
        """The commit, by its whole manifest."""
        refuse_damaged(commit)
        manifest = await self._store.read_manifest(f"{self._tree}/{path}".strip("/"))
        return Commit.of(Location.parse(commit.location), manifest.header)


def _is_sealed(commit: Commit | None) -> bool:
    return commit is not None and commit.damaged is None and commit.kind == "sealed"
