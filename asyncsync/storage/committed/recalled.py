"""What an interrupted attempt has left in an object store, for the next one to go on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

from ...digest import CHUNK_BYTES, chunk_count
from ..objects import ObjectInfo, Part, Upload
from ..trees import NewFile, Stored
from .arriving import Arriving
from .place import Place

__all__ = ["Recalled"]


class _Token(NamedTuple):
    upload_id: str
    tag: str


class Recalled(NamedTuple):
    """The objects below a tree by path, and the uploads in progress there."""

    objects: dict[str, ObjectInfo]
    uploads: frozenset[Upload]

    @classmethod
    async def look(cls, place: Place) -> Self:
        """Ask the store, with a listing of each."""
        objects = {path: info async for path, info in place.scan()}
        uploads = frozenset([u async for u in place.objects.scan_uploads(place.prefix)])
        return cls(objects, uploads)

    def arriving(self, place: Place, file: NewFile, chunks: Mapping[int, Stored]) -> Arriving:
        """How much of a file is there; nothing, unless the store still says what it said. Pure."""
        tokens = {n: _Token(*one.token.partition("\n")[::2]) for n, one in chunks.items()}
        state = Arriving(file)
        there = self.objects.get(file.path)
        whole = len(chunks) == chunk_count(file.size_bytes)
        is_there = whole and there is not None and there.size_bytes == file.size_bytes
        if is_there and there is not None and _Token("", there.tag) in tokens.values():
            _fill(state, tokens)
            state.published, state.tag = True, there.tag
            return state
        begun = [Upload(place.key(file.path), t.upload_id) for t in tokens.values() if t.upload_id]
        for upload in begun:
            if upload in self.uploads:
                mine = {n: t for n, t in tokens.items() if t.upload_id == upload.upload_id}
                _fill(state, mine)
                state.upload = upload
                state.parts = {n + 1: Part(n + 1, t.tag, _size(file, n)) for n, t in mine.items()}
                return state
        if is_there and begun:
            # Perhaps its last upload was completed, and that was not noted any more.
            _fill(state, tokens)
            state.published, state.upload = True, begun[-1]
        return state


def _fill(state: Arriving, numbers: Mapping[int, _Token]) -> None:
    state.sizes = {number + 1: _size(state.new, number) for number in numbers}


def _size(file: NewFile, number: int) -> int:
    return min(CHUNK_BYTES, file.size_bytes - number * CHUNK_BYTES)
