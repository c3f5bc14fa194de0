"""What a head tells of itself, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Forwarded", "HeadEvent", "Listener", "Listening", "NotForwarded", "Renewed", "Vanished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """It serves from now on. `address` is that by which workers reach it."""

    location: str
    address: str
    root: str
    readonly: bool
    expires_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewed:
    """It uses another key, or another certificate; `reason` says which, or why it could not."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """A commit is at the place that commits are carried on to."""

    tree: str
    identity: str
    location: str
    files: int
    size_bytes: int
    sent_bytes: int
    durability: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotForwarded:
    """It is not, or the root could not be read. It is tried again after `wait_s` seconds.

    `permanent` says that somebody has to change something before that helps.
    """

    tree: str
    location: str
    reason: str
    permanent: bool
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Vanished:
    """A tree was deleted from the head before it was carried on."""

    tree: str


HeadEvent = Listening | Renewed | Forwarded | NotForwarded | Vanished
Listener = Callable[[HeadEvent], None]
