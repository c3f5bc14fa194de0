"""Where trees go: to a cloud, to the head, or nowhere: every node sees the same directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncsync import SyncConfig
from asyncsync.errors import NotFoundError, TransientError
from asyncsync.scheduling import Alarm, DrainError, Failed, SyncScheduler

from .stage import PERIOD, Stage, failing
from .trees import content, make


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# -- artifacts, to a cloud


def cloud(tmp_path: Path, *, artifacts: bool = True) -> SyncScheduler:
    config = SyncConfig(
        upload_dir=f"file://{tmp_path}/store", sync_period=1000, sync_artifacts=artifacts
    )
    return SyncScheduler(config=config)


@pytest.mark.parametrize("artifacts", [True, False])
async def test_each_checkpoint_takes_along_what_was_written_beside_it(
    tmp_path: Path, artifacts: bool
) -> None:
    log, seen = tmp_path / "run" / "log", list[bytes | None]()
    async with cloud(tmp_path, artifacts=artifacts) as scheduler:
        scheduler.add("run", local_dir=tmp_path / "run")
        for step in range(3):
            made = make(tmp_path / "run" / f"checkpoint_{step}", {"w": b"%d" % step})
            with log.open("ab") as file:
                file.write(b"line\n")
            await (await scheduler.checkpoint("run", made)).durable()
            await scheduler.drain()
            seen.append(content(tmp_path / "store" / "run").get("log"))
    there = content(tmp_path / "store" / "run")

    assert seen == ([b"line\n", b"line\n" * 2, b"line\n" * 3] if artifacts else [None] * 3)
    assert {path for path in there if path != "log"} == {f"checkpoint_{n}/w" for n in range(3)}


async def test_what_was_written_without_a_checkpoint_goes_at_the_end_and_before_a_restart(
    tmp_path: Path,
) -> None:
    async with cloud(tmp_path) as scheduler:
        for life in (b"first", b"second"):  # the same process runs another trial of that name
            make(tmp_path / "run", {"log": life})
            scheduler.add("run", local_dir=tmp_path / "run")
            scheduler.report("run", training_iteration=0, time_total_s=0)
            await scheduler.complete("run")
            assert content(tmp_path / "store" / "run") == {"log": life}


async def test_within_the_period_only_a_checkpoint_moves_artifacts(stage: Stage) -> None:
    config = SyncConfig(upload_dir="file:///x", syncer=stage.syncer, sync_period=1000)
    async with stage.open(config=config) as scheduler:
        for _ in range(2):
            scheduler.report("a")
            await stage.clock.advance(10)
        assert len(stage.syncer.at("x://a")) == 1
        await stage.save(scheduler, "a", "c")
        await stage.clock.advance(5)

        assert len(stage.syncer.at("x://a")) == 2


@pytest.mark.parametrize("forced", [False, True])
async def test_artifacts_of_no_directory_are_a_failure_that_is_named(
    tmp_path: Path, forced: bool
) -> None:
    async def train() -> None:
        async with cloud(tmp_path) as scheduler:
            scheduler.add("run", local_dir=tmp_path / "nowhere")
            scheduler.report("run")
            if forced:
                await scheduler.complete("run")

    with pytest.raises(NotFoundError if forced else DrainError, match="nowhere"):
        await train()


async def test_in_a_cloud_every_checkpoint_goes_at_once(stage: Stage) -> None:
    config = SyncConfig(
        upload_dir="file:///x", syncer=stage.syncer, sync_period=1000, sync_on_checkpoint=False
    )
    async with stage.open(config=config) as scheduler:
        scheduler.report("a")
        await stage.clock.advance(5)
        ticket = await stage.save(scheduler, "a", "c")
        await stage.clock.advance(5)

        assert ticket.done


# -- to the head, over a syncer that a test stands in for


def to_head(*, at_once: bool = True) -> SyncConfig:
    return SyncConfig(sync_period=PERIOD, sync_on_checkpoint=at_once)


async def test_to_the_head_a_tree_goes_by_period_and_when_its_trial_is_over(stage: Stage) -> None:
    async with stage.open(config=to_head()) as scheduler:
        for second in range(0, 121, 30):
            if second:
                await stage.clock.advance(30)
            scheduler.report("a", training_iteration=2, time_total_s=second)
        await stage.clock.advance(30)
        assert stage.syncer.at("x://a") == [0, 60, 120]
        scheduler.report("a", training_iteration=3, time_total_s=150)
        await stage.drive(scheduler.complete("a"))

        assert stage.syncer.at("x://a") == [0, 60, 120, 150]


async def test_a_trial_that_has_moved_is_synced_from_where_it_is(stage: Stage) -> None:
    async with stage.open(config=to_head()) as scheduler:
        scheduler.report("a")
        await stage.clock.advance(5)
        await stage.drive(scheduler.complete("a"))
        scheduler.add("a", local_dir=stage.place / "a", remote_dir="y://a", checkpoints="*/")
        scheduler.report("a")
        await stage.clock.advance(5)

        assert len(stage.syncer.at("y://a")) == 1


async def test_a_node_that_is_dead_never_ends_a_report(stage: Stage) -> None:
    stage.syncer.acts["x://a"] = failing(TransientError("no node at that address"))
    async with stage.open("a", "b", config=to_head()) as scheduler:
        for _ in range(5):
            scheduler.report("a")
            scheduler.report("b")
            await stage.clock.advance(PERIOD)

        assert len(stage.syncer.at("x://b")) == 5
        assert {event.trial for event in stage.told(Failed)} == {"a"}
        assert [(alarm.trial, alarm.why) for alarm in stage.told(Alarm)] == [("a", "failing")]
        assert "no node" in scheduler.status().trials[0].error
        with pytest.raises(DrainError, match="no node"):
            await stage.drive(scheduler.drain())
        stage.syncer.acts.clear()


async def test_the_head_may_fetch_from_its_nodes(stage: Stage) -> None:
    async with stage.open("other", config=to_head()) as scheduler:
        scheduler.add("a", local_dir=stage.place / "a", remote_dir="node://a", direction="down")
        scheduler.report("a")
        await stage.clock.advance(5)
        assert stage.syncer.calls[0][1:3] == ("node://a", str(stage.place / "a"))
        assert not scheduler.sync_down_if_needed("a")
        await stage.clock.advance(PERIOD)

        assert scheduler.sync_down_if_needed("a")


# -- a shared directory


async def test_where_all_see_the_same_directory_nothing_is_touched_whatever_is_called(
    tmp_path: Path,
) -> None:
    async with SyncScheduler(config=SyncConfig(syncer=None)) as scheduler:
        scheduler.add("a", local_dir=tmp_path / "nowhere")
        for _ in range(3):
            scheduler.report("a")
            await (await scheduler.checkpoint("a", tmp_path / "nowhere" / "c")).durable()
        asked = (scheduler.sync_up_if_needed("a"), scheduler.sync_down_if_needed("a"))
        report = await scheduler.drain()
        await scheduler.complete("a")

    assert asked == (False, False)
    assert (report.durable, report.lost) == ((), ())
    assert list(tmp_path.iterdir()) == []
