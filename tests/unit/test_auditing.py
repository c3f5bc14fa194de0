"""The file of an audit log: for its owner alone, and a head goes on without it."""

from __future__ import annotations

import logging
import os
import stat
from logging.handlers import QueueListener
from pathlib import Path

import pytest

from asyncsync.cli import auditing
from asyncsync.cli.auditing import audit_to
from asyncsync.errors import ConfigError

LOGGER = logging.getLogger("asyncsync.audit")


def test_lines_are_appended_for_the_owner_alone_and_then_no_more(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for line in ("one", "two"):
        with audit_to(str(path), "/srv"):
            LOGGER.info("%s", line)
        LOGGER.info("not any more")

    assert path.read_text() == "one\ntwo\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (LOGGER.handlers, LOGGER.level, LOGGER.propagate) == ([], logging.NOTSET, True)


def test_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with audit_to(str(path), "/srv"):
        pass
    with audit_to(str(path), "/srv"):
        path.rename(tmp_path / "audit.log.1")
        LOGGER.info("after that")

    assert path.read_text() == "after that\n"


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "missing", "in the root"])
def test_what_is_no_file_of_its_own_is_an_error(tmp_path: Path, kind: str) -> None:
    path, root = tmp_path / "log", str(tmp_path / "root")
    if kind == "link":
        path.symlink_to(tmp_path / "other")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "missing":
        path = tmp_path / "nowhere" / "log"
    else:
        root = str(tmp_path)
    with pytest.raises(ConfigError, match="name "), audit_to(str(path), root):
        raise AssertionError("it must not begin")


def test_a_disk_that_is_full_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with audit_to("/dev/full", "/srv"):
        for _ in range(100):
            LOGGER.info("a line")

    said = capsys.readouterr().err
    assert said == "asyncsync: the audit log has gaps from now on: No space left on device\n"


def test_a_disk_that_hangs_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(auditing, "_MOST_WAITING", 3)
    monkeypatch.setattr(QueueListener, "start", lambda _: None)
    monkeypatch.setattr(QueueListener, "stop", lambda _: None)
    with audit_to(str(tmp_path / "log"), "/srv"):
        for _ in range(100):
            LOGGER.info("a line")

    said = capsys.readouterr().err
    assert said == "asyncsync: the audit log has gaps from now on: it is too slow\n"
