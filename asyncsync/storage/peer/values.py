"""Values of the protocol as values of the store, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast, get_args

from ...errors import PermanentError, quote
from ...units import MIB
from ...wire import messages as m
from ..groups import Group
from ..http import Answer
from ..trees import Durability, File

__all__ = ["batches", "digest_of", "durability_of", "length_of", "line_of", "member_of", "range_of"]

T = TypeVar("T")

_BATCH_BYTES = 8 * MIB
_BATCH_FILES = 1024
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
_LENGTH = re.compile(r"[0-9]{1,19}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def batches(items: Sequence[T], size_bytes: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Cut into what one request carries: a few MiB, or one alone."""
    start = total = 0
    for at, item in enumerate(items):
        if at > start and (total + size_bytes(item) > _BATCH_BYTES or at - start == _BATCH_FILES):
            yield items[start:at]
            start, total = at, 0
        total += size_bytes(item)
    if start < len(items):
        yield items[start:]


def durability_of(text: str, what: str) -> Durability:
    """PermanentError: a level that this release does not know."""
    if text not in get_args(Durability):
        raise PermanentError(f"{what}: the head speaks of {quote(text[:20])}; upgrade asyncsync")
    return cast("Durability", text)


def digest_of(text: str, what: str) -> str:
    """PermanentError: no digest."""
    if _DIGEST.fullmatch(text) is None:
        raise PermanentError(f"{what}: the head answers with what is no digest; upgrade it")
    return text


def line_of(file: File) -> m.FileLine:
    """A file, for a plan."""
    return m.FileLine(m.text_of(file.path), file.size_bytes, file.mode & 0o777, file.mtime_ns)


def member_of(group: Group) -> m.Member:
    """A writer of a group, as it is sent."""
    return m.Member(id=group.id, rank=group.rank, size=group.size)


def length_of(text: str | None, what: str) -> int:
    """PermanentError: no length."""
    if text is None or _LENGTH.fullmatch(text) is None:
        raise PermanentError(f"{what}: the head does not say how long it is")
    return int(text)


def range_of(answer: Answer) -> tuple[int, int, int] | None:
    """Start, end (exclusive) and the length of the whole, as a head says; None: it does not."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return (int(found[1]), int(found[2]) + 1, int(found[3])) if found else None
