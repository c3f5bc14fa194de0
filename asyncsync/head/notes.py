"""What has to be carried on, and what has been: a small file for each tree. Blocks.

A file is replaced as a whole and flushed, so that each moment of its life is one of these:

| it says | that is |
|---|---|
| no `identity` | the tree has gone; what is there is ours |
| `identity` other than `forwarded` | that commit, or a newer one there, has to be carried on |
| `begun` | whether that has arrived, or what was there before still is, nobody knows yet |
| `identity` like `forwarded` and no `begun` | it has been |
| no file, or one that cannot be read | nothing is known: the tree is looked at, and noted anew |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from ..digest import digest
from ..errors import ConfigError
from ..location import Location
from ..peer import open_private_directory, read_private, write_private

__all__ = ["Note", "Notes"]


class Note(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"version": "v"}
):
    """How far a tree is.

    Attributes:
        identity: the commit that was acknowledged last; empty: the tree has gone since.
        forwarded: the commit that was there when it was looked last, ours; empty: none.
        begun: the commit that was then begun to be sent, and may be there by now; empty: none.
        failure: why the last attempt failed; empty: it did not.
        permanent: somebody has to change something first.
    """

    version: Literal[1] = 1
    tree: str
    identity: str
    forwarded: str = ""
    begun: str = ""
    failure: str = ""
    permanent: bool = False

    @property
    def waits(self) -> bool:
        """Whether there is something to carry on."""
        return self.identity != "" and (self.identity != self.forwarded or self.begun != "")


class Notes:
    """The notes about one place to carry trees to: those about another one do not count there."""

    def __init__(self, state: Path, place: Location) -> None:
        self._above = state / "forward"
        self._directory = self._above / digest(str(place).encode())[:32]

    def open(self) -> None:
        """Make the directory if it is not there, and remove what a crash has left in it.

        Raises:
            ConfigError: it cannot be made, or others may enter it.
        """
        open_private_directory(self._above)
        open_private_directory(self._directory)
        for name in os.listdir(self._directory):
            if name.startswith("."):
                os.unlink(self._directory / name)

    def load(self) -> dict[str, Note]:
        """All notes by tree, the one that was written first in front."""
        found = [note for note in map(self._read, self._files()) if note is not None]
        return {note.tree: note for note in found}

    def _files(self) -> Iterator[Path]:
        with suppress(FileNotFoundError):
            names = [entry for entry in os.scandir(self._directory) if entry.name[0] != "."]
            names.sort(key=lambda entry: entry.stat().st_mtime_ns)
            yield from (Path(entry.path) for entry in names)

    def _read(self, path: Path) -> Note | None:
        try:
            text = read_private(path)
            return None if text is None else msgspec.convert(json.loads(text), Note)
        except (ConfigError, msgspec.MsgspecError, ValueError, RecursionError):
            return None

    def write(self, note: Note) -> None:
        """Note it, durably.

        Raises:
            ConfigError: it cannot be written.
        """
        text = json.dumps(msgspec.to_builtins(note))  # which also names what is not UTF-8
        write_private(self._path(note.tree), text.encode(), replace=True)

    def remove(self, tree: str) -> None:
        """Nothing is known of it any more."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(tree))

    def _path(self, tree: str) -> Path:
        name = digest(tree.encode(errors="surrogateescape"))[:32]
        return self._directory / f"{name}.json"
