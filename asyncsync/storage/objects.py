"""The ObjectStore protocol: flat keys, as in a bucket, and its values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

__all__ = [
    "MARKED_TYPE",
    "Capabilities",
    "Condition",
    "Data",
    "Examined",
    "Fetched",
    "ObjectInfo",
    "ObjectStore",
    "Part",
    "Upload",
    "levels",
]

Data = bytes | bytearray | memoryview

MARKED_TYPE = "application/octet-stream; writer=asyncsync"
"""Content type of everything that asyncsync writes, where a store keeps one for each object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a store declares that it can do; a probe may know better.

    Attributes:
        create_only: a put may demand that the key does not exist.
        if_match: a put or delete may demand that the object is the one with a given tag.
        multipart_conditions: the same when a multipart upload completes.
        assured: it is known that conditions work; else whoever relies on them tries them first,
            because some stores take them and look at nothing.
        max_put_bytes: largest single put.
        min_part_bytes, max_parts: bounds of multipart uploads; the last part may be smaller.
        max_key_bytes: longest key, as UTF-8.
        refused_characters: what no key may hold.
    """

    create_only: bool = True
    if_match: bool = True
    multipart_conditions: bool = True
    assured: bool = False
    max_put_bytes: int = 5 * 1024**3
    min_part_bytes: int = 5 * 1024**2
    max_parts: int = 10_000
    max_key_bytes: int = 1024
    refused_characters: str = ""


class ObjectInfo(NamedTuple):
    """An object as it is in the store.

    Attributes:
        tag: another one after every write (ETag, generation).
        modified_at: by the store's clock, in seconds since 1970; 0: not known.
        marked: `head` or `get` has found its content type to be MARKED_TYPE, so asyncsync wrote it.
    """

    key: str
    size_bytes: int
    tag: str
    modified_at: float = 0.0
    marked: bool = False


class Fetched(NamedTuple):
    """Bytes of an object, and the object that they are of: its whole size, and its tag."""

    info: ObjectInfo
    data: Data


class Examined(NamedTuple):
    """What a store says of itself.

    Attributes:
        clock_offset_s: its clock minus ours; None where it has none of its own.
        notes: what is missing or could be better, one sentence each, for people.
    """

    clock_offset_s: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What must hold for a write to happen; the default demands nothing.

    Attributes:
        absent: the key must not exist.
        tag: the object must be the one with this tag.
    """

    absent: bool = False
    tag: str | None = None


class Part(NamedTuple):
    """A stored part of an upload: its number counted from 1, and what the store called it."""

    number: int
    tag: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload in progress. Its id may be a secret."""

    key: str
    upload_id: str = field(repr=False)


class ObjectStore(Protocol):
    """A flat namespace of objects, each replaced as a whole.

    Every implementation passes `asyncsync.testing.ObjectStoreContract`. A write that fails or is
    cancelled has happened completely or not at all; only a read can tell which.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    async def head(self, key: str) -> ObjectInfo:
        """What is stored under `key`; NotFoundError if nothing is."""
        ...

    async def get(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        tag: str | None = None,
        into: memoryview | None = None,
    ) -> Fetched:
        """Bytes `start` to `end` (exclusive; None: the end of the object).

        Returns less than asked for only where the object ends. Given `into`, which must be large
        enough, the bytes are put there.

        Raises:
            NotFoundError: no such key.
            PreconditionError: `tag` is given and the object is another one by now.
        """
        ...

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        """Create or replace `key`; no reader ever sees part of it.

        `data` may be used for something else as soon as this has returned.

        Raises:
            PreconditionError: the condition does not hold. After a lost answer this may be our own
                earlier success: read and compare.
        """
        ...

    async def delete(self, key: str, *, tag: str | None = None) -> None:
        """Remove `key`; no error when it is gone already. PreconditionError as for `put`."""
        ...

    def scan(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object whose key begins with `prefix`, by key. May lag behind writes."""
        ...

    def scan_level(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """What lies directly below `prefix`, by key, with few and small requests.

        Everything deeper shows up as one name that ends in a slash, without size and tag.
        """
        ...

    async def create_upload(self, key: str) -> Upload:
        """Begin a multipart upload; `key` is untouched until it completes."""
        ...

    async def put_part(self, upload: Upload, number: int, data: Data) -> Part:
        """Store part `number`, counted from 1; again replaces it."""
        ...

    async def complete_upload(
        self, upload: Upload, parts: Sequence[Part], *, condition: Condition | None = None
    ) -> ObjectInfo:
        """Make the object out of `parts`, in order. PreconditionError as for `put`."""
        ...

    async def abort_upload(self, upload: Upload) -> None:
        """Drop an upload and its parts; no error when it is gone already."""
        ...

    def scan_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        """Every upload in progress whose key begins with `prefix`.

        An upload whose id got lost, in a crash or with an answer, would stay and be paid for
        without anybody who knows of it.
        """
        ...

    async def examine(self) -> Examined:
        """Find out what people should know of the store; writes nothing."""
        ...

    async def aclose(self) -> None:
        """Let go of connections. Again: no effect."""
        ...


def levels(prefix: str, infos: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    """What `scan_level` gives, made of what `scan` gives: for stores that cannot do it. Pure."""
    last = ""
    for info in infos:
        name, slash, _ = info.key[len(prefix) :].partition("/")
        key = prefix + name + slash
        if not slash:
            yield info
        elif key != last:
            last = key
            yield ObjectInfo(key, 0, "")
