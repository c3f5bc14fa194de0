"""Multipart uploads in stores that have none: each part is a temporary object beside the key.

    <key>.asyncsync-parts-<upload id, 32 hex digits>/<number, 5 digits>

Number 0 is an empty object that marks an upload as begun; parts count from 1; what a store makes
while it joins them has higher numbers still. Pure names: whoever stores objects under them hides
them from scans.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..errors import NotFoundError, PermanentError, quote
from ..names import PARTS, parts_name
from .objects import Part, Upload

__all__ = [
    "FIRST_JOINED",
    "MARKER",
    "MAX_KEY_BYTES",
    "MAX_PARTS",
    "PartName",
    "check_part_number",
    "check_parts",
    "is_hidden",
    "new_upload",
    "parse_part",
    "part_key",
    "parts_prefix",
    "uploads_among",
]

MARKER = 0
MAX_PARTS = 10_000
FIRST_JOINED = MAX_PARTS + 1

_DIRECTORY = re.compile(PARTS.pattern + "/", PARTS.flags)
_OBJECT = re.compile(_DIRECTORY.pattern + "([0-9]{5})", PARTS.flags)
_SUFFIX_BYTES = len(parts_name("", "0" * 32)) + len("/00000")

MAX_KEY_BYTES = 1024 - _SUFFIX_BYTES
"""Longest key whose parts have names of at most 1,024 bytes."""


class PartName(NamedTuple):
    """What the name of a temporary object says."""

    key: str
    upload_id: str
    number: int


def new_upload(key: str) -> Upload:
    """An upload of `key` with an id of its own."""
    return Upload(key, secrets.token_hex(16))


def parts_prefix(upload: Upload) -> str:
    """What the names of all temporary objects of `upload` begin with.

    Raises:
        NotFoundError: its id is none of ours, so there is no such upload.
    """
    name = parts_name(upload.key, upload.upload_id) + "/"
    found = _DIRECTORY.fullmatch(name)
    if found is None or found[2] != upload.upload_id:
        raise NotFoundError(f"no upload of {quote(upload.key)}; begin it again")
    return name


def part_key(upload: Upload, number: int) -> str:
    """The name of temporary object `number` of `upload`. NotFoundError as for `parts_prefix`."""
    return f"{parts_prefix(upload)}{number:05}"


def parse_part(key: str) -> PartName | None:
    """The reverse of `part_key`; None for every other key."""
    found = _OBJECT.fullmatch(key)
    return PartName(found[1], found[2], int(found[3])) if found else None


def is_hidden(name: str) -> bool:
    """Whether `name`, of an object or of a level (which ends in a slash), is of parts."""
    return (_DIRECTORY if name.endswith("/") else _OBJECT).fullmatch(name) is not None


def uploads_among(keys: Iterable[str]) -> Iterator[Upload]:
    """The uploads that `keys` show to be in progress, each once."""
    seen: set[Upload] = set()
    for name in filter(None, map(parse_part, keys)):
        upload = Upload(name.key, name.upload_id)
        if upload not in seen:
            seen.add(upload)
            yield upload


def check_part_number(number: int) -> None:
    """PermanentError unless `number` is one that a part may have."""
    if not 1 <= number <= MAX_PARTS:
        raise PermanentError(f"part {number} is not between 1 and {MAX_PARTS}")


def check_parts(key: str, parts: Iterable[Part]) -> None:
    """PermanentError unless there are parts, each once and in order."""
    numbers = [part.number for part in parts]
    if not numbers or numbers != sorted(set(numbers)):
        raise PermanentError(f"the parts of {quote(key)} are not in order; list them so")
