"""Errors on their way from a head to a worker: a status and a `Fault`, and back. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import (
    AccessDeniedError,
    AsyncSyncError,
    BusyError,
    ClashError,
    ConfigError,
    ConflictError,
    CorruptedError,
    DeviceError,
    FormatError,
    IntegrityError,
    NoSpaceError,
    NotCommittedError,
    NotFoundError,
    PermanentError,
    RefusedError,
    SlowDownError,
    StalledError,
    TransferError,
    TransientError,
)
from .messages import Fault, path_of, text_of

__all__ = [
    "CodingError",
    "GoneError",
    "UnauthorizedError",
    "WorkingError",
    "error_of",
    "fault_of",
    "plain",
]


class UnauthorizedError(AccessDeniedError):
    """No token, or one that is not good."""


class CodingError(RefusedError):
    """A body that is compressed, or in another way not what it stands for."""


class GoneError(TransientError):
    """A session that the head does not know, any more or at all: begin another."""


class WorkingError(TransientError):
    """What was asked for takes long, and goes on: ask again, in order to wait for the rest."""


_STATUS: dict[type[AsyncSyncError], int] = {
    ConfigError: 400,
    FormatError: 400,
    UnauthorizedError: 401,
    AccessDeniedError: 403,
    NotFoundError: 404,
    NotCommittedError: 404,
    StalledError: 408,
    ConflictError: 409,
    ClashError: 409,
    GoneError: 410,
    CodingError: 415,
    IntegrityError: 422,
    CorruptedError: 422,
    RefusedError: 422,
    PermanentError: 422,
    BusyError: 423,
    SlowDownError: 429,
    DeviceError: 500,
    TransientError: 503,
    WorkingError: 503,
    NoSpaceError: 507,
}
_KINDS = {kind.__name__: kind for kind in _STATUS}
_MAX_PATHS = 10_000
_MAX_WAIT_S = 300.0
_WINNER = re.compile(r"(?:[0-9a-f]{64})?")


def fault_of(error: AsyncSyncError, hide: str = "") -> tuple[int, Fault]:
    """The status and the message for an error.

    Args:
        hide: where the head keeps its trees: that is nobody's business.
    """
    if isinstance(error, TransferError) and error.failures:
        error = error.failures[0]
    kind = next(k for k in type(error).__mro__ if k in _STATUS or k is AsyncSyncError)
    if kind is AsyncSyncError:
        kind = PermanentError
    message = str(error)
    if hide:
        root = hide.rstrip("/")
        message = message.replace(f"{root}/", "").replace(root, "the root")
    return _STATUS[kind], Fault(
        kind=kind.__name__,
        message=message,
        side=error.side,
        paths=[text_of(path) for path in error.paths[:_MAX_PATHS]],
        winner=getattr(error, "winner", ""),
        retry_after_s=getattr(error, "retry_after_s", None),
    )


def error_of(status: int, fault: Fault, what: str) -> AsyncSyncError:
    """The error that a head has answered with.

    Raises:
        FormatError: status and message do not belong together.
    """
    kind = _KINDS.get(fault.kind)
    if kind is None or _STATUS[kind] != status:
        raise FormatError(f"{what}: an answer with status {status} and another error in it")
    message = f"{what}: {plain(fault.message)}"
    if kind is ConflictError:
        if _WINNER.fullmatch(fault.winner) is None:
            raise FormatError(f"{what}: a conflict with what is no commit")
        return ConflictError(message, winner=fault.winner)
    paths: Sequence[str] = [path_of(path) for path in fault.paths]
    if issubclass(kind, TransientError):
        wait_s = fault.retry_after_s
        if wait_s is not None:  # how long one waits is not for the other side to say
            wait_s = min(max(wait_s, 0.0), _MAX_WAIT_S)
        return kind(message, side=fault.side, paths=paths, retry_after_s=wait_s)
    return kind(message, side=fault.side, paths=paths)


def plain(text: str) -> str:
    """What a head says, as one line without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:2000])
