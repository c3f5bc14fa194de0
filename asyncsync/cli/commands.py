"""What each command does, between the syncer and the words for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, TextIO

import anyio
import anyio.to_thread

from ..errors import ConfigError, IntegrityError, quote
from ..location import Location
from ..manifest import Kind
from ..syncing import Commit, ProbeReport, Receipt, StorageSyncer, SyncPlan
from ..units import format_amount, format_bytes, format_seconds
from .job import Limits, Links, Outcome, Patterns
from .output import Output
from .runner import Session

if TYPE_CHECKING:
    from rich.table import Table

    from ..storage.groups import Group

__all__ = ["doctor", "down", "ls", "restore", "rm", "up", "verify"]


async def up(  # noqa: PLR0913 - each is an option of the command
    session: Session,
    *,
    source: str,
    location: str,
    patterns: Patterns,
    kind: Kind | None,
    replace: bool,
    delete: bool,
    links: Links,
    step: int | None,
    group: Group | None,
    limits: Limits,
    dry_run: bool,
) -> Outcome:
    """Commit a directory to a location, or say what that would do."""
    exclude, include = patterns.exclude, patterns.include
    async with session.syncer(limits) as syncer:
        if dry_run:
            plan = await syncer.plan_up(
                source, location, exclude=exclude, include=include,
                kind=kind, replace=replace, delete=delete, links=links,
            )  # fmt: skip
            return _planned(session.output, plan)
        receipt = await syncer.sync_up(
            source, location, exclude=exclude, include=include,
            kind=kind, replace=replace, delete=delete, links=links, step=step,
            group=group,
        )  # fmt: skip
    return _synced("committed", receipt)


async def down(
    session: Session,
    *,
    location: str,
    target: str,
    patterns: Patterns,
    allow_unverified: bool,
    limits: Limits,
    dry_run: bool,
) -> Outcome:
    """Bring a commit into a local directory, or say what that would do."""
    exclude, include = patterns.exclude, patterns.include
    async with session.syncer(limits) as syncer:
        if dry_run:
            plan = await syncer.plan_down(
                location, target, exclude=exclude, include=include,
                allow_unverified=allow_unverified,
            )  # fmt: skip
            return _planned(session.output, plan)
        receipt = await syncer.sync_down(
            location, target, exclude=exclude, include=include,
            allow_unverified=allow_unverified,
        )  # fmt: skip
    return _synced("restored", receipt)


async def restore(
    session: Session,
    *,
    location: str,
    target: str,
    step: int | None,
    patterns: Patterns,
    fallback: bool,
    copies: Sequence[str],
    limits: Limits,
) -> Outcome:
    """Bring the newest commit at or below a location, or that of a step, into a directory."""
    async with session.syncer(limits) as syncer:
        receipt = await syncer.restore(
            location, target, step=step, include=patterns.include, exclude=patterns.exclude,
            fallback=fallback, copies=copies,
        )  # fmt: skip
    return _synced("restored", receipt)


def _synced(verb: str, receipt: Receipt) -> Outcome:
    resumed = f"{format_bytes(receipt.resumed_bytes)} before, " if receipt.resumed_bytes else ""
    text = (
        f"{quote(receipt.location)}: {verb} {format_amount(receipt.files, receipt.size_bytes)} in "
        f"{format_seconds(receipt.seconds)}: {format_bytes(receipt.sent_bytes)} sent, {resumed}"
        f"{format_bytes(receipt.skipped_bytes)} unchanged, {receipt.deleted_files} deleted; "
        f"identity {receipt.identity[:12]}, durability {receipt.durability}"
    )
    return Outcome(summary=asdict(receipt), text=text)


def _planned(output: Output, plan: SyncPlan) -> Outcome:
    for mark, action, path, size in _plan_rows(plan):
        output.emit("plan", {"action": action, "path": path, "size_bytes": size})
        if not output.options.json:
            output.result(f"{mark} {quote(path)}" + (f"  {format_bytes(size)}" if size else ""))
    for path, reason in plan.left_out:
        output.emit("plan", {"action": "leave_out", "path": path, "reason": reason})
        if not output.options.json:
            output.result(f"! {quote(path)}  left out: {reason}")
    counts = {
        "target": plan.target,
        "dry_run": True,
        "send_files": len(plan.send),
        "send_bytes": plan.send_bytes,
        "skip_files": len(plan.skip),
        "skip_bytes": plan.skip_bytes,
        "delete_files": len(plan.delete),
    }
    text = (
        f"{quote(plan.target)}: would send {format_amount(len(plan.send), plan.send_bytes)}, "
        f"keep {format_amount(len(plan.skip), plan.skip_bytes)}, delete {len(plan.delete)}; "
        "nothing changed"
    )
    return Outcome(summary=counts, text=text)


def _plan_rows(plan: SyncPlan) -> Iterator[tuple[str, str, str, int]]:
    for file in plan.send:
        yield "+", "send", file.path, file.size_bytes
    for file in plan.skip:
        yield "=", "skip", file.path, file.size_bytes
    for path in plan.delete:
        yield "-", "delete", path, 0


async def verify(session: Session, *, location: str, limits: Limits) -> Outcome:
    """Read a commit and compare every byte with its manifest."""
    async with session.syncer(limits) as syncer:
        report = await syncer.verify(location)
    where = quote(report.location)
    for path, reason in report.failures:
        session.output.emit("failure", {"path": path, "reason": reason})
        session.output.error(f"{where}: {quote(path)}: {reason}")
    summary = {
        "location": report.location,
        "identity": report.identity,
        "files": report.files,
        "size_bytes": report.size_bytes,
        "failures": len(report.failures),
    }
    if not report.ok:
        text = (
            f"{where}: {len(report.failures)} of {report.files} files are damaged; "
            "restore an older commit"
        )
        return Outcome(summary=summary, text=text, exit_code=IntegrityError.exit_code)
    amount = format_amount(report.files, report.size_bytes)
    return Outcome(
        summary=summary, text=f"{where}: verified {amount}, identity {report.identity[:12]}"
    )


async def ls(session: Session, *, location: str) -> Outcome:
    """List the commits at or below a location, newest first."""
    found = []
    async with session.syncer() as syncer:
        async for commit in syncer.commits(location):
            session.output.emit("commit", asdict(commit))
            found.append(commit)
    if not found:
        return Outcome(summary={"commits": 0}, text=f"{quote(location)}: no commits")
    text = "" if session.output.options.json else session.output.render(_table(found))
    return Outcome(summary={"commits": len(found)}, text=text)


def _table(commits: Sequence[Commit]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "kind", "files", "size", "created", "identity", "location"):
        right = name in ("step", "files", "size")
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for commit in commits:
        table.add_row(*(Text(cell) for cell in _cells(commit)))
    return table


def _cells(commit: Commit) -> tuple[str, ...]:
    step = "-" if commit.step is None else str(commit.step)
    if commit.damaged is not None:
        return step, "damaged", "-", "-", "-", "-", quote(commit.location)
    return (
        step,
        commit.kind,
        str(commit.files),
        format_bytes(commit.size_bytes),
        _shown_instant(commit.created),
        commit.identity[:12],
        quote(commit.location),
    )


def _shown_instant(created: float) -> str:
    """Local time; what no calendar has is what somebody else wrote there."""
    try:
        found = datetime.fromtimestamp(created).astimezone()
    except (ValueError, OverflowError, OSError):
        return "-"
    return found.isoformat(sep=" ", timespec="seconds")


async def rm(session: Session, *, location: str, yes: bool, allow_uncommitted: bool) -> Outcome:
    """Delete the commit at a location and those inside it, after asking."""
    if not yes:
        _check_terminal(session)
    async with session.syncer() as syncer:
        if not yes:
            question = await _question(syncer, location, allow_uncommitted=allow_uncommitted)
            if not await _ask(session, question):
                return Outcome(
                    summary={"location": location, "files": 0},
                    text=f"{quote(location)}: nothing was deleted",
                    exit_code=1,
                )
        deleted = await syncer.delete(location, allow_uncommitted=allow_uncommitted)
    summary = {"location": location, "files": deleted.files, "kept": list(deleted.kept)}
    kept = f"; kept {len(deleted.kept)} that are not ours" if deleted.kept else ""
    return Outcome(summary=summary, text=f"{quote(location)}: deleted {deleted.files} files{kept}")


async def _question(syncer: StorageSyncer, location: str, *, allow_uncommitted: bool) -> str:
    commits = [commit async for commit in syncer.commits(location)]
    amount = format_amount(sum(c.files for c in commits), sum(c.size_bytes for c in commits))
    noun = "commit" if len(commits) == 1 else "commits"
    more = " and files of no commit" if allow_uncommitted else ""
    return f"Delete {len(commits)} {noun}, {amount}{more}, at {quote(location)}? [y/N] "


def _check_terminal(session: Session) -> TextIO:
    stdin = session.world.stdin
    if stdin is None or not stdin.isatty():
        raise ConfigError("rm asks before it deletes and there is no terminal; say --yes")
    return stdin


async def _ask(session: Session, question: str) -> bool:
    """Ask on the terminal. Waits for the answer outside of `readline`, so that signals count."""
    stdin = _check_terminal(session)
    session.output.stderr.write(question)
    await anyio.wait_readable(stdin.fileno())
    return stdin.readline().strip().lower() in ("y", "yes")


async def doctor(session: Session, *, location: str, older_than_s: float | None) -> Outcome:
    """Say what a location can do and what is missing; tidy up what is that old."""
    removed: list[str] | None = None
    async with session.syncer() as syncer:
        report = await syncer.probe(location)
        if older_than_s is not None:
            removed = await syncer.clean(location, older_than_s=older_than_s)
    free = await _free_bytes(location)
    summary = {
        "location": report.location,
        **asdict(report.capabilities),
        "marker": report.marker,
        "clock_offset_s": report.clock_offset_s,
        "free_bytes": free,
        "removed": removed,
    }
    lines = [*_findings(report, free), *_removed(removed)]
    return Outcome(summary=summary, text="\n".join(lines))


def _removed(names: list[str] | None) -> Iterator[str]:
    if names is not None:
        yield f"  interrupted     {len(names)} removed"
        for name in names:
            yield f"                  {quote(name)}"


def _findings(report: ProbeReport, free: int | None) -> Iterator[str]:
    can = report.capabilities
    yield f"{quote(report.location)}: writable"
    yield f"  durability      {can.durability}: {_DURABILITY[can.durability]}"
    yield f"  writers         {'kept apart' if can.exclusive else _SINGLE_WRITER}"
    yield f"  raw names       {'kept' if can.raw_names else 'refused'} (names that are not UTF-8)"
    yield f"  upper and lower {'two names' if can.case_sensitive else 'one name: clashes refused'}"
    yield f"  NFC and NFD     {'two names' if can.keeps_normalization else 'one name'}"
    yield f"  root marker     {report.marker}"
    if report.clock_offset_s is not None:
        yield f"  clock           {_clock(report.clock_offset_s)}"
    if free is not None:
        yield f"  free            {format_bytes(free)}"
    for note in can.notes:
        yield f"  note            {note}"


def _clock(offset_s: float) -> str:
    text = f"{offset_s:+.1f} s from ours"
    if abs(offset_s) <= _CLOCK_S:
        return text
    return f"{text}: WARNING, too far apart; set the clock of this machine"


_CLOCK_S = 60.0  # stores begin to refuse signatures at some minutes

_SINGLE_WRITER = "SINGLE-WRITER MODE: one at a time, yours to ensure; a second one is not noticed"

_DURABILITY = {
    "memory": "gone when the program ends",
    "reduced": "survives a crash of the program; the file system cannot promise more",
    "fsync": "survives a power cut",
    "received": "survives the loss of this machine, and a power cut of the head perhaps",
    "head-fsync": "survives the loss of this machine, and a power cut of the head",
    "cloud": "survives the loss of this machine",
}


async def _free_bytes(location: str) -> int | None:
    where = Location.parse(location)
    if where.scheme != "file":
        return None
    return await anyio.to_thread.run_sync(_free_below, where.path)


def _free_below(path: str) -> int:
    """Free space where `path` is, or would be."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free
