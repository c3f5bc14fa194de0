"""What an upload finds at both ends, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..manifest import DirectoryEntry, Entry, FileEntry, Kind, Manifest, NestedEntry
from ..names import parents_of, sort_key
from ..transfer import Plan, Scan, vanished

__all__ = ["Found"]


@dataclass
class Found:
    """What is at both ends, and what follows from it.

    Attributes:
        keeps: what is gone from the source stays in the target,
        missing: unless it is not there any more either.
    """

    kind: Kind
    previous: Manifest | None
    scan: Scan
    plan: Plan
    nested: tuple[NestedEntry, ...]
    entries: Mapping[str, FileEntry] = field(default_factory=dict)
    hashed: bool = False
    keeps: bool = False
    missing: set[str] = field(default_factory=set)

    @property
    def inside(self) -> set[str]:
        """Paths of the commits inside the target."""
        return {entry.path for entry in self.nested}

    @property
    def others(self) -> tuple[Entry, ...]:
        filled = parents_of(entry.path for entry in self.kept())
        return (*(e for e in self.scan.directories if e.path not in filled), *self.nested)

    def kept(self) -> list[FileEntry]:
        """What is gone from the source, and stays where there is room for it."""
        if self.previous is None or not self.keeps:
            return []
        there = (file for path, file in self.previous.files.items() if path not in self.missing)
        empty = (f"{entry.path}/" for entry in self.scan.directories)  # may be filled, not replaced
        return vanished(there, self.inside.union(self.scan.files, empty))

    @property
    def unchanged(self) -> bool:
        """Whether the target holds what the source holds."""
        if self.previous is None or self.plan.send or self.plan.delete:
            return False
        if self.previous.header.kind != self.kind:
            return False
        if not self.inside.issuperset(self.scan.nested):
            return False
        others = [e for e in self.previous.entries if not isinstance(e, FileEntry)]
        return sorted(others, key=_path) == sorted(self.others, key=_path)


def _path(entry: DirectoryEntry | FileEntry | NestedEntry) -> bytes:
    return sort_key(entry.path)
