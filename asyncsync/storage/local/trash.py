"""Removing trees: what is ours goes, what is not stays; and sweeping what a crash left."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from ...errors import BusyError, FormatError, IntegrityError
from ...names import LOCK, MANIFEST, holder_of, is_ours, sort_key
from .fs import (
    DIRECTORY,
    fsync_directory,
    remove_if_empty,
    remove_tree,
    rename_new,
    rename_over,
)
from .locks import Lock
from .manifests import is_commit, load

__all__ = [
    "OLD",
    "TREE",
    "bury",
    "foreign_files",
    "holders",
    "put_back",
    "remove_owned",
    "remove_version",
    "sweep",
]

TREE = "tree"
"""In a holder: the files of an attempt, or of the version that was taken out of sight."""
OLD = "old"
"""In a holder: the version that a replace moved aside where names cannot be exchanged."""
_SUPERSEDED = "superseded"
"""In a holder: a version that is being removed, all but what somebody else put into it."""


def foreign_files(root: int, where: str) -> Iterator[str]:
    """Files in the open tree `root` that neither its manifest nor a nested one lists."""
    for path, owned, _ in _walk(root, "", set(), where):
        if not owned:
            yield path


def remove_owned(root: int, where: str, *, everything: bool = False) -> tuple[int, list[str]]:
    """Remove from the open tree `root` what commits list; the manifests last.

    Returns:
        How many files were removed, and the paths of those that stayed because no manifest lists
        them (none with `everything`).
    """
    removed, kept = 0, []
    for path, owned, directory in _walk(root, "", set(), where, manifests=not everything):
        if owned or everything:
            os.unlink(path.rpartition("/")[2], dir_fd=directory)
            removed += 1
        else:
            kept.append(path)
    _remove_own_names(root)
    return removed, kept


def _walk(
    root: int, prefix: str, listed: set[str], where: str, *, manifests: bool = True
) -> Iterator[tuple[str, bool, int]]:
    """Every file below with whether a manifest lists it and its open directory, children first.

    Without `manifests` none is read, so that trees with damaged ones can be removed.
    """
    if manifests and is_commit(root):
        manifest = load(root, where)
        listed = {prefix + path for path in manifest.files} if manifest else set()
    for name in sorted(os.listdir(root), key=sort_key):
        if is_ours(name):
            continue
        path = prefix + name
        if stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode):
            below = os.open(name, DIRECTORY, dir_fd=root)
            try:
                yield from _walk(below, path + "/", listed, where, manifests=manifests)
            finally:
                os.close(below)
        else:
            yield path, path in listed, root


def _remove_own_names(root: int) -> None:
    """Below `root`: our own files, then every directory that is empty by now."""
    names = sorted(os.listdir(root), key=lambda name: (name == MANIFEST, sort_key(name)))
    for name in names:
        mode = os.stat(name, dir_fd=root, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode):
            if name == MANIFEST:
                # What it lists must not outlive it: it would look like somebody else's.
                fsync_directory(root)
            if is_ours(name):
                os.unlink(name, dir_fd=root)
        elif is_ours(name):
            remove_tree(root, name)
        else:
            _remove_own_directory(root, name)


def _remove_own_directory(root: int, name: str) -> None:
    below = os.open(name, DIRECTORY, dir_fd=root)
    try:
        _remove_own_names(below)
        if not remove_if_empty(root, name):  # something in it is not ours
            fsync_directory(below)
    finally:
        os.close(below)


def holders(parent: int, name: str) -> list[tuple[str, str]]:
    """(entry, kind) of the holders of versions of tree `name` in the open directory `parent`.

    Snapshots are none: they hold what is a source, and who takes them sweeps them. Groups are
    none: what is in them outlives the processes that write there.
    """
    kinds = ((entry, holder_of(entry, name)) for entry in sorted(os.listdir(parent)))
    return [(entry, kind) for entry, kind in kinds if kind in ("tmp", "trash")]


def bury(
    parent: int, name: str, trash: str, where: str, *, everything: bool
) -> tuple[int, list[str]]:
    """Take tree `name` out of sight at once, then remove what is ours in it.

    The holder `trash` must exist in `parent`. What is not ours goes back under its name.
    """
    held = os.open(trash, DIRECTORY, dir_fd=parent)
    try:
        lock = Lock.take(held, LOCK, where)
        try:
            rename_over(parent, name, held, TREE)
            fsync_directory(parent)
            return _empty(parent, held, name, where, everything=everything)
        finally:
            lock.release()
            remove_if_empty(parent, trash)
    finally:
        os.close(held)


def _empty(
    parent: int, held: int, name: str, where: str, *, everything: bool = False
) -> tuple[int, list[str]]:
    """Remove what is ours from the buried tree and put back what is not."""
    root = os.open(TREE, DIRECTORY, dir_fd=held)
    try:
        removed, kept = remove_owned(root, where, everything=everything)
    finally:
        os.close(root)
    if kept:
        put_back(parent, held, TREE, name)
    else:
        remove_tree(held, TREE)
    return removed, kept


def put_back(parent: int, held: int, version: str, name: str) -> None:
    """Give a version in the holder its name again; if something else has it, it stays there."""
    try:
        if not rename_new(held, version, parent, name):
            rename_over(held, version, parent, name)  # of directories it replaces empty ones only
    except OSError as exc:
        if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
    else:
        fsync_directory(parent)


def sweep(parent: int, name: str, where: str, *, spare: str | None = None) -> None:
    """Finish or remove what attempts on tree `name` left beside it when they died, but `spare`.

    Attempts that are alive keep theirs. A replace that died between its two renames is finished.
    """
    found = holders(parent, name)
    if found:
        # The rename that made a version superfluous must not get lost after its files are gone.
        fsync_directory(parent)
    for entry, kind in found:
        if entry == spare:
            continue
        try:
            held = os.open(entry, DIRECTORY, dir_fd=parent)
        except FileNotFoundError:  # its attempt has just ended
            continue
        except NotADirectoryError:
            _remove_dead_lock(parent, entry, where)
            continue
        try:
            _sweep_holder(parent, held, kind, name, where)
        finally:
            os.close(held)
        remove_if_empty(parent, entry)


def _remove_dead_lock(parent: int, entry: str, where: str) -> None:
    with suppress(BusyError):
        Lock.take(parent, entry, where).release()


def _sweep_holder(parent: int, held: int, kind: str, name: str, where: str) -> None:
    try:
        lock = Lock.take(held, LOCK, where)
    except (BusyError, FileNotFoundError):  # its attempt is alive, or has just ended
        return
    try:
        if kind == "trash":
            _finish_delete(parent, held, name, where)
        else:
            _roll_forward(parent, held, name)
            remove_version(held, TREE, where)
            remove_version(held, OLD, where)
            _remove_superseded(held, where)
    finally:
        lock.release()


def _finish_delete(parent: int, held: int, name: str, where: str) -> None:
    if TREE not in os.listdir(held):
        return
    root = os.open(TREE, DIRECTORY, dir_fd=held)
    try:
        committed = is_commit(root)
    finally:
        os.close(root)
    if committed:
        _empty(parent, held, name, where)
        return
    try:
        os.rmdir(TREE, dir_fd=held)  # the manifest was the last to go
    except OSError:
        # The user had named foreign files; only a finished decision removes them.
        put_back(parent, held, TREE, name)


def _roll_forward(parent: int, held: int, name: str) -> None:
    """Put the new version in place if the old one was moved aside and nothing took its place."""
    if OLD not in os.listdir(held):
        return
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        put_back(parent, held, TREE if TREE in os.listdir(held) else OLD, name)


def remove_version(held: int, version: str, where: str) -> None:
    """Remove a version from an open holder, but not what somebody else put into it meanwhile.

    One without a whole manifest was never seen by anybody, so all of it is ours. What is not ours
    stays in the holder, for people to look at.
    """
    try:
        root = os.open(version, DIRECTORY, dir_fd=held)
    except FileNotFoundError:
        return
    try:
        published = _was_published(root, where)
    finally:
        os.close(root)
    if not published:
        remove_tree(held, version)
        return
    # Under its own name it would be taken for an unfinished one as soon as its manifest is gone.
    rename_over(held, version, held, _SUPERSEDED)
    fsync_directory(held)
    _remove_superseded(held, where)


def _remove_superseded(held: int, where: str) -> None:
    try:
        root = os.open(_SUPERSEDED, DIRECTORY, dir_fd=held)
    except FileNotFoundError:
        return
    try:
        remove_owned(root, where)
    finally:
        os.close(root)
    remove_if_empty(held, _SUPERSEDED)


def _was_published(root: int, where: str) -> bool:
    try:
        return load(root, where) is not None
    except FormatError:
        raise
    except IntegrityError:  # its writer died while it wrote the manifest
        return False
