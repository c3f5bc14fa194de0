"""The main job: train, die in the middle of a checkpoint, restore, finish, compare."""

from __future__ import annotations

import io
import json
import signal
import tempfile
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncsync.cli import demo
from asyncsync.cli.app import main
from asyncsync.cli.demo import Run, _differences, _follow
from asyncsync.cli.demo_protocol import Plan, Report, Stepped
from asyncsync.cli.runner import World

from ..servers import Server

pytest.importorskip("numpy")


def run_demo(*argv: str) -> tuple[int, list[dict[str, Any]], str]:
    out, err = io.StringIO(), io.StringIO()
    code = main(["demo", "--json", *argv], World(stdin=None, stdout=out, stderr=err))
    return code, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_main_job_runs_and_leaves_its_commits_where_they_were_wanted(tmp_path: Path) -> None:
    code, lines, _ = run_demo("--to", str(tmp_path))
    claims = [line for line in lines if line["event"] == "claim"]
    summary = lines[-1]

    assert code == 0
    assert all(line["ok"] for line in claims)
    assert summary["claims"] == len(claims) == 8
    assert summary["last_loss"] < summary["first_loss"] / 2
    assert summary["skipped_bytes"] > 0
    assert sorted(p.name for p in Path(summary["location"], "checkpoints").iterdir()) == [
        f"step_{step:06}" for step in (12, 24, 36, 48)
    ]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("name", "exclusive"), [("moto", True), ("rclone", False)])
def test_the_main_job_runs_on_an_object_store_as_on_a_disk(
    name: str, exclusive: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Server = request.getfixturevalue(name)
    for variable, value in server.environ.items():
        monkeypatch.setenv(variable, value)
    code, lines, err = run_demo("--to", f"s3://{server.bucket()}/demos")
    claims = [line for line in lines if line["event"] == "claim"]
    reduced = [line for line in lines if line["event"] == "reduced"]

    assert code == 0, err
    assert all(line["ok"] for line in claims)
    assert len(claims) == 8
    assert lines[-1]["skipped_bytes"] > 0
    assert bool(reduced) is not exclusive  # single-writer mode is announced
    assert server.secret_key not in err + str(lines)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_kill_that_comes_too_late_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_half_sent", lambda report: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, lines, err = run_demo()

    assert code == 1
    assert "the kill came too late" in err
    assert lines[-1]["ok"] is False
    assert list(tmp_path.iterdir()) == []


def test_training_is_deterministic_and_resumes_bit_by_bit(tmp_path: Path) -> None:
    whole = Plan(directory=str(tmp_path / "whole"), steps=4, every=9)
    half = Plan(directory=str(tmp_path / "half"), steps=2, every=9)
    rest = Plan(directory=str(tmp_path / "half"), steps=4, every=9, resume=str(tmp_path / "saved"))
    for plan in (whole, half):
        assert anyio.run(_follow, plan, Run("")) == 0
    (tmp_path / "half" / "final").rename(tmp_path / "saved")
    with (tmp_path / "half" / "trial" / "losses.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 9.9}\n')  # of a run that died after its last checkpoint
    assert anyio.run(_follow, rest, Run("")) == 0

    assert _differences(tmp_path / "whole" / "final", tmp_path / "half" / "final") == []
    logs = [tmp_path / name / "trial" / "losses.jsonl" for name in ("whole", "half")]
    assert logs[0].read_text() == logs[1].read_text()


def test_the_kill_hits_on_the_report_it_waits_for(tmp_path: Path) -> None:
    def second_step(report: Report) -> bool:
        return isinstance(report, Stepped) and report.step == 2

    run = Run("")
    plan = Plan(directory=str(tmp_path), steps=10_000, every=9)
    code = anyio.run(_follow, plan, run, second_step)

    assert code == -signal.SIGKILL
    assert run.of(Stepped)[-1].step < 100


def test_a_difference_is_named(tmp_path: Path) -> None:
    for name, text in (("expected", "1"), ("found", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "other").write_text(text)
        (tmp_path / name / "same").write_text("same")
    (tmp_path / "expected" / "missing").write_text("")

    assert _differences(tmp_path / "expected", tmp_path / "found") == ["other", "missing"]
