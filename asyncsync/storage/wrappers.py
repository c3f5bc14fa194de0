"""A store with behaviours around each of its calls.

`equip_objects` and `equip_trees` show the order in which they apply.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

from ..clock import Clock
from ..errors import quote
from ..events import Observer, ignore
from ..manifest import Header, Manifest
from .behaviours import Around, Hastened, Limited, Pace, Rate, Retried, Stacked, Throttled
from .groups import Group
from .objects import (
    Capabilities,
    Condition,
    Data,
    Examined,
    Fetched,
    ObjectInfo,
    ObjectStore,
    Part,
    Upload,
)
from .retrying import Backoff, RetryBudget
from .trees import (
    Block,
    Deleted,
    Durability,
    Gathering,
    Glance,
    Intent,
    NewFile,
    Sighting,
    Stored,
    TreeCapabilities,
    TreeReader,
    TreeStore,
    TreeWriter,
)

__all__ = ["equip_objects", "equip_trees"]


def equip_objects(
    objects: ObjectStore,
    *,
    clock: Clock,
    backoff: Backoff | None = None,
    budget: RetryBudget | None = None,
    max_requests: int = 32,
    rate: Rate | None = None,
    observe: Observer = ignore,
) -> ObjectStore:
    """Everything between the adapter and a backend, in the order it applies.

    Retrying is outermost: a call that waits for its next try holds no slot. What waits for the
    rate holds one, so that the rate orders few calls and not all of them. Haste is innermost: the
    time of waiting is no sign of being stuck.
    """
    around: list[Around] = [
        Retried(backoff or Backoff(), clock, observe, budget),
        Limited(max_requests),
        Hastened(Pace(), clock, observe),
    ]
    if rate is not None:
        around.insert(-1, Throttled(rate))
    return _Objects(objects, Stacked(*around))


def equip_trees(
    trees: TreeStore,
    *,
    clock: Clock,
    backoff: Backoff | None = None,
    max_requests: int = 32,
    rate: Rate | None = None,
    observe: Observer = ignore,
) -> TreeStore:
    """The same around a store that is a TreeStore by nature."""
    around: list[Around] = [Retried(backoff or Backoff(), clock, observe), Limited(max_requests)]
    if rate is not None:
        around.append(Throttled(rate))
    return _Trees(trees, Stacked(*around))


class _Objects:
    """An ObjectStore with something around each request. See ObjectStore for the contract."""

    def __init__(self, inner: ObjectStore, around: Around) -> None:
        self._inner, self._around = inner, around

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    async def head(self, key: str) -> ObjectInfo:
        return await self._around(f"head {quote(key)}", 0, lambda: self._inner.head(key))

    async def get(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        tag: str | None = None,
        into: memoryview | None = None,
    ) -> Fetched:
        # How long an object is that nobody has looked at, is not known before: records are read so.
        known = start or into is not None or tag is not None
        size_bytes = end - start if known and end is not None else 0
        return await self._around(
            f"get {quote(key)}",
            size_bytes,
            lambda: self._inner.get(key, start, end, tag=tag, into=into),
        )

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        return await self._around(
            f"put {quote(key)}",
            len(data),
            lambda: self._inner.put(key, data, condition=condition),
        )

    async def delete(self, key: str, *, tag: str | None = None) -> None:
        await self._around(f"delete {quote(key)}", 0, lambda: self._inner.delete(key, tag=tag))

    def scan(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._walk(f"list {quote(prefix)}", lambda: self._inner.scan(prefix))

    def scan_level(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._walk(f"list {quote(prefix)}", lambda: self._inner.scan_level(prefix))

    async def _walk(
        self, what: str, scan: Callable[[], AsyncIterator[ObjectInfo]]
    ) -> AsyncIterator[ObjectInfo]:
        walk = _Walk(scan)
        try:
            while (info := await self._around(what, 0, walk.next)) is not None:
                yield info
        finally:
            await walk.aclose()

    async def create_upload(self, key: str) -> Upload:
        return await self._around(
            f"begin upload of {quote(key)}", 0, lambda: self._inner.create_upload(key)
        )

    async def put_part(self, upload: Upload, number: int, data: Data) -> Part:
        return await self._around(
            f"put part {number} of {quote(upload.key)}",
            len(data),
            lambda: self._inner.put_part(upload, number, data),
        )

    async def complete_upload(
        self, upload: Upload, parts: Sequence[Part], *, condition: Condition | None = None
    ) -> ObjectInfo:
        return await self._around(
            f"complete upload of {quote(upload.key)}",
            0,
            lambda: self._inner.complete_upload(upload, parts, condition=condition),
        )

    async def abort_upload(self, upload: Upload) -> None:
        what = f"abort upload of {quote(upload.key)}"
        await self._around(what, 0, lambda: self._inner.abort_upload(upload))

    async def scan_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        async def collect() -> list[Upload]:
            return [upload async for upload in self._inner.scan_uploads(prefix)]

        for upload in await self._around(f"list uploads of {quote(prefix)}", 0, collect):
            yield upload

    async def examine(self) -> Examined:
        return await self._around("examine the store", 0, self._inner.examine)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Walk:
    """A scan taken step by step; after a failure it goes on behind the last key it gave out."""

    def __init__(self, scan: Callable[[], AsyncIterator[ObjectInfo]]) -> None:
        self._scan = scan
        self._rest: AsyncIterator[ObjectInfo] | None = None
        self._last: str | None = None

    async def next(self) -> ObjectInfo | None:
        if self._rest is None:
            self._rest = self._scan()
        try:
            async for info in self._rest:
                if self._last is None or info.key > self._last:
                    self._last = info.key
                    return info
        except BaseException:
            self._rest = None
            raise
        return None

    async def aclose(self) -> None:
        rest, self._rest = self._rest, None
        if rest is not None:
            await cast("AsyncGenerator[ObjectInfo, None]", rest).aclose()


class _Trees:
    """A TreeStore with something around each call. See TreeStore for the contract."""

    def __init__(self, inner: TreeStore, around: Around) -> None:
        self._inner, self._around = inner, around

    async def read_manifest(self, tree: str) -> Manifest:
        what = f"read the manifest of {quote(tree)}"
        return await self._around(what, 0, lambda: self._inner.read_manifest(tree))

    async def read_header(self, tree: str) -> Header:
        what = f"read the header of {quote(tree)}"
        return await self._around(what, 0, lambda: self._inner.read_header(tree))

    def find(self, tree: str) -> AsyncIterator[Sighting]:
        return self._inner.find(tree)

    async def glance(self, tree: str) -> Glance:
        return await self._around(f"look at {quote(tree)}", 0, lambda: self._inner.glance(tree))

    async def list_files(self, tree: str) -> list[NewFile]:
        return await self._around(f"list {quote(tree)}", 0, lambda: self._inner.list_files(tree))

    @asynccontextmanager
    async def open(self, tree: str, manifest: Manifest | None) -> AsyncIterator[TreeReader]:
        async with AsyncExitStack() as stack:
            reader = await self._around(
                f"open {quote(tree)}",
                0,
                lambda: stack.enter_async_context(self._inner.open(tree, manifest)),
            )
            yield _Reader(reader, self._around)

    @asynccontextmanager
    async def begin(self, tree: str, intent: Intent) -> AsyncIterator[TreeWriter]:
        async with AsyncExitStack() as stack:
            writer = await self._around(
                f"begin to write {quote(tree)}",
                0,
                lambda: stack.enter_async_context(self._inner.begin(tree, intent)),
            )
            yield _Writer(writer, self._around)

    async def read_part(self, tree: str, group: Group) -> Manifest:
        what = f"read part {group.rank} of {quote(tree)}"
        return await self._around(what, 0, lambda: self._inner.read_part(tree, group))

    async def gather(self, tree: str, intent: Intent) -> Gathering:
        return await self._around(
            f"gather {quote(tree)}", 0, lambda: self._inner.gather(tree, intent)
        )

    async def delete(
        self, tree: str, *, expect: str | None = None, uncommitted: bool = False
    ) -> Deleted:
        return await self._around(
            f"delete {quote(tree)}",
            0,
            lambda: self._inner.delete(tree, expect=expect, uncommitted=uncommitted),
        )

    async def clean(self, tree: str, *, older_than_s: float) -> list[str]:
        return await self._around(
            f"clean {quote(tree)}", 0, lambda: self._inner.clean(tree, older_than_s=older_than_s)
        )

    async def confirm(self, tree: str) -> Durability:
        return await self._around(f"confirm {quote(tree)}", 0, lambda: self._inner.confirm(tree))

    async def mark_root(self, tree: str, marker: bytes) -> bytes:
        what = f"mark the root {quote(tree)}"
        return await self._around(what, 0, lambda: self._inner.mark_root(tree, marker))

    async def probe(self, tree: str) -> TreeCapabilities:
        return await self._around(f"probe {quote(tree)}", 0, lambda: self._inner.probe(tree))

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Reader:
    def __init__(self, inner: TreeReader, around: Around) -> None:
        self._inner, self._around = inner, around

    async def read(
        self, file: NewFile, start: int, end: int, into: memoryview | None = None
    ) -> Block:
        what = f"read {quote(file.path)}"
        return await self._around(
            what, end - start, lambda: self._inner.read(file, start, end, into)
        )

    async def read_many(self, files: Sequence[NewFile]) -> list[bytes]:
        size_bytes = sum(file.size_bytes for file in files)
        return await self._around(
            f"read {len(files)} files", size_bytes, lambda: self._inner.read_many(files)
        )


class _Writer:
    def __init__(self, inner: TreeWriter, around: Around) -> None:
        self._inner, self._around = inner, around

    @property
    def resumes(self) -> bool:
        return self._inner.resumes

    async def recall(
        self, files: Sequence[tuple[NewFile, Mapping[int, Stored]]]
    ) -> list[frozenset[int]]:
        return await self._around("recall", 0, lambda: self._inner.recall(files))

    async def write(self, file: NewFile, offset: int, block: Block) -> str:
        return await self._around(
            f"write {quote(file.path)}",
            len(block.data),
            lambda: self._inner.write(file, offset, block),
        )

    async def write_many(self, files: Sequence[tuple[NewFile, Data]]) -> list[str]:
        size_bytes = sum(len(data) for _, data in files)
        return await self._around(
            f"write {len(files)} files", size_bytes, lambda: self._inner.write_many(files)
        )

    async def finish(self, file: NewFile) -> str:
        return await self._around(f"finish {quote(file.path)}", 0, lambda: self._inner.finish(file))

    async def discard(self, path: str) -> None:
        what = f"discard {quote(path)}"
        await self._around(what, 0, lambda: self._inner.discard(path))

    async def commit(self, manifest: Manifest) -> Durability:
        return await self._around("commit", 0, lambda: self._inner.commit(manifest))
