"""What a TreeStore must do with what an interrupted attempt has left."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import anyio
from anyio.lowlevel import checkpoint

from ..digest import CHUNK_BYTES, digest
from ..errors import BusyError
from ..names import new_attempt
from ..storage.trees import Block, Intent, NewFile, Stored, TreeStore, TreeWriter
from .values import BIG, both_ways, load, make_manifest, new_files, save

__all__ = ["ResumeContract"]

_NEW = {"a": b"first", "d/b": b"second", "big": BIG}
_SMALL = [NewFile("a", 5), NewFile("d/b", 6)]
_BIG = NewFile("big", len(BIG))

_Stored = dict[str, dict[int, Stored]]


class ResumeContract:
    """A part of TreeStoreContract."""

    async def raw(self, store: TreeStore, tree: str) -> dict[str, bytes]:
        raise NotImplementedError

    @both_ways
    async def test_an_interrupted_attempt_is_gone_on_with(
        self, store: TreeStore, in_place: bool
    ) -> None:
        old = (await save(store, "tree", {"a": b"old"}, in_place=in_place)).identity
        stored = await self._interrupted(store, old, in_place)
        before = await load(store, "tree")
        async with store.begin("tree", self._intent(old, in_place)) as writer:
            held = await self._recalled(writer, stored)
            await writer.write(_BIG, 0, Block(BIG[:CHUNK_BYTES]))
            await writer.write(_BIG, 2 * CHUNK_BYTES, Block(BIG[2 * CHUNK_BYTES :]))
            await writer.finish(_BIG)
            await writer.commit(make_manifest(_NEW))

        assert before == {"a": b"old"}
        assert held == {"a": {0}, "d/b": {0}, "big": {1}}
        assert await load(store, "tree") == _NEW
        assert set(await self.raw(store, "tree")) == {*_NEW, ".asyncsync.json"}

    @both_ways
    async def test_of_an_interrupted_attempt_only_what_is_there_counts(
        self, store: TreeStore, in_place: bool
    ) -> None:
        await self._interrupted(store, None, in_place)
        other = {0: Stored("0" * 64, "none\nof these"), 1: Stored("1" * 64, "\nnor that")}
        async with store.begin("tree", self._intent(None, in_place)) as writer:
            held = await self._recalled(writer, {"a": other, "big": other, "never": other})
            await writer.write_many([(_SMALL[0], b"FIRST")])
            await writer.commit(make_manifest({"a": b"FIRST"}))

        assert held == {"a": set(), "big": set(), "never": set()}
        assert set(await self.raw(store, "tree")) == {"a", ".asyncsync.json"}

    @both_ways
    async def test_who_does_not_go_on_begins_anew(self, store: TreeStore, in_place: bool) -> None:
        await self._interrupted(store, None, in_place)
        await save(store, "tree", {"a": b"mine"}, in_place=in_place, writer="another")

        assert await load(store, "tree") == {"a": b"mine"}
        assert set(await self.raw(store, "tree")) == {"a", ".asyncsync.json"}

    async def test_an_attempt_that_is_alive_is_not_gone_on_with(self, store: TreeStore) -> None:
        other = self._intent(None, in_place=False)
        async with store.begin("tree", self._intent(None, in_place=False)) as writer:
            await self._write(writer)
            with suppress(BusyError):
                async with store.begin("tree", replace(other, writer="another")) as second:
                    assert not second.resumes
            await writer.write_many([(NewFile("c", 1), b"c")])

        assert await self.raw(store, "") == {}

    async def test_what_was_recalled_can_be_discarded(self, store: TreeStore) -> None:
        stored = await self._interrupted(store, None, in_place=False)
        async with store.begin("tree", self._intent(None, in_place=False)) as writer:
            await self._recalled(writer, stored)
            for path in stored:
                await writer.discard(path)
            await writer.write_many([(_SMALL[0], b"FIRST")])
            await writer.commit(make_manifest({"a": b"FIRST"}))

        assert await load(store, "tree") == {"a": b"FIRST"}
        assert set(await self.raw(store, "tree")) == {"a", ".asyncsync.json"}

    async def test_an_attempt_that_fails_leaves_nothing_to_go_on_with(
        self, store: TreeStore
    ) -> None:
        with suppress(ZeroDivisionError):
            async with store.begin("tree", self._intent(None, in_place=False)) as writer:
                await self._write(writer)
                raise ZeroDivisionError

        assert await self.raw(store, "") == {}

    @staticmethod
    def _intent(expect: str | None, in_place: bool) -> Intent:
        return Intent(
            attempt=new_attempt(),
            expect=expect,
            in_place=in_place,
            writer="the same",
            files=new_files(_NEW),
            keep=True,
        )

    @staticmethod
    async def _write(writer: TreeWriter) -> _Stored:
        tokens = await writer.write_many([(_SMALL[0], b"first"), (_SMALL[1], b"second")])
        middle = BIG[CHUNK_BYTES : 2 * CHUNK_BYTES]
        part = await writer.write(_BIG, CHUNK_BYTES, Block(middle))
        return {
            "a": {0: Stored(digest(b"first"), tokens[0])},
            "d/b": {0: Stored(digest(b"second"), tokens[1])},
            "big": {1: Stored(digest(middle), part)},
        }

    async def _interrupted(self, store: TreeStore, expect: str | None, in_place: bool) -> _Stored:
        stored: _Stored = {}
        with anyio.CancelScope() as scope:
            async with store.begin("tree", self._intent(expect, in_place)) as writer:
                assert not writer.resumes
                stored = await self._write(writer)
                scope.cancel()
                await checkpoint()
        return stored

    @staticmethod
    async def _recalled(writer: TreeWriter, stored: _Stored) -> dict[str, set[int]]:
        assert writer.resumes
        sizes = {"big": len(BIG), "a": 5, "d/b": 6}
        files = [(NewFile(path, sizes.get(path, 1)), chunks) for path, chunks in stored.items()]
        held = await writer.recall(files)
        return {path: set(numbers) for path, numbers in zip(stored, held, strict=True)}
