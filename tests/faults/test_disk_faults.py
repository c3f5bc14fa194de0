"""Disks that are full, broken, read-only, forbidden, or that lie."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from unittest import mock

import anyio
import pytest

from asyncsync.errors import (
    AccessDeniedError,
    AsyncSyncError,
    BusyError,
    ConflictError,
    DeviceError,
    IntegrityError,
    NoSpaceError,
    TransientError,
)
from asyncsync.storage import Intent, NewFile
from asyncsync.storage.local import fs
from asyncsync.storage.local.publish import Attempt

from .crash_scenarios import (
    FIRST,
    GROUPS,
    SCENARIOS,
    SECOND,
    TREE,
    Scenario,
    Tree,
    assert_tidy,
    look,
    manifest_of,
    open_store,
    put,
    without_renameat2,
)
from .loop_disk import LoopDisk

REPLACE = SCENARIOS["replace"]
NOBODY = 65534


# ---------------------------------------------------------------- one call fails


# Where the package reaches each system call.
_CALLS: dict[str, tuple[object, str]] = {
    **{
        name: (os, name)
        for name in (
            "close",
            "fchmod",
            "fsync",
            "ftruncate",
            "link",
            "listdir",
            "mkdir",
            "open",
            "preadv",
            "pwrite",
            "rename",
            "rmdir",
            "unlink",
        )
    },
    "openat2": (fs, "_openat2"),
    "renameat2": (fs, "_renameat2"),
}


@contextmanager
def failing(call: str, code: int, number: int, *, sticky: bool = False) -> Iterator[list[int]]:
    """Fail the `number`-th call, or all from then on; yields how often it was made."""
    place, name = _CALLS[call]
    real: Callable[..., Any] = getattr(place, name)
    made = [0]

    def fake(*args: Any, **more: Any) -> Any:
        if call == "close" and not _is_written(*args):
            return real(*args, **more)
        made[0] += 1
        if not (made[0] == number or (sticky and made[0] > number)):
            return real(*args, **more)
        if call == "close":
            real(*args)  # as Linux does: the descriptor is gone, whatever the answer
        raise OSError(code, os.strerror(code))

    with mock.patch.object(place, name, fake):
        yield made


def _is_written(fd: int) -> bool:
    """Whether closing it can fail: a file that was open for writing."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    return stat.S_ISREG(os.fstat(fd).st_mode) and flags & os.O_ACCMODE != os.O_RDONLY


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def base() -> Iterator[str]:
    """A directory in memory where there is one, that everybody may enter."""
    shm = "/dev/shm"
    folder = mkdtemp(prefix="faults-", dir=shm if os.access(shm, os.W_OK) else None)
    os.chmod(folder, 0o755)
    yield folder
    rmtree(folder)


async def _fail_each(base: str, scenario: Scenario, call: str, *, sticky: bool) -> int:
    """Fail at the first, second, ... call; return how many there are."""
    for number in count(1):
        folder = f"{base}/{number}"
        os.mkdir(folder)
        await scenario.prepare(folder)
        before = _descriptors()
        with failing(call, errno.EIO, number, sticky=sticky) as made:
            error = await _error_of(scenario, folder)
        if made[0] < number:
            assert error is None
            return number - 1
        await _check_after(scenario, folder, error, f"{call} {number}")
        assert _descriptors() == before, f"{call} {number} leaks"
        rmtree(folder)
    raise AssertionError("unreachable")


async def _error_of(scenario: Scenario, folder: str) -> AsyncSyncError | None:
    try:
        await scenario.run(folder)
    except AsyncSyncError as exc:
        return exc
    return None


async def _check_after(
    scenario: Scenario, folder: str, error: AsyncSyncError | None, point: str
) -> None:
    seen = await look(folder)
    assert seen in ((scenario.before, scenario.after) if error else (scenario.after,)), point
    await scenario.run(folder)
    assert await look(folder) == scenario.after, point
    assert_tidy(folder, scenario.after)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("call", _CALLS)
@pytest.mark.parametrize("name", [*SCENARIOS, *GROUPS])
async def test_any_call_that_fails_leaves_a_whole_tree_and_the_next_run_finishes(
    name: str, call: str, sticky: bool, base: str
) -> None:
    await _fail_each(base, {**SCENARIOS, **GROUPS}[name], call, sticky=sticky)


@pytest.mark.parametrize("name", ["new", "update", "replace"])
async def test_a_file_whose_flush_failed_is_never_flushed_again_but_given_up(
    name: str, base: str
) -> None:
    scenario = SCENARIOS[name]
    await scenario.prepare(base)
    flushed: list[tuple[int, int]] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        found = os.fstat(fd)
        flushed.append((found.st_dev, found.st_ino))
        if stat.S_ISREG(found.st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with mock.patch("os.fsync", fsync), pytest.raises(DeviceError) as caught:
        await scenario.run(base)

    assert caught.value.side == "target"
    assert len(flushed) == len(set(flushed))
    assert await look(base) == scenario.before
    if scenario.before:
        assert_tidy(base, scenario.before)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "close"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EIO, DeviceError),
        (errno.ESTALE, TransientError),
    ],
    ids=["ENOSPC", "EDQUOT", "EIO", "ESTALE"],
)
async def test_an_error_of_the_target_is_reported_as_its_class_and_as_the_targets(
    call: str, code: int, kind: type[AsyncSyncError], base: str
) -> None:
    await put_first(base)
    with pytest.raises(kind) as caught:
        await write_and_commit(base, SECOND, writing=failing(call, code, 1))

    assert caught.value.side == "target"
    assert await look(base) == FIRST
    assert_tidy(base, FIRST)


async def put_first(base: str) -> None:
    """Commit the first version."""
    with open_store(base) as store:
        await put(store, FIRST)


async def write_and_commit(
    base: str,
    tree: Tree,
    *,
    without: str = "",
    writing: AbstractContextManager[object] | None = None,
    meanwhile: Callable[[], object] = bool,
) -> None:
    """Commit `tree` over whatever is there.

    Args:
        without: a file that is not written.
        writing: entered while the files are.
        meanwhile: what somebody else does between that and the commit.
    """
    manifest = manifest_of(tree)
    files = [(NewFile(p, len(data)), data) for p, data in tree.files.items() if p != without]
    with open_store(base) as store:
        expect = (await store.read_manifest(TREE)).identity if os.listdir(base) else None
        intent = Intent(attempt=manifest.header.attempt, expect=expect)
        async with store.begin(TREE, intent) as writer:
            with writing or nullcontext():
                await writer.write_many(files)
            meanwhile()
            await writer.commit(manifest)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP], ids=["EINVAL", "ENOTSUP"])
@pytest.mark.parametrize("name", ["new", "update", "replace"])
async def test_where_directories_cannot_be_flushed_the_durability_is_called_reduced(
    name: str, code: int, base: str
) -> None:
    scenario = SCENARIOS[name]
    await scenario.prepare(base)
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        real(fd)

    with mock.patch("os.fsync", fsync), open_store(base) as store:
        wanted = scenario.after or FIRST
        durability = await put(store, wanted, in_place=name == "update")

    assert durability == "reduced"
    assert await look(base) == wanted


# ---------------------------------------------------------------- file systems that know less


@contextmanager
def losing_answers_of_renames(number: int) -> Iterator[list[int]]:
    """The `number`-th rename works but is reported as "no such file": a repeat after a lost answer.

    Only plain renames: network file systems have no others.
    """
    real, made = os.rename, [0]

    def rename(*args: Any, **more: Any) -> None:
        real(*args, **more)
        made[0] += 1
        if made[0] == number:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    with without_renameat2(), mock.patch("os.rename", rename):
        yield made


@pytest.mark.parametrize("name", ["new", "update", "replace", "delete"])
async def test_a_rename_whose_answer_got_lost_counts_as_done(name: str, base: str) -> None:
    scenario = SCENARIOS[name]
    for number in count(1):
        folder = f"{base}/{number}"
        os.mkdir(folder)
        await scenario.prepare(folder)
        with losing_answers_of_renames(number) as made:
            await scenario.run(folder)

        assert await look(folder) == scenario.after
        assert_tidy(folder, scenario.after)
        if made[0] < number:
            break
    assert number > 1


async def test_between_the_two_renames_of_a_living_writer_readers_are_told_to_try_again(
    base: str,
) -> None:
    await put_first(base)
    real = Attempt._take_name
    seen: list[str] = []

    def take_name(attempt: Attempt) -> None:
        with pytest.raises(BusyError, match="being replaced; try again"):
            anyio.run(look, base)
        seen.append("busy")
        real(attempt)

    with without_renameat2(), mock.patch.object(Attempt, "_take_name", take_name):
        await REPLACE.run(base)

    assert seen == ["busy"]
    assert await look(base) == SECOND


async def test_between_the_two_renames_of_a_dead_writer_the_first_reader_finishes_for_it(
    base: str,
) -> None:
    await put_first(base)
    die = mock.patch.object(Attempt, "_take_name", side_effect=KeyboardInterrupt)
    no_way_back = mock.patch("asyncsync.storage.local.publish.put_back")
    keep = mock.patch("asyncsync.storage.local.stage._discard")
    with without_renameat2(), die, no_way_back, keep, pytest.raises(KeyboardInterrupt):
        await REPLACE.run(base)
    assert not os.path.exists(f"{base}/{TREE}")

    assert await look(base) == SECOND
    assert_tidy(base, SECOND)


@pytest.mark.parametrize("limits", [ExitStack, without_renameat2], ids=["renameat2", "rename"])
async def test_a_directory_that_appears_meanwhile_is_not_replaced_even_when_empty(
    limits: Callable[[], Any], base: str
) -> None:
    inodes: list[int] = []

    def appear() -> None:
        os.mkdir(f"{base}/{TREE}")
        inodes.append(os.stat(f"{base}/{TREE}").st_ino)

    with limits(), pytest.raises(ConflictError):
        await write_and_commit(base, FIRST, meanwhile=appear)

    assert [os.stat(f"{base}/{TREE}").st_ino] == inodes
    assert_tidy(base, Tree({}, ()), committed=False)


async def test_somebody_elses_file_in_a_version_that_is_replaced_is_kept(base: str) -> None:
    await put_first(base)

    await write_and_commit(
        base,
        SECOND,
        meanwhile=partial(Path(f"{base}/{TREE}/theirs").write_bytes, b"precious"),
    )
    with open_store(base) as store:
        await put(store, SECOND)

    assert [path.read_bytes() for path in Path(base).rglob("theirs")] == [b"precious"]


# ---------------------------------------------------------------- what a tree must be to be one


async def test_a_commit_of_files_that_never_arrived_is_refused(base: str) -> None:
    with pytest.raises(IntegrityError, match="never arrived"):
        await write_and_commit(base, FIRST, without="b/three")

    assert await look(base) is None


async def test_a_file_that_lost_its_tail_is_not_read_as_if_it_were_whole(base: str) -> None:
    await put_first(base)
    os.truncate(f"{base}/{TREE}/a/one", 600)
    with open_store(base) as store:
        manifest = await store.read_manifest(TREE)

        async with store.open(TREE, manifest) as reader:
            with pytest.raises(IntegrityError, match="a/one"):
                await reader.read_many([NewFile("a/one", 700)])
            with pytest.raises(IntegrityError, match="a/one"):
                await reader.read(NewFile("a/one", 700), 500, 700)


@pytest.mark.parametrize("name", ["update", "replace"])
async def test_files_that_are_no_longer_listed_are_gone_after_the_next_version(
    name: str, base: str
) -> None:
    scenario = SCENARIOS[name]
    await scenario.prepare(base)

    await scenario.run(base)

    assert_tidy(base, scenario.after)


async def test_a_delete_removes_links_and_never_what_they_lead_to(base: str) -> None:
    theirs = Path(base, "theirs")
    theirs.mkdir()
    (theirs / "two").write_bytes(b"precious")
    await put_first(base)
    rmtree(f"{base}/{TREE}/a")
    os.symlink(theirs, f"{base}/{TREE}/a")
    with open_store(base) as store:
        deleted = await store.delete(TREE)

    assert deleted.kept == ("a",)
    assert (theirs / "two").read_bytes() == b"precious"


async def test_a_delete_that_meets_a_damaged_manifest_inside_deletes_nothing(base: str) -> None:
    await put_first(base)
    os.mkdir(f"{base}/{TREE}/zz")
    Path(f"{base}/{TREE}/zz/.asyncsync.json").write_bytes(b"{")
    with open_store(base) as store, pytest.raises(IntegrityError):
        await store.delete(TREE)

    assert await look(base) == FIRST


# ---------------------------------------------------------------- full, read-only, forbidden


@pytest.fixture
def disk() -> Iterator[Path]:
    """A mount point of a file system in memory that is small in every respect."""
    folder = Path(mkdtemp(prefix="small-"))
    _mount("-t", "tmpfs", "-o", "size=1m,nr_inodes=60", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def _mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True)


_TOO_LARGE = Tree({"large": b"x" * (2 << 20)})
_TOO_MANY = Tree({f"d/{number}": b"x" for number in range(80)})


@pytest.mark.root
@pytest.mark.parametrize("in_place", [False, True], ids=["replace", "update"])
@pytest.mark.parametrize("tree", [_TOO_LARGE, _TOO_MANY], ids=["blocks", "inodes"])
async def test_a_full_disk_leaves_the_old_version_and_the_next_run_with_space_succeeds(
    tree: Tree, in_place: bool, disk: Path
) -> None:
    base = str(disk)
    await put_first(base)
    with open_store(base) as store:
        with pytest.raises(NoSpaceError) as caught:
            await put(store, tree, in_place=in_place)
        assert caught.value.side == "target"
        assert await look(base) == FIRST
        assert_tidy(base, FIRST)

        _mount("-o", "remount,size=8m,nr_inodes=999", base)
        await put(store, tree, in_place=in_place)

    assert await look(base) == tree
    assert_tidy(base, tree)


@pytest.mark.root
@pytest.mark.parametrize("what", ["blocks", "inodes"])
async def test_a_tree_can_be_deleted_from_a_full_disk(what: str, disk: Path) -> None:
    base = str(disk)
    await put_first(base)
    _fill(disk, what)
    with open_store(base) as store:
        await store.delete(TREE)

    assert await look(base) is None


def _fill(disk: Path, what: str) -> None:
    for number in range(10_000):
        try:
            (disk / f"fill-{number}").write_bytes(bytes(4096) if what == "blocks" else b"")
        except OSError:
            return
    raise AssertionError("the disk never got full")


@pytest.mark.root
@pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="no loop devices here")
@pytest.mark.parametrize("name", ["new", "update", "replace"])
async def test_a_disk_that_turns_read_only_halfway_recovers_when_it_is_writable_again(
    name: str, tmp_path: Path
) -> None:
    scenario, base = SCENARIOS[name], str(tmp_path / "ext4" / "base")
    with LoopDisk(tmp_path, "ext4") as disk:
        os.mkdir(base)
        await scenario.prepare(base)
        disk.flush()
        with turning_read_only(disk), pytest.raises(AccessDeniedError, match="Read-only") as caught:
            await scenario.run(base)
        seen = await look(base)

        disk.mount_again()
        await scenario.run(base)

        assert caught.value.side == "target"
        assert seen == scenario.before
        assert await look(base) == scenario.after
        assert_tidy(base, scenario.after)


@contextmanager
def turning_read_only(disk: LoopDisk) -> Iterator[None]:
    """The disk does so itself, as after an error, in the middle: before the second file is made."""
    real = fs.create_file
    made = [0]

    def create_file(directory: int, path: str, mode: int = 0o600) -> int:
        made[0] += 1
        if made[0] == 2:
            disk.turn_read_only()
        return real(directory, path, mode)

    with mock.patch("asyncsync.storage.local.stage.create_file", create_file):
        yield


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, in every thread of this process."""
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


@pytest.mark.root
async def test_where_nothing_may_be_written_nothing_is_and_the_error_says_so(base: str) -> None:
    with open_store(base) as store, as_nobody(), pytest.raises(AccessDeniedError) as caught:
        await put(store, FIRST)

    assert caught.value.side == "target"
    assert os.listdir(base) == []


@pytest.mark.root
@pytest.mark.parametrize("name", ["update", "replace", "delete"])
async def test_somebody_elses_tree_cannot_be_changed_and_stays_whole(name: str, base: str) -> None:
    scenario = SCENARIOS[name]
    await scenario.prepare(base)
    with as_nobody(), pytest.raises(AccessDeniedError) as caught:
        await scenario.run(base)

    assert caught.value.side == "target"
    assert await look(base) == FIRST
    assert_tidy(base, FIRST)


@pytest.mark.root
async def test_a_tree_whose_parent_is_closed_is_replaced_file_by_file(base: str) -> None:
    await put_first(base)
    for folder, _, files in os.walk(f"{base}/{TREE}"):
        for path in (folder, *(f"{folder}/{name}" for name in files)):
            os.chown(path, NOBODY, NOBODY)
    inode = os.stat(f"{base}/{TREE}").st_ino

    with as_nobody():
        await REPLACE.run(base)

    assert await look(base) == SECOND
    assert os.stat(f"{base}/{TREE}").st_ino == inode


@pytest.mark.root
async def test_a_file_that_may_not_be_read_is_an_error_of_the_source(base: str) -> None:
    await put_first(base)
    os.chmod(f"{base}/{TREE}/a/one", 0o600)
    with as_nobody(), pytest.raises(AccessDeniedError) as caught:
        await look(base)

    assert caught.value.side == "source"


async def test_an_attempt_that_runs_out_of_descriptors_says_so_and_leaves_nothing(
    base: str,
) -> None:
    await put_first(base)
    with (
        failing("openat2", errno.EMFILE, 3, sticky=True),
        pytest.raises(TransientError, match="ulimit"),
    ):
        await REPLACE.run(base)

    assert await look(base) == FIRST
    await REPLACE.run(base)
    assert_tidy(base, SECOND)
