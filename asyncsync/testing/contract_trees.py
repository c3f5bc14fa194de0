"""What every TreeStore must do."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest

from ..digest import CHUNK_BYTES
from ..errors import (
    BusyError,
    ClashError,
    ConflictError,
    FormatError,
    IntegrityError,
    NotCommittedError,
    NotFoundError,
    RefusedError,
)
from ..manifest import DirectoryEntry, Manifest, NestedEntry
from ..names import MANIFEST, new_attempt
from ..storage.trees import Block, Intent, NewFile, TreeStore
from .contract_groups import GroupContract
from .contract_resume import ResumeContract
from .values import BIG, NEW, OLD, Files, both_ways, load, make_manifest, new_files, save, write

__all__ = ["TreeStoreContract"]


async def _found(store: TreeStore, tree: str) -> list[str]:
    return sorted([found.tree async for found in store.find(tree)])


class _FailureError(Exception):
    """Stands for whatever goes wrong in the caller's block."""


class TreeStoreContract(GroupContract, ResumeContract):
    """A subclass supplies the `store` fixture, empty, and where it can the two hooks.

    Attributes:
        line_breaks: False for a store that refuses names with line breaks in them.
        any_tree: False for a store that refuses names of trees that are not plain.
    """

    line_breaks = any_tree = True

    @pytest.fixture
    def store(self) -> object:
        """The TreeStore under test."""
        raise NotImplementedError

    async def plant(self, store: TreeStore, tree: str, path: str, data: bytes | None) -> None:
        """Write a file behind the store's back, as another tool would; None removes it."""
        pytest.skip("this suite cannot reach behind the store")

    async def raw(self, store: TreeStore, tree: str) -> dict[str, bytes]:
        """Every file that is physically there, ours too; the tree "" is the whole store."""
        pytest.skip("this suite cannot reach behind the store")

    # -- a new commit

    async def test_a_commit_comes_back_byte_for_byte(self, store: TreeStore) -> None:
        files = {"a": b"one", "d/e/b": b"two", "empty": b""}
        others = [DirectoryEntry("hollow", 0o700)]
        manifest = await save(store, "tree", files, others=others)
        back = await store.read_manifest("tree")

        assert back == manifest
        assert await load(store, "tree") == files

    async def test_the_header_alone_is_the_same(self, store: TreeStore) -> None:
        manifest = await save(store, "tree", OLD)

        assert await store.read_header("tree") == manifest.header

    async def test_a_tree_without_files_is_a_commit(self, store: TreeStore) -> None:
        await save(store, "tree", {}, others=[DirectoryEntry("hollow")])

        assert await load(store, "tree") == {}

    async def test_nothing_is_visible_before_the_commit(self, store: TreeStore) -> None:
        manifest = make_manifest(OLD)
        async with store.begin("tree", Intent(attempt=manifest.header.attempt)) as writer:
            await write(writer, OLD)
            found = await _found(store, "")
            with pytest.raises(NotFoundError):
                await store.read_manifest("tree")
            with pytest.raises(NotFoundError):
                await store.read_header("tree")
            with pytest.raises(NotFoundError):
                await store.list_files("tree")
            await writer.commit(manifest)

        assert found == []
        assert await load(store, "tree") == OLD

    async def test_parts_come_in_any_order_and_at_once(self, store: TreeStore) -> None:
        files = {"big": BIG, "small": b"x"}
        manifest = make_manifest(files)
        file = NewFile("big", len(BIG))
        async with store.begin("tree", Intent(attempt=manifest.header.attempt)) as writer:
            async with anyio.create_task_group() as group:
                for at in (2 * CHUNK_BYTES, 0, CHUNK_BYTES):
                    block = Block(BIG[at : at + CHUNK_BYTES])
                    group.start_soon(writer.write, file, at, block)
                group.start_soon(writer.write, NewFile("small", 1), 0, Block(b"x"))
            await writer.commit(manifest)

        assert await load(store, "tree") == files

    async def test_a_discarded_file_is_sent_anew(self, store: TreeStore) -> None:
        manifest = make_manifest({"a": b"longer than before"})
        async with store.begin("tree", Intent(attempt=manifest.header.attempt)) as writer:
            await write(writer, {"a": b"first", "vanished": b"x"})
            await writer.discard("a")
            await writer.discard("vanished")
            await writer.discard("never written")
            await write(writer, {"a": b"longer than before"})
            await writer.commit(manifest)

        assert await load(store, "tree") == {"a": b"longer than before"}
        assert [file.path for file in await store.list_files("tree")] == ["a"]

    @pytest.mark.parametrize("now", [b"small now", BIG[: CHUNK_BYTES + 1]], ids=["one", "fewer"])
    async def test_half_a_big_file_can_be_discarded(self, store: TreeStore, now: bytes) -> None:
        manifest = make_manifest({"big": now})
        async with store.begin("tree", Intent(attempt=manifest.header.attempt)) as writer:
            await writer.write(NewFile("big", len(BIG)), 0, Block(BIG[:CHUNK_BYTES]))
            await writer.write(NewFile("big", len(BIG)), 2 * CHUNK_BYTES, Block(b"tail"))
            await writer.discard("big")
            await write(writer, {"big": now})
            await writer.commit(manifest)

        assert await load(store, "tree") == {"big": now}

    async def test_a_commit_may_be_asked_for_twice(self, store: TreeStore) -> None:
        manifest = make_manifest(OLD)
        async with store.begin("tree", Intent(attempt=manifest.header.attempt)) as writer:
            await write(writer, OLD)
            first = await writer.commit(manifest)
            second = await writer.commit(manifest)

        assert first == second == await store.confirm("tree")
        assert await load(store, "tree") == OLD

    async def test_a_file_that_never_arrived_is_not_committed(self, store: TreeStore) -> None:
        manifest = make_manifest({"a": b"here", "b": b"never"})
        async with store.begin("tree", Intent(attempt=manifest.header.attempt)) as writer:
            await write(writer, {"a": b"here"})
            with pytest.raises(IntegrityError, match="b"):
                await writer.commit(manifest)

        assert await _found(store, "") == []

    async def test_a_file_of_which_parts_are_missing_is_not_committed(
        self, store: TreeStore
    ) -> None:
        manifest = make_manifest({"big": BIG})
        async with store.begin("tree", Intent(attempt=manifest.header.attempt)) as writer:
            for at in (0, 2 * CHUNK_BYTES):
                block = Block(BIG[at : at + CHUNK_BYTES])
                await writer.write(NewFile("big", len(BIG)), at, block)
            with pytest.raises(IntegrityError, match="big"):
                await writer.commit(manifest)

        assert await _found(store, "") == []

    # -- replacing

    @both_ways
    async def test_a_replaced_tree_is_exactly_the_new_one(
        self, store: TreeStore, in_place: bool
    ) -> None:
        old = await save(store, "tree", OLD, in_place=in_place)
        new = await save(store, "tree", NEW, over=old, in_place=in_place)

        assert await store.read_manifest("tree") == new
        assert await load(store, "tree") == NEW
        assert sorted(file.path for file in await store.list_files("tree")) == sorted(NEW)

    @both_ways
    async def test_a_replaced_tree_leaves_no_bytes_of_the_old_one(
        self, store: TreeStore, in_place: bool
    ) -> None:
        old = await save(store, "tree", OLD, in_place=in_place)
        await save(store, "tree", NEW, over=old, in_place=in_place)
        there = await self.raw(store, "")

        assert there.keys() == {f"tree/{path}" for path in (*NEW, MANIFEST)}

    @both_ways
    async def test_files_and_directories_may_change_places(
        self, store: TreeStore, in_place: bool
    ) -> None:
        first = {"was_file": b"1", "was_dir/x": b"2", "was_dir/y/z": b"3"}
        second = {"was_file/now/dir": b"4", "was_dir": b"5"}
        old = await save(store, "tree", first, in_place=in_place)
        await save(store, "tree", second, over=old, in_place=in_place)

        assert await load(store, "tree") == second

    @both_ways
    async def test_nothing_of_a_replacement_is_visible_before_its_commit(
        self, store: TreeStore, in_place: bool
    ) -> None:
        old = await save(store, "tree", OLD, in_place=in_place)
        new = make_manifest(NEW)
        intent = Intent(attempt=new.header.attempt, expect=old.identity, in_place=in_place)
        async with store.begin("tree", intent) as writer:
            await write(writer, {"d/b": b"changed", "d/new": b"four"})
            before = await load(store, "tree")
            await writer.commit(new)

        assert before == OLD
        assert await load(store, "tree") == NEW

    @both_ways
    async def test_a_big_file_is_replaced(self, store: TreeStore, in_place: bool) -> None:
        old = await save(store, "tree", {"big": b"small", "b": b"x"}, in_place=in_place)
        new = await save(store, "tree", {"big": BIG, "b": b"x"}, over=old, in_place=in_place)
        await save(store, "tree", {"big": b"", "b": b"y"}, over=new, in_place=in_place)

        assert await load(store, "tree") == {"big": b"", "b": b"y"}

    @both_ways
    async def test_a_kept_file_must_be_the_one_that_was_there(
        self, store: TreeStore, in_place: bool
    ) -> None:
        old = await save(store, "tree", OLD, in_place=in_place)
        new = make_manifest({**OLD, "a": b"other"})
        intent = Intent(attempt=new.header.attempt, expect=old.identity, in_place=in_place)
        async with store.begin("tree", intent) as writer:
            with pytest.raises(IntegrityError, match="a"):
                await writer.commit(new)

        assert await load(store, "tree") == OLD

    # -- expectations

    async def test_a_commit_that_was_not_expected_is_a_conflict_that_names_it(
        self, store: TreeStore
    ) -> None:
        there = await save(store, "tree", OLD)
        for expect in (None, "0" * 64):
            with pytest.raises(ConflictError) as caught:
                async with store.begin("tree", Intent(attempt=new_attempt(), expect=expect)):
                    pass

            assert caught.value.winner == there.identity
        assert await load(store, "tree") == OLD

    async def test_a_commit_that_is_gone_is_a_conflict(self, store: TreeStore) -> None:
        with pytest.raises(ConflictError) as caught:
            async with store.begin("tree", Intent(attempt=new_attempt(), expect="0" * 64)):
                pass

        assert caught.value.winner == ""
        assert await _found(store, "") == []

    async def test_of_two_creators_one_commits_and_the_other_hears_of_it(
        self, store: TreeStore
    ) -> None:
        mine, theirs = make_manifest({"a": b"mine"}), make_manifest({"a": b"theirs"})
        lost = await self._race(store, mine, {"a": b"mine"}, theirs, {"a": b"theirs"})
        there = await store.read_manifest("tree")

        assert lost == [there.identity]
        assert (await load(store, "tree"))["a"] in (b"mine", b"theirs")

    async def test_two_creators_of_the_same_content_both_have_it(self, store: TreeStore) -> None:
        mine, theirs = make_manifest({"a": b"same"}), make_manifest({"a": b"same"})
        lost = await self._race(store, mine, {"a": b"same"}, theirs, {"a": b"same"})

        # A store that lets only one write at a time tells the other which commit is there.
        assert set(lost) <= {mine.identity}
        assert await load(store, "tree") == {"a": b"same"}

    async def _race(
        self, store: TreeStore, first: Manifest, one: Files, second: Manifest, two: Files
    ) -> list[str]:
        """Both begin before either commits; return which commit the losers were told of."""
        lost: list[str] = []
        busy = False
        try:
            async with store.begin("tree", Intent(attempt=first.header.attempt)) as writer:
                await write(writer, one)
                try:
                    async with store.begin("tree", Intent(attempt=second.header.attempt)) as other:
                        await write(other, two)
                        await other.commit(second)
                except BusyError:
                    busy = True
                await writer.commit(first)
        except ConflictError as exc:
            lost.append(exc.winner)
        if busy:
            with pytest.raises(ConflictError) as caught:
                async with store.begin("tree", Intent(attempt=second.header.attempt)):
                    pass
            lost.append(caught.value.winner)
        return lost

    # -- leaving without a commit

    @both_ways
    @pytest.mark.parametrize("end", ["error", "cancellation", "nothing"])
    async def test_leaving_without_a_commit_leaves_nothing(
        self, store: TreeStore, in_place: bool, end: str
    ) -> None:
        await self._leave(store, None, in_place, end)

        assert await self.raw(store, "") == {}

    @both_ways
    @pytest.mark.parametrize("end", ["error", "cancellation", "nothing"])
    async def test_leaving_without_a_commit_leaves_the_old_one(
        self, store: TreeStore, in_place: bool, end: str
    ) -> None:
        old = await save(store, "tree", OLD, in_place=in_place)
        before = await self.raw(store, "")
        await self._leave(store, old.identity, in_place, end)

        assert await self.raw(store, "") == before

    async def _leave(self, store: TreeStore, expect: str | None, in_place: bool, end: str) -> None:
        intent = Intent(attempt=new_attempt(), expect=expect, in_place=in_place)
        with anyio.CancelScope() as scope, suppress(_FailureError):
            async with store.begin("tree", intent) as writer:
                await write(writer, {"a": b"changed", "n/new": b"new", "empty": b""})
                await writer.write(NewFile("big", len(BIG)), 0, Block(BIG[:CHUNK_BYTES]))
                if end == "cancellation":
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
                elif end == "error":
                    raise _FailureError

    async def test_after_leaving_the_next_attempt_commits(self, store: TreeStore) -> None:
        await self._leave(store, None, False, "error")
        await save(store, "tree", OLD)

        assert await load(store, "tree") == OLD

    # -- what is not ours

    @both_ways
    async def test_a_new_commit_goes_around_foreign_files(
        self, store: TreeStore, in_place: bool
    ) -> None:
        await self.plant(store, "tree", "theirs", b"keep")
        await save(store, "tree", OLD, in_place=in_place)

        assert (await self.raw(store, "tree"))["theirs"] == b"keep"
        assert await load(store, "tree") == OLD

    async def test_a_new_commit_refuses_to_overwrite_a_foreign_file(self, store: TreeStore) -> None:
        await self.plant(store, "tree", "a", b"keep")
        with pytest.raises(ClashError, match="a") as caught:
            await save(store, "tree", OLD)

        assert caught.value.paths == ("a",)
        assert await self.raw(store, "") == {"tree/a": b"keep"}

    async def test_an_update_in_place_keeps_foreign_files(self, store: TreeStore) -> None:
        old = await save(store, "tree", OLD, in_place=True)
        await self.plant(store, "tree", "d/theirs", b"keep")
        await save(store, "tree", NEW, over=old, in_place=True)

        assert (await self.raw(store, "tree"))["d/theirs"] == b"keep"
        assert await load(store, "tree") == NEW

    async def test_an_update_refuses_to_overwrite_a_foreign_file(self, store: TreeStore) -> None:
        old = await save(store, "tree", OLD, in_place=True)
        await self.plant(store, "tree", "d/new", b"keep")
        with pytest.raises(ClashError, match="d/new"):
            await save(store, "tree", NEW, over=old, in_place=True)

        assert (await self.raw(store, "tree"))["d/new"] == b"keep"
        assert await load(store, "tree") == OLD

    async def test_foreign_files_alone_are_not_a_commit(self, store: TreeStore) -> None:
        await self.plant(store, "tree", "d/theirs", b"keep")
        with pytest.raises(NotCommittedError):
            await store.read_manifest("tree")
        with pytest.raises(NotCommittedError):
            await store.read_header("tree")

        assert [(f.path, f.size_bytes) for f in await store.list_files("tree")] == [("d/theirs", 4)]
        assert await _found(store, "tree") == []

    async def test_foreign_files_can_be_read(self, store: TreeStore) -> None:
        await self.plant(store, "tree", "theirs", b"0123456789")
        async with store.open("tree", None) as reader:
            whole = await reader.read_many([NewFile("theirs", 10)])
            part = await reader.read(NewFile("theirs", 10), 2, 5)

        assert (whole, bytes(part.data)) == ([b"0123456789"], b"234")

    async def test_list_files_shows_what_is_there_without_our_own(self, store: TreeStore) -> None:
        await save(store, "tree", OLD)
        await self.plant(store, "tree", "theirs", b"12345")
        files = {file.path: file.size_bytes for file in await store.list_files("tree")}

        assert files == {"a": 3, "d/b": 3, "gone": 5, "theirs": 5}

    # -- delete

    async def test_delete_removes_a_tree_and_all_of_its_bytes(self, store: TreeStore) -> None:
        await save(store, "tree", OLD)
        deleted = await store.delete("tree")

        assert (deleted.files, deleted.kept) == (3, ())
        assert await self.raw(store, "") == {}
        with pytest.raises(NotFoundError):
            await store.read_manifest("tree")

    async def test_delete_takes_the_commits_inside_and_no_sibling(self, store: TreeStore) -> None:
        inside = await save(store, "trial_1/ckpt", OLD)
        nested = [NestedEntry("ckpt", inside.identity)]
        await save(store, "trial_1", {"log": b"x"}, in_place=True, others=nested)
        await save(store, "trial_10", OLD)
        await save(store, "trial_1/deep/er", OLD)
        await store.delete("trial_1")

        assert await _found(store, "") == ["trial_10"]
        assert await load(store, "trial_10") == OLD
        for gone in ("trial_1", "trial_1/ckpt", "trial_1/deep/er"):
            with pytest.raises(NotFoundError):
                await store.read_manifest(gone)

    async def test_deleting_a_commit_inside_leaves_its_parent(self, store: TreeStore) -> None:
        inside = await save(store, "trial/ckpt", OLD)
        nested = [NestedEntry("ckpt", inside.identity)]
        await save(store, "trial", {"log": b"x"}, in_place=True, others=nested)
        await store.delete("trial/ckpt")

        assert await _found(store, "") == ["trial"]
        assert await load(store, "trial") == {"log": b"x"}

    async def test_updating_a_parent_leaves_the_commit_inside(self, store: TreeStore) -> None:
        files = {"log": b"1", "ckpt/a": b"one", "ckpt/d/b": b"two", "ckpt/gone": b"three"}
        first = await save(store, "trial", files, in_place=True)
        await save(store, "trial", {"log": b"1"}, over=first, in_place=True)
        inside = await save(store, "trial/ckpt", OLD)
        second = await store.read_manifest("trial")
        nested = [NestedEntry("ckpt", inside.identity)]
        await save(store, "trial", {"log": b"2"}, over=second, in_place=True, others=nested)

        assert await load(store, "trial/ckpt") == OLD
        assert await load(store, "trial") == {"log": b"2"}

    async def test_delete_keeps_foreign_files_and_says_so(self, store: TreeStore) -> None:
        await save(store, "tree", OLD)
        await self.plant(store, "tree", "d/theirs", b"keep")
        deleted = await store.delete("tree")

        assert deleted.kept == ("d/theirs",)
        assert await self.raw(store, "") == {"tree/d/theirs": b"keep"}

    async def test_files_without_a_commit_are_deleted_only_when_named(
        self, store: TreeStore
    ) -> None:
        await self.plant(store, "tree", "d/theirs", b"keep")
        with pytest.raises(NotCommittedError):
            await store.delete("tree")
        before = await self.raw(store, "")
        await store.delete("tree", uncommitted=True)

        assert before == {"tree/d/theirs": b"keep"}
        assert await self.raw(store, "") == {}

    async def test_delete_of_another_commit_than_expected_is_a_conflict(
        self, store: TreeStore
    ) -> None:
        there = await save(store, "tree", OLD)
        with pytest.raises(ConflictError) as caught:
            await store.delete("tree", expect="0" * 64)

        assert caught.value.winner == there.identity
        assert await load(store, "tree") == OLD
        assert (await store.delete("tree", expect=there.identity)).files == 3

    async def test_delete_of_nothing_is_not_found(self, store: TreeStore) -> None:
        for uncommitted in (False, True):
            with pytest.raises(NotFoundError):
                await store.delete("tree", uncommitted=uncommitted)

        assert await _found(store, "") == []

    async def test_a_deleted_name_can_be_used_again(self, store: TreeStore) -> None:
        await save(store, "tree", OLD)
        await store.delete("tree")
        await save(store, "tree", NEW)

        assert await load(store, "tree") == NEW

    # -- find

    async def test_find_names_the_tree_and_those_below(self, store: TreeStore) -> None:
        for name in ("exp", "exp/trial/ckpt_1", "exp/trial/ckpt_2", "exp2"):
            await save(store, name, OLD, in_place=True)

        assert await _found(store, "exp") == ["exp", "exp/trial/ckpt_1", "exp/trial/ckpt_2"]
        assert await _found(store, "exp/trial") == ["exp/trial/ckpt_1", "exp/trial/ckpt_2"]
        assert len(await _found(store, "")) == 4

    async def test_find_says_when_there_is_nothing_at_all(self, store: TreeStore) -> None:
        await save(store, "exp", OLD)

        assert await _found(store, "") == ["exp"]
        with pytest.raises(NotFoundError):
            await _found(store, "none")

    async def test_what_is_found_has_a_tag_that_changes_with_it(self, store: TreeStore) -> None:
        first = await save(store, "exp/tree", OLD)
        before = [found async for found in store.find("exp")]
        again = [found async for found in store.find("exp")]
        await save(store, "exp/tree", NEW, over=first)
        after = [found async for found in store.find("exp")]

        assert before == again
        assert [found.tree for found in after] == ["exp/tree"]
        assert after[0].tag != before[0].tag

    async def test_a_glance_sees_the_tree_and_the_names_below(self, store: TreeStore) -> None:
        nothing = await store.glance("exp")
        await save(store, "exp/ckpt_1", OLD)
        below = await store.glance("exp")
        first = await save(store, "exp", OLD, in_place=True)
        here = await store.glance("exp")
        await save(store, "exp", NEW, over=first, in_place=True)
        changed = await store.glance("exp")

        assert nothing == ("", frozenset())
        assert below == ("", frozenset({"ckpt_1"}))
        assert here.tag
        assert here.names == {"ckpt_1", "d"}
        assert changed.tag not in ("", here.tag)

    # -- damage

    async def test_nothing_there_is_not_found(self, store: TreeStore) -> None:
        for call in (store.read_manifest, store.read_header, store.list_files, store.confirm):
            with pytest.raises(NotFoundError) as caught:
                await call("tree")

            assert not isinstance(caught.value, NotCommittedError)

    async def test_a_damaged_manifest_is_no_commit_and_is_not_deleted(
        self, store: TreeStore
    ) -> None:
        await save(store, "tree", OLD)
        text = (await self.raw(store, "tree"))[MANIFEST]
        flipped = text.replace(b'["f","a",3', b'["f","a",4')
        for damaged in (flipped, text[: len(text) // 2], text[:-1] + b"x", b"", b"\0" * 100):
            await self.plant(store, "tree", MANIFEST, damaged)
            before = await self.raw(store, "")
            with pytest.raises(IntegrityError, match="tree"):
                await store.read_manifest("tree")
            with pytest.raises(IntegrityError):
                await store.delete("tree")

            assert await self.raw(store, "") == before

    async def test_a_manifest_of_a_newer_release_says_so(self, store: TreeStore) -> None:
        await save(store, "tree", OLD)
        text = (await self.raw(store, "tree"))[MANIFEST]
        newer = text.replace(b'"asyncsync":1', b'"asyncsync":2')
        await self.plant(store, "tree", MANIFEST, newer)

        assert newer != text
        with pytest.raises(FormatError, match="upgrade"):
            await store.read_manifest("tree")
        with pytest.raises(FormatError, match="upgrade"):
            await store.read_header("tree")

    @pytest.mark.parametrize("data", [None, b"", b"on"], ids=["missing", "empty", "short"])
    async def test_a_file_that_lost_bytes_is_not_read(
        self, store: TreeStore, data: bytes | None
    ) -> None:
        manifest = await save(store, "tree", OLD)
        await self.plant(store, "tree", "a", data)
        async with store.open("tree", manifest) as reader:
            with pytest.raises(IntegrityError, match="a"):
                await reader.read(NewFile("a", 3), 0, 3)
            with pytest.raises(IntegrityError, match="a"):
                await reader.read_many([NewFile("d/b", 3), NewFile("a", 3)])

    async def test_a_file_that_has_grown_is_not_read(self, store: TreeStore) -> None:
        manifest = await save(store, "tree", OLD)
        await self.plant(store, "tree", "a", b"one and more")
        async with store.open("tree", manifest) as reader:
            with pytest.raises(IntegrityError, match="a"):
                await reader.read_many([NewFile("a", 3)])

    # -- names

    @pytest.mark.parametrize(
        "path",
        [
            " leading and trailing ",
            "'single' \"double\"",
            "#?%+&;=%2F%00",
            "line\nbreak\r\ttab",
            "...dots...",
            "trailing.",
            "-rf",
            "back\\slash",
            "\u202eright to left",
            "\U0001f40d",
            "x" * 255,
            "\u00e9" * 127,
            "/".join(["deep"] * 64),
        ],
    )
    async def test_a_name_comes_back_to_the_letter(self, store: TreeStore, path: str) -> None:
        if "\n" in path and not self.line_breaks:
            with pytest.raises(RefusedError, match="rename it"):
                await save(store, "tree", {path: b"here"})
            assert await self.raw(store, "tree") == {}
            return
        await save(store, "tree", {path: b"here"})

        assert [file.path for file in await store.list_files("tree")] == [path]
        assert await load(store, "tree") == {path: b"here"}

    async def test_a_tree_may_have_any_name(self, store: TreeStore) -> None:
        name = "exp #1/lr=0.1 50%/\u00e9 'q'"
        if not self.any_tree:
            with pytest.raises(RefusedError, match="choose another name"):
                await save(store, name, OLD)
            name = "exp-1/lr=0.1,b+c@d_e.f"
        await save(store, name, OLD)

        assert await _found(store, name.partition("/")[0]) == [name]
        assert await load(store, name) == OLD

    async def test_twins_are_two_names_or_refused(self, store: TreeStore) -> None:
        twins = {"caf\u00e9": b"composed", "cafe\u0301": b"decomposed", "a": b"l", "A": b"u"}
        found = await store.probe("tree")
        if found.keeps_normalization and found.case_sensitive:
            await save(store, "tree", twins)

            assert await load(store, "tree") == twins
        else:
            with pytest.raises(RefusedError):
                await save(store, "tree", twins)

    async def test_a_name_that_is_not_utf8_comes_back_or_is_refused_before_anything_moves(
        self, store: TreeStore
    ) -> None:
        files = {"first": b"1", "caf\udce9": b"2"}
        if (await store.probe("tree")).raw_names:
            await save(store, "tree", files)

            assert await load(store, "tree") == files
            return
        with pytest.raises(RefusedError) as caught:
            async with store.begin("tree", Intent(attempt=new_attempt(), files=new_files(files))):
                pytest.fail("the block was entered")

        assert caught.value.paths == ("caf\udce9",)
        assert await self.raw(store, "") == {}

    # -- the rest

    async def test_a_probe_leaves_nothing(self, store: TreeStore) -> None:
        await store.probe("not/there")
        nothing = await self.raw(store, "")
        await save(store, "tree", OLD)
        before = await self.raw(store, "")
        await store.probe("tree")

        assert nothing == {}
        assert await self.raw(store, "") == before

    async def test_the_first_marker_of_a_root_stays(self, store: TreeStore) -> None:
        await save(store, "root/tree", OLD)
        first = await store.mark_root("root", b"first")
        second = await store.mark_root("root", b"second")

        assert (first, second) == (b"first", b"first")
        assert await _found(store, "root") == ["root/tree"]
        assert sorted(f.path for f in await store.list_files("root")) == [
            "tree/a",
            "tree/d/b",
            "tree/gone",
        ]

    async def test_closing_twice_is_closing_once(self, store: TreeStore) -> None:
        await store.aclose()
        await store.aclose()
