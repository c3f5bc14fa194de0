"""Errors of a whole tree: from those of a task group or of several files to the one to raise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ..errors import AsyncSyncError, SourceChangedError, TransferError, quote, quote_some
from ..names import sort_key

__all__ = ["one_error", "unstable"]


def unstable(source: str, what: str, paths: Iterable[str]) -> SourceChangedError:
    """The error for files of `source` that did not hold still; `what` they did."""
    names = sorted(paths, key=sort_key)
    return SourceChangedError(
        f"{len(names)} file(s) in {quote(source)} {what}: {quote_some(names)}; "
        "sync when nothing writes there",
        side="source",
        paths=names,
    )


@contextmanager
def one_error() -> Iterator[None]:
    """Raise what is inside an ExceptionGroup: a bug or the only failure as it is.

    Raises:
        TransferError: several files failed before the others could be cancelled.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        ours = [exc for exc in leaves if isinstance(exc, AsyncSyncError)]
        first = next((exc for exc in leaves if exc not in ours), leaves[0])
        if len(ours) < len(leaves) or len(ours) == 1:
            raise first from first.__cause__
        texts = list(dict.fromkeys(map(str, ours)))  # of a full disk, all say the same
        more = f"; and {len(texts) - 3} more" if len(texts) > 3 else ""
        shown = "; ".join(texts[:3]) + more
        raise TransferError(f"{len(ours)} files failed: {shown}", failures=ours) from group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc
