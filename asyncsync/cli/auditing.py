"""`asyncsync head --audit FILE`: the lines of the audit log of a head, in a file of its own."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from queue import SimpleQueue

from ..errors import ConfigError, quote

__all__ = ["audit_to"]

_LOGGER = "asyncsync.audit"


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
    logger, queue = logging.getLogger(_LOGGER), SimpleQueue[logging.LogRecord]()
    handler, listener = QueueHandler(queue), QueueListener(queue, file)
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
        file.close()


class _File(WatchedFileHandler):
    """For its owner alone, and never through a link."""

    def __init__(self, path: str) -> None:
        self._failed = False
        super().__init__(path, encoding="ascii")

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return open(os.open(self.baseFilename, flags, 0o600), "w", encoding="ascii")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - its name in logging
        """Say once that lines are missing, instead of a traceback for each of them."""
        del record
        if not self._failed:
            self._failed = True
            reason = getattr(sys.exc_info()[1], "strerror", None) or "it cannot be written"
            sys.stderr.write(
                f"asyncsync: the audit log has gaps from now on: {quote(self.baseFilename)}: "
                f"{reason}\n"
            )
