"""Sync with a program of your own choice instead of asyncsync's engine: here rsync.

    python examples/command_syncer.py SOURCE TARGET

The patterns are asyncsync's; rsync gets the names that they leave, each followed by a NUL.
"""

from __future__ import annotations

import asyncio
import sys

from asyncsync import CommandSyncer


async def main(source: str, target: str) -> None:
    rsync = CommandSyncer(
        sync_up="rsync -a --from0 --files-from={filelist0} {source}/ {target}/",
        sync_down="rsync -a {source}/ {target}/",
        delete="rm -r -- {target}",
        sync_timeout=600,
    )
    await rsync.sync_up(source, target, exclude=["*.tmp", "cache/"])
    print(f"{source} is in {target}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2]))
