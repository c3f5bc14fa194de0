"""Who says that something has changed, where the file system can; elsewhere nobody does."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import anyio.to_thread

from ..errors import quote

__all__ = ["NoHints", "hints", "is_network"]

_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3"}
)
_DEBOUNCE_MS = 1600
_ANSWER_MS = 200  # how long it may take to stop
_OCTAL = re.compile(r"\\([0-7]{3})")


class NoHints(Exception):  # noqa: N818 - no error: the directory is looked at more often instead
    """Why changes have to be looked for."""


async def hints(directory: str, changed: Callable[[], None]) -> None:
    """Call `changed` soon after something has changed in a directory, until it is cancelled.

    Raises:
        NoHints: it cannot be known here.
    """
    if kind := await anyio.to_thread.run_sync(_network_of, directory):
        raise NoHints(f"{quote(directory)} is on {kind}, which does not say what others change")
    try:
        from watchfiles import awatch  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as exc:
        raise NoHints("watchfiles is not installed (pip install 'asyncsync[cli]')") from exc
    try:
        async for _ in awatch(
            directory, watch_filter=None, debounce=_DEBOUNCE_MS, rust_timeout=_ANSWER_MS
        ):
            changed()
    except Exception as exc:  # the system's limits, as whatever its library makes of them
        first: BaseException = exc
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise NoHints(f"{quote(directory)} cannot be watched: {first}") from exc
    raise NoHints(f"{quote(directory)} is not watched any more")


def _network_of(directory: str) -> str:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return is_network(os.path.realpath(directory), file.read())
    except OSError:  # not Linux
        return ""


def is_network(path: str, mounts: str) -> str:
    """The kind of file system, if others may write to it from elsewhere; else nothing. Pure.

    Args:
        mounts: the text of /proc/self/mountinfo.
    """
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        where = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4])  # a blank is \\040
        inside = path == where or path.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best) and "-" in fields:
            best, kind = where, fields[fields.index("-") + 1]
    return kind if kind in _NETWORK or kind.startswith("fuse") else ""
