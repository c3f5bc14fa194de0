"""What the ranks of a group leave in an object store, and who clears it away.

The format is described in docs/formats/groups.md.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NamedTuple

import msgspec

from ...concurrency import each
from ...errors import FormatError, IntegrityError, NotFoundError, quote
from ...manifest import Manifest, decode, encode
from ...names import is_part, part_name
from ..groups import Group
from .place import Place
from .record import Lease, read_record, theirs

__all__ = ["Part", "PartPlace", "absorb", "claimed", "left_by", "part_text", "read_part", "sweep"]

_VERSION = 1


class _Head(msgspec.Struct, frozen=True, kw_only=True, rename={"version": "asyncsync_part"}):
    """The first line of a part."""

    version: int = _VERSION
    group: str
    rank: int
    size: int
    tokens: tuple[tuple[str, ...], ...]
    strays: frozenset[str] = frozenset()


class Part(NamedTuple):
    """What one rank has left.

    Attributes:
        tokens: of the chunks of each file.
        strays: where it may have written what its manifest does not list.
        modified_at: by the store's clock.
    """

    manifest: Manifest
    tokens: dict[str, tuple[str, ...]]
    strays: frozenset[str]
    modified_at: float

    @property
    def paths(self) -> frozenset[str]:
        """Where it may have written."""
        return self.strays.union(self.manifest.files)


class PartPlace(Place):
    """A tree as one rank of a group writes to it: with a record and a manifest of its own."""

    def __init__(self, place: Place, attempt: str, rank: int) -> None:
        super().__init__(place.objects, place.name, conditional=place.conditional)
        self.where = place.where
        self.manifest_key = self.key(part_name(attempt, rank))
        self.record_key = self.key(part_name(attempt, rank, record=True))


def part_text(
    group: Group, manifest: Manifest, tokens: dict[str, tuple[str, ...]], strays: frozenset[str]
) -> bytes:
    """A part as it is stored."""
    head = _Head(
        group=group.id,
        rank=group.rank,
        size=group.size,
        tokens=tuple(tokens[path] for path in manifest.files),
        strays=strays,
    )
    first = msgspec.json.encode(head, order="sorted")
    return b"".join((first, b"\n", *encode(manifest)))


async def read_part(place: Place, attempt: str, rank: int) -> Part:
    """What a rank has left.

    Raises:
        NotFoundError: nothing.
        IntegrityError, FormatError: it is damaged, or of another release.
    """
    key = place.key(part_name(attempt, rank))
    info, data = await place.whole(key)
    lines = io.BytesIO(data)
    what = f"{place.where}: the part {quote(key.rpartition('/')[2])}"
    try:
        head = msgspec.json.decode(next(lines, b""), type=_Head)
        if head.version != _VERSION:
            raise FormatError("it is of another release; use that one")
        manifest = decode(lines)
        files = manifest.files
        tokens = dict(zip(files, head.tokens, strict=True))
    except (msgspec.MsgspecError, ValueError) as exc:
        raise IntegrityError(f"{what} is damaged; delete it, and its rank sends it again") from exc
    except IntegrityError as exc:
        raise type(exc)(f"{what}: {exc}") from exc
    return Part(manifest, tokens, head.strays, info.modified_at)


class _Name(NamedTuple):
    """The name of a part, or of the record of a rank, taken apart."""

    name: str
    attempt: str
    rank: int
    record: bool


async def _scan(place: Place, attempt: str = "") -> AsyncIterator[_Name]:
    prefix = place.key(f".asyncsync-part-{attempt}")
    async for info in place.objects.scan(prefix):
        name = info.key[len(place.prefix) :]
        if is_part(name):
            fields = name.removesuffix(".json").split("-")
            yield _Name(name, fields[2], int(fields[3]), record=len(fields) > 4)


async def left_by(place: Place, group: Group) -> set[int]:
    """The ranks that have left their part, with one listing."""
    return {one.rank async for one in _scan(place, group.attempt) if not one.record}


async def claimed(
    place: Place, *, but: str = "", of: str = "", but_rank: int = -1
) -> tuple[frozenset[str], float]:
    """Where the ranks of groups may have written, and when they last showed life.

    Args:
        but: the group, by its attempt, that does not count; of: the only one that does.
        but_rank: the rank that does not count.
    """
    paths: set[str] = set()
    last = 0.0
    names = [one async for one in _scan(place, of) if but != one.attempt]
    for one in [one for one in names if one.rank != but_rank]:
        if one.record:
            held = await read_record(PartPlace(place, one.attempt, one.rank))
            if held is not None:
                paths |= held.record.paths
                last = max(last, held.modified_at)
        else:
            with suppress(NotFoundError):  # it is on its way out
                part = await read_part(place, one.attempt, one.rank)
                paths |= part.paths
                last = max(last, part.modified_at)
    return frozenset(paths), last


async def absorb(place: Place, lease: Lease) -> None:
    """Make what superseded groups have left the leavings of this attempt, and fence their ranks.

    A rank finds out by its record, which is gone then. None can begin any more: it looks at the
    record of the tree after it has written its own.
    """
    mine = lease.record.commits_as
    paths, last = await claimed(place, but=mine)
    if paths:
        found = await theirs(place, paths, last)
        await lease.update(paths=lease.record.paths | found)
        if lease.inherited is not None:
            left = lease.inherited
            lease.inherited = msgspec.structs.replace(left, paths=left.paths | found)
    await sweep(place, but=mine)


async def sweep(place: Place, *, but: str = "") -> None:
    """Delete the records and parts of ranks, those of one group excepted."""
    names = [one.name async for one in _scan(place) if one.attempt != but]
    await each(names, lambda name: place.objects.delete(place.key(name)))
