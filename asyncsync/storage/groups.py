"""Many writers of one commit: who they are, and how their parts become one tree. Pure.

The protocol is described in docs/formats/groups.md.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from ..digest import digest
from ..errors import ConfigError, RefusedError, quote
from ..manifest import DirectoryEntry, Entry, FileEntry, Header, Manifest
from ..names import parents_of

__all__ = ["Group", "group_attempt", "merge"]

_MAX_ID = 200
_MAX_SIZE = 100_000


def group_attempt(id: str) -> str:
    """The attempt that all writers of that id commit together."""
    return digest(f"asyncsync group v1\n{id}".encode())[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One writer of several that commit one tree together, each a part of it.

    Attributes:
        id: names this attempt of all of them. A trainer that is restarted takes another id; parts
            never mix across ids, and the one that began last wins.
        rank: which writer this is, from 0.
        size: how many there are.
        deadline_s: how long to wait for the others, in seconds.
    """

    id: str
    rank: int
    size: int
    deadline_s: float = 1800.0

    def __post_init__(self) -> None:
        known = isinstance(self.id, str) and self.id.isprintable()
        if not known or not 0 < len(self.id) <= _MAX_ID:
            raise ConfigError(f"a group's id is printable text of 1 to {_MAX_ID} characters")
        for name in ("rank", "size"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        if not 1 <= self.size <= _MAX_SIZE:
            raise ConfigError(f"a group's size is 1 to {_MAX_SIZE}, not {self.size}")
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank {self.rank} is none of a group of {self.size}: 0 is the first")
        if not self.deadline_s > 0:
            raise ConfigError(f"deadline_s must be above 0, not {self.deadline_s!r}")

    @property
    def attempt(self) -> str:
        """By which attempt their commit is known."""
        return group_attempt(self.id)

    @property
    def writer(self) -> str:
        """Who this is for the store: the same rank of the same id, on whichever machine."""
        return digest(f"{self.attempt}\n{self.rank}".encode())

    @property
    def what(self) -> str:
        """The group in words."""
        return f"group {quote(self.id)}"


def _whole(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type] # it is what raises
    except TypeError:
        raise ConfigError(f"a group's {name} is a whole number, not {value!r}") from None


def merge(parts: Mapping[int, Manifest], where: str) -> Manifest:
    """The manifest of the whole, from those of all ranks: the same for whoever merges them.

    Raises:
        RefusedError: two ranks do not fit together; names both, and the path.
    """
    owners: dict[str, int] = {}
    files: dict[str, FileEntry] = {}
    empty: dict[str, DirectoryEntry] = {}
    for rank, part in sorted(parts.items()):
        for path, file in part.files.items():
            first = files.setdefault(path, file)
            owner = owners.setdefault(path, rank)
            if (first.digest, first.size_bytes) != (file.digest, file.size_bytes):
                raise _misfit(where, path, owner, rank, "with different bytes")
        for entry in part.directories:
            empty.setdefault(entry.path, entry)
    filled = _filled(parts, owners, where)
    entries: list[Entry] = [*files.values()]
    entries += [entry for path, entry in empty.items() if path not in filled]
    return Manifest.of(_header(parts, where), entries)


def _filled(parts: Mapping[int, Manifest], owners: Mapping[str, int], where: str) -> set[str]:
    """The directories that are not empty in the whole; none may be a file of another rank."""
    filled: set[str] = set()
    for rank, part in parts.items():
        held = parents_of(entry.path for entry in part.entries)
        named = held.union(entry.path for entry in part.directories)
        for path in sorted(named & owners.keys()):
            low, high = sorted((owners[path], rank))
            raise _misfit(where, path, low, high, "one as a file, one as a directory")
        filled |= held
    return filled


def _header(parts: Mapping[int, Manifest], where: str) -> Header:
    headers = {rank: part.header for rank, part in sorted(parts.items())}
    first, base = next(iter(headers.items()))
    for rank, header in headers.items():
        if header.step != base.step:
            raise RefusedError(
                f"{where}: rank {first} says step {base.step} and rank {rank} step {header.step}; "
                "give all the same step",
                side="target",
            )
    return msgspec.structs.replace(base, created=max(h.created for h in headers.values()))


def _misfit(where: str, path: str, one: int, other: int, how: str) -> RefusedError:
    return RefusedError(
        f"{where}: ranks {one} and {other} both hold {quote(path)}, {how}; nothing was committed. "
        "Give it another name in one of them, and the group another id",
        paths=[path],
    )
