"""What kind of file system a path is on."""

from __future__ import annotations

import os
import re

__all__ = ["is_network", "network_of"]

_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3"}
)
_OCTAL = re.compile(r"\\([0-7]{3})")


def network_of(directory: str) -> str:
    """The kind of its file system, if others may write to it from elsewhere. Blocks."""
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
