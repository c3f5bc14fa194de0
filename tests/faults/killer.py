"""Running one operation in a process of its own and killing it at an exact system call.

A server with everything imported forks a child for each run, so that a run costs milliseconds and
the calls of starting Python are not among those counted. The child stops itself; strace attaches;
then it goes on. strace counts calls by thread, and the operation uses one thread for the disk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import anyio

from .crash_scenarios import FRONT_DOOR, GROUPS, SCENARIOS

__all__ = ["CALLS", "Killer", "Outcome", "serve"]

# What creates, fills, flushes, publishes and removes, and the locks. The most frequent come first;
# one that an operation does not make costs one run.
CALLS = (
    "close",
    "openat",
    "openat2",
    "unlinkat",
    "fsync",
    "mkdirat",
    "renameat2",
    "renameat",
    "rename",
    "linkat",
    "link",
    "write",
    "pwrite64",
    "ftruncate",
    "copy_file_range",
    "fdatasync",
    "mkdir",
    "unlink",
    "rmdir",
    "flock",
)

_ALL = {**SCENARIOS, **FRONT_DOOR, **GROUPS}

# Appended: the package under test is the one that is installed, not the one beside the tests.
_SERVE = """
import sys
sys.path.append({root!r})
from tests.faults.killer import serve
serve()
"""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: it was killed, or finished; and whether it had acknowledged by then."""

    killed: bool
    acknowledged: bool


class Killer:
    """A server of runs; use it as a context manager, from one thread at a time."""

    def __enter__(self) -> Killer:
        root = str(Path(__file__).parents[2])
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVE.format(root=root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()  # it has imported everything
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe(self._server.stdin).close()
        self._server.wait()
        self._pipe(self._server.stdout).close()

    def run(self, scenario: str, base: str) -> Outcome:
        """Run to the end."""
        self._ask(scenario, base, stop=False)
        return self._outcome()

    def run_until(self, scenario: str, base: str, call: str, number: int) -> Outcome:
        """Run until a thread is about to make its `number`-th `call`, and kill the process there.

        Raises:
            RuntimeError: strace cannot attach to the process here.
        """
        pid = self._ask(scenario, base, stop=True)
        inject = f"inject={call}:signal=KILL:when={number}"
        command = ["strace", "-f", "-qqq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
        with subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE) as strace:
            try:
                _wait_until_traced(pid, strace)
            except BaseException:
                os.kill(pid, signal.SIGKILL)
                raise
            finally:
                os.kill(pid, signal.SIGCONT)
            return self._outcome()

    def _ask(self, scenario: str, base: str, *, stop: bool) -> int:
        question = json.dumps({"scenario": scenario, "base": base, "stop": stop})
        print(question, file=self._pipe(self._server.stdin), flush=True)
        return self._answer()["pid"]

    def _outcome(self) -> Outcome:
        answer = self._answer()
        if answer["status"] not in (0, -signal.SIGKILL):
            raise AssertionError("the operation failed by itself; its traceback is on stderr")
        return Outcome(answer["status"] != 0, bool(answer["acknowledged"]))

    def _answer(self) -> dict[str, int]:
        line = self._pipe(self._server.stdout).readline()
        if not line:
            raise RuntimeError("the server of runs ended; its traceback is on stderr")
        answer: dict[str, int] = json.loads(line)
        return answer

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None, "it was asked for"
        return pipe


def _wait_until_traced(pid: int, strace: subprocess.Popen[bytes]) -> None:
    """Wait for another program: there is no event to wait for, so look every millisecond."""
    deadline = time.monotonic() + 10
    while f"TracerPid:\t{strace.pid}\n" not in Path(f"/proc/{pid}/status").read_text():
        if strace.poll() is not None or time.monotonic() > deadline:
            strace.kill()
            assert strace.stderr is not None, "it was asked for"
            raise RuntimeError(f"strace cannot attach: {strace.stderr.read().decode()}")
        time.sleep(0.001)


# ---------------------------------------------------------------- in the server


def serve() -> None:
    """Answer requests from stdin until it ends."""
    _warm_up()
    print(json.dumps({"ready": 1}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answers, acknowledge = os.pipe()
        pid = os.fork()
        if pid == 0:
            _child(request["scenario"], request["base"], request["stop"], acknowledge)
        os.close(acknowledge)
        _serve_one(pid, answers, stop=request["stop"])


def _warm_up() -> None:
    """Import and look up whatever a first run does, and leave no thread that a fork would lose."""
    with TemporaryDirectory() as folder:
        base = f"{folder}/base"
        os.mkdir(base)
        for scenario in _ALL.values():
            anyio.run(scenario.prepare, base)
            anyio.run(scenario.run, base)
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()


def _serve_one(pid: int, answers: int, *, stop: bool) -> None:
    status = 0
    if stop:
        _, status = os.waitpid(pid, os.WUNTRACED)
    print(json.dumps({"pid": pid}), flush=True)
    if not stop or os.WIFSTOPPED(status):
        _, status = os.waitpid(pid, 0)
    ended = {"status": os.waitstatus_to_exitcode(status), "acknowledged": len(os.read(answers, 1))}
    os.close(answers)
    print(json.dumps(ended), flush=True)


def _child(scenario: str, base: str, stop: bool, acknowledge: int) -> None:
    status = 1
    try:
        if stop:
            os.kill(os.getpid(), signal.SIGSTOP)
        anyio.run(_ALL[scenario].run, base)
        os.write(acknowledge, b"a")
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(status)
