"""The power goes at every system call of a commit, an update, a replace and a delete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from shutil import rmtree
from subprocess import PIPE, Popen
from tempfile import mkdtemp
from unittest import mock

import anyio
import pytest

from asyncsync.errors import IntegrityError, NotFoundError

from .crash_scenarios import SCENARIOS, assert_tidy, look
from .killer import CALLS, Killer
from .loop_disk import LoopDisk

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    # Only where there can be none is it skipped: a tool or a right that is missing is a failure.
    pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="no loop devices here"),
]


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest) -> Iterator[LoopDisk]:
    """A file system whose image is in memory where it can be."""
    shm = Path("/dev/shm")
    folder = Path(mkdtemp(prefix="power-", dir=shm if os.access(shm, os.W_OK) else None))
    try:
        with LoopDisk(folder, request.param) as opened:
            yield opened
    finally:
        rmtree(folder)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_power_cut_at_any_call_leaves_a_whole_tree_and_all_that_was_acknowledged(
    name: str, disk: LoopDisk
) -> None:
    points = 0
    with Killer() as killer:
        for call in CALLS:
            for number in count(1):
                if not _cut_once(killer, disk, name, call, number):
                    break
                points += 1

    assert points > 50


def _cut_once(killer: Killer, disk: LoopDisk, name: str, call: str, number: int) -> bool:
    """One run that ends with the power, what readers see, and another run; False if it finished."""
    scenario, base = SCENARIOS[name], mkdtemp(dir=disk.path)
    anyio.run(scenario.prepare, base)
    disk.flush()
    outcome = killer.run_until(name, base, call, number)
    disk.cut_power()
    point = f"cut at {call} {number}"

    seen = anyio.run(look, base)
    whole = (scenario.after,) if outcome.acknowledged else (scenario.before, scenario.after)
    assert seen in whole, point
    assert killer.run(name, base).acknowledged
    disk.cut_power()
    assert anyio.run(look, base) == scenario.after, f"acknowledged after {point}"
    killer.run(name, base)
    assert_tidy(base, scenario.after)
    rmtree(base)
    return outcome.killed


def test_the_power_is_cut_also_for_programs_that_see_the_disk_elsewhere(disk: LoopDisk) -> None:
    """`ip netns exec` gives a program mounts of its own, in which a disk could stay mounted."""
    command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", "echo ready; cat"]
    with Popen(command, stdin=PIPE, stdout=PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        (disk.path / "lost").write_bytes(b"not flushed")
        disk.cut_power()

        assert not (disk.path / "lost").exists()
        program.communicate()


def test_a_commit_that_flushes_nothing_does_not_survive_the_power_cut(disk: LoopDisk) -> None:
    """If it did, the cut would be none, and the test above would prove nothing."""
    scenario, base = SCENARIOS["new"], str(disk.path)
    with mock.patch("os.fsync"):
        anyio.run(scenario.run, base)
    disk.cut_power()

    with pytest.raises((NotFoundError, IntegrityError, AssertionError)):
        assert anyio.run(look, base) == scenario.after
