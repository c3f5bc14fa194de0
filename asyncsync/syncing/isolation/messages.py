"""What goes over the engine's socket: messages, and the frames they travel in. No I/O.

The format is described in docs/formats/engine.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from ...units import MIB

__all__ = [
    "VERSION",
    "Bye",
    "Call",
    "Cancel",
    "Cancelled",
    "Ended",
    "Failed",
    "Frames",
    "Happened",
    "Hello",
    "Item",
    "Message",
    "Next",
    "Refused",
    "Returned",
    "Welcome",
    "encode",
]

VERSION = 1
_MAX_BYTES = 256 * MIB
_LENGTH_BYTES = 4


class Hello(msgspec.Struct, tag=True, frozen=True):
    """Who calls, and the settings of the syncer it calls."""

    version: int
    syncer: str
    settings: dict[str, Any]


class Welcome(msgspec.Struct, tag=True, frozen=True):
    version: int
    pid: int


class Refused(msgspec.Struct, tag=True, frozen=True):
    reason: str


class Call(msgspec.Struct, tag=True, frozen=True):
    id: int
    method: str
    arguments: dict[str, Any]
    observed: bool


class Next(msgspec.Struct, tag=True, frozen=True):
    id: int


class Cancel(msgspec.Struct, tag=True, frozen=True):
    id: int


class Bye(msgspec.Struct, tag=True, frozen=True):
    pass


class Happened(msgspec.Struct, tag=True, frozen=True):
    id: int | None
    event: str
    fields: dict[str, Any]


class Item(msgspec.Struct, tag=True, frozen=True):
    id: int
    value: Any


class Returned(msgspec.Struct, tag=True, frozen=True):
    id: int
    value: Any


class Failed(msgspec.Struct, tag=True, frozen=True):
    id: int
    error: dict[str, Any]


class Cancelled(msgspec.Struct, tag=True, frozen=True):
    id: int


Ended = Returned | Failed | Cancelled
Message = Hello | Welcome | Refused | Call | Next | Cancel | Bye | Happened | Item | Ended


def encode(message: Message) -> bytes:
    """One frame. ValueError if it is too long."""
    # msgspec's own encoder refuses names that are not UTF-8.
    body = json.dumps(msgspec.to_builtins(message), separators=(",", ":")).encode("ascii")
    if len(body) > _MAX_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is too long")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class Frames:
    """Puts frames together from the bytes that arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete with `data`.

        Raises:
            ValueError: no message of this protocol.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            size = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if size > _MAX_BYTES:
                raise ValueError(f"a message of {size} bytes is too long")
            end = _LENGTH_BYTES + size
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH_BYTES:end])
            del self._buffer[:end]
            yield _decode(body)


def _decode(body: bytes) -> Message:
    try:
        message: Message = msgspec.convert(json.loads(body), Message)
    except (RecursionError, msgspec.ValidationError) as exc:
        raise ValueError(f"not a message: {exc}") from exc
    return message
