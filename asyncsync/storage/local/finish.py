"""Finishing an in-place commit: what was published moves to its place, file by file."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from ...manifest import Manifest
from ...names import MANIFEST, NEXT, is_ours, sort_key
from .fs import (
    DIRECTORY,
    fsync_directory,
    make_directories,
    opened,
    remove_if_empty,
    remove_tree,
    rename_over,
    split,
)
from .manifests import is_commit, load, read_place

__all__ = ["finish_next", "tidy_root"]


def tidy_root(root: int, where: str, *, spare: str | None = None) -> None:
    """Finish the update that was published, and remove those that were abandoned, but `spare`.

    The caller holds the lock of the tree, as whoever writes in place does.
    """
    finish_next(root, where)
    for name in os.listdir(root):
        if name.startswith(".asyncsync-tmp-") and is_ours(name) and name != spare:
            remove_tree(root, name)


def finish_next(root: int, where: str) -> bool:
    """Move what a published in-place commit staged to its place. Idempotent.

    From the moment `.asyncsync-next` exists the tree *is* the new version: readers look there
    first. This only tidies up, and whoever comes next after a crash tidies up the rest.

    Returns:
        Whether everything could be made durable.
    """
    try:
        staged = os.open(NEXT, DIRECTORY, dir_fd=root)
    except FileNotFoundError:
        return True
    try:
        # No file is deleted or replaced before it is certain that the new version stays.
        durable = fsync_directory(root)
        # The manifest is the last to move: without it only empty directories are left here.
        durable &= not is_commit(staged) or _finish(root, staged, where)
    finally:
        os.close(staged)
    remove_tree(root, NEXT)
    return fsync_directory(root) and durable


def _finish(root: int, staged: int, where: str) -> bool:
    new = load(staged, where)
    old = read_place(root, MANIFEST, where)
    assert new is not None, "the caller has just seen it"
    touched = _delete_stale(root, old, new) if old else set()
    touched |= _move_into_place(root, staged)
    durable = [_flush(root, path) for path in sorted(touched, key=lambda p: -p.count("/"))]
    rename_over(staged, MANIFEST, root, MANIFEST)
    return all([*durable, fsync_directory(root)])


def _delete_stale(root: int, old: Manifest, new: Manifest) -> set[str]:
    """Delete what only the old version lists; return the directories that changed."""
    touched: set[str] = set()
    stale = [*(old.files.keys() - new.files.keys()), *(d.path for d in old.directories)]
    for path in sorted(stale, key=sort_key, reverse=True):
        directory, name = split(path)
        with suppress(FileNotFoundError, NotADirectoryError), opened(root, directory) as held:
            if path in old.files:
                with suppress(IsADirectoryError):  # the new version's, moved before a crash
                    os.unlink(name, dir_fd=held)
            else:
                remove_if_empty(held, name)
        touched.add(directory)
        touched |= _prune(root, directory)
    return {path for path in touched if _is_directory(root, path)}


def _prune(root: int, directory: str) -> set[str]:
    """Remove a directory that has become empty, and so on upwards."""
    touched: set[str] = set()
    while directory != ".":
        parent, name = split(directory)
        with suppress(FileNotFoundError, NotADirectoryError), opened(root, parent) as held:
            if not remove_if_empty(held, name):
                return touched
        touched.add(parent)
        directory = parent
    return touched


def _is_directory(root: int, path: str) -> bool:
    try:
        with opened(root, path):
            return True
    except OSError:
        return False


def _move_into_place(root: int, staged: int) -> set[str]:
    """Rename every staged file over its predecessor.

    Returns:
        The directories that changed, also those that did before a crash: the staged ones stay.
    """
    files, directories = _staged(staged, "")
    made: set[str] = set()
    for path in directories:
        make_directories(root, path, made)
    for path in {split(path)[0] for path in directories}:
        _flush(root, path)  # or a file might be in a directory that a power cut takes away
    for path in files:
        directory, name = split(path)
        with opened(staged, directory) as source, opened(root, directory) as target:
            rename_over(source, name, target, name)
    return made | {"."}


def _staged(directory: int, prefix: str) -> tuple[list[str], list[str]]:
    """The files and the directories below an open staged one, but for its manifest."""
    files: list[str] = []
    directories: list[str] = []
    for name in sorted(os.listdir(directory), key=sort_key):
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            with opened(directory, name) as below:
                more = _staged(below, f"{prefix}{name}/")
            files += more[0]
            directories += [prefix + name, *more[1]]
        elif prefix or name != MANIFEST:
            files.append(prefix + name)
    return files, directories


def _flush(root: int, path: str) -> bool:
    with opened(root, path) as fd:
        return fsync_directory(fd)
