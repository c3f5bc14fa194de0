"""What a place can do, and the marker that tells one storage root from another."""

from __future__ import annotations

import os

import msgspec

from ..errors import IntegrityError, os_errors, quote
from ..location import Location
from ..names import ROOT_MARKER, new_attempt
from ..storage import TreeStore
from .commits import ProbeReport

__all__ = ["marker_in", "probe_root"]

_LAYOUT_VERSION = 1


class _Root(msgspec.Struct, frozen=True, rename={"layout": "asyncsync_root"}):
    """The root marker: see docs/formats/manifest.md."""

    layout: int
    id: str
    durability: str
    exclusive: bool


async def probe_root(store: TreeStore, tree: str, remote: Location) -> ProbeReport:
    """Probe the place and mark it as a storage root.

    Raises:
        IntegrityError: the marker that is there is damaged.
    """
    able = await store.probe(tree)
    proposed = _Root(_LAYOUT_VERSION, new_attempt(), able.durability, able.exclusive)
    written = await store.mark_root(tree, msgspec.json.encode(proposed) + b"\n")
    return ProbeReport(
        location=str(remote),
        capabilities=able,
        marker=_marker_id(written, str(remote)),
        clock_offset_s=able.clock_offset_s,
    )


def marker_in(directory: str) -> str | None:
    """The id of the storage root at a local directory; None if it is none. Blocks.

    Raises:
        IntegrityError: the marker that is there is damaged.
        AsyncSyncError: the directory cannot be read.
    """
    with os_errors("source", directory):
        if ROOT_MARKER not in os.listdir(directory):  # which a network mount asks its server for
            return None
        with open(os.path.join(directory, ROOT_MARKER), "rb") as file:
            return _marker_id(file.read(), directory)


def _marker_id(text: bytes, where: str) -> str:
    try:
        return msgspec.json.decode(text, type=_Root).id
    except msgspec.MsgspecError as exc:
        raise IntegrityError(
            f"the root marker at {quote(where)} is damaged; if this is the right place, "
            f"remove {ROOT_MARKER} there and run doctor again"
        ) from exc
