"""The one-shot functions for programs that are not async: `from asyncsync import sync`.

Each blocks until it is done. In a thread whose event loop is running already, as in a notebook,
the work is done in another thread, and that loop waits. There are no snapshots: when a call has
returned, all is done.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from . import oneshot
from .syncing import Commit, Path

__all__ = [
    "check_reach",
    "commits",
    "delete",
    "latest",
    "restore",
    "sync_down",
    "sync_up",
    "verify",
]

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(function(*args, **kwargs))
        with ThreadPoolExecutor(1, thread_name_prefix="asyncsync-sync") as pool:
            return pool.submit(lambda: asyncio.run(function(*args, **kwargs))).result()

    return run


async def _commits(remote_dir: Path) -> list[Commit]:
    """The commits at and below a location, newest first. See `StorageSyncer.commits`."""
    return [commit async for commit in oneshot.commits(remote_dir)]


check_reach = _blocking(oneshot.check_reach)
sync_up = _blocking(oneshot.sync_up)
sync_down = _blocking(oneshot.sync_down)
restore = _blocking(oneshot.restore)
delete = _blocking(oneshot.delete)
verify = _blocking(oneshot.verify)
latest = _blocking(oneshot.latest)
commits = _blocking(_commits)
