"""FsspecObjects: what the suites do not ask of every store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path
from threading import Lock
from time import sleep
from typing import Any

import anyio
import pytest

from asyncsync.concurrency import Threads
from asyncsync.errors import (
    AccessDeniedError,
    AsyncSyncError,
    ClashError,
    ConfigError,
    NoSpaceError,
    NotFoundError,
    PermanentError,
    RefusedError,
    SlowDownError,
    TransientError,
)
from asyncsync.storage.fsspec_objects import FsspecObjects
from asyncsync.storage.objects import Upload
from tests.fakes.webhdfs import FakeWebHdfs


@pytest.fixture
def threads() -> Iterator[Threads]:
    pool = Threads(2)
    yield pool
    pool.close()


@pytest.fixture
async def disk(threads: Threads, tmp_path: Path) -> AsyncIterator[FsspecObjects]:
    store = FsspecObjects("file", str(tmp_path), threads=threads)
    yield store
    await store.aclose()


@pytest.fixture(scope="module")
def running() -> Iterator[FakeWebHdfs]:
    with FakeWebHdfs() as fake:
        yield fake


@pytest.fixture
def cluster(running: FakeWebHdfs) -> FakeWebHdfs:
    running.clear()
    return running


@pytest.fixture
async def hdfs(threads: Threads, cluster: FakeWebHdfs) -> AsyncIterator[FsspecObjects]:
    store = FsspecObjects("webhdfs", cluster.host, threads=threads)
    yield store
    await store.aclose()


def local_files() -> Any:
    """A file system on disk whose methods a test may replace."""
    local = import_module("fsspec.implementations.local")
    return local.LocalFileSystem(skip_instance_cache=True)


async def uploads(store: FsspecObjects) -> list[Upload]:
    return [upload async for upload in store.scan_uploads("")]


def files_in(directory: Path) -> list[str]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in found)


# ---------------------------------------------------------------- connecting


def test_constructing_imports_nothing() -> None:
    code = (
        "import sys; from asyncsync.concurrency import Threads;"
        "from asyncsync.storage.fsspec_objects import FsspecObjects;"
        "FsspecObjects('webhdfs', 'host', threads=Threads());"
        "print('fsspec' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout

    assert printed == "False\n"


@pytest.mark.parametrize(
    ("scheme", "missing", "told"),
    [
        ("memory", "fsspec", "pip install 'asyncsync[fsspec]'"),
        ("webhdfs", "requests", "pip install 'asyncsync[fsspec]' requests"),
        ("az", "adlfs", "pip install 'asyncsync[fsspec]' adlfs"),
        ("hdfs", "pyarrow", "pip install 'asyncsync[fsspec]' pyarrow"),
        ("smb", "smbclient", "pip install 'asyncsync[fsspec]' smbprotocol"),
    ],
)
async def test_a_missing_package_is_named(
    threads: Threads, monkeypatch: pytest.MonkeyPatch, scheme: str, missing: str, told: str
) -> None:
    fsspec = import_module("fsspec.registry")
    monkeypatch.delitem(fsspec._registry, scheme, raising=False)
    monkeypatch.delitem(sys.modules, f"fsspec.implementations.{scheme}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    store = FsspecObjects(scheme, "place", threads=threads)

    with pytest.raises(ConfigError, match=f"{scheme}://") as caught:
        await store.head("k")
    assert str(caught.value).endswith(told)


async def test_an_unknown_protocol_is_a_configuration_error(threads: Threads) -> None:
    with pytest.raises(ConfigError, match="fsspec knows no nothing://"):
        await FsspecObjects("nothing", "place", threads=threads).examine()


async def test_it_says_that_nothing_stops_a_second_writer(disk: FsspecObjects) -> None:
    examined = await disk.examine()

    assert examined.clock_offset_s is None
    assert "no conditional writes" in examined.notes[0]


# ---------------------------------------------------------------- whole objects only


async def test_a_write_that_fails_leaves_the_old_object_and_nothing_else(
    threads: Threads, tmp_path: Path
) -> None:
    files = local_files()
    store = FsspecObjects("file", str(tmp_path), threads=threads, filesystem=files)
    await store.put("dir/k", b"old")

    def half(path: str, data: bytes) -> None:
        Path(path).write_bytes(data[:1])
        raise OSError(28, "No space left on device")

    files.pipe_file = half
    with pytest.raises(NoSpaceError, match="dir/k does not fit; free space"):
        await store.put("dir/k", b"new")

    assert (tmp_path / "dir/k").read_bytes() == b"old"
    assert files_in(tmp_path) == ["dir/k"]


async def test_what_a_crashed_write_left_is_found_and_removed(
    disk: FsspecObjects, tmp_path: Path
) -> None:
    left = tmp_path / "dir" / f"k.asyncsync-parts-{'a' * 32}" / "10001"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    seen = [info.key async for info in disk.scan("")]
    found = await uploads(disk)
    for upload in found:
        await disk.abort_upload(upload)

    assert (seen, [upload.key for upload in found]) == ([], ["dir/k"])
    assert files_in(tmp_path) == []


async def test_a_read_never_mixes_two_versions(threads: Threads, tmp_path: Path) -> None:
    files = local_files()
    store = FsspecObjects("file", str(tmp_path), threads=threads, filesystem=files)
    old = await store.put("k", b"old")
    read = files.cat_file
    replaced: list[Path] = []

    def replace_then_read(path: str, **span: int) -> bytes:
        if not replaced:
            (tmp_path / "beside").write_bytes(b"newer")
            replaced.append((tmp_path / "beside").rename(path))
        return bytes(read(path, **span))

    files.cat_file = replace_then_read
    found = await store.get("k", 0, 4)

    assert (found.data, found.info.size_bytes) == (b"newe", 5)
    assert found.info.tag != old.tag


async def test_a_body_that_ends_early_is_worth_another_try(
    threads: Threads, tmp_path: Path
) -> None:
    files = local_files()
    store = FsspecObjects("file", str(tmp_path), threads=threads, filesystem=files)
    await store.put("k", b"0123")
    files.cat_file = lambda path, **span: b"01"

    with pytest.raises(TransientError, match="ended early"):
        await store.get("k")


async def test_a_large_upload_is_joined_in_steps(
    disk: FsspecObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncsync.storage.fsspec_objects._JOIN_BYTES", 3)
    upload = await disk.create_upload("dir/k")
    parts = [await disk.put_part(upload, n, data) for n, data in ((1, b"0123456"), (3, b"789"))]
    await disk.complete_upload(upload, parts)

    assert (tmp_path / "dir/k").read_bytes() == b"0123456789"
    assert files_in(tmp_path) == ["dir/k"]


async def test_a_part_that_is_lost_while_joining_publishes_nothing(
    disk: FsspecObjects, tmp_path: Path
) -> None:
    upload = await disk.create_upload("k")
    parts = [await disk.put_part(upload, n, b"bytes") for n in (1, 2)]
    next(tmp_path.glob("k.*/00002")).unlink()

    with pytest.raises(NotFoundError, match="begin the upload again"):
        await disk.complete_upload(upload, parts)
    assert not (tmp_path / "k").exists()


# ---------------------------------------------------------------- names and directories


@pytest.mark.parametrize("key", ["", "/k", "a//b", "a/./b", "../k", "k/", "a\0b", "\udcff"])
async def test_a_key_that_is_no_path_is_refused(
    disk: FsspecObjects, tmp_path: Path, key: str
) -> None:
    with pytest.raises(RefusedError):
        await disk.put(key, b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127])
async def test_the_longest_name_can_be_put_and_uploaded(
    disk: FsspecObjects, tmp_path: Path, name: str
) -> None:
    await disk.put(f"dir/{name}", b"old")
    upload = await disk.create_upload(f"dir/{name}")
    part = await disk.put_part(upload, 1, b"new")
    found = await uploads(disk)
    await disk.complete_upload(upload, [part])

    assert found == [upload]
    assert (await disk.get(f"dir/{name}")).data == b"new"
    assert files_in(tmp_path) == [f"dir/{name}"]


async def test_empty_directories_never_show(disk: FsspecObjects, tmp_path: Path) -> None:
    (tmp_path / "dir/empty/deep").mkdir(parents=True)
    await disk.put("dir/full/k", b"x")
    level = [info.key async for info in disk.scan_level("dir/")]
    keys = [info.key async for info in disk.scan("dir/")]

    assert (level, keys) == (["dir/full/"], ["dir/full/k"])
    with pytest.raises(NotFoundError):
        await disk.head("dir/empty")


async def test_an_object_takes_the_place_of_an_empty_directory(
    disk: FsspecObjects, tmp_path: Path
) -> None:
    (tmp_path / "k/empty").mkdir(parents=True)
    await disk.put("k", b"x")

    assert (tmp_path / "k").read_bytes() == b"x"


async def test_an_upload_may_wait_for_the_object_in_its_way_to_go(disk: FsspecObjects) -> None:
    await disk.put("dir/was_file", b"x")
    upload = await disk.create_upload("dir/was_file/now/dir")
    part = await disk.put_part(upload, 1, b"bytes")
    found = [one async for one in disk.scan_uploads("dir/")]
    with pytest.raises(ClashError, match="dir/was_file is an object"):
        await disk.complete_upload(upload, [part])
    await disk.delete("dir/was_file")
    await disk.complete_upload(upload, [part])

    assert found == [upload]
    assert [info.key async for info in disk.scan("")] == ["dir/was_file/now/dir"]
    assert await uploads(disk) == []


async def test_what_may_not_be_read_is_not_left_out_of_a_listing(
    threads: Threads, tmp_path: Path
) -> None:
    files = local_files()
    store = FsspecObjects("file", str(tmp_path), threads=threads, filesystem=files)
    await store.put("a/k", b"x")
    listed = files.ls

    def ls(path: str, **options: bool) -> Any:
        if path.endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return listed(path, **options)

    files.ls = ls
    with pytest.raises(AccessDeniedError):
        [info async for info in store.scan("")]


# ---------------------------------------------------------------- WebHDFS


async def test_webhdfs_sends_bytes_to_the_datanode(
    hdfs: FsspecObjects, cluster: FakeWebHdfs
) -> None:
    await hdfs.put("run/k", b"bytes")
    found = await hdfs.get("run/k", 1, 3)

    assert (found.data, cluster.nodes["/run/k"].data) == (b"yt", b"bytes")
    moved = [request for request in cluster.requests if request[0] in ("CREATE", "APPEND", "OPEN")]
    assert [server for _, _, server in moved] == ["name", "data"] * 3


async def test_webhdfs_replaces_by_rename_and_the_old_file_is_never_deleted(
    hdfs: FsspecObjects, cluster: FakeWebHdfs
) -> None:
    await hdfs.put("run/k", b"old")
    cluster.requests.clear()
    await hdfs.put("run/k", b"new")
    deleted = [path for operation, path, _ in cluster.requests if operation == "DELETE"]

    assert cluster.nodes["/run/k"].data == b"new"
    assert "/run/k" not in deleted
    assert sorted(cluster.nodes) == ["/", "/run", "/run/k"]


@pytest.mark.parametrize(
    ("operation", "status", "name", "kind"),
    [
        ("GETFILESTATUS", 403, "AccessControlException", AccessDeniedError),
        ("GETFILESTATUS", 500, "IOException", PermanentError),
        ("MKDIRS", 503, "ServiceUnavailable", SlowDownError),
        ("CREATE data", 507, "IOException", TransientError),
    ],
)
async def test_errors_of_webhdfs_become_ours(
    hdfs: FsspecObjects,
    cluster: FakeWebHdfs,
    operation: str,
    status: int,
    name: str,
    kind: type[AsyncSyncError],
) -> None:
    cluster.refused[operation] = (status, name)

    with pytest.raises(kind, match="webhdfs:// object run/k"):
        await hdfs.put("run/k", b"x")


async def test_a_lost_connection_is_worth_another_try(
    hdfs: FsspecObjects, cluster: FakeWebHdfs
) -> None:
    cluster.cut.add("GETFILESTATUS")

    with pytest.raises(TransientError, match="try again") as caught:
        await hdfs.head("run/k")
    assert cluster.host not in str(caught.value)


async def test_a_file_system_with_one_connection_is_asked_one_thing_at_a_time(
    threads: Threads, tmp_path: Path
) -> None:
    busy = Lock()

    class Ftp(import_module("fsspec.implementations.local").LocalFileSystem):  # type: ignore[misc]
        protocol = "ftp"

        def info(self, path: Any, **options: Any) -> Any:
            assert busy.acquire(blocking=False), "two at once"
            try:
                sleep(0.001)  # room for another thread
                return super().info(path, **options)
            finally:
                busy.release()

    files = Ftp(skip_instance_cache=True)
    store = FsspecObjects("ftp", str(tmp_path), threads=threads, filesystem=files)
    async with anyio.create_task_group() as group:
        for name in ("a", "b", "c"):
            group.start_soon(store.put, name, b"x")

    assert files_in(tmp_path) == ["a", "b", "c"]
