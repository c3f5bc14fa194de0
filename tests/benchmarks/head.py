"""A head in a process of its own; at SIGUSR1 it says how it fared since the last time.

`python -m tests.benchmarks.head ROOT PORT STATE [tls]`: writes the join string to STATE/join, and
to STATE/fared how many requests came, how late its loop was, and its memory at the most.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from asyncsync.peer import PeerServer, handlers
from asyncsync.peer.certificates import Certificates, prepare_certificates, server_context
from asyncsync.wire.claims import Operation
from asyncsync.wire.joining import Join
from asyncsync.wire.limits import Limits

from .measure import pss_bytes
from .trainer import Lag

__all__: list[str] = []

_LOOK_S = 0.1


class Fared:
    """How the head fares."""

    def __init__(self) -> None:
        self.requests, self.peak_bytes, self.lag = 0, pss_bytes(), Lag()

    def counting(self, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """The same handler, counted."""

        async def counted(*args: Any) -> Any:
            self.requests += 1
            return await handler(*args)

        return counted

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self.peak_bytes = max(self.peak_bytes, await asyncio.to_thread(pss_bytes))

    def tell(self, path: Path) -> None:
        """Write it down and begin anew."""
        told = {"requests": float(self.requests), "head_pss_bytes": float(self.peak_bytes)}
        told |= {f"head_{name}": value for name, value in self.lag.summary().items()}
        path.with_suffix(".new").write_text(json.dumps(told))
        os.replace(path.with_suffix(".new"), path)
        self.requests, self.peak_bytes = 0, pss_bytes()
        self.lag.forget()


async def main(root: str, port: int, state: Path, *, tls: bool) -> None:
    fared = Fared()
    for name, handler in handlers.HANDLERS.items():
        handlers.HANDLERS[name] = fared.counting(handler)
    made: Certificates | None = None
    context: ssl.SSLContext | None = None
    if tls:
        made = prepare_certificates(state / "certificates", ["127.0.0.1"], now=time.time())
        context = server_context(made.file)
    limits = Limits(max_connections=4096, max_connections_per_address=4096)
    authority = made.authority if made else ""
    server = PeerServer(root, port=port, tls=context, authority=authority, limits=limits)
    async with server as head, asyncio.TaskGroup() as group:
        join = Join(
            address=head.address,
            fingerprint=made.fingerprint if made else None,
            token=head.token(operations=frozenset(Operation)),
        )
        (state / "join").write_text(join.line().reveal())
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, fared.tell, state / "fared")
        group.create_task(fared.watch())
        group.create_task(fared.lag.watch())


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), tls="tls" in sys.argv[4:]))
