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
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

import uvloop

from .measure import pss_bytes
from .trainer import Lag, Trainer
from .work import Job

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
}


async def _asyncsync(job: Job) -> None:
    from asyncsync import DeadlineError, StorageSyncer

    there = f"s3://{job.bucket}/{job.key}"
    isolation = cast("Isolation", job.isolation)
    async with StorageSyncer(
        isolation=isolation, bwlimit=job.bwlimit, sync_timeout=job.timeout_s
    ) as syncer:
        try:
            if job.action == "down":
                await syncer.sync_down(there, job.local)
            else:
                await syncer.sync_up(job.local, there)
        except DeadlineError:
            if job.timeout_s is None:
                raise


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
    "scheduler": _scheduler,
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
        measured |= await CLIENTS[name](job) or {}
        wall_s, after = time.perf_counter() - began, os.times()
        measured["wall_s"] = wall_s
        measured["cpu_s"] = sum(after[:4]) - sum(before[:4])
        if trainer is not None:
            measured["steps_ratio"] = (trainer.steps - steps) / wall_s / idle
        for task in beside:
            task.cancel()
    return measured | (lag.summary() if trainer is None else {})


def main() -> None:
    name, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    for module in _IMPORTS[name]:
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
