"""How far a sync is: one tally, shown as bars on a terminal and as lines elsewhere."""

from __future__ import annotations

import os
from collections import deque
from typing import IO, TYPE_CHECKING, Protocol, cast

from ..clock import Clock
from ..errors import quote
from ..events import (
    Committed,
    Event,
    FellBack,
    Kept,
    Moved,
    Planned,
    Reduced,
    Retrying,
    Skipped,
    SourceChanged,
    Stalled,
    Started,
)
from ..units import format_bytes, format_seconds
from .output import Output, Stream, one_line

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

__all__ = ["Bars", "Display", "Lines", "Monitor", "Silence", "Tally", "choose_display"]

RATE_WINDOW_S = 10.0
ACTIVE_S = 3.0
ACTIVE_FILES = 4


class Tally:
    """What has been planned and what has moved, and how fast."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()
        self._active: dict[str, tuple[int, float]] = {}
        self.moving = False
        self.committed = False
        self.moved_bytes = 0
        self.total_bytes = 0
        self.moved_files = 0
        self.total_files = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._start()
        elif isinstance(event, Planned):
            self.total_bytes, self.total_files = event.send_bytes, event.send_files
            self._start_moving()
        elif isinstance(event, Moved):
            self._move(event)
        elif isinstance(event, Committed):
            self.moving, self.committed = False, True

    def _start(self) -> None:
        self.moving = self.committed = False
        self.moved_bytes = self.total_bytes = self.moved_files = self.total_files = 0

    def _start_moving(self) -> None:
        self.moving = True
        self._samples = deque([(self._clock.monotonic(), self.moved_bytes)])

    def _move(self, event: Moved) -> None:
        if not self.moving:
            self._start_moving()
        self.moved_bytes, self.total_bytes = event.moved_bytes, event.total_bytes
        self.moved_files, self.total_files = event.moved_files, event.total_files
        now = self._clock.monotonic()
        done, _ = self._active.pop(event.path, (0, 0.0))
        self._active[event.path] = (done + event.size_bytes, now)
        while len(self._active) > ACTIVE_FILES:
            self._active.pop(next(iter(self._active)))

    @property
    def rate(self) -> float:
        """Bytes per second over the last seconds; 0 while it is not known."""
        now = self._clock.monotonic()
        self._samples.append((now, self.moved_bytes))
        while now - self._samples[0][0] > RATE_WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()
        since, moved = self._samples[0]
        return (self.moved_bytes - moved) / (now - since) if now > since else 0.0

    @property
    def status(self) -> str:
        """`34%  12.0 MiB of 35.0 MiB  3.2 MiB/s  7 s left  2 of 9 files`."""
        rate = self.rate
        left = self.total_bytes - self.moved_bytes
        parts = [
            f"{100 * self.moved_bytes // self.total_bytes if self.total_bytes else 100}%",
            f"{format_bytes(self.moved_bytes)} of {format_bytes(self.total_bytes)}",
            f"{format_bytes(rate)}/s",
            f"{format_seconds(left / rate)} left" if rate else "",
            f"{self.moved_files} of {self.total_files} files",
        ]
        return "  ".join(part for part in parts if part)

    @property
    def active(self) -> list[tuple[str, int]]:
        """Files of which something moved in the last moments, and how much."""
        now = self._clock.monotonic()
        return [(path, n) for path, (n, at) in self._active.items() if now - at <= ACTIVE_S]


class Display(Protocol):
    """Shows a tally from time to time."""

    period_s: float

    def show(self, tally: Tally) -> None:
        """Called every `period_s` seconds."""
        ...

    def note(self, text: str) -> None:
        """Print a line without disturbing what is shown."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was. Again: no effect."""
        ...


class Silence:
    """Shows nothing: -q."""

    period_s = 3600.0

    def show(self, tally: Tally) -> None:
        return

    def note(self, text: str) -> None:
        return

    def close(self) -> None:
        return


class Lines:
    """A line every few seconds, for logs."""

    period_s = 5.0

    def __init__(self, stderr: Stream) -> None:
        self._stderr = stderr

    def show(self, tally: Tally) -> None:
        if tally.moving:
            self._stderr.write(f"asyncsync: {tally.status}\n")

    def note(self, text: str) -> None:
        self._stderr.write(text + "\n")

    def close(self) -> None:
        return


class Bars:
    """A bar for the whole and a line for each file that is moving, on a terminal."""

    period_s = 0.2

    def __init__(self, stderr: Stream) -> None:
        self._stderr = stderr
        self._live: Live | None = None

    def show(self, tally: Tally) -> None:
        if tally.moving:
            self._started().update(_bars(tally), refresh=True)
        else:
            self.close()

    def note(self, text: str) -> None:
        if self._live is None:
            self._stderr.write(text + "\n")
        else:
            self._live.console.print(text, soft_wrap=True)

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _started(self) -> Live:
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=cast(IO[str], self._stderr), markup=False, highlight=False)
            # The ticker refreshes it: a bar that stands still tells that the loop does.
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
        return self._live


def _bars(tally: Tally) -> Group:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, tally.total_bytes), completed=tally.moved_bytes, width=16)
    head.add_row(bar, Text(tally.status, no_wrap=True, overflow="ellipsis"))
    files = [
        Text(f"  {quote(path)}  {format_bytes(moved)}", "dim", no_wrap=True, overflow="ellipsis")
        for path, moved in tally.active
    ]
    return Group(head, *files)


def choose_display(output: Output) -> Display:
    """Bars on a terminal that can move its cursor, lines elsewhere, nothing with -q."""
    if output.options.quiet:
        return Silence()
    able = output.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return Bars(output.stderr) if able else Lines(output.stderr)


class Monitor:
    """The observer of the command line: JSON, notes for people, and the tally."""

    def __init__(self, output: Output, clock: Clock, display: Display) -> None:
        self._output = output
        self._clock = clock
        self._display = display
        self._reduced = set[Reduced]()
        self.tally = Tally(clock)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Reduced):
            if event in self._reduced:
                return  # it is of the place, not of what is done there: once is enough
            self._reduced.add(event)
        self.tally(event)
        self._output.emit_event(event)
        text = _warning(event) or (_detail(event) if self._output.options.verbose else "")
        if text:
            self.note(f"asyncsync: {one_line(text)}")

    def note(self, text: str) -> None:
        """A line for people, beside what is shown; not with -q."""
        self._display.note(text)

    async def run(self) -> None:
        """Show the tally again and again; ends by cancellation."""
        while True:
            await self._clock.sleep(self._display.period_s)
            self._display.show(self.tally)

    def close(self) -> None:
        """Nothing moves any more; the terminal is as it was, until the next event."""
        self.tally.moving = False
        self._display.close()


def _warning(event: Event) -> str:
    """What people should know of even when all goes well in the end."""
    match event:
        case Skipped() | Kept():
            verb = "left out" if isinstance(event, Skipped) else "kept"
            return f"{verb} {quote(event.path)}: {event.reason}"
        case Retrying():
            wait = format_seconds(event.wait_s)
            return f"{event.what}: {event.reason}; attempt {event.attempt} in {wait}"
        case Stalled():
            part = "" if event.part is None else f", part {event.part}"
            seconds = format_seconds(event.seconds)
            return f"nothing has arrived for {seconds}; it waits for {quote(event.path)}{part}"
        case Reduced():
            return f"warning: {quote(event.where)}: {event.reason}"
        case FellBack():
            return (
                f"{quote(event.damaged)} is of no use ({event.reason}); "
                f"{quote(event.used)} is used instead"
            )
        case _:
            return ""


def _detail(event: Event) -> str:
    """What only -v shows."""
    match event:
        case Started():
            return f"{event.direction}: {quote(event.source)} -> {quote(event.target)}"
        case Planned():
            return (
                f"{event.send_files} files to send ({format_bytes(event.send_bytes)}), "
                f"{event.skip_files} unchanged ({format_bytes(event.skip_bytes)}), "
                f"{event.delete_files} to delete"
            )
        case SourceChanged():
            return f"{quote(event.path)} changed while it was read; sending it again"
        case Committed():
            return f"{quote(event.location)}: committed {event.identity[:12]}, {event.durability}"
        case _:
            return ""
