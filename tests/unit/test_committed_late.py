"""Requests of an interrupted attempt that a store hears late, while the next one is at work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asyncsync.digest import CHUNK_BYTES, digest
from asyncsync.errors import NotFoundError, TransientError
from asyncsync.names import MANIFEST, new_attempt
from asyncsync.storage.committed import CommittedTrees
from asyncsync.storage.memory import MemoryObjects
from asyncsync.storage.objects import Condition, Data, ObjectInfo, Part, Upload
from asyncsync.storage.trees import Block, Intent, NewFile, Stored
from asyncsync.testing import FakeClock
from asyncsync.testing.values import load, make_manifest

SIZE = CHUNK_BYTES + 7
BIG = NewFile("big", SIZE)


class Late(MemoryObjects):
    """Hears some requests only when it is told to, after they were given up."""

    def __init__(self) -> None:
        super().__init__()
        self.deaf = True
        self.manifest: tuple[str, bytes, Condition | None] | None = None
        self.completion: tuple[Upload, Sequence[Part], Condition | None] | None = None

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        if self.deaf and key.endswith(MANIFEST):
            self.manifest = key, bytes(data), condition
            raise TransientError("no answer")
        return await super().put(key, data, condition=condition)

    async def complete_upload(
        self, upload: Upload, parts: Sequence[Part], *, condition: Condition | None = None
    ) -> ObjectInfo:
        if self.deaf:
            self.completion = upload, parts, condition
            raise TransientError("no answer")
        return await super().complete_upload(upload, parts, condition=condition)

    async def hear(self) -> None:
        if self.manifest is not None:
            key, data, condition = self.manifest
            await super().put(key, data, condition=condition)
        if self.completion is not None:
            upload, parts, condition = self.completion
            await super().complete_upload(upload, parts, condition=condition)


def _intent(*files: NewFile, keep: bool = True) -> Intent:
    return Intent(attempt=new_attempt(), writer="me", files=files, keep=keep)


@pytest.mark.parametrize("keep", [False, True])
async def test_a_commit_that_comes_late_goes_with_the_attempt_that_overwrote_its_files(
    keep: bool,
) -> None:
    objects = Late()
    store, small = CommittedTrees(objects, clock=FakeClock()), (NewFile("a", 2), NewFile("b", 2))
    first = _intent(*small)
    with suppress(TransientError):
        async with store.begin("t", first) as writer:
            tokens = await writer.write_many([(file, b"v1") for file in small])
            await writer.commit(make_manifest({"a": b"v1", "b": b"v1"}, attempt=first.attempt))
    objects.deaf = False
    with anyio.CancelScope() as scope:
        async with store.begin("t", _intent(*small, keep=keep)) as writer:
            await writer.recall([(small[1], {0: Stored(digest(b"v1"), tokens[1])})])
            await writer.write_many([(small[0], b"v2")])
            await objects.hear()
            scope.cancel()
            await checkpoint()

    with pytest.raises(NotFoundError):
        await store.read_manifest("t")


async def test_an_upload_that_is_completed_late_is_written_over() -> None:
    objects = Late()
    store = CommittedTrees(objects, clock=FakeClock())
    old, new = b"1" * SIZE, b"2" * SIZE
    with suppress(TransientError):
        async with store.begin("t", _intent(BIG)) as writer:
            await writer.write(BIG, 0, Block(old[:CHUNK_BYTES]))
            await writer.write(BIG, CHUNK_BYTES, Block(old[CHUNK_BYTES:]))
            await writer.finish(BIG)
    objects.deaf = False
    async with store.begin("t", _intent(BIG)) as writer:
        await writer.recall([])
        await objects.hear()
        await writer.write(BIG, 0, Block(new[:CHUNK_BYTES]))
        await writer.write(BIG, CHUNK_BYTES, Block(new[CHUNK_BYTES:]))
        await writer.finish(BIG)
        await writer.commit(make_manifest({"big": new}))

    assert await load(store, "t") == {"big": new}


async def test_what_was_discarded_is_in_doubt_no_more() -> None:
    class Unheard(MemoryObjects):
        deaf = True

        async def complete_upload(
            self, upload: Upload, parts: Sequence[Part], *, condition: Condition | None = None
        ) -> ObjectInfo:
            info = await super().complete_upload(upload, parts, condition=condition)
            if self.deaf:
                raise TransientError("no answer")
            return info

    objects = Unheard()
    store, data = CommittedTrees(objects, clock=FakeClock()), b"1" * SIZE
    pieces = [data[:CHUNK_BYTES], data[CHUNK_BYTES:]]
    tokens: list[str] = []
    with suppress(TransientError):
        async with store.begin("t", _intent(BIG)) as writer:
            for number, piece in enumerate(pieces):
                tokens.append(await writer.write(BIG, number * CHUNK_BYTES, Block(piece)))
            await writer.finish(BIG)
    objects.deaf = False
    stored = {n: Stored(digest(pieces[n]), token) for n, token in enumerate(tokens)}
    async with store.begin("t", _intent(BIG)) as writer:
        assert await writer.recall([(BIG, stored)]) == [frozenset({0, 1})]
        await writer.discard("big")
        await writer.write_many([(NewFile("big", 3), b"now")])
        await objects.put("t/big", b"BAD")  # whatever is there: nobody has to look at it again
        await writer.commit(make_manifest({"big": b"now"}))

    assert (await store.read_manifest("t")).files["big"].digest == digest(b"now")
