"""Five lines in the place of `aws s3 sync DIR s3://...` in an async training loop.

    python examples/replace_aws_s3_sync.py s3://BUCKET/RUN

Credentials, region and endpoint come from where the AWS tools take them: the environment
(AWS_ENDPOINT_URL for a store of your own), profiles, the role of the machine.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncsync


async def train_step(work: Path, step: int) -> Path:
    """Stand-in for training and torch.save: a directory of its own for every checkpoint."""
    directory = work / f"step_{step:06}"
    await asyncio.to_thread(directory.mkdir)
    await asyncio.to_thread((directory / "model.bin").write_bytes, bytes(1_000_000))
    return directory


async def main(store: str, work: Path) -> None:
    async with asyncsync.StorageSyncer() as syncer:
        for step in range(1, 4):
            directory = await train_step(work, step)
            # was: aws s3 sync "$directory" "$store/$name"
            await syncer.sync_up(directory, f"{store}/{directory.name}", step=step)
        newest = await syncer.latest(store)
    print("newest:", newest and newest.location)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with TemporaryDirectory() as work:
        asyncio.run(main(sys.argv[1], Path(work)))
