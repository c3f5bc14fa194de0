"""A client in a process of its own: does one job and prints what it measured, as JSON.

All of Python runs on uvloop. The clock starts when the client's modules are imported and the
process waits for work; it stops when everything is closed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvloop

from .measure import pss_bytes
from .trainer import Lag, Trainer
from .work import MIB, Job

if TYPE_CHECKING:
    from asyncsync.syncing import Isolation

__all__: list[str] = []

_IMPORTS = {
    "asyncsync": ("asyncsync.storage.s3", "asyncsync.syncing", "aiobotocore.session"),
    "bare client": ("aiohttp", "asyncsync.storage.s3.signing"),
    "obstore": ("obstore.store",),
    "aiobotocore": ("aiobotocore.session",),
    "s3fs": ("s3fs",),
    "scheduler": ("asyncsync.scheduling",),
    "64 clients": (),
    "bare pipe": ("tests.benchmarks.pipe",),
    "bare pipe, TLS": ("tests.benchmarks.pipe", "asyncsync.peer.authority"),
}
_PEER_IMPORTS = ("asyncsync.storage.peer", "asyncsync.syncing")
_PROGRAMS, _CLIENTS = 4, 16


async def _asyncsync(job: Job) -> dict[str, float] | None:
    from asyncsync import DeadlineError, StorageSyncer

    s3 = f"s3://{job.bucket}/{job.key}"
    there = f"{job.url}/{job.bucket}/{job.key}" if job.url.startswith("peer") else s3
    isolation = cast("Isolation", job.isolation)
    async with StorageSyncer(
        isolation=isolation, bwlimit=job.bwlimit, sync_timeout=job.timeout_s
    ) as syncer:
        try:
            if job.action == "down":
                await syncer.sync_down(there, job.local)
            else:
                again = job.action == "one byte"
                receipt = await syncer.sync_up(job.local, there, replace=again)
                return {"sent_files": receipt.sent_files, "sent_bytes": receipt.sent_bytes}
        except DeadlineError:
            if job.timeout_s is None:
                raise
    return None


async def _obstore(job: Job) -> None:
    from .objects import obstore_job

    await obstore_job(job)


async def _s3fs(job: Job) -> None:
    files = importlib.import_module("s3fs").S3FileSystem(endpoint_url=job.url)
    there = f"{job.bucket}/{job.key}/"
    if job.action == "down":
        await asyncio.to_thread(files.get, there, job.local, recursive=True)
    else:
        await asyncio.to_thread(files.put, f"{job.local}/", there, recursive=True)


async def _bare(job: Job) -> None:
    from .objects import bare_client, move

    async with bare_client(job) as objects:
        await move(job, objects)


async def _aiobotocore(job: Job) -> None:
    from .objects import botocore_client, move

    async with botocore_client(job) as objects:
        await move(job, objects)


async def _many_clients(job: Job) -> dict[str, float]:
    """Four programs of 16 clients each, who all push a tree of their own at the same time."""
    code = "import sys; from tests.benchmarks.client import crowd; crowd(sys.argv[1], sys.argv[2])"
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, json.dumps(asdict(job)), str(number),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for number in range(_PROGRAMS)
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        await process.stdout.readline()  # it is ready
    told = await asyncio.gather(*(process.communicate(b"go\n") for process in started))
    took = sorted(second for out, _ in told for second in json.loads(out))
    assert len(took) == _PROGRAMS * _CLIENTS, "one of the programs has failed"
    return {"slowest_ratio": took[-1] / took[len(took) // 2]}


def crowd(text: str, number: str) -> None:
    """One of those programs: says when it is ready, waits for a line, and says how long each took.

    A client is asyncsync with connections of its own.
    """
    job = Job(**json.loads(text))
    print("ready", flush=True)
    sys.stdin.readline()

    async def one(client: int) -> float:
        from asyncsync import StorageSyncer

        began = time.perf_counter()
        async with StorageSyncer(isolation="loop", memory_bytes=32 * MIB) as syncer:
            await syncer.sync_up(job.local, f"{job.url}/{job.bucket}/tree-{number}-{client}")
        return time.perf_counter() - began

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*map(one, range(_CLIENTS)))

    print(json.dumps(uvloop.run(all_of_them())))


async def _bare_tls_pipe(job: Job) -> dict[str, float]:
    from asyncsync.peer.certificates import prepare_certificates
    from asyncsync.wire.trust import client_context

    with tempfile.TemporaryDirectory() as state:
        made = prepare_certificates(Path(state) / "made", ["127.0.0.1"], now=time.time())
        context = client_context(made.authority, fingerprint=made.fingerprint)
        return await _bare_pipe(job, context, str(made.file))


async def _bare_pipe(
    job: Job, context: ssl.SSLContext | None = None, *certificate: str
) -> dict[str, float]:
    from .pipe import send

    target = Path(f"{job.local}-piped")
    target.mkdir()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.benchmarks.pipe", str(target), *certificate,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        began = time.perf_counter()
        await asyncio.to_thread(send, Path(job.local), port, context)
        return {"wall_s": time.perf_counter() - began}
    finally:
        await process.wait()
        shutil.rmtree(target)


async def _scheduler(job: Job) -> dict[str, float]:
    from .schedule import schedule

    del job  # it moves nothing
    return await schedule()


CLIENTS: dict[str, Callable[[Job], Awaitable[dict[str, float] | None]]] = {
    "asyncsync": _asyncsync,
    "bare client": _bare,
    "obstore": _obstore,
    "aiobotocore": _aiobotocore,
    "s3fs": _s3fs,
    "bare pipe": _bare_pipe,
    "bare pipe, TLS": _bare_tls_pipe,
    "scheduler": _scheduler,
    "64 clients": _many_clients,
}


async def measure(name: str, job: Job) -> dict[str, float]:
    trainer = Trainer(job.trainer) if job.trainer else None
    idle = await trainer.speed(2.0) if trainer else 0.0
    measured: dict[str, float] = {"base_bytes": pss_bytes()}
    async with asyncio.TaskGroup() as group:
        lag = Lag()
        beside = [group.create_task(lag.watch())] if trainer is None else []
        if trainer is not None:
            beside.append(group.create_task(trainer.train()))
        await asyncio.sleep(0.05)
        steps, before, began = trainer.steps if trainer else 0, os.times(), time.perf_counter()
        told = await CLIENTS[name](job) or {}
        wall_s, after = time.perf_counter() - began, os.times()
        measured |= {"wall_s": wall_s} | told
        measured["cpu_s"] = sum(after[:4]) - sum(before[:4])
        if trainer is not None:
            measured["steps_ratio"] = (trainer.steps - steps) / wall_s / idle
        for task in beside:
            task.cancel()
    return measured | (lag.summary() if trainer is None else {})


def main() -> None:
    name, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    for module in _IMPORTS[name] if not job.url.startswith("peer") else _PEER_IMPORTS:
        importlib.import_module(module)
    with contextlib.closing(uvloop.new_event_loop()) as loop:
        try:
            print(json.dumps(loop.run_until_complete(measure(name, job))))
        except BaseExceptionGroup as exc:
            cause: BaseException = exc
            while isinstance(cause, BaseExceptionGroup):
                cause = cause.exceptions[0]
            raise cause from None  # whoever started this reads the last line


if __name__ == "__main__":
    main()
