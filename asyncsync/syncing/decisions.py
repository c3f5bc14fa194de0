"""What a sync may do, decided from values. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ConfigError, RefusedError, quote
from ..location import Location
from ..manifest import FileEntry, Header, Kind, Manifest
from ..names import check_path, check_set
from ..storage import NewFile
from .base import Replace

__all__ = [
    "LocalTree",
    "RestorePlan",
    "check_foreign",
    "check_overlap",
    "may_replace",
    "plan_restore",
    "step_of",
]

_TRAILING_NUMBER = re.compile(r"(?:^|[^0-9])0*([0-9]{1,18})\Z")


def step_of(name: str) -> int | None:
    """The training step in a checkpoint's name: `checkpoint_000010` is 10."""
    match = _TRAILING_NUMBER.search(name)
    return int(match[1]) if match else None


def check_overlap(local: str, remote: Location) -> None:
    """Refuse to sync a directory with itself, or with one inside the other.

    Args:
        local: absolute path.
        remote: where the other tree is; only `file` locations can overlap.

    Raises:
        ConfigError: they overlap.
    """
    if remote.scheme != "file":
        return
    one, other = local.rstrip("/") + "/", remote.path.rstrip("/") + "/"
    if one == other:
        raise ConfigError(f"source and target are the same directory: {quote(local)}")
    if one.startswith(other) or other.startswith(one):
        outer, inner = sorted((local, remote.path), key=len)
        raise ConfigError(
            f"source and target overlap: {quote(inner)} is inside {quote(outer)}; "
            "choose a place outside"
        )


def check_foreign(paths: Sequence[str], remote: Location) -> None:
    """Refuse names that others gave and that no directory can hold, before anything is written.

    Args:
        paths: of the files below `remote` that are wanted.

    Raises:
        RefusedError: and names one of them and the rule that it breaks.
    """
    try:
        for path in paths:
            check_path(path)
        check_set(paths)
    except RefusedError as exc:
        raise RefusedError(
            f"{quote(str(remote))}: {exc}; exclude it to fetch the rest",
            side="source",
            paths=exc.paths,
        ) from exc


def may_replace(
    previous: Manifest, *, kind: Kind, origin: Header | None, writer: str, replace: Replace
) -> bool:
    """Whether a changed source may take the place of the commit at the target.

    A rolling tree may when that commit is the version its writer has seen: the one it wrote
    itself, or the one that the source was restored from. Anything else needs `replace`.

    Args:
        previous: the commit at the target.
        kind: of the new version.
        origin: header of the source's own root manifest: what it was restored from. A restored
            part never takes the place of the whole.
        writer: who is writing.
        replace: the caller said so.
    """
    if replace is True or (replace == "own" and previous.header.writer == writer):
        return True
    if kind == "sealed" or previous.header.kind == "sealed":
        return False
    if origin is not None and origin.part_of is not None:
        return False
    restored = origin is not None and origin.identity == previous.identity
    return restored or previous.header.writer == writer


@dataclass(frozen=True, slots=True)
class LocalTree:
    """What a directory holds that is about to be restored into.

    Attributes:
        files: by path.
        directories: their paths.
        others: paths of links, sockets and the like, and of commits inside.
    """

    files: Mapping[str, NewFile] = field(default_factory=dict)
    directories: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()

    def blocks(self, path: str) -> bool:
        """Whether there can be no file `path`, because something else has a name on the way."""
        if path in self.directories or path in self.others:
            return True
        while path := path.rpartition("/")[0]:
            if path in self.files or path in self.others:
                return True
        return False


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What to do with every file of a restore, by path and in order.

    Attributes:
        fetch: absent, or ours and out of date.
        keep: there already, byte for byte.
        clash: there, with content that asyncsync did not put there.
        delete: ours, unchanged, and no longer part of the tree.
    """

    fetch: tuple[FileEntry, ...]
    keep: tuple[FileEntry, ...]
    clash: tuple[str, ...]
    delete: tuple[str, ...]


def plan_restore(
    wanted: Mapping[str, FileEntry],
    local: LocalTree,
    digests: Mapping[str, str],
    previous: Mapping[str, FileEntry],
) -> RestorePlan:
    """Decide what makes a directory hold `wanted` without touching what is not ours.

    Args:
        wanted: the files of the commit, by path.
        local: what is in the directory.
        digests: digest of each file in it that `wanted` or `previous` lists in the same size.
        previous: what an earlier restore put there.
    """
    fetch, keep, clash = list[FileEntry](), list[FileEntry](), list[str]()
    for path, entry in wanted.items():
        if path not in local.files:
            fetch.append(entry)
        elif digests.get(path) == entry.digest:
            keep.append(entry)
        elif path in previous and digests.get(path) == previous[path].digest:
            fetch.append(entry)
        else:
            clash.append(path)
    gone = [path for path in previous if path not in wanted and path in local.files]
    delete = [path for path in gone if digests.get(path) == previous[path].digest]
    changed = [path for path in gone if digests.get(path) != previous[path].digest]
    replaced = [path for path in previous if path not in local.files and local.blocks(path)]
    clashes = tuple(clash + changed + replaced)
    return RestorePlan(tuple(fetch), tuple(keep), clashes, tuple(delete))
