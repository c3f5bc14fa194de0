"""What makes a target hold what a source holds. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..manifest import FileEntry
from ..names import parents_of, sort_key
from .pieces import SourceFile

__all__ = ["Plan", "plan_transfer", "vanished"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with every file, by path and in order.

    Attributes:
        send: not there, or other there.
        check: perhaps the same: as large as there, but nobody has hashed this version yet.
        keep: the same there.
        delete: there, but no longer in the source.
    """

    send: tuple[SourceFile, ...]
    check: tuple[SourceFile, ...]
    keep: tuple[FileEntry, ...]
    delete: tuple[str, ...]


def plan_transfer(
    files: Mapping[str, SourceFile],
    known: Mapping[str, FileEntry],
    there: Mapping[str, FileEntry],
) -> Plan:
    """Decide what makes the target equal to `files`.

    Args:
        files: the source, by path.
        known: entries whose digest is known to be that of the source's current version.
        there: the entries of the commit at the target.

    Returns:
        The plan; same inputs, same plan. A file is unchanged only when its digest is the same;
        size and time alone never make it so.
    """
    send, check, keep = list[SourceFile](), list[SourceFile](), list[FileEntry]()
    for path, file in files.items():
        old, new = there.get(path), known.get(path)
        if old is None or (old.size_bytes, old.mode) != (file.size_bytes, file.mode):
            send.append(file)
        elif new is None:
            check.append(file)
        elif new.digest == old.digest:
            keep.append(old)
        else:
            send.append(file)
    delete = sorted(there.keys() - files.keys(), key=sort_key)
    return Plan(tuple(send), tuple(check), tuple(keep), tuple(delete))


def vanished(there: Iterable[FileEntry], files: Collection[str]) -> list[FileEntry]:
    """What is there and not in the source, and may stay: no file of the source needs its place."""
    above = parents_of(files)
    return [
        entry
        for entry in there
        if entry.path not in files
        and entry.path not in above
        and parents_of([entry.path]).isdisjoint(files)
    ]
