"""One tree in a bucket: its keys, its manifest, and requests that several steps share."""

from __future__ import annotations

import io
import os
from collections.abc import (
    AsyncGenerator,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing, contextmanager
from typing import NamedTuple, TypeVar, cast

import anyio

from ...concurrency import each, quietly
from ...digest import CHUNK_BYTES, digest
from ...errors import (
    ClashError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    RefusedError,
    TransientError,
    quote,
)
from ...manifest import MAX_MANIFEST_BYTES, FileEntry, Header, Manifest, decode, encode, read_header
from ...names import ATTEMPT, MANIFEST, PARTS, check_path, is_ours
from ...units import KIB, MIB
from ..objects import Condition, ObjectInfo, ObjectStore, Part
from ..trees import File

__all__ = ["Found", "Place", "clash", "conflict", "of_tree"]

_RANGE_BYTES = 4 * MIB  # of a manifest, read at once
_HEADER_BYTES = 64 * KIB
_READS = 4  # of a manifest that is another one at every range
_WHOLE_ENTRIES = 100_000  # the manifest of more is written in parts
_THREAD_BYTES = 1 * MIB  # manifests above this are encoded and decoded in a thread

T = TypeVar("T")


class Found(NamedTuple):
    """A manifest as it is in the store."""

    manifest: Manifest
    tag: str


def of_tree(path: str) -> bool:
    """Whether a path is somebody's file, not one of asyncsync's own."""
    return not any(is_ours(component) for component in path.split("/"))


class Place:
    """A tree by name in an object store.

    Args:
        store: what comes before the name in messages.

    Attributes:
        where: the tree, for messages.
        conditional: conditions work, so that two writers are kept apart.
        marks: the store keeps our mark: it was on the attempt record when that was last read.
    """

    def __init__(
        self, objects: ObjectStore, name: str, *, conditional: bool, store: str = ""
    ) -> None:
        self.objects, self.name, self.conditional = objects, name, conditional
        self.marks = False
        self.where = quote("/".join(filter(None, (store, name)))) or "the root of the store"
        self.prefix = f"{name}/" if name else ""
        self.manifest_key, self.record_key = self.key(MANIFEST), self.key(ATTEMPT)

    def key(self, path: str) -> str:
        """The key of a path in the tree."""
        return self.prefix + path

    def condition(self, *, absent: bool = False, tag: str | None = None) -> Condition | None:
        """A condition, where the store has them."""
        return Condition(absent=absent, tag=tag) if self.conditional else None

    def check(self, files: Iterable[File]) -> None:
        """Refuse what the store cannot hold. No I/O.

        Raises:
            RefusedError: a name that no tree may hold, that is not UTF-8 or makes too long a key,
                or a file of more parts than an upload may have; or the tree has the name of parts.
        """
        if any(map(PARTS.fullmatch, self.name.split("/"))):
            raise RefusedError(
                f"{self.where} refused: a part of that name is one that asyncsync gives to parts "
                "of uploads; name another place",
                side="target",
            )
        caps = self.objects.capabilities
        for file in files:
            check_path(file.path)
            key = os.fsencode(self.key(file.path))
            reason = None
            if not _is_utf8(key):
                reason = "it is not valid UTF-8, and object stores hold nothing else; rename it"
            elif len(key) > caps.max_key_bytes:
                reason = f"its key is {len(key)} bytes long; {caps.max_key_bytes} is the limit"
            elif refused := set(caps.refused_characters).intersection(file.path):
                reason = f"this store keeps no names with {quote(min(refused))} in them; rename it"
            elif file.size_bytes > caps.max_parts * CHUNK_BYTES:
                reason = (
                    f"it is larger than {caps.max_parts} parts of {CHUNK_BYTES} bytes; split it"
                )
            if reason:
                raise RefusedError(
                    f"name {quote(file.path)} refused: {reason}", side="target", paths=[file.path]
                )

    # -- the manifest

    async def manifest(self) -> Found | None:
        """The commit that is there, from the store; None when there is no manifest.

        Raises:
            IntegrityError, FormatError: and names the tree.
            TransientError: it cannot be read whole, because it is another one at every range.
        """
        for _ in range(_READS):
            try:
                info, data = await self.whole(self.manifest_key)
            except NotFoundError:
                return None
            except PreconditionError:  # replaced between two ranges
                continue
            with _naming(self.where):
                return Found(await _offload(len(data), _decode, data), info.tag)
        raise TransientError(
            f"the manifest of {self.where} cannot be read whole: {_READS} times in a row the store "
            "says that it was replaced meanwhile; try again later, and see whether something "
            "rewrites it or changes tags (If-Match) on the way"
        )

    async def whole(self, key: str) -> tuple[ObjectInfo, bytearray]:
        """An object with a manifest in it. PreconditionError if it is replaced meanwhile."""
        first = await self.objects.get(key, 0, _RANGE_BYTES)
        info, data = first.info, bytearray(first.data)
        if info.size_bytes > MAX_MANIFEST_BYTES:
            raise IntegrityError(
                f"the manifest of {self.where} is refused: it has {info.size_bytes} bytes",
                side="source",
            )
        for start in range(_RANGE_BYTES, info.size_bytes, _RANGE_BYTES):
            end = start + _RANGE_BYTES
            data += (await self.objects.get(info.key, start, end, tag=info.tag)).data
        return info, data

    async def header(self) -> Header | None:
        """The header of the manifest that is there, with one request."""
        try:
            data = (await self.objects.get(self.manifest_key, 0, _HEADER_BYTES)).data
        except NotFoundError:
            return None
        with _naming(self.where):
            return read_header(bytes(data).partition(b"\n")[0])

    async def put_manifest(self, manifest: Manifest, condition: Condition | None) -> None:
        """Write the manifest. PreconditionError as for any put."""
        works = self.objects.capabilities.multipart_conditions
        if len(manifest.entries) > _WHOLE_ENTRIES and (works or condition is None):
            await self._put_in_parts(manifest, condition)
            return
        data = await _offload(len(manifest.entries) * KIB, _encode, manifest)
        await self.objects.put(self.manifest_key, data, condition=condition)

    async def _put_in_parts(self, manifest: Manifest, condition: Condition | None) -> None:
        """Write a manifest whose text is never there as a whole: it would be 150 MB of a million
        files. No reader sees it before its upload is completed."""
        pieces, parts = _pieces(manifest), list[Part]()
        upload = await self.objects.create_upload(self.manifest_key)
        try:
            while piece := await anyio.to_thread.run_sync(next, pieces, b""):
                parts.append(await self.objects.put_part(upload, len(parts) + 1, piece))
            await self.objects.complete_upload(upload, parts, condition=condition)
        except NotFoundError as exc:
            raise TransientError(
                f"{self.where}: the store has lost the manifest on its way, or has it and its "
                "answer got lost; try again"
            ) from exc
        except BaseException:
            await quietly(lambda: self.objects.abort_upload(upload))
            raise

    # -- the files

    async def scan(self) -> AsyncGenerator[tuple[str, ObjectInfo], None]:
        """Path and object of everything below the tree, asyncsync's own too."""
        objects = cast("AsyncGenerator[ObjectInfo, None]", self.objects.scan(self.prefix))
        async with aclosing(objects):  # a listing that is left early ends now, not some time
            async for info in objects:
                yield info.key[len(self.prefix) :], info

    async def is_empty(self) -> bool:
        """Whether no files are there, whoever wrote them."""
        async with aclosing(self.scan()) as found:
            async for path, _ in found:
                if of_tree(path):
                    return False
        return True

    async def head(self, path: str) -> ObjectInfo | None:
        """The object of a path; None when there is none."""
        try:
            return await self.objects.head(self.key(path))
        except NotFoundError:
            return None

    async def unmarked(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of `paths` at which somebody else wrote, as far as the store lets us know."""
        found: set[str] = set()

        async def look(path: str) -> None:
            there = await self.head(path)
            if there is not None and not there.marked:
                found.add(path)

        if self.marks:
            await each(sorted(paths), look)
        return frozenset(found)

    async def delete(self, paths: Iterable[str]) -> None:
        """Delete the objects of `paths`; those that are gone already are no error."""
        await each(sorted(paths), lambda path: self.objects.delete(self.key(path)))

    async def abort_uploads(self, ours: Callable[[str], bool]) -> None:
        """Abort the unfinished uploads of the paths for which `ours` holds, and of manifests.

        Whoever holds the record is the only one who may upload a manifest.
        """
        found = [u async for u in self.objects.scan_uploads(self.prefix)]
        paths = [(u, u.key[len(self.prefix) :]) for u in found]
        mine = [u for u, path in paths if u.key == self.manifest_key or ours(path)]
        await each(mine, self.objects.abort_upload)

    async def differing(self, entries: Sequence[FileEntry]) -> list[str]:
        """The paths whose stored bytes are not what their entry says. Reads all of them."""
        wrong: list[str] = []

        async def compare(entry: FileEntry) -> None:
            if not await self._holds(entry):
                wrong.append(entry.path)

        await each(entries, compare)
        return sorted(wrong)

    async def _holds(self, entry: FileEntry) -> bool:
        info = await self.head(entry.path)
        if info is None or info.size_bytes != entry.size_bytes:
            return False
        for number, start in enumerate(range(0, max(1, entry.size_bytes), CHUNK_BYTES)):
            data = (await self.objects.get(info.key, start, start + CHUNK_BYTES)).data
            if await _offload(len(data), digest, data) != entry.chunk_digest(number):
                return False
        return True


def clash(place: Place, path: str) -> ClashError:
    """The error for a file that is not ours under a name that we want."""
    return ClashError(
        f"{place.where} holds a file that asyncsync did not write: {quote(path)}; move it away or "
        "choose another target",
        side="target",
        paths=[path],
    )


def conflict(place: Place, there: Found | None) -> ConflictError:
    """The error for a tree that holds commit `there` (None: none) against expectation."""
    found = f"commit {there.manifest.identity[:12]}" if there else "no commit"
    return ConflictError(
        f"{place.where}: found {found} instead of the one expected; somebody else wrote or deleted "
        "it. Sync down first, or replace it on purpose",
        winner=there.manifest.identity if there else "",
    )


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Say of which tree a manifest is damaged."""
    try:
        yield
    except IntegrityError as exc:
        raise type(exc)(f"{where}: {exc}", side="source") from exc


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decode(data: bytearray) -> Manifest:
    return decode(io.BytesIO(data))


def _encode(manifest: Manifest) -> bytes:
    return b"".join(encode(manifest))


def _pieces(manifest: Manifest) -> Iterator[bytearray]:
    """The text of a manifest, in pieces of the size of a part."""
    piece = bytearray()
    for line in encode(manifest):
        piece += line
        if len(piece) >= CHUNK_BYTES:
            yield piece
            piece = bytearray()
    if piece:
        yield piece


async def _offload(size_bytes: int, function: Callable[..., T], *args: object) -> T:
    """Call `function` in a thread when it has much to do, else here."""
    if size_bytes < _THREAD_BYTES:
        return function(*args)
    return await anyio.to_thread.run_sync(function, *args)
