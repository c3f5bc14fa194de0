"""What a TreeStore must do for many writers of one tree."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ..digest import CHUNK_BYTES, digest
from ..errors import ConflictError, NotFoundError, RefusedError, TransientError
from ..manifest import DirectoryEntry, Entry, Header, Manifest
from ..names import MANIFEST, new_attempt
from ..storage.groups import Group
from ..storage.trees import Block, Durability, Gathering, Intent, NewFile, Stored, TreeStore
from .values import BIG, Files, load, make_manifest, new_files, save, write

__all__ = ["GroupContract", "leave", "ranks", "see"]

_PARTS: tuple[Files, ...] = (
    {"w/0": b"zero", "config.json": b"{}", ".metadata": b"last"},
    {"w/1": BIG, "config.json": b"{}"},
    {},
)
_WHOLE = {"w/0": b"zero", "w/1": BIG, "config.json": b"{}", ".metadata": b"last"}


def ranks(id: str, size: int) -> list[Group]:
    """All writers of a group."""
    return [Group(id=id, rank=rank, size=size) for rank in range(size)]


def part_of(group: Group, files: Files, *, others: Iterable[Entry] = ()) -> Manifest:
    """The manifest of one rank's part."""
    whole = make_manifest(files, attempt=group.attempt, others=others)
    header = Header(name="tree", attempt=group.attempt, writer=str(group.rank))
    return Manifest.of(header, whole.entries)


async def leave(
    store: TreeStore,
    group: Group,
    files: Files,
    *,
    expect: str | None = None,
    others: Iterable[Entry] = (),
) -> Manifest:
    """Leave a part, as one rank does."""
    part = part_of(group, files, others=others)
    async with store.begin("tree", _intent(group, files, expect)) as writer:
        await write(writer, files)
        for path, data in files.items():
            if len(data) > CHUNK_BYTES:
                await writer.finish(NewFile(path, len(data)))
        await writer.commit(part)
    return part


async def see(store: TreeStore, group: Group, expect: str | None = None) -> Gathering:
    """Look how far the group is."""
    return await store.gather("tree", Intent(attempt=new_attempt(), expect=expect, group=group))


def _intent(group: Group, files: Files, expect: str | None = None, *, keep: bool = False) -> Intent:
    return Intent(
        attempt=new_attempt(), expect=expect, files=new_files(files), keep=keep, group=group
    )


class GroupContract:
    """A part of TreeStoreContract.

    Attributes:
        groups: False for a store that cannot keep writers apart, and says so.
    """

    groups = True

    async def raw(self, store: TreeStore, tree: str) -> dict[str, bytes]:
        raise NotImplementedError

    async def plant(self, store: TreeStore, tree: str, path: str, data: bytes | None) -> None:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    async def only_where_groups_are(self, request: pytest.FixtureRequest, store: TreeStore) -> None:
        del store  # which says whether they are
        if not self.groups and "_group_" in request.node.name:
            pytest.skip("this store refuses groups")

    async def _all(self, store: TreeStore, id: str = "one", expect: str | None = None) -> None:
        for group, files in zip(ranks(id, 3), _PARTS, strict=True):
            await leave(store, group, files, expect=expect)

    async def _check_whole(self, store: TreeStore, files: Files) -> None:
        assert await load(store, "tree") == files
        assert set(await self.raw(store, "")) == {f"tree/{path}" for path in (*files, MANIFEST)}

    async def test_writers_that_cannot_be_kept_apart_are_refused(self, store: TreeStore) -> None:
        if self.groups:
            pytest.skip("this store keeps them apart")
        with pytest.raises(RefusedError, match="cannot keep the writers of a group apart"):
            await leave(store, ranks("one", 2)[0], {"a": b"x"})
        assert await self.raw(store, "") == {}

    async def test_of_a_group_nothing_is_visible_before_all_parts_are_there(
        self, store: TreeStore
    ) -> None:
        for group, files in list(zip(ranks("one", 3), _PARTS, strict=True))[:2]:
            await leave(store, group, files)
            seen = await see(store, group)
            with pytest.raises(NotFoundError):
                await store.read_manifest("tree")
            with pytest.raises(NotFoundError):
                await store.list_files("tree")

            assert seen == Gathering(missing=tuple(range(group.rank + 1, 3)))
        assert [found async for found in store.find("")] == []

    async def test_the_parts_of_a_group_become_one_commit(self, store: TreeStore) -> None:
        await self._all(store)
        seen = [await see(store, group) for group in ranks("one", 3)]
        durability: Durability = (await store.probe("tree")).durability

        assert seen == [Gathering(durability=durability)] * 3
        assert (await store.read_header("tree")).attempt == ranks("one", 3)[0].attempt
        await self._check_whole(store, _WHOLE)

    async def test_all_of_a_group_may_look_at_once(self, store: TreeStore) -> None:
        await self._all(store)
        seen: list[Gathering] = []

        async def look(group: Group) -> None:
            while (found := await see(store, group)).durability is None:
                assert found.missing == ()
                await checkpoint()
            seen.append(found)

        async with anyio.create_task_group() as tasks:
            for group in ranks("one", 3):
                tasks.start_soon(look, group)

        assert len(seen) == 3
        await self._check_whole(store, _WHOLE)

    async def test_all_of_a_group_may_write_at_once(self, store: TreeStore) -> None:
        async def work(group: Group, files: Files) -> None:
            while True:
                with suppress(TransientError):  # somebody begins or completes at this moment
                    await leave(store, group, files)
                    break
                await checkpoint()
            while (await see(store, group)).durability is None:
                await checkpoint()

        async with anyio.create_task_group() as tasks:
            for group, files in zip(ranks("one", 3), _PARTS, strict=True):
                tasks.start_soon(work, group, files)

        await self._check_whole(store, _WHOLE)

    async def test_a_group_of_one_is_a_commit(self, store: TreeStore) -> None:
        (alone,) = ranks("one", 1)
        await leave(store, alone, {"a": b"x"})
        await see(store, alone)

        await self._check_whole(store, {"a": b"x"})

    async def test_what_a_rank_of_a_group_has_left_can_be_read(self, store: TreeStore) -> None:
        group, other = ranks("one", 2)
        with pytest.raises(NotFoundError):
            await store.read_part("tree", group)
        part = await leave(store, group, _PARTS[0])
        with pytest.raises(NotFoundError):
            await store.read_part("tree", other)

        assert await store.read_part("tree", group) == part

    async def test_a_rank_of_a_group_leaves_one_part(self, store: TreeStore) -> None:
        group, _ = ranks("one", 2)
        part = await leave(store, group, {"a": b"x"})
        with pytest.raises(ConflictError) as caught:
            await leave(store, group, {"a": b"y"})

        assert caught.value.winner == part.identity
        assert await store.read_part("tree", group) == part

    async def test_empty_directories_of_a_group_stay_unless_filled(self, store: TreeStore) -> None:
        first, second = ranks("one", 2)
        both = [DirectoryEntry("hollow"), DirectoryEntry("filled")]
        await leave(store, first, {}, others=both)
        await leave(store, second, {"filled/x": b"x"})
        await see(store, second)

        assert (await store.read_manifest("tree")).directories == (DirectoryEntry("hollow"),)
        await self._check_whole(store, {"filled/x": b"x"})

    @pytest.mark.parametrize("small", [True, False], ids=["small", "big"])
    async def test_two_ranks_of_a_group_with_different_bytes_are_named(
        self, store: TreeStore, small: bool
    ) -> None:
        group = ranks("one", 3)
        one, other = (b"1", b"2") if small else (BIG, b"x" + BIG[1:])
        await leave(store, group[0], {})
        await leave(store, group[1], {"d/same": one, "b": b"b"})
        await leave(store, group[2], {"d/same": other, "c": b"c"})
        for rank in group:
            with pytest.raises(RefusedError, match="ranks 1 and 2 both hold d/same") as caught:
                await see(store, rank)

            assert caught.value.paths == ("d/same",)
        with pytest.raises(NotFoundError):
            await store.read_manifest("tree")

    async def test_two_ranks_of_a_group_with_a_file_and_a_directory_are_named(
        self, store: TreeStore
    ) -> None:
        first, second = ranks("one", 2)
        await leave(store, first, {"d/x": b"1"})
        await leave(store, second, {"d": b"2"})
        with pytest.raises(RefusedError, match="ranks 0 and 1 both hold d,") as caught:
            await see(store, second)

        assert caught.value.paths == ("d",)

    async def test_a_group_has_one_size(self, store: TreeStore) -> None:
        await leave(store, ranks("one", 2)[0], {"a": b"x"})
        with pytest.raises(RefusedError, match="has 2 ranks there, not 3"):
            await leave(store, ranks("one", 3)[1], {"b": b"x"})

    async def test_an_interrupted_rank_of_a_group_is_gone_on_with(self, store: TreeStore) -> None:
        first, second = ranks("one", 2)
        await leave(store, first, {"a": b"first"})
        files = {"b": b"small", "big": BIG}
        stored: dict[str, dict[int, Stored]] = {}
        with anyio.CancelScope() as scope:
            async with store.begin("tree", _intent(second, files, keep=True)) as writer:
                (token,) = await writer.write_many([(NewFile("b", 5), b"small")])
                stored["b"] = {0: Stored(digest(b"small"), token)}
                head = BIG[:CHUNK_BYTES]
                token = await writer.write(NewFile("big", len(BIG)), 0, Block(head))
                stored["big"] = {0: Stored(digest(head), token)}
                scope.cancel()
                await checkpoint()
        async with store.begin("tree", _intent(second, files, keep=True)) as writer:
            assert writer.resumes
            asked = [(NewFile(p, len(files[p])), chunks) for p, chunks in stored.items()]
            held = await writer.recall(asked)
            for at in (CHUNK_BYTES, 2 * CHUNK_BYTES):
                block = Block(BIG[at : at + CHUNK_BYTES])
                await writer.write(NewFile("big", len(BIG)), at, block)
            await writer.commit(part_of(second, files))
        await see(store, second)

        assert held == [{0}, {0}]
        await self._check_whole(store, {"a": b"first", **files})

    async def test_a_rank_of_a_group_that_fails_leaves_the_others(self, store: TreeStore) -> None:
        first, second = ranks("one", 2)
        await leave(store, first, {"a": b"x"})
        with suppress(ZeroDivisionError):
            async with store.begin("tree", _intent(second, {"b": b"y"})) as writer:
                await write(writer, {"b": b"y", "stray": b"z"})
                raise ZeroDivisionError
        seen = await see(store, second)
        await leave(store, second, {"b": b"other"})
        await see(store, first)

        assert seen.missing == (1,)
        await self._check_whole(store, {"a": b"x", "b": b"other"})

    # -- one group after another

    async def test_the_newest_group_wins_and_nothing_mixes(self, store: TreeStore) -> None:
        old, new = ranks("old", 2), ranks("new", 2)
        await leave(store, old[0], {"w/0": b"old", "only/old": b"old"})
        await leave(store, new[0], {"w/0": b"new"})
        with pytest.raises(ConflictError, match="superseded"):
            await leave(store, old[1], {"w/1": b"old"})
        await leave(store, new[1], {"w/1": b"new"})
        await see(store, new[1])

        await self._check_whole(store, {"w/0": b"new", "w/1": b"new"})

    async def test_a_rank_of_a_superseded_group_cannot_leave_its_part(
        self, store: TreeStore
    ) -> None:
        old, new = ranks("old", 1)[0], ranks("new", 2)

        async def late() -> None:
            async with store.begin("tree", _intent(old, {"a": b"old"})) as writer:
                await write(writer, {"a": b"old"})
                await leave(store, new[0], {"a": b"new"})
                await writer.commit(part_of(old, {"a": b"old"}))

        with pytest.raises((ConflictError, TransientError)):
            await late()
        await leave(store, new[1], {"b": b"new"})
        await see(store, new[0])

        await self._check_whole(store, {"a": b"new", "b": b"new"})

    async def test_a_superseded_group_is_not_completed(self, store: TreeStore) -> None:
        old, new = ranks("old", 1)[0], ranks("new", 2)
        await leave(store, old, {"a": b"old"})
        await leave(store, new[0], {"a": b"new"})
        with pytest.raises(ConflictError, match="superseded"):
            await see(store, old)
        with pytest.raises(NotFoundError):
            await store.read_manifest("tree")

    async def test_a_group_replaces_the_commit_that_it_expects(self, store: TreeStore) -> None:
        old = await save(store, "tree", {"a": b"one", "w/0": b"x", "gone": b"y"})
        await self._all(store, expect=old.identity)
        before = await load(store, "tree")
        await see(store, ranks("one", 3)[2], old.identity)

        assert before == {"a": b"one", "w/0": b"x", "gone": b"y"}
        await self._check_whole(store, _WHOLE)

    async def test_a_group_replaces_no_other_commit(self, store: TreeStore) -> None:
        old = await save(store, "tree", {"a": b"one"})
        with pytest.raises(ConflictError) as caught:
            await leave(store, ranks("one", 2)[0], {"a": b"two"})

        assert caught.value.winner == old.identity
        await self._check_whole(store, {"a": b"one"})

    async def test_a_rank_that_comes_after_the_commit_of_its_group_finds_it(
        self, store: TreeStore
    ) -> None:
        await self._all(store)
        await see(store, ranks("one", 3)[0])
        seen = await see(store, ranks("one", 3)[1])

        assert seen.durability is not None
        await self._check_whole(store, _WHOLE)

    async def test_what_a_group_has_left_can_be_cleaned(self, store: TreeStore) -> None:
        await leave(store, ranks("one", 2)[0], {"a": b"x"})
        kept = await store.clean("", older_than_s=3600)

        assert kept == []
        assert (await see(store, ranks("one", 2)[0])).missing == (1,)
