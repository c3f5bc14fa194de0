"""The engine in a process or a thread: the same outcomes, and what happens when either dies."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from asyncsync import sync
from asyncsync.digest import CHUNK_BYTES
from asyncsync.errors import (
    ConfigError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    TransientError,
)
from asyncsync.events import Committed, Event, Moved, Planned, Started
from asyncsync.names import LOCK
from asyncsync.syncing import Isolation, StorageSyncer, VerifyReport
from asyncsync.syncing.isolation import launch, server
from asyncsync.syncing.isolation.launch import Engines, engines
from asyncsync.syncing.isolation.messages import Frames, Hello, Refused, encode

from .trees import content, make

pytestmark = pytest.mark.one_loop

TREE = {"a": b"one", "d/b": b"two" * 1000, "e": b""}
LARGE = {"large": bytes(2_000_000)}
MODES: list[Isolation] = ["loop", "thread", "process"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "source", TREE)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Isolation:
    isolation: Isolation = request.param
    return isolation


@pytest.fixture(params=["thread", "process"])
def apart(request: pytest.FixtureRequest) -> Isolation:
    isolation: Isolation = request.param
    return isolation


def engine_of(syncer: StorageSyncer) -> int:
    """The process that does the work of `syncer` for this loop."""
    [connection] = syncer._engine._connections.values()  # type: ignore[union-attr]
    pid: int = connection.pid
    return pid


def when(kind: type[Event], act: Callable[[], object]) -> Callable[[Event], None]:
    """An observer that acts once when the first event of that kind comes."""
    done: list[Event] = []

    def observe(event: Event) -> None:
        if isinstance(event, kind) and not done:
            done.append(event)
            act()

    return observe


async def ended(pid: int) -> None:
    """Wait until a process is gone."""
    descriptor = os.pidfd_open(pid)
    try:
        await anyio.wait_readable(descriptor)
    finally:
        os.close(descriptor)


# -- the same everywhere


async def test_events_come_in_order_and_count_every_byte(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    seen: list[Event] = []
    async with StorageSyncer(isolation=mode) as syncer:
        receipt = await syncer.sync_up(source, tmp_path / "to", observe=seen.append)

    kinds = [type(event) for event in seen]
    assert (kinds[:2], kinds[-1]) == ([Started, Planned], Committed)
    assert sum(e.size_bytes for e in seen if isinstance(e, Moved)) == receipt.size_bytes == 3003


async def test_what_an_observer_raises_ends_the_sync(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    def fail() -> None:
        raise LookupError("no more")

    # An engine in another process hears of it later, and must not be done by then: of this file
    # the second part would have to wait for hours.
    big = source / "big"
    await to_thread.run_sync(big.write_bytes, b"x" * (2 * CHUNK_BYTES))
    async with StorageSyncer(isolation=mode, bwlimit=1000) as syncer:
        with pytest.raises(LookupError, match="no more"):
            await syncer.sync_up(source, tmp_path / "to", observe=when(Planned, fail))

        assert not (tmp_path / "to").exists()
    async with StorageSyncer(isolation=mode) as syncer:
        assert (await syncer.sync_up(source, tmp_path / "to")).files == 4


async def test_errors_say_the_same(mode: Isolation, source: Path, tmp_path: Path) -> None:
    async with StorageSyncer(isolation=mode) as syncer:
        first = await syncer.sync_up(source, tmp_path / "to")
        (source / "a").write_bytes(b"another")
        with pytest.raises(ConflictError) as conflict:
            await syncer.sync_up(source, tmp_path / "to")
        with pytest.raises(NotFoundError, match="check the spelling"):
            await syncer.sync_down(tmp_path / "two", tmp_path / "back")
        with pytest.raises(ConfigError, match="kind is"):
            await syncer.sync_up(source, tmp_path / "to", kind="frozen")  # type: ignore[call-overload]
        (tmp_path / "to/a").write_bytes(b"ONE")
        with pytest.raises(IntegrityError) as damage:
            await syncer.sync_down(tmp_path / "to", tmp_path / "back")
        report = await syncer.verify(tmp_path / "to")

    assert (conflict.value.winner, conflict.value.side) == (first.identity, "target")
    assert (damage.value.paths, damage.value.side) == (("a",), "source")
    assert [path for path, _ in report.failures] == ["a"]


async def test_names_that_are_no_text_go_along(mode: Isolation, tmp_path: Path) -> None:
    raw = os.fsdecode(b"s\xff")
    source = make(tmp_path / raw, {f"d/{raw}": b"bytes"})
    async with StorageSyncer(isolation=mode) as syncer:
        receipt = await syncer.sync_up(source, tmp_path / f"to{raw}")
        plan = await syncer.plan_down(tmp_path / f"to{raw}", tmp_path / "back")

    assert receipt.location == str(tmp_path / f"to{raw}")
    assert [file.path for file in plan.send] == [f"d/{raw}"]


async def test_relative_paths_mean_what_they_mean_here(
    mode: Isolation, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with StorageSyncer(isolation=mode) as syncer:
        await syncer.latest(tmp_path)  # an engine is there, and in another directory
        monkeypatch.chdir(tmp_path)
        receipt = await syncer.sync_up("source", "runs/ckpt_3")
        newest = await syncer.latest("runs")
        found = [commit.step async for commit in syncer.commits("runs")]

    assert receipt.location == str(tmp_path / "runs/ckpt_3")
    assert newest is not None
    assert (newest.location, found) == (receipt.location, [3])


async def test_a_follower_hears_of_news_and_leaves_when_it_likes(
    mode: Isolation, source: Path, tmp_path: Path
) -> None:
    async with StorageSyncer(isolation=mode) as syncer:
        await syncer.sync_up(source, tmp_path / "runs/ckpt_1")
        news = syncer.follow(tmp_path / "runs", period_s=0.001)
        first = await anext(news)
        await syncer.sync_up(source, tmp_path / "runs/ckpt_2")
        second = await anext(news)
        await news.aclose()

    assert (first.step, second.step) == (1, 2)


async def test_the_time_allowed_is_over_everywhere(mode: Isolation, tmp_path: Path) -> None:
    source = make(tmp_path / "source", {name: bytes(1_000_000) for name in "abc"})
    async with StorageSyncer(isolation=mode, bwlimit=100_000, sync_timeout=0.2) as syncer:
        with pytest.raises(TimeoutError, match=r"not finished within 0\.2 s"):
            await syncer.sync_up(source, tmp_path / "to")

    assert not (tmp_path / "to").exists()


async def test_a_copy_works_in_the_same_way(mode: Isolation, source: Path, tmp_path: Path) -> None:
    async with (
        StorageSyncer(isolation=mode) as syncer,
        pickle.loads(pickle.dumps(syncer)) as copy,
    ):
        await copy.sync_up(source, tmp_path / "to")

    assert content(tmp_path / "to") == TREE
    assert copy._isolation == mode


async def test_a_closed_syncer_says_so(mode: Isolation, tmp_path: Path) -> None:
    syncer = StorageSyncer(isolation=mode)
    await syncer.aclose()

    with pytest.raises(ConfigError, match="is closed"):
        await syncer.latest(tmp_path)


def test_several_loops_in_several_threads_share_one(
    apart: Isolation, source: Path, tmp_path: Path
) -> None:
    syncer = StorageSyncer(isolation=apart)
    receipts: list[int] = []

    def run(number: int) -> None:
        async def sync() -> None:
            receipts.append((await syncer.sync_up(source, tmp_path / f"to_{number}")).files)
            if number == 4:
                await syncer.aclose()

        asyncio.run(sync())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(4)

    assert receipts == [3] * 5


def test_a_loop_that_has_ended_is_forgotten(apart: Isolation, source: Path, tmp_path: Path) -> None:
    syncer = StorageSyncer(isolation=apart)
    loops = list[weakref.ref[asyncio.AbstractEventLoop]]()

    async def sync() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await syncer.sync_up(source, tmp_path / "to")

    for _ in range(3):  # a program may run one for every call, for weeks
        asyncio.run(sync())
    asyncio.run(syncer.aclose())
    gc.collect()

    assert [loop() for loop in loops[:-1]] == [None, None]


# -- what cannot be


def test_cells_of_a_notebook_share_one(mode: Isolation, source: Path, tmp_path: Path) -> None:
    """One loop runs all the time; each cell is a task of its own, and some are not async."""

    async def cell(code: Callable[[], Awaitable[object]]) -> object:
        return await asyncio.create_task(_await(code))

    async def kernel() -> None:
        syncer = StorageSyncer(isolation=mode)
        await cell(syncer.__aenter__)
        await cell(lambda: syncer.sync_up(source, tmp_path / "one"))
        sync.sync_up(source, tmp_path / "two")
        report = await cell(lambda: syncer.verify(tmp_path / "two"))
        await cell(lambda: syncer.__aexit__(None, None, None))
        assert isinstance(report, VerifyReport)
        assert report.ok

    asyncio.run(kernel())
    assert sorted(os.listdir(tmp_path)) == ["one", "source", "two"]


async def _await(code: Callable[[], Awaitable[object]]) -> object:
    return await code()


async def test_memory_does_not_reach_another_process() -> None:
    async with StorageSyncer() as syncer:
        with pytest.raises(ConfigError, match=r"memory of this program.* use isolation='thread'"):
            await syncer.latest("memory://run")


@pytest.mark.parametrize("isolation", ["fork", None, ""])
def test_an_isolation_that_is_none_is_refused(isolation: Isolation) -> None:
    with pytest.raises(ConfigError, match="isolation is 'process', 'thread' or 'loop', not"):
        StorageSyncer(isolation=isolation)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory in which the path of a socket is short enough, however deep the tests' own is."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="asyncsync-") as path:
        yield Path(path)


async def test_a_directory_that_others_may_enter_is_refused(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    (short_path / "asyncsync").mkdir(mode=0o700)
    (short_path / "asyncsync").chmod(0o755)

    async with StorageSyncer() as syncer:
        with pytest.raises(ConfigError, match="must be a directory that only you can enter"):
            await syncer.latest(short_path)


async def test_another_users_connection_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_user_of", lambda peer: os.getuid() + 1)

    async with StorageSyncer(isolation="thread") as syncer:
        with pytest.raises(TransientError, match="the engine does not start"):
            await syncer.latest(tmp_path)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (encode(Hello(2, "0" * 32, {})), "version 2"),
        (b"GET / HTTP/1.1\r\n\r\n", "too long"),
        (b"\0\0\0\2{}", "not a message"),
    ],
)
def test_who_speaks_otherwise_is_refused_and_hears_why(sent: bytes, reason: str) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(engines.find("thread").socket)
        caller.sendall(sent)
        heard = b"".join(iter(lambda: caller.recv(1000), b""))

    [message] = Frames().feed(heard)
    assert isinstance(message, Refused)
    assert reason in message.reason


# -- one engine


async def test_all_syncers_of_a_program_share_one_process_of_its_own(
    source: Path, tmp_path: Path
) -> None:
    async with StorageSyncer() as one, StorageSyncer() as other:
        await one.latest(tmp_path)
        await other.latest(tmp_path)
        engine = engine_of(one)

        assert engine == engine_of(other) != os.getpid()
        assert os.getsid(engine) == os.getpgid(engine) == engine


async def test_settings_in_the_environment_are_those_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with StorageSyncer() as one, StorageSyncer() as other:
        await one.latest(tmp_path)
        monkeypatch.setenv("AWS_PROFILE", "another")
        await other.latest(tmp_path)

        assert engine_of(one) != engine_of(other)


async def test_an_engine_that_nobody_uses_leaves_and_the_next_call_starts_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LOOK_S", 0.001)
    address = await to_thread.run_sync(engines.find, "thread")
    async with StorageSyncer(isolation="thread") as syncer:
        await syncer.latest(tmp_path)
        monkeypatch.setattr(server, "_IDLE_S", 0.0)
    with anyio.fail_after(10):
        while os.path.exists(address.socket):
            await anyio.lowlevel.checkpoint()
    monkeypatch.setattr(server, "_IDLE_S", 30.0)

    async with StorageSyncer(isolation="thread") as syncer:
        await syncer.latest(tmp_path)


async def test_an_engine_that_leaves_hangs_up_also_on_who_has_only_just_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LOOK_S", 0.001)
    address = await to_thread.run_sync(engines.find, "thread")
    with socket.socket(socket.AF_UNIX) as caller:
        async with StorageSyncer(isolation="thread") as syncer:
            await syncer.latest(tmp_path)
            await to_thread.run_sync(caller.connect, address.socket)
            await syncer.latest(tmp_path)  # by then it has been let in
            monkeypatch.setattr(server, "_IDLE_S", 0.0)
        heard = await to_thread.run_sync(caller.recv, 1)
    with anyio.fail_after(10):
        while os.path.exists(address.socket):
            await anyio.lowlevel.checkpoint()

    assert heard == b""


def test_an_engine_is_found_although_a_directory_has_too_long_a_name(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = short_path.joinpath("d" * 50, "d" * 50)
    deep.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    found = Path(Engines().find("thread").socket)

    assert found.is_relative_to(short_path)
    assert not found.is_relative_to(deep)
    assert found.is_socket()


def test_an_engine_is_found_although_every_directory_has_too_long_a_name(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = short_path.joinpath("d" * 50, "d" * 50)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", str(deep))

    assert launch.run_directory() == f"/tmp/asyncsync-{os.getuid()}"


def test_sockets_of_engines_that_were_killed_are_swept(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    directory = Path(launch.run_directory())
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as alive:
        dead.bind(str(directory / "1-dead.sock"))
        (directory / "1-dead.log").touch()
        alive.bind(str(directory / "1-alive.sock"))
        alive.listen()
        found = Engines().find("thread")

        assert sorted(path.name for path in directory.iterdir()) == sorted(
            ["1-alive.sock", os.path.basename(found.socket)]
        )


# -- death


async def test_a_call_whose_engine_dies_says_so_and_the_next_one_starts_another(
    tmp_path: Path,
) -> None:
    source = make(tmp_path / "source", LARGE)
    async with StorageSyncer(bwlimit=500_000) as syncer:
        kill = when(Planned, lambda: os.kill(engine_of(syncer), signal.SIGKILL))
        with pytest.raises(TransientError, match=r"the engine, process \d+, has ended unexpect"):
            await syncer.sync_up(source, tmp_path / "to", observe=kill)
    async with StorageSyncer() as syncer:
        receipt = await syncer.sync_up(source, tmp_path / "to")

        assert (receipt.files, receipt.size_bytes) == (1, 2_000_000)
        assert (await syncer.verify(tmp_path / "to")).ok
    assert sorted(os.listdir(tmp_path)) == ["source", "to"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_next_engine_goes_on_with_what_the_last_one_had_sent(
    number: signal.Signals, tmp_path: Path
) -> None:
    source = make(tmp_path / "source", {name: os.urandom(400_000) for name in "abcd"})
    moved: list[int] = []
    async with StorageSyncer(bwlimit=400_000) as syncer:

        def end(event: Event) -> None:
            if isinstance(event, Moved):
                moved.append(event.moved_bytes)
                os.kill(engine_of(syncer), number)

        with pytest.raises(TransientError):
            await syncer.sync_up(source, tmp_path / "to", observe=end)
        receipt = await syncer.sync_up(source, tmp_path / "to")

    assert 0 < moved[0] <= receipt.resumed_bytes
    assert receipt.resumed_bytes + receipt.sent_bytes == receipt.size_bytes
    assert sorted(os.listdir(tmp_path)) == ["source", "to"]


async def test_an_engine_that_is_asked_to_stop_cleans_up_first(tmp_path: Path) -> None:
    # Of the parts of this file one is written at once, and the other would be hours later.
    source = make(tmp_path / "source", {"large": b"x" * (2 * CHUNK_BYTES)})
    async with StorageSyncer(bwlimit=1000) as syncer:
        stop = when(Planned, lambda: os.kill(engine_of(syncer), signal.SIGTERM))
        with pytest.raises(TransientError, match=r"the engine, process \d+, was stopped before"):
            await syncer.sync_up(source, tmp_path / "to", observe=stop)
        left = [name for name in os.listdir(tmp_path) if name != "source"]

        # What had arrived by then is kept for the next attempt, and nobody holds it.
        assert not (tmp_path / "to").exists()
        assert all(LOCK not in os.listdir(tmp_path / name) for name in left)
        assert (await syncer.latest(tmp_path)) is None


async def test_an_engine_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_BOOT", "raise SystemExit('it is broken')  # {separator}")
    monkeypatch.setenv("AWS_PROFILE", "that no engine has")

    async with StorageSyncer() as syncer:
        with pytest.raises(TransientError, match="does not start; it said it is broken"):
            await syncer.latest(tmp_path)


KILLED = """
import asyncio, json, os, signal, sys
import asyncsync
from asyncsync.events import Planned

async def main(source, target, bwlimit):
    def observe(event):
        if isinstance(event, Planned):
            [connection] = syncer._engine._connections.values()
            print(connection.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    syncer = asyncsync.StorageSyncer(bwlimit=float(bwlimit))
    await syncer.{what}(source, target, observe=observe)

asyncio.run(main(*sys.argv[1:]))
"""


def killed(what: str, source: Path, target: Path, bwlimit: int) -> int:
    """Run a program that is killed in the middle of its sync; its engine."""
    code = KILLED.replace("{what}", what)
    command = [sys.executable, "-c", code, str(source), str(target), str(bwlimit)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert done.returncode == -signal.SIGKILL, done.stderr
    return int(done.stdout)


async def test_what_a_killed_program_had_begun_to_save_is_saved(tmp_path: Path) -> None:
    source = make(tmp_path / "source", LARGE)

    engine = await to_thread.run_sync(killed, "sync_up", source, tmp_path / "to", 4_000_000)
    with anyio.fail_after(30):
        await ended(engine)

    async with StorageSyncer(isolation="loop") as syncer:
        assert (await syncer.verify(tmp_path / "to")).ok
    assert sorted(os.listdir(tmp_path)) == ["source", "to"]


async def test_who_is_started_again_after_being_killed_waits_for_what_was_begun(
    tmp_path: Path,
) -> None:
    source = make(tmp_path / "source", LARGE)

    await to_thread.run_sync(killed, "sync_up", source, tmp_path / "to", 4_000_000)
    async with StorageSyncer() as syncer:
        receipt = await syncer.sync_up(source, tmp_path / "to")

    assert (receipt.sent_files, receipt.skipped_files, receipt.rounds) == (0, 1, 1)


async def test_two_who_write_one_target_take_turns(
    apart: Isolation, source: Path, tmp_path: Path
) -> None:
    seen: list[str] = []

    def watch(name: str) -> Callable[[Event], None]:
        return lambda event: seen.append(name) if isinstance(event, Started | Committed) else None

    async with StorageSyncer(isolation=apart) as one, StorageSyncer(isolation=apart) as other:
        async with anyio.create_task_group() as group:
            for name, syncer in (("one", one), ("other", other)):
                group.start_soon(
                    partial(syncer.sync_up, source, tmp_path / "to", observe=watch(name))
                )

    assert seen in (["one", "one", "other"], ["other", "other", "one"])


async def test_what_a_killed_program_was_fetching_is_given_up(tmp_path: Path) -> None:
    source = make(tmp_path / "source", {name: bytes(1_000_000) for name in "abc"})
    async with StorageSyncer(isolation="loop") as syncer:
        await syncer.sync_up(source, tmp_path / "to")

    back = tmp_path / "back"
    engine = await to_thread.run_sync(killed, "sync_down", tmp_path / "to", back, 100_000)
    with anyio.fail_after(30):
        await ended(engine)

    assert not back.exists()
    async with StorageSyncer(isolation="loop") as syncer:  # goes on with what had arrived, if any
        await syncer.sync_down(tmp_path / "to", back)
    assert sorted(os.listdir(tmp_path)) == ["back", "source", "to"]


FORKED = """
import asyncio, os, sys
import asyncsync

async def sync(target):
    return (await syncer.sync_up(sys.argv[1], target)).files

async def pids(target):
    await syncer.sync_up(sys.argv[1], target)
    return {c.pid for c in syncer._engine._connections.values()}

syncer = asyncsync.StorageSyncer(isolation=sys.argv[3])
loop = asyncio.new_event_loop()
mine = loop.run_until_complete(pids(sys.argv[2] + "_parent"))
child = os.fork()
if child == 0:
    theirs = asyncio.run(pids(sys.argv[2] + "_child"))
    os._exit(0 if theirs.isdisjoint(mine) else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), loop.run_until_complete(sync(sys.argv[2] + "_again")))
loop.run_until_complete(syncer.aclose())
loop.close()
"""


def test_a_program_that_forks_has_two(apart: Isolation, source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(source), str(tmp_path / "to"), apart]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=50
    )

    assert (done.stdout, done.stderr) == ("0 3\n", "")
