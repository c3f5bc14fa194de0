"""Before training starts: can this node save there? And after a commit: where is it by now?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import asyncsync
from asyncsync.clock import Clock, SystemClock
from asyncsync.concurrency import Threads
from asyncsync.errors import AccessDeniedError, ConfigError, PermanentError, TransientError
from asyncsync.head import Forwarding
from asyncsync.location import Location
from asyncsync.peer import Onward
from asyncsync.storage.local import LocalTrees
from asyncsync.testing import FakeClock
from asyncsync.wire.claims import Operation

from ..servers import Server

pytestmark = pytest.mark.one_loop

PULL = frozenset({Operation.PULL})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASYNCSYNC_JOIN", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@asynccontextmanager
async def head(folder: Path, **options: Any) -> AsyncIterator[asyncsync.PeerServer]:
    root = folder / "root"
    root.mkdir(exist_ok=True)
    async with asyncsync.PeerServer(str(root), **options) as head:
        yield head


def checkpoint(folder: Path, text: str = "weights") -> Path:
    made = folder / "ckpt"
    made.mkdir(exist_ok=True)
    (made / "w").write_text(text)
    return made


# ---------------------------------------------------------------- a head


async def test_a_program_serves_and_joins_itself_without_any_setting(tmp_path: Path) -> None:
    async with head(tmp_path) as server:
        joined = await asyncsync.join(server.join_string("exp"))
        await asyncsync.check_reach(joined.location)
        async with asyncsync.StorageSyncer() as syncer:  # another process reads the file, too
            receipt = await syncer.sync_up(checkpoint(tmp_path), f"{joined.location}/ckpt_1")

    assert receipt.durability == "head-fsync"
    assert (tmp_path / "root/exp/ckpt_1/w").read_text() == "weights"
    assert sorted(p.name for p in (tmp_path / "root").rglob("*")) == [
        ".asyncsync.json",
        "ckpt_1",
        "exp",
        "w",
    ]


async def test_a_head_in_a_worker_is_read_only_and_serves_pulls(tmp_path: Path) -> None:
    await asyncsync.sync_up(checkpoint(tmp_path), tmp_path / "root/ckpt_1")
    async with head(tmp_path, readonly=True) as server:
        joined = await asyncsync.join(server.join_string())
        await asyncsync.sync_down(f"{joined.location}/ckpt_1", tmp_path / "back")
        with pytest.raises(AccessDeniedError, match=r"cannot save at peer://.*read-only"):
            await asyncsync.check_reach(f"{joined.location}/exp")

    assert joined.readonly
    assert (tmp_path / "back" / "w").read_text() == "weights"


async def test_a_head_that_is_not_joined_is_a_clear_error(tmp_path: Path) -> None:
    async with head(tmp_path) as server:
        with pytest.raises(ConfigError, match=r"no token for the head at .*`asyncsync join`"):
            await asyncsync.check_reach(f"{server.location}/exp")


@pytest.mark.parametrize("operations", [PULL, frozenset({Operation.LIST, Operation.PULL})])
async def test_a_token_that_lets_nobody_push_is_a_clear_error(
    tmp_path: Path, operations: frozenset[Operation]
) -> None:
    async with head(tmp_path) as server:
        await asyncsync.join(server.join_string(operations=operations))

        with pytest.raises(AccessDeniedError, match="this node cannot save at peer://"):
            await asyncsync.check_reach(f"{server.location}/exp")


async def test_a_token_for_another_tree_is_a_clear_error(tmp_path: Path) -> None:
    everything = frozenset(Operation)
    async with head(tmp_path) as server:
        await asyncsync.join(server.join_string("exp/trial_1", operations=everything))

        await asyncsync.check_reach(f"{server.location}/exp/trial_1/ckpt")
        with pytest.raises(AccessDeniedError, match="this node cannot save at peer://"):
            await asyncsync.check_reach(f"{server.location}/exp/trial_10")


async def test_a_head_that_is_gone_is_a_clear_error(tmp_path: Path) -> None:
    async with head(tmp_path) as server:
        joined = await asyncsync.join(server.join_string())

    with pytest.raises(TransientError, match=r"peer://127\.0\.0\.1:\d+"):
        await asyncsync.check_reach(joined.location)


# ---------------------------------------------------------------- a shared directory, a bucket


async def test_a_directory_is_shared_if_it_or_one_above_is_marked(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    await asyncsync.mark_shared(tmp_path / "shared")

    await asyncsync.check_reach(tmp_path / "shared")
    await asyncsync.check_reach(tmp_path / "shared" / "runs" / "exp")


async def test_a_directory_that_nobody_marked_may_be_of_this_node_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()

    with pytest.raises(ConfigError, match="no marker in it or above; is it mounted"):
        await asyncsync.check_reach(tmp_path / "mine" / "exp")


@pytest.mark.slow
async def test_a_bucket_is_written_to(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in moto.environ.items():
        monkeypatch.setenv(name, value)

    await asyncsync.check_reach(f"s3://{moto.bucket()}/run")
    with pytest.raises(ConfigError, match="create the bucket"):
        await asyncsync.check_reach("s3://no-such-bucket-here/run")


# ---------------------------------------------------------------- until it is in the cloud


@asynccontextmanager
async def forwarding(folder: Path, clock: Clock, **options: Any) -> AsyncIterator[Onward]:
    (folder / "state").mkdir(mode=0o700, exist_ok=True)
    (folder / "root").mkdir(exist_ok=True)
    (folder / "cloud").mkdir(exist_ok=True)
    place = Location.parse(folder / "cloud")
    root, state = str(folder / "root"), folder / "state"
    async with Forwarding.open(root, place, state, clock=clock, **options) as found:
        yield found


async def test_a_commit_can_be_waited_for_until_the_head_has_carried_it_on(tmp_path: Path) -> None:
    async with forwarding(tmp_path, FakeClock()) as onward, head(tmp_path, onward=onward) as server:
        where = f"{(await asyncsync.join(server.join_string())).location}/ckpt_1"
        receipt = await asyncsync.sync_up(checkpoint(tmp_path), where)

        with anyio.fail_after(10):
            level = await asyncsync.wait_durable(where, period_s=0.01)

    assert receipt.durability in ("head-fsync", "cloud")  # whichever was first
    assert level == "cloud"
    assert (tmp_path / "cloud/ckpt_1/w").read_text() == "weights"


async def test_waiting_asks_again_after_each_period(tmp_path: Path) -> None:
    class Slow:
        forwards = True
        asked = 0

        async def queue(self, tree: str, identity: str) -> None:
            self.asked += 1

        def has(self, tree: str, identity: str) -> bool:
            return self.asked > 4

        def failure(self, tree: str, identity: str) -> str:
            return ""

    slow, clock = Slow(), FakeClock()
    async with head(tmp_path, onward=slow) as server:
        where = f"{(await asyncsync.join(server.join_string())).location}/ckpt_1"
        await asyncsync.sync_up(checkpoint(tmp_path), where)

        async def passes() -> None:
            while True:
                await clock.advance(5)
                await anyio.to_thread.run_sync(int)  # sockets have their turn, too

        async with anyio.create_task_group() as group:
            group.start_soon(passes)
            assert await asyncsync.wait_durable(where, clock=clock) == "cloud"
            group.cancel_scope.cancel()

    assert slow.asked == 5  # the commit itself, and four questions


async def test_what_a_head_cannot_carry_on_ends_the_wait_with_its_cause(tmp_path: Path) -> None:
    target = Denied(LocalTrees("/", Threads(1)))
    async with (
        forwarding(tmp_path, SystemClock(), target=target) as onward,
        head(tmp_path, onward=onward) as server,
    ):
        where = f"{(await asyncsync.join(server.join_string())).location}/ckpt_1"
        await asyncsync.sync_up(checkpoint(tmp_path), where)

        with anyio.fail_after(10):
            with pytest.raises(PermanentError, match="cannot carry it on: the bucket denies it; m"):
                await asyncsync.wait_durable(where, period_s=0.01)
            assert await asyncsync.wait_durable(where, level="head-fsync") == "head-fsync"


class Denied:
    """Nobody may write there."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def begin(self, tree: str, intent: Any) -> Any:
        raise AccessDeniedError("the bucket denies it")


async def test_who_waits_for_what_never_comes_is_told(tmp_path: Path) -> None:
    async with head(tmp_path) as server:
        where = f"{(await asyncsync.join(server.join_string())).location}/ckpt_1"
        await asyncsync.sync_up(checkpoint(tmp_path), where)

        assert await asyncsync.wait_durable(where, level="head-fsync") == "head-fsync"
        with pytest.raises(ConfigError, match=r"will not be cloud; start the head with --forward"):
            await asyncsync.wait_durable(where)
    with pytest.raises(ConfigError, match="is fsync and will not be cloud"):
        await asyncsync.wait_durable(tmp_path / "root/ckpt_1")
    with pytest.raises(ConfigError, match="level is one of"):
        await asyncsync.wait_durable(tmp_path / "root/ckpt_1", level="moon")  # type: ignore[arg-type]
