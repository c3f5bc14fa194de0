"""Records of local digests: a cache that may be lost, damaged or unwritable without harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncsync.digest import CHUNK_BYTES, digest
from asyncsync.manifest import FileEntry
from asyncsync.transfer import Records, SourceFile

TREE = "/data/trial_1"
DAY_S = 24 * 3600


def source(path: str, size_bytes: int = 7, **changes: int) -> SourceFile:
    stamp = {"mode": 0o644, "mtime_ns": 10**18, "ctime_ns": 10**18 + 1, "device": 5, "inode": 9}
    return SourceFile(path, size_bytes, **{**stamp, **changes})


def entry(file: SourceFile, content: bytes = b"content") -> FileEntry:
    return FileEntry(file.path, file.size_bytes, digest(content), file.mode, file.mtime_ns)


def load(*files: SourceFile, tree: str = TREE) -> dict[str, FileEntry]:
    return Records(tree).load({file.path: file for file in files})


def cache() -> Path:
    return Path(os.environ["ASYNCSYNC_CACHE_DIR"])


def only_record() -> Path:
    (path,) = cache().glob("*.records")
    return path


def test_what_was_hashed_is_known_again() -> None:
    files = [source("a"), source("sub/b"), source("caf\udce9")]
    large = source("large", CHUNK_BYTES + 1)
    chunks = (digest(b"1"), digest(b"2"))
    listed = FileEntry("large", large.size_bytes, digest(b"12"), 0o644, 10**18, chunks)
    Records(TREE).save([*((file, entry(file)) for file in files), (large, listed)])

    found = load(*files, large)

    assert found == {**{file.path: entry(file) for file in files}, "large": listed}


@pytest.mark.parametrize(
    "change",
    [
        {"size_bytes": 8},
        {"mode": 0o600},
        {"mtime_ns": 1},
        {"ctime_ns": 1},
        {"device": 1},
        {"inode": 1},
    ],
)
def test_another_version_of_a_file_is_not_known(change: dict[str, int]) -> None:
    Records(TREE).save([(source("a"), entry(source("a")))])

    assert load(source("a", **change)) == {}


def test_a_file_that_was_never_hashed_is_not_known() -> None:
    Records(TREE).save([(source("a"), entry(source("a")))])

    assert load(source("b")) == {}


def test_every_directory_has_a_record_of_its_own() -> None:
    Records(TREE).save([(source("a"), entry(source("a")))])

    assert load(source("a"), tree="/data/trial_10") == {}


def test_saving_again_replaces_the_record() -> None:
    Records(TREE).save([(source("a"), entry(source("a")))])
    Records(TREE).save([(source("b"), entry(source("b")))])

    assert load(source("a"), source("b")) == {"b": entry(source("b"))}
    assert os.listdir(cache()) == [only_record().name]


def test_without_a_record_nothing_is_known() -> None:
    assert load(source("a")) == {}


def test_a_record_with_any_changed_byte_is_ignored() -> None:
    Records(TREE).save([(source("a"), entry(source("a")))])
    path = only_record()
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert load(source("a")) == {}, place
    path.write_bytes(whole)

    assert load(source("a")) == {"a": entry(source("a"))}


@pytest.mark.parametrize("length", [0, 1, 64, 100, -1])
def test_a_record_that_was_cut_is_ignored(length: int) -> None:
    Records(TREE).save([(source("a"), entry(source("a")))])
    only_record().write_bytes(only_record().read_bytes()[:length])

    assert load(source("a")) == {}


@pytest.mark.parametrize("body", [b"", b"\x01", b"\x81\xa1a\x01", b"\xc1" * 10])
def test_a_record_of_another_form_is_ignored_although_its_digest_fits(body: bytes) -> None:
    Records(TREE).save([])
    only_record().write_bytes(body + digest(body).encode())

    assert load(source("a")) == {}


def test_an_unreadable_record_is_ignored() -> None:
    Records(TREE).save([])
    path = only_record()
    path.unlink()
    path.mkdir()

    assert load(source("a")) == {}


def test_a_cache_that_cannot_be_written_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASYNCSYNC_CACHE_DIR", str(tmp_path / "file" / "cache"))
    Records(TREE).save([(source("a"), entry(source("a")))])

    assert load(source("a")) == {}
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_save_leaves_the_old_record_and_no_temporary_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Records(TREE).save([(source("a"), entry(source("a")))])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    Records(TREE).save([(source("b"), entry(source("b")))])

    assert load(source("a")) == {"a": entry(source("a"))}
    assert os.listdir(cache()) == [only_record().name]


def test_without_a_home_directory_records_work_or_are_simply_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "from the user database"
    monkeypatch.delenv("ASYNCSYNC_CACHE_DIR")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", str(home)))
    Records(TREE).save([(source("a"), entry(source("a")))])

    assert load(source("a")) == {"a": entry(source("a"))}
    assert (home / ".cache" / "asyncsync" / "records").is_dir()


def test_the_cache_directory_of_the_desktop_standard_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ASYNCSYNC_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Records(TREE).save([])

    assert len(list((tmp_path / "asyncsync" / "records").glob("*.records"))) == 1


def test_records_are_for_their_owner_only() -> None:
    Records(TREE).save([])

    assert only_record().stat().st_mode & 0o777 == 0o600
    assert cache().stat().st_mode & 0o777 == 0o700


def test_records_of_directories_not_synced_for_a_month_are_forgotten() -> None:
    ages = {"/data/fresh": 29 * DAY_S, "/data/old": 31 * DAY_S}
    for tree, age in ages.items():
        before = set(cache().glob("*")) if cache().exists() else set()
        Records(tree).save([(source("a"), entry(source("a")))])
        (made,) = set(cache().glob("*")) - before
        then = made.stat().st_mtime - age
        os.utime(made, (then, then))
    Records(TREE).save([])

    assert load(source("a"), tree="/data/fresh") != {}
    assert load(source("a"), tree="/data/old") == {}
