"""The marker by which every node proves that it sees the same directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Literal

import pytest

import asyncsync
from asyncsync.errors import ConfigError, IntegrityError, NotFoundError
from asyncsync.names import ROOT_MARKER
from asyncsync.storage.local import marking
from asyncsync.storage.local.fs import write_at
from asyncsync.storage.local.place import Root
from asyncsync.syncing.probing import marker_in

from .trees import content, make


async def test_who_sees_the_same_directory_sees_its_marker(tmp_path: Path) -> None:
    share = make(tmp_path / "share", {"trial/log": b"1"})
    (tmp_path / "mounted").symlink_to(share)
    marker = await asyncsync.mark_shared(share)

    assert await asyncsync.mark_shared(tmp_path / "mounted") == marker
    await asyncsync.check_shared(tmp_path / "mounted", marker)
    assert content(share) == {"trial/log": b"1"}


async def test_who_sees_another_directory_is_told_before_training_starts(tmp_path: Path) -> None:
    marker = await asyncsync.mark_shared(make(tmp_path / "share", {}))
    other = await asyncsync.mark_shared(make(tmp_path / "other", {}))
    make(tmp_path / "mountpoint", {})

    assert other != marker
    for path, reason in (("other", other), ("mountpoint", "no marker"), ("gone", "no such")):
        with pytest.raises(ConfigError, match=f"{path}.*{reason}"):
            await asyncsync.check_shared(tmp_path / path, marker)
    assert list((tmp_path / "mountpoint").iterdir()) == []  # looking leaves nothing


async def test_what_is_not_mounted_is_not_marked(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="gone"):
        await asyncsync.mark_shared(tmp_path / "gone")

    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", b"[1]"])
async def test_a_damaged_marker_proves_nothing(tmp_path: Path, text: bytes) -> None:
    marker = await asyncsync.mark_shared(make(tmp_path / "share", {}))
    (tmp_path / "share" / ROOT_MARKER).write_bytes(text)

    with pytest.raises(IntegrityError, match="damaged"):
        await asyncsync.check_shared(tmp_path / "share", marker)
    with pytest.raises(IntegrityError, match="damaged"):
        await asyncsync.mark_shared(tmp_path / "share")


def can_only(monkeypatch: pytest.MonkeyPatch, what: Literal["rename", "link", "create"]) -> None:
    """A file system that has no better way than that."""

    def no_link(*args: Any, **more: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    if what != "rename":
        monkeypatch.setattr(marking, "rename_new", lambda *args: False)
    if what == "create":
        monkeypatch.setattr(os, "link", no_link)


@pytest.mark.parametrize("what", ["rename", "link", "create"])
def test_of_two_that_mark_at_the_same_moment_both_read_the_same_whole_marker(
    what: Literal["rename", "link", "create"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    can_only(monkeypatch, what)
    write, others = write_at, list[bytes]()

    def write_slowly(fd: int, marker: bytes, offset: int) -> None:
        write(fd, marker[:3], offset)
        monkeypatch.setattr(marking, "write_at", write)
        assert marker_in(str(tmp_path)) is None  # nobody sees half of it
        others.append(marking.mark_root(Root(str(tmp_path)), "", b"the other"))
        write(fd, marker[3:], offset + 3)

    monkeypatch.setattr(marking, "write_at", write_slowly)
    mine = marking.mark_root(Root(str(tmp_path)), "", b"mine")

    assert [mine] == others == [b"the other"]
    assert os.listdir(tmp_path) == [ROOT_MARKER]


def test_who_dies_while_it_marks_leaves_the_name_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(fd: int, marker: bytes, offset: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(marking, "write_at", die)
        patched.setattr(marking, "remove_tree", lambda *args: None)  # it cannot tidy up either
        with pytest.raises(KeyboardInterrupt):
            marking.mark_root(Root(str(tmp_path)), "", b"half")

    assert marking.mark_root(Root(str(tmp_path)), "", b"whole") == b"whole"
    assert content(tmp_path) == {}


def test_where_nobody_may_write_any_more_the_marker_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, "read-only")

    marking.mark_root(Root(str(tmp_path)), "", b"first")
    monkeypatch.setattr(os, "mkdir", refuse)

    assert marking.mark_root(Root(str(tmp_path)), "", b"second") == b"first"


async def test_only_directories_here_are_shared(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError):
        await asyncsync.mark_shared("s3://bucket/run")
    with pytest.raises(asyncsync.AsyncSyncError, match="file"):
        await asyncsync.check_shared(tmp_path / "file", "x")
