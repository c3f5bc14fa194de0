"""Every state in which a power cut may leave a disk: readers see a whole tree or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

from .crash_scenarios import ALONE, SCENARIOS, Scenario, assert_tidy, look
from .crash_states import materialise, recording, states

_ALL = {**SCENARIOS, **ALONE}


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory where there is one: the power cuts are made up."""
    shm = Path("/dev/shm")
    folder = mkdtemp(prefix="states-", dir=shm if os.access(shm, os.W_OK) else None)
    yield Path(folder)
    rmtree(folder)


async def _disks(scenario: Scenario, folder: Path) -> list[tuple[bool, Path]]:
    """Do it once; return each state a power cut may leave, on disk, and whether it was done."""
    recorded = folder / "recorded"
    recorded.mkdir()
    await scenario.prepare(str(recorded))
    with recording(str(recorded)) as record:
        await scenario.run(str(recorded))
    disks: list[tuple[bool, Path]] = []
    for number, (acknowledged, state) in enumerate(states(record)):
        base = folder / str(number)
        base.mkdir()
        materialise(state, str(base))
        disks.append((acknowledged, base))
    return disks


@pytest.mark.parametrize("name", _ALL)
async def test_after_any_power_cut_readers_see_a_whole_tree_and_all_that_was_acknowledged(
    name: str, memory: Path
) -> None:
    scenario = _ALL[name]
    disks = await _disks(scenario, memory)

    for acknowledged, base in disks:
        seen = await look(str(base))
        assert seen in ((scenario.after,) if acknowledged else (scenario.before, scenario.after))
    assert len(disks) > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", _ALL)
async def test_after_any_power_cut_the_next_run_finishes_and_tidies_up(
    name: str, memory: Path
) -> None:
    scenario = _ALL[name]
    disks = await _disks(scenario, memory)

    for _, base in disks:
        await scenario.run(str(base))
        assert await look(str(base)) == scenario.after
        assert_tidy(str(base), scenario.after)
