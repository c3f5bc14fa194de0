"""The training of examples/two_nodes.sh: it restores what is there, trains, and saves."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path

import asyncsync

STEPS = 10


def load(directory: str) -> dict[str, float]:
    state: dict[str, float] = json.loads(Path(directory, "state.json").read_text())
    return state


def save(state: dict[str, float]) -> str:
    directory = Path(f"checkpoint_{state['step']:06}")
    directory.mkdir()
    (directory / "state.json").write_text(json.dumps(state))
    return directory.name


async def train(location: str, die_at: int | None) -> None:
    # Can this node save there? If not, it is said now, and not at the first checkpoint.
    await asyncsync.check_reach(location)

    state: dict[str, float] = {"step": 0, "weights": 0.0}
    async with asyncsync.StorageSyncer() as syncer:
        if await syncer.latest(location):
            await syncer.restore(location, "restored")
            state = load("restored")
            print(f"goes on from step {state['step']}")
        while state["step"] < STEPS:
            state = {"step": state["step"] + 1, "weights": state["weights"] + 0.5}
            if state["step"] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if state["step"] % 2 == 0:
                name = save(state)
                receipt = await syncer.sync_up(name, f"{location}/{name}")
                print(f"step {state['step']} is saved: {receipt.durability}")
    print(f"trained: {state}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("location")
    parser.add_argument("--die-at", type=int, metavar="STEP")
    given = parser.parse_args()
    asyncio.run(train(given.location, given.die_at))
