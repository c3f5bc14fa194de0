"""What a head keeps of itself, in a directory for its owner alone. Blocks."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import ConfigError, quote
from ..peer import (
    Certificates,
    create_keys,
    load_keys,
    open_private_directory,
    prepare_certificates,
    read_private,
    rotate_keys,
    write_private,
)
from ..wire.tokens import KeyRing

__all__ = ["Settings", "State", "default_state"]

_SETTINGS, _KEYS, _TLS, _LOCK = "head.json", "keys.json", "tls", "lock"


class Settings(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"version": "asyncsync_head"},
):
    """How a head was set up, or started last.

    Attributes:
        listen: `HOST:PORT`.
        address: `HOST:PORT` by which workers reach it.
        names: those that its certificate is for; none: there is no TLS.
        forward: where commits are carried on to; empty: nowhere.
    """

    version: Literal[1] = 1
    listen: str
    address: str
    names: list[str] = []
    forward: str = ""


def default_state(environ: Mapping[str, str] = os.environ) -> Path:
    """Where a head keeps its state unless it is told otherwise."""
    base = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "asyncsync" / "head"


class State:
    """The state of a head at `path`.

    Every method raises ConfigError when what it needs is damaged, not private, or cannot be
    written; the message says what to do.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))
        self._lock = -1

    def make(self, root: str | None = None) -> None:
        """Make the directory if it is not there.

        Raises:
            ConfigError: one of it and `root` lies in the other: workers would get the keys.
        """
        if root is not None:
            mine, theirs = (os.path.realpath(path) + "/" for path in (self.path, root))
            if mine.startswith(theirs) or theirs.startswith(mine):
                raise ConfigError(
                    f"the keys of the head would be at {quote(str(self.path))}, and workers are "
                    f"served {quote(root)}; choose a directory outside of it with --state"
                )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(
                f"cannot make {quote(str(self.path.parent))}: {exc.strerror}; choose another "
                "directory with --state"
            ) from exc
        open_private_directory(self.path)

    def settings(self) -> Settings | None:
        """How the head was set up; None: it was not."""
        if not self.path.exists():
            return None
        path = self.path / _SETTINGS
        if (text := read_private(path)) is None:
            return None
        try:
            return msgspec.json.decode(text, type=Settings)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ConfigError(
                f"{quote(str(path))} is damaged; remove it and run asyncsync head --init again"
            ) from None

    def save(self, settings: Settings) -> None:
        """Remember how it was set up."""
        if settings != self.settings():
            text = msgspec.json.encode(settings) + b"\n"
            write_private(self.path / _SETTINGS, text, replace=True)

    @property
    def key_file(self) -> Path:
        """Where its keys are."""
        return self.path / _KEYS

    def keys(self, *, make: bool = False) -> KeyRing:
        """The keys. With `make`, they are made if there are none."""
        if make and read_private(self.key_file) is None:
            return create_keys(self.key_file)
        return load_keys(self.key_file)

    def rotate(self, *, now: float, overlap_s: float) -> KeyRing:
        """Put another key into use; see `rotate_keys`."""
        return rotate_keys(self.key_file, now=now, overlap_s=overlap_s)

    def certificates(self, names: list[str], *, now: float) -> Certificates:
        """The certificates for these names; see `prepare_certificates`."""
        return prepare_certificates(self.path / _TLS, names, now=now)

    def lock(self) -> None:
        """Hold it, until `release` or the end of this process.

        Raises:
            ConfigError: another head does.
        """
        fd = -1
        try:
            fd = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if fd >= 0:
                os.close(fd)
            where = quote(str(self.path))
            if exc.errno != errno.EWOULDBLOCK:
                raise ConfigError(f"cannot lock the state {where}: {exc.strerror}") from exc
            raise ConfigError(
                f"another head runs with the state {where}; stop it, or give this one a directory "
                "of its own with --state"
            ) from None
        self._lock = fd

    def release(self) -> None:
        """Let go of it. Again: no effect."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
