"""Two hundred short trials in one process, each with a directory and a checkpoint of its own.

    python examples/orchestrator.py STORE

One scheduler syncs them all, four at a time: what is urgent first, and nothing is forgotten, also
not what a trial wrote that failed.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncsync

TRIALS = 200
AT_ONCE = 20


def write(directory: Path, name: str, text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)


async def run_trial(scheduler: asyncsync.SyncScheduler, work: Path, number: int) -> None:
    """Three iterations and a checkpoint; every tenth trial fails on the way."""
    name = f"trial_{number:05}"
    directory = work / name
    chance = random.Random(number)
    scheduler.add(name, local_dir=directory)
    try:
        for iteration in range(1, 4):
            await asyncio.sleep(chance.uniform(0, 0.01))  # the training step
            await asyncio.to_thread(write, directory, "progress.csv", f"{iteration}\n" * iteration)
            scheduler.report(name, training_iteration=iteration, time_total_s=iteration * 0.01)
            if number % 10 == 0 and iteration == 2:
                raise RuntimeError("this trial has diverged")
        saved = directory / "checkpoint_000003"
        await asyncio.to_thread(write, saved, "model.txt", name)
        await scheduler.checkpoint(name, saved, step=3)
    finally:
        await scheduler.complete(name)  # raises if something could not be made durable


async def main(store: str, work: Path) -> None:
    config = asyncsync.SyncConfig(upload_dir=store, sync_period=1)
    failed = 0
    slots = asyncio.Semaphore(AT_ONCE)
    async with asyncsync.SyncScheduler(config=config, max_syncs=4) as scheduler:

        async def one(number: int) -> None:
            nonlocal failed
            async with slots:
                try:
                    await run_trial(scheduler, work, number)
                except RuntimeError:
                    failed += 1

        async with asyncio.TaskGroup() as trials:
            for number in range(TRIALS):
                trials.create_task(one(number))
    sealed = 0
    rolling = 0
    async for commit in asyncsync.commits(store):
        sealed += commit.kind == "sealed"
        rolling += commit.kind == "rolling"
    print(f"{TRIALS} trials, {failed} failed: {rolling} directories, {sealed} checkpoints durable")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with TemporaryDirectory() as work:
        location = sys.argv[1]
        if "://" not in location:
            location = Path(location).resolve().as_uri()
        asyncio.run(main(location, Path(work)))
