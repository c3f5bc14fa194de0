"""The requests to one bucket, each checked against what it should have done."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote as percent

import aiohttp

from ...clock import Clock
from ...concurrency import Threads, quietly
from ...errors import (
    CorruptedError,
    IntegrityError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    TransientError,
    quote,
)
from ...secrets import Secret
from ...units import MIB
from ..checksums import crc32c, crc_text
from ..http import Answer, http_time
from ..objects import MARKED_TYPE, Condition, Data, Examined, Fetched, ObjectInfo
from .answers import (
    Document,
    Stored,
    changed,
    checked_document,
    condition_query,
    content_range,
    document,
    examined,
    failure,
    hash_of,
    not_gcs,
    recoded,
    stored,
)
from .connection import Connection
from .resumable import Read, upload

if TYPE_CHECKING:
    from gcloud.aio.storage import Storage

__all__ = ["Bucket"]

_AT_ONCE_BYTES = 8 * MIB  # above it, an upload that breaks goes on where it was
_INLINE_BYTES = 1 * MIB  # a checksum of more than this is computed in a thread
_LISTED = "kind,nextPageToken,prefixes,items(name,size,generation,updated,crc32c)"
_SETTINGS = "softDeletePolicy,versioning,retentionPolicy,lifecycle"

# gcloud-aio's own limit is 10 s in all, the wait for a free connection included.
_PATIENCE = cast("int", aiohttp.ClientTimeout(total=None, sock_connect=15.0, sock_read=60.0))
_LONG_PATIENCE = cast("int", aiohttp.ClientTimeout(total=None, sock_connect=15.0, sock_read=300.0))


class Bucket:
    """One bucket behind a connection."""

    def __init__(
        self, name: str, connection: Connection, *, threads: Threads, clock: Clock
    ) -> None:
        self._name, self._connection = name, connection
        self._threads, self._clock = threads, clock
        self._objects = f"/storage/v1/b/{percent(name, safe='')}/o"
        self._uploads = f"/upload{self._objects}"

    def what(self, verb: str, key: str = "") -> str:
        """A request, as errors name it."""
        return f"{verb} gs://{quote(f'{self._name}/{key}')}"

    # -- one object

    async def describe(self, key: str) -> Stored:
        """What is stored under `key`; NotFoundError if nothing is."""
        what = self.what("look at", key)

        async def request(sdk: Storage) -> dict[str, Any]:
            return await sdk.download_metadata(self._name, key, timeout=_PATIENCE)

        return stored(what, checked_document(what, await self._connection.call(what, request)))

    async def read(
        self, key: str, start: int, end: int, *, tag: str | None, into: memoryview | None
    ) -> Fetched:
        """One range in one request, packed as it is stored. Errors as for `ObjectStore.get`."""
        what = self.what("get", key)
        answer = await self._connection.send(
            "GET",
            f"{self._objects}/{percent(key, safe='')}",
            {"alt": "media"} | condition_query(Condition(tag=tag)),
            # Whoever takes gzip gets an object kept as gzip as it is, and not unpacked.
            {"Accept-Encoding": "gzip", "Range": f"bytes={start}-{end - 1}"},
            what=what,
            into=into if into is None else into[: end - start],
        )
        if answer.status == 416:
            found = await self.nothing(key, tag)
            if found.info.size_bytes > start:
                raise TransientError(f"{what}: a larger one took its place meanwhile")
            return found
        if answer.status not in (200, 206):
            raise failure(what, answer)
        return await self._fetched(key, answer, start, end, tag)

    async def nothing(self, key: str, tag: str | None) -> Fetched:
        """No byte of an object, and which one it is."""
        info = (await self.describe(key)).info
        if tag not in (None, info.tag):
            raise changed(self.what("get", key))
        return Fetched(info, b"")

    async def _fetched(
        self, key: str, answer: Answer, start: int, end: int, tag: str | None
    ) -> Fetched:
        what, headers = self.what("get", key), answer.headers
        size = _whole_size(what, answer, start, end)
        generation = headers.get("X-Goog-Generation")
        if generation is None:  # an emulator
            generation = (await self.describe(key)).info.tag
        if tag not in (None, generation):
            raise changed(what)
        if start == 0 and len(answer.body) == size:
            await self._check_hash(what, answer)
        modified_at = http_time(headers.get("Last-Modified")) or 0.0
        marked = headers.get("Content-Type") == MARKED_TYPE
        return Fetched(ObjectInfo(key, size, generation, modified_at, marked), answer.body)

    async def _check_hash(self, what: str, answer: Answer) -> None:
        said = hash_of(answer.headers)
        if said is not None and said != crc_text(await self.crc(answer.body)):
            raise CorruptedError(f"{what}: the bytes that arrived are not those that are stored")

    async def crc(self, data: Data) -> int:
        """The CRC-32C of `data`."""
        if len(data) <= _INLINE_BYTES:
            return crc32c(data)
        return await self._threads.run(crc32c, data)

    async def write(self, key: str, data: Data, condition: Condition | None = None) -> Stored:
        """Store `data` under `key`. Errors as for `ObjectStore.put`."""
        crc = await self.crc(data)
        # An emulator in use cuts the connection when an upload in one request is empty.
        if len(data) > _AT_ONCE_BYTES or (not len(data) and await self._connection.emulated()):
            view = memoryview(data)

            async def read(start: int, end: int) -> Data:
                return view[start:end]

            return await self.write_long(key, len(data), read, crc, condition)
        what = self.what("put", key)
        answer = await self._connection.send(
            "POST",
            self._uploads,
            {"uploadType": "media", "name": key} | condition_query(condition),
            {"Content-Type": MARKED_TYPE, "X-Goog-Hash": f"crc32c={crc_text(crc)}"},
            what=what,
            data=data,
        )
        if answer.status not in (200, 201):
            raise failure(what, answer, of_object=False)
        return await self._checked(key, document(what, answer.body), len(data), crc)

    async def write_long(
        self,
        key: str,
        size_bytes: int,
        read: Read,
        crc: int | None,
        condition: Condition | None,
        *,
        chunk_bytes: int | None = None,
    ) -> Stored:
        """Store `size_bytes` bytes by a resumable upload."""
        sessions = _Sessions(self, key, size_bytes, crc, condition)
        done = await upload(
            sessions,
            read,
            size_bytes,
            chunk_bytes=chunk_bytes,
            what=self.what("put", key),
            clock=self._clock,
        )
        return await self._checked(key, done, size_bytes, crc)

    async def compose(
        self,
        key: str,
        sources: Sequence[str],
        size_bytes: int,
        crc: int | None,
        condition: Condition | None = None,
    ) -> Stored:
        """Make `key` of up to 32 objects, one after the other.

        Raises:
            UnsupportedError, DroppedError: the server may not be able to do this.
            PreconditionError: the condition does not hold.
        """
        what = self.what("compose", key)

        async def request(sdk: Storage) -> dict[str, Any]:
            return await sdk.compose(
                self._name,
                key,
                list(sources),
                content_type=MARKED_TYPE,
                params=condition_query(condition),
                timeout=_LONG_PATIENCE,
            )

        done = checked_document(what, await self._connection.call(what, request))
        return await self._checked(key, done, size_bytes, crc)

    async def delete(self, key: str, *, tag: str | None = None) -> None:
        """Remove `key`; no error when it is gone. PreconditionError: `tag` is another one's."""
        what = self.what("delete", key)

        async def request(sdk: Storage) -> str:
            params = condition_query(Condition(tag=tag))
            return await sdk.delete(self._name, key, params=params, timeout=_PATIENCE)

        try:
            await self._connection.call(what, request)
        except NotFoundError:
            return
        except PreconditionError:
            if await self._exists(key):
                raise

    async def _exists(self, key: str) -> bool:
        try:
            await self.describe(key)
        except NotFoundError:
            return False
        return True

    async def _checked(self, key: str, found: Document, size_bytes: int, crc: int | None) -> Stored:
        """What was stored, if it is what was sent; else it is removed again."""
        what = self.what("put", key)
        done = stored(what, found)
        wrong = crc is not None and done.crc32c not in (None, crc_text(crc))
        if done.info.size_bytes != size_bytes or wrong:
            await quietly(lambda: self.delete(key, tag=done.info.tag))
            raise CorruptedError(f"{what}: what the store kept is not what was sent; removed again")
        return done

    # -- all objects

    async def pages(
        self, prefix: str, *, delimiter: str | None = None
    ) -> AsyncGenerator[list[Stored]]:
        """What the listing gives below `prefix`, by key; names of levels have no tag.

        Raises:
            IntegrityError: it repeats itself or is not in order.
        """
        what = self.what("list", prefix)
        query = {"prefix": prefix, "fields": _LISTED} | (
            {"delimiter": delimiter} if delimiter else {}
        )

        async def request(sdk: Storage) -> dict[str, Any]:
            return await sdk.list_objects(self._name, params=dict(query), timeout=_PATIENCE)

        last, tokens = "", set[str]()
        while True:
            answer = await self._connection.call(what, request, of_object=False)
            page = _listed(what, checked_document(what, answer))
            keys = [found.info.key for found in page]
            token = answer.get("nextPageToken", "")
            if keys != sorted(set(keys)) or (keys and keys[0] <= last) or token in tokens:
                raise IntegrityError(f"{what}: the listing repeats itself; nothing follows from it")
            yield page
            if not token:
                return
            last = keys[-1] if keys else last
            tokens.add(token)
            query["pageToken"] = token

    async def examine(self) -> Examined:
        """The bucket's clock and settings, as far as we may read them."""
        what = self.what("look at")
        answer = await self._connection.send(
            "GET", self._objects.removesuffix("/o"), {"fields": _SETTINGS}, {}, what=what
        )
        then = http_time(answer.headers.get("Date"))
        offset_s = None if then is None else then - self._clock.now()
        if answer.status == 403:
            return Examined(offset_s, ("its settings cannot be read (storage.buckets.get)",))
        if answer.status != 200:
            raise failure(what, answer, of_object=False)
        return examined(document(what, answer.body), offset_s)

    # -- requests of a resumable upload

    async def start(
        self, key: str, size_bytes: int, crc: int | None, condition: Condition | None
    ) -> Secret:
        """Open an upload session."""
        what = self.what("put", key)
        resource = {"name": key} | ({} if crc is None else {"crc32c": crc_text(crc)})
        answer = await self._connection.send(
            "POST",
            self._uploads,
            {"uploadType": "resumable", "name": key} | condition_query(condition),
            {
                "Content-Type": "application/json; charset=UTF-8",
                "X-Upload-Content-Type": MARKED_TYPE,
                "X-Upload-Content-Length": str(size_bytes),
            },
            what=what,
            data=json.dumps(resource).encode(),
        )
        if answer.status not in (200, 201):
            raise failure(what, answer, of_object=False)
        if "Location" not in answer.headers:
            raise not_gcs(what)
        return Secret(answer.headers["Location"])

    async def send_to(
        self, session: Secret, key: str, headers: Mapping[str, str], data: Data
    ) -> Answer:
        """Send bytes to an upload session."""
        return await self._connection.send_to(
            session, headers, what=self.what("put", key), data=data
        )


class _Sessions:
    """Upload sessions for one object."""

    def __init__(
        self,
        bucket: Bucket,
        key: str,
        size_bytes: int,
        crc: int | None,
        condition: Condition | None,
    ) -> None:
        self._bucket, self._key = bucket, key
        self._size_bytes, self._crc, self._condition = size_bytes, crc, condition

    async def start(self) -> Secret:
        return await self._bucket.start(self._key, self._size_bytes, self._crc, self._condition)

    async def send(self, session: Secret, content_range: str, data: Data) -> Answer:
        headers = {"Content-Range": content_range}
        return await self._bucket.send_to(session, self._key, headers, data)


def _whole_size(what: str, answer: Answer, start: int, end: int) -> int:
    """The size of the object of which `answer` holds bytes `start` to `end`.

    Raises:
        PermanentError: it holds other bytes than these.
        TransientError: some are missing.
    """
    if recoded(answer.headers):
        raise PermanentError(f"{what}: unpacked on the way, so the bytes are not those stored")
    got = len(answer.body)
    first, size = (0, got) if answer.status == 200 else content_range(answer.headers) or (-1, 0)
    if first != start or (answer.status == 200 and got > end):
        raise PermanentError(f"{what}: the server gives other bytes than the range asked for")
    expected = max(0, min(end, size) - start)
    if got != expected:
        raise TransientError(f"{what}: {got} of {expected} bytes arrived")
    return size


def _listed(what: str, page: Document) -> list[Stored]:
    """The objects and the levels of one page, by key."""
    if page.get("kind") != "storage#objects":
        raise not_gcs(what)
    objects = [stored(what, item) for item in page.get("items", ())]
    levels = [Stored(ObjectInfo(name, 0, ""), None) for name in page.get("prefixes", ())]
    return sorted(objects + levels)
