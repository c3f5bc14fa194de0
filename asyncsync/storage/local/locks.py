"""One writer at a time: a lock file whose lock dies with its holder."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

from ...errors import BusyError, quote
from .fs import is_at

__all__ = ["Lock"]


class Lock:
    """A held lock. It works on local disks and, by way of byte-range locks, on NFS."""

    def __init__(self, directory: int, name: str, fd: int) -> None:
        self._directory, self._name, self._fd = directory, name, fd

    @classmethod
    def take(cls, directory: int, name: str, what: str) -> Lock:
        """Lock `name` in the open `directory`, without waiting.

        The caller keeps `directory` open until `release`.

        Raises:
            BusyError: somebody alive holds it; names the process.
        """
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=directory)
            try:
                if cls._lock(fd, what) and is_at(fd, directory, name):
                    os.ftruncate(fd, 0)
                    with suppress(OSError):  # on a full disk the holder stays unnamed
                        os.pwrite(fd, str(os.getpid()).encode(), 0)
                    return cls(directory, name, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # the holder removed the file between our open and our lock: once more

    @staticmethod
    def _lock(fd: int, what: str) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            holder = os.pread(fd, 20, 0).decode("ascii", "replace") or "unknown"
            raise BusyError(
                f"{quote(what)} is being written by process {holder}; wait for it or stop it",
                side="target",
            ) from None
        return True

    def release(self) -> None:
        """Remove the lock file and let go. Again: no effect."""
        if self._fd < 0:
            return
        with suppress(OSError):  # the directory may have gone, with the file in it
            if is_at(self._fd, self._directory, self._name):
                os.unlink(self._name, dir_fd=self._directory)
        with suppress(OSError):  # nobody needs what the file held
            os.close(self._fd)
        self._fd = -1
