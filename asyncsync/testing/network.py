"""What networks do to connections, as values; and what becomes of bytes, decided without sockets.

An offset counts the bytes that came in one direction of one connection, whatever the faults made
of them. A fault acts as soon as the bytes before its offset have been sent on; at offset 0, when
the first byte comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

__all__ = [
    "Direction",
    "Drop",
    "Finish",
    "Flip",
    "HangUp",
    "Latency",
    "LineFault",
    "NetworkFault",
    "Pace",
    "Repeat",
    "Reset",
    "Stall",
    "steps",
]

Direction = Literal["request", "response"]

_LEAST = {"connection": 1, "at": 0, "size_bytes": 1, "every_s": 0, "delay_s": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFault:
    """What happens to connections: to all, to the n-th, or with `sticky` also to later ones.

    Raises:
        ConfigError: a number is too small for the fault to act.
    """

    connection: int | None = None
    sticky: bool = False

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name, None)
            if value is not None and value < least:
                raise ConfigError(f"{type(self).__name__}: {name} is {value}, not {least} or more")

    def meets(self, number: int) -> bool:
        """Whether it happens to the connection of this number, counted from 1."""
        if self.connection is None or number == self.connection:
            return True
        return self.sticky and number > self.connection


@dataclass(frozen=True, slots=True, kw_only=True)
class HangUp(NetworkFault):
    """The connection is accepted and ended with FIN; the target does not hear of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(NetworkFault):
    """All bytes of a direction, and its end, are under way for so long; at most 1 MiB at once."""

    on: Direction = "request"
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFault(NetworkFault):
    """A fault at byte `at` of one direction."""

    on: Direction = "request"
    at: int = 0

    def cuts(self, start: int, end: int) -> Iterable[int]:
        """Offsets at which it treats bytes in another way than before."""
        return (self.at,)

    def acts(self, here: int, start: int, end: int) -> bool:
        """Whether it acts at `here`, when bytes `start` to `end` have come."""
        return here == self.at and (here > start or here == 0)

    def alter(self, here: int, piece: bytes) -> bytes:
        """What becomes of a piece that begins at `here` and in which there is no cut."""
        return piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(LineFault):
    """Both ends get RST. On the response at 0: the request was heard, all of its answer is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish(LineFault):
    """The receiver gets FIN; what the sender sends after it is lost. The other way stays open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall(LineFault):
    """Nothing more moves in this direction until it is released or the connection is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat(LineFault):
    """The `size_bytes` bytes before `at` come twice."""

    size_bytes: int = 1

    def __post_init__(self) -> None:
        LineFault.__post_init__(self)
        if self.size_bytes > self.at:
            raise ConfigError(f"Repeat: size_bytes is {self.size_bytes}, and at is only {self.at}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _ByteFault(LineFault):
    """Acts on byte `at` itself, so not before it comes."""

    def acts(self, here: int, start: int, end: int) -> bool:
        return here == self.at and here < end


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip(_ByteFault):
    """One bit of byte `at` is another; 0 is the lowest."""

    bit: int = 0

    def __post_init__(self) -> None:
        _ByteFault.__post_init__(self)
        if self.bit not in range(8):
            raise ConfigError(f"Flip: bit is {self.bit}, not 0 to 7")

    def cuts(self, start: int, end: int) -> Iterable[int]:
        return (self.at, self.at + 1)

    def alter(self, here: int, piece: bytes) -> bytes:
        return bytes([piece[0] ^ 1 << self.bit]) if piece and here == self.at else piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(_ByteFault):
    """`size_bytes` bytes from `at` on are lost."""

    size_bytes: int = 1

    def cuts(self, start: int, end: int) -> Iterable[int]:
        return (self.at, self.at + self.size_bytes)

    def alter(self, here: int, piece: bytes) -> bytes:
        return b"" if self.at <= here < self.at + self.size_bytes else piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace(_ByteFault):
    """From `at` on, `size_bytes` bytes pass every `every_s` seconds: a trickle, a bandwidth.

    64 kbit/s is `Pace(size_bytes=800, every_s=0.1)`. What was not used is not saved up.
    """

    size_bytes: int = 1
    every_s: float = 1.0

    def cuts(self, start: int, end: int) -> Iterable[int]:
        return range(
            max(self.at, start - (start - self.at) % self.size_bytes), end, self.size_bytes
        )

    def acts(self, here: int, start: int, end: int) -> bool:
        return self.at <= here < end and (here - self.at) % self.size_bytes == 0


def steps(
    faults: Sequence[LineFault], start: int, data: bytes, before: bytes = b""
) -> Iterator[bytes | LineFault]:
    """Decide what happens to bytes of one direction: which pass, and which faults act when.

    Pure, and the same however the bytes are cut into pieces.

    Args:
        faults: those of this direction.
        start: how many bytes came before.
        data: the bytes, at least one.
        before: the last of those that came before, as many as a Repeat needs.
    """
    end = start + len(data)
    faults = sorted(faults, key=lambda fault: isinstance(fault, _ByteFault))  # in order of time
    cuts = {start, end}.union(*(fault.cuts(start, end) for fault in faults))
    marks = sorted(cut for cut in cuts if start <= cut <= end)
    for here, there in zip(marks, [*marks[1:], end], strict=True):
        for fault in faults:
            if fault.acts(here, start, end):
                yield fault
                if isinstance(fault, Repeat):
                    yield (before + data[: here - start])[-fault.size_bytes :]
        piece = data[here - start : there - start]
        for fault in faults:
            piece = fault.alter(here, piece)
        if piece:
            yield piece
