"""Which relative paths a tree may hold, and which names are ours.

A path is a `str` with `/` between components; bytes that are not UTF-8 travel as surrogate
escapes, the way `os.fsdecode` makes them, so every name of a Linux disk has one spelling here.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

from .digest import digest
from .errors import RefusedError, quote

__all__ = [
    "ATTEMPT",
    "LAST_FILES",
    "LOCK",
    "MANIFEST",
    "MAX_COMPONENT_BYTES",
    "MAX_DEPTH",
    "MAX_PATH_BYTES",
    "NEXT",
    "PARTS",
    "ROOT_MARKER",
    "check_path",
    "check_set",
    "holder_name",
    "holder_of",
    "is_commit_file",
    "is_group",
    "is_ours",
    "is_part",
    "is_snapshot",
    "is_stage",
    "new_attempt",
    "parents_of",
    "part_name",
    "parts_name",
    "path_from_json",
    "path_to_json",
    "sort_key",
]

MANIFEST = ".asyncsync.json"
ATTEMPT = ".asyncsync-attempt.json"
ROOT_MARKER = ".asyncsync-root.json"
LOCK = ".asyncsync-lock"
NEXT = ".asyncsync-next"

MAX_COMPONENT_BYTES = 255
MAX_PATH_BYTES = 4095
MAX_DEPTH = 64

LAST_FILES = frozenset(
    {
        "commit_success.txt",  # Orbax
        ".metadata",  # PyTorch DCP
        ".snapshot_metadata",  # torchsnapshot
    }
)
"""What frameworks write into a checkpoint when all else is there."""

_COMMIT_FILES = LAST_FILES | {
    "_CHECKPOINT_METADATA",  # Orbax, which also writes it first
    "latest",  # DeepSpeed
    "latest_checkpointed_iteration.txt",  # Megatron
}

_RESERVED = ".asyncsync"
_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_HOLDER = re.compile(
    r"\.(?P<name>.*)\.asyncsync-(?P<kind>tmp|trash|snap|group)-[0-9a-f]{32}", re.DOTALL
)
_INNER = re.compile(r"\.asyncsync-(?P<kind>tmp|group)-[0-9a-f]{32}")
_PART = re.compile(r"\.asyncsync-part-[0-9a-f]{32}-[0-9]+(-attempt)?\.json")

PARTS = re.compile(r"(.+)\.asyncsync-parts-([0-9a-f]{32})", re.DOTALL)
"""What `parts_name` makes, and what it was made of. No file or directory may have such a name: a
store takes what is below for parts, and deletes it when the upload is over."""


def new_attempt() -> str:
    """A name that no other attempt has: 128 random bits in hexadecimal."""
    return secrets.token_hex(16)


def holder_name(name: str, kind: str, attempt: str) -> str:
    """The hidden sibling in which an attempt keeps what nobody may see yet, or any more.

    `name` may be empty: the holder then lies inside the tree itself. A long name is cut to what
    a directory entry can hold; a digest then tells it from others that begin alike.

    Raises:
        ValueError: `attempt` is none, and might lead somewhere else.
    """
    if _ATTEMPT.fullmatch(attempt) is None:
        raise ValueError(f"an attempt is 32 hexadecimal digits, not {attempt!r}")
    if not name:
        return f".asyncsync-{kind}-{attempt}"
    raw = os.fsencode(name)
    room = MAX_COMPONENT_BYTES - len(f"..asyncsync-{kind}-{attempt}")
    if len(raw) > room:
        mark = f"~{digest(raw)[:32]}".encode()
        raw = raw[: room - len(mark)] + mark
    return f".{os.fsdecode(raw)}.asyncsync-{kind}-{attempt}"


def holder_of(entry: str, name: str) -> str | None:
    """What kind of holder of the tree `name` beside it `entry` is: `tmp`, `trash`, `snap`, `group`.

    None if it is none.
    """
    match = _HOLDER.fullmatch(entry)
    if match is None:
        return None
    kind = match["kind"]
    return kind if entry == holder_name(name, kind, entry[-32:]) else None


def is_stage(entry: str) -> bool:
    """Whether a name is that of the holder in which an attempt gathers a tree."""
    match = _HOLDER.fullmatch(entry) or _INNER.fullmatch(entry)
    return match is not None and match["kind"] == "tmp"


def is_group(entry: str) -> bool:
    """Whether a name is that of the holder in which many writers gather the parts of a tree."""
    match = _HOLDER.fullmatch(entry) or _INNER.fullmatch(entry)
    return match is not None and match["kind"] == "group"


def is_snapshot(entry: str) -> bool:
    """Whether a name is that of the holder of some tree's snapshot."""
    match = _HOLDER.fullmatch(entry)
    return match is not None and match["kind"] == "snap"


def parts_name(key: str, upload_id: str) -> str:
    """What the parts of an upload of `key` lie below, in a store that has no such uploads."""
    return f"{key}.asyncsync-parts-{upload_id}"


def part_name(attempt: str, rank: int, *, record: bool = False) -> str:
    """What one of many writers leaves in an object store; or its attempt record."""
    return f".asyncsync-part-{attempt}-{rank}{'-attempt' if record else ''}.json"


def is_part(component: str) -> bool:
    """Whether `part_name` made a name."""
    return _PART.fullmatch(component) is not None


def is_ours(component: str) -> bool:
    """Whether a name is one that asyncsync itself makes: never part of anybody's tree."""
    return (
        component in (MANIFEST, ATTEMPT, ROOT_MARKER, LOCK, NEXT)
        or _INNER.fullmatch(component) is not None
        or _HOLDER.fullmatch(component) is not None
        or is_part(component)
    )


def is_commit_file(path: str) -> bool:
    """Whether a training framework takes this file for the sign that a checkpoint is complete.

    Such files arrive after all others, so that a framework's own reader, which does not know
    manifests, is as safe as its rule allows.
    """
    name = path.rpartition("/")[2]
    return name in _COMMIT_FILES or name.endswith(".index.json")


def path_to_json(path: str) -> str | list[str]:
    """A path as JSON: text, or base64 in a list when its bytes are not UTF-8."""
    if path.isascii():
        return path
    raw = os.fsencode(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return [base64.b64encode(raw).decode("ascii")]


def path_from_json(text: str | list[str]) -> str:
    """What `path_to_json` was made of. ValueError: it is not what that makes."""
    if isinstance(text, str):
        return text
    (encoded,) = text
    path = os.fsdecode(base64.b64decode(encoded, validate=True))
    if path_to_json(path) != text:
        raise ValueError("a name is not in canonical form")
    return path


def sort_key(path: str) -> bytes:
    """The order of paths everywhere: by bytes."""
    return path.encode("ascii") if path.isascii() else os.fsencode(path)


def check_path(path: str) -> None:
    """Refuse a path that is not plain, relative, bounded and free of our own names.

    Raises:
        RefusedError: and says which rule it breaks.
    """
    if reason := _fault(path):
        name = quote(path[:200]) or "''"
        raise RefusedError(f"name {name} refused: {reason}", paths=[path])


def _fault(path: str) -> str | None:
    try:
        raw = sort_key(path)
    except UnicodeEncodeError:
        return "it holds half a surrogate pair, which no file name can"
    components = raw.split(b"/")
    if len(raw) > MAX_PATH_BYTES:
        return f"it is {len(raw)} bytes long; {MAX_PATH_BYTES} is the limit"
    if len(components) > MAX_DEPTH:
        return f"it is {len(components)} levels deep; {MAX_DEPTH} is the limit"
    if b"\0" in raw:
        return "it holds a NUL byte"
    if not path.isascii() and os.fsdecode(raw) != path:
        return "it is not the way Python spells that name"
    return next(filter(None, map(_component_fault, components)), None)


def _component_fault(component: bytes) -> str | None:
    if component in (b"", b".", b".."):
        return "it must be relative, without empty, '.' or '..' components"
    if len(component) > MAX_COMPONENT_BYTES:
        return f"a component is {len(component)} bytes long; {MAX_COMPONENT_BYTES} is the limit"
    if component.startswith(_RESERVED.encode()):
        return f"names that begin with {_RESERVED} are reserved; rename it"
    if b".asyncsync-" in component and _is_temporary(os.fsdecode(component)):
        return "its name is that of a temporary directory of asyncsync; rename it"
    return None


def _is_temporary(component: str) -> bool:
    # Parts are never made on a disk: there a walk has to meet such a name, not to pass over it.
    return is_ours(component) or PARTS.fullmatch(component) is not None


def check_set(
    files: Sequence[str], directories: Sequence[str] = (), nested: Sequence[str] = ()
) -> None:
    """Refuse a set of paths that no tree can hold.

    Args:
        files: paths of files.
        directories: paths of directories that must exist, such as empty ones.
        nested: paths of directories that are commits of their own.

    Raises:
        RefusedError: a path is there twice, is a file and a directory, or lies inside a commit
            that lists its own files; and names one of the paths.
    """
    above = parents_of(chain(files, directories))
    _refuse_any(above.intersection(nested), "is a commit of its own, and its files are its own")
    above.update(directories, nested, parents_of(nested))
    _refuse_any(above.intersection(files), "is a file and a directory")
    paths = set(chain(files, directories, nested))
    if len(paths) < len(files) + len(directories) + len(nested):
        counts = Counter(chain(files, directories, nested))
        _refuse_any((path for path, count in counts.items() if count > 1), "is listed twice")


def parents_of(paths: Iterable[str]) -> set[str]:
    """Every directory that one of `paths` lies in."""
    found: set[str] = set()
    for path in paths:
        above = path.rpartition("/")[0]
        while above and above not in found:
            found.add(above)
            above = above.rpartition("/")[0]
    return found


def _refuse_any(paths: Iterable[str], reason: str) -> None:
    first = min(paths, key=sort_key, default=None)
    if first is not None:
        raise RefusedError(f"name {quote(first)} refused: it {reason}", paths=[first])
