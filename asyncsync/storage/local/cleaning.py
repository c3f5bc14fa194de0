"""Removing what interrupted attempts and groups have left and nobody has gone on with."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ...errors import BusyError, quote
from ...names import LOCK, holder_of, is_group, is_ours, is_stage
from .fs import opened, remove_if_empty, remove_tree
from .group import abandon_groups
from .locks import Lock
from .place import Root
from .trash import TREE, holders
from .unfinished import written_at

__all__ = ["clean"]


def clean(base: Root, tree: str, older_than_s: float) -> list[str]:
    """Remove the stages and groups at and below `tree` that are that old; their paths."""
    before_ns = time.time_ns() - int(older_than_s * 1e9)
    path = base.path(tree)
    above, name = os.path.split(path)
    removed: list[str] = []
    if name:
        with suppress(FileNotFoundError), _opened(base, above) as parent:
            stages = [entry for entry, kind in holders(parent, name) if kind == "tmp"]
            groups = [e for e in os.listdir(parent) if holder_of(e, name) == "group"]
            removed += _remove_all(parent, above, stages, groups, before_ns)
    with suppress(FileNotFoundError), _opened(base, path) as root:
        for directory, folders, _, fd in os.fwalk(".", dir_fd=root):
            stages = [name for name in folders if is_stage(name)]
            groups = [name for name in folders if is_group(name)]
            folders[:] = [name for name in folders if not is_ours(name)]
            where = os.path.normpath(os.path.join(path, directory))
            removed += _remove_all(fd, where, stages, groups, before_ns)
    return removed


@contextmanager
def _opened(base: Root, path: str) -> Iterator[int]:
    fd = base.open(path)
    try:
        yield fd
    finally:
        os.close(fd)


def _remove_all(
    at: int, where: str, stages: list[str], groups: list[str], before_ns: int
) -> list[str]:
    removed = [entry for entry in stages if _remove(at, entry, before_ns)]
    removed += abandon_groups(at, groups, before_ns)
    return [os.path.normpath(os.path.join(where, entry)) for entry in removed]


def _remove(parent: int, entry: str, before_ns: int) -> bool:
    """Whether it was an old stage of nobody alive, and is gone."""
    if not _is_old(parent, entry, before_ns):
        return False
    with suppress(FileNotFoundError, BusyError), opened(parent, entry) as held:  # or it is alive
        lock = Lock.take(held, LOCK, quote(entry))
        try:
            if _is_old(parent, entry, before_ns):
                remove_tree(held, TREE)
        finally:
            lock.release()
    return remove_if_empty(parent, entry)


def _is_old(parent: int, entry: str, before_ns: int) -> bool:
    return 0 < written_at(parent, entry) <= before_ns
