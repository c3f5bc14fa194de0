"""Who has changed what at a head, and who was refused: a line of JSON for each such request.

Lines go to the logger `asyncsync.audit` at level INFO, which nobody listens to unless told to. No
line holds a token, nor anything else that a request has in it but a name of a tree.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from ..errors import SlowDownError
from ..wire.messages import Route
from ..wire.tokens import TokenError

__all__ = ["Entry", "line_of", "note"]

_LOGGER = logging.getLogger("asyncsync.audit")


@dataclass(slots=True)
class Entry:
    """What has become known of a request.

    Attributes:
        address: where it came from.
        size_bytes: of its body.
        operation, route: what it asks for; until that is known, nothing is noted.
        token: the id of its token; empty: none that this head has made.
        tree: which tree it is about, once its name is known to be one.
    """

    address: str
    size_bytes: int
    operation: str = ""
    route: Route | None = None
    token: str = ""
    tree: str | None = None


def note(entry: Entry, error: Exception | None, now: float) -> None:
    """Note a request that was answered, with `error` if it was refused."""
    if _LOGGER.isEnabledFor(logging.INFO) and (line := line_of(entry, error, now)):
        _LOGGER.info("%s", line)


def line_of(entry: Entry, error: Exception | None, now: float) -> str:
    """The line for a request; empty: it changed nothing and was not refused. Pure.

    Of one address, no more refusals without a token are noted than are answered without a wait:
    else anybody could fill a disk.
    """
    route, cause = entry.route, None if error is None else error.__cause__
    token, reason = entry.token, ""
    if isinstance(cause, TokenError):
        token, reason = cause.id, str(cause.fault)
    changes = route is not None and (route.changes or entry.operation == "renew")
    flood = not entry.token and isinstance(error, SlowDownError)
    if route is None or flood or (error is None and not changes):
        return ""
    said = {
        "time": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        "from": entry.address,
        "token": token or None,
        "operation": entry.operation,
        "tree": entry.tree,
        "outcome": "ok" if error is None else type(error).__name__,
        "bytes": entry.size_bytes,
    }
    return json.dumps(said | ({"reason": reason} if reason else {}))  # control characters escaped
