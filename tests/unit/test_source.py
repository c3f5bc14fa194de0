"""A local directory as a source: what a walk finds, and what a read may return."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from asyncsync.concurrency import Threads
from asyncsync.digest import CHUNK_BYTES, digest, zeros_digest
from asyncsync.errors import (
    AccessDeniedError,
    ConfigError,
    DeviceError,
    NotFoundError,
    RefusedError,
    SourceChangedError,
)
from asyncsync.manifest import DirectoryEntry, Kind
from asyncsync.names import MANIFEST
from asyncsync.patterns import Selection
from asyncsync.storage.local import fs
from asyncsync.transfer import Directory, Links, Scan, SourceFile, pieces, source
from asyncsync.transfer.pieces import Moving, Piece

EVERYTHING = Selection()
MIB = 1 << 20


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(2)
    yield threads
    threads.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return _make(tmp_path / "tree", {"a": b"1", "d/b": b"two", "d/e/c": b""})


def _make(directory: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


class Opener:
    """Opens directories with the threads of the test."""

    def __init__(self, threads: Threads) -> None:
        self.threads = threads

    def __call__(
        self, path: Path, kind: Kind = "sealed", links: Links = "refuse"
    ) -> AbstractAsyncContextManager[Directory]:
        return Directory.open(str(path), kind, self.threads, links=links)


@pytest.fixture
def opening(threads: Threads) -> Opener:
    return Opener(threads)


@pytest.fixture
async def sealed(tree: Path, opening: Opener) -> AsyncIterator[Directory]:
    async with opening(tree) as directory:
        yield directory


@pytest.fixture
async def growing(tree: Path, opening: Opener) -> AsyncIterator[Directory]:
    async with opening(tree, "rolling") as directory:
        yield directory


async def _seen(directory: Directory, path: str) -> SourceFile:
    return (await directory.scan(EVERYTHING)).files[path]


# ---------------------------------------------------------------- opening


async def test_what_is_not_there_is_not_found(tmp_path: Path, opening: Opener) -> None:
    with pytest.raises(NotFoundError, match="nowhere") as caught:
        async with opening(tmp_path / "nowhere"):
            raise AssertionError

    assert caught.value.side == "source"


async def test_a_file_is_no_directory(tree: Path, opening: Opener) -> None:
    with pytest.raises(ConfigError, match="is a file"):
        async with opening(tree / "a"):
            raise AssertionError


# ---------------------------------------------------------------- walking


async def test_a_walk_sees_every_file_with_its_stamp(tree: Path, sealed: Directory) -> None:
    scan = await sealed.scan(EVERYTHING)
    info = (tree / "d/b").stat()

    assert list(scan.files) == ["a", "d/b", "d/e/c"]
    assert scan.files["d/b"] == SourceFile(
        "d/b",
        3,
        stat.S_IMODE(info.st_mode),
        info.st_mtime_ns,
        info.st_ctime_ns,
        info.st_dev,
        info.st_ino,
    )


async def test_names_come_in_the_order_of_their_bytes(tmp_path: Path, opening: Opener) -> None:
    names = ["\u00e9", "e\u0301", "a b", "a.b", "a", "Z", os.fsdecode(b"\xff")]
    tree = _make(tmp_path / "names", dict.fromkeys(names, b""))
    async with opening(tree) as directory:
        scan = await directory.scan(EVERYTHING)

    assert list(scan.files) == sorted(names, key=os.fsencode)


async def test_an_empty_directory_is_seen_one_with_files_is_not(
    tree: Path, sealed: Directory
) -> None:
    (tree / "hollow/inner").mkdir(parents=True)
    (tree / "hollow/inner").chmod(0o1750)
    scan = await sealed.scan(EVERYTHING)

    assert scan.directories == [DirectoryEntry("hollow/inner", 0o750)]


async def test_a_directory_that_holds_only_our_own_names_counts_as_empty(
    tree: Path, sealed: Directory
) -> None:
    _make(tree, {"hollow/.asyncsync-lock": b"", f".ckpt.asyncsync-tmp-{'0' * 32}/tree/x": b""})
    scan = await sealed.scan(EVERYTHING)

    assert [entry.path for entry in scan.directories] == ["hollow"]
    assert list(scan.files) == ["a", "d/b", "d/e/c"]


async def test_the_manifest_of_the_root_is_not_seen_and_one_below_makes_a_commit(
    tree: Path, sealed: Directory
) -> None:
    _make(tree, {MANIFEST: b"{}", f"d/{MANIFEST}": b"{}"})
    scan = await sealed.scan(EVERYTHING)

    assert list(scan.files) == ["a"]
    assert scan.nested == ["d"]


async def test_commits_of_the_target_are_passed_over_unless_they_are_commits_here(
    tree: Path, sealed: Directory
) -> None:
    _make(tree, {f"f/{MANIFEST}": b"{}"})
    scan = await sealed.scan(EVERYTHING, inside={"d", "f"})

    assert list(scan.files) == ["a"]
    assert scan.nested == ["f"]


async def test_patterns_decide_what_is_seen_and_excluded_directories_are_not_entered(
    tree: Path, sealed: Directory
) -> None:
    _make(tree, {"d/e/.asyncsync-bad": b""})
    os.mkfifo(tree / "d/e/fifo")
    (tree / "hollow").mkdir()
    scan = await sealed.scan(Selection(("/d/e/", "hollow")))

    assert list(scan.files) == ["a", "d/b"]
    assert scan.directories == []


async def test_more_names_than_one_batch_are_all_seen(
    tree: Path, sealed: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_BATCH", 2)
    scan = await sealed.scan(EVERYTHING)

    assert list(scan.files) == ["a", "d/b", "d/e/c"]


async def test_all_bad_names_are_refused_at_once(tree: Path, sealed: Directory) -> None:
    _make(tree, {f".asyncsync-{number}": b"" for number in range(7)})
    os.symlink("a", tree / "link")
    with pytest.raises(RefusedError, match=r"8 name\(s\).*and 3 more") as caught:
        await sealed.scan(EVERYTHING)

    assert len(caught.value.paths) == 8
    assert "\n" not in str(caught.value)


def _link(path: Path) -> None:
    os.symlink("a", path)


ODD: dict[str, Callable[[Path], object]] = {"a symbolic link": _link, "a fifo": os.mkfifo}


@pytest.mark.parametrize("reason", ODD)
async def test_what_is_no_file_is_refused_in_a_sealed_tree_and_left_out_of_a_rolling_one(
    tree: Path, sealed: Directory, growing: Directory, reason: str
) -> None:
    ODD[reason](tree / "d/odd")
    with pytest.raises(RefusedError, match=f"d/odd \\({reason}\\)"):
        await sealed.scan(EVERYTHING)
    scan = await growing.scan(EVERYTHING)

    assert scan.left_out == [("d/odd", reason)]
    assert "d/odd" not in scan.files


@pytest.mark.parametrize(
    ("name", "leads_to", "is_file"),
    [
        ("link", "a", True),
        ("link", "d/b", True),
        ("d/e/link", "../../a", True),
        ("d/link", "e", False),
        ("link", "../outside", False),
        ("link", "/etc/passwd", False),
        ("link", "nowhere", False),
        ("link", "link", False),
    ],
)
async def test_a_followed_link_is_a_file_when_it_leads_to_one_in_the_tree(
    tree: Path, opening: Opener, name: str, leads_to: str, is_file: bool
) -> None:
    _make(tree.parent, {"outside": b"secret"})
    os.symlink(leads_to, tree / name)
    async with opening(tree, "rolling", "follow") as directory:
        scan = await directory.scan(EVERYTHING)
        pieces = await directory.read_many(list(scan.files.values()))

    assert (name in scan.files) is is_file
    assert ([path for path, _ in scan.left_out] == [name]) is not is_file
    assert all(isinstance(piece, Piece) for piece in pieces)


async def test_a_link_above_is_never_followed_by_a_read(tree: Path, sealed: Directory) -> None:
    file = await _seen(sealed, "d/b")
    os.rename(tree / "d", tree.parent / "moved")
    os.symlink(tree.parent / "moved", tree / "d")

    assert isinstance((await sealed.read_many([file]))[0], Moving)


async def test_a_directory_that_vanishes_during_the_walk_is_like_a_file_that_does(
    tree: Path, sealed: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = fs.open_beneath

    def vanishing(directory: int, path: str, flags: int, **options: bool) -> int:
        if path == "e":
            os.unlink(tree / "d/e/c")
            os.rmdir(tree / "d/e")
        return inner(directory, path, flags, **options)

    monkeypatch.setattr(source, "open_beneath", vanishing)
    scan = await sealed.scan(EVERYTHING)

    assert list(scan.files) == ["a", "d/b"]


async def test_a_directory_that_becomes_a_link_during_the_walk_is_not_entered(
    tree: Path, sealed: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = fs.open_beneath

    def relinking(directory: int, path: str, flags: int, **options: bool) -> int:
        if path == "e":
            os.rename(tree / "d/e", tree.parent / "moved")
            os.symlink(tree.parent / "moved", tree / "d/e")
        return inner(directory, path, flags, **options)

    monkeypatch.setattr(source, "open_beneath", relinking)
    scan = await sealed.scan(EVERYTHING)

    assert list(scan.files) == ["a", "d/b"]


async def test_a_deep_tree_is_refused_at_the_depth_that_is_too_much_and_not_entered(
    tree: Path, sealed: Directory
) -> None:
    (tree / "/".join(["deep"] * 90)).mkdir(parents=True)
    with pytest.raises(RefusedError, match="65 levels deep") as caught:
        await sealed.scan(EVERYTHING)

    assert caught.value.paths == ("/".join(["deep"] * 65),)


@pytest.mark.parametrize("what", ["renamed", "replaced"])
async def test_a_tree_that_is_no_longer_there_is_not_an_empty_one(
    tree: Path, sealed: Directory, what: str
) -> None:
    os.rename(tree, tree.parent / "moved")
    if what == "replaced":
        tree.mkdir()

    with pytest.raises(SourceChangedError, match="renamed, replaced or deleted"):
        await sealed.scan(EVERYTHING)


async def test_a_directory_that_cannot_be_read_is_named_whole(
    tree: Path, sealed: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(directory: int, path: str, flags: int) -> int:
        raise PermissionError(13, "denied", path)

    monkeypatch.setattr(source, "open_beneath", deny)

    with pytest.raises(AccessDeniedError, match=f"{tree}/d"):
        await sealed.scan(EVERYTHING)


# ---------------------------------------------------------------- reading


async def test_whole_files_come_with_their_digests_in_the_order_asked_for(
    sealed: Directory,
) -> None:
    files = (await sealed.scan(EVERYTHING)).files
    pieces = await sealed.read_many([files["d/b"], files["d/e/c"], files["a"]])

    read = [(bytes(p.block.data), p.digest) for p in pieces if isinstance(p, Piece)]
    assert read == [(data, digest(data)) for data in (b"two", b"", b"1")]


async def test_a_small_file_that_cannot_be_read_is_named(
    tree: Path, sealed: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (await sealed.scan(EVERYTHING)).files

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(pieces, "read_at", broken)
    with pytest.raises(DeviceError, match=f"source {tree}/d/b: Input/output error"):
        await sealed.read_many([files["d/b"]])


async def test_a_large_file_is_read_by_chunks(tree: Path, sealed: Directory) -> None:
    _make(tree, {"big": b"x" * CHUNK_BYTES + b"tail"})
    file = await _seen(sealed, "big")
    pieces = [await sealed.read(file, number) for number in (0, 1)]
    await sealed.confirm(file, [piece.digest for piece in pieces])

    assert [len(piece.block.data) for piece in pieces] == [CHUNK_BYTES, 4]
    assert pieces[1].digest == digest(b"tail")


def _in_place(path: Path, data: bytes, times: tuple[int, int] | None = None) -> None:
    with open(path, "r+b") as file:
        file.write(data)
    if times is not None:
        os.utime(path, ns=times)


def _rewrite(path: Path) -> None:
    info = path.stat()
    _in_place(path, b"TWO", (info.st_atime_ns, info.st_mtime_ns))


def _other_file(path: Path) -> None:
    path.with_name("new").write_bytes(b"two")
    os.rename(path.with_name("new"), path)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _to_link(path: Path) -> None:
    path.rename(path.with_name("real"))
    os.symlink("real", path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "grown": lambda path: path.write_bytes(b"two and more"),
    "truncated": lambda path: os.truncate(path, 1),
    "rewritten in place, its time set back": _rewrite,
    "another file under the name": _other_file,
    "deleted": lambda path: path.unlink(),
    "made a fifo": _fifo,
    "made a directory": _directory,
    "made a link": _to_link,
    "made executable": lambda path: path.chmod(0o755),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_file_that_is_not_what_the_walk_saw_is_moving_and_others_are_read(
    tree: Path, sealed: Directory, change: str
) -> None:
    files = (await sealed.scan(EVERYTHING)).files
    CHANGES[change](tree / "d/b")
    first, second, third = await sealed.read_many([files["a"], files["d/b"], files["d/e/c"]])

    assert isinstance(first, Piece)
    assert isinstance(third, Piece)
    assert isinstance(second, Moving)
    assert second.path == "d/b"


@pytest.mark.parametrize("change", CHANGES)
async def test_a_file_that_changes_after_it_was_read_is_not_confirmed(
    tree: Path, sealed: Directory, change: str
) -> None:
    file = await _seen(sealed, "d/b")
    piece = await sealed.read(file, 0)
    CHANGES[change](tree / "d/b")

    with pytest.raises(Moving):
        await sealed.confirm(file, [piece.digest])


def _while_read(monkeypatch: pytest.MonkeyPatch, *changes: Callable[[], object]) -> None:
    """One after each read of a piece, before anybody looks whether it is still the same."""
    inner, left = pieces.read_piece, list(changes)

    def changing(*args: Any, **more: Any) -> Piece:
        piece = inner(*args, **more)
        if left:
            left.pop(0)()
        return piece

    monkeypatch.setattr(source, "read_piece", changing)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_small_file_that_changes_while_it_is_read_is_moving(
    tree: Path, sealed: Directory, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    file = await _seen(sealed, "d/b")
    _while_read(monkeypatch, lambda: CHANGES[change](tree / "d/b"))

    assert isinstance((await sealed.read_many([file]))[0], Moving)


@pytest.mark.parametrize(("kind", "opens"), [("", 1), ("nfs4", 2)])
async def test_where_others_write_from_elsewhere_a_small_file_is_opened_again(
    tree: Path, opening: Opener, monkeypatch: pytest.MonkeyPatch, kind: str, opens: int
) -> None:
    """Only who opens a file on NFS is certain to see what another machine has written."""
    monkeypatch.setattr(source, "network_of", lambda path: kind)
    opened, read = list[str](), list[str]()

    def spy(directory: int, path: str, flags: int, **options: bool) -> int:
        opened.append(path)
        return fs.open_beneath(directory, path, flags, **options)

    def counted(fd: int, file: SourceFile, *args: Any, **more: Any) -> Piece:
        read.append(file.path)
        return pieces.read_piece(fd, file, *args, **more)

    async with opening(tree) as directory:
        file = await _seen(directory, "d/b")
        monkeypatch.setattr(source, "open_beneath", spy)
        monkeypatch.setattr(source, "read_piece", counted)
        (piece,) = await directory.read_many([file])

    assert isinstance(piece, Piece)
    assert (opened, read) == (["d/b"] * opens, ["d/b"])


async def test_a_small_log_that_grows_while_it_is_read_is_what_the_walk_saw(
    tree: Path, growing: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await _seen(growing, "d/b")
    _while_read(monkeypatch, lambda: CHANGES["grown"](tree / "d/b"))
    (piece,) = await growing.read_many([file])

    assert isinstance(piece, Piece)
    assert (bytes(piece.block.data), piece.digest) == (b"two", digest(b"two"))


async def test_a_small_log_that_is_written_anew_while_it_is_read_is_moving(
    tree: Path, growing: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await _seen(growing, "d/b")
    _while_read(
        monkeypatch,
        lambda: CHANGES["grown"](tree / "d/b"),
        lambda: _in_place(tree / "d/b", b"T"),
    )

    assert isinstance((await growing.read_many([file]))[0], Moving)


async def test_a_log_that_grew_is_read_as_far_as_the_walk_saw_it(
    tree: Path, growing: Directory
) -> None:
    file = await _seen(growing, "d/b")
    with open(tree / "d/b", "ab") as log:
        log.write(b" more")
    (piece,) = await growing.read_many([file])

    assert isinstance(piece, Piece)
    assert bytes(piece.block.data) == b"two"


async def test_a_log_that_grew_while_it_was_read_is_confirmed_when_the_prefix_stands(
    tree: Path, growing: Directory
) -> None:
    file = await _seen(growing, "d/b")
    piece = await growing.read(file, 0)
    with open(tree / "d/b", "ab") as log:
        log.write(b" more")
    await growing.confirm(file, [piece.digest])
    _in_place(tree / "d/b", b"T")

    with pytest.raises(Moving):
        await growing.confirm(file, [piece.digest])


@pytest.mark.parametrize("change", ["truncated", "another file under the name", "deleted"])
async def test_what_is_no_longer_that_log_is_moving(
    tree: Path, growing: Directory, change: str
) -> None:
    file = await _seen(growing, "d/b")
    CHANGES[change](tree / "d/b")

    assert isinstance((await growing.read_many([file]))[0], Moving)


# ---------------------------------------------------------------- holes


def _sparse(path: Path, size_bytes: int, islands: Mapping[int, bytes]) -> None:
    with open(path, "wb") as file:
        file.truncate(size_bytes)
        for offset, data in islands.items():
            file.seek(offset)
            file.write(data)


async def test_a_hole_is_not_read_and_data_in_it_says_where_it_is(
    tree: Path, sealed: Directory
) -> None:
    _sparse(tree / "sparse", 2 * CHUNK_BYTES, {CHUNK_BYTES + MIB: b"d" * MIB})
    file = await _seen(sealed, "sparse")
    hole, data = [await sealed.read(file, number) for number in (0, 1)]

    assert hole.block.extents == ()
    assert hole.digest == zeros_digest(CHUNK_BYTES) == digest(bytes(CHUNK_BYTES))
    assert data.block.extents == ((MIB, 2 * MIB),)
    assert data.digest == digest(data.block.data)


async def test_data_that_fills_a_hole_while_it_is_read_is_not_taken_for_a_hole(
    tree: Path, growing: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sparse(tree / "sparse", 4 * MIB, {0: b"d" * MIB})
    file = await _seen(growing, "sparse")
    inner = fs.data_extents

    def filled_meanwhile(fd: int, start: int, end: int) -> tuple[tuple[int, int], ...]:
        extents = inner(fd, start, end)
        with open(tree / "sparse", "r+b") as out:
            out.seek(2 * MIB)
            out.write(b"late")
        return extents

    monkeypatch.setattr(pieces, "data_extents", filled_meanwhile)
    piece = await growing.read(file, 0)

    assert piece.block.extents is None
    assert bytes(piece.block.data[2 * MIB : 2 * MIB + 4]) == b"late"


# ---------------------------------------------------------------- settling


def _scan(*ctimes_ns: int) -> Scan:
    return Scan({str(n): SourceFile(str(n), 0, 0, 0, at, 0, 0) for n, at in enumerate(ctimes_ns)})


@pytest.mark.parametrize(
    ("scan", "now_ns", "wait_ns"),
    [
        pytest.param(_scan(), 10**18, 0, id="nothing to wait for"),
        pytest.param(_scan(10**18 + 1), 10**18 + 10**9, 0, id="long ago"),
        pytest.param(_scan(1, 10**18 + 1), 10**18 + 1, 20_000_000, id="just now"),
        pytest.param(_scan(10**18 + 1), 10**18 + 5_000_001, 15_000_000, id="a moment ago"),
        pytest.param(_scan(2 * 10**18 + 1), 10**18, 20_000_000, id="in the future"),
        pytest.param(_scan(10**18, 10**9), 10**18, 2_000_000_000, id="whole seconds"),
    ],
)
def test_a_sync_waits_until_any_later_write_shows(scan: Scan, now_ns: int, wait_ns: int) -> None:
    assert scan.settle_ns(now_ns) == wait_ns
