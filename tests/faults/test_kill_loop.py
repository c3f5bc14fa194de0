"""SIGKILL at every system call of a commit, an update, a replace and a delete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp

import anyio
import pytest

from .crash_scenarios import FRONT_DOOR, GROUPS, SCENARIOS, Scenario, assert_tidy, look
from .killer import CALLS, Killer

pytestmark = pytest.mark.slow


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory where there is one: only processes die here, not the machine."""
    shm = Path("/dev/shm")
    folder = mkdtemp(prefix="kill-", dir=shm if os.access(shm, os.W_OK) else None)
    yield Path(folder)
    rmtree(folder)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [*FRONT_DOOR, *GROUPS])
def test_killed_at_any_call_the_tree_is_whole_and_the_next_run_finishes(
    name: str, memory: Path
) -> None:
    points = _kill_at_each({**FRONT_DOOR, **GROUPS}[name], name, memory)

    assert len(points) > 50
    assert {call for call, _ in points} >= {"openat2", "fsync", "close"}


# Where the first run dies, so that the next one has something to finish.
HALFWAY = {
    "new": ("renameat2", 1),
    "update": ("renameat", 2),
    "replace": ("unlinkat", 3),
    "replace-by-two-renames": ("renameat", 2),
    "delete": ("unlinkat", 3),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", HALFWAY)
def test_killed_while_it_finishes_what_a_killed_one_began_the_tree_is_whole_as_well(
    name: str, memory: Path
) -> None:
    points = _kill_at_each(SCENARIOS[name], name, memory, first=HALFWAY[name])

    assert len(points) > 50


Point = tuple[str, int]


def _kill_at_each(
    scenario: Scenario, name: str, folder: Path, *, first: Point | None = None
) -> list[Point]:
    """Kill at the first, second, ... call of each kind; return where that happened."""

    def kill(calls: tuple[str, ...]) -> list[Point]:
        points: list[Point] = []
        # The directories that are synced are made beside the base: a folder for each thread.
        with Killer() as killer, TemporaryDirectory(dir=folder) as mine:
            for call in calls:
                for number in count(1):
                    base = mkdtemp(dir=mine)
                    anyio.run(scenario.prepare, base)
                    if first:
                        assert killer.run_until(name, base, *first).killed
                    if not _kill_once(killer, scenario, name, base, (call, number)):
                        break
                    points.append((call, number))
                    rmtree(base)
        return points

    with ThreadPoolExecutor(2) as pool:
        return [point for points in pool.map(kill, (CALLS[::2], CALLS[1::2])) for point in points]


def _kill_once(killer: Killer, scenario: Scenario, name: str, base: str, point: Point) -> bool:
    """One run, what readers see then, and the run after it; False if it was not killed."""
    outcome = killer.run_until(name, base, *point)

    seen = anyio.run(look, base)
    whole = (scenario.after,) if outcome.acknowledged else (scenario.before, scenario.after)
    assert seen in whole, f"killed at {point}"
    killer.run(name, base)
    assert anyio.run(look, base) == scenario.after, f"after the kill at {point}"
    assert_tidy(base, scenario.after)
    return outcome.killed
