"""Work that may take longer than anybody waits for an answer: it goes on, to be asked for again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from ..wire.failures import WorkingError

__all__ = ["in_time"]

T = TypeVar("T")

_ANSWER_S = 30.0  # half of the time after which a worker gives up a request in which nothing moves


async def in_time(group: TaskGroup, work: Callable[[], Awaitable[T]]) -> T:
    """Await `work()`, which can be asked for again and then waits for what is under way.

    Cancelled, it goes on as well, for as long as the group does.

    Raises:
        WorkingError: it takes longer, and goes on. How it fails then, hears whoever asks again.
    """
    results, failures, ended = list[T](), list[Exception](), anyio.Event()

    async def run() -> None:
        try:
            results.append(await work())
        except Exception as exc:  # noqa: BLE001 - it is for whoever waits below
            failures.append(exc)
        finally:
            ended.set()

    group.start_soon(run)
    with anyio.move_on_after(_ANSWER_S):
        await ended.wait()
    for failure in failures:
        raise failure
    for result in results:
        return result
    raise WorkingError("the head is still at it; ask again")
