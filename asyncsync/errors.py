"""Every error this package raises on purpose.

A class says what the caller does next; its `exit_code` is what the command line returns.

AsyncSyncError                    1
├── ConfigError                   2   fix the call or the settings; nothing was attempted
├── NotFoundError                 3   name something that exists
│   └── NotCommittedError         3   there are files but no commit: another tool wrote them
├── TransientError                5   the same call may succeed later; retried by us first
│   ├── BusyError                 5   somebody else writes there now
│   ├── SlowDownError             5   the store asks for fewer requests
│   ├── StalledError              5   a device or network gave no sign of life
│   └── CorruptedError            8   bytes changed on the way: an IntegrityError, too
├── PermanentError                6   the same call will fail again
│   ├── RefusedError              6   a name or file type that cannot be kept; nothing moved
│   ├── ClashError                6   the target holds files that are not ours
│   ├── ConflictError             6   another commit holds the target
│   ├── SourceChangedError        6   the source never held still
│   ├── AccessDeniedError         7   not allowed
│   ├── NoSpaceError              7   the target is full
│   ├── DeviceError               7   the operating system reported a broken device
│   └── PreconditionError         6   a conditional write met another version
├── IntegrityError                8   bytes or a manifest are not what was committed
│   └── FormatError               8   a manifest of a version that this release cannot read
├── DeadlineError                10   the time allowed is over
└── TransferError                 6   several files or saves failed; see `.failures`: the exit code
                                      is theirs if they have the same
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

__all__ = [
    "AccessDeniedError",
    "AsyncSyncError",
    "BusyError",
    "ClashError",
    "ConfigError",
    "ConflictError",
    "CorruptedError",
    "DeadlineError",
    "DeviceError",
    "FormatError",
    "IntegrityError",
    "NoSpaceError",
    "NotCommittedError",
    "NotFoundError",
    "PermanentError",
    "PreconditionError",
    "RefusedError",
    "Side",
    "SlowDownError",
    "SourceChangedError",
    "StalledError",
    "TransferError",
    "TransientError",
    "is_interruption",
    "os_errors",
    "quote",
    "quote_some",
    "sided",
]

Side = Literal["source", "target"]


class AsyncSyncError(Exception):
    """The root of every error here.

    Attributes:
        side: which end failed, when the error has one.
        paths: the files it is about, relative to the tree.
    """

    exit_code: int = 1

    def __init__(
        self, message: str, *, side: Side | None = None, paths: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.side = side
        self.paths = tuple(paths)

    def __reduce__(self) -> tuple[Callable[..., AsyncSyncError], tuple[object, ...]]:
        # An exception's own way back calls __init__ with the message alone.
        return _unpickle, (type(self), self.args, self.__dict__)


def _unpickle(
    kind: type[AsyncSyncError], args: tuple[object, ...], fields: dict[str, object]
) -> AsyncSyncError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error


class ConfigError(AsyncSyncError, ValueError):
    """The call or a setting is wrong; nothing was attempted."""

    exit_code = 2


class NotFoundError(AsyncSyncError):
    """There is nothing under that name."""

    exit_code = 3


class NotCommittedError(NotFoundError):
    """There are files, but no manifest: nothing asyncsync may vouch for."""


class TransientError(AsyncSyncError):
    """The same call may succeed later.

    Attributes:
        retry_after_s: how long the other side asked us to wait, if it did.
        attempts: how often it was tried already; above 0, nobody here tries again.
    """

    exit_code = 5

    def __init__(
        self,
        message: str,
        *,
        side: Side | None = None,
        paths: Sequence[str] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, side=side, paths=paths)
        self.retry_after_s = retry_after_s
        self.attempts = 0


class BusyError(TransientError):
    """Another sync is writing to the same target."""


class StalledError(TransientError):
    """A wait on a device or network saw no progress for the time allowed."""


class SlowDownError(TransientError):
    """The store asks for fewer requests for a while."""


class PermanentError(AsyncSyncError):
    """The same call will fail again until somebody changes something."""

    exit_code = 6


class RefusedError(PermanentError):
    """A name or a kind of file that cannot be kept; nothing has moved."""


class ClashError(PermanentError):
    """The target holds files under our names that asyncsync did not write."""


class ConflictError(PermanentError):
    """Another commit holds the target.

    Attributes:
        winner: the identity of the commit that is there.
    """

    def __init__(self, message: str, *, winner: str) -> None:
        super().__init__(message, side="target")
        self.winner = winner


class SourceChangedError(PermanentError):
    """Files kept changing while they were read, or vanished."""


class AccessDeniedError(PermanentError):
    """The operating system or the store refused access."""

    exit_code = 7


class NoSpaceError(PermanentError):
    """No blocks, no inodes or no quota left."""

    exit_code = 7


class DeviceError(PermanentError):
    """The operating system reported an input/output error."""

    exit_code = 7


class PreconditionError(PermanentError):
    """A conditional write found another version of the object."""


class IntegrityError(AsyncSyncError):
    """Bytes, a length or a manifest are not what was committed."""

    exit_code = 8


class CorruptedError(TransientError, IntegrityError):
    """Bytes were changed on the way, says a checksum; worth another try."""

    exit_code = 8


class FormatError(IntegrityError):
    """A manifest whose version or algorithm this release cannot read."""


class DeadlineError(AsyncSyncError, TimeoutError):
    """The time that was allowed for the whole operation is over.

    Attributes:
        missing: the ranks that had left no part, where many writers make one commit.
    """

    exit_code = 10
    missing: tuple[int, ...] = ()


class TransferError(AsyncSyncError):
    """Several files failed, or saves from snapshots that nobody waited for.

    Attributes:
        failures: the errors, one for each.
    """

    exit_code = 6

    def __init__(self, message: str, *, failures: Sequence[AsyncSyncError]) -> None:
        super().__init__(message)
        self.failures = tuple(failures)
        codes = {failure.exit_code for failure in failures}
        if len(codes) == 1:
            self.exit_code = codes.pop()


def is_interruption(error: BaseException) -> bool:
    """Whether what `error` ended can go on later where it was: its plan has not been dropped."""
    if isinstance(error, TransferError):
        return all(map(is_interruption, error.failures))
    if isinstance(error, BusyError):  # what is there belongs to somebody else by now
        return False
    if isinstance(error, AccessDeniedError):
        return error.side is None  # a store's answer: credentials end in the middle of the work
    if isinstance(error, Exception):
        return isinstance(error, TransientError | DeadlineError)
    return True  # cancelled, or the program ends


_BY_ERRNO: dict[int, type[AsyncSyncError]] = {
    errno.ENOENT: NotFoundError,
    errno.EACCES: AccessDeniedError,
    errno.EPERM: AccessDeniedError,
    errno.EROFS: AccessDeniedError,
    errno.ENOSPC: NoSpaceError,
    errno.EDQUOT: NoSpaceError,
    errno.EFBIG: NoSpaceError,
    errno.ESTALE: TransientError,
    errno.EAGAIN: TransientError,
    errno.EMFILE: TransientError,
    errno.ENFILE: TransientError,
    errno.ENOMEM: TransientError,
    errno.EIO: DeviceError,
    errno.ENAMETOOLONG: RefusedError,
    errno.EILSEQ: RefusedError,
}

_ADVICE: dict[int, str] = {
    errno.EACCES: "check its owner and mode",
    errno.EPERM: "check its owner, mode and attributes",
    errno.ENOTDIR: "a part of that path is a file; name another place",
    errno.EROFS: "mount it writable or choose another place",
    errno.ENOSPC: "free space or inodes, then run it again",
    errno.EDQUOT: "free some of the quota, then run it again",
    errno.EMFILE: "raise the limit of open files (ulimit -n) or lower max_files",
    errno.EIO: "the device failed; look at the kernel log",
}


@contextmanager
def os_errors(side: Side, where: str) -> Iterator[None]:
    """Re-raise an OSError as ours, saying which end it hit and what to do.

    Args:
        side: "source" or "target".
        where: the path to name in the message.
    """
    try:
        yield
    except AsyncSyncError:  # DeadlineError is an OSError too
        raise
    except OSError as exc:
        code = exc.errno or 0
        reason = os.strerror(code) if code else str(exc)
        advice = f"; {_ADVICE[code]}" if code in _ADVICE else ""
        kind = _BY_ERRNO.get(code, PermanentError)
        raise kind(f"{side} {quote(where)}: {reason}{advice}", side=side) from exc


@contextmanager
def sided(side: Side) -> Iterator[None]:
    """Errors of ours that the block raises are of that end, whatever they say."""
    try:
        yield
    except AsyncSyncError as exc:
        for one in (exc, *(exc.failures if isinstance(exc, TransferError) else ())):
            one.side = side
        raise


def quote(name: str) -> str:
    """A name as text that is safe on a terminal: control characters and broken bytes escaped."""
    if name.isprintable() and "\\" not in name:
        return name
    raw = "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in name
    )
    return f"'{raw}'"


def quote_some(names: Sequence[str], *, limit: int = 5) -> str:
    """Up to `limit` names and how many more there are."""
    shown = ", ".join(quote(name) for name in names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown
