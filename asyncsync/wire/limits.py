"""What a head and its clients allow each other: time, memory, connections, disk. Pure."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields

from ..errors import ConfigError, RefusedError, quote
from ..manifest import MAX_ENTRIES, MAX_MANIFEST_BYTES
from ..names import MAX_COMPONENT_BYTES, MAX_DEPTH, MAX_PATH_BYTES, sort_key
from ..units import GIB, KIB, MIB, format_bytes, format_seconds

__all__ = ["Limits"]

_AT_MOST = {  # a head may be stricter than the format of the manifest, not laxer
    "max_files": MAX_ENTRIES,
    "max_manifest_bytes": MAX_MANIFEST_BYTES,
    "max_component_bytes": MAX_COMPONENT_BYTES,
    "max_path_bytes": MAX_PATH_BYTES,
    "max_depth": MAX_DEPTH,
    "disk_reserve_ratio": 1,
}
_MAY_BE_0 = {"disk_reserve_bytes", "disk_reserve_ratio"}
_DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound of the peer transfer. What is beyond one is refused before it costs anything.

    Attributes:
        header_deadline_s: for the head of a request, from the connection or its first byte.
        keep_alive_s: how long a connection may be idle between two requests.
        body_idle_s: for the next byte of a body, in both directions.
        min_body_bytes_per_s: what a body has to reach on average over `body_window_s`.
        body_window_s: see `min_body_bytes_per_s`.
        json_deadline_s: for a whole request that carries no file data; those have no limit.
        max_connections, max_connections_per_address, max_connections_per_token: at one time.
        max_request_line_bytes, max_header_bytes, max_headers: of one request; the second is for
            one header field.
        max_json_bytes: of a JSON body that is no manifest.
        max_manifest_bytes: of a manifest, or a plan.
        max_files: in one tree.
        max_listing_bytes: of memory for the lists of files of all open sessions of all tokens; of
            one token half of it.
        max_component_bytes, max_path_bytes, max_depth: of a path in a tree.
        max_push_bytes: of one tree; None leaves that to plan, token and free space.
        disk_reserve_ratio, disk_reserve_bytes: what stays free of the disk: the larger one.
        max_sessions_per_token: pushes that have begun and not ended.
        session_expiry_s: after the last progress of a push, what it left is removed.
        max_failed_auths_per_minute: of one address; beyond them it is told to wait.
        max_auth_delay_s: how long at most; the wait doubles with every further failure.
        hash_threads: how many chunks are hashed at one time.

    Raises:
        ConfigError: a value is not a number in its range; and says which.
    """

    header_deadline_s: float = 10
    keep_alive_s: float = 75
    body_idle_s: float = 60
    min_body_bytes_per_s: int = 4 * KIB
    body_window_s: float = 60
    json_deadline_s: float = 30
    max_connections: int = 512
    max_connections_per_address: int = 64
    max_connections_per_token: int = 16
    max_request_line_bytes: int = 8190
    max_header_bytes: int = 8190
    max_headers: int = 64
    max_json_bytes: int = MIB
    max_manifest_bytes: int = MAX_MANIFEST_BYTES
    max_files: int = MAX_ENTRIES
    max_listing_bytes: int = GIB
    max_component_bytes: int = MAX_COMPONENT_BYTES
    max_path_bytes: int = MAX_PATH_BYTES
    max_depth: int = MAX_DEPTH
    max_push_bytes: int | None = None
    disk_reserve_ratio: float = 0.01
    disk_reserve_bytes: int = GIB
    max_sessions_per_token: int = 64
    session_expiry_s: float = _DAY_S
    max_failed_auths_per_minute: int = 10
    max_auth_delay_s: float = 60
    hash_threads: int = field(default_factory=lambda: os.cpu_count() or 1)

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None or limit.default is not None:
                _check(limit.name, value)

    def reserve_bytes(self, disk_bytes: int) -> int:
        """What has to stay free of a disk of that size."""
        return max(self.disk_reserve_bytes, math.ceil(disk_bytes * self.disk_reserve_ratio))

    def check_path(self, path: str) -> None:
        """Refuse a path that a tree may have in general, but not with these limits.

        Raises:
            RefusedError: and says which limit it is beyond.
        """
        if self._is_stricter and (reason := self._path_fault(sort_key(path))):
            raise RefusedError(f"name {quote(path[:200])} refused: {reason}", paths=[path])

    @property
    def _is_stricter(self) -> bool:
        found = (self.max_component_bytes, self.max_path_bytes, self.max_depth)
        return found != (MAX_COMPONENT_BYTES, MAX_PATH_BYTES, MAX_DEPTH)

    def _path_fault(self, raw: bytes) -> str | None:
        components = raw.split(b"/")
        if len(raw) > self.max_path_bytes:
            return f"it is {len(raw)} bytes long; {self.max_path_bytes} is the limit"
        if len(components) > self.max_depth:
            return f"it is {len(components)} levels deep; {self.max_depth} is the limit"
        if (longest := max(map(len, components))) > self.max_component_bytes:
            return f"a component is {longest} bytes long; {self.max_component_bytes} is the limit"
        return None

    def __str__(self) -> str:
        """One line for each limit, for people."""
        width = max(len(limit.name) for limit in fields(self))
        return "\n".join(
            f"{limit.name:<{width}}  {_shown(limit.name, getattr(self, limit.name))}"
            for limit in fields(self)
        )


def _check(name: str, value: object) -> None:
    whole = not name.endswith(("_s", "_ratio")) or name.endswith("_per_s")
    kind = "a whole number" if whole else "a number"
    # bool is an int, and NaN compares as false; "no limit" is not an option of a limit
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ConfigError(f"{name} takes {kind}, not {value!r}")
    above = value >= 0 if name in _MAY_BE_0 else value > 0
    most = _AT_MOST.get(name)
    if not (above and value < math.inf and (most is None or value <= most)):
        least = "of at least 0" if name in _MAY_BE_0 else "above 0"
        upper = "" if most is None else f" and at most {most}"
        raise ConfigError(f"{name} takes {kind} {least}{upper}, not {value!r}")


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "none"
    if name.endswith("_bytes_per_s"):
        return f"{format_bytes(value)}/s"
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_s"):
        return format_seconds(value)
    return f"{value:.1%}" if name.endswith("_ratio") else f"{value}"
