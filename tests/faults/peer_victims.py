"""Heads and workers as processes that end themselves, without a goodbye, at an exact step.

Started as a program it has everything imported, and forks a process for every line it reads: an
order. What happens is told line by line: the process's id, what it has to say, and how it ended.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest

from asyncsync.errors import AsyncSyncError
from asyncsync.peer import PeerServer
from asyncsync.peer.handlers import HANDLERS
from asyncsync.secrets import Secret
from asyncsync.storage import Group
from asyncsync.storage.connection import Connection
from asyncsync.storage.local import publish
from asyncsync.storage.peer.link import Link
from asyncsync.syncing import StorageSyncer
from asyncsync.wire.tokens import HeadKey, KeyRing

from ..system.peer_place import use_small_chunks
from ..system.s3_place import Hurry

__all__ = ["DISK", "Victims"]

_ROOT = Path(__file__).parents[2]
DISK = ("fsync", "mkdir", "rename", "unlink", "rmdir", "rename_new", "exchange")
"""What a head does to its disk, as far as it can die there."""


class Victims:
    """Forks processes on demand, one at a time; use it with `async with`."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None
        self.pid = 0

    async def __aenter__(self) -> Self:
        path = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.peer_victims",
            env={**os.environ, "PYTHONPATH": path},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        await self._process.wait()

    async def start(self, **order: Any) -> None:
        """Fork a process that carries out the order; `pid` is its id."""
        assert self._process is not None
        assert self._process.stdin is not None
        environ = {name: os.environ.get(name, "") for name in _INHERITED}
        line = json.dumps({**order, "environ": environ})
        self._process.stdin.write(f"{line}\n".encode())
        self.pid = int((await self.said()).removeprefix("pid "))

    async def said(self) -> str:
        """The next line."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode().strip()
        if not line:
            raise RuntimeError("the process that forks has ended; its traceback is on stderr")
        if line.startswith("ended "):
            self.pid = 0
        return line

    async def run(self, **order: Any) -> tuple[str, int]:
        """Let a process carry out an order to its end: the last thing it said, and its status."""
        await self.start(**order)
        said = ""
        while not (line := await self.said()).startswith("ended "):
            said = line
        return said, int(line.removeprefix("ended "))


_INHERITED = ("ASYNCSYNC_JOIN", "ASYNCSYNC_CACHE_DIR", "HOME")


# -- in the forked process


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _at(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """Acts when it is called for the n-th time."""
    numbers = count(1)

    def step() -> None:
        if next(numbers) == number:
            act()

    return step


def _plan_worker(when: str, number: int) -> None:
    """End at the n-th request: before it, when it has been handed over, or when it is answered."""
    step = _at(number, _stop if when == "stop" else _die)
    once, write = Link._once, Connection._write

    async def asking(link: Link, *rest: Any) -> Any:
        if when in ("before", "stop"):
            step()
        found = await once(link, *rest)
        if when == "answered":
            step()
        return found

    async def writing(connection: Connection, head: bytes, body: Any) -> None:
        await write(connection, head, body)
        if when == "sent":
            step()

    Link._once = asking  # type: ignore[assignment, method-assign]
    Connection._write = writing  # type: ignore[assignment, method-assign]


def _plan_head(when: str, number: int) -> None:
    """End before or after the n-th request is dealt with, or before the n-th call of a kind."""
    step = _at(number, _die)
    if when in DISK:
        place: Any = publish if when in ("rename_new", "exchange") else os
        call = getattr(place, when)

        def calling(*args: Any, **settings: Any) -> Any:
            step()
            return call(*args, **settings)

        setattr(place, when, calling)
        return

    def around(handler: Any) -> Any:
        async def handle(*args: Any) -> Any:
            if when == "before":
                step()
            found = await handler(*args)
            if when == "after":
                step()
            return found

        return handle

    for name, handler in HANDLERS.items():
        HANDLERS[name] = around(handler)


async def _worker(order: dict[str, Any]) -> None:
    async with StorageSyncer(
        isolation="loop", clock=Hurry(), max_requests=1, max_files=1
    ) as syncer:
        try:
            receipt = await syncer.sync_up(
                order["source"],
                order["location"],
                kind=order["kind"],
                replace=order["replace"],
                group=Group(**order["group"]) if "group" in order else None,
            )
        except AsyncSyncError as exc:
            print("failed", type(exc).__name__, flush=True)
        else:
            print("committed", receipt.identity, flush=True)


def _show(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if isinstance(exc := context.get("exception"), BaseException):
        sys.excepthook(type(exc), exc, exc.__traceback__)


async def _head(order: dict[str, Any]) -> None:
    asyncio.get_running_loop().set_exception_handler(_show)
    keys = KeyRing((HeadKey(id=order["id"], secret=Secret(order["secret"])),))
    async with PeerServer(order["root"], port=order["port"], keys=keys):
        print("ready", flush=True)
        await asyncio.sleep(3600)


def _work(order: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.environ.update({k: v for k, v in order["environ"].items() if v})
    use_small_chunks(pytest.MonkeyPatch())
    plan, act = (_plan_worker, _worker) if order["role"] == "worker" else (_plan_head, _head)
    if order.get("number"):
        plan(order["when"], order["number"])
    asyncio.run(act(order))


def _child(order: dict[str, Any]) -> None:
    status = 1
    try:
        _work(order)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        os._exit(status)


def _main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            print("pid", os.getpid(), flush=True)
            _child(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _main()
