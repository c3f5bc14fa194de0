"""Files that only their owner may read: keys. Everything here blocks and belongs in a thread."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError, quote

__all__ = ["MAX_BYTES", "open_private_directory", "read_private", "write_private"]

MAX_BYTES = 64 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def read_private(path: Path, *, most_bytes: int = MAX_BYTES) -> bytes | None:
    """What is in a file of ours that nobody else can read or write; None if there is none.

    Raises:
        ConfigError: others can, it is a link or no file, too long, or it cannot be read.
    """
    try:
        # A fifo of that name must not hold up whoever opens it.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise ConfigError(f"{quote(str(path))} is a link; name the file itself") from exc
        raise _failed("read", path, exc) from exc
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{quote(str(path))} is not a file; name another one")
        _check_private(path, found, 0o600)
        with open(fd, "rb", closefd=False) as file:
            content = file.read(most_bytes + 1)
    except OSError as exc:
        raise _failed("read", path, exc) from exc
    finally:
        os.close(fd)
    if len(content) > most_bytes:
        raise ConfigError(f"{quote(str(path))} is too long for a file of a head; name another one")
    return content


def write_private(
    path: Path, content: bytes, *, replace: bool, most_bytes: int = MAX_BYTES
) -> None:
    """Make `content` the file, whole or not at all, durable, with mode 0600.

    Args:
        replace: whether a file of that name may be there.

    Raises:
        ConfigError: it is there and must not, it is longer than what is read, or it cannot be
            written.
    """
    if len(content) > most_bytes:
        raise ConfigError(f"{quote(str(path))} would be longer than {most_bytes} bytes")
    temporary = f".{path.name}.{secrets.token_hex(8)}"
    try:
        directory = os.open(path.parent, _DIRECTORY)
        try:
            try:
                _write(directory, temporary, content)
                _publish(directory, temporary, path.name, replace=replace)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=directory)
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError as exc:
        reason = f"{quote(str(path))} is there already; remove it to begin anew"
        raise ConfigError(reason) from exc
    except OSError as exc:
        raise _failed("write", path, exc) from exc


def _write(directory: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _publish(directory: int, temporary: str, name: str, *, replace: bool) -> None:
    if replace:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    else:  # unlike a rename, this fails if the name exists
        os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def open_private_directory(path: Path) -> None:
    """Make a directory that only its owner may enter, or check that it is one.

    Raises:
        ConfigError: others may enter it, it is a link, or it cannot be made.
    """
    try:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.stat(path, follow_symlinks=False)
    except OSError as exc:
        raise _failed("make", path, exc) from exc
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{quote(str(path))} is not a directory; name another one")
    _check_private(path, found, 0o700)


def _check_private(path: Path, found: os.stat_result, mode: int) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{quote(str(path))} belongs to another user; name a file of your own")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"{quote(str(path))} can be used by other users; chmod {mode:o} {quote(str(path))}"
        )


def _failed(verb: str, path: Path, exc: OSError) -> ConfigError:
    return ConfigError(f"cannot {verb} {quote(str(path))}: {exc.strerror}; check path and owner")
