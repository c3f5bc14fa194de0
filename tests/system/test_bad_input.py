"""Bad input through the library: one clear line of the right class, and nothing else touched."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

import asyncsync
from asyncsync.digest import Hasher, digest
from asyncsync.errors import (
    AsyncSyncError,
    ClashError,
    ConfigError,
    FormatError,
    IntegrityError,
    NotCommittedError,
    NotFoundError,
    RefusedError,
)
from asyncsync.manifest import (
    DirectoryEntry,
    Entry,
    FileEntry,
    Header,
    Kind,
    Manifest,
    NestedEntry,
    _identity,
    encode,
)
from asyncsync.names import MANIFEST, sort_key

from .trees import content, disk, make

MIB, GIB = 1024**2, 1024**3
TREE: dict[str, bytes | None] = {"weights": bytes(range(256)) * 2000, "sub/state": b"step 7"}
NOBODY = 65534

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Place:
    """What a bad input is made of: a source, and a store that holds two commits of it."""

    work: Path
    source: Path
    store: Path

    @property
    def ckpt(self) -> Path:
        return self.store / "ckpt"

    @property
    def out(self) -> Path:
        """Where nothing is, and nothing may be afterwards."""
        return self.work / "out" / "there"

    def new(self, name: str) -> Path:
        return make(self.work / name, {})

    def link(self, name: str, leads_to: Path) -> Path:
        (self.work / name).symlink_to(leads_to)
        return self.work / name

    def fifo(self, name: str) -> Path:
        os.mkfifo(self.work / name)
        return self.work / name

    def file(self, name: str) -> Path:
        (self.work / name).write_bytes(b"mine")
        return self.work / name


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    place = Place(tmp_path, make(tmp_path / "source", TREE), tmp_path / "store")
    await asyncsync.sync_up(place.source, place.ckpt)
    await asyncsync.sync_up(place.source, place.store / "other", kind="rolling")
    return place


def _up(source: Path, target: Path | str) -> Call:
    return lambda: asyncsync.sync_up(source, target)


def _down(source: Path | str, target: Path) -> Call:
    return lambda: asyncsync.sync_down(source, target)


def _state(directory: Path) -> dict[str, tuple[object, ...]]:
    """Every name and all of every file. A lock, taken and given back, changes only times."""
    return {
        path: found if stat.S_ISREG(int(str(found[1]))) else found[:2]
        for path, found in disk(directory).items()
    }


async def _assert_bad(
    place: Place, call: Call, error: type[AsyncSyncError], *says: str
) -> AsyncSyncError:
    """Exactly this error, on one line with these words, and not a trace of it on the disk."""
    before = _state(place.work)
    with pytest.raises(error) as caught:
        await call()

    text = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in text
    for word in says:
        assert word in text
    assert _state(place.work) == before
    return caught.value


# ---------------------------------------------------------------- both ends

Case = tuple[Callable[[Place], Call], type[AsyncSyncError], tuple[str, ...]]

ENDS: dict[str, Case] = {
    "unknown scheme": (
        lambda p: _up(p.source, "bogus://x/y"),
        ConfigError,
        ("bogus://", "asyncsync[fsspec]"),
    ),
    "unknown scheme, down": (lambda p: _down("bogus://x/y", p.out), ConfigError, ("fsspec",)),
    "a scheme of fsspec": (lambda p: _up(p.source, "az://box/x"), ConfigError, ("adlfs", "pip")),
    "another of fsspec": (lambda p: _up(p.source, "sftp://h/x"), ConfigError, ("paramiko", "pip")),
    "a head that was not joined": (
        lambda p: _up(p.source, "peer://h:1/x"),
        ConfigError,
        ("no token for the head", "asyncsync join"),
    ),
    "no location": (lambda p: _up(p.source, ""), ConfigError, ("empty",)),
    "source elsewhere": (
        lambda p: lambda: asyncsync.sync_up("memory://x/y", p.out),
        ConfigError,
        ("memory://x/y", "local directory"),
    ),
    "source missing": (
        lambda p: _up(p.work / "no", p.out),
        NotFoundError,
        ("source", "/no does not exist", "spelling"),
    ),
    "source is a file": (
        lambda p: _up(p.source / "weights", p.out),
        ConfigError,
        ("source", "/weights is a file", "directory"),
    ),
    "source is a fifo": (
        lambda p: _up(p.fifo("fifo"), p.out),
        ConfigError,
        ("source", "/fifo is a file"),
    ),
    "source empty, a sealed commit there": (
        lambda p: _up(p.new("empty"), p.ckpt),
        RefusedError,
        ("/empty is empty", "/ckpt holds 2 files", "mounted"),
    ),
    "source empty, a rolling commit there": (
        lambda p: _up(p.new("empty"), p.store / "other"),
        RefusedError,
        ("/empty is empty", "/other holds 2 files"),
    ),
    "source inside target": (
        lambda p: _up(p.source / "sub", p.source),
        ConfigError,
        ("/source/sub is inside", "choose a place outside"),
    ),
    "source inside target, by a link": (
        lambda p: _up(p.source / "sub", p.link("link", p.source)),
        ConfigError,
        ("/source/sub is inside",),
    ),
    "target inside source": (
        lambda p: _up(p.source, p.source / "new"),
        ConfigError,
        ("/source/new is inside", "choose a place outside"),
    ),
    "target inside source, by a link": (
        lambda p: _up(p.link("link", p.source), p.source / "new"),
        ConfigError,
        ("/source/new is inside",),
    ),
    "target inside source, down": (
        lambda p: _down(p.ckpt, p.ckpt / "new"),
        ConfigError,
        ("/ckpt/new is inside",),
    ),
    "the same directory": (
        lambda p: _up(p.source, f"file://{p.source}"),
        ConfigError,
        ("the same directory", "/source"),
    ),
    "the same directory, spelled otherwise": (
        lambda p: _up(p.source, p.source / ".." / "source"),
        ConfigError,
        ("the same directory",),
    ),
    "the same directory, by a link": (
        lambda p: _up(p.source, p.link("link", p.source)),
        ConfigError,
        ("the same directory", "/source"),
    ),
    "the same directory, by a link above": (
        lambda p: _down(p.ckpt, p.link("link", p.store) / "ckpt"),
        ConfigError,
        ("the same directory",),
    ),
    "target is a file": (
        lambda p: _up(p.source, p.file("file")),
        ConfigError,
        ("target", "/file is a file", "directory"),
    ),
    "target is a file, down": (
        lambda p: _down(p.ckpt, p.file("file")),
        ConfigError,
        ("target", "/file is a file", "directory"),
    ),
    "target is inside a file, down": (
        lambda p: _down(p.ckpt, p.file("file") / "x"),
        ConfigError,
        ("target", "/file is a file", "directory"),
    ),
    "nothing to fetch": (lambda p: _down(p.work / "no", p.out), NotFoundError, ("no",)),
    "nothing committed": (lambda p: _down(p.source, p.out), NotCommittedError, ("source",)),
    "down onto a file of mine": (
        lambda p: _down(p.ckpt, make(p.work / "mine", {"weights": b"mine"})),
        ClashError,
        ("weights", "/mine"),
    ),
}


@pytest.mark.parametrize("case", ENDS)
async def test_a_bad_end_is_one_line_of_its_class_and_nothing_is_touched(
    place: Place, case: str
) -> None:
    arrange, error, says = ENDS[case]
    await _assert_bad(place, arrange(place), error, *says)


async def test_a_target_inside_a_file_is_one_line_that_names_it(place: Place) -> None:
    call = _up(place.source, place.file("file") / "x")
    with pytest.raises(AsyncSyncError, match=r"/file/x: .*; name another place") as caught:
        await call()

    assert "\n" not in str(caught.value)
    assert (place.work / "file").read_bytes() == b"mine"


# ---------------------------------------------------------------- secrets

SECRET = "hunter2"  # what every password in an example is
WITH_SECRETS = [
    f"s3://AKIA:{SECRET}@bucket/x",
    f"s3://{SECRET}@bucket/x",
    f"s3://bucket/x?secret_access_key={SECRET}",
    f"s3://bucket/x?region=eu&aws_session_token={SECRET}",
    f"s3://bucket/x?region=eu&other={SECRET}",
    f"S3://bucket/x?SECRET={SECRET}",
    f"gs://bucket/x?token={SECRET}",
    f"az://box/x?sv=1&sig={SECRET}",
    f"https://user:{SECRET}@host/x",
    f"https://host/x?X-Amz-Signature={SECRET}",
    f"file:///x?password={SECRET}",
    f"memory://me:{SECRET}@box/x",
    f"bogus://box/x?api_key={SECRET}",
    f"peer://token:{SECRET}@host:1/x",
]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("location", WITH_SECRETS)
async def test_a_secret_in_a_location_is_refused_and_never_echoed(
    place: Place, location: str
) -> None:
    scheme = location.partition(":")[0].lower()
    advice = "not other" if "other=" in location else "leave it out"
    for call in (_up(place.source, location), _down(location, place.out)):
        error = await _assert_bad(place, call, ConfigError, f"{scheme}://", advice)

        assert all(SECRET not in f"{one!r} {one}" for one in _chain(error))


# ---------------------------------------------------------------- kinds of files


def _symlink(path: Path) -> None:
    path.symlink_to("weights")


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's address has room for 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


KINDS: dict[str, Callable[[Path], None]] = {
    "a symbolic link": _symlink,
    "a fifo": os.mkfifo,
    "a socket": _socket,
    "a device": _device,
}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_no_file_is_refused_by_name_in_a_sealed_tree(place: Place, kind: str) -> None:
    KINDS[kind](place.source / "sub" / "odd")
    for target in (place.out, place.ckpt):
        call = _up(place.source, target)
        error = await _assert_bad(place, call, RefusedError, f"sub/odd ({kind})", "exclude")

        assert error.paths == ("sub/odd",)


# ---------------------------------------------------------------- hostile manifests

_EMPTY = digest(b"")


def _file(path: str, size_bytes: int = 0) -> FileEntry:
    return FileEntry(path, size_bytes, _EMPTY)


def _plant(tree: Path, *entries: Entry) -> Path:
    """A manifest whose own sums are right, whatever it lists."""
    ordered = tuple(sorted(entries, key=lambda entry: sort_key(entry.path)))
    files = [entry for entry in ordered if isinstance(entry, FileEntry)]
    header = Header(
        name=tree.name,
        attempt="0" * 32,
        files=len(files),
        size_bytes=sum(file.size_bytes for file in files),
        identity=_identity(ordered),
    )
    return make(tree, {MANIFEST: b"".join(encode(Manifest(header, ordered)))})


HOSTILE: dict[str, tuple[Entry, ...]] = {
    "climbs out": (_file("../victim"),),
    "climbs out from below": (_file("a/../../victim"),),
    "an empty directory outside": (DirectoryEntry("../victim"),),
    "a commit outside": (NestedEntry("../other", _EMPTY),),
    "absolute": (_file("/tmp/victim"),),
    "the tree itself": (_file("."),),
    "nothing": (_file(""),),
    "an empty component": (_file("a//b"),),
    "a NUL": (_file("a\0b"),),
    "twice": (_file("a"), _file("a")),
    "a file and a directory": (_file("a"), _file("a/b")),
    "a file and an empty directory": (_file("a"), DirectoryEntry("a")),
    "into a commit inside": (NestedEntry("a", _EMPTY), _file("a/b")),
    "our manifest": (_file(MANIFEST),),
    "our staging": (_file(".asyncsync-next/a"),),
    "too deep": (_file("/".join("d" * 65)),),
    "too long": (_file("x" * 256),),
    "larger than anything": (_file("a", 2**62),),
}


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_a_hostile_manifest_is_refused_whatever_is_done_with_it(
    place: Place, hostile: str
) -> None:
    evil = _plant(place.store / "evil", *HOSTILE[hostile])
    make(place.store, {"victim": b"precious", "evil/a": b""})
    calls: list[Call] = [
        _down(evil, place.out),
        lambda: asyncsync.verify(evil),
        lambda: asyncsync.delete(evil),
        _up(place.source, evil),
        lambda: asyncsync.sync_up(place.source, evil, replace=True),
    ]
    for call in calls:
        await _assert_bad(place, call, IntegrityError, "evil")


async def test_an_honest_manifest_planted_in_the_same_way_is_read(place: Place) -> None:
    _plant(make(place.store / "good", {"a/b": b"", "c": b""}), _file("a/b"), _file("c"))
    await asyncsync.sync_down(place.store / "good", place.out)

    assert content(place.out) == {"a/b": b"", "c": b""}


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], type[AsyncSyncError], str]] = {
    "a byte changed": (lambda text: text.replace(b"weights", b"weightz"), IntegrityError, "ckpt"),
    "truncated": (lambda text: text[: len(text) // 2], IntegrityError, "ckpt"),
    "its last line missing": (
        lambda text: b"".join(text.splitlines(keepends=True)[:-1]),
        IntegrityError,
        "truncated",
    ),
    "empty": (lambda text: b"", IntegrityError, "ckpt"),
    "something else": (lambda text: b'{"step": 7}\n', IntegrityError, "not a manifest"),
    "deeply nested": (lambda text: b"[" * 100_000, IntegrityError, "not a manifest"),
    "more after its end": (lambda text: text + b"\n", IntegrityError, "digest"),
    "newer": (
        lambda text: text.replace(b'"asyncsync":1', b'"asyncsync":2', 1),
        FormatError,
        "upgrade",
    ),
    "another digest": (lambda text: text.replace(b"blake3", b"blake9", 1), FormatError, "blake9"),
}


@pytest.mark.parametrize("damage", DAMAGED)
async def test_a_damaged_manifest_is_named_and_the_other_commit_stays_whole(
    place: Place, damage: str
) -> None:
    change, error, says = DAMAGED[damage]
    manifest = place.ckpt / MANIFEST
    manifest.write_bytes(change(manifest.read_bytes()))
    for call in (
        _down(place.ckpt, place.out),
        _up(place.source, place.ckpt),
        lambda: asyncsync.verify(place.ckpt),
        lambda: asyncsync.delete(place.ckpt),
    ):
        await _assert_bad(place, call, error, says, "ckpt")

    assert (await asyncsync.verify(place.store / "other")).ok


# ---------------------------------------------------------------- damaged files


def _flip(data: bytes) -> bytes:
    return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_flip, id="a bit flipped"),
        pytest.param(lambda data: data[:-1], id="a byte lost"),
        pytest.param(lambda data: b"", id="all lost"),
    ],
)
async def test_a_damaged_file_is_named_and_nothing_arrives(
    place: Place, change: Callable[[bytes], bytes]
) -> None:
    weights = place.ckpt / "weights"
    weights.write_bytes(change(weights.read_bytes()))
    error = await _assert_bad(place, _down(place.ckpt, place.out), IntegrityError, "weights")
    report = await asyncsync.verify(place.ckpt)

    assert error.paths == ("weights",)
    assert [path for path, _ in report.failures] == ["weights"]
    assert (await asyncsync.verify(place.store / "other")).ok


# ---------------------------------------------------------------- processes of their own


@pytest.fixture
def open_place() -> Iterator[Place]:
    """A place that another user can get to, which pytest's own directories are not."""
    work = Path(tempfile.mkdtemp(prefix="asyncsync-test-"))
    work.chmod(0o755)
    yield Place(work, make(work / "source", TREE), work / "store")
    for above, folders, _ in os.walk(work):
        for name in folders:
            os.chmod(os.path.join(above, name), 0o755)
    shutil.rmtree(work)


# Imports first: as another user, the package itself may be out of reach.
CHILD = """
import asyncio, json, os, re, sys
import asyncsync, asyncsync.oneshot, asyncsync.storage.local, asyncsync.errors

what, source, target, uid, options = sys.argv[1:]
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))
try:
    result = asyncio.run(getattr(asyncsync, what)(source, target, **json.loads(options)))
    said = {"error": "", "text": result.location}
except asyncsync.errors.AsyncSyncError as exc:
    said = {"error": type(exc).__name__, "text": str(exc)}
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({**said, "peak": peak}))
"""


@dataclass(frozen=True)
class Said:
    """What a process reported: the class of its error, or none; the message; its peak memory."""

    error: str
    text: str
    peak: int


def _child(
    what: str,
    source: Path | str,
    target: Path | str,
    *,
    uid: int = os.getuid(),
    cwd: Path | None = None,
    without: Sequence[str] = (),
    **options: object,
) -> Said:
    package = str(Path(asyncsync.__file__).parents[1])
    kept = {name: value for name, value in os.environ.items() if name not in without}
    arguments = [what, str(source), str(target), str(uid), json.dumps(options)]
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments],
        capture_output=True,
        timeout=300,
        check=False,
        cwd=cwd,
        env={**kept, "PYTHONPATH": package},
    )
    assert ran.stderr == b""
    return msgspec.json.decode(ran.stdout, type=Said)


_WEIGHTS = "store/ckpt/weights"
# What is done, what has which mode meanwhile, and what the message names.
DENIED: dict[str, tuple[str, str, int, str]] = {
    "a file that cannot be read": ("sync_up", "source/weights", 0o000, "source/weights"),
    "a directory that cannot be entered": ("sync_up", "source/sub", 0o000, "source/sub"),
    "a target that cannot be written": ("sync_up", "free", 0o555, "free"),
    "a target that cannot be entered": ("sync_up", "free", 0o000, "free"),
    "a committed file that cannot be read": (
        "sync_down",
        "store/ckpt/weights",
        0,
        "store/ckpt/weights",
    ),
    "a manifest that cannot be read": ("sync_down", f"store/ckpt/{MANIFEST}", 0, "store/ckpt"),
    "a place that cannot be written": ("sync_down", "free", 0o555, "free"),
}


@pytest.mark.parametrize("case", DENIED)
async def test_without_permission_the_place_is_named_and_nothing_is_touched(
    open_place: Place, case: str
) -> None:
    what, changed, mode, named = DENIED[case]
    free = open_place.new("free")
    await asyncsync.sync_up(open_place.source, open_place.ckpt)
    free.chmod(0o777)
    (open_place.work / changed).chmod(mode)
    before = _state(open_place.store)
    source = open_place.source if what == "sync_up" else open_place.ckpt
    said = _child(what, source, free / "new", uid=NOBODY)

    assert said.error == "AccessDeniedError"
    assert str(open_place.work / named) in said.text
    assert "\n" not in said.text
    assert _state(open_place.store) == before
    assert list(free.iterdir()) == []


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
async def test_without_a_home_a_sync_works_and_leaves_nothing_behind(
    open_place: Place, kind: Kind
) -> None:
    here = open_place.new("here")
    here.chmod(0o777)
    gone = ["HOME", "ASYNCSYNC_CACHE_DIR"]
    await asyncsync.sync_up(open_place.source, open_place.ckpt)
    down = _child("sync_down", open_place.ckpt, "back", uid=54_321, cwd=here, without=gone)
    up = _child("sync_up", "back", "again", uid=54_321, cwd=here, without=gone, kind=kind)

    assert (down.error, up.error) == ("", "")
    assert content(here / "again") == TREE
    assert sorted(os.listdir(here)) == ["again", "back"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that has no home at all")
def test_without_a_home_a_tilde_is_refused_and_no_directory_is_named_so(open_place: Place) -> None:
    here = open_place.new("here")
    here.chmod(0o777)
    source = open_place.source
    said = _child("sync_up", source, "~/run", uid=54_321, cwd=here, without=["HOME"])

    assert said.error == "ConfigError"
    assert "~/run" in said.text
    assert "HOME" in said.text
    assert os.listdir(here) == []


# ---------------------------------------------------------------- a million entries of nothing


def _million(tree: Path, count: int) -> Path:
    """A manifest of empty files, right in itself, made line by line."""
    lines = [b'["f","%07d",0,"%s",420' % (n, _EMPTY.encode()) for n in range(count)]
    whole = Hasher()
    for line in lines:
        whole.update(line + b"]\n")
    header = Header(name=tree.name, attempt="0" * 32, files=count, identity=whole.hexdigest())
    (first, _, _) = b"".join(encode(Manifest(header, ()))).partition(b"\n")
    make(tree, {})
    with open(tree / MANIFEST, "wb") as file:
        text = first + b"\n" + b",0],\n".join(lines) + b",0]\n"
        file.write(text + b'],"self":"' + Hasher(text).hexdigest().encode() + b'"}\n')
    return tree


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("count", "says", "limit"),
    [
        pytest.param(1_000_000, "million", 600 * MIB, id="within the limit"),
        pytest.param(1_000_001, "more than 1000000 entries", 600 * MIB, id="above the limit"),
    ],
)
def test_a_million_entries_of_nothing_cost_bounded_memory_and_are_refused(
    tmp_path: Path, count: int, says: str, limit: int
) -> None:
    tree = _million(tmp_path / "store" / "million", count)
    said = _child("sync_down", tree, tmp_path / "back")
    print(f"{count} entries: peak {said.peak / MIB:.0f} MiB")

    assert said.error in ("IntegrityError", "TransferError")  # of one missing file, or several
    assert says in said.text
    assert said.peak < limit
    assert not (tmp_path / "back").exists()
    assert os.listdir(tree) == [MANIFEST]


@pytest.mark.parametrize("size_bytes", [257 * MIB, 100 * GIB])
def test_a_manifest_larger_than_any_is_refused_without_reading_it(
    tmp_path: Path, size_bytes: int
) -> None:
    tree = make(tmp_path / "store" / "huge", {MANIFEST: b""})
    os.truncate(tree / MANIFEST, size_bytes)
    said = _child("sync_down", tree, tmp_path / "back")

    assert said.error == "IntegrityError"
    assert "huge" in said.text
    assert said.peak < 200 * MIB
    assert not (tmp_path / "back").exists()
