"""Holding a tree still: how each file gets there, of which moment it is, and what is left."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import NoReturn

import anyio
import pytest
from anyio import to_thread

from asyncsync.concurrency import Threads
from asyncsync.errors import (
    BusyError,
    NotFoundError,
    RefusedError,
    SourceChangedError,
    StalledError,
)
from asyncsync.manifest import Kind
from asyncsync.names import MANIFEST, holder_name, is_ours, is_snapshot
from asyncsync.patterns import Selection
from asyncsync.storage.local import Holder, Way
from asyncsync.testing import FakeClock
from asyncsync.transfer import Chosen, Directory, Held, Links, Scan, Snapshots
from asyncsync.transfer.snapshot import weakest

from ..faults.loop_disk import LoopDisk

MIB = 1 << 20
TREE = {"a": b"1", "d/b": b"two", "d/e/c": b"", "large": bytes(range(256)) * 8192}
FICLONE = 0x40049409
Act = Callable[[int], object]


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(4)
    yield threads
    threads.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make(tmp_path / "ckpt_7", TREE)


def make(directory: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def content(directory: str | Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in Path(directory).rglob("*")
        if path.is_file()
    }


class NoWait(FakeClock):
    """A clock on which time passes by sleeping; meanwhile `act` happens, once."""

    act: Callable[[], object] | None = None

    async def sleep(self, seconds: float) -> None:
        self._time += seconds
        act, self.act = self.act, None
        if act is not None:
            await to_thread.run_sync(act)
        await anyio.lowlevel.checkpoint()


class Taker:
    """Takes snapshots in the way of a test.

    Attributes:
        clock: it sleeps once between the look at a tree and the first copy.
        looks: the trees that were chosen from.
    """

    def __init__(self, threads: Threads, bound_bytes: int | None = None) -> None:
        self.clock = NoWait()
        self.snapshots = Snapshots(threads, self.clock, bound_bytes=bound_bytes)
        self.looks: list[str] = []

    def __call__(
        self,
        path: Path,
        kind: Kind = "sealed",
        *,
        selection: Selection | None = None,
        links: Links = "refuse",
        link: bool = False,
    ) -> AbstractAsyncContextManager[Held | None]:
        async def choose(inside: str) -> Chosen:
            self.looks.append(inside)
            return Chosen(
                kind,
                (selection or Selection()).below(inside) if inside else selection or Selection(),
            )

        return self.snapshots.take(str(path), choose, links=links, link=link)


@pytest.fixture
def take(threads: Threads) -> Taker:
    return Taker(threads)


@asynccontextmanager
async def held(taken: AbstractAsyncContextManager[Held | None]) -> AsyncIterator[Held]:
    """A snapshot that has to come about."""
    async with taken as one:
        assert one is not None
        yield one


@pytest.fixture
def reflinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that shares blocks, as far as anybody can see."""

    def ioctl(fd: int, request: int, source: int) -> int:
        assert request == FICLONE
        os.pwrite(fd, os.pread(source, 1 << 30, 0), 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(os, "copy_file_range", never)


def never(*_: object) -> NoReturn:
    raise AssertionError("there is no need to copy")


def failing(code: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return fail


def before_pieces(monkeypatch: pytest.MonkeyPatch, act: Act) -> None:
    """Call `act` with the number of the copy before anything is copied in the kernel."""
    copy, number = os.copy_file_range, count(1)

    def acting(*args: int) -> int:
        act(next(number))
        return copy(*args)

    monkeypatch.setattr(os, "copy_file_range", acting)


# ---------------------------------------------------------------- what is held, and how


async def test_a_snapshot_is_the_tree_and_goes_with_the_block(tree: Path, take: Taker) -> None:
    (tree / "empty").mkdir(mode=0o750)
    async with held(take(tree)) as one:
        assert content(one.path) == TREE
        assert stat.S_IMODE((Path(one.path) / "empty").stat().st_mode) == 0o750
        assert os.path.dirname(os.path.dirname(one.path)) == str(tree.parent)
        holder = Path(one.path).parent
        assert stat.S_IMODE(holder.stat().st_mode) == 0o700
        assert is_ours(holder.name)
        assert is_snapshot(holder.name)

    assert os.listdir(tree.parent) == ["ckpt_7"]


async def test_what_happens_to_the_tree_does_not_reach_it(tree: Path, take: Taker) -> None:
    async with held(take(tree)) as one:
        (tree / "a").write_bytes(b"other")
        (tree / "d/b").unlink()
        (tree / "new").touch()

        assert content(one.path) == TREE


async def test_names_modes_and_times_are_those_of_the_files(tree: Path, take: Taker) -> None:
    raw = os.fsdecode(b"s\xff \n")
    (tree / raw).write_bytes(b"odd")
    (tree / "a").chmod(0o640)
    os.utime(tree / "a", ns=(1_000_000_007, 1_700_000_000_123_456_789))
    async with held(take(tree)) as one:
        found = (Path(one.path) / "a").stat()

        assert (Path(one.path) / raw).read_bytes() == b"odd"
        assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (
            0o640,
            1_700_000_000_123_456_789,
        )


async def test_blocks_are_shared_where_the_file_system_can(
    tree: Path, take: Taker, reflinks: None
) -> None:
    async with held(take(tree)) as one:
        assert (one.way, content(one.path)) == ("reflink", TREE)


@pytest.mark.parametrize("code", [errno.ENOTTY, errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL])
async def test_else_bytes_are_copied(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", failing(code))
    async with held(take(tree)) as one:
        assert (one.way, content(one.path)) == ("copy", TREE)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
async def test_where_the_kernel_copies_nothing_we_do(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", failing(errno.ENOTTY))
    monkeypatch.setattr(os, "copy_file_range", failing(code))
    async with held(take(tree)) as one:
        assert (one.way, content(one.path)) == ("copy", TREE)


async def test_a_large_file_is_copied_in_pieces(
    tmp_path: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncsync.transfer.snapshot._PIECE_BYTES", MIB)
    lengths: list[int] = []
    copy = os.copy_file_range

    def some(source: int, target: int, size: int, *offsets: int) -> int:
        lengths.append(size)
        return copy(source, target, min(size, 300_000), *offsets)  # a kernel may copy less

    monkeypatch.setattr(os, "copy_file_range", some)
    data = os.urandom(3 * MIB + 17)
    tree = make(tmp_path / "tree", {"large": data})
    async with held(take(tree)) as one:
        assert content(one.path) == {"large": data}
    assert max(lengths) == MIB


async def test_holes_stay_holes(tmp_path: Path, take: Taker) -> None:
    tree = make(tmp_path / "tree", {"sparse": b""})
    with open(tree / "sparse", "r+b") as file:
        file.seek(40 * MIB)
        file.write(b"data")
        file.truncate(80 * MIB)
    async with held(take(tree)) as one:
        copy = Path(one.path) / "sparse"

        assert copy.stat().st_blocks * 512 < MIB
        assert copy.read_bytes() == (tree / "sparse").read_bytes()


async def test_a_link_is_a_second_name_and_changes_nothing(tree: Path, take: Taker) -> None:
    (tree / "a").chmod(0o604)
    os.utime(tree / "a", ns=(1, 2))
    async with held(take(tree, link=True)) as one:
        assert (one.way, one.originals) == ("link", {})
        for path in TREE:
            assert (Path(one.path) / path).samefile(tree / path)
    found = (tree / "a").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns, found.st_nlink) == (0o604, 2, 1)


async def test_what_cannot_have_a_second_name_is_copied(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, number = os.link, count(1)

    def some(*args: str, **kwargs: int) -> None:
        failing(errno.EMLINK)() if next(number) > 2 else link(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", some)
    async with held(take(tree, link=True)) as one:
        same = [path for path in TREE if (Path(one.path) / path).samefile(tree / path)]

        assert (len(same), content(one.path), one.way) == (2, TREE, "link")


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ((), "reflink"),
        (("reflink",), "reflink"),
        (("reflink", "copy"), "copy"),
        (("copy", "reflink", "link"), "link"),
    ],
)
def test_the_weakest_way_is_named(ways: tuple[Way, ...], expected: Way) -> None:
    assert weakest(ways) == expected


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
@pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="no loop devices here")
@pytest.mark.skipif(not os.path.exists("/usr/sbin/mkfs.xfs"), reason="no mkfs.xfs here")
async def test_xfs_shares_blocks(tmp_path: Path, threads: Threads) -> None:
    with LoopDisk(tmp_path, "xfs") as disk:
        tree = make(disk.path / "tree", {"large": os.urandom(32 * MIB), "small": b"1"})
        os.sync()
        before = os.statvfs(disk.path).f_bfree
        async with held(Taker(threads)(tree)) as one:
            os.sync()

            assert (one.way, content(one.path)) == ("reflink", content(tree))
            taken = before - os.statvfs(disk.path).f_bfree
            assert taken * os.statvfs(disk.path).f_frsize < 16 * MIB


# ---------------------------------------------------------------- what is chosen


async def test_only_what_is_chosen_is_held(tree: Path, take: Taker) -> None:
    selection = Selection(exclude=["large", "d/e"])
    (tree / "d/only").mkdir()
    (tree / "d/only/large").touch()
    async with held(take(tree, selection=selection)) as one:
        assert sorted(content(one.path)) == ["a", "d/b"]
        assert not os.path.exists(f"{one.path}/d/only"), "in the tree it is not empty"


async def test_what_a_sealed_tree_cannot_hold_is_refused_by_its_own_name(
    tree: Path, take: Taker
) -> None:
    (tree / "link").symlink_to("a")
    with pytest.raises(RefusedError) as refused:
        async with take(tree):
            raise AssertionError("unreachable")

    assert str(tree) in str(refused.value)
    assert refused.value.paths == ("link",)
    assert os.listdir(tree.parent) == ["ckpt_7"]


async def test_what_a_rolling_tree_leaves_out_is_said(tree: Path, take: Taker) -> None:
    (tree / "link").symlink_to("a")
    os.mkfifo(tree / "pipe")
    async with held(take(tree, "rolling")) as one:
        assert dict(one.left_out) == {"link": "a symbolic link", "pipe": "a fifo"}
        assert content(one.path) == TREE


@pytest.mark.parametrize("link", [False, True])
async def test_links_that_are_followed_become_files(tree: Path, take: Taker, link: bool) -> None:
    (tree / "link").symlink_to("d/b")
    async with held(take(tree, links="follow", link=link)) as one:
        assert not os.path.islink(f"{one.path}/link")
        assert content(one.path) == {**TREE, "link": b"two"}


async def test_commits_inside_and_records_come_along(tree: Path, take: Taker) -> None:
    make(tree, {MANIFEST: b"{}", f"n/{MANIFEST}": b"{1}", "n/x": b"n", f"n/m/{MANIFEST}": b"{2}"})
    async with held(take(tree)) as one:
        assert content(one.path) == content(tree)
        assert sorted(take.looks) == ["", "n", "n/m"]
        assert list(one.nested) == ["n"]
        assert one.nested["n"].path == f"{one.path}/n"
        assert list(one.nested["n"].nested) == ["m"]
        assert sorted(one.nested["n"].originals) == [MANIFEST, "x"]


async def test_what_is_a_commit_of_the_target_is_passed_over(tree: Path, threads: Threads) -> None:
    async def choose(_: str) -> Chosen:
        return Chosen("rolling", Selection(), {"d"})

    taken = Snapshots(threads, NoWait(), bound_bytes=None).take(str(tree), choose)
    async with held(taken) as one:
        assert sorted(content(one.path)) == ["a", "large"]


async def test_originals_are_the_versions_of_the_tree(
    tree: Path, take: Taker, threads: Threads
) -> None:
    async with held(take(tree)) as one, Directory.open(str(tree), "sealed", threads) as source:
        assert one.originals == (await source.scan(Selection())).files


# ---------------------------------------------------------------- of one moment


async def test_what_changes_while_it_is_copied_is_copied_again(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(number: int) -> None:
        if number == 1:
            make(tree, {"a": b"another", "d/b": b"TWO", "new": b"3"})
            (tree / "large").unlink()

    before_pieces(monkeypatch, change)
    async with held(take(tree)) as one:
        assert content(one.path) == content(tree)
        assert sorted(content(one.path)) == ["a", "d/b", "d/e/c", "new"]


async def test_a_directory_that_goes_with_its_files_is_not_left_behind_empty(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(number: int) -> None:
        if number == 3:
            (tree / "d/e/c").unlink()
            (tree / "d/e").rmdir()
            (tree / "d/b").unlink()

    before_pieces(monkeypatch, change)
    async with held(take(tree)) as one:
        assert sorted(os.listdir(one.path)) == ["a", "d", "large"]
        assert os.listdir(f"{one.path}/d") == []


async def test_a_sealed_tree_that_never_holds_still_is_refused_by_its_own_name(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_pieces(monkeypatch, lambda number: (tree / "a").write_bytes(b"%d" % number))
    with pytest.raises(SourceChangedError, match="changed in each of 10") as changed:
        async with take(tree):
            raise AssertionError("unreachable")

    assert changed.value.paths == ("a",)
    assert f"in {tree} " in str(changed.value)
    assert os.listdir(tree.parent) == ["ckpt_7"]


async def test_a_sealed_tree_that_vanishes_is_no_empty_one(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(_: int) -> None:
        for path in TREE:
            (tree / path).unlink(missing_ok=True)

    before_pieces(monkeypatch, empty)
    with pytest.raises(SourceChangedError, match="vanished while"):
        async with take(tree):
            raise AssertionError("unreachable")


async def test_a_log_that_grows_all_the_time_is_held_as_what_it_was(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = os.copy_file_range

    def growing(source: int, fd: int, size: int, *at: int) -> int:
        if size > 3:
            with open(tree / "large", "ab") as log:
                log.write(b"line\n")
        return copy(source, fd, size, *at)

    monkeypatch.setattr(os, "copy_file_range", growing)
    async with held(take(tree, "rolling")) as one:
        assert content(one.path) == TREE
        assert "large" not in one.originals
        assert "a" in one.originals


async def test_a_file_with_holes_may_grow_too(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(tree / "large", 20 * MIB)
    before, copy = (tree / "large").read_bytes(), os.copy_file_range

    def growing(source: int, fd: int, size: int, *at: int) -> int:
        if size > 3:
            os.truncate(tree / "large", 21 * MIB)
        return copy(source, fd, size, *at)

    monkeypatch.setattr(os, "copy_file_range", growing)
    async with held(take(tree, "rolling")) as one:
        assert (Path(one.path) / "large").read_bytes() == before


async def test_a_file_of_a_rolling_tree_that_is_rewritten_meanwhile_is_whole(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = b"N" * (len(TREE["large"]) + 5)
    copy, times = os.copy_file_range, count(1)

    def rewriting(source: int, fd: int, size: int, *at: int) -> int:
        if size < 4:
            return copy(source, fd, size, *at)
        if next(times) == 2:
            (tree / "large").write_bytes(new)
        return copy(source, fd, min(size, len(new) // 2), *at)  # as the kernel may

    monkeypatch.setattr(os, "copy_file_range", rewriting)
    async with held(take(tree, "rolling")) as one:
        assert content(one.path) == {**TREE, "large": new}
        assert "large" in one.originals


@pytest.mark.parametrize("way", ["reflink", "copy"])
async def test_a_file_of_a_rolling_tree_that_was_rewritten_is_not_cut_off(
    tree: Path, take: Taker, way: Way, request: pytest.FixtureRequest
) -> None:
    if way == "reflink":
        request.getfixturevalue("reflinks")
    new = b"N" * (len(TREE["large"]) + 5)
    take.clock.act = lambda: (tree / "large").write_bytes(new)
    async with held(take(tree, "rolling")) as one:
        assert content(one.path) == {**TREE, "large": new}
        assert "large" not in one.originals


async def test_a_file_of_a_rolling_tree_that_vanishes_is_left_out(tree: Path, take: Taker) -> None:
    take.clock.act = (tree / "large").unlink
    async with held(take(tree, "rolling")) as one:
        assert sorted(content(one.path)) == ["a", "d/b", "d/e/c"]


async def test_a_file_that_vanishes_while_it_is_read_is_held(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = os.copy_file_range

    def vanishing(source: int, fd: int, size: int, *at: int) -> int:
        if size > 3:
            (tree / "large").unlink()
        return copy(source, fd, size, *at)

    monkeypatch.setattr(os, "copy_file_range", vanishing)
    async with held(take(tree, "rolling")) as one:
        assert content(one.path) == TREE


async def test_a_commit_that_appears_inside_is_another_tree_to_begin_with(
    tree: Path, take: Taker
) -> None:
    take.clock.act = lambda: make(tree, {f"d/{MANIFEST}": b"{}"})
    with pytest.raises(BusyError, match=f"commits inside {tree} came or went"):
        async with take(tree):
            raise AssertionError("unreachable")
    async with held(take(tree)) as one:
        assert list(one.nested) == ["d"]


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
async def test_nothing_is_copied_before_a_later_write_would_show(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    copy, settled, steps = os.copy_file_range, Scan.settle_ns, list[int | str]()

    def settle_ns(self: Scan, now_ns: int) -> int:
        steps.append(self.files["large"].size_bytes)
        return settled(self, now_ns)

    def rewriting(source: int, fd: int, size: int, *at: int) -> int:
        if size > 100 and "copied" not in steps:
            steps.append("copied")
            (tree / "large").write_bytes(b"shorter")
        return copy(source, fd, size, *at)

    monkeypatch.setattr(Scan, "settle_ns", settle_ns)
    monkeypatch.setattr(os, "copy_file_range", rewriting)
    take.clock.act = lambda: steps.append("slept")
    async with held(take(tree, kind)) as one:
        assert content(one.path) == {**TREE, "large": b"shorter"}
    assert steps == [len(TREE["large"]), "slept", "copied", len(b"shorter")]


async def test_a_tree_that_is_not_there_is_said_to_be_missing(tmp_path: Path, take: Taker) -> None:
    with pytest.raises(NotFoundError, match="ckpt_8 does not exist"):
        async with take(tmp_path / "ckpt_8"):
            raise AssertionError("unreachable")


# ---------------------------------------------------------------- room


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["ioctl", "copy_file_range", "mkdir", "pwrite"])
async def test_where_there_is_no_room_nothing_is_held_and_nothing_left(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch, code: int, where: str
) -> None:
    if where == "pwrite":
        monkeypatch.setattr(os, "copy_file_range", failing(errno.ENOSYS))
    monkeypatch.setattr(fcntl if where == "ioctl" else os, where, failing(code))
    async with take(tree) as nothing:
        assert nothing is None
        assert os.listdir(tree.parent) == ["ckpt_7"]
    monkeypatch.undo()
    async with held(take(tree)) as one:
        assert content(one.path) == TREE


async def test_a_tree_that_alone_exceeds_the_bound_is_not_held(
    tree: Path, threads: Threads
) -> None:
    size = sum(map(len, TREE.values()))
    async with Taker(threads, size - 1)(tree) as nothing:
        assert nothing is None
    async with held(Taker(threads, size)(tree)):
        pass


async def test_half_of_what_is_free_is_the_bound_if_none_is_given(
    tree: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(map(len, TREE.values()))
    free = [2 * size - 1, 2 * size, size]
    monkeypatch.setattr("asyncsync.transfer.snapshot.free_bytes", lambda _: free.pop(0))
    take = Taker(threads)
    async with take(tree) as nothing:
        assert nothing is None
    async with held(take(tree)):
        with anyio.move_on_after(0.05) as waiting:
            async with take(tree):
                raise AssertionError("there is room for one")
        assert waiting.cancelled_caught, "without the first one there would be room"


async def test_who_finds_no_room_waits_until_others_are_gone(tree: Path, threads: Threads) -> None:
    size = sum(map(len, TREE.values()))
    take, order = Taker(threads, 2 * size), list[str]()
    done = anyio.Event()

    async def third() -> None:
        async with held(take(tree)) as one:
            order.append("third")
            assert content(one.path) == TREE
        done.set()

    async with anyio.create_task_group() as group:
        async with held(take(tree)):
            async with held(take(tree)):
                group.start_soon(third)
                with anyio.move_on_after(0.05):
                    await done.wait()
                order.append("second")
            with anyio.fail_after(10):
                await done.wait()

    assert order == ["second", "third"]


async def test_a_tree_without_a_sibling_on_its_file_system_is_not_held(take: Taker) -> None:
    async with take(Path("/dev/shm"), selection=Selection(include=["nothing"])) as nothing:
        assert nothing is None


async def test_whose_directory_cannot_be_written_is_not_held(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "mkdir", failing(errno.EACCES))
    async with take(tree) as nothing:
        assert nothing is None


# ---------------------------------------------------------------- what stays


async def test_cancelled_at_any_hop_nothing_is_left(
    tree: Path, take: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    hop, scope = Threads.run, anyio.CancelScope()
    hops = at = 0

    async def counted(self: Threads, function: Callable[..., object], *args: object) -> object:
        nonlocal hops
        hops += 1
        if hops == at:
            scope.cancel()
        return await hop(self, function, *args)

    monkeypatch.setattr(Threads, "run", counted)
    for at in count(1):
        hops, scope = 0, anyio.CancelScope()
        entered = False
        with scope:
            async with held(take(tree)):
                entered = True
        assert os.listdir(tree.parent) == ["ckpt_7"], at
        if not scope.cancelled_caught and hops < at:
            break
        assert entered or scope.cancelled_caught

    assert at > 6
    assert [room.budget.used for room in take.snapshots._rooms.values()] == [0]


def holder(path: Path, name: str, attempt: str) -> Path:
    """What a crash leaves."""
    made = path / holder_name(name, "snap", attempt * 32)
    make(made / "tree", {"x/y": b"1", MANIFEST: b"{}"})
    (made / ".asyncsync-lock").touch()
    return made


async def test_what_a_crash_left_is_swept_before_room_is_looked_for(
    tree: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that it fills, nothing would ever be held again otherwise."""
    dead, size = holder(tree.parent, "ckpt_7", "a"), sum(map(len, TREE.values()))
    monkeypatch.setattr(
        "asyncsync.transfer.snapshot.free_bytes", lambda _: 0 if dead.exists() else 2 * size
    )
    async with held(Taker(threads)(tree)):
        assert not dead.exists()


async def test_each_file_system_has_a_bound_of_its_own(
    tree: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(map(len, TREE.values()))
    found = iter([(1, 2 * size), (2, 2 * size)])
    monkeypatch.setattr("asyncsync.transfer.snapshot._measured", lambda _: next(found))
    take = Taker(threads)
    async with held(take(tree)):
        with anyio.fail_after(10):
            async with held(take(tree)):
                pass


@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "stale"), StalledError("no end")])
async def test_a_failure_to_remove_it_fails_nothing_else(
    error: Exception, tree: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was held for may be durable by now; the next snapshot sweeps what stays."""
    close = Holder.close

    def closes(holder: Holder) -> None:
        close(holder)
        raise error

    monkeypatch.setattr(Holder, "close", closes)
    async with held(Taker(threads)(tree)):
        pass


async def test_where_its_path_would_be_too_long_there_is_none(
    tmp_path: Path, threads: Threads
) -> None:
    deep = tmp_path
    while len(str(deep)) < 4095 - 220:
        deep /= "x" * 200
    deep /= "y" * (4095 - 40 - len(str(deep)))
    deep.mkdir(parents=True)
    (deep / "a").write_bytes(b"1")
    async with Taker(threads)(deep) as nothing:
        assert nothing is None

    assert os.listdir(deep.parent) == [deep.name]


async def test_what_a_crash_left_is_swept_and_what_lives_stays(tree: Path, take: Taker) -> None:
    dead, other = holder(tree.parent, "ckpt_7", "a"), holder(tree.parent, "ckpt_6", "b")
    mine = make(tree.parent / ".ckpt_7.asyncsync-snap-no", {"x": b"1"})
    async with held(take(tree)) as one:
        assert not dead.exists()
        assert not other.exists()
        async with held(take(tree)) as second:
            assert content(one.path) == content(second.path) == TREE
        assert content(one.path) == TREE
    assert (mine / "x").exists()


def test_a_holder_that_is_locked_is_not_swept(tree: Path) -> None:
    one = Holder(str(tree))
    other = Holder(str(tree))

    assert os.path.isdir(one.path)
    one.close()
    other.close()
    assert os.listdir(tree.parent) == ["ckpt_7"]


async def test_a_walk_does_not_see_holders(tree: Path, take: Taker, threads: Threads) -> None:
    async with (
        held(take(tree)),
        Directory.open(str(tree.parent), "sealed", threads) as source,
    ):
        assert sorted((await source.scan(Selection())).files) == [f"ckpt_7/{p}" for p in TREE]
