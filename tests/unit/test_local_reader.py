"""Reading the files of a tree on disk: as committed, or an IntegrityError that names the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asyncsync.errors import AccessDeniedError, IntegrityError
from asyncsync.names import NEXT
from asyncsync.storage import NewFile
from asyncsync.storage.local import reader
from asyncsync.storage.local.reader import list_files, read_block, read_whole

MIB = 1 << 20
FILE = NewFile("d/file", 10)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/d").mkdir(parents=True)
    (tmp_path / "tree/d/file").write_bytes(b"0123456789")
    return tmp_path / "tree"


@pytest.fixture
def root(tree: Path) -> Iterator[int]:
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_range_of_a_file_comes_as_it_is(root: int) -> None:
    block = read_block(root, FILE, 2, 5, "tree")

    assert bytes(block.data) == b"234"
    assert block.extents is None


def test_whole_files_come_in_the_order_asked_for(tree: Path, root: int) -> None:
    (tree / "empty").write_bytes(b"")
    files = [FILE, NewFile("empty", 0), FILE]

    assert read_whole(root, files, "tree") == [b"0123456789", b"", b"0123456789"]


def test_a_published_file_that_still_waits_to_be_moved_is_the_one_that_counts(
    tree: Path, root: int
) -> None:
    (tree / NEXT / "d").mkdir(parents=True)
    (tree / NEXT / "d/file").write_bytes(b"9876543210")

    assert read_whole(root, [FILE], "tree") == [b"9876543210"]
    assert bytes(read_block(root, FILE, 0, 2, "tree").data) == b"98"


def _elsewhere(path: Path) -> None:
    path.rename(path.with_name("real"))
    os.symlink("real", path)


def _above(path: Path) -> None:
    path.parent.rename(path.parent.with_name("real"))
    os.symlink("real", path.parent)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _file_above(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.write_bytes(b"")


MISSING: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "a link to itself": _elsewhere,
    "behind a link": _above,
    "a fifo": _fifo,
    "a directory": _directory,
    "below a file": _file_above,
}


@pytest.mark.parametrize("how", MISSING)
def test_what_is_no_file_is_missing_and_named(tree: Path, root: int, how: str) -> None:
    MISSING[how](tree / "d/file")
    before = _open_files()
    with pytest.raises(IntegrityError, match="d/file is missing in tree") as whole:
        read_whole(root, [FILE], "tree")
    with pytest.raises(IntegrityError) as block:
        read_block(root, FILE, 0, 10, "tree")

    assert whole.value.paths == block.value.paths == ("d/file",)
    assert _open_files() == before


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "only 0 can be read"),
        (b"012345678", "only 9 can be read"),
        (b"01234567890", "longer than the 10 bytes"),
    ],
)
def test_another_length_than_committed_is_damage(
    tree: Path, root: int, data: bytes, says: str
) -> None:
    (tree / "d/file").write_bytes(data)
    with pytest.raises(IntegrityError, match=says) as whole:
        read_whole(root, [FILE], "tree")
    with pytest.raises(IntegrityError, match=says):
        read_block(root, FILE, 0, 10, "tree")

    assert whole.value.paths == ("d/file",)


def test_a_lost_tail_is_no_hole(tree: Path, root: int) -> None:
    with open(tree / "sparse", "wb") as file:
        file.truncate(4 * MIB)

    with pytest.raises(IntegrityError, match="only"):
        read_block(root, NewFile("sparse", 8 * MIB), 2 * MIB, 6 * MIB, "tree")


def test_holes_come_as_holes(tree: Path, root: int) -> None:
    with open(tree / "sparse", "wb") as file:
        file.truncate(8 * MIB)
        file.seek(4 * MIB)
        file.write(b"d" * MIB)
    sparse = NewFile("sparse", 8 * MIB)
    hole = read_block(root, sparse, 0, 4 * MIB, "tree")
    data = read_block(root, sparse, 3 * MIB, 8 * MIB, "tree")

    assert hole.extents == ()
    assert not any(hole.data)
    assert data.extents == ((MIB, 2 * MIB),)
    assert bytes(data.data) == bytes(MIB) + b"d" * MIB + bytes(3 * MIB)


def test_a_file_that_may_not_be_read_is_named(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(directory: int, path: str, flags: int) -> int:
        raise PermissionError(13, "denied", path)

    monkeypatch.setattr(reader, "open_beneath", deny)

    with pytest.raises(AccessDeniedError, match="tree/d/file"):
        read_whole(root, [FILE], "tree")


def test_a_listing_names_regular_files_and_nothing_of_ours(tree: Path, root: int) -> None:
    (tree / "d/file").chmod(0o4750)
    os.utime(tree / "d/file", ns=(1, 7))
    os.symlink("d", tree / "link")
    os.mkfifo(tree / "fifo")
    for name in (".asyncsync.json", ".asyncsync-lock", f".asyncsync-tmp-{'0' * 32}"):
        (tree / name).write_bytes(b"")

    assert list_files(root) == [NewFile("d/file", 10, 0o750, 7)]
