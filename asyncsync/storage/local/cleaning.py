"""Removing what interrupted attempts and groups have left and nobody has gone on with."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ...errors import BusyError, quote
from ...names import LOCK, holder_of, is_group, is_ours, is_stage
from .fs import opened, remove_if_empty, remove_tree
from .group import abandon_groups
from .locks import Lock
from .place import real_path
from .trash import TREE, holders
from .unfinished import written_at

__all__ = ["clean"]


def clean(base: str, tree: str, older_than_s: float) -> list[str]:
    """Remove the stages and groups at and below `tree` that are that old; their paths."""
    before_ns = time.time_ns() - int(older_than_s * 1e9)
    path = real_path(base, tree)
    above, name = os.path.split(path)
    removed: list[str] = []
    with suppress(FileNotFoundError):
        parent = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            beside = [entry for entry, kind in holders(parent, name) if kind == "tmp"]
            removed += [f"{above}/{e}" for e in beside if _remove(parent, e, before_ns)]
            groups = [e for e in os.listdir(parent) if holder_of(e, name) == "group"]
            removed += [f"{above}/{e}" for e in abandon_groups(parent, groups, before_ns)]
        finally:
            os.close(parent)
    with suppress(FileNotFoundError):
        for directory, folders, _, fd in os.fwalk(path):
            stages = [name for name in folders if is_stage(name)]
            groups = [name for name in folders if is_group(name)]
            folders[:] = [name for name in folders if not is_ours(name)]
            removed += [f"{directory}/{e}" for e in stages if _remove(fd, e, before_ns)]
            removed += [f"{directory}/{e}" for e in abandon_groups(fd, groups, before_ns)]
    return removed


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
