"""Which names of trees, and which ids, a head takes from the other end. Pure."""

from __future__ import annotations

import re

from ..errors import RefusedError, quote
from ..names import MAX_DEPTH, PARTS

__all__ = [
    "MAX_TREE_BYTES",
    "check_session_id",
    "check_tree_name",
    "is_tree_name",
    "parse_index",
]

MAX_TREE_BYTES = 4096

_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+@-]{0,199}")
_SESSION = re.compile(r"[0-9a-f]{32}")
_INDEX = re.compile(r"0|[1-9][0-9]{0,9}")


def is_tree_name(name: str) -> bool:
    """Whether a head has trees of that name; `""` is what its root is called."""
    return _fault(name) is None


def check_tree_name(name: str) -> None:
    """Refuse a name of a tree that is not plain. What is allowed is compared as it is.

    Directories with other names are synced under a name of the caller's choice; the names of the
    files inside have rules of their own (`asyncsync.names.check_path`).

    Raises:
        RefusedError: and says which rule it breaks.
    """
    if reason := _fault(name):
        shown = quote(name[:200]) or "''"
        raise RefusedError(f"tree {shown} refused: {reason}", paths=[name[:MAX_TREE_BYTES]])


def _fault(name: str) -> str | None:
    if not name:
        return None
    # What follows looks at every character, and what is allowed is ASCII: as many bytes.
    if len(name) > MAX_TREE_BYTES:
        return f"its name is {len(name)} long; {MAX_TREE_BYTES} is the limit"
    components = name.split("/")
    if len(components) > MAX_DEPTH:
        return f"it is {len(components)} levels deep; {MAX_DEPTH} is the limit"
    if not all(map(_COMPONENT.fullmatch, components)):
        return (
            "each part of its name begins with a letter or digit, goes on with those and . _ = , + "
            "@ - and has at most 200; choose another name"
        )
    # On its way to a bucket such a tree would be taken for the parts of an upload.
    if any(map(PARTS.fullmatch, components)):
        return "its name is one that asyncsync gives to parts of uploads; choose another name"
    return None


def check_session_id(text: str) -> None:
    """Refuse what is not 32 hexadecimal digits in lower case.

    Raises:
        RefusedError: it is not.
    """
    if _SESSION.fullmatch(text) is None:
        raise RefusedError(f"{quote(text[:40]) or 'nothing'} is no id of a session: 32 hex digits")


def parse_index(text: str) -> int:
    """Read the number of a blob, which has one spelling.

    Raises:
        RefusedError: not a decimal of at most ten digits without sign and leading zeros.
    """
    if _INDEX.fullmatch(text) is None:
        raise RefusedError(f"{quote(text[:40]) or 'nothing'} is no index: at most 10 digits")
    return int(text)
