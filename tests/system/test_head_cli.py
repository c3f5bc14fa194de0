"""`asyncsync head` and `asyncsync join` as people meet them: real programs, also used wrongly."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from asyncsync.cli.app import main
from asyncsync.cli.runner import World
from asyncsync.secrets import Secret
from asyncsync.wire.claims import Claims, Operation
from asyncsync.wire.joining import Join
from asyncsync.wire.tokens import HeadKey, KeyRing, claims_of

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "asyncsync"]
DAY_S = 24 * 3600


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what went wrong; nothing else was said."""
        assert self.out == ""
        assert self.err.startswith("asyncsync: error: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("asyncsync: error: ").rstrip("\n")


class Node:
    """A machine with a home directory of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        (folder / "root").mkdir()
        path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
        gone = {"ASYNCSYNC_JOIN", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"}
        self.environ = {name: value for name, value in os.environ.items() if name not in gone}
        self.environ |= {"HOME": str(folder), "PYTHONPATH": path}

    def run(self, *arguments: str, stdin: str = "", **environ: str) -> Ran:
        """The command line in this process, which takes itself for that machine."""
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, {**self.environ, **environ}, clear=True),
            patch.object(sys, "stdin", io.StringIO(stdin)),
            chdir(self.folder),
        ):
            code = main(arguments, World(stdin=None, stdout=out, stderr=err))
        return Ran(code, out.getvalue(), err.getvalue())

    @contextmanager
    def head(self, *arguments: str) -> Iterator[Head]:
        """A head that runs, on a port that is free."""
        command = [*COMMAND, "head", "--root", "root", "--json", *arguments]
        if "--listen" not in arguments:
            command += ["--listen", "127.0.0.1:0"]
        with subprocess.Popen(
            command,
            env=self.environ,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                yield Head(process)
            finally:
                process.kill()

    @property
    def state(self) -> Path:
        return self.folder / ".local/state/asyncsync/head"

    def kept(self, address: str) -> Path:
        return self.folder / ".config/asyncsync/heads" / address

    def checkpoint(self, text: str = "weights") -> str:
        made = self.folder / "ckpt"
        made.mkdir(exist_ok=True)
        (made / "w").write_text(text)
        return str(made)


class Head:
    """What a head says, event by event."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.location: str = self.until("listening")["location"]
        self.address = self.location.partition("://")[2]

    def until(self, what: str) -> dict[str, Any]:
        """Wait for an event, passing over others."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event.get("what", event["event"]) == what:
                return event
        raise AssertionError(f"the head ended without {what}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, dict[str, Any]]:
        self.process.send_signal(number)
        summary = self.until("summary")
        return self.process.wait(20), summary


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "head")


@pytest.fixture
def worker(tmp_path: Path) -> Node:
    return Node(tmp_path / "worker")


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# ---------------------------------------------------------------- as it is meant


def test_one_command_on_each_side_and_a_checkpoint_goes_over(node: Node, worker: Node) -> None:
    with node.head("--init", "--name", "127.0.0.1") as head:
        line = head.until("join")["join"]
        joined = worker.run("join", stdin=line + "\n")
        up = worker.run("up", worker.checkpoint(), f"{head.location}/exp/ckpt_1")
        back = worker.run("restore", f"{head.location}/exp", "back")
        code, summary = head.stop()

    assert joined.code == 0, joined.err
    assert joined.out.startswith(f"{head.location}: joined; you may pull and push there and below")
    assert head.location.startswith("peers://127.0.0.1:")
    assert (up.code, back.code) == (0, 0), up.err + back.err
    assert "durability head-fsync" in up.out
    assert (worker.folder / "back" / "w").read_text() == "weights"
    assert (code, summary["ok"], summary["exit_code"]) == (0, True, 0)


def test_nothing_secret_is_readable_by_others_or_printed_where_it_was_not_asked_for(
    node: Node, worker: Node
) -> None:
    with node.head() as head:
        made = node.run("head", "--token")
        joined = worker.run("join", stdin=made.out)
        shown = worker.run("doctor", f"{head.location}/exp", "-v")
        told = node.run("head", "--status", "-v")

    secret = Join.parse(Secret(made.out)).token.reveal()
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for folder in (node.state, worker.folder / ".config/asyncsync/heads")
        for path in (folder, *folder.rglob("*"))
    }
    assert {mode & 0o077 for mode in modes.values()} == {0}, modes
    said = made.err + joined.out + joined.err + shown.out + shown.err + told.out + told.err
    assert secret not in said
    assert "asj1." not in said
    assert text_of(node.state / "keys.json")
    assert [path for path in (node.folder / "root").rglob("*") if path.name != "exp"] == [
        node.folder / "root/exp/.asyncsync-root.json"
    ]


def test_standard_output_is_the_join_string_and_nothing_else(node: Node) -> None:
    ran = node.run("head", "--init", "--listen", "127.0.0.1:7999", "--name", "head1", "-q")
    again = node.run("head", "--init", "--name", "head2")

    first, second = (Join.parse(Secret(one.out)) for one in (ran, again))
    assert ran.out.count("\n") == 1
    assert ran.err == ""
    assert (first.address, second.address) == ("head1:7999", "head2:7999")
    assert first.fingerprint == second.fingerprint  # the CA and the key stay
    assert "asyncsync join" in again.err


@pytest.mark.parametrize("way", ["stdin", "file", "environment"])
def test_the_join_string_comes_by_every_way_that_others_cannot_see(
    node: Node, worker: Node, way: str
) -> None:
    with node.head() as head:
        line = node.run("head", "--token").out
        (worker.folder / "line").write_text(f"\n {line}")
        ran = {
            "stdin": lambda: worker.run("join", stdin=line),
            "file": lambda: worker.run("join", "--from", "line"),
            "environment": lambda: worker.run("join", ASYNCSYNC_JOIN=line),
        }[way]()
        seen = worker.run("ls", head.location)

    assert ran.code == 0, ran.err
    # Whoever may only push and pull may look for commits, and there are none.
    assert seen.code in (0, 3), seen.err


def test_on_a_terminal_it_is_asked_for_and_not_shown(node: Node, worker: Node) -> None:
    with node.head() as head:
        line = node.run("head", "--token").out.strip()
        mine, theirs = pty.openpty()
        with subprocess.Popen(
            [*COMMAND, "join"],
            env=worker.environ,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: _own_terminal(theirs),  # noqa: PLW1509 - nothing else runs here
        ) as process:
            os.close(theirs)
            shown = _read_until(mine, b"not shown): ")
            os.write(mine, line.encode() + b"\n")
            shown += _read_until(mine, b"joined; ")
            process.wait(20)
        os.close(mine)

    assert process.returncode == 0
    assert line.encode()[:40] not in shown
    assert worker.kept(head.address).exists()


def _own_terminal(fd: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


def _read_until(fd: int, text: bytes) -> bytes:
    found = b""
    while text not in found:
        assert select.select([fd], [], [], 20)[0], found
        found += os.read(fd, 4096)
    return found


def test_a_narrower_join_string_does_no_more_than_it_says(node: Node, worker: Node) -> None:
    with node.head() as head:
        made = node.run(
            "head", "--token", "--scope", "exp/trial_1", "--allow", "pull,list", "--days", "0.5"
        )
        joined = worker.run("join", "--json", stdin=made.out)
        pushed = worker.run("up", worker.checkpoint(), f"{head.location}/exp/trial_1/ckpt_1")
        asked = worker.run("doctor", f"{head.location}/exp/trial_2")

    claims = claims_of(Join.parse(Secret(made.out)).token)
    summary = json.loads(joined.out.splitlines()[-1])
    assert claims.operations == {Operation.PULL, Operation.LIST}
    assert claims.expires_at - claims.not_before == DAY_S / 2
    assert summary["location"] == f"{head.location}/exp/trial_1"
    assert summary["operations"] == ["list", "pull"]
    assert (pushed.code, asked.code) == (7, 7)
    assert "this token does not allow that" in pushed.error


def test_after_a_rotation_a_head_that_runs_takes_both_or_only_the_new_one(
    node: Node, worker: Node
) -> None:
    with node.head() as head:
        worker.run("join", stdin=node.run("head", "--token").out)
        second = node.run("head", "--rotate").out
        head.until("renewed")
        old = worker.run("up", worker.checkpoint(), f"{head.location}/a")
        worker.run("join", stdin=second)
        new = worker.run("up", worker.checkpoint(), f"{head.location}/b")
        third = node.run("head", "--rotate", "--overlap", "0").out
        head.until("renewed")
        gone = worker.run("up", worker.checkpoint(), f"{head.location}/c")
        worker.run("join", stdin=third)
        last = worker.run("up", worker.checkpoint(), f"{head.location}/c")

    assert (old.code, new.code, gone.code, last.code) == (0, 0, 7, 0), (old.err, new.err, last.err)
    assert "join again" in gone.error


def test_what_is_revoked_is_refused_and_noted_by_a_head_that_runs(node: Node, worker: Node) -> None:
    log = node.folder / "audit.log"
    with node.head("--init", "--listen", f"127.0.0.1:{free_port()}", "--audit", str(log)) as head:
        line = node.run("head", "--token", "--scope", "exp").out.strip()
        token = claims_of(Join.parse(Secret(line)).token)
        assert worker.run("join", stdin=line).code == 0
        up = worker.run("up", worker.checkpoint(), f"{head.location}/exp/1")
        revoked = node.run("head", "--revoke", "-", stdin=line)
        head.until("renewed")
        refused = worker.run("up", worker.checkpoint("more"), f"{head.location}/exp/2")
        experiment = node.run("head", "--revoke-experiment", "exp", "--json")
        head.stop()
    status = json.loads(node.run("head", "--status", "--json").out)
    lines = [json.loads(line) for line in log.read_text().splitlines()]

    assert (up.code, revoked.code, refused.code, experiment.code) == (0, 0, 7, 0)
    assert token.id in revoked.out
    assert (status["revoked"], status["revoked_experiments"]) == ([token.id], ["exp"])
    assert json.loads(experiment.out)["revoked_experiments"] == ["exp"]
    commits = [one for one in lines if one["operation"] == "commit"]
    assert [(one["token"], one["tree"], one["outcome"]) for one in commits] == [
        (token.id, "exp/1", "ok")
    ]
    assert (lines[-1]["token"], lines[-1]["reason"]) == (token.id, "revoked")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "as1." not in log.read_text()


@pytest.mark.parametrize("wrong", ["", "x", "A" * 32])
def test_what_would_revoke_nothing_is_an_error(node: Node, wrong: str) -> None:
    node.run("head", "--init", "--listen", "127.0.0.1:7999")
    ran = node.run("head", "--revoke", wrong)

    assert (ran.code, "32 hexadecimal digits" in ran.error) == (2, True)


def test_a_head_is_started_again_as_it_was_set_up(node: Node, worker: Node) -> None:
    line = node.run("head", "--init", "--listen", f"127.0.0.1:{free_port()}").out
    with node.head("--listen", "127.0.0.1:0") as moved:
        pass
    listen = Join.parse(Secret(line)).address
    with node.head("--listen", listen) as head:
        joined = worker.run("join", stdin=line)
    told = node.run("head", "--status", "--json")

    assert moved.location.startswith("peers://127.0.0.1:")
    assert head.location == f"peers://{listen}"
    assert joined.code == 0, joined.err
    assert json.loads(told.out)["names"] == ["127.0.0.1"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(node: Node, number: signal.Signals) -> None:
    with node.head() as head:
        code, summary = head.stop(number)

    assert (code, summary["exit_code"], summary["location"]) == (0, 0, head.location)


def test_what_is_committed_is_carried_on_also_after_a_kill(node: Node, worker: Node) -> None:
    cloud = node.folder / "cloud"
    (node.folder / "file").write_text("in the way")
    with node.head("--forward", str(node.folder / "file" / "cloud")) as head:
        worker.run("join", stdin=node.run("head", "--token").out)
        worker.run("up", worker.checkpoint(), f"{head.location}/exp/ckpt_1")
        failed = head.until("not_forwarded")
        told = json.loads(node.run("head", "--status", "--json").out)
        head.process.kill()
    with node.head("--forward", str(cloud)) as again:
        done = again.until("forwarded")
        _, summary = again.stop()

    assert failed["tree"] == "exp/ckpt_1"
    assert (told["waiting"], told["failed"][0]["tree"]) == (1, "exp/ckpt_1")
    assert (done["tree"], summary["forwarded"]) == ("exp/ckpt_1", 1)
    assert (cloud / "exp/ckpt_1/w").read_text() == "weights"


def test_a_read_only_head_takes_nothing(node: Node, worker: Node) -> None:
    node.run("up", node.checkpoint(), "root/ckpt_1")
    with node.head("--read-only") as head:
        joined = worker.run("join", stdin=node.run("head", "--token").out)
        down = worker.run("down", f"{head.location}/ckpt_1", "back")
        up = worker.run("up", worker.checkpoint(), f"{head.location}/ckpt_2")

    assert "read-only" in joined.err
    assert (down.code, up.code) == (0, 7)
    assert "this head is read-only" in up.error


# ---------------------------------------------------------------- used wrongly


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "asyncsync head --root DIR"),
        (["--root", "nowhere"], "is no directory; make it, or mount"),
        (["--root", "s3://bucket/x"], "is not a local directory"),
        (["--root", "root", "--listen", "0.0.0.0:7420"], "needs TLS: run `asyncsync head --init`"),
        (["--root", "root", "--listen", "[::]:7420"], "needs TLS: run `asyncsync head --init`"),
        (["--root", "root", "--listen", "7420"], "is no address: HOST:PORT"),
        (["--root", "root", "--listen", "::1:7420"], "is no address: HOST:PORT"),
        (["--root", "root", "--listen", "localhost:65536"], "is no address: HOST:PORT"),
        (["--root", "root", "--listen", "localhost:"], "is no address: HOST:PORT"),
        (["--root", "root", "--name", "head1"], "add --init"),
        (["--root", "root", "--state", "root/state"], "choose a directory outside of it"),
        (["--root", "root", "--state", "."], "choose a directory outside of it"),
        (["--root", "root", "--forward", "memory://x/y"], "ends with the head"),
        (["--root", "root", "--forward", "root/inside"], "overlap"),
        (["--root", "root", "--forward", "gopher://x"], "unknown scheme"),
        (["--root", "root", "--forward", "out", "--read-only"], "leave --forward out"),
        (["--root", "root", "--scope", "exp"], "are of the join string that --token prints"),
        (["--root", "root", "--overlap", "1"], "--overlap belongs to --rotate"),
        (["--init", "--token"], "--init and --token exclude each other"),
        (["--init", "--listen", "0.0.0.0:0"], "needs a port"),
        (["--init", "--name", "no name"], "is no name or address of a host"),
        (["--init", "--forward", "out"], "add --root DIR"),
        (["--token"], "no head was set up in"),
        (["--rotate"], "no head was set up in"),
        (["--status"], "no head was set up in"),
        (["--token", "--root", "root"], "--root means nothing"),
        (["--token", "--scope", "../x"], "each part of its name begins with"),
        (["--root", ""], "--root is empty"),
        (["--root", "root", "--state", ""], "--state is empty"),
        (["--root", "root", "--forward", ""], "--forward is empty"),
        (["--root", "root", "--audit", "root/log"], "lies in what is served"),
        (["--root", "root", "--audit", "nowhere/log"], "a file that this user may write"),
        (["--init", "--audit", "log"], "add --root DIR"),
        (["--revoke", "0" * 32], "no head was set up in"),
        (["--revoke", "0" * 32, "--rotate"], "exclude each other"),
        (["--revoke-experiment", "exp", "--days", "1"], "are of the join string"),
        (["--token", "--days", "1e-6"], "would be over at once"),
        (["--token", "--allow", ""], "a list with commas of push, pull, list"),
        (["--token", "--allow", "everything"], "a list with commas of push, pull, list"),
        (["--token", "--days", "0"], "--days 0 would be over at once"),
        (["--token", "--days", "-1"], "--days"),
        (["--token", "--days", "nan"], "--days nan would be over"),
        (["--token", "--days", "1e9"], "--days"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_is_one_line_that_says_what_to_do(
    node: Node, arguments: list[str], says: str
) -> None:
    ran = node.run("head", *arguments)

    assert says in ran.error
    assert ran.code == 2
    assert os.listdir(node.folder / "root") == []


@pytest.mark.parametrize("command", ["join", "head", "up"])
def test_a_join_string_among_the_arguments_is_refused_and_not_repeated(
    worker: Node, command: str
) -> None:
    line = good_line()
    ran = worker.run(command, line)

    assert ran.code == 2
    assert line[5:40] not in ran.err
    if command == "join":
        assert "other users can see the command line" in ran.error
        assert "asyncsync head --rotate --overlap 0" in ran.error


def test_a_join_string_is_not_revoked_by_showing_it_to_everybody(node: Node) -> None:
    ran = node.run("head", "--revoke", line := good_line())

    assert (ran.code, line[5:40] in ran.err) == (2, False)
    assert "asyncsync head --rotate --overlap 0" in ran.error


def good_line(address: str = "127.0.0.1:9", **claims: Any) -> str:
    token = KeyRing((HeadKey.new(),)).mint(Claims.new("", now=time.time(), **claims))
    return Join(address=address, token=token).line().reveal()


DAMAGE: dict[str, Callable[[str], str]] = {
    "nothing": lambda line: "",
    "blanks": lambda line: "   ",
    "cut short": lambda line: line[: len(line) // 2],
    "its last character lost": lambda line: line[:-1],
    "a character changed": lambda line: f"{line[:30]}{'A' if line[30] != 'A' else 'B'}{line[31:]}",
    "something else": lambda line: "hello",
    "the token alone": lambda line: Join.parse(Secret(line)).token.reveal(),
    "far too long": lambda line: line + "A" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_join_string_is_refused_and_not_repeated(worker: Node, damage: str) -> None:
    line = DAMAGE[damage](good_line())
    ran = worker.run("join", stdin=f"{line}\n")

    assert ran.code == 2, ran.err
    assert "join string" in ran.error or "token" in ran.error
    assert len(line.strip()) < 10 or line[5:25] not in ran.err
    assert not (worker.folder / ".config").exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [("nowhere", "No such file"), ("root", "Is a directory"), ("asj1.x", "No such file")],
)
def test_a_file_that_cannot_be_read_is_one_line(worker: Node, source: str, says: str) -> None:
    ran = worker.run("join", "--from", source)

    assert (ran.code, says in ran.error) == (2, True)
    assert "asj1." not in ran.err


def test_a_head_that_does_not_answer_is_worth_another_try(worker: Node) -> None:
    ran = worker.run("join", stdin=good_line(f"127.0.0.1:{free_port()}"))

    assert ran.code == 5
    assert "join the head at 127.0.0.1:" in ran.error


def test_a_token_that_expired_says_so(node: Node, worker: Node) -> None:
    with node.head() as head:
        key = node.run("head", "--token").out
        line = expired(node, head.address)
        ran = worker.run("join", stdin=line)

    assert key
    assert ran.code == 7
    assert "the join string has expired; take a new one from `asyncsync head --token`" in ran.error


def expired(node: Node, address: str) -> str:
    from asyncsync.peer import load_keys

    ring = load_keys(node.state / "keys.json")
    token = ring.mint(Claims.new("", now=time.time() - 2 * DAY_S, life_s=DAY_S))
    return Join(address=address, token=token).line().reveal()


def test_another_head_at_the_address_is_noticed(node: Node, worker: Node, tmp_path: Path) -> None:
    other = Node(tmp_path / "other")
    with node.head() as head:
        mine = Join.parse(Secret(node.run("head", "--token").out))
        with other.head() as impostor:
            line = Join(address=impostor.address, token=mine.token).line().reveal()
            ran = worker.run("join", stdin=line)

    assert head.address != impostor.address
    assert ran.code == 7
    assert "the head there does not know this join string" in ran.error


def test_another_ca_at_the_address_is_noticed_before_the_token_is_shown(
    node: Node, worker: Node
) -> None:
    with node.head("--init") as head:
        mine = Join.parse(Secret(head.until("join")["join"]))
        line = Join(address=mine.address, fingerprint="ab" * 32, token=mine.token).line()
        ran = worker.run("join", stdin=line.reveal())

    assert ran.code == 2
    assert "another CA than the one in the join string" in ran.error
    assert not (worker.folder / ".config").exists()


def test_what_is_no_head_is_not_taken_for_one(worker: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with subprocess.Popen(
            [*COMMAND, "join"],
            env=worker.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            process.stdin.write(good_line(f"127.0.0.1:{port}"))
            process.stdin.close()
            process.stdin = None
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                assert process.stderr is not None
                said = process.stderr.read()
            process.wait(20)

    assert process.returncode == 6
    assert "is no asyncsync head" in said


def test_an_occupied_port_is_one_line(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ran = node.run("head", "--root", "root", "--listen", address)

    assert (ran.code, f"cannot listen on {address}" in ran.err) == (2, True)


def test_an_occupied_port_is_one_line_also_for_a_head_that_carries_on(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = node.run("head", "--root", "root", "--listen", listen, "--forward", "out")

    assert ran.code == 2
    assert "cannot listen on" in ran.err.splitlines()[-1]


def test_two_heads_do_not_share_a_state(node: Node) -> None:
    with node.head():
        ran = node.run("head", "--root", "root", "--listen", "127.0.0.1:0")

    assert ran.code == 2
    assert "another head runs with the state" in ran.error


STATES: dict[str, tuple[Callable[[Path], object], str]] = {
    "open to others": (lambda state: state.chmod(0o755), "can be used by other users"),
    "a key that others can read": (lambda s: (s / "keys.json").chmod(0o644), "can be used by"),
    "a damaged key": (lambda s: (s / "keys.json").write_text("{"), "is damaged"),
    "a key that is gone": (lambda s: (s / "keys.json").unlink(), "run asyncsync head --init"),
    "damaged settings": (lambda s: (s / "head.json").write_text("{}"), "is damaged"),
    "a damaged certificate": (lambda s: (s / "tls/head.pem").write_text("x"), "is damaged"),
}


@pytest.mark.parametrize("how", STATES)
def test_a_state_that_cannot_be_trusted_starts_no_head(node: Node, how: str) -> None:
    assert node.run("head", "--init", "--name", "127.0.0.1").code == 0
    break_it, says = STATES[how]
    break_it(node.state)

    ran = node.run("head", "--root", "root")

    assert (ran.code, says in ran.error) == (2, True), ran.err
    assert text_of(node.state / "keys.json")[:80] not in ran.err or how != "a damaged key"


def test_a_state_that_cannot_be_made_is_one_line(node: Node) -> None:
    (node.folder / "file").write_text("")
    ran = node.run("head", "--init", "--state", "file/state")

    assert (ran.code, "choose another directory with --state" in ran.error) == (2, True)


def test_in_json_a_join_string_is_an_event_and_the_summary_has_none(node: Node) -> None:
    ran = node.run("head", "--init", "--json", "--listen", "127.0.0.1:7999")
    events = [json.loads(line) for line in ran.out.splitlines()]

    assert [event["event"] for event in events] == ["join", "summary"]
    assert Join.parse(Secret(events[0]["join"])).address == events[0]["address"] == "127.0.0.1:7999"
    assert events[0]["operations"] == ["pull", "push"]
    assert "asj1." not in ran.err
    assert "asj1." not in json.dumps(events[1])
