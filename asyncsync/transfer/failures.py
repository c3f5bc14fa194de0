"""From what a task group raises to the one error a caller wants to see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import AsyncSyncError, TransferError

__all__ = ["one_error"]


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
        texts = "; ".join(str(exc) for exc in ours[:3])
        more = f"; and {len(ours) - 3} more" if len(ours) > 3 else ""
        raise TransferError(f"{len(ours)} files failed: {texts}{more}", failures=ours) from group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc
