"""What the program says: results and JSON on standard output, the rest on standard error."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

from ..errors import AsyncSyncError, TransferError
from ..events import Event
from .job import Options

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["SCHEMA", "Output", "Stream", "describe_error", "event_name", "one_line"]

SCHEMA = 1
"""Version of the JSON lines; a field that changes its meaning or goes away raises it."""


class Stream:
    """A text stream that may go away without taking the work with it.

    Once a write fails, everything further is dropped. `error` keeps the reason, unless it is that
    the reader left, as `head` does when it has seen enough.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.error: OSError | None = None
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except OSError as exc:
                self._let_go(self._stream, exc)
        return len(text)

    def flush(self) -> None:
        """Nothing waits here: every write is flushed."""

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _let_go(self, stream: TextIO, exc: OSError) -> None:
        self._stream = None
        if not isinstance(exc, BrokenPipeError):
            self.error = exc
        try:
            # What is still buffered would fail once more when the interpreter ends.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        except OSError:
            return


class Output:
    """The two streams, and what goes where."""

    def __init__(self, options: Options, *, stdout: TextIO | None, stderr: TextIO | None) -> None:
        self.options = options
        self.stdout = Stream(stdout)
        self.stderr = Stream(stderr)

    def emit(self, event: str, fields: Mapping[str, object]) -> None:
        """One JSON object on standard output; nothing without --json."""
        if self.options.json:
            record = {"v": SCHEMA, "event": event, **fields}
            # ASCII only, so that a name of broken bytes cannot break the line.
            self.stdout.write(json.dumps(record) + "\n")

    def emit_event(self, event: Event) -> None:
        """What the library reported, as it is."""
        self.emit(event_name(event), asdict(event))

    def result(self, text: str) -> None:
        """What the command was asked for: to standard output, unless JSON goes there."""
        if not self.options.json:
            self.stdout.write(text + "\n")
        else:
            self.note(text)

    def note(self, text: str) -> None:
        """A line for people, on standard error; not with -q."""
        if not self.options.quiet:
            self.stderr.write(text + "\n")

    def error(self, text: str) -> None:
        """The line that says why it failed, on standard error; also with -q."""
        self.stderr.write(f"asyncsync: error: {one_line(text)}\n")

    def render(self, renderable: RenderableType) -> str:
        """A rich table as text: colored on a terminal, never cut elsewhere."""
        from rich.console import Console

        stream = self.stderr if self.options.json else self.stdout
        page = io.StringIO()
        terminal = stream.isatty()
        console = Console(
            file=page,
            force_terminal=terminal,
            width=None if terminal else 10_000,
            markup=False,
            highlight=False,
        )
        console.print(renderable)
        return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def event_name(event: object) -> str:
    """`SourceChanged` as `source_changed`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


def one_line(text: str) -> str:
    """`text` without anything that could move a terminal's cursor."""
    return "".join(
        c if c.isprintable() else " " if c == "\n" else c.encode("unicode_escape").decode()
        for c in text
    )


def describe_error(exc: BaseException, exit_code: int) -> dict[str, object]:
    """The fields of the JSON object `error`."""
    fields: dict[str, object] = {
        "class": type(exc).__name__,
        "message": str(exc),
        "exit_code": exit_code,
    }
    if isinstance(exc, AsyncSyncError):
        fields |= {"side": exc.side, "paths": list(exc.paths)}
    if isinstance(exc, TransferError):
        fields["failures"] = [{"class": type(f).__name__, "message": str(f)} for f in exc.failures]
    return fields
