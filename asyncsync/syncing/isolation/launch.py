"""Starting the engine of this program: in a process of its own, or in a thread."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from ...errors import ConfigError, os_errors, quote

__all__ = ["Address", "Engines", "engines", "run_directory"]

_SETTINGS = (
    "ALL_PROXY",
    "ASYNCSYNC_",
    "AWS_",
    "AZURE_",
    "BOTO_",
    "CLOUDSDK_",
    "CURL_CA_BUNDLE",
    "FSSPEC_",
    "GCE_",
    "GCLOUD_",
    "GOOGLE_",
    "HADOOP_",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_",
    "STORAGE_",
    "TMPDIR",
    "XDG_",
)
"""Variables that say where stores are and what opens them; an engine knows those of its start."""

_LISTENER_FD = 3
_FREE_FD = 10  # above what the new process gets
_PATH_BYTES = 103  # the longest address that a Unix socket can have everywhere
_NAME_BYTES = len("/4194304-0123456789abcdef.sock")
_BACKLOG = 128
_BOOT = (
    "import sys; sys.path[:] = sys.argv.pop(1).split({separator!r});"
    "from asyncsync.syncing.isolation.main import main; main()"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens, and the file with what it has to report."""

    socket: str
    log: str

    def last_words(self) -> str:
        """The last line that the engine has reported; blocks."""
        try:
            with open(self.log, encoding="utf-8", errors="replace") as file:
                lines = file.read().strip().splitlines()
        except OSError:
            lines = []
        return f"; it said {quote(lines[-1])} (more in {quote(self.log)})" if lines else ""


class Engines:
    """The engines of this program by kind and environment. Thread-safe; its methods block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget_all()

    def _forget_all(self) -> None:
        self._program = os.getpid()
        self._running: dict[tuple[str, Mapping[str, str]], Address] = {}
        self._children: set[int] = set()

    def find(self, kind: Literal["process", "thread"]) -> Address:
        """The engine for the environment of now; starts it if there is none.

        Raises:
            ConfigError: the directory for sockets is not safe, or Python cannot be started.
        """
        with self._lock:
            if self._program != os.getpid():  # forked: they are the parent's
                self._forget_all()
            self._reap()
            key = (kind, _Environment(_environment()))
            if key not in self._running:
                self._running[key] = self._start(kind)
            return self._running[key]

    def forget(self, address: Address) -> None:
        """That one is gone: the next `find` starts another."""
        with self._lock:
            self._running = {k: there for k, there in self._running.items() if there != address}

    def _start(self, kind: str) -> Address:
        _sweep(run_directory())
        listener, address = _listen()
        with listener:
            if kind == "process":
                self._children.add(_spawn(listener, address))
            else:
                _start_thread(listener.dup())
        return address

    def _reap(self) -> None:
        for pid in list(self._children):
            try:
                gone, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # somebody else waits for all children
                gone = pid
            if gone:
                self._children.discard(pid)


class _Environment(dict[str, str]):
    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.upper().startswith(_SETTINGS)}


def run_directory() -> str:
    """The directory for sockets and locks of this user; made if it is not there.

    The first of `$XDG_RUNTIME_DIR`, the one for temporary files and `/tmp` in which the path of a
    socket is not too long.

    Raises:
        ConfigError: somebody else could write there.
    """
    base, own = os.environ.get("XDG_RUNTIME_DIR"), f"asyncsync-{os.getuid()}"
    paths = [f"{base}/asyncsync"] if base else []
    paths += [f"{tempfile.gettempdir()}/{own}", f"/tmp/{own}"]
    path = next(p for p in paths if len(os.fsencode(p)) + _NAME_BYTES <= _PATH_BYTES)
    with os_errors("source", path):
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{quote(path)} must be a directory that only you can enter; remove it, or set "
            "XDG_RUNTIME_DIR"
        )
    return path


def _sweep(directory: str) -> None:
    """Remove the sockets of engines that were killed."""
    with suppress(OSError):  # whoever cannot see or remove them leaves them
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if name.endswith(".sock") and _is_deserted(path):
                for end in (".sock", ".log"):
                    with suppress(FileNotFoundError):
                        os.unlink(path.removesuffix(".sock") + end)


def _is_deserted(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _listen() -> tuple[socket.socket, Address]:
    name = f"{run_directory()}/{os.getpid()}-{secrets.token_hex(8)}"
    address = Address(f"{name}.sock", f"{name}.log")
    listener = socket.socket(socket.AF_UNIX)
    try:
        with os_errors("source", address.socket):
            listener.bind(address.socket)
            os.chmod(address.socket, 0o600)
            listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener, address


def _spawn(listener: socket.socket, address: Address) -> int:
    """Exec, not fork: nothing of CUDA, threads or `__main__` goes along."""
    if not sys.executable:
        raise ConfigError("this Python does not know its own program; use isolation='thread'")
    path = os.pathsep.join(filter(None, sys.path))
    code = _BOOT.format(separator=os.pathsep)
    arguments = [sys.executable, "-c", code, path, str(os.getpid()), address.socket, address.log]
    passed = fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, _FREE_FD)
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
    try:
        with os_errors("source", sys.executable):
            return os.posix_spawn(
                sys.executable,
                arguments,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, address.log, log_flags, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                    (os.POSIX_SPAWN_DUP2, passed, _LISTENER_FD),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
            )
    finally:
        os.close(passed)


def _start_thread(listener: socket.socket) -> None:
    from .main import run_here  # noqa: PLC0415 - loads the engine, which a caller may not need

    def run() -> None:
        run_here(listener)

    work: Callable[[], None] = run
    threading.Thread(target=work, name="asyncsync-engine", daemon=True).start()


engines = Engines()
