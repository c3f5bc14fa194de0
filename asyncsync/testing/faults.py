"""Faults at the n-th call to a store: what a test enumerates instead of imagining."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Literal, Protocol, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from ..storage.objects import (
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

__all__ = ["CancelAt", "FailAt", "Fault", "FaultyObjects"]

T = TypeVar("T")


class Fault(Protocol):
    """Decides what happens to a call."""

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T: ...


class FailAt:
    """The n-th call fails.

    Args:
        number: which one, counted from 1.
        error: makes what it raises.
        when: `before` the call had its effect, or `after` it, so that only the answer is lost.
        sticky: every later call fails as well, before its effect: the network is gone.

    Attributes:
        calls: how many there were.
    """

    def __init__(
        self,
        number: int,
        error: Callable[[], Exception],
        *,
        when: Literal["before", "after"] = "before",
        sticky: bool = False,
    ) -> None:
        self._number, self._error, self._when, self._sticky = number, error, when, sticky
        self.calls = 0

    @property
    def happened(self) -> bool:
        """Whether the fault has been met."""
        return self.calls >= self._number

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        self.calls += 1
        if self.calls == self._number:
            if self._when == "after":
                await call()
            raise self._error()
        if self._sticky and self.happened:
            raise self._error()
        return await call()


class CancelAt:
    """The scope is cancelled in the n-th call, before or after the call had its effect."""

    def __init__(
        self, number: int, scope: anyio.CancelScope, *, when: Literal["before", "after"] = "before"
    ) -> None:
        self._number, self._scope, self._when = number, scope, when
        self.calls = 0

    @property
    def happened(self) -> bool:
        """Whether the fault has been met."""
        return self.calls >= self._number

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        self.calls += 1
        if self.calls != self._number:
            return await call()
        if self._when == "before":
            self._scope.cancel()
            await checkpoint()
        result = await call()
        self._scope.cancel()
        await checkpoint()
        return result


class FaultyObjects:
    """An ObjectStore on which a fault acts; a whole scan counts as one call."""

    def __init__(self, inner: ObjectStore, fault: Fault) -> None:
        self._inner, self._fault = inner, fault

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    async def head(self, key: str) -> ObjectInfo:
        return await self._fault(lambda: self._inner.head(key))

    async def get(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        tag: str | None = None,
        into: memoryview | None = None,
    ) -> Fetched:
        return await self._fault(lambda: self._inner.get(key, start, end, tag=tag, into=into))

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        return await self._fault(lambda: self._inner.put(key, data, condition=condition))

    async def delete(self, key: str, *, tag: str | None = None) -> None:
        await self._fault(lambda: self._inner.delete(key, tag=tag))

    async def scan(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async def collect() -> list[ObjectInfo]:
            return [info async for info in self._inner.scan(prefix)]

        for info in await self._fault(collect):
            yield info

    async def scan_level(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async def collect() -> list[ObjectInfo]:
            return [info async for info in self._inner.scan_level(prefix)]

        for info in await self._fault(collect):
            yield info

    async def create_upload(self, key: str) -> Upload:
        return await self._fault(lambda: self._inner.create_upload(key))

    async def put_part(self, upload: Upload, number: int, data: Data) -> Part:
        return await self._fault(lambda: self._inner.put_part(upload, number, data))

    async def complete_upload(
        self, upload: Upload, parts: Sequence[Part], *, condition: Condition | None = None
    ) -> ObjectInfo:
        return await self._fault(
            lambda: self._inner.complete_upload(upload, parts, condition=condition)
        )

    async def abort_upload(self, upload: Upload) -> None:
        await self._fault(lambda: self._inner.abort_upload(upload))

    async def scan_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        async def collect() -> list[Upload]:
            return [upload async for upload in self._inner.scan_uploads(prefix)]

        for upload in await self._fault(collect):
            yield upload

    async def examine(self) -> Examined:
        return await self._fault(self._inner.examine)

    async def aclose(self) -> None:
        await self._inner.aclose()
