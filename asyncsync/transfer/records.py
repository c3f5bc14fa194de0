"""What we know of local files from having hashed them: a cache, never the truth."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

import msgspec

from ..digest import digest
from ..manifest import FileEntry
from .pieces import SourceFile, Stamp

__all__ = ["Records", "cache_directory", "prune"]

_KEEP_S = 30 * 24 * 3600
_DIGEST_BYTES = 64

_Row = tuple[Stamp, str, tuple[str, ...]]
_decode = msgspec.msgpack.Decoder(dict[bytes, _Row]).decode


class Records:
    """Digests of the files of one local directory, each with the version it belongs to.

    Blocks; a lost or damaged record only costs hashing again.
    """

    def __init__(self, tree: str) -> None:
        self._path = os.path.join(cache_directory(), digest(os.fsencode(tree)) + ".records")

    def load(self, files: Mapping[str, SourceFile]) -> dict[str, FileEntry]:
        """Entries for those of `files` that are still the version that was hashed."""
        rows = self._rows()
        found: dict[str, FileEntry] = {}
        for path, file in files.items():
            row = rows.get(os.fsencode(path))
            if row is not None and row[0] == file.stamp:
                found[path] = FileEntry(
                    path, file.size_bytes, row[1], file.mode, file.mtime_ns, row[2]
                )
        return found

    def _rows(self) -> dict[bytes, _Row]:
        try:
            with open(self._path, "rb") as file:
                content = file.read()
        except OSError:
            return {}
        body, check = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if digest(body).encode() != check:
            return {}
        try:
            return _decode(body)
        except msgspec.MsgspecError:
            return {}

    def save(self, known: Iterable[tuple[SourceFile, FileEntry]]) -> None:
        """Replace the record. Where the cache cannot be written there is none."""
        rows = {
            os.fsencode(file.path): (file.stamp, entry.digest, entry.chunks)
            for file, entry in known
        }
        body = msgspec.msgpack.encode(rows)
        folder = os.path.dirname(self._path)
        with suppress(OSError):  # a read-only home only means that nothing is remembered
            os.makedirs(folder, mode=0o700, exist_ok=True)
            prune(folder)
            fd, temporary = tempfile.mkstemp(dir=folder)
            try:
                with open(fd, "wb") as out:
                    out.write(body + digest(body).encode())
                os.replace(temporary, self._path)
            except BaseException:
                os.unlink(temporary)
                raise


def cache_directory() -> str:
    """Where what we remember from one sync to the next is kept."""
    if explicit := os.environ.get("ASYNCSYNC_CACHE_DIR"):
        return explicit
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(base):  # there is no home: nothing is remembered, least of all in ./~
        base = os.devnull
    return os.path.join(base, "asyncsync", "records")


def prune(folder: str) -> None:
    """Forget what nobody has needed for a month."""
    oldest = time.time() - _KEEP_S
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.stat().st_mtime < oldest:
                os.unlink(entry.path)
