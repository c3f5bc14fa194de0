"""What holds for every test: a clean environment, a loop that nothing blocks, nothing left over."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from inspect import iscoroutinefunction
from pathlib import Path
from types import FrameType

import pytest
import uvloop
from blockbuster import BlockBuster, BlockBusterFunction
from hypothesis import settings

from .servers import (  # noqa: F401 - fixtures
    gcs_emulator,
    moto,
    moto_tls,
    rados,
    radosgw,
    radosgw_tls,
    rclone,
    tls_files,
)

# The same examples on every run and every machine, however slow: a test is deterministic.
settings.register_profile("asyncsync", deadline=None, derandomize=True, database=None)
settings.load_profile("asyncsync")

_TESTS = Path(__file__).parent
_BOTH_LOOPS = ("contract", "system")

# What blockbuster does not watch by itself and the package uses.
_ALSO_BLOCKING = ("os.open", "os.fsync", "os.lstat", "os.pread", "os.pwrite", "os.scandir")

_ALLOWED = (
    # A module is imported once, when it is first needed.
    ("<frozen importlib._bootstrap>", "_find_and_load"),
    # Makes a path absolute: asks the kernel for the current directory, never a disk.
    ("asyncsync/location.py", "_absolute"),
    # Starting a program without input opens /dev/null, which is no disk.
    ("subprocess.py", "_get_devnull"),
    # What measures coverage looks once at each file whose code begins to run.
    ("coverage/control.py", "_should_trace"),
)

_SETTINGS = (
    "ASYNCSYNC_",
    "AWS_",
    "CLOUDSDK_",
    "GCE_",
    "GCLOUD_",
    "GOOGLE_",
    "STORAGE_",
    "XDG_",
)

_GRACE_S = 2.0
"""A thread that has delivered its result needs a moment to come to rest."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The quick suites and whole-system tests run on uvloop too; else one loop is enough."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("slow") or item.get_closest_marker("one_loop"):
        return loops
    if item.path.is_relative_to(_TESTS) and item.path.relative_to(_TESTS).parts[0] in _BOTH_LOOPS:
        loops["uvloop"] = uvloop.new_event_loop
    return loops


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Processes that share the tests must give each the same name: sets have no order."""
    unstable = [item.nodeid for item in items if re.search(r"set\(\{| at 0x[0-9a-f]", item.nodeid)]
    if unstable:
        raise pytest.UsageError(f"give these tests ids that every process makes alike: {unstable}")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Let go of what a test has put on its instance, which stays until all tests have run."""
    if (instance := getattr(item, "instance", None)) is not None:
        vars(instance).clear()


@pytest.fixture(autouse=True)
def clean_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Neither the user's settings nor their caches have a part in a test."""
    home = tmp_path_factory.getbasetemp() / "home" / os.urandom(8).hex()
    home.mkdir(parents=True)
    for name in os.environ:
        if name.startswith(_SETTINGS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ASYNCSYNC_CACHE_DIR", str(home / "cache"))
    monkeypatch.chdir(Path.cwd())  # a test that goes elsewhere comes back


@pytest.fixture(autouse=True)
def nothing_blocks_and_nothing_stays(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """For async tests; set up before every other fixture, so that it looks when they are gone."""
    if not iscoroutinefunction(getattr(request, "function", None)):
        yield
        return
    base = os.path.realpath(tmp_path_factory.getbasetemp())
    files = _open_files(base)
    request.getfixturevalue("no_task_stays")
    yield
    _assert_threads_rest()
    left = _open_files(base) - files
    assert not left, f"open files were left behind: {sorted(left)}"


@pytest.fixture
async def no_task_stays(blocking_calls: None) -> AsyncIterator[None]:
    """Look for tasks on the test's own loop."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks were left behind: {left}"


@pytest.fixture
def blocking_calls(watchdog: BlockBuster) -> Iterator[None]:
    """A call from the package that blocks the event loop is an error."""
    watchdog.activate()
    yield
    watchdog.deactivate()


@pytest.fixture(scope="session")
def watchdog() -> BlockBuster:
    """Knows what blocks. What tests themselves do, also those in the package, is their affair."""
    package, tests = ["asyncsync"], ["asyncsync.testing"]
    found = BlockBuster(package, excluded_modules=tests)
    for name in _ALSO_BLOCKING:
        found.functions[name + "()"] = BlockBusterFunction(
            None, name, scanned_modules=package, excluded_modules=tests
        )
    # Handing work to a thread takes a lock for a moment, and on a busy machine waits for it.
    del found.functions["threading.Lock.acquire"]
    for function in found.functions.values():
        for file, caller in _ALLOWED:
            function.can_block_in(file, caller)
    return found


def _open_files(below: str) -> set[tuple[str, str]]:
    """Descriptors of this process that lead below a directory. Linux only; elsewhere none."""
    found: set[tuple[str, str]] = set()
    if not os.path.isdir("/proc/self/fd"):
        return found
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # that of the listing itself
            continue
        if target.startswith(below):
            found.add((fd, target))
    return found


def _assert_threads_rest() -> None:
    deadline = time.monotonic() + _GRACE_S
    while busy := _busy_threads():
        assert time.monotonic() < deadline, f"threads still work: {busy}"
        time.sleep(0.001)


def _busy_threads() -> list[str]:
    """The package's threads that run a function."""
    frames = sys._current_frames()
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("asyncsync")]
    return [
        f"{thread.name} in {frame.f_code.co_name} ({frame.f_code.co_filename})"
        for thread in ours
        if (frame := frames.get(thread.ident or 0)) is not None and _works(frame)
    ]


def _works(frame: FrameType | None) -> bool:
    """Whether a pool's thread has got past waiting for work."""
    while frame is not None:
        if frame.f_code.co_filename.endswith("concurrent/futures/thread.py"):
            return frame.f_code.co_name != "_worker"
        frame = frame.f_back
    return False
