"""Lists of files that sessions hold: how much of the memory of a head they take together. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..errors import SlowDownError
from ..manifest import Manifest
from ..storage import NewFile

__all__ = ["FILE_BYTES", "Ledger", "Listing", "Loan", "listing_of"]

FILE_BYTES = 640  # of one file in a list, with its digest, and without its name


class Ledger:
    """What the lists of all tokens take.

    A token has half of the room, or one list that may be as large as all of it: so no token keeps
    the others out, and every tree that may be pushed at all can be pushed by somebody who waits.

    Args:
        most_bytes: of all together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: Counter[str] = Counter()

    @property
    def held_bytes(self) -> int:
        """What all of them take."""
        return self._held.total()

    def lend(self, owner: str) -> Loan:
        """Room for one list of that token, none yet."""
        return Loan(self, owner)

    def take(self, owner: str, size_bytes: int, before_bytes: int) -> None:
        """Count that much more for a list that takes `before_bytes`.

        Raises:
            SlowDownError: there is no room; nothing was counted.
        """
        mine = self._held[owner] + size_bytes
        one_list = self._held[owner] == before_bytes
        everything = self.held_bytes + size_bytes
        alone = self.held_bytes == before_bytes
        most = self._most_bytes
        if not (alone or (everything <= most and (one_list or mine <= most // 2))):
            raise SlowDownError(
                "no memory for more lists of files at once; wait until others have ended",
                retry_after_s=1.0,
            )
        self._held[owner] = mine

    def give_back(self, owner: str, size_bytes: int) -> None:
        """It is not held any more."""
        self._held[owner] -= size_bytes
        if not self._held[owner]:
            del self._held[owner]


class Loan:
    """Room for one list, until all who `share` it have left it."""

    def __init__(self, ledger: Ledger, owner: str) -> None:
        self._ledger, self._owner = ledger, owner
        self._size_bytes, self._users = 0, 1

    def grow(self, files: int, name_bytes: int = 0) -> None:
        """Count so many files more, whose names together are so long. SlowDownError: no room."""
        size_bytes = files * FILE_BYTES + name_bytes
        self._ledger.take(self._owner, size_bytes, self._size_bytes)
        self._size_bytes += size_bytes

    @contextmanager
    def growing(self, files: int, name_bytes: int = 0) -> Iterator[None]:
        """Grow by so many files, unless the block fails."""
        before = self._size_bytes
        self.grow(files, name_bytes)
        more = self._size_bytes - before
        try:
            yield
        except BaseException:
            self._ledger.give_back(self._owner, more)
            self._size_bytes -= more
            raise

    def share(self) -> Self:
        """The same room, for one more who leaves it."""
        self._users += 1
        return self

    def leave(self) -> None:
        """The list is not needed any more by one of those who have it."""
        self._users -= 1
        if not self._users:
            self._ledger.give_back(self._owner, self._size_bytes)
            self._size_bytes = 0

    def __enter__(self) -> Self:
        """Leave it if the block fails."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.leave()


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a commit, by their numbers, or what lies there if `manifest` is None."""

    files: Sequence[NewFile]
    manifest: Manifest | None = None


def listing_of(manifest: Manifest) -> Listing:
    """The files of a commit; takes a second for a million of them."""
    entries = manifest.files.values()
    return Listing([NewFile(e.path, e.size_bytes, e.mode, e.mtime_ns) for e in entries], manifest)
