"""What a worker shows to a head, and how it knows it: from the environment, or a private file.

Everything here blocks.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from ...errors import ConfigError, os_errors, quote
from ...secrets import Secret
from ...wire.joining import Join

__all__ = ["VARIABLE", "Access", "find_access", "joined_file", "keep_access"]

VARIABLE = "ASYNCSYNC_JOIN"
_MAX_BYTES = 64 * 1024


class Access(NamedTuple):
    """What lets a worker in.

    Attributes:
        fingerprint: of the CA of the head; None: it is reached without TLS.
        authority: that CA's certificate in PEM, where it is known already.
        file: what it was read from; None: the environment.
    """

    token: Secret
    fingerprint: str | None
    authority: str
    file: Path | None = None

    @classmethod
    def of(cls, join: Join, authority: str = "", file: Path | None = None) -> Self:
        """What a join string gives."""
        return cls(join.token, join.fingerprint, authority, file)


def joined_file(address: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where what a worker was told of a head is kept."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "asyncsync" / "heads" / address


def find_access(address: str, secure: bool, environ: Mapping[str, str] = os.environ) -> Access:
    """What lets us in at a head.

    Raises:
        ConfigError: nothing does, or it is for another head, or it may be read by others; or that
            is no address.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise ConfigError(f"the address of a head is HOST:PORT, which {quote(address)} is not")
    join, authority, path = _from_environment(environ), "", None
    if join is None or join.address != address:
        path = joined_file(address, environ)
        join, authority = _from_file(path, address)
    if secure != (join.fingerprint is not None):
        raise ConfigError(
            f"the head at {address} was joined {'without' if secure else 'with'} TLS; write "
            f"{'peer' if secure else 'peers'}://{address}/..."
        )
    return Access.of(join, authority, path)


def keep_access(address: str, access: Access) -> None:
    """Write the file that it was read from, if it was, whole or not at all, for its owner alone.

    Raises:
        AsyncSyncError: it cannot be written.
    """
    if (path := access.file) is None:
        return
    join = Join(address=address, fingerprint=access.fingerprint, token=access.token)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os_errors("target", str(path)):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with open(os.open(temporary, flags, 0o600), "w", encoding="ascii") as file:
                file.write(f"{join.line().reveal()}\n{access.authority}")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def _from_environment(environ: Mapping[str, str]) -> Join | None:
    line = environ.get(VARIABLE)
    return _parsed(line, VARIABLE) if line else None


def _from_file(path: Path, address: str) -> tuple[Join, str]:
    # A fifo of that name must not hold up whoever opens it.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigError(f"{quote(str(path))} may be read by others; chmod 600 it")
            text = file.read(_MAX_BYTES).decode("ascii", "replace")
    except FileNotFoundError:
        raise ConfigError(
            f"no token for the head at {quote(address)} in {quote(str(path.parent))}; run "
            "`asyncsync join` with the line that `asyncsync head --token` prints there, or set "
            f"{VARIABLE} to it"
        ) from None
    except OSError as exc:
        raise ConfigError(f"{quote(str(path))}: {exc.strerror}; join the head again") from exc
    line, _, authority = text.partition("\n")
    join = _parsed(line, quote(str(path)))
    if join.address != address:
        raise ConfigError(f"{quote(str(path))} is for another head; join this one again")
    return join, authority


def _parsed(line: str, where: str) -> Join:
    try:
        return Join.parse(Secret(line))
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from None
