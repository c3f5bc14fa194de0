"""The contestants: how each is called, and where it comes from.

Commands run as whole processes. Clients are Python: each runs in a fresh process, where the clock
starts once it is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.servers import ACCESS_KEY, SECRET_KEY

from .work import Job

__all__ = ["CLIENTS", "COMMANDS", "command", "missing", "versions"]


def _s5cmd(job: Job) -> list[str]:
    there = f"s3://{job.bucket}/{job.key}/"
    base = [_program("s5cmd"), "--endpoint-url", job.url, "--log", "error"]
    if job.action == "down":
        return [*base, "cp", f"{there}*", f"{job.local}/"]
    return [*base, "sync" if job.action == "sync" else "cp", f"{job.local}/", there]


def _rclone(job: Job) -> list[str]:
    remote = (
        f":s3,provider=Other,endpoint='{job.url}',access_key_id={ACCESS_KEY},"
        f"secret_access_key={SECRET_KEY},no_check_bucket,no_head:{job.bucket}/{job.key}"
    )
    ends = [remote, job.local] if job.action == "down" else [job.local, remote]
    # Its own way for files of 256 MiB looks at the object afterwards, which a sink does not keep.
    options = ["--fast-list", "--transfers", "32", "--checkers", "32"]
    options += [] if job.action == "down" else ["--multi-thread-streams", "0"]
    return [_program("rclone"), "copy", *options, *ends]


def _awscli(job: Job) -> list[str]:
    there = f"s3://{job.bucket}/{job.key}/"
    ends = [there, f"{job.local}/"] if job.action == "down" else [f"{job.local}/", there]
    call = ["sync"] if job.action == "sync" else ["cp", "--recursive"]
    return [_program("aws"), "s3", *call, "--only-show-errors", "--endpoint-url", job.url, *ends]


def _rsync(job: Job) -> list[str]:
    """Between two directories, a yardstick for the disk; or to another node."""
    if not job.bucket:
        return ["rsync", "--archive", f"{job.local}/", f"{job.url}/"]
    there = f"{job.url}/{job.bucket}/{job.key}/"
    return ["rsync", "--archive", "--whole-file", f"{job.local}/", there]


def _rsync_fsync(job: Job) -> list[str]:
    program, *rest = _rsync(job)
    return [program, "--fsync", *rest]


def _asyncsync(job: Job) -> list[str]:
    there = f"s3://{job.bucket}/{job.key}"
    down = job.action == "down"
    ends = [there, job.local] if down else [job.local, there]
    return [_program("asyncsync"), "down" if down else "up", *ends]


COMMANDS: dict[str, Callable[[Job], list[str]]] = {
    "asyncsync command": _asyncsync,
    "s5cmd": _s5cmd,
    "rclone": _rclone,
    "awscli": _awscli,
    "rsync": _rsync,
    "rsync --fsync": _rsync_fsync,
}
CLIENTS = {  # name -> what it has to find installed
    "asyncsync": "asyncsync",
    "bare client": "aiohttp",
    "obstore": "obstore",
    "aiobotocore": "aiobotocore",
    "s3fs": "s3fs",
    "scheduler": "asyncsync",
    "64 clients": "asyncsync",
    "bare pipe": "asyncsync",
    "bare pipe, TLS": "asyncsync",
}
_PROGRAMS = {"asyncsync command": "asyncsync", "awscli": "aws", "rsync --fsync": "rsync"}


def command(name: str, job: Job) -> list[str]:
    """The command line that does a job with a tool."""
    if name in COMMANDS:
        return COMMANDS[name](job)
    return [sys.executable, "-m", "tests.benchmarks.client", name, json.dumps(asdict(job))]


def missing(name: str) -> bool:
    """Whether a tool is not installed here."""
    if name in CLIENTS:
        return importlib.util.find_spec(CLIENTS[name]) is None
    return _find(_PROGRAMS.get(name, name)) is None


def _find(name: str) -> str | None:
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _program(name: str) -> str:
    found = _find(name)
    assert found is not None, "what is missing is skipped before"
    return found


def versions() -> dict[str, str]:
    """Versions of the packages that took part."""
    found = {}
    for name in ("asyncsync", "aiobotocore", "aiohttp", "obstore", "s3fs", "awscli", "uvloop"):
        if importlib.util.find_spec(name):
            found[name] = importlib.metadata.version(name)
    for name, *options in (["s5cmd", "version"], ["rclone", "version"], ["rsync", "--version"]):
        if path := _find(name):
            said = subprocess.run([path, *options], capture_output=True, text=True, check=True)
            numbers = [word for word in said.stdout.split() if word.lstrip("v")[:1].isdigit()]
            found[name] = numbers[0]
    return found
