"""What a directory looks like now: whether its checkpoints, and all the rest, have changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..names import LAST_FILES, is_ours
from ..patterns import TEMPORARY_NAMES, Selection

__all__ = ["Look", "Seen", "look_at", "look_at_one"]

_TEMPORARY = Selection(TEMPORARY_NAMES)


class Seen(NamedTuple):
    """A checkpoint: equal signatures, equal names, sizes and times; none, if it has no file yet.

    `finished`: the file that its framework writes last is there.
    """

    signature: str
    finished: bool


@dataclass(frozen=True, slots=True)
class Look:
    """A directory at one moment.

    Attributes:
        place: device and inode: whether it is still the same directory.
        checkpoints: by path below it.
        rest: of all that belongs to no checkpoint, the signature.
    """

    place: tuple[int, int]
    checkpoints: Mapping[str, Seen]
    rest: str


def look_at(directory: str, checkpoints: Selection, exclude: Selection) -> Look:
    """Walk the directory; opens no file.

    Args:
        checkpoints: leaves out what is a checkpoint.
        exclude: leaves out what does not matter.

    Raises:
        OSError: it is not there, or cannot be listed.
    """
    found = os.stat(directory)
    with os.scandir(directory):
        pass  # what comes below may vanish; this may not
    seen: dict[str, Seen] = {}
    rest, folders = _Signature(), [""]
    for above in folders:
        for entry in _listed(f"{directory}/{above}"):
            path = above + entry.name
            if not entry.is_dir(follow_symlinks=False):
                rest.add(path, entry)
            elif not (_TEMPORARY.takes(f"{path}/file") and exclude.takes(f"{path}/file")):
                continue
            elif not checkpoints.takes(f"{path}/file"):
                seen[path] = look_at_one(f"{directory}/{path}")
            else:
                rest.add(path, entry)
                folders.append(f"{path}/")
    return Look((found.st_dev, found.st_ino), seen, rest.text)


def look_at_one(checkpoint: str) -> Seen:
    """How a checkpoint looks; opens no file."""
    signature, names, folders = _Signature(), {e.name for e in _listed(checkpoint)}, [""]
    for above in folders:
        for entry in _listed(f"{checkpoint}/{above}"):
            signature.add(above + entry.name, entry)
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{above}{entry.name}/")
    return Seen(signature.text if signature.files else "", not names.isdisjoint(LAST_FILES))


def _listed(directory: str) -> list[os.DirEntry[str]]:
    """In order, without our own; nothing, if it has gone meanwhile or may not be read.

    Whoever syncs it says so; here it is only not the same as before.
    """
    try:
        with os.scandir(directory) as entries:
            return sorted((e for e in entries if not is_ours(e.name)), key=lambda e: e.name)
    except OSError:
        return []


class _Signature:
    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.files = 0

    def add(self, path: str, entry: os.DirEntry[str]) -> None:
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError:  # gone meanwhile
            return
        stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        folder = entry.is_dir(follow_symlinks=False)
        self.files += not folder
        text = repr((path, found.st_ino, () if folder else stamp))
        self._hash.update(text.encode(errors="surrogateescape"))

    @property
    def text(self) -> str:
        return self._hash.hexdigest()
