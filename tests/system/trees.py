"""Trees on disk for the tests of whole syncs: making them, and seeing every trace of a change."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from asyncsync.events import Event, Moved
from asyncsync.manifest import Header
from asyncsync.names import MANIFEST, is_ours
from asyncsync.storage.local import LocalTrees
from asyncsync.testing import FakeClock

__all__ = ["Events", "content", "disk", "make", "temporary", "ticking"]

E = TypeVar("E")


def make(directory: Path, files: Mapping[str, bytes | None]) -> Path:
    """Write `files` below `directory`; None makes an empty directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = directory / name
        if data is None:
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def content(directory: Path) -> dict[str, bytes | None]:
    """Files, and empty directories as None, without asyncsync's own names; {} if not there."""
    found: dict[str, bytes | None] = {}
    for above, folders, names in os.walk(os.fsencode(directory)):
        folders[:] = [name for name in folders if not is_ours(os.fsdecode(name))]
        relative = os.path.relpath(above, os.fsencode(directory))
        prefix = "" if relative == b"." else os.fsdecode(relative) + "/"
        kept = [name for name in names if not is_ours(os.fsdecode(name))]
        for name in kept:
            path = os.path.join(above, name)
            found[prefix + os.fsdecode(name)] = _bytes(path)
        if prefix and not folders and not kept:
            found[prefix[:-1]] = None
    return found


def _bytes(path: bytes) -> bytes:
    if os.path.islink(path):
        return b"-> " + os.readlink(path)
    with open(path, "rb") as file:
        return file.read()


def disk(*directories: Path) -> dict[str, tuple[object, ...]]:
    """Everything below: names, inodes, times, modes and content. Two are equal if nobody wrote."""
    found: dict[str, tuple[object, ...]] = {}
    for directory in directories:
        for above, folders, names in os.walk(os.fsencode(directory)):
            for path in [above, *(os.path.join(above, name) for name in [*folders, *names])]:
                found[os.fsdecode(path)] = _fingerprint(path)
    return found


def _fingerprint(path: bytes) -> tuple[object, ...]:
    info = os.lstat(path)
    regular = stat.S_ISREG(info.st_mode)
    text = hashlib.sha256(_bytes(path)).hexdigest() if regular else ""
    return (info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, text)


def temporary(directory: Path) -> list[str]:
    """Names below that only an attempt in progress may have made."""
    return sorted(
        name
        for _, folders, names in os.walk(directory)
        for name in [*folders, *names]
        if is_ours(name) and name != MANIFEST
    )


class Events(list[Event]):
    """An observer that remembers, and may act on the first event of a kind."""

    def __init__(
        self, act: Callable[[], object] | None = None, *, on: type[object] = Moved
    ) -> None:
        super().__init__()
        self._act, self._on = act, on

    def __call__(self, event: Event) -> None:
        self.append(event)
        if self._act is not None and isinstance(event, self._on):
            act, self._act = self._act, None
            act()

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self if isinstance(event, kind)]


@asynccontextmanager
async def ticking(*, step_s: float = 0.05) -> AsyncIterator[FakeClock]:
    """A clock on which time passes by itself, much faster than outside."""
    clock = FakeClock()

    async def tick() -> None:
        while True:
            await clock.advance(step_s)
            await anyio.sleep(0.0005)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            yield clock
            group.cancel_scope.cancel()


def headers_only_together(monkeypatch: pytest.MonkeyPatch, count: int, *, of: str) -> None:
    """Headers of trees with `of` in their names are read once `count` have been asked for."""
    read, asked, all_asked = LocalTrees.read_header, list[str](), anyio.Event()

    async def together(self: LocalTrees, tree: str) -> Header:
        if of in tree:
            asked.append(tree)
            if len(asked) == count:
                all_asked.set()
            await all_asked.wait()
        return await read(self, tree)

    monkeypatch.setattr(LocalTrees, "read_header", together)
