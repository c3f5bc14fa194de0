"""Grammar, words and exit codes of the command line, over a syncer that only records."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast, get_args

import pytest

from asyncsync import errors, events
from asyncsync.cli.app import app, main
from asyncsync.cli.demo_protocol import Sent
from asyncsync.cli.job import Limits, Options
from asyncsync.cli.output import Output, Stream, event_name, one_line
from asyncsync.cli.progress import Bars, Tally
from asyncsync.cli.runner import World
from asyncsync.errors import AsyncSyncError, TransferError
from asyncsync.events import Committed, Event, Moved, Observer, Planned, Skipped, Started
from asyncsync.storage import Deleted, NewFile, TreeCapabilities
from asyncsync.storage.groups import Group
from asyncsync.syncing import (
    Commit,
    ProbeReport,
    Receipt,
    StorageSyncer,
    SyncPlan,
    VerifyReport,
)
from asyncsync.testing import FakeClock

IDENTITY = "ab" * 32
DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
SECRET = "s3://AKIA:hush@bucket/run"

RECEIPT = Receipt(
    location="/store/ckpt", identity=IDENTITY, kind="sealed", files=2, size_bytes=2048, sent_files=2
)
PLAN = SyncPlan(
    target="/store/ckpt",
    send=(NewFile("new\x1b[2J", 1024),),
    skip=(NewFile("same", 10),),
    delete=("gone",),
    left_out=(("link", "a symbolic link"),),
)
COMMIT = Commit(
    location="/store/ckpt",
    name="ckpt",
    kind="sealed",
    step=7,
    epoch=0,
    sequence=1,
    created=0.0,
    identity=IDENTITY,
    files=2,
    size_bytes=2048,
)
PROBE = ProbeReport(
    location="/store",
    capabilities=TreeCapabilities(exclusive=False, notes=("no directory sync",)),
    marker="marker-1",
    clock_offset_s=None,
)


def report(*failures: tuple[str, str]) -> VerifyReport:
    return VerifyReport(
        location="/store/ckpt", identity=IDENTITY, files=2, size_bytes=2048, failures=failures
    )


@dataclass
class RecordingSyncer:
    """Notes every call; answers with what it was given, or raises it."""

    answers: dict[str, object] = field(default_factory=dict)
    happens: Callable[[Observer], Awaitable[None]] | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    limits: Limits | None = None
    observe: Observer = events.ignore

    @asynccontextmanager
    async def open(self, limits: Limits, observe: Observer) -> AsyncIterator[StorageSyncer]:
        self.limits, self.observe = limits, observe
        yield cast("StorageSyncer", self)

    def opener(
        self, limits: Limits, observe: Observer
    ) -> AbstractAsyncContextManager[StorageSyncer]:
        return self.open(limits, observe)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def method(*args: str, **options: object) -> Any:
            self.calls.append((name, *args, options))
            if self.happens is not None:
                await self.happens(self.observe)
            return self._answer(name)

        return method

    async def commits(self, location: str) -> AsyncIterator[Commit]:
        self.calls.append(("commits", location, {}))
        for commit in cast("list[Commit]", self._answer("commits")):
            yield commit

    def _answer(self, name: str) -> object:
        answer = self.answers.get(name)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Terminal(io.StringIO):
    """Looks like a terminal."""

    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """Fails at the n-th write."""

    def __init__(self, code: int, after: int = 0) -> None:
        super().__init__()
        self.code = code
        self.left = after

    def write(self, text: str) -> int:
        if self.left == 0:
            raise OSError(self.code, os.strerror(self.code))
        self.left -= 1
        return super().write(text)


@dataclass
class Ran:
    code: int
    out: str
    err: str
    syncer: RecordingSyncer

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def run(
    *argv: str,
    stdin: TextIO | None = None,
    stdout: io.StringIO | None = None,
    stderr: io.StringIO | None = None,
    clock: FakeClock | None = None,
    happens: Callable[[Observer], Awaitable[None]] | None = None,
    **answers: object,
) -> Ran:
    """The command line in this process, over a syncer that records."""
    known: dict[str, object] = {
        "sync_up": RECEIPT,
        "sync_down": RECEIPT,
        "restore": RECEIPT,
        "plan_up": PLAN,
    }
    known |= {"plan_down": PLAN, "verify": report(), "probe": PROBE}
    defaults = known | {"commits": [COMMIT], "delete": Deleted(files=2)}
    syncer = RecordingSyncer(defaults | answers, happens)
    stdout, stderr = stdout or io.StringIO(), stderr or io.StringIO()
    world = World(
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        clock=clock or FakeClock(),
        open_syncer=syncer.opener,
    )
    code = main(argv, world)
    return Ran(code, stdout.getvalue(), stderr.getvalue(), syncer)


PATTERNS = {"exclude": ("*.tmp", "/x"), "include": ("w*",)}
RANK_ARGS = ("--group", "run", "--rank", "1", "--size", "2")
PATTERN_ARGS = ("--exclude", "*.tmp", "--exclude", "/x", "--include", "w*")
NONE = {"exclude": (), "include": ()}


@pytest.mark.parametrize(
    ("argv", "call"),
    [
        (
            ("up", "/src", "/dst"),
            (
                "sync_up",
                "/src",
                "/dst",
                {
                    **NONE,
                    "kind": None,
                    "replace": False,
                    "delete": True,
                    "links": "refuse",
                    "step": None,
                    "group": None,
                },
            ),
        ),
        (
            (
                "up",
                "/src",
                "/dst",
                *PATTERN_ARGS,
                "--rolling",
                "--no-delete",
                "--replace",
                "--links",
                "follow",
            ),
            (
                "sync_up",
                "/src",
                "/dst",
                {
                    **PATTERNS,
                    "kind": "rolling",
                    "replace": True,
                    "delete": False,
                    "links": "follow",
                    "step": None,
                    "group": None,
                },
            ),
        ),
        (
            ("up", "file:///src", "memory://a/b", "--sealed", "--step", "7", *RANK_ARGS),
            (
                "sync_up",
                "/src",
                "memory://a/b",
                {
                    **NONE,
                    "kind": "sealed",
                    "replace": False,
                    "delete": True,
                    "links": "refuse",
                    "step": 7,
                    "group": Group(id="run", rank=1, size=2),
                },
            ),
        ),
        (
            ("up", "/src", "/dst", "-n", "--exclude", "a"),
            (
                "plan_up",
                "/src",
                "/dst",
                {
                    "exclude": ("a",),
                    "include": (),
                    "kind": None,
                    "replace": False,
                    "delete": True,
                    "links": "refuse",
                },
            ),
        ),
        (
            ("down", "/src", "/dst", *PATTERN_ARGS, "--allow-unverified"),
            ("sync_down", "/src", "/dst", {**PATTERNS, "allow_unverified": True}),
        ),
        (
            ("down", "/src", "/dst", "--dry-run"),
            ("plan_down", "/src", "/dst", {**NONE, "allow_unverified": False}),
        ),
        (
            ("restore", "/src", "/dst", "--latest"),
            ("restore", "/src", "/dst", {**NONE, "step": None, "fallback": False, "copies": []}),
        ),
        (
            ("restore", "/a", "/b", *PATTERN_ARGS, "--step", "0", "--fallback", "--copy", "/c"),
            ("restore", "/a", "/b", {**PATTERNS, "step": 0, "fallback": True, "copies": ["/c"]}),
        ),
        (("verify", "/src"), ("verify", "/src", {})),
        (("doctor", "/src"), ("probe", "/src", {})),
        (("ls", "/src"), ("commits", "/src", {})),
        (("rm", "/src", "--yes"), ("delete", "/src", {"allow_uncommitted": False})),
        (
            ("rm", "/src", "-y", "--allow-uncommitted"),
            ("delete", "/src", {"allow_uncommitted": True}),
        ),
    ],
)
def test_a_command_asks_the_syncer_for_exactly_what_was_said(
    argv: tuple[str, ...], call: tuple[Any, ...]
) -> None:
    ran = run(*argv)

    assert ran.syncer.calls == [call]
    assert ran.code == 0


def test_limits_reach_the_syncer() -> None:
    ran = run("up", "/src", "/dst", "-j", "3", "--bwlimit", "10MiB", "--timeout", "90")

    assert ran.syncer.limits == Limits(jobs=3, bwlimit=10 * 1024**2, timeout_s=90)


def test_a_relative_source_and_target_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("up", "src", "dst")

    assert ran.syncer.calls[0][1:3] == (str(tmp_path / "src"), str(tmp_path / "dst"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "Usage"),
        (("up",), "SRC"),
        (("up", "/src"), "LOCATION"),
        (("fly", "/src"), "fly"),
        (("up", "/src", "/dst", "--wings"), "--wings"),
        (("up", "/src", "/dst", "/more"), "/more"),
        (("up", "", "/dst"), "empty"),
        (("up", "/src", ""), "empty"),
        (("up", "s3://bucket/src", "/dst"), "up SRC LOCATION"),
        (("down", "/src", "memory://a/b"), "down LOCATION DST"),
        (("restore", "/src", "memory://a/b"), "restore LOCATION DIR"),
        (("restore", "/src", "/dst", "--latest", "--step", "3"), "--latest and --step"),
        (("up", "/src", "/dst", "--bwlimit", "fast"), "fast"),
        (("up", "/src", "/dst", "--bwlimit", "0"), "--bwlimit 0"),
        (("up", "/src", "/dst", "--timeout", "0"), "--timeout 0"),
        (("up", "/src", "/dst", "--timeout", "-1"), "--timeout -1"),
        (("up", "/src", "/dst", "--timeout", "nan"), "--timeout nan"),
        (("up", "/src", "/dst", "--timeout", "inf"), "--timeout inf"),
        (("up", "/src", "/dst", "--jobs", "0"), "--jobs"),
        (("up", "/src", "/dst", "--step", "-1"), "--step"),
        (("up", "/src", "/dst", "--links", "maybe"), "maybe"),
        (("rm", "/src"), "--yes"),
        (("up", "/src", SECRET), "credentials"),
        (("up", SECRET, "/dst"), "credentials"),
        (("ls", "/src", SECRET), "..."),
        (("up", "/src", "/dst", f"--jobs={SECRET}"), "--jobs"),
        (("up", "/src", "/dst", f"-j{SECRET}"), "--jobs"),
        (("up", "/src", "/dst", "--step", SECRET), "--step"),
        (("up", "/src", "/dst", f"--timeout={SECRET}"), "--timeout"),
        (("up", "/src", "/dst", f"--bwlimit={SECRET}"), "..."),
        (("up", "/src", "/dst", f"--links={SECRET}"), "--links"),
        (("doctor", "/dst", f"--older-than={SECRET}"), "--older-than"),
        (("up", "/src", "/dst", f"--{SECRET}"), "..."),
        (("up", "/src", "/dst", "--jobs", SECRET.replace("hush", "\\hush\\n")), "--jobs"),
        ((SECRET.replace("hush", "\\hush\\n"),), "..."),
        (("ls", "s3://bucket/run?secret_key=hush"), "credentials"),
        (("demo", "--to", "memory://a/b"), "memory://"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    argv: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(*argv)
    text = ran.err + capsys.readouterr().out

    assert (ran.code, ran.syncer.calls) == (2, [])
    assert says in text
    assert "hush" not in text
    assert not argv or (ran.err.startswith("asyncsync: error: ") and ran.err.count("\n") == 1)


def test_wrong_usage_is_json_too_when_asked_for() -> None:
    ran = run("up", "/src", "--json")

    assert [line["event"] for line in ran.lines] == ["error", "summary"]
    assert ran.lines[-1] == {
        "v": 1,
        "event": "summary",
        "command": "up",
        "ok": False,
        "exit_code": 2,
    }


def our_errors(kind: type[AsyncSyncError] = AsyncSyncError) -> Iterator[type[AsyncSyncError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from our_errors(child)


# What a command may meet; a scheduler's own error, for one, is none of them.
RAISED = [kind for kind in our_errors() if kind.__module__ == errors.__name__]


def an_error(kind: type[AsyncSyncError]) -> AsyncSyncError:
    if issubclass(kind, TransferError):
        return kind("two\nlines", failures=[errors.PermanentError("inner")])
    if issubclass(kind, errors.ConflictError):
        return kind("two\nlines", winner=IDENTITY)
    return kind("two\nlines", paths=["a"])


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_an_error_is_one_line_and_the_exit_code_of_its_class(kind: type[AsyncSyncError]) -> None:
    ran = run("up", "/src", "/dst", sync_up=an_error(kind))

    assert ran.code == kind.exit_code
    assert ran.err == "asyncsync: error: two lines\n"
    assert ran.out == ""


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_an_error_is_an_object_before_the_summary(kind: type[AsyncSyncError]) -> None:
    ran = run("up", "/src", "/dst", "--json", sync_up=an_error(kind))
    error, summary = ran.lines

    assert (error["class"], error["message"]) == (kind.__name__, "two\nlines")
    assert error["exit_code"] == summary["exit_code"] == kind.exit_code
    assert (summary["event"], summary["ok"]) == ("summary", False)


def test_the_failures_of_a_transfer_are_in_the_error_object() -> None:
    ran = run("up", "/src", "/dst", "--json", sync_up=an_error(TransferError))

    assert ran.lines[0]["failures"] == [{"class": "PermanentError", "message": "inner"}]


def test_a_bug_is_one_line_that_points_to_the_traceback() -> None:
    ran = run("up", "/src", "/dst", sync_up=ZeroDivisionError("oops"))

    assert ran.code == 1
    assert ran.err == ("asyncsync: error: ZeroDivisionError: oops; run it with -v to see where\n")


def test_v_shows_the_traceback() -> None:
    ran = run("up", "/src", "/dst", "-v", sync_up=ZeroDivisionError("oops"))

    assert "Traceback" in ran.err
    assert ran.err.endswith("asyncsync: error: ZeroDivisionError: oops\n")


async def a_sync_happens(observe: Observer) -> None:
    observe(Started(direction="up", source="/src", target="/dst"))
    observe(Planned(send_files=1, send_bytes=10, skip_files=0, skip_bytes=0, delete_files=0))
    observe(Skipped(path="li\nnk\udcff", reason="a symbolic link"))
    observe(
        Moved(path="w", size_bytes=10, moved_bytes=10, total_bytes=10, moved_files=1, total_files=1)
    )
    observe(Committed(location="/dst", identity=IDENTITY, durability="fsync"))


def test_json_lines_are_versioned_ascii_and_end_with_the_summary() -> None:
    ran = run("up", "/src", "/dst", "--json", happens=a_sync_happens)
    names = [line["event"] for line in ran.lines]

    assert ran.out.isascii()
    assert {line["v"] for line in ran.lines} == {1}
    assert names == ["started", "planned", "skipped", "moved", "committed", "summary"]
    assert ran.lines[2]["path"] == "li\nnk\udcff"
    assert ran.lines[-1] | {"ok": True, "files": 2, "durability": "fsync"} == ran.lines[-1]


def test_people_read_the_result_on_stdout_and_the_rest_on_stderr() -> None:
    ran = run("up", "/src", "/dst", happens=a_sync_happens)

    assert ran.out.startswith("/store/ckpt: committed 2 files (2.0 KiB)")
    assert ran.err == "asyncsync: left out 'li\\nnk\\udcff': a symbolic link\n"


def test_with_json_people_read_the_result_on_stderr() -> None:
    ran = run("up", "/src", "/dst", "--json")

    assert "committed 2 files" in ran.err


def test_v_tells_every_phase() -> None:
    ran = run("up", "/src", "/dst", "-v", happens=a_sync_happens)

    assert "up: /src -> /dst" in ran.err
    assert "1 files to send (10 B)" in ran.err
    assert "committed abababababab, fsync" in ran.err


def test_q_leaves_the_result_and_errors_only() -> None:
    quiet = run("up", "/src", "/dst", "-q", happens=a_sync_happens)
    failed = run("up", "/src", "/dst", "-q", sync_up=AsyncSyncError("no"))

    assert (quiet.err, quiet.out.count("\n")) == ("", 1)
    assert failed.err == "asyncsync: error: no\n"


def test_a_reader_that_leaves_does_not_stop_the_sync() -> None:
    ran = run("up", "/src", "/dst", "--json", stdout=Broken(errno.EPIPE, 1), happens=a_sync_happens)

    assert ran.code == 0
    assert len(ran.lines) == 1
    assert "error" not in ran.err


def test_lost_output_is_reported_after_the_sync() -> None:
    ran = run("up", "/src", "/dst", stdout=Broken(errno.ENOSPC), happens=a_sync_happens)

    assert ran.code == 1
    assert ran.err.endswith(
        "asyncsync: error: standard output: No space left on device; the command itself succeeded\n"
    )


def test_stderr_may_go_away_as_well() -> None:
    ran = run("up", "/src", "/dst", stderr=Broken(errno.EPIPE), happens=a_sync_happens)

    assert ran.code == 0


def test_a_stream_that_was_never_open_swallows_everything() -> None:
    stream = Stream(None)

    assert stream.write("x") == 1
    assert not stream.isatty()


def moved(done: int, path: str = "w") -> Moved:
    return Moved(
        path=path,
        size_bytes=100,
        moved_bytes=done,
        total_bytes=1000,
        moved_files=done // 100,
        total_files=10,
    )


async def slowly(observe: Observer, clock: FakeClock) -> None:
    observe(Planned(send_files=10, send_bytes=1000, skip_files=0, skip_bytes=0, delete_files=0))
    await clock.advance(4)
    observe(moved(100))
    await clock.advance(2)
    observe(moved(500))
    await clock.advance(4)
    observe(Committed(location="/dst", identity=IDENTITY, durability="fsync"))
    await clock.advance(60)


def test_away_from_a_terminal_progress_is_a_line_every_five_seconds() -> None:
    clock = FakeClock()
    ran = run("up", "/src", "/dst", clock=clock, happens=lambda observe: slowly(observe, clock))

    assert ran.err.splitlines() == [
        "asyncsync: 10%  100 B of 1000 B  20 B/s  45 s left  1 of 10 files",
        "asyncsync: 50%  500 B of 1000 B  50 B/s  10 s left  5 of 10 files",
    ]


def test_q_shows_no_progress() -> None:
    clock = FakeClock()
    ran = run(
        "up", "/src", "/dst", "-q", clock=clock, happens=lambda observe: slowly(observe, clock)
    )

    assert ran.err == ""


def test_on_a_terminal_progress_is_a_bar_that_gives_the_cursor_back() -> None:
    clock = FakeClock()
    ran = run(
        "up",
        "/src",
        "/dst",
        clock=clock,
        stderr=Terminal(),
        happens=lambda observe: slowly(observe, clock),
    )

    assert "500 B of 1000 B" in ran.err
    assert "w  200 B" in ran.err
    assert ran.err.rindex("\x1b[?25h") > ran.err.rindex("\x1b[?25l")


def test_a_note_does_not_disturb_the_bars() -> None:
    terminal, clock = Terminal(), FakeClock()
    tally, bars = Tally(clock), Bars(Stream(terminal))
    tally(moved(100))
    bars.show(tally)
    bars.note("kept [bold]x")
    bars.close()

    assert "kept [bold]x" in terminal.getvalue()


async def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = FakeClock()
    tally = Tally(clock)
    tally(moved(0))
    rates = []
    for second in range(1, 31):
        await clock.advance(1)
        tally(moved(10 * min(second, 15)))
        rates.append(tally.rate)

    assert rates[9] == pytest.approx(10)
    assert rates[-1] == 0


async def test_only_files_that_moved_lately_count_as_active() -> None:
    clock = FakeClock()
    tally = Tally(clock)
    for number in range(6):
        tally(moved(100 * number, f"w{number}"))
    recent = [path for path, _ in tally.active]
    await clock.advance(10)

    assert recent == ["w2", "w3", "w4", "w5"]
    assert tally.active == []


def test_an_empty_sync_is_complete() -> None:
    assert Tally(FakeClock()).status.startswith("100%")


def test_a_plan_is_printed_with_its_names_made_safe() -> None:
    ran = run("up", "/src", "/dst", "--dry-run")

    assert ran.out.splitlines()[:4] == [
        "+ 'new\\x1b[2J'  1.0 KiB",
        "= same  10 B",
        "- gone",
        "! link  left out: a symbolic link",
    ]
    assert "nothing changed" in ran.out


def test_a_plan_is_objects_with_json() -> None:
    ran = run("down", "/src", "/dst", "-n", "--json")

    assert [line.get("action") for line in ran.lines] == [
        "send",
        "skip",
        "delete",
        "leave_out",
        None,
    ]
    assert ran.lines[-1]["dry_run"] is True
    assert ran.lines[-1]["send_bytes"] == 1024


def test_ls_prints_a_table() -> None:
    older = COMMIT.__class__(**{**fields_of(COMMIT), "step": None, "location": "/store/o\x07ld"})
    ran = run("ls", "/store", commits=[COMMIT, older])
    head, first, second = ran.out.splitlines()

    columns = ["step", "kind", "files", "size", "created", "identity", "location"]
    assert head.split() == columns
    assert first.split()[:2] == ["7", "sealed"]
    assert second.split()[0] == "-"
    assert second.endswith("'/store/o\\x07ld'")


def fields_of(commit: Commit) -> dict[str, Any]:
    return {name: getattr(commit, name) for name in commit.__dataclass_fields__}


def test_ls_does_not_cut_long_locations_off_a_terminal() -> None:
    far = COMMIT.__class__(**{**fields_of(COMMIT), "location": "/store/" + "x" * 500})
    ran = run("ls", "/store", commits=[far])

    assert "x" * 500 in ran.out


def test_ls_shows_a_commit_that_cannot_be_read() -> None:
    bad = COMMIT.__class__(location="/store/bad", name="bad", step=9, damaged="cut short")
    ran = run("ls", "/store", commits=[bad])

    assert ran.out.splitlines()[1].split() == ["9", "damaged", *"----", "/store/bad"]


def test_ls_with_json_is_a_commit_a_line() -> None:
    ran = run("ls", "/store", "--json")

    assert ran.lines[0] == {"v": 1, "event": "commit", **fields_of(COMMIT)}
    assert ran.lines[1]["commits"] == 1


@pytest.mark.parametrize("created", [1e300, -1e300, 1e12, float("inf")])
def test_ls_shows_a_commit_of_a_year_that_no_calendar_has(created: float) -> None:
    odd = COMMIT.__class__(**{**fields_of(COMMIT), "created": created})
    ran = run("ls", "/store", commits=[odd])

    assert (ran.code, ran.out.splitlines()[1].split()[-3]) == (0, "-")


def test_ls_says_when_there_is_nothing() -> None:
    ran = run("ls", "/store", commits=[])

    assert (ran.code, ran.out) == (0, "/store: no commits\n")


def test_verify_names_what_is_damaged_and_fails_with_8() -> None:
    ran = run("verify", "/store/ckpt", verify=report(("a\n", "is short"), ("b", "is missing")))

    assert ran.code == 8
    assert "asyncsync: error: /store/ckpt: 'a\\n': is short\n" in ran.err
    assert "2 of 2 files are damaged" in ran.out


def test_verify_with_json_has_a_failure_a_line() -> None:
    ran = run("verify", "/store/ckpt", "--json", verify=report(("a", "is short")))

    assert ran.lines[0] == {"v": 1, "event": "failure", "path": "a", "reason": "is short"}
    assert (ran.lines[-1]["ok"], ran.lines[-1]["exit_code"]) == (False, 8)


def test_doctor_says_what_the_place_can_do_and_what_is_missing() -> None:
    ran = run("doctor", "/store/not/yet/there")

    assert ran.code == 0
    for part in ("fsync", "one at a time", "marker-1", "free", "no directory sync"):
        assert part in ran.out


def test_doctor_with_json_says_it_in_the_summary() -> None:
    ran = run("doctor", "memory://a/b", "--json")

    assert ran.lines[0] | {"exclusive": False, "marker": "marker-1"} == ran.lines[0]
    assert ran.lines[0]["free_bytes"] is None


@pytest.fixture
def keyboard() -> Iterator[Callable[[str], TextIO]]:
    """A terminal on which somebody has typed."""
    master, slave = os.openpty()
    opened = os.fdopen(slave, "r")

    def typed(text: str) -> TextIO:
        os.write(master, text.encode())
        return opened

    yield typed
    opened.close()
    os.close(master)


@pytest.mark.parametrize("answer", ["n\n", "\n", "yessir\n"])
def test_rm_deletes_nothing_without_a_yes(keyboard: Callable[[str], TextIO], answer: str) -> None:
    ran = run("rm", "/store", stdin=keyboard(answer))

    assert ran.code == 1
    assert [call[0] for call in ran.syncer.calls] == ["commits"]
    assert "nothing was deleted" in ran.out


def test_rm_says_what_it_would_delete_and_does_after_a_yes(
    keyboard: Callable[[str], TextIO],
) -> None:
    ran = run("rm", "/store", stdin=keyboard("y\n"))

    assert ran.code == 0
    assert "Delete 1 commit, 2 files (2.0 KiB), at /store? [y/N]" in ran.err
    assert [call[0] for call in ran.syncer.calls] == ["commits", "delete"]


def test_rm_names_what_it_kept() -> None:
    ran = run("rm", "/store", "-y", delete=Deleted(files=2, kept=("mine",)))

    assert "kept 1" in ran.out


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_command_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from asyncsync.cli.main import run as command

    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(sys, "argv", ["asyncsync", "--help"])
    code = command()

    assert code == 2
    assert capsys.readouterr().err == (
        f"asyncsync: error: the command line needs {missing}: pip install 'asyncsync[cli]'\n"
    )


def test_one_line_cannot_move_the_cursor() -> None:
    assert one_line("a\nb\x1b[2J\udcff") == "a b\\x1b[2J\\udcff"


def test_nothing_is_rendered_as_markup() -> None:
    output = Output(Options(), stdout=io.StringIO(), stderr=None)

    assert output.render("[bold]x[/bold]") == "[bold]x[/bold]"


def options_of_all_commands() -> set[str]:
    commands = app.commands.values()
    return {name for c in commands for p in c.params for name in p.opts + p.secondary_opts}


@pytest.mark.parametrize("name", sorted(n for n in options_of_all_commands() if n[0] == "-"))
def test_every_option_is_documented(name: str) -> None:
    short = {"--quiet": "-q", "--verbose": "-v"}

    assert f"`{short.get(name, name)}" in DOCS.read_text()


@pytest.mark.parametrize("kind", get_args(Event), ids=lambda kind: kind.__name__)
def test_every_event_is_documented_with_its_fields(kind: type[Event]) -> None:
    name = event_name(object.__new__(kind))
    row = next(line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{name}` |"))

    assert [f for f in kind.__dataclass_fields__ if f"`{f}`" not in row] == []


def test_every_exit_code_is_documented() -> None:
    codes = {kind.exit_code for kind in our_errors()}

    assert [code for code in codes if f"\n| {code} |" not in DOCS.read_text()] == []


@pytest.mark.parametrize(
    ("step", "moved_bytes", "kills"), [(36, 4, False), (36, 5, True), (24, 9, False)]
)
def test_the_demo_kills_at_the_first_event_that_passes_half(
    step: int, moved_bytes: int, kills: bool
) -> None:
    from asyncsync.cli.demo import _half_sent

    assert _half_sent(Sent(step=step, moved_bytes=moved_bytes, total_bytes=10)) is kills


def test_the_demo_says_when_numpy_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = run("demo")

    assert (ran.code, ran.err) == (
        2,
        "asyncsync: error: the demo trains with numpy: pip install numpy\n",
    )
