"""One sample: a fresh process, watched until it ends; and the arithmetic over several of them."""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Limit", "Sample", "Verdict", "alternate", "judge", "medians", "run", "session_pss"]

Sample = Mapping[str, float]
"""Of one run, by name: `wall_s`, `cpu_s`, `pss_bytes`, and what else a row measures."""

PERIOD_S = 0.1


# -- arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A target: a metric of one case, or its ratio to the best of other cases, and a bound.

    Attributes:
        over: cases to compare with; with several, the one with the smallest value counts.
        at_least: the bound is the smallest value that is met, not the largest.
    """

    case: str
    metric: str = "wall_s"
    over: tuple[str, ...] = ()
    bound: float
    at_least: bool = False

    @property
    def text(self) -> str:
        against = f" / {' or '.join(self.over)}" if self.over else ""
        return f"{self.case}{against}, {self.metric}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a limit; `value` is None where something it needs was not measured."""

    limit: Limit
    value: float | None

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        if self.limit.at_least:
            return self.value >= self.limit.bound
        return self.value <= self.limit.bound


def medians(samples: Sequence[Sample]) -> dict[str, float]:
    """The median of every metric that all samples have."""
    names = set.intersection(*(set(sample) for sample in samples)) if samples else set()
    return {name: statistics.median(sample[name] for sample in samples) for name in sorted(names)}


def judge(limit: Limit, cases: Mapping[str, Mapping[str, float]]) -> Verdict:
    """Hold the medians of the cases against a limit."""
    value = cases.get(limit.case, {}).get(limit.metric)
    if value is None or not limit.over:
        return Verdict(limit, value)
    others = [
        cases[name][limit.metric] for name in limit.over if limit.metric in cases.get(name, {})
    ]
    divisor = min(others, default=0.0)
    return Verdict(limit, value / divisor if divisor > 0 else None)


def alternate(
    cases: Mapping[str, Callable[[], Sample]], repeat: int
) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """Run every case `repeat` times, A B C C B A: what the machine does meanwhile hits all.

    Returns: the samples, and the failures of the cases that are out because they failed.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in cases}
    failures: dict[str, str] = {}
    for number in range(repeat):
        able = [name for name in cases if name not in failures]
        # Back and forth: else a case would always follow the same other one.
        for name in able[::-1] if number % 2 else able:
            try:
                samples[name].append(cases[name]())
            except RuntimeError as exc:
                failures[name] = str(exc)
                del samples[name]
    return samples, failures


# -- processes


def run(
    command: Sequence[str], environ: Mapping[str, str], *, folder: Path, timeout_s: float = 1800
) -> Sample:
    """Run a program in a session of its own to its end.

    Its wall time, the CPU seconds of it and its children, and the peak of the PSS of all of them.
    The last line it prints, if it is a JSON object, says it better and comes first.

    Raises:
        RuntimeError: it failed, or was not done in time; with the end of what it said.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (folder / "out").open("w+b") as out:
        process = subprocess.Popen(
            command,
            env=dict(environ),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        watch = _Watch(process.pid)
        try:
            code = _wait(process, timeout_s)
            wall_s = time.perf_counter() - began
        finally:
            peak_bytes = watch.stop()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        out.seek(0)
        said = out.read().decode(errors="replace").strip()
    if code != 0:
        raise RuntimeError(f"{Path(command[0]).name} ended with {code}: {said[-2000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    measured = {"wall_s": wall_s, "cpu_s": cpu_s, "pss_bytes": float(peak_bytes)}
    last = said.rpartition("\n")[2]
    told: dict[str, float] = json.loads(last) if last.startswith("{") else {}
    if "base_bytes" in told:
        told["pss_over_bytes"] = peak_bytes - told.pop("base_bytes")
    return measured | told


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    """The exit code; a process that is not done in time, or not waited for, is killed."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class _Watch:
    """Looks every 100 ms at the memory of all processes of a session, in a thread."""

    def __init__(self, session: int) -> None:
        self._session, self._peak_bytes, self._over = session, 0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(PERIOD_S):
            self._peak_bytes = max(self._peak_bytes, session_pss(self._session))

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self._peak_bytes


def session_pss(session: int) -> int:
    """Bytes of memory of all processes of a session now, shared pages by their share."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            if int(stat.rpartition(")")[2].split()[3]) != session:
                continue
            total += pss_bytes(folder)
        except (OSError, IndexError):  # it has just ended
            continue
    return total


def pss_bytes(folder: Path = Path("/proc/self")) -> int:
    """Bytes of memory of one process."""
    for line in (folder / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
