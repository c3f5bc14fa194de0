"""One writer of a target at a time, over all engines of a user on this machine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio import to_thread

from ...digest import digest
from ...errors import BusyError
from ...storage.local import Lock
from .launch import run_directory

__all__ = ["turn"]

_LOOK_S = 0.1


@asynccontextmanager
async def turn(target: str) -> AsyncIterator[None]:
    """Wait until nobody writes `target`, and be the one who does.

    A program that was killed and is started again comes upon the engine that is still at work for
    its predecessor. Beside it, it would take its own writer for dead.
    """
    directory = await to_thread.run_sync(_open)
    try:
        lock = await _taken(directory, target)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(lock.release)
    finally:
        os.close(directory)


async def _taken(directory: int, target: str) -> Lock:
    name = f"{digest(os.fsencode(target))[:32]}.lock"
    while True:
        try:
            return await to_thread.run_sync(Lock.take, directory, name, target)
        except BusyError:
            await anyio.sleep(_LOOK_S)


def _open() -> int:
    return os.open(run_directory(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
