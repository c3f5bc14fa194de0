"""Several who write the same tree in S3."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from asyncsync.clock import SystemClock
from asyncsync.errors import BusyError, ConflictError
from asyncsync.syncing import StorageSyncer

from ..servers import Server
from .s3_place import TREE, S3Place, s3_place, use_small_chunks
from .trees import make

pytestmark = pytest.mark.one_loop

NEW = {"a": b"ONE", "d/b": b"two", "big": TREE["big"][::-1]}
Outcome = str | ConflictError


class Brief(SystemClock):
    """A clock on which nobody waits for long, and on which no attempt becomes old by waiting."""

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(min(seconds, 0.01))


async def _insist(syncer: StorageSyncer, source: Path, location: str) -> Outcome:
    """The identity that was committed, or the conflict; as long as others are busy it waits."""
    while True:
        try:
            return (await syncer.sync_up(source, location)).identity
        except ConflictError as exc:
            return exc
        except BusyError:
            continue


async def _race(syncers: list[StorageSyncer], sources: list[Path], location: str) -> list[Outcome]:
    outcomes: list[Outcome] = []

    async def run(syncer: StorageSyncer, source: Path) -> None:
        outcomes.append(await _insist(syncer, source, location))

    async with anyio.create_task_group() as group:
        for syncer, source in zip(syncers, sources, strict=True):
            group.start_soon(run, syncer, source)
    return outcomes


async def _check_races(times: int, bucket: str, tmp_path: Path) -> None:
    sources = [
        await to_thread.run_sync(make, tmp_path / name, {"w": name.encode(), name: b""})
        for name in ("left", "right")
    ]
    async with (
        StorageSyncer(isolation="loop", clock=Brief()) as left,
        StorageSyncer(isolation="loop", clock=Brief()) as right,
    ):
        for number in range(times):
            location = f"s3://{bucket}/race/{number}"
            order = [left, right] if number % 2 else [right, left]
            with anyio.fail_after(60):
                outcomes = await _race(order, sources if number % 2 else sources[::-1], location)
            winners = [outcome for outcome in outcomes if isinstance(outcome, str)]
            losers = [outcome for outcome in outcomes if isinstance(outcome, ConflictError)]
            report = await left.verify(location)

            assert (len(winners), len(losers)) == (1, 1), number
            assert losers[0].winner == winners[0] == report.identity
            assert report.ok
            assert winners[0][:12] in str(losers[0])


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Place]:
    use_small_chunks(monkeypatch)
    async with s3_place(tmp_path, monkeypatch) as place:
        yield place


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_of_two_writers_one_commits_and_the_other_hears_who_200_times(
    moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in moto.environ.items():
        monkeypatch.setenv(name, value)

    await _check_races(200, moto.bucket(), tmp_path)


async def test_of_two_writers_one_commits_and_the_other_hears_who(
    place: S3Place, tmp_path: Path
) -> None:
    await _check_races(3, "bucket", tmp_path)
