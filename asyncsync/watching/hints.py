"""Who says that something has changed, where the file system can; elsewhere nobody does."""

from __future__ import annotations

from collections.abc import Callable

import anyio.to_thread

from ..errors import quote
from ..mounts import network_of

__all__ = ["NoHints", "hints"]

_DEBOUNCE_MS = 1600
_ANSWER_MS = 200  # how long it may take to stop


class NoHints(Exception):  # noqa: N818 - no error: the directory is looked at more often instead
    """Why changes have to be looked for."""


async def hints(directory: str, changed: Callable[[], None]) -> None:
    """Call `changed` soon after something has changed in a directory, until it is cancelled.

    Raises:
        NoHints: it cannot be known here.
    """
    if kind := await anyio.to_thread.run_sync(network_of, directory):
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
