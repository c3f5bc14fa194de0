"""What a place can do, and the marker that tells one storage root from another."""

from __future__ import annotations

import msgspec

from ..errors import IntegrityError, quote
from ..location import Location
from ..names import new_attempt
from ..storage import TreeStore
from .commits import ProbeReport

__all__ = ["probe_root"]

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
    try:
        marker = msgspec.json.decode(written, type=_Root)
    except msgspec.MsgspecError as exc:
        raise IntegrityError(
            f"the root marker at {quote(str(remote))} is damaged; if this is the right place, "
            "remove .asyncsync-root.json there and run doctor again"
        ) from exc
    return ProbeReport(
        location=str(remote),
        capabilities=able,
        marker=marker.id,
        clock_offset_s=able.clock_offset_s,
    )
