"""The marker by which every node proves that it sees the same directory."""

from __future__ import annotations

from pathlib import Path

import pytest

import asyncsync
from asyncsync.errors import ConfigError, IntegrityError, NotFoundError
from asyncsync.names import ROOT_MARKER

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


async def test_only_directories_here_are_shared(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError):
        await asyncsync.mark_shared("s3://bucket/run")
    with pytest.raises(asyncsync.AsyncSyncError, match="file"):
        await asyncsync.check_shared(tmp_path / "file", "x")
