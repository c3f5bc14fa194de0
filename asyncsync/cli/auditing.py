"""`asyncsync head --audit FILE`: the lines of the audit log of a head, in a file of its own."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from queue import Queue

from ..errors import ConfigError, quote

__all__ = ["audit_to"]

_LOGGER = "asyncsync.audit"
_MOST_WAITING = 10_000  # lines


@contextmanager
def audit_to(path: str | None, root: str) -> Iterator[None]:
    """Append the audit log to a file for as long as the block lasts; None: nowhere.

    A thread writes it. A file that was moved away is begun anew, so it may be rotated.

    Raises:
        ConfigError: it cannot be written, or lies in `root`, whose files workers read and replace.
    """
    if path is None:
        yield
        return
    if os.path.realpath(path).startswith(os.path.realpath(root).rstrip("/") + "/"):
        raise ConfigError(f"--audit {quote(path)} lies in what is served; name another file")
    try:
        file = _File(path)
    except OSError as exc:
        raise ConfigError(
            f"--audit {quote(path)}: {exc.strerror}; name a file that this user may write"
        ) from exc
    logger, queue = logging.getLogger(_LOGGER), Queue[logging.LogRecord](_MOST_WAITING)
    handler, listener = _Waiting(queue), QueueListener(queue, file)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    listener.start()
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        listener.stop()
        with suppress(OSError):  # what a full disk has not taken, which was said
            file.close()


class _Gaps(logging.Handler):
    """Says once that lines are missing, instead of a traceback for each of them."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - its name in logging
        del record
        if not self._said:
            self._said = True
            reason = getattr(sys.exc_info()[1], "strerror", None) or "it is too slow"
            sys.stderr.write(f"asyncsync: the audit log has gaps from now on: {reason}\n")


class _Waiting(_Gaps, QueueHandler):
    """Lines that a thread is going to write; a disk that hangs must not fill the memory."""


class _File(_Gaps, WatchedFileHandler):
    """For its owner alone, and never through a link."""

    def __init__(self, path: str) -> None:
        super().__init__(path, encoding="ascii")

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= os.O_NONBLOCK  # a fifo that nobody reads is an error, and no wait
        return open(os.open(self.baseFilename, flags, 0o600), "w", encoding="ascii")
