"""What moves trees: the AsyncSyncer protocol, the receipt it returns and the plan of a dry run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from ..manifest import Kind
from ..storage import Deleted, Durability, NewFile

__all__ = ["DAY_S", "AsyncSyncer", "Path", "Receipt", "Replace", "Snapshot", "SyncPlan"]

DAY_S = 86_400.0
"""How long an interrupted attempt is left alone by default, so that it can be gone on with."""

Path = str | os.PathLike[str]
Replace = bool | Literal["own"]
"""Whether to take the place of another commit; `own`: if it came from the same directory."""

Snapshot = bool | Literal["link"]
"""Whether to hold the source still; `link`: second names do, nobody rewrites a file in place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a finished sync did. It is only ever returned for a commit that stands.

    Attributes:
        location: where the commit is (for a download: the local directory).
        identity: digest of the content; equal content has equal identity.
        kind: `sealed` or `rolling`.
        files, size_bytes: of the whole tree.
        sent_files, sent_bytes: what was moved.
        resumed_bytes: what an interrupted attempt had moved already.
        skipped_files, skipped_bytes: what was there already.
        deleted_files: what is no longer part of the tree.
        left_out: names that cannot be part of a rolling tree (links, sockets), with the reason.
        rounds: how often the source was read until it held still; 1 is normal.
        seconds: how long it took.
        snapshot: how the source was held still: `in place`, by checking that nothing changed; or
            by a snapshot, `reflink`, `copy` or `link`: the weakest way taken for a file of it.
        waited_s: of an upload: until the caller had control back and the source could change.
        durability: what the commit survives; see `asyncsync.storage.Durability`.
    """

    location: str
    identity: str
    kind: Kind
    files: int
    size_bytes: int
    sent_files: int = 0
    sent_bytes: int = 0
    resumed_bytes: int = 0
    skipped_files: int = 0
    skipped_bytes: int = 0
    deleted_files: int = 0
    left_out: tuple[tuple[str, str], ...] = ()
    rounds: int = 1
    seconds: float = 0.0
    snapshot: Literal["in place", "reflink", "copy", "link"] = "in place"
    waited_s: float = 0.0
    durability: Durability = "fsync"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPlan:
    """What a sync would do: the answer to a dry run.

    Attributes:
        target: where to.
        send: files that are not there, or other there (a file of the same size counts as other
            until somebody has hashed both).
        skip: files that are there already.
        delete: paths that would disappear from the target.
        left_out: names that cannot be part of a rolling tree, with the reason.
    """

    target: str
    send: tuple[NewFile, ...]
    skip: tuple[NewFile, ...]
    delete: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def send_bytes(self) -> int:
        return sum(file.size_bytes for file in self.send)

    @property
    def skip_bytes(self) -> int:
        return sum(file.size_bytes for file in self.skip)


@runtime_checkable
class AsyncSyncer(Protocol):
    """Moves trees between a local directory and somewhere else. Anyone can write one.

    A coroutine that returns has succeeded; one that fails raises. Cancelled, it stops promptly and
    leaves the target as it was or complete. Every implementation passes
    `asyncsync.testing.SyncerContract`.
    """

    async def sync_up(
        self, local_dir: Path, remote_dir: Path, *, exclude: Sequence[str] = ()
    ) -> Receipt | None:
        """Make `remote_dir` hold what `local_dir` holds, without what `exclude` matches."""
        ...

    async def sync_down(
        self, remote_dir: Path, local_dir: Path, *, exclude: Sequence[str] = ()
    ) -> Receipt | None:
        """Make `local_dir` hold what `remote_dir` holds, without what `exclude` matches."""
        ...

    async def delete(self, remote_dir: Path) -> Deleted | None:
        """Remove `remote_dir` and everything of ours in it; NotFoundError if it is not there."""
        ...

    async def aclose(self) -> None:
        """Let go of resources. Again: no effect."""
        ...
