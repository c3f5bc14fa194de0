"""Every state in which a power cut may leave a disk: readers see a whole tree or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest

from .crash_scenarios import SCENARIOS, assert_tidy, look
from .crash_states import Record, materialise, recording, states


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory where there is one: the power cuts are made up."""
    shm = Path("/dev/shm")
    folder = mkdtemp(prefix="states-", dir=shm if os.access(shm, os.W_OK) else None)
    yield Path(folder)
    rmtree(folder)


async def _recorded(name: str, base: Path) -> Record:
    base.mkdir()
    scenario = SCENARIOS[name]
    await scenario.prepare(str(base))
    with recording(str(base)) as record:
        await scenario.run(str(base))
    return record


@pytest.mark.parametrize("name", SCENARIOS)
async def test_after_any_power_cut_the_tree_is_whole_and_what_was_acknowledged_is_there(
    name: str, memory: Path
) -> None:
    scenario = SCENARIOS[name]
    record = await _recorded(name, memory / "recorded")

    count = 0
    for acknowledged, state in states(record):
        base = memory / "state"
        base.mkdir()
        materialise(state, str(base))
        seen = await look(str(base), scenario)
        assert seen in ((scenario.after,) if acknowledged else (scenario.before, scenario.after))
        await scenario.run(str(base))
        assert await look(str(base), scenario) == scenario.after
        assert_tidy(str(base), scenario.after)
        rmtree(base)
        count += 1
    assert count > 50
