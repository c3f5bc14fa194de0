"""What a worker shows to a head, and how it knows it: from the environment, or a private file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ...errors import ConfigError, quote
from ...secrets import Secret
from ...wire.joining import Join

__all__ = ["Access", "find_access", "joined_file"]

_VARIABLE = "ASYNCSYNC_JOIN"
_MAX_BYTES = 64 * 1024


class Access(NamedTuple):
    """What lets a worker in.

    Attributes:
        fingerprint: of the CA of the head; None: it is reached without TLS.
        authority: that CA's certificate in PEM, where it is known already.
    """

    token: Secret
    fingerprint: str | None
    authority: str


def joined_file(address: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where what a worker was told of a head is kept."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "asyncsync" / "heads" / address


def find_access(address: str, secure: bool, environ: Mapping[str, str] = os.environ) -> Access:
    """What lets us in at a head.

    Raises:
        ConfigError: nothing does, or it is for another head, or it may be read by others.
    """
    join, authority = _from_environment(environ), ""
    if join is None or join.address != address:
        join, authority = _from_file(joined_file(address, environ), address)
    if secure != (join.fingerprint is not None):
        raise ConfigError(
            f"the head at {address} was joined {'without' if secure else 'with'} TLS; write "
            f"{'peer' if secure else 'peers'}://{address}/..."
        )
    return Access(join.token, join.fingerprint, authority)


def _from_environment(environ: Mapping[str, str]) -> Join | None:
    line = environ.get(_VARIABLE)
    return Join.parse(Secret(line)) if line else None


def _from_file(path: Path, address: str) -> tuple[Join, str]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(
            f"no token for the head at {quote(address)}; run `asyncsync join` with the line that "
            f"`asyncsync head --init` has printed there, or set {_VARIABLE} to it"
        ) from None
    except OSError as exc:
        raise ConfigError(f"{quote(str(path))}: {exc.strerror}; join the head again") from exc
    with os.fdopen(fd, "rb") as file:
        if os.fstat(fd).st_mode & 0o077:
            raise ConfigError(f"{quote(str(path))} may be read by others; chmod 600 it")
        text = file.read(_MAX_BYTES).decode("ascii", "replace")
    line, _, authority = text.partition("\n")
    join = Join.parse(Secret(line))
    if join.address != address:
        raise ConfigError(f"{quote(str(path))} is for another head; join this one again")
    return join, authority
