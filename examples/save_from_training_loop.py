"""Save checkpoints from an async training loop without waiting for the upload.

    python examples/save_from_training_loop.py STORE

STORE is a local directory here; any location that asyncsync knows works the same way.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncsync


def write_checkpoint(directory: Path, step: int, loss: float) -> None:
    """Stand-in for torch.save and its relatives: a directory of its own for every checkpoint."""
    directory.mkdir()
    (directory / "model.bin").write_bytes(step.to_bytes(8, "little") * 100_000)
    (directory / "state.json").write_text(json.dumps({"step": step, "loss": loss}))


async def train(work: Path, store: str) -> None:
    """Train 30 steps and commit every tenth; raises if one could not be committed."""
    async with asyncsync.StorageSyncer() as syncer, asyncio.TaskGroup() as uploads:

        async def upload(directory: Path, step: int) -> None:
            receipt = await syncer.sync_up(directory, f"{store}/{directory.name}", step=step)
            print(f"step {step}: {receipt.sent_bytes} bytes, safe in {receipt.seconds:.2f} s")

        for step in range(1, 31):
            await asyncio.sleep(0.01)  # the training step
            if step % 10 == 0:
                directory = work / f"step_{step:06}"
                await asyncio.to_thread(write_checkpoint, directory, step, 1 / step)
                uploads.create_task(upload(directory, step))


async def main(store: str) -> None:
    with TemporaryDirectory() as work:
        await train(Path(work), store)
    newest = await asyncsync.latest(store)
    print("newest:", newest.location if newest else "none")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
