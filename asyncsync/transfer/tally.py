"""Tally: what has moved, what is under way, and whether anything still arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from ..clock import Clock
from ..concurrency import beside
from ..events import Moved, Observer, Stalled, ignore
from ..storage import File

__all__ = ["STALL_S", "Tally"]

STALL_S = 60.0
_LOOK_S = 15.0


class Tally:
    """Counts what has been moved and reports it; the totals grow when files are sent again.

    What an interrupted attempt has moved counts, and is `resumed_bytes` and `resumed_files`, too.
    """

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self.moved_bytes = self.total_bytes = self.moved_files = self.total_files = 0
        self.resumed_bytes = self.resumed_files = 0
        self._clock: Clock | None = None
        self._under_way: dict[tuple[str, int | None], float] = {}  # the first has been so longest

    @contextmanager
    def under_way(self, path: str, part: int | None) -> Iterator[None]:
        """A part of a file, or a batch of files, is being moved."""
        self._under_way[path, part] = self._clock.monotonic() if self._clock else 0.0
        try:
            yield
        finally:
            self._under_way.pop((path, part), None)

    @asynccontextmanager
    async def watched(self, clock: Clock, stall_s: float = STALL_S) -> AsyncIterator[None]:
        """Tell when nothing arrives any more for `stall_s` seconds."""
        if self._observe is ignore:
            yield
            return
        self._clock = clock
        async with beside(partial(self._watch, clock, stall_s)):
            yield

    async def _watch(self, clock: Clock, stall_s: float) -> None:
        moved, since = -1, clock.monotonic()
        while True:
            now, arrived = clock.monotonic(), self.moved_bytes + self.moved_files
            if arrived != moved:
                moved, since = arrived, now
            for (path, part), began in self._under_way.items():
                if (seconds := now - max(began, since)) >= stall_s:
                    self._observe(Stalled(path=path, part=part, seconds=seconds))
                break  # one is enough, and the first has waited longest
            await clock.sleep(_LOOK_S)

    def expect(self, files: Sequence[File]) -> None:
        """These are going to be moved."""
        self.total_files += len(files)
        self.total_bytes += sum(file.size_bytes for file in files)

    def settle(self) -> None:
        """Nothing more of what was expected will move: it is gone, or expected anew."""
        self.total_bytes, self.total_files = self.moved_bytes, self.moved_files

    def resumed(self, path: str, size_bytes: int, *, last: bool, whole: bool) -> None:
        """A chunk had arrived already; the `last` of its file, of which nothing is left to move."""
        self.resumed_bytes += size_bytes
        self.resumed_files += last and whole
        self.moved(path, size_bytes, files=int(last))

    def moved(self, path: str, size_bytes: int, *, files: int) -> None:
        """That many bytes have arrived, and completed that many files."""
        self.moved_bytes += size_bytes
        self.moved_files += files
        self._observe(
            Moved(
                path=path,
                size_bytes=size_bytes,
                moved_bytes=self.moved_bytes,
                total_bytes=self.total_bytes,
                moved_files=self.moved_files,
                total_files=self.total_files,
            )
        )
