"""One checkpoint by four processes, of which one is killed in the middle and started again.

    python examples/sharded_checkpoint.py STORE

Each process is a rank of a distributed trainer and saves its own shard. Readers see the checkpoint
when all four are there, and nothing before; the ranks never talk to one another. STORE is a local
directory here; S3 and Google Cloud Storage work the same way.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncsync
from asyncsync.events import Event, Moved

RANKS = 4
STEP = 30


def write_shard(directory: Path, rank: int) -> None:
    """Stand-in for torch.distributed.checkpoint and its relatives."""
    directory.mkdir(exist_ok=True)
    (directory / f"shard_{rank}_of_{RANKS}.bin").write_bytes(bytes([rank]) * 1_000_000)
    if rank == 0:
        (directory / "config.json").write_text('{"layers": 12}')


async def save(store: str, work: Path, rank: int, *, dies: bool) -> None:
    """What every rank does after step 30. All of one run of the trainer name the same id."""

    def observe(event: Event) -> None:
        if dies and isinstance(event, Moved):
            os.kill(os.getpid(), signal.SIGKILL)

    part = work / f"rank_{rank}"
    await asyncio.to_thread(write_shard, part, rank)
    receipt = await asyncsync.sync_up(
        part,
        f"{store}/step_{STEP:06}",
        group=asyncsync.Group(id=f"run 1, step {STEP}", rank=rank, size=RANKS, deadline_s=60),
        observe=observe,
    )
    sent = receipt.sent_bytes + receipt.resumed_bytes  # a rank that was killed goes on
    print(f"rank {rank} brought {sent} of {receipt.size_bytes} bytes")


async def launch(store: str, work: str) -> None:
    """What a launcher does: starts a process for each rank, and again one that dies."""

    async def run(rank: int, *mode: str) -> tuple[int, str]:
        command = [sys.executable, __file__, store, work, str(rank), *mode]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        said, _ = await process.communicate()
        return await process.wait(), said.decode()

    async def keep_running(rank: int) -> str:
        status, said = await run(rank, *(["dies"] if rank == 2 else []))
        if status == -signal.SIGKILL:
            print(f"rank {rank} was killed; readers see {await asyncsync.latest(store)}")
            status, said = await run(rank)
        assert status == 0
        return said

    said = await asyncio.gather(*map(keep_running, range(RANKS)))
    print("".join(said), end="")
    report = await asyncsync.verify(f"{store}/step_{STEP:06}")
    print(f"{report.files} files, whole: {report.ok}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if len(sys.argv) == 2:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as work:
            asyncio.run(launch(sys.argv[1], work))
    else:
        _, store, work, rank, *mode = sys.argv
        asyncio.run(save(store, Path(work), int(rank), dies=mode == ["dies"]))
