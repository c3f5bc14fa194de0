"""Names of the temporary objects that multipart uploads are kept in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.errors import NotFoundError, PermanentError, RefusedError
from asyncsync.names import check_path
from asyncsync.storage.committed import CommittedTrees
from asyncsync.storage.memory import MemoryObjects
from asyncsync.storage.objects import Part, Upload
from asyncsync.storage.parts import (
    MARKER,
    MAX_KEY_BYTES,
    MAX_PARTS,
    PartName,
    check_part_number,
    check_parts,
    is_hidden,
    new_upload,
    parse_part,
    part_key,
    parts_prefix,
    uploads_among,
)
from asyncsync.storage.trees import Intent, NewFile
from asyncsync.testing import FakeClock

UPLOAD = Upload("dir/model.bin", "0123456789abcdef0123456789abcdef")


def test_a_part_lies_beside_its_key() -> None:
    assert part_key(UPLOAD, 7) == (
        "dir/model.bin.asyncsync-parts-0123456789abcdef0123456789abcdef/00007"
    )
    assert parts_prefix(UPLOAD) == part_key(UPLOAD, MARKER)[:-5]


@given(st.text(min_size=1), st.integers(0, 99_999))
def test_a_name_says_what_it_was_made_of(key: str, number: int) -> None:
    upload = new_upload(key)
    name = part_key(upload, number)

    assert parse_part(name) == PartName(key, upload.upload_id, number)
    assert is_hidden(name)
    assert is_hidden(parts_prefix(upload))


@pytest.mark.parametrize(
    "key",
    [
        "dir/model.bin",
        ".asyncsync-parts-0123456789abcdef0123456789abcdef/00001",
        "a.asyncsync-parts-0123456789abcdef/00001",
        "a.asyncsync-parts-0123456789ABCDEF0123456789ABCDEF/00001",
        "a.asyncsync-parts-0123456789abcdef0123456789abcdef/1",
        "a.asyncsync-parts-0123456789abcdef0123456789abcdef/00001/x",
        "a.asyncsync-parts-0123456789abcdef0123456789abcdef",
        "dir/",
    ],
)
def test_any_other_name_is_somebodys_object(key: str) -> None:
    assert parse_part(key) is None
    assert not is_hidden(key)


@given(st.text(min_size=1), st.integers(0, 99_999))
def test_no_file_of_a_tree_can_have_the_name_of_a_part(key: str, number: int) -> None:
    with pytest.raises(RefusedError):
        check_path(part_key(new_upload(key), number))


async def test_no_tree_can_have_a_name_that_makes_its_files_look_like_parts() -> None:
    objects = MemoryObjects()
    intent = Intent(attempt="a" * 32, files=(NewFile("00001", 1),))
    store, tree = CommittedTrees(objects, clock=FakeClock()), parts_prefix(UPLOAD)[:-1]
    with pytest.raises(RefusedError, match=r"asyncsync-parts-.*; name another place"):
        async with store.begin(tree, intent):
            raise AssertionError("it began")

    assert [info.key async for info in objects.scan("")] == []


def test_two_uploads_of_one_key_are_kept_apart() -> None:
    assert new_upload("k") != new_upload("k")


def test_the_longest_key_leaves_room_for_its_parts() -> None:
    name = part_key(new_upload("k" * MAX_KEY_BYTES), MAX_PARTS)

    assert len(name) == 1024


@pytest.mark.parametrize("upload_id", ["", "1", "0" * 31, "0" * 33, f"{'0' * 32}/x", "../" * 11])
def test_an_id_that_is_none_of_ours_names_no_upload(upload_id: str) -> None:
    with pytest.raises(NotFoundError, match="no upload of k"):
        part_key(Upload("k", upload_id), 1)


def test_an_id_cannot_be_made_to_name_another_keys_upload() -> None:
    sneaky = Upload("k", f"{'0' * 32}/00001.asyncsync-parts-{'1' * 32}")

    with pytest.raises(NotFoundError):
        parts_prefix(sneaky)


def test_uploads_are_found_each_once_however_many_parts_they_have() -> None:
    other = Upload("dir/other", "f" * 32)
    keys = [part_key(UPLOAD, n) for n in range(3)] + ["dir/x", part_key(other, MARKER)]

    assert list(uploads_among(keys)) == [UPLOAD, other]


@pytest.mark.parametrize("number", [-1, 0, MAX_PARTS + 1])
def test_a_part_has_a_number_from_one_on(number: int) -> None:
    with pytest.raises(PermanentError, match="not between 1 and 10000"):
        check_part_number(number)


@pytest.mark.parametrize("numbers", [[], [2, 1], [1, 1]])
def test_parts_out_of_order_are_refused(numbers: list[int]) -> None:
    with pytest.raises(PermanentError, match="not in order"):
        check_parts("k", [Part(number, "", 1) for number in numbers])


def test_parts_with_gaps_between_them_are_in_order() -> None:
    check_parts("k", [Part(number, "", 1) for number in (1, 5, 10_000)])
    check_part_number(1)
    check_part_number(MAX_PARTS)
