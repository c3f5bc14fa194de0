"""What is below a name in a bucket, for those who read, and why there is no commit."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from ...errors import AsyncSyncError, IntegrityError, NotCommittedError, NotFoundError
from ...names import ATTEMPT
from ..trees import NewFile
from .parts import claimed
from .place import Place, of_tree
from .record import read_record

__all__ = ["absent", "recorded", "visible"]


async def visible(place: Place) -> AsyncGenerator[NewFile, None]:
    """Every file that is there, but for those of an attempt that is not committed.

    An empty object whose name ends in a slash is no file: consoles make such ones for folders.
    """
    held = await read_record(place)
    hidden = held.record.ours if held is not None else frozenset()
    if held is not None and (held.record.group is not None or held.record.fenced):
        with suppress(IntegrityError):  # a damaged part is for who writes there to meet
            hidden |= (await claimed(place))[0]
    if hidden:
        found = await place.manifest()
        hidden -= found.manifest.files.keys() if found is not None else frozenset()
    async with aclosing(place.scan()) as objects:
        async for path, info in objects:
            marker = info.key.endswith("/") and not info.size_bytes
            if of_tree(path) and path not in hidden and not marker:
                mtime_ns = int(info.modified_at * 1e9)
                yield NewFile(path, info.size_bytes, mtime_ns=mtime_ns)


async def absent(place: Place) -> AsyncSyncError:
    """The error for a tree without a manifest."""
    async with aclosing(visible(place)) as found:
        async for file in found:
            del file
            return NotCommittedError(
                f"{place.where} is not a commit: there are files, but no manifest"
            )
    return NotFoundError(f"nothing at {place.where}, or it is being replaced; check the spelling")


async def recorded(place: Place) -> list[str]:
    """The names of the trees at and below a place that have an attempt record."""
    paths = [path async for path, _ in place.scan()]
    return [
        place.key(path).removesuffix(ATTEMPT).rstrip("/")
        for path in paths
        if path.rpartition("/")[2] == ATTEMPT
    ]
