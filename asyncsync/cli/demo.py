"""The main job, shown and proved: train, die in the middle of a checkpoint, come back, finish."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from filecmp import cmp, cmpfiles
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from .. import events
from ..concurrency import quietly
from ..errors import AsyncSyncError, ConfigError, quote
from ..location import Location
from ..syncing import StorageSyncer
from ..units import MIB, format_bytes, format_seconds
from .demo_protocol import Committed, Plan, Reduced, Report, Saved, Sent, Stepped, Synced, Trained
from .job import Outcome
from .output import Output
from .progress import Monitor
from .runner import Session

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["demo"]

T = TypeVar("T")

STEPS = 48
EVERY = 12
KILLED_STEP = 36
KEPT_STEP = KILLED_STEP - EVERY
BYTES_PER_SECOND = 12 * MIB  # about a second for a checkpoint: as long as training needs for one

# One thread: the order in which numbers are added up must not depend on how busy the machine is.
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "VECLIB")}


@dataclass(frozen=True, slots=True)
class Run:
    """One training process, as its reports tell it."""

    name: str
    reports: list[Report] = field(default_factory=list)

    def of(self, kind: type[T]) -> list[T]:
        return [report for report in self.reports if isinstance(report, kind)]


async def demo(session: Session, *, to: str | None, keep: bool) -> Outcome:
    """Run the main job; every claim that does not hold is an AsyncSyncError (exit code 1)."""
    _check_surroundings(to)
    begun = time.monotonic()
    async with workspace(keep=keep) as directory, session.syncer() as syncer:
        remote = _new_place(to or str(directory / "store"))
        stage = _Stage(session.output, session.monitor, syncer, directory, remote)
        runs = await _play(stage)
        session.output.result(session.output.render(_table(runs)))
        summary = _summary(runs) | {"claims": stage.claims, "seconds": time.monotonic() - begun}
    where = f"; its commits stay in {quote(remote)}" if to or keep else ""
    text = f"all {stage.claims} claims hold, {format_seconds(time.monotonic() - begun)}{where}"
    return Outcome(summary=summary | {"location": remote}, text=text)


def _check_surroundings(to: str | None) -> None:
    if importlib.util.find_spec("numpy") is None:
        raise ConfigError("the demo trains with numpy: pip install numpy")
    if to is not None and Location.parse(to).scheme == "memory":
        raise ConfigError(
            "memory:// ends with the process, and the demo kills one; use a path or another store"
        )


def _new_place(base: str) -> str:
    """A place below `base` that no earlier demo has used."""
    return str(
        Location.parse(base) / f"demo-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    )


@asynccontextmanager
async def workspace(*, keep: bool) -> AsyncIterator[Path]:
    """A temporary directory, removed at the end however that comes, unless `keep`."""
    directory = Path(tempfile.mkdtemp(prefix="asyncsync-demo-"))
    try:
        yield directory
    finally:
        if not keep:
            await quietly(lambda: anyio.to_thread.run_sync(shutil.rmtree, directory), grace_s=30)


@dataclass(slots=True)
class _Stage:
    """Where the demo plays."""

    output: Output
    monitor: Monitor
    syncer: StorageSyncer
    directory: Path
    remote: str
    claims: int = 0

    @property
    def checkpoints(self) -> str:
        return str(Location.parse(self.remote) / "checkpoints")

    @property
    def trial(self) -> str:
        return str(Location.parse(self.remote) / "trial")

    @contextmanager
    def claim(self, text: str) -> Iterator[None]:
        """Print `text` once the block has passed; whatever fails in it refutes the claim."""
        try:
            yield
        except AsyncSyncError as exc:
            self.output.emit("claim", {"claim": text, "ok": False})
            raise AsyncSyncError(f"the demo failed: {text}: {exc}") from exc
        finally:
            self.monitor.close()
        self.monitor.tally.committed = False  # a scene of the demo, not what the user waits for
        self.claims += 1
        self.output.emit("claim", {"claim": text, "ok": True})
        self.say(f"  ok  {text}")

    def say(self, text: str) -> None:
        self.monitor.note(text)


def _hold(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AsyncSyncError(otherwise)


async def _play(stage: _Stage) -> list[Run]:
    """The whole story, in order."""
    stage.say(f"training {STEPS} steps without interruption and without saving")
    whole = await _train_whole(stage)
    stage.say(f"training again, a checkpoint every {EVERY} steps to {quote(stage.remote)}")
    killed = await _train_until_killed(stage)
    await _check_what_is_visible(stage)
    stage.say("the machine is back, its disk is empty: restoring into a fresh directory")
    plan = await _restore(stage)
    stage.say(f"training on from step {KEPT_STEP}")
    resumed = await _train_on(stage, plan)
    await _check_results(stage)
    return [whole, killed, resumed]


async def _train_whole(stage: _Stage) -> Run:
    plan = Plan(directory=str(stage.directory / "whole"), steps=STEPS, every=EVERY)
    run = Run("uninterrupted")
    with stage.claim("the model learns"):
        _hold(await _follow(plan, run) == 0, "the training process failed; see above")
        losses = [report.loss for report in run.of(Stepped)]
        _hold(losses[-1] < losses[0] / 2, f"its loss went from {losses[0]:.2f} to {losses[-1]:.2f}")
    return run


async def _train_until_killed(stage: _Stage) -> Run:
    plan = Plan(
        directory=str(stage.directory / "first"),
        steps=STEPS,
        every=EVERY,
        remote=stage.remote,
        bwlimit=BYTES_PER_SECOND,
    )
    run = Run("killed")
    with stage.claim(f"SIGKILL hit the training after half of checkpoint {KILLED_STEP} was sent"):
        code = await _follow(plan, run, until=_half_sent)
        for report in run.of(Reduced):
            stage.monitor(events.Reduced(where=report.where, reason=report.reason))
        late = any(report.step == KILLED_STEP for report in run.of(Committed))
        _hold(code == -signal.SIGKILL and not late, "the kill came too late")
    return run


def _half_sent(report: Report) -> bool:
    """Whether this is the moment to kill."""
    if not isinstance(report, Sent) or report.step != KILLED_STEP:
        return False
    return 2 * report.moved_bytes >= report.total_bytes


async def _check_what_is_visible(stage: _Stage) -> None:
    checkpoints = stage.checkpoints
    with stage.claim(f"checkpoint {KILLED_STEP} is not visible"):
        steps = [commit.step async for commit in stage.syncer.commits(checkpoints)]
        _hold(steps == [KEPT_STEP, KEPT_STEP - EVERY], f"the commits are those of steps {steps}")
    with stage.claim(f"checkpoint {KEPT_STEP} is the newest and verifies"):
        newest = await stage.syncer.latest(checkpoints)
        if newest is None or newest.step != KEPT_STEP:
            raise AsyncSyncError(f"the newest is {newest}")
        _hold((await stage.syncer.verify(newest.location)).ok, "it does not verify")


async def _restore(stage: _Stage) -> Plan:
    """Bring back checkpoint and trial, and plan the rest of the training."""
    # Under the name that the killed run had, or what that had begun to write in an object store
    # would count for a minute as that of somebody else who is still at work.
    directory = stage.directory / "first"
    await anyio.to_thread.run_sync(directory.rename, stage.directory / "killed")
    with stage.claim(f"checkpoint {KEPT_STEP} and the trial's files come back"):
        await stage.syncer.restore(stage.checkpoints, directory / "restored")
        await stage.syncer.sync_down(stage.trial, directory / "trial")
    return Plan(
        directory=str(directory),
        steps=STEPS,
        every=EVERY,
        remote=stage.remote,
        resume=str(directory / "restored"),
        bwlimit=BYTES_PER_SECOND,
    )


async def _train_on(stage: _Stage, plan: Plan) -> Run:
    run = Run("resumed")
    with stage.claim(f"training went on from step {KEPT_STEP} to the end"):
        _hold(await _follow(plan, run) == 0, "the training process failed; see above")
        steps = [report.step for report in run.of(Stepped)]
        _hold(steps == list(range(KEPT_STEP + 1, STEPS + 1)), f"its steps were {steps}")
    return run


async def _check_results(stage: _Stage) -> None:
    """Compare what the location holds now with what the uninterrupted run wrote."""
    whole, final = stage.directory / "whole", stage.directory / "final"
    with stage.claim(
        "weights, moments and random state are bit-identical to the uninterrupted run"
    ):
        await stage.syncer.restore(stage.checkpoints, final, step=STEPS)
        wrong = await anyio.to_thread.run_sync(_differences, whole / "final", final)
        _hold(not wrong, f"{', '.join(wrong)} differ")
    with stage.claim("the log of losses, a file that grows, is that of the uninterrupted run"):
        trial = stage.directory / "trial"
        log = "losses.jsonl"
        await stage.syncer.sync_down(stage.trial, trial, include=[log])
        same = await anyio.to_thread.run_sync(cmp, whole / "trial" / log, trial / log, False)
        _hold(same, "it is not")


def _differences(expected: Path, found: Path) -> list[str]:
    names = sorted(path.name for path in expected.iterdir())
    _, different, missing = cmpfiles(expected, found, names, shallow=False)
    return different + missing


async def _follow(plan: Plan, run: Run, until: Callable[[Report], bool] | None = None) -> int:
    """Run the training process and collect its reports; SIGKILL at the report that `until` picks.

    Left by error or cancellation, the process is gone.

    Returns:
        Its exit status; negative: the signal that ended it.
    """
    command = [
        sys.executable,
        "-m",
        f"{__package__}.demo_training",
        msgspec.json.encode(plan).decode(),
    ]
    process = await anyio.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stderr=None,
        env=os.environ | ONE_THREAD,
        start_new_session=True,  # Ctrl-C is ours; ours is the clean-up too
    )
    try:
        async for line in _lines(process):
            report = msgspec.json.decode(line, type=Report)
            if until is not None and until(report):
                process.kill()
                until = None
            run.reports.append(report)
        return await process.wait()
    except BaseException:
        process.kill()
        raise
    finally:
        await process.aclose()


async def _lines(process: anyio.abc.Process) -> AsyncIterator[bytes]:
    """What the process prints, line by line; a last line cut off by its death is dropped."""
    rest = b""
    assert process.stdout is not None
    async for block in process.stdout:
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line


def _table(runs: Sequence[Run]) -> Table:
    from rich.table import Table

    table = Table(title="What moved, and how long training waited", title_justify="left")
    for name in ("run", "step", "loss", "sent", "skipped", "upload took", "training waited"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for run in runs:
        for row in _rows(run):
            table.add_row(*row)
        table.add_section()
    return table


def _rows(run: Run) -> Iterator[tuple[str, ...]]:
    losses = {report.step: f"{report.loss:.3f}" for report in run.of(Stepped)}
    committed = {report.step: report for report in run.of(Committed)}
    synced = {report.step: report for report in run.of(Synced)}
    first, last = min(losses), max(losses)
    yield run.name, str(first), losses[first], "", "", "", ""
    for saved in run.of(Saved):
        waited = format_seconds(saved.waited_s + saved.written_s)
        head = ("  checkpoint", str(saved.step), losses[saved.step])
        if saved.step not in committed:
            sent = [report for report in run.of(Sent) if report.step == saved.step]
            yield *head, format_bytes(sent[-1].moved_bytes), "", "killed, not visible", waited
            continue
        done, trial = committed[saved.step], synced.get(saved.step)
        yield *head, *_amounts(done), format_seconds(done.seconds), waited
        if trial is not None:
            yield "  trial's files", str(saved.step), "", *_amounts(trial), "", ""
    if not run.of(Saved):
        yield "", str(last), losses[last], "", "", "", ""
    for end in run.of(Trained):
        total = sum(saved.waited_s + saved.written_s for saved in run.of(Saved))
        share = f"{format_seconds(total)} of {format_seconds(end.seconds)}"
        yield "  in all", "", "", "", "", "", share


def _amounts(report: Committed | Synced) -> tuple[str, str]:
    return format_bytes(report.sent_bytes), format_bytes(report.skipped_bytes)


def _summary(runs: Sequence[Run]) -> dict[str, object]:
    """What moved over all runs, and what training waited for; bytes and seconds."""
    moved = list[Committed | Synced]()
    for run in runs:
        moved += [*run.of(Committed), *run.of(Synced)]
    saved = [report for run in runs for report in run.of(Saved)]
    return {
        "sent_bytes": sum(report.sent_bytes for report in moved),
        "skipped_bytes": sum(report.skipped_bytes for report in moved),
        "waited_s": sum(report.waited_s for report in saved),
        "written_s": sum(report.written_s for report in saved),
        "first_loss": runs[0].of(Stepped)[0].loss,
        "last_loss": runs[-1].of(Stepped)[-1].loss,
    }
