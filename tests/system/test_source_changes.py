"""A source that changes while it is read: never a mixture in the commit, never a change missed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest
from anyio import to_thread

import asyncsync
from asyncsync.digest import CHUNK_BYTES
from asyncsync.errors import SourceChangedError
from asyncsync.events import SourceChanged
from asyncsync.manifest import Kind
from asyncsync.syncing import Receipt, StorageSyncer
from asyncsync.transfer import Directory

from .trees import Events, content, make, temporary, ticking

When = Literal["before", "after"]
Act = Callable[[], object]

BIG_BYTES = CHUNK_BYTES + 4_000_000
SMALL: dict[str, bytes | None] = {"a": b"1", "d/file": b"small", "d/other": b"2", "e/c": b"3"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "ckpt_7", SMALL)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "store" / "ckpt_7"


def _big(source: Path) -> None:
    """Let `d/file` have two chunks, each with bytes of its own."""
    chunks = [bytes([number]) * CHUNK_BYTES for number in (1, 2)]
    (source / "d/file").write_bytes(b"".join(chunks)[:BIG_BYTES])


def _at(
    patch: pytest.MonkeyPatch, method: str, act: Act, *, number: int | None, when: When = "before"
) -> None:
    """Run `act` before or after the n-th call of a method of Directory; None: every call."""
    inner, calls = getattr(Directory, method), count(1)

    async def call(self: Directory, *args: Any, **kwargs: Any) -> Any:
        now = next(calls) == number or number is None
        if now and when == "before":
            await to_thread.run_sync(act)
        result = await inner(self, *args, **kwargs)
        if now and when == "after":
            await to_thread.run_sync(act)
        return result

    patch.setattr(Directory, method, call)


# ---------------------------------------------------------------- what happens to d/file


def _grow(source: Path) -> None:
    with open(source / "d/file", "ab") as file:
        file.write(b"more")


def _truncate(source: Path) -> None:
    os.truncate(source / "d/file", os.path.getsize(source / "d/file") - 1)


def _rewrite(source: Path) -> None:
    """Other bytes in the same file, as many, and no newer by its mtime."""
    path = source / "d/file"
    before = os.stat(path)
    # A kernel's clock stands still for some ms. A sync waits that long before it reads, but the
    # clock of these tests is not the kernel's: so it is this loop that waits.
    while os.stat(path).st_ctime_ns == before.st_ctime_ns:
        with open(path, "r+b") as file:
            file.write(os.urandom(3))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(source: Path) -> None:
    path = source / "d/file"
    before = os.stat(path)
    (source / "d/file.new").write_bytes(os.urandom(3) + path.read_bytes()[3:])
    os.utime(source / "d/file.new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(source / "d/file.new", path)


def _delete(source: Path) -> None:
    (source / "d/file").unlink()


def _add(source: Path) -> None:
    make(source, {"d/added/file": b"new"})


def _rename_directory(source: Path) -> None:
    os.rename(source / "d", source / "renamed")


CHANGES = {
    "grow": _grow,
    "truncate": _truncate,
    "rewrite": _rewrite,
    "replace": _replace,
    "delete": _delete,
    "add": _add,
    "rename the directory": _rename_directory,
}
# What a reader can notice only by looking at the whole tree again.
SAID = {"add": {"d/added/file"}, "rename the directory": {"d/file", "renamed/file"}}


async def _up(
    source: Path, target: Path, events: Events | None = None, *, kind: Kind | None = None
) -> Receipt:
    async with ticking() as clock:
        # One request at a time: chunks are read in order.
        async with StorageSyncer(isolation="loop", clock=clock, max_requests=1) as syncer:
            return await syncer.sync_up(source, target, kind=kind, observe=events)
    raise AssertionError("unreachable: the block above returns")


async def _refused(
    source: Path, target: Path, events: Events | None = None, *, kind: Kind | None = None
) -> SourceChangedError:
    """The error of a sync that ends in one."""
    async with (
        ticking() as clock,
        StorageSyncer(isolation="loop", clock=clock, max_requests=1) as syncer,
    ):
        with pytest.raises(SourceChangedError) as caught:
            await syncer.sync_up(source, target, kind=kind, observe=events)
    return caught.value


async def _equal(source: Path, target: Path) -> bool:
    """Whether the target is a commit of exactly what the source holds now."""
    assert (await asyncsync.verify(target)).ok
    return content(source) == content(target) and temporary(target.parent) == []


# ---------------------------------------------------------------- sealed


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("method", "when"),
    [("read_many", "before"), ("read_many", "after")],
    ids=["between walk and read", "between read and seal"],
)
async def test_a_small_file_that_changes_is_committed_as_it_is_in_the_end(
    source: Path,
    target: Path,
    method: str,
    when: When,
    change: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _at(monkeypatch, method, lambda: CHANGES[change](source), number=1, when=when)
    events = Events()
    receipt = await _up(source, target, events)

    assert await _equal(source, target)
    assert receipt.rounds == 2
    assert {event.path for event in events.of(SourceChanged)} >= SAID.get(change, {"d/file"})
    assert {event.attempt for event in events.of(SourceChanged)} == {1}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "method", ["read", "scan"], ids=["between two chunks", "between read and seal"]
)
async def test_a_large_file_that_changes_is_committed_in_one_version(
    source: Path, target: Path, method: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _big(source)
    _at(monkeypatch, method, lambda: CHANGES[change](source), number=2)
    events = Events()
    receipt = await _up(source, target, events)

    assert await _equal(source, target)
    assert receipt.rounds == 2
    assert {event.path for event in events.of(SourceChanged)} >= SAID.get(change, {"d/file"})


async def test_each_change_costs_one_more_round(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [_grow, _replace, _add, _delete]
    _at(monkeypatch, "read_many", lambda: left and left.pop(0)(source), number=None)
    events = Events()
    receipt = await _up(source, target, events)

    assert await _equal(source, target)
    # The last one hits a round in which only the file that was added before is read.
    assert [(event.path, event.attempt) for event in events.of(SourceChanged)] == [
        ("d/file", 1),
        ("d/file", 2),
        ("d/added/file", 3),
        ("d/file", 4),
    ]
    assert receipt.rounds == 5


async def test_a_kept_file_that_changes_while_others_are_sent_is_sent_too(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _up(source, target)
    (source / "a").write_bytes(b"another")
    _at(monkeypatch, "scan", lambda: _rewrite(source), number=2)
    async with ticking() as clock, StorageSyncer(isolation="loop", clock=clock) as syncer:
        receipt = await syncer.sync_up(source, target, replace=True)

    assert await _equal(source, target)
    assert receipt.rounds == 2


async def test_a_source_that_vanishes_while_it_is_read_is_not_committed(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish() -> None:
        for name in os.listdir(source):
            path = source / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    _at(monkeypatch, "read_many", vanish, number=1, when="after")
    error = await _refused(source, target)

    assert "vanished while they were read" in str(error)
    assert not target.exists()
    assert temporary(target.parent) == []


# ---------------------------------------------------------------- never still


@pytest.mark.parametrize("kind", ["sealed", "rolling"])
async def test_a_file_that_changes_at_every_read_is_named_after_ten_rounds(
    source: Path, target: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    _at(monkeypatch, "read_many", lambda: _replace(source), number=None)
    events = Events()
    error = await _refused(source, target, events, kind=kind)

    assert error.paths == ("d/file",)
    assert "d/file" in str(error)
    assert [event.attempt for event in events.of(SourceChanged)] == list(range(1, 11))
    assert not target.exists()
    assert temporary(target.parent) == []


async def test_what_was_committed_before_stays_when_the_source_never_holds_still(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _up(source, target, kind="rolling")
    _grow(source)
    _at(monkeypatch, "read_many", lambda: _replace(source), number=None)
    error = await _refused(source, target)

    assert error.paths == ("d/file",)
    assert content(target) == SMALL
    assert (await asyncsync.verify(target)).ok
    assert temporary(target.parent) == []


# ---------------------------------------------------------------- rolling


@pytest.mark.parametrize(
    ("size", "method", "number", "when"),
    [
        ("small", "read_many", 1, "before"),
        ("small", "read_many", 1, "after"),
        ("large", "read", 1, "before"),
        ("large", "read", 2, "before"),
        ("large", "read", 2, "after"),
    ],
)
async def test_a_log_that_grows_while_it_is_read_is_committed_as_far_as_the_walk_saw_it(
    source: Path,
    target: Path,
    size: str,
    method: str,
    number: int,
    when: When,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if size == "large":
        _big(source)
    before = (source / "d/file").read_bytes()
    _at(monkeypatch, method, lambda: _grow(source), number=number, when=when)
    events = Events()
    receipt = await _up(source, target, events, kind="rolling")

    assert content(target)["d/file"] == before
    assert (source / "d/file").read_bytes() == before + b"more"
    assert (receipt.rounds, events.of(SourceChanged)) == (1, [])

    await _up(source, target)

    assert await _equal(source, target)


@pytest.mark.parametrize("change", ["truncate", "rewrite", "replace", "delete"])
async def test_a_rolling_file_that_is_no_longer_what_was_read_is_sent_again(
    source: Path, target: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _big(source)
    _at(monkeypatch, "read", lambda: CHANGES[change](source), number=2)
    events = Events()
    receipt = await _up(source, target, events, kind="rolling")

    assert await _equal(source, target)
    assert receipt.rounds == 2
    assert events.of(SourceChanged) == [SourceChanged(path="d/file", attempt=1)]


async def test_a_log_that_grows_and_is_rewritten_is_sent_again(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _big(source)

    def both() -> None:
        _grow(source)
        _rewrite(source)

    _at(monkeypatch, "read", both, number=2)
    events = Events()
    receipt = await _up(source, target, events, kind="rolling")

    assert await _equal(source, target)
    assert receipt.rounds == 2
    assert events.of(SourceChanged) == [SourceChanged(path="d/file", attempt=1)]


@pytest.mark.parametrize("change", CHANGES)
async def test_what_changes_right_after_it_was_hashed_is_not_skipped_by_the_next_sync(
    source: Path, target: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _at(patch, "read_many", lambda: CHANGES[change](source), number=1, when="after")
        await _up(source, target, kind="rolling")
    assert content(target) == SMALL

    await _up(source, target)

    assert await _equal(source, target)


async def test_what_changes_after_it_was_found_to_be_the_same_is_not_skipped_by_the_next_sync(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _up(source, target, kind="rolling")
    os.utime(source / "d/file", ns=(1, 1))  # it has to be hashed to know that it is the same
    (source / "a").write_bytes(b"another")
    with monkeypatch.context() as patch:
        _at(patch, "read_many", lambda: _rewrite(source), number=1, when="after")
        await _up(source, target)
    assert content(target)["d/file"] == b"small"

    await _up(source, target)

    assert await _equal(source, target)
