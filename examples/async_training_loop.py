"""A training loop that neither waits for uploads nor loses one: in the place of `aws s3 sync`.

    python examples/async_training_loop.py s3://BUCKET/RUNS

The store may be any location. Ctrl-C and SIGTERM, as spot machines send it, cancel the loop, and
what has been saved is made durable before the program ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncsync


def write_checkpoint(directory: Path, step: int) -> None:
    """Stand-in for torch.save and its relatives."""
    directory.mkdir()
    (directory / "model.bin").write_bytes(step.to_bytes(8, "little") * 100_000)


def log(work: Path, step: int) -> None:
    """What a trial writes beside its checkpoints goes along with them."""
    with (work / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")


async def train(scheduler: asyncsync.SyncScheduler, work: Path) -> None:
    for step in range(1, 31):
        await asyncio.sleep(0.01)  # the training step
        await asyncio.to_thread(log, work, step)
        scheduler.report("trial", training_iteration=step)
        if step % 10 == 0:
            directory = work / f"checkpoint_{step:06}"
            await asyncio.to_thread(write_checkpoint, directory, step)
            await scheduler.checkpoint("trial", directory, step=step)  # it may change from here on


async def main(store: str, work: Path) -> None:
    config = asyncsync.SyncConfig(upload_dir=store, sync_period=60)
    async with asyncsync.SyncScheduler(config=config) as scheduler:
        scheduler.add("trial", local_dir=work)
        async with scheduler.until_signal(deadline_s=100):
            await train(scheduler, work)
        report = await scheduler.drain()
    newest = await asyncsync.latest(f"{store}/trial")
    print(f"{len(report.durable)} durable, {len(report.lost)} lost")
    print("newest:", newest and newest.location)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with TemporaryDirectory() as work:
        location = sys.argv[1]
        if "://" not in location:
            location = Path(location).resolve().as_uri()
        asyncio.run(main(location, Path(work)))
