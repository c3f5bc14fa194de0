"""The command line over real directories, and as a process of its own."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asyncsync.cli.app import main
from asyncsync.cli.runner import World
from asyncsync.errors import ConfigError, NotFoundError

from ..servers import Server
from .trees import content, make, temporary

COMMAND = [sys.executable, "-m", "asyncsync"]
MIB = 1024 * 1024


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def run(*argv: str | Path) -> Ran:
    """The command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = main([str(arg) for arg in argv], World(stdin=None, stdout=out, stderr=err))
    return Ran(code, out.getvalue(), err.getvalue())


def tree(root: Path) -> dict[str, bytes]:
    """Names and contents, without asyncsync's own."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith(".asyncsync")
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "sub").mkdir(parents=True)
    (directory / "weights").write_bytes(bytes(range(256)) * 400)
    (directory / "sub" / "state").write_text("step 7")
    return directory


@pytest.fixture
def store(tmp_path: Path, source: Path) -> Path:
    """A directory that holds a commit, `ckpt`, of `source`."""
    assert run("up", source, tmp_path / "store" / "ckpt", "--step", "7", "-q").code == 0
    return tmp_path / "store"


def test_what_goes_up_comes_down(source: Path, store: Path, tmp_path: Path) -> None:
    ran = run("down", store / "ckpt", tmp_path / "back")

    assert ran.code == 0
    assert tree(tmp_path / "back") == tree(source)


def test_restore_takes_the_newest_or_the_step_asked_for(
    source: Path, store: Path, tmp_path: Path
) -> None:
    (source / "weights").write_bytes(b"later")
    run("up", source, store / "later", "--step", "8")
    newest = run("restore", store, tmp_path / "newest", "--latest")
    older = run("restore", store, tmp_path / "older", "--step", "7", "--include", "weights")

    assert (newest.code, older.code) == (0, 0)
    assert tree(tmp_path / "newest")["weights"] == b"later"
    assert tree(tmp_path / "older") == {"weights": bytes(range(256)) * 400}


def test_restore_reads_a_copy_where_there_is_one(source: Path, store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    run("up", source, copy / "ckpt", "--step", "9")
    nearer = run("restore", store, tmp_path / "nearer", "--copy", copy, "--copy", tmp_path / "no")
    wrong = run("restore", store, tmp_path / "wrong", "--copy", "s4://x")

    assert nearer.code == 0
    assert json.loads((tmp_path / "nearer" / ".asyncsync.json").read_text())["step"] == 9
    assert (wrong.code, wrong.err.count("\n")) == (0, 1)
    assert wrong.err.startswith("asyncsync: left out s4://x: no copy is read there")


def test_the_parts_of_all_ranks_become_one_commit(source: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", {"shard-1": b"1"})
    group = ("--group", "run-7", "--size", "2", "--rank")
    with subprocess.Popen(
        [*COMMAND, "up", source, tmp_path / "ckpt", *group, "0"], stderr=subprocess.PIPE
    ) as first:
        second = run("up", tmp_path / "other", tmp_path / "ckpt", *group, "1")
        assert first.wait(20) == 0

    assert second.code == 0
    assert tree(tmp_path / "ckpt") == tree(source) | {"shard-1": b"1"}


def test_a_dry_run_changes_nothing(source: Path, tmp_path: Path) -> None:
    ran = run("up", source, tmp_path / "store" / "ckpt", "-n")

    assert "+ sub/state  6 B\n" in ran.out
    assert not (tmp_path / "store").exists()


def test_ls_lists_and_rm_removes_only_the_one_that_is_named(source: Path, store: Path) -> None:
    run("up", source, store / "ckpt0")
    before = run("ls", store, "--json").lines
    ran = run("rm", store / "ckpt", "--yes")
    after = run("ls", store, "--json").lines

    assert ran.code == 0
    assert [line.get("name") for line in before] == ["ckpt", "ckpt0", None]
    assert [line.get("name") for line in after] == ["ckpt0", None]


def test_doctor_leaves_nothing_but_the_marker(tmp_path: Path) -> None:
    ran = run("doctor", tmp_path)

    assert ran.code == 0
    assert [path.name for path in tmp_path.iterdir()] == [".asyncsync-root.json"]


def test_v_shows_where_an_error_came_from_and_without_it_nothing_does(tmp_path: Path) -> None:
    assert "Traceback" in run("up", tmp_path / "no", tmp_path / "x", "-v").err
    assert "Traceback" not in run("up", tmp_path / "no", tmp_path / "x").err


@dataclass(frozen=True)
class Place:
    """What a bad input is made of."""

    work: Path
    source: Path
    store: Path

    @property
    def ckpt(self) -> Path:
        return self.store / "ckpt"

    def new(self, name: str) -> Path:
        directory = self.work / name
        directory.mkdir()
        return directory


Command = tuple[str | Path, ...]


def source_is_a_socket(place: Place) -> Command:
    directory = place.new("sockets")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(directory)  # a socket's address has room for 107 bytes
        listener.bind("s")
        os.chdir(here)
    return ("up", directory, place.work / "target")


def source_has_a_link(place: Place) -> Command:
    directory = place.new("links")
    (directory / "link").symlink_to("nowhere")
    return ("up", directory, place.work / "target")


def source_has_a_fifo(place: Place) -> Command:
    directory = place.new("fifos")
    os.mkfifo(directory / "pipe")
    return ("up", directory, place.work / "target")


def source_has_our_names(place: Place) -> Command:
    directory = place.new("reserved")
    (directory / ".asyncsync-mine").touch()
    return ("up", directory, place.work / "target")


def source_is_too_deep(place: Place) -> Command:
    (place.new("deep") / "/".join("d" * 65)).mkdir(parents=True)
    return ("up", place.work / "deep", place.work / "target")


def target_is_a_file(place: Place) -> Command:
    (place.work / "file").write_text("mine")
    return ("up", place.source, place.work / "file")


def target_has_my_file(place: Place) -> Command:
    (place.new("mine") / "weights").write_text("mine")
    return ("down", place.ckpt, place.work / "mine")


def source_changed_since_the_commit(place: Place) -> Command:
    (place.source / "weights").write_text("other")
    return ("up", place.source, place.ckpt)


def manifest_is(damage: Callable[[bytes], bytes]) -> Callable[[Place], Command]:
    def case(place: Place) -> Command:
        manifest = place.ckpt / ".asyncsync.json"
        manifest.write_bytes(damage(manifest.read_bytes()))
        return ("down", place.ckpt, place.work / "target")

    return case


def a_bit_flipped(place: Place) -> Command:
    data = bytearray((place.ckpt / "weights").read_bytes())
    data[1000] ^= 1
    (place.ckpt / "weights").write_bytes(data)
    return ("down", place.ckpt, place.work / "target")


def a_file_lost_bytes(place: Place) -> Command:
    os.truncate(place.ckpt / "weights", 1000)
    return ("verify", place.ckpt)


def newest_is_damaged(place: Place) -> Command:
    run("up", place.source, place.store / "ckpt_8")
    (place.store / "ckpt_8" / ".asyncsync.json").write_bytes(b"{")
    return ("restore", place.store, place.work / "target")


def a_rank_of(*more: str, rank: int, size: int) -> Callable[[Place], Command]:
    group = ("--group", "run", "--rank", str(rank), "--size", str(size))
    return lambda place: ("up", place.source, place.work / "x", *group, *more)


BAD: dict[str, tuple[Callable[[Place], Command], int, str]] = {
    "unknown scheme": (lambda p: ("up", p.source, "bogus://x/y"), 2, "fsspec"),
    "head not joined": (lambda p: ("up", p.source, "peer://host:1/x"), 2, "asyncsync join"),
    "source missing": (lambda p: ("up", p.work / "no", p.work / "x"), 3, "does not exist"),
    "source is a file": (lambda p: ("up", p.source / "weights", p.work / "x"), 2, "is a file"),
    "source empty": (lambda p: ("up", p.new("empty"), p.ckpt), 6, "is empty"),
    "source inside target": (lambda p: ("up", p.source / "sub", p.source), 2, "overlap"),
    "target inside source": (lambda p: ("up", p.source, p.source / "x"), 2, "overlap"),
    "same directory": (lambda p: ("up", p.source, p.source), 2, "same directory"),
    "target is a file": (target_is_a_file, 2, "is a file"),
    "down onto my file": (target_has_my_file, 6, "weights"),
    "symlink": (source_has_a_link, 6, "link (a symbolic link)"),
    "fifo": (source_has_a_fifo, 6, "pipe (a fifo)"),
    "socket": (source_is_a_socket, 6, "s (a socket)"),
    "reserved name": (source_has_our_names, 6, "reserved"),
    "too deep": (source_is_too_deep, 6, "64"),
    "changed sealed tree": (source_changed_since_the_commit, 6, "replace"),
    "location missing": (lambda p: ("down", p.work / "no", p.work / "x"), 3, "no"),
    "nothing committed": (lambda p: ("verify", p.source), 3, "no commit"),
    "no such step": (lambda p: ("restore", p.store, p.work / "x", "--step", "9"), 3, "7"),
    "ls of nothing": (lambda p: ("ls", p.work / "no"), 3, "nothing"),
    "rm of nothing": (lambda p: ("rm", p.work / "no", "--yes"), 3, "no"),
    "rm of what is not ours": (lambda p: ("rm", p.source, "--yes"), 3, "source"),
    "rm without a terminal": (lambda p: ("rm", p.ckpt), 2, "--yes"),
    "manifest damaged": (manifest_is(lambda text: text.replace(b"weights", b"weightz")), 8, "ckpt"),
    "manifest truncated": (manifest_is(lambda text: text[: len(text) // 2]), 8, "ckpt"),
    "manifest of a newer version": (
        manifest_is(lambda text: text.replace(b'"asyncsync":1', b'"asyncsync":99', 1)),
        8,
        "99",
    ),
    "manifest that climbs": (
        manifest_is(lambda text: text.replace(b'"weights"', b'"../gone"')),
        8,
        "ckpt",
    ),
    "a bit flipped": (a_bit_flipped, 8, "weights"),
    "lost bytes": (a_file_lost_bytes, 8, "weights"),
    "newest damaged": (newest_is_damaged, 8, "ckpt (step 7)"),
    "rank without a group": (lambda p: ("up", p.source, p.work / "x", "--rank", "0"), 2, "--size"),
    "rank of no group": (a_rank_of(rank=2, size=2), 2, "rank 2 is none of a group of 2"),
    "dry run of a rank": (a_rank_of("-n", rank=0, size=2), 2, "leave out --group"),
    "rank alone": (a_rank_of("--timeout", "0.2", rank=0, size=2), 10, "rank 1 of 2"),
    "bad pattern": (lambda p: ("up", p.source, p.work / "x", "--exclude", "!"), 2, "pattern"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_with_the_exit_code_of_its_class(
    name: str, tmp_path: Path, source: Path, store: Path
) -> None:
    make, code, says = BAD[name]
    command = make(Place(tmp_path, source, store))
    before = tree(store)
    ran = run(*command)

    assert ran.code == code
    assert says in ran.err
    assert ran.err.startswith("asyncsync: error: ")
    assert ran.err.count("\n") == 1
    assert tree(store) == before
    assert not (tmp_path / "target").exists()


# ---------------------------------------------------------------- object stores


@pytest.fixture
def on_moto(moto: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of a server that keeps two writers apart."""
    return _enter(moto, monkeypatch)


@pytest.fixture
def on_rclone(rclone: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of a server that checks signatures and knows no conditions."""
    return _enter(rclone, monkeypatch)


def _enter(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.bucket()}"


@pytest.mark.slow
def test_what_goes_up_to_a_bucket_comes_down(source: Path, on_moto: str, tmp_path: Path) -> None:
    up = run("up", source, f"{on_moto}/run/ckpt", "--step", "7")
    listed = run("ls", on_moto, "--json")
    down = run("restore", f"{on_moto}/run", tmp_path / "back")
    removed = run("rm", f"{on_moto}/run/ckpt", "--yes")

    assert [up.code, listed.code, down.code, removed.code] == [0, 0, 0, 0]
    assert "warning" not in up.err
    assert listed.lines[0]["location"] == f"{on_moto}/run/ckpt"
    assert tree(tmp_path / "back") == tree(source)
    assert run("ls", on_moto, "--json").lines[-1]["commits"] == 0


CLOUD: dict[str, tuple[dict[str, str], str, int, str]] = {
    "no such bucket": ({}, "s3://not-the-name-of-one/x", 2, "create the bucket"),
    "no credentials": (
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
        "{bucket}/x",
        7,
        "AWS_ACCESS_KEY_ID",
    ),
    "wrong credentials": (
        {"AWS_SECRET_ACCESS_KEY": "hush-hush"},
        "{bucket}/x",
        7,
        "check the secret key",
    ),
    "no such profile": ({"AWS_PROFILE": "nobody"}, "{bucket}/x", 2, "nobody"),
    "malformed endpoint": ({"AWS_ENDPOINT_URL": "127.0.0.1"}, "{bucket}/x", 2, "endpoint"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["up", "down", "ls", "doctor"])
@pytest.mark.parametrize("name", CLOUD)
def test_what_is_wrong_with_a_bucket_is_one_line_without_secrets(
    name: str,
    command: str,
    source: Path,
    on_rclone: str,
    rclone: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environ, location, code, says = CLOUD[name]
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    where = location.format(bucket=on_rclone)
    arguments = {"up": (source, where), "down": (where, tmp_path / "x")}.get(command, (where,))
    ran = run(command, *arguments)
    loud = run(command, *arguments, "-v", "--json")

    assert ran.code == loud.code == code
    assert says in ran.err
    assert ran.err.startswith("asyncsync: error: ")
    assert ran.err.count("\n") == 1
    for text in (ran.err, loud.err, loud.out):
        assert rclone.secret_key not in text
        assert "hush-hush" not in text


@pytest.mark.slow
def test_single_writer_mode_is_announced_once_by_each_command_that_writes(
    source: Path, on_rclone: str
) -> None:
    up = run("up", source, f"{on_rclone}/ckpt")
    again = run("up", source, f"{on_rclone}/other", "--json")
    doctor = run("doctor", on_rclone)

    assert up.code == again.code == doctor.code == 0
    assert up.err.count("warning: ") == 1
    assert f"warning: {on_rclone}: conditional writes do not work" in up.err
    assert [line["event"] for line in again.lines].count("reduced") == 1
    assert "SINGLE-WRITER MODE" in doctor.out


def test_a_flipped_bit_spoils_only_its_own_commit(source: Path, store: Path) -> None:
    run("up", source, store / "other")
    a_bit_flipped(Place(store, source, store))

    assert run("verify", store / "ckpt").code == 8
    assert run("verify", store / "other").code == 0


def test_fallback_restores_the_older_commit_and_says_so(
    source: Path, store: Path, tmp_path: Path
) -> None:
    newest_is_damaged(Place(tmp_path, source, store))
    ran = run("restore", store, tmp_path / "back", "--fallback")

    assert ran.code == 0
    assert f"{store / 'ckpt'} is used instead" in ran.err
    assert tree(tmp_path / "back") == tree(source)


def test_down_keeps_my_other_files(store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    ran = run("down", store / "ckpt", tmp_path / "mine")

    assert ran.code == 0
    assert (tmp_path / "mine" / "notes").read_text() == "mine"


def test_every_name_comes_back_and_is_printed_safely(tmp_path: Path) -> None:
    names = [b"a b", b"'\"`$", b"#?%+&;=", b"new\nline", b".dot.", b"\xff\xfe", b"x" * 255]
    source = tmp_path / "names"
    source.mkdir()
    for name in names:
        (source / os.fsdecode(name)).write_bytes(name)
    plan = run("up", source, tmp_path / "store", "-n", "--json")
    shown = run("up", source, tmp_path / "store", "-n")
    run("up", source, tmp_path / "store")
    run("down", tmp_path / "store", tmp_path / "back")

    sent = {os.fsencode(line["path"]) for line in plan.lines if line.get("action") == "send"}
    assert sent == set(names)
    assert "'new\\nline'" in shown.out
    assert tree(tmp_path / "back") == tree(source)


# -- as a process of its own


def start(*argv: str | Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, argv)],
        text=True,
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )


@contextmanager
def uploading(source: Path, target: Path) -> Iterator[subprocess.Popen[str]]:
    """An upload that has sent a part and waits a long time for the bandwidth of the next."""
    for name in "abcd":
        (source / name).write_bytes(os.urandom(2 * MIB))
    with start("up", source, target, "--json", "--bwlimit", "1MiB") as process:
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["event"] != "moved":
            pass
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_says_what_is_not_durable(
    number: signal.Signals, code: int, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "store" / "ckpt"
    with uploading(source, target) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    error, summary = map(json.loads, out.splitlines()[-2:])

    assert process.returncode == code
    assert f"asyncsync: error: {target}: not committed" in err
    assert (error["class"], summary["exit_code"]) == ("Stopped", code)
    assert not target.exists()

    again = run("up", source, target, "--json").lines[-1]

    assert again["resumed_bytes"] > 0
    assert again["resumed_bytes"] + again["sent_bytes"] == sum(map(len, tree(source).values()))
    assert temporary(tmp_path) == []


STUCK = """
import sys
from contextlib import asynccontextmanager
import anyio
from asyncsync.cli.app import main
from asyncsync.cli.runner import World

class Stuck:
    async def verify(self, location):
        print("ready", flush=True)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(60)

@asynccontextmanager
async def opened(limits, observe):
    yield Stuck()

world = World(stdin=None, stdout=sys.stdout, stderr=sys.stderr, open_syncer=opened)
sys.exit(main(["verify", "/x"], world))
"""


def test_a_second_signal_stops_at_once() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)

    assert first == "asyncsync: SIGINT: stopping; again to stop at once\n"
    assert process.returncode == -signal.SIGINT


def test_a_reader_that_leaves_does_not_lose_the_sync(source: Path, tmp_path: Path) -> None:
    process = start("up", source, tmp_path / "store", "--json")
    assert process.stdout is not None
    process.stdout.close()
    with process:
        assert process.stderr is not None
        err = process.stderr.read()

    assert process.returncode == 0
    assert err.count("\n") == 1
    assert run("verify", tmp_path / "store").code == 0


def test_closed_standard_streams_do_not_end_up_in_a_checkpoint(
    source: Path, tmp_path: Path
) -> None:
    command = 'exec "$@" <&- >&- 2>&-'
    args = [*COMMAND, "up", str(source), str(tmp_path / "store"), "--json"]
    done = subprocess.run(["sh", "-c", command, "sh", *args], check=False, timeout=30)

    assert done.returncode == 0
    assert run("verify", tmp_path / "store").code == 0


def test_without_home_everything_works(source: Path, tmp_path: Path) -> None:
    bare = {key: value for key, value in os.environ.items() if key != "HOME"}
    process = start("up", source, tmp_path / "store", env=bare)
    _, err = process.communicate(timeout=30)

    assert (process.returncode, err) == (0, "")


def test_a_terminal_that_lacks_a_letter_gets_an_escape(source: Path, tmp_path: Path) -> None:
    (source / "längs").touch()
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    process = start("up", source, tmp_path / "store", "-n", env=ascii_only)
    out, _ = process.communicate(timeout=30)

    assert process.returncode == 0
    assert "+ l\\xe4ngs" in out


def test_help_loads_no_more_than_the_grammar() -> None:
    code = (
        "import sys; from asyncsync.cli.app import main; main(['--help']);"
        "print([m for m in ('boto3', 'botocore', 'aiobotocore', 'aiohttp', 'gcloud', 'fsspec',"
        " 'rich.console', 'numpy', 'anyio', 'asyncsync.syncing') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )

    assert done.stdout.splitlines()[-1] == "[]"


def test_the_shell_completes_commands() -> None:
    asked = {
        "_ASYNCSYNC_COMPLETE": "bash_complete",
        "COMP_WORDS": "asyncsync do",
        "COMP_CWORD": "1",
    }
    process = start(env=os.environ | asked)
    out, _ = process.communicate(timeout=30)

    assert out.split() == ["plain,down", "plain,doctor"]


AS_NOBODY = """
import os, sys
from asyncsync.cli.app import main

source, target = sys.argv[1:]
main(["up", source, source + "-warm", "-q"])  # imports what it needs while it still may
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(main(["up", source, target]))
"""


@pytest.fixture
def public(source: Path) -> Iterator[Path]:
    """A directory that others may look into, with a copy of `source`."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        shutil.copytree(source, Path(name, "source"))
        yield Path(name)


def run_as_nobody(source: Path, target: Path) -> Ran:
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(source), str(target)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_an_unreadable_file_is_named(public: Path) -> None:
    (public / "target").mkdir(mode=0o777)
    (public / "target").chmod(0o777)
    (public / "source" / "weights").chmod(0o600)
    ran = run_as_nobody(public / "source", public / "target" / "ckpt")

    assert ran.code == 7
    assert "weights" in ran.err
    assert ran.err.count("\n") == 1
    assert list((public / "target").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_an_unwritable_target_is_named(public: Path) -> None:
    (public / "target").mkdir(mode=0o755)
    ran = run_as_nobody(public / "source", public / "target" / "ckpt")

    assert ran.code == 7
    assert str(public / "target") in ran.err
    assert ran.err.count("\n") == 1


# ---------------------------------------------------------------- watch


@contextmanager
def watching(directory: Path, target: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    often = ("--period", "0.5", "--settle", "1")
    with start("watch", directory, target, *often, *more) as process:
        try:
            yield process
        finally:
            process.kill()


def test_watch_syncs_what_a_program_writes_until_a_signal_comes(tmp_path: Path) -> None:
    directory, target = tmp_path / "run", tmp_path / "store"
    make(directory, {"log": b"1"})
    with watching(directory, target, "--json") as process:
        assert process.stdout is not None

        def wait_for(name: str) -> None:
            for line in process.stdout or ():
                record = json.loads(line)
                if record.get("what") == "synced" and record["target"] == str(target / name):
                    return

        wait_for("")
        make(directory, {"checkpoint_1/w": b"weights"})
        wait_for("checkpoint_1")
        make(directory, {"checkpoint_2/w": b"2", "checkpoint_2/.metadata": b"", "log": b"last"})
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    summary = json.loads(out.splitlines()[-1])

    assert process.returncode == 0
    assert (summary["event"], summary["command"], summary["ok"]) == ("summary", "watch", True)
    assert err.splitlines()[-1] == f"{target}: everything is there"
    assert content(target) == content(directory)
    assert run("verify", target / "checkpoint_1").code == 0


def test_watch_says_what_it_does_and_what_it_could_not_do(tmp_path: Path) -> None:
    directory, target = tmp_path / "run", tmp_path / "store"
    with watching(directory, target) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline() == (
            f"asyncsync: waiting for {directory}: No such file or directory\n"
        )
        make(directory, {"log": b"1"})
        assert process.stderr.readline() == f"asyncsync: {directory} is there again\n"
        line = process.stdout.readline()
        make(directory, {"checkpoint_1/w": b"settles"})
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)

    assert line.startswith(f"{target}: 1 file (1 B), 1 B sent in ")
    assert out.startswith(f"{target}/checkpoint_1: 1 file (7 B), 7 B sent in ")
    assert out.endswith(f"{target}: everything is there\n")
    assert process.returncode == 0
    assert err == "asyncsync: SIGINT: stopping; again to stop at once\n"
    assert content(target) == {"log": b"1", "checkpoint_1/w": b"settles"}


def test_watch_says_when_what_it_was_to_watch_is_not_there(tmp_path: Path) -> None:
    with watching(tmp_path / "run", tmp_path / "store") as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)

    assert process.returncode == NotFoundError.exit_code
    assert out == ""
    assert f"{tmp_path}/run is not there any more, or never was" in err


def test_watch_names_what_is_not_there_in_the_end(tmp_path: Path) -> None:
    target = tmp_path / "store"
    make(tmp_path / "run", {"log": b"1"})
    other = make(tmp_path / "other", {"of": b"somebody else"})
    assert run("up", other, target / "checkpoint_1").code == 0
    make(tmp_path / "run", {"checkpoint_1/w": b"1", "checkpoint_1/.metadata": b""})
    with watching(tmp_path / "run", target) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)

    assert first.startswith(f"asyncsync: error: {target}/checkpoint_1: ")
    assert f"asyncsync: error: {target}/checkpoint_1: not synced: " in err
    assert process.returncode == 6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("store://x", "there"), "store://x is not a local directory; the order is"),
        (("run", "run/there"), "source and target overlap"),
        (("run", "there", "--settle", "nan"), "--settle nan is no time"),
        (("run", "there", "--period", "0"), "--period"),
    ],
)
def test_watch_refuses_what_cannot_be_watched(
    argv: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run("watch", *argv)

    assert refused.code == ConfigError.exit_code
    assert message in refused.err
