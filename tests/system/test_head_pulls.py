"""The other way round: a worker serves what it has committed, and the head fetches it when told."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncsync import StorageSyncer, SyncConfig
from asyncsync.errors import ConfigError
from asyncsync.peer import PeerServer
from asyncsync.scheduling import DrainError, SyncScheduler
from asyncsync.wire.claims import Operation

CONFIG = SyncConfig(sync_period=0.001)


async def commit(syncer: StorageSyncer, work: Path, served: Path, text: str) -> None:
    """What a trial does when it has saved: commit it where the worker serves it."""
    work.mkdir(exist_ok=True)
    (work / "log").write_text(text)
    await syncer.sync_up(work, served / "trial_1", kind="rolling")


async def test_the_head_fetches_what_a_worker_has_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, served, kept = (tmp_path / name for name in ("work", "served", "kept"))
    served.mkdir()
    async with PeerServer(str(served), readonly=True) as worker:
        line = worker.join_string("trial_1", operations=frozenset({Operation.PULL}))
        monkeypatch.setenv("ASYNCSYNC_JOIN", line.reveal())
        async with (
            StorageSyncer(isolation="loop") as syncer,
            SyncScheduler(syncer, CONFIG) as scheduler,
        ):
            remote = f"{worker.location}/trial_1"
            scheduler.add("trial_1", local_dir=kept, remote_dir=remote, direction="down")
            for text in ("first", "first\nsecond"):
                await commit(syncer, work, served, text)
                assert scheduler.sync_down_if_needed("trial_1")
                await scheduler.drain()

                assert (kept / "log").read_text() == text


async def test_a_worker_that_is_gone_is_named_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, served, kept = (tmp_path / name for name in ("work", "served", "kept"))
    served.mkdir()
    async with StorageSyncer(isolation="loop") as syncer:
        async with PeerServer(str(served), readonly=True) as worker:
            line = worker.join_string("trial_1", operations=frozenset({Operation.PULL}))
            monkeypatch.setenv("ASYNCSYNC_JOIN", line.reveal())
            await commit(syncer, work, served, "first")
            remote = f"{worker.location}/trial_1"
            await syncer.sync_down(remote, kept)
        monkeypatch.delenv("ASYNCSYNC_JOIN")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
        async with SyncScheduler(syncer, CONFIG) as scheduler:
            other = remote.replace("127.0.0.1", "localhost")  # never joined
            scheduler.add("trial_1", local_dir=kept, remote_dir=other, direction="down")
            assert scheduler.sync_down_if_needed("trial_1")
            with pytest.raises(DrainError, match="trial_1") as raised:
                await scheduler.drain()

    assert isinstance(raised.value.report.lost[0].error, ConfigError)
    assert (kept / "log").read_text() == "first"
