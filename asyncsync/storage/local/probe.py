"""Finding out, by trying, what a file system can do."""

from __future__ import annotations

import errno
import os

from ...names import holder_name, new_attempt
from ..trees import TreeCapabilities
from .fs import DIRECTORY, exchange, fsync_directory, remove_tree, rename_new

__all__ = ["probe"]

_NFC, _NFD = "\u00e9", "e\u0301"


def probe(parent: int) -> TreeCapabilities:
    """Try the calls that a commit needs in a hidden directory below an open one."""
    name = holder_name("probe", "tmp", new_attempt())
    os.mkdir(name, 0o700, dir_fd=parent)
    try:
        held = os.open(name, DIRECTORY, dir_fd=parent)
        try:
            return _try(held)
        finally:
            os.close(held)
    finally:
        remove_tree(parent, name)


def _try(held: int) -> TreeCapabilities:
    os.mkdir("a", dir_fd=held)
    os.mkdir("b", dir_fd=held)
    syncs = fsync_directory(held)
    swaps = exchange(held, "a", held, "b")
    creates = _refuses_existing(held)
    raw = _can_create(held, os.fsdecode(b"raw\xff"))
    case = _both(held, "case", "CASE")
    normal = _both(held, _NFC, _NFD)
    notes = [
        (syncs, "directories cannot be flushed: a power cut may undo the latest commits"),
        (swaps, "names cannot be exchanged: while a tree is replaced, readers are told to wait"),
        (creates, "no exclusive rename: a lock file keeps creators apart"),
        (raw, "names that are not UTF-8 are refused"),
        (case, "names that differ only in case are refused"),
        (normal, "names that differ only in Unicode form (NFC, NFD) are refused"),
    ]
    return TreeCapabilities(
        durability="fsync" if syncs else "reduced",
        raw_names=raw,
        case_sensitive=case,
        keeps_normalization=normal,
        notes=tuple(note for works, note in notes if not works),
    )


def _refuses_existing(held: int) -> bool:
    try:
        rename_new(held, "a", held, "b")
    except FileExistsError:
        return True
    return False


def _can_create(held: int, name: str) -> bool:
    try:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=held))
    except OSError as exc:
        if exc.errno in (errno.EILSEQ, errno.EINVAL):
            return False
        raise
    return True


def _both(held: int, one: str, other: str) -> bool:
    _can_create(held, one)
    try:
        os.close(os.open(other, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=held))
    except FileExistsError:
        return False
    return True
