"""What an interrupted upload had stored, so that the next attempt goes on from there.

A file that is appended to, beside the records of digests. `docs/formats/journal.md` describes it.
A lost, torn or damaged journal only costs sending again: what it says is in the store is looked
for there, and what it says of the source is compared with the source.
"""

from __future__ import annotations

import fcntl
import os
import threading
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import anyio
import msgspec

from ..concurrency import Threads
from ..digest import digest
from ..storage import Stored, TreeWriter
from .engine import Arrived
from .pieces import SourceFile, Stamp
from .records import cache_directory, prune

__all__ = ["Journal"]

_VERSION = 1
_FRAME_BYTES = 8  # the length of what follows, and its CRC-32, four bytes each

_Row = tuple[bytes, Stamp, int, str, str]
_encode = msgspec.msgpack.encode
_decode_rows = msgspec.msgpack.Decoder(list[_Row]).decode


class _Head(NamedTuple):
    """What the rest belongs to: another plan finds nothing in it."""

    version: int
    source: bytes
    target: bytes


_decode_head = msgspec.msgpack.Decoder(_Head).decode


class _Noted(NamedTuple):
    stamp: Stamp
    chunks: dict[int, Stored]


class Journal:
    """The journal of uploads from one directory to one location; one attempt at a time has it.

    Attributes:
        usable: it is this attempt's, and can be written.
    """

    def __init__(self, source: str, target: str, threads: Threads) -> None:
        head = _Head(_VERSION, os.fsencode(source), os.fsencode(target))
        name = digest(head.source + b"\0" + head.target)
        self._path = os.path.join(cache_directory(), name + ".journal")
        self._head, self._threads = head, threads
        self._noted: dict[str, _Noted] = {}
        self._turn = threading.Lock()
        self._fd = -1

    @classmethod
    @asynccontextmanager
    async def open(cls, source: str, target: str, threads: Threads) -> AsyncIterator[Journal]:
        """Hold the journal; it stays if the block fails, else it has done its duty."""
        journal, keep = cls(source, target, threads), False
        try:
            await threads.run(journal._open)
            yield journal
        except BaseException:
            keep = True
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await threads.run(journal._close, keep)

    @property
    def usable(self) -> bool:
        return self._fd >= 0

    async def recall(self, writer: TreeWriter, files: Iterable[SourceFile]) -> dict[str, Arrived]:
        """What an interrupted attempt has stored of `files`, as far as `writer` still has it."""
        if not writer.resumes:
            return {}
        asked = [
            (file, self._noted[file.path])
            for file in files
            # One of another size has other chunks.
            if file.path in self._noted and self._noted[file.path].stamp[0] == file.size_bytes
        ]
        found = await writer.recall([(file.new, noted.chunks) for file, noted in asked])
        return {
            file.path: Arrived(
                {number: noted.chunks[number].digest for number in numbers},
                current=noted.stamp == file.stamp,
            )
            for (file, noted), numbers in zip(asked, found, strict=True)
            if numbers
        }

    async def note(self, rows: Sequence[tuple[SourceFile, int, Stored]]) -> None:
        """Remember chunks that have been stored."""
        if self.usable:
            await self._threads.run(self._append, rows)

    # -- in threads

    def _open(self) -> None:
        folder = os.path.dirname(self._path)
        with suppress(OSError):  # a read-only home only means that nothing is remembered
            os.makedirs(folder, mode=0o700, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another sync of the same has it
                self._load(fd)
            except BaseException:
                os.close(fd)
                raise
            self._fd = fd

    def _load(self, fd: int) -> None:
        with open(fd, "rb", closefd=False) as file:
            content = file.read()
        frames = _frames(content)
        good = self._replay(frames)
        if good != len(content):
            os.ftruncate(fd, good)  # a torn end, or all of what belongs to another plan
        if not good:
            _write(fd, _frame(_encode(self._head)))

    def _replay(self, frames: Iterable[tuple[bytes, int]]) -> int:
        """Take in the frames; the position of the last one that makes sense."""
        good = 0
        with suppress(msgspec.MsgspecError):
            for body, end in frames:
                if good:
                    self._take(_decode_rows(body))
                elif _decode_head(body) != self._head:
                    break
                good = end
        return good

    def _take(self, rows: Iterable[_Row]) -> None:
        for raw, stamp, number, chunk, token in rows:
            path = os.fsdecode(raw)
            noted = self._noted.get(path)
            if noted is None or noted.stamp != stamp:
                noted = self._noted[path] = _Noted(stamp, {})
            noted.chunks[number] = Stored(chunk, token)

    def _append(self, rows: Sequence[tuple[SourceFile, int, Stored]]) -> None:
        flat = [(os.fsencode(file.path), file.stamp, number, *one) for file, number, one in rows]
        with self._turn:
            try:
                _write(self._fd, _frame(_encode(flat)))
            except OSError:  # the disk is full: what comes now is sent again after a crash
                self._release()

    def _close(self, keep: bool) -> None:
        if self._fd < 0:
            return
        with suppress(OSError):
            if keep:
                prune(os.path.dirname(self._path))
            else:
                os.unlink(self._path)
        self._release()

    def _release(self) -> None:
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # a process forked meanwhile has the file, too
        os.close(self._fd)
        self._fd = -1


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big") + body


def _write(fd: int, frame: bytes) -> None:
    """Append a frame; one that does not fit as a whole is the end of the journal."""
    if os.write(fd, frame) != len(frame):
        raise OSError("no room for all of it")


def _frames(content: bytes) -> Iterator[tuple[bytes, int]]:
    """The bodies of whole frames, each with the position of its end; stops at a damaged one."""
    start = 0
    while start + _FRAME_BYTES <= len(content):
        size, check = (int.from_bytes(content[at : at + 4], "big") for at in (start, start + 4))
        start += _FRAME_BYTES
        body = content[start : start + size]
        start += size
        if len(body) != size or zlib.crc32(body) != check:
            return
        yield body, start
