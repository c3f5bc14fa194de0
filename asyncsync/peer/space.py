"""Room on the disk of a head: what has been announced is reserved before any of it arrives."""

from __future__ import annotations

import os
from typing import NamedTuple

from ..concurrency import Threads
from ..errors import NoSpaceError, TransientError, os_errors
from ..wire.limits import Limits

__all__ = ["Room", "Space"]


class Room(NamedTuple):
    """What was free at one moment, without what always stays so."""

    bytes: int

    def refuse(self, size_bytes: int, announced_bytes: int) -> None:
        """NoSpaceError if that many bytes do not fit beside those that were announced before."""
        if size_bytes and size_bytes + announced_bytes > self.bytes:
            raise NoSpaceError(
                f"no room for {size_bytes} bytes on the head: {max(0, self.bytes)} may be used, "
                f"and {announced_bytes} of them are announced; free some, then try again",
                side="target",
            )


class Space:
    """The disk below `root`, where the head found it. Blocks."""

    def __init__(self, root: str, threads: Threads, limits: Limits) -> None:
        self._root, self._threads, self._limits = root, threads, limits
        self._found = os.stat(root)

    async def room(self) -> Room:
        """Look how much there is. The file system may be one that takes long to say.

        Raises:
            TransientError: another directory is there by now. What is written goes where no path
                leads to, and is lost when the head ends: it must not be acknowledged.
        """
        with os_errors("target", "the root of the head"):
            return await self._threads.run(self._look)

    def _look(self) -> Room:
        if not os.path.samestat(os.stat(self._root), self._found):
            raise TransientError(
                "the root of the head is not what it was when the head was started: mount it "
                "again, or start the head anew",
                side="target",
            )
        found = os.statvfs(self._root)
        stays = self._limits.reserve_bytes(found.f_blocks * found.f_frsize)
        return Room(found.f_bavail * found.f_frsize - stays)
