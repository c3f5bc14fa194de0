"""A file on its way into an object store, and the upload it is in while it is not whole."""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from ...errors import NotFoundError
from ...manifest import FileEntry, Manifest
from ..objects import Data, ObjectStore, Part, Upload
from ..trees import NewFile

__all__ = ["Arriving", "not_whole", "object_token", "part_token"]


def object_token(tag: str) -> str:
    """By what a whole object is known again."""
    return f"\n{tag}"


def part_token(upload: Upload, tag: str) -> str:
    """By what a part of an upload is known again."""
    return f"{upload.upload_id}\n{tag}"


class Arriving:
    """A file of which something was written.

    Attributes:
        sizes: of the pieces that have arrived, by their number.
        parts: the same as parts of `upload`.
        published: it is whole, and visible under its name.
        tag: of the object then, if it is known.
        losses: how many uploads of it the store has dropped.
    """

    def __init__(self, new: NewFile) -> None:
        self.new = new
        self.sizes: dict[int, int] = {}
        self.parts: dict[int, Part] = {}
        self.upload: Upload | None = None
        self.published = False
        self.tag = ""
        self.losses = 0
        self._beginning: anyio.Lock | None = None

    @property
    def whole(self) -> bool:
        return sum(self.sizes.values()) == self.new.size_bytes and bool(self.sizes)

    def token(self, number: int) -> str:
        """By what the piece is known again."""
        if self.published and self.tag:
            return object_token(self.tag)
        part = self.parts.get(number)
        return part_token(self.upload, part.tag) if self.upload and part else ""

    async def put_part(self, objects: ObjectStore, key: str, number: int, data: Data) -> None:
        """Put a part; into a new upload if the store has dropped the one that was begun.

        What the old one held has not arrived then.

        Raises:
            NotFoundError: it has dropped the new one, too.
        """
        for last in (False, True):
            upload = await self._begun(objects, key)
            try:
                part = await objects.put_part(upload, number, data)
            except NotFoundError:
                self.lose(upload)
                if last:
                    raise
                continue
            if self.upload is upload:
                self.parts[number] = part
                self.sizes[number] = len(data)
                return

    async def _begun(self, objects: ObjectStore, key: str) -> Upload:
        if self._beginning is None:  # most files have no parts
            self._beginning = anyio.Lock()
        async with self._beginning:
            if self.upload is None:
                self.upload = await objects.create_upload(key)
            return self.upload

    def lose(self, upload: Upload) -> None:
        """That upload is gone, or not what the store confirmed: nothing of it has arrived."""
        if self.upload is upload:
            self.losses += 1
            self.upload = None
            self.sizes.clear()
            self.parts.clear()
            self.published, self.tag = False, ""


def not_whole(
    manifest: Manifest,
    arriving: Mapping[str, Arriving],
    sent: Mapping[str, int],
    old: Mapping[str, FileEntry],
) -> list[str]:
    """The files that neither have arrived nor are kept from the version that is replaced."""
    missing: list[str] = []
    for path, entry in manifest.files.items():
        state, kept = arriving.get(path), old.get(path)
        if state is not None:
            there = state.whole and state.new.size_bytes == entry.size_bytes
        elif path in sent:
            there = sent[path] == entry.size_bytes
        else:
            there = kept is not None and kept.digest == entry.digest
        if not there:
            missing.append(path)
    return missing
