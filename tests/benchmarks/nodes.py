"""What trees go to from node to node: heads of ours, and rsync, as a daemon and over ssh."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers import free_port, running, wait_for

__all__ = ["NODES", "Node", "is_missing"]

_START_S = 30.0
_SYSTEM = ("/usr/sbin",)

_RSYNCD = """
port = {port}
address = 127.0.0.1
use chroot = no
uid = {uid}
gid = {gid}
[files]
path = {files}
read only = no
"""

_SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/mine.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The other end.

    Attributes:
        url: what the path of a tree is put behind.
        files: where trees lie as files.
        environ: what a program needs in its environment to get there.
        fared: how a head of ours has fared since it was asked the last time.
    """

    url: str
    files: Path
    environ: Mapping[str, str] = field(repr=False)
    fared: Callable[[], dict[str, float]] = dict

    def bucket(self) -> str:
        """A place of its own."""
        name = f"run-{time.monotonic_ns()}"
        (self.files / name).mkdir(parents=True)
        return name


@contextlib.contextmanager
def _head(folder: Path, *, tls: bool) -> Iterator[Node]:
    files, state, port = folder / "files", folder / "state", free_port()
    files.mkdir(parents=True)
    state.mkdir()
    command = [sys.executable, "-m", "tests.benchmarks.head", str(files), str(port), str(state)]
    command += ["tls"] if tls else []
    environ = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    with running(command, folder, environ=environ) as process:
        wait_for(port, process, folder)
        while not (state / "join").exists():
            time.sleep(0.01)

        def fared() -> dict[str, float]:
            return _told(process, state / "fared")

        yield Node(
            url=f"{'peers' if tls else 'peer'}://127.0.0.1:{port}",
            files=files,
            environ={"ASYNCSYNC_JOIN": (state / "join").read_text()},
            fared=fared,
        )


def _told(process: subprocess.Popen[bytes], path: Path) -> dict[str, float]:
    path.unlink(missing_ok=True)
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + _START_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError("the head does not say how it fared")
        time.sleep(0.01)
    found: dict[str, float] = json.loads(path.read_text())
    return found


@contextlib.contextmanager
def _rsyncd(folder: Path) -> Iterator[Node]:
    files, port = folder / "files", free_port()
    files.mkdir(parents=True)
    text = _RSYNCD.format(port=port, uid=os.getuid(), gid=os.getgid(), files=files)
    (folder / "rsyncd.conf").write_text(text)
    command = ["rsync", "--daemon", "--no-detach", f"--config={folder}/rsyncd.conf"]
    with running(command, folder) as process:
        wait_for(port, process, folder)
        yield Node(url=f"rsync://127.0.0.1:{port}/files", files=files, environ={})


@contextlib.contextmanager
def _sshd(folder: Path) -> Iterator[Node]:
    files, port = folder / "files", free_port()
    files.mkdir(parents=True)
    for name in ("host", "mine"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "sshd.conf").write_text(_SSHD.format(port=port, folder=folder))
    Path("/run/sshd").mkdir(exist_ok=True)  # it insists on that
    with running([_find("sshd") or "", "-D", "-f", f"{folder}/sshd.conf"], folder) as process:
        wait_for(port, process, folder)
        ssh = f"ssh -p {port} -i {folder}/mine -o StrictHostKeyChecking=no -o BatchMode=yes"
        ssh += f" -o UserKnownHostsFile={folder}/known"
        yield Node(url=f"127.0.0.1:{files}", files=files, environ={"RSYNC_RSH": ssh})


NODES: dict[str, Callable[[Path], contextlib.AbstractContextManager[Node]]] = {
    "head": lambda folder: _head(folder, tls=False),
    "head, TLS": lambda folder: _head(folder, tls=True),
    "rsync daemon": _rsyncd,
    "rsync over ssh": _sshd,
}
_NEEDS = {"rsync daemon": ("rsync",), "rsync over ssh": ("rsync", "sshd", "ssh-keygen")}


def is_missing(name: str) -> bool:
    """Whether something that it needs is not installed."""
    return any(_find(program) is None for program in _NEEDS.get(name, ()))


def _find(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join([*os.get_exec_path(), *_SYSTEM]))
