"""Every state in which a power cut may leave a disk, by a model weaker than any file system.

A change of names is atomic but may be lost until one of its directories is flushed, each on its
own; a file that was not flushed may be there empty, by half, or whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

from asyncsync.names import LOCK
from asyncsync.storage.local import fs
from asyncsync.storage.local.publish import Attempt

__all__ = ["Record", "State", "materialise", "recording", "states"]

Slot = tuple[int, str]
"""A name in a directory: where an entry can be."""

State = dict[str, bytes | None]
"""Contents of files by path; None for a directory."""


@dataclass(frozen=True)
class _Names:
    """One atomic change of names: what is in these slots from then on; None for nothing."""

    slots: dict[Slot, int | None]


@dataclass(frozen=True)
class _Flush:
    node: int


class _Acknowledged:
    pass


@dataclass
class Record:
    """What one operation did to the disk below one directory, and what was there before."""

    slots: dict[Slot, int] = field(default_factory=dict)
    contents: dict[int, bytes | None] = field(default_factory=dict)
    flushed: set[int] = field(default_factory=set)
    events: list[_Names | _Flush | _Acknowledged] = field(default_factory=list)


# ---------------------------------------------------------------- recording


class _Recorder:
    """Stands between the package and the system calls that change names or flush."""

    def __init__(self, base: str) -> None:
        self.record = Record()
        self._nodes: dict[int, int] = {}
        self._readers: dict[int, int] = {}
        self._snapshot(base, self._node(os.stat(base).st_ino, None))
        self.record.flushed = set(self.record.contents)

    def _snapshot(self, directory: str, node: int) -> None:
        for entry in os.scandir(directory):
            is_directory = entry.is_dir(follow_symlinks=False)
            content = None if is_directory else Path(entry).read_bytes()
            below = self._node(entry.inode(), content)
            self.record.slots[node, entry.name] = below
            if is_directory:
                self._snapshot(entry.path, below)

    def _node(self, inode: int, content: bytes | None) -> int:
        """A number for a new file or directory; inodes are used again when they are free."""
        node = len(self.record.contents)
        self._nodes[inode] = node
        self.record.contents[node] = content
        return node

    def _slot(self, name: str, directory: int | None) -> Slot | None:
        above, last = os.path.split(name)
        inode = os.stat(above or ".", dir_fd=directory).st_ino
        return (self._nodes[inode], last) if inode in self._nodes else None

    def _at(self, name: str, directory: int | None) -> int:
        return self._nodes[os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino]

    def _name(self, slots: dict[Slot | None, int | None]) -> None:
        known = {slot: node for slot, node in slots.items() if slot is not None}
        if known:
            self.record.events.append(_Names(known))

    def _created(self, name: str, directory: int | None, content: bytes | None) -> int:
        inode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino
        node = self._node(inode, content)
        self._name({self._slot(name, directory): node})
        return node

    def mkdir(self, real: Callable[..., None]) -> Callable[..., None]:
        def act(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            real(name, mode, dir_fd=dir_fd)
            if self._slot(name, dir_fd):
                self._created(name, dir_fd, None)

        return act

    def open(self, real: Callable[..., int]) -> Callable[..., int]:
        def act(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            return self._opening(
                name, flags, dir_fd, lambda: real(name, flags, mode, dir_fd=dir_fd)
            )

        return act

    def openat2(self, real: Callable[..., int]) -> Callable[..., int]:
        def act(directory: int, name: str, flags: int, mode: int, resolve: int) -> int:
            return self._opening(
                name, flags, directory, lambda: real(directory, name, flags, mode, resolve)
            )

        return act

    def _opening(
        self, name: str, flags: int, directory: int | None, real: Callable[[], int]
    ) -> int:
        is_new = flags & os.O_CREAT and not _exists(name, directory)
        fd = real()
        if is_new and self._slot(name, directory):
            node = self._created(name, directory, b"")
            self._readers[node] = _REAL_OPEN(f"/proc/self/fd/{fd}", os.O_RDONLY)
        return fd

    def link(self, real: Callable[..., None]) -> Callable[..., None]:
        def act(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int, **more: Any) -> None:
            real(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **more)
            self._name({self._slot(new, dst_dir_fd): self._at(new, dst_dir_fd)})

        return act

    def remove(self, real: Callable[..., None]) -> Callable[..., None]:
        def act(name: str, *, dir_fd: int | None = None) -> None:
            real(name, dir_fd=dir_fd)
            self._name({self._slot(name, dir_fd): None})

        return act

    def rename(self, real: Callable[..., None]) -> Callable[..., None]:
        def act(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            real(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            self._renamed(src_dir_fd, old, dst_dir_fd, new)

        return act

    def renameat2(self, real: Callable[..., bool]) -> Callable[..., bool]:
        def act(old_dir: int, old: str, new_dir: int, new: str, flags: int) -> bool:
            if not real(old_dir, old, new_dir, new, flags):
                return False
            self._renamed(old_dir, old, new_dir, new)
            return True

        return act

    def _renamed(self, old_dir: int, old: str, new_dir: int, new: str) -> None:
        swapped = self._at(old, old_dir) if _exists(old, old_dir) else None
        moved = self._at(new, new_dir)
        self._name({self._slot(old, old_dir): swapped, self._slot(new, new_dir): moved})

    def fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def act(fd: int) -> None:
            real(fd)
            inode = os.fstat(fd).st_ino
            if inode in self._nodes:
                self.record.events.append(_Flush(self._nodes[inode]))

        return act

    def commit(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def act(attempt: Attempt, *args: Any) -> Any:
            answer = real(attempt, *args)
            if attempt.intent.group is None:  # a part is no answer to anybody yet
                self.record.events.append(_Acknowledged())
            return answer

        return act

    def finish(self) -> None:
        """Read what the files that were made hold in the end, though they may be gone."""
        self.record.events.append(_Acknowledged())
        for node, fd in self._readers.items():
            self.record.contents[node] = os.pread(fd, os.fstat(fd).st_size, 0)
            os.close(fd)


_REAL_OPEN = os.open


def _exists(name: str, directory: int | None) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


@contextmanager
def recording(base: str) -> Iterator[Record]:
    """Record what the package does below `base`, which is taken to be durable as it is."""
    recorder = _Recorder(base)
    wrapped: list[tuple[object, str, Callable[[Any], Any]]] = [
        (os, "mkdir", recorder.mkdir),
        (os, "open", recorder.open),
        (os, "link", recorder.link),
        (os, "unlink", recorder.remove),
        (os, "rmdir", recorder.remove),
        (os, "rename", recorder.rename),
        (os, "fsync", recorder.fsync),
        (fs, "_openat2", recorder.openat2),
        (fs, "_renameat2", recorder.renameat2),
        (Attempt, "commit", recorder.commit),
    ]
    with ExitStack() as stack:
        for place, name, wrap in wrapped:
            stack.enter_context(mock.patch.object(place, name, wrap(getattr(place, name))))
        yield recorder.record
    recorder.finish()


# ---------------------------------------------------------------- enumerating


def states(record: Record) -> Iterator[tuple[bool, State]]:
    """Each different state a power cut may leave, and whether the caller had been answered."""
    seen: set[tuple[bool, frozenset[tuple[str, bytes | None]]]] = set()
    for moment in range(len(record.events) + 1):
        past = record.events[:moment]
        answered = any(isinstance(event, _Acknowledged) for event in past)
        for state in _states_after(record, past):
            key = (answered, frozenset(state.items()))
            if key not in seen:
                seen.add(key)
                yield answered, state


def _states_after(record: Record, past: list[Any]) -> Iterator[State]:
    flushes = {index: event.node for index, event in enumerate(past) if isinstance(event, _Flush)}
    durable = record.flushed | set(flushes.values())
    changes = [(i, event.slots) for i, event in enumerate(past) if isinstance(event, _Names)]
    pending = [i for i, slots in changes if not _is_flushed(i, slots, flushes)]
    for kept in product((False, True), repeat=len(pending)):
        lost = {index for index, keep in zip(pending, kept, strict=True) if not keep}
        slots: dict[Slot, int | None] = dict(record.slots)
        for index, change in changes:
            if index not in lost:
                slots.update(change)
        yield from _contents(record, _tree(record, slots), durable)


def _is_flushed(index: int, slots: dict[Slot, int | None], flushes: dict[int, int]) -> bool:
    directories = {directory for directory, _ in slots}
    return any(at > index and node in directories for at, node in flushes.items())


def _tree(record: Record, slots: dict[Slot, int | None]) -> dict[str, int]:
    """Node by path of what can be reached from the base."""
    below: dict[int, list[tuple[str, int]]] = {}
    for (directory, name), node in slots.items():
        if node is not None:
            below.setdefault(directory, []).append((name, node))
    found: dict[str, int] = {}
    todo = [("", 0)]
    while todo:
        prefix, directory = todo.pop()
        for name, node in below.get(directory, ()):
            found[prefix + name] = node
            if record.contents[node] is None:
                todo.append((f"{prefix}{name}/", node))
    return found


def _contents(record: Record, tree: dict[str, int], durable: set[int]) -> Iterator[State]:
    paths = sorted(tree)
    versions = [_versions(record, path, tree[path], durable) for path in paths]
    for contents in product(*versions):
        yield dict(zip(paths, contents, strict=True))


def _versions(record: Record, path: str, node: int, durable: set[int]) -> tuple[bytes | None, ...]:
    whole = record.contents[node]
    if whole is None or node in durable or path.endswith(LOCK):
        return (whole,)
    return tuple({b"", whole[: len(whole) // 2], whole})


def materialise(state: State, base: str) -> None:
    """Make the directory `base` hold a state."""
    for path in sorted(state):
        content = state[path]
        if content is None:
            os.mkdir(f"{base}/{path}")
        else:
            Path(f"{base}/{path}").write_bytes(content)
