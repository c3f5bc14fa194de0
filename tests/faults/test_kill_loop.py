"""SIGKILL at every system call of a commit, an update, a replace and a delete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import anyio
import pytest

from .crash_scenarios import SCENARIOS, Tree, assert_tidy, look
from .killer import CALLS, Killer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A directory in memory where there is one: only processes die here, not the machine."""
    shm = Path("/dev/shm")
    folder = mkdtemp(prefix="kill-", dir=shm if os.access(shm, os.W_OK) else None)
    yield Path(folder)
    rmtree(folder)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_any_call_the_tree_is_whole_and_the_next_run_finishes(
    name: str, memory: Path
) -> None:
    with ThreadPoolExecutor(2) as pool:
        killed = list(pool.map(lambda calls: _kill_at_each(name, calls, memory), _shares(2)))

    assert {call for points in killed for call in points} >= {"openat2", "fsync", "close"}


def _shares(number: int) -> list[tuple[str, ...]]:
    return [CALLS[start::number] for start in range(number)]


def _kill_at_each(name: str, calls: tuple[str, ...], folder: Path) -> set[str]:
    """Kill at the first, second, ... call of each kind; return the kinds that were met."""
    met: set[str] = set()
    with Killer() as killer:
        for call in calls:
            for number in count(1):
                base = Path(mkdtemp(dir=folder))
                if not _kill_once(killer, name, str(base), call, number):
                    break
                met.add(call)
                rmtree(base)
    return met


def _kill_once(killer: Killer, name: str, base: str, call: str, number: int) -> bool:
    """One run, what readers see then, and the run after it; False if it was not killed."""
    scenario = SCENARIOS[name]
    anyio.run(scenario.prepare, base)
    outcome = killer.run_until(name, base, call, number)
    point = f"killed at {call} {number}"

    seen = anyio.run(look, base, scenario)
    allowed = _allowed(scenario.before, scenario.after, acknowledged=outcome.acknowledged)
    assert seen in allowed, point
    killer.run(name, base)
    assert anyio.run(look, base, scenario) == scenario.after, point
    assert_tidy(base, scenario.after)
    return outcome.killed


def _allowed(
    before: Tree | None, after: Tree | None, *, acknowledged: bool
) -> tuple[Tree | None, ...]:
    return (after,) if acknowledged else (before, after)
