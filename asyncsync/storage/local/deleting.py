"""Deleting trees on a disk: out of sight at once, then what is ours, piece by piece."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import NoReturn

from ...errors import (
    ConfigError,
    IntegrityError,
    NotCommittedError,
    NotFoundError,
    quote,
    quote_some,
)
from ...manifest import Manifest
from ...names import LOCK, holder_name, new_attempt
from ..trees import Deleted
from .finish import finish_next
from .fs import remove_if_empty
from .locks import Lock
from .manifests import load, trees
from .place import Place, Root
from .publish import conflict
from .trash import bury, foreign_files, remove_owned, sweep

__all__ = ["delete"]


def delete(root: Root, tree: str, expect: str | None, uncommitted: bool) -> Deleted:
    path = root.path(tree)
    try:
        os.close(root.open(os.path.dirname(path)))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"nothing at {quote(path)}; check the spelling") from None
    with closing(Place(root, tree)) as place:
        if place.parent < 0:
            _refuse_delete(place)
        sweep(place.parent, place.name, place.where)
        fd = place.open_root()
        if fd < 0:
            raise NotFoundError(f"nothing at {place.where}; check the spelling")
        try:
            return _bury(place, fd, expect, uncommitted)
        finally:
            os.close(fd)


def _refuse_delete(place: Place) -> NoReturn:
    if not place.name or place.is_mount:
        raise ConfigError(f"{place.where} is mounted, or the root; delete what is in it instead")
    root = place.open_root()
    try:
        read_only = os.fstatvfs(root).f_flag & os.ST_RDONLY
    finally:
        os.close(root)
    code = errno.EROFS if read_only else errno.EACCES
    raise OSError(code, os.strerror(code), place.path)


def _bury(place: Place, root: int, expect: str | None, uncommitted: bool) -> Deleted:
    lock = _lock_to_delete(place, root)
    try:
        finish_next(root, place.where)
        found, everything = _what_to_delete(place, root, uncommitted)
        _check_delete(place, root, found, expect, uncommitted)
        return Deleted(*_remove(place, root, everything=everything))
    finally:
        if lock is not None:
            lock.release()


def _lock_to_delete(place: Place, root: int) -> Lock | None:
    """The tree's lock; None where there is no inode left for one, so that nobody can have it."""
    try:
        return Lock.take(root, LOCK, place.where)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return None


def _what_to_delete(place: Place, root: int, uncommitted: bool) -> tuple[Manifest | None, bool]:
    """The commit, and whether all files go: without a usable manifest, if the user says so.

    Raises:
        IntegrityError: the manifest, or one further down, is damaged; nothing was deleted.
    """
    try:
        found = load(root, place.where)
        for _ in foreign_files(root, place.where):
            pass  # a damaged manifest further down is met here, before anything is gone
    except IntegrityError:
        if not uncommitted:
            raise
        return None, True
    return found, found is None


def _remove(place: Place, root: int, *, everything: bool) -> tuple[int, tuple[str, ...]]:
    trash = holder_name(place.name, "trash", new_attempt())
    try:
        os.mkdir(trash, 0o700, dir_fd=place.parent)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # No room for a holder: delete where it is, the manifest last, so that a delete that is
        # interrupted can be repeated. Readers meanwhile hear of missing files.
        removed, kept = remove_owned(root, place.where, everything=everything)
        remove_if_empty(place.parent, place.name)
        return removed, tuple(kept)
    place.flush()  # what is not ours must not end up in a directory that a power cut takes away
    removed, kept = bury(place.parent, place.name, trash, place.where, everything=everything)
    return removed, tuple(kept)


def _check_delete(
    place: Place, root: int, found: Manifest | None, expect: str | None, uncommitted: bool
) -> None:
    if found is None and not uncommitted:
        below = [one.tree for one in trees(os.dup(root), "") if one.tree]
        hint = (
            f"; the commits in it are {quote_some(below)}: name one of them"
            if below
            else "; to delete the files all the same, say so (uncommitted)"
        )
        raise NotCommittedError(f"{place.where} is not a commit{hint}")
    if expect is not None and (found is None or found.identity != expect):
        raise conflict(place.where, found.identity if found else None)
