"""The examples run as they are printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..servers import Server

ROOT = Path(__file__).parents[2]


def start(name: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run an example as a program of its own."""
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        env={**os.environ, **environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def run(name: str, *arguments: str, **environ: str) -> str:
    """What an example prints."""
    done = start(name, *arguments, **environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("example", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.name)
def test_without_arguments_an_example_says_how_it_is_called(example: Path) -> None:
    done = start(example.name)

    assert done.returncode != 0
    assert example.name in done.stderr
    assert "Traceback" not in done.stderr


def test_checkpoints_are_saved_from_a_training_loop(tmp_path: Path) -> None:
    said = run("save_from_training_loop.py", str(tmp_path / "store"))

    assert said.endswith(f"newest: {tmp_path / 'store' / 'step_000030'}\n")


def test_a_training_loop_waits_for_no_upload_and_loses_none(tmp_path: Path) -> None:
    store = tmp_path / "store"
    said = run("async_training_loop.py", str(store))

    assert said == f"2 durable, 0 lost\nnewest: {store / 'trial' / 'checkpoint_000030'}\n"
    assert len((store / "trial" / "metrics.jsonl").read_text().splitlines()) == 30


def test_two_hundred_trials_share_one_scheduler(tmp_path: Path) -> None:
    said = run("orchestrator.py", str(tmp_path / "store"))

    assert said == "200 trials, 20 failed: 200 directories, 180 checkpoints durable\n"


def test_four_ranks_save_one_checkpoint_though_one_of_them_is_killed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    said = run("sharded_checkpoint.py", str(store))

    assert said.splitlines() == [
        "rank 2 was killed; readers see None",
        "rank 0 brought 1000014 of 4000014 bytes",
        *(f"rank {rank} brought 1000000 of 4000014 bytes" for rank in (1, 2, 3)),
        "5 files, whole: True",
    ]
    assert os.listdir(store) == ["step_000030"]


def test_a_trial_goes_on_at_another_node_after_its_worker_was_killed() -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    environ = {
        **os.environ,
        "PYTHONPATH": path,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ASYNCSYNC": f"{sys.executable} -m asyncsync",
    }
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "two_nodes.sh")],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )

    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert all("joined; you may pull and push" in line for line in said[:2])
    assert said[2:] == [
        "step 2 is saved: head-fsync",
        "step 4 is saved: head-fsync",
        "worker 1 died",
        "goes on from step 4",
        "step 6 is saved: head-fsync",
        "step 8 is saved: head-fsync",
        "step 10 is saved: head-fsync",
        "trained: {'step': 10, 'weights': 5.0}",
    ]


@pytest.mark.slow
def test_five_lines_replace_aws_s3_sync(moto: Server) -> None:
    store = f"s3://{moto.bucket()}/run"
    said = run("replace_aws_s3_sync.py", store, **moto.environ)

    assert said == f"newest: {store}/step_000003\n"


def test_the_unit_of_a_head_lets_it_write_its_own_places_only() -> None:
    lines = (ROOT / "examples" / "asyncsync-head.service").read_text().splitlines()
    said = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    assert said["User"] not in ("", "root")
    assert (said["ProtectSystem"], said["NoNewPrivileges"]) == ("strict", "yes")
    assert said["ReadWritePaths"] == "/srv/trees"
    assert said["CapabilityBoundingSet"] == ""
    command = said["ExecStart"].split()[1:]
    options = [word for word in command if word.startswith("--")]
    assert options == ["--root", "--state", "--audit"]
