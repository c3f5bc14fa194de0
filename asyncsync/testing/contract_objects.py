"""What every ObjectStore must do."""

from __future__ import annotations

import itertools
from contextlib import suppress

import anyio
import pytest

from ..errors import NotFoundError, PreconditionError, TransientError
from ..storage.objects import Condition, ObjectStore, Upload
from ..units import MIB

__all__ = ["ObjectStoreContract"]

_MANY_KEYS = 25


async def _keys(store: ObjectStore, prefix: str) -> list[str]:
    return [info.key async for info in store.scan(prefix)]


async def _uploads(store: ObjectStore, prefix: str) -> list[Upload]:
    return [upload async for upload in store.scan_uploads(prefix)]


class ObjectStoreContract:
    """A subclass supplies the `store` fixture, empty. Conditions that it does not declare in its
    capabilities are not asked of it."""

    @pytest.fixture
    def store(self) -> object:
        """The ObjectStore under test."""
        raise NotImplementedError

    # -- put, get, head

    async def test_what_was_put_comes_back(self, store: ObjectStore) -> None:
        await store.put("a/b", b"bytes")

        assert (await store.get("a/b")).data == b"bytes"

    async def test_any_kind_of_bytes_is_stored_as_it_is_now(self, store: ObjectStore) -> None:
        buffer = bytearray(b"xbytesx")
        await store.put("k", memoryview(buffer)[1:6])
        buffer[:] = b"changed"

        assert (await store.get("k")).data == b"bytes"

    async def test_put_and_head_say_the_same(self, store: ObjectStore) -> None:
        written = await store.put("k", b"bytes")
        found = await store.head("k")

        assert (found.key, found.size_bytes, found.tag) == ("k", 5, written.tag)

    async def test_a_reader_sees_one_version_or_another(self, store: ObjectStore) -> None:
        versions = [letter * 1000 for letter in (b"a", b"b", b"c", b"d")]
        await store.put("k", versions[0])
        seen: set[bytes] = set()

        async def read() -> None:
            for _ in range(4 * len(versions)):
                with suppress(TransientError):  # a store may break off a read that meets a write
                    seen.add(bytes((await store.get("k")).data))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            for data in versions * 2:
                await store.put("k", data)

        assert seen
        assert seen <= set(versions)

    async def test_a_version_that_is_gone_cannot_be_replaced(self, store: ObjectStore) -> None:
        if not store.capabilities.if_match:
            return
        gone = await store.put("k", b"one")
        await store.delete("k")

        with pytest.raises(PreconditionError):
            await store.put("k", b"two", condition=Condition(tag=gone.tag))

    async def test_put_replaces_and_the_tag_changes(self, store: ObjectStore) -> None:
        first = await store.put("k", b"one")
        second = await store.put("k", b"two")

        assert first.tag != second.tag
        assert (await store.get("k")).data == b"two"

    async def test_an_empty_object_is_an_object(self, store: ObjectStore) -> None:
        await store.put("k", b"")

        assert (await store.head("k")).size_bytes == 0
        assert (await store.get("k", 0, 1)).data == b""

    async def test_a_range_tells_the_whole_size_and_the_tag(self, store: ObjectStore) -> None:
        written = await store.put("k", b"0123456789")
        found = await store.get("k", 2, 5)

        assert (found.info.key, found.info.size_bytes) == ("k", 10)
        assert found.info.tag == written.tag

    async def test_a_range_behind_the_end_is_empty(self, store: ObjectStore) -> None:
        written = await store.put("k", b"0123456789")
        found = await store.get("k", 10, 20)

        assert (found.data, found.info.size_bytes) == (b"", 10)
        assert found.info.tag == written.tag

    async def test_bytes_can_be_put_into_a_buffer(self, store: ObjectStore) -> None:
        await store.put("k", b"0123456789")
        buffer = bytearray(b"-" * 8)
        part = (await store.get("k", 2, 5, into=memoryview(buffer))).data
        rest = (await store.get("k", 7, 15, into=memoryview(buffer)[3:])).data

        assert (bytes(part), bytes(rest)) == (b"234", b"789")
        assert buffer[:6] == b"234789"

    async def test_a_range_ends_where_the_object_ends(self, store: ObjectStore) -> None:
        await store.put("k", b"0123456789")

        assert (await store.get("k", 2, 5)).data == b"234"
        assert (await store.get("k", 7)).data == b"789"
        assert (await store.get("k", 7, 100)).data == b"789"

    async def test_get_can_demand_one_version(self, store: ObjectStore) -> None:
        old = await store.put("k", b"old")
        await store.put("k", b"new")

        with pytest.raises(PreconditionError):
            await store.get("k", tag=old.tag)

    async def test_what_is_not_there_is_not_found(self, store: ObjectStore) -> None:
        with pytest.raises(NotFoundError):
            await store.head("k")
        with pytest.raises(NotFoundError):
            await store.get("k")

    @pytest.mark.parametrize(
        "name",
        [
            " a b ",
            "'\"",
            "#?%+&;=%2F",
            "line\nbreak",
            ".hidden.",
            "\u00e9",
            "e\u0301",
            "\U0001f40d",
        ],
    )
    async def test_a_key_is_kept_to_the_letter(self, store: ObjectStore, name: str) -> None:
        if set(store.capabilities.refused_characters).intersection(name):
            return
        await store.put(f"dir/{name}", b"here")

        assert await _keys(store, "dir/") == [f"dir/{name}"]
        assert (await store.get(f"dir/{name}")).data == b"here"

    # -- conditions

    async def test_create_only_leaves_what_is_there(self, store: ObjectStore) -> None:
        if not store.capabilities.create_only:
            return
        await store.put("k", b"old", condition=Condition(absent=True))
        with pytest.raises(PreconditionError):
            await store.put("k", b"new", condition=Condition(absent=True))

        assert (await store.get("k")).data == b"old"

    async def test_of_many_creators_one_wins(self, store: ObjectStore) -> None:
        if not store.capabilities.create_only:
            return
        won: list[bytes] = []

        async def create(data: bytes) -> None:
            try:
                await store.put("k", data, condition=Condition(absent=True))
            except PreconditionError:
                return
            won.append(data)

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(create, b"%d" % number)

        assert [(await store.get("k")).data] == won

    async def test_replacing_demands_the_tag_that_is_there(self, store: ObjectStore) -> None:
        if not store.capabilities.if_match:
            return
        old = await store.put("k", b"old")
        await store.put("k", b"new", condition=Condition(tag=old.tag))
        with pytest.raises(PreconditionError):
            await store.put("k", b"late", condition=Condition(tag=old.tag))

        assert (await store.get("k")).data == b"new"

    async def test_replacing_what_is_gone_is_refused(self, store: ObjectStore) -> None:
        if not store.capabilities.if_match:
            return
        old = await store.put("k", b"old")
        await store.delete("k")

        with pytest.raises((PreconditionError, NotFoundError)):
            await store.put("k", b"new", condition=Condition(tag=old.tag))

    async def test_delete_can_demand_one_version(self, store: ObjectStore) -> None:
        if not store.capabilities.if_match:
            return
        old = await store.put("k", b"old")
        new = await store.put("k", b"new")
        with pytest.raises(PreconditionError):
            await store.delete("k", tag=old.tag)
        still_there = (await store.get("k")).data
        await store.delete("k", tag=new.tag)

        assert still_there == b"new"
        assert await _keys(store, "") == []

    # -- delete, scan

    async def test_delete_removes_one_key_and_may_be_repeated(self, store: ObjectStore) -> None:
        for key in ("trial_1", "trial_10", "trial_1/x"):
            await store.put(key, b"")
        await store.delete("trial_1")
        await store.delete("trial_1")

        assert await _keys(store, "") == ["trial_1/x", "trial_10"]

    async def test_scan_gives_every_key_below_a_prefix_in_order(self, store: ObjectStore) -> None:
        keys = [f"dir/{n:03}" for n in range(_MANY_KEYS)]
        for key in [*reversed(keys), "di", "dir2/x", "e"]:
            await store.put(key, b"x")
        found = [info async for info in store.scan("dir/")]

        assert [info.key for info in found] == keys
        assert {info.size_bytes for info in found} == {1}
        assert found[0].tag == (await store.head(keys[0])).tag

    async def test_scan_of_nothing_is_empty(self, store: ObjectStore) -> None:
        assert await _keys(store, "none/") == []

    async def test_one_level_shows_what_lies_directly_below(self, store: ObjectStore) -> None:
        keys = ["dir/a", "dir/b/1", "dir/b/2/3", "dir/bc", "dir/d/1", "dir2/x", "e"]
        for key in keys:
            await store.put(key, b"x")
        found = [info async for info in store.scan_level("dir/")]
        top = [info.key async for info in store.scan_level("")]

        assert [info.key for info in found] == ["dir/a", "dir/b/", "dir/bc", "dir/d/"]
        assert found[0].tag == (await store.head("dir/a")).tag
        assert top == ["dir/", "dir2/", "e"]

    # -- multipart

    async def _big(self, store: ObjectStore) -> tuple[bytes, bytes]:
        return b"a" * store.capabilities.min_part_bytes, b"tail"

    async def test_parts_in_any_order_become_one_object_in_theirs(self, store: ObjectStore) -> None:
        head, tail = await self._big(store)
        upload = await store.create_upload("k")
        second = await store.put_part(upload, 2, tail)
        first = await store.put_part(upload, 1, head)
        info = await store.complete_upload(upload, [first, second])

        assert (await store.get("k")).data == head + tail
        found = await store.head("k")
        assert (found.key, found.size_bytes, found.tag) == (info.key, info.size_bytes, info.tag)

    async def test_a_mark_is_on_everything_or_on_nothing(self, store: ObjectStore) -> None:
        size_bytes = store.capabilities.min_part_bytes
        await store.put("small", b"bytes")
        await store.put("large", bytes(9 * MIB))
        upload = await store.create_upload("parts")
        parts = [await store.put_part(upload, n, bytes(size_bytes)) for n in (1, 2)]
        await store.complete_upload(upload, parts)
        names = ("small", "large", "parts")

        heads = {(await store.head(name)).marked for name in names}
        gets = {(await store.get(name, 0, 1)).info.marked for name in names}

        assert len(heads) == 1
        assert gets == heads

    async def test_an_upload_shows_nothing_before_it_completes(self, store: ObjectStore) -> None:
        await store.put("k", b"old")
        upload = await store.create_upload("k")
        await store.put_part(upload, 1, b"new")
        before, keys = (await store.get("k")).data, await _keys(store, "")
        await store.abort_upload(upload)

        assert (before, keys) == (b"old", ["k"])

    async def test_a_part_put_again_replaces_the_first(self, store: ObjectStore) -> None:
        upload = await store.create_upload("k")
        await store.put_part(upload, 1, b"first")
        part = await store.put_part(upload, 1, b"second")
        await store.complete_upload(upload, [part])

        assert (await store.get("k")).data == b"second"

    async def test_a_part_that_is_not_the_one_stored_is_refused(self, store: ObjectStore) -> None:
        upload = await store.create_upload("k")
        stale = await store.put_part(upload, 1, b"first")
        await store.put_part(upload, 1, b"second")

        with pytest.raises(NotFoundError):
            await store.complete_upload(upload, [stale])
        assert await _keys(store, "") == []

    async def test_completing_keeps_the_conditions(self, store: ObjectStore) -> None:
        if not store.capabilities.multipart_conditions:
            return
        old = await store.put("k", b"old")
        await store.put("k", b"newer")
        for condition in (Condition(absent=True), Condition(tag=old.tag)):
            upload = await store.create_upload("k")
            part = await store.put_part(upload, 1, b"mine")
            with pytest.raises(PreconditionError):
                await store.complete_upload(upload, [part], condition=condition)
            await store.abort_upload(upload)

        assert (await store.get("k")).data == b"newer"

    async def test_an_aborted_upload_is_gone_and_aborting_may_be_repeated(
        self, store: ObjectStore
    ) -> None:
        upload = await store.create_upload("k")
        part = await store.put_part(upload, 1, b"x")
        await store.abort_upload(upload)
        await store.abort_upload(upload)

        with pytest.raises(NotFoundError):
            await store.complete_upload(upload, [part])
        assert await _uploads(store, "") == []

    async def test_unfinished_uploads_can_be_found_below_a_prefix(self, store: ObjectStore) -> None:
        keys = ["dir/a", "dir/b", "other"]
        uploads = [await store.create_upload(key) for key in keys]
        done = await store.create_upload("dir/done")
        await store.complete_upload(done, [await store.put_part(done, 1, b"x")])
        found = await _uploads(store, "dir/")
        for upload in itertools.chain(found, uploads):
            await store.abort_upload(upload)

        assert sorted(upload.key for upload in found) == ["dir/a", "dir/b"]
        assert await _uploads(store, "") == []

    # -- the end

    async def test_examining_changes_nothing(self, store: ObjectStore) -> None:
        await store.put("k", b"x")
        examined = await store.examine()

        assert all(note and "\n" not in note for note in examined.notes)
        assert await _keys(store, "") == ["k"]

    async def test_closing_twice_is_closing_once(self, store: ObjectStore) -> None:
        await store.aclose()
        await store.aclose()
