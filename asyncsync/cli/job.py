"""A command with its arguments: what the grammar hands to the runner. Cheap to import."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .runner import Session

__all__ = ["Job", "Limits", "Links", "Options", "Outcome", "Patterns"]

Links = Literal["refuse", "follow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What every command takes."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Patterns:
    """Which files take part."""

    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a command may use: None is the syncer's own default."""

    jobs: int | None = None
    bwlimit: float | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a command ended: the fields of its summary, the words for people, the exit code."""

    summary: Mapping[str, object] = field(default_factory=dict)
    text: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A command with its arguments, not yet started.

    Attributes:
        unfinished: what people have to know when a signal stops it before its commit.
        until_stopped: a signal is its normal end: it sets `Session.stop`, and cancels nothing.
    """

    command: str
    options: Options
    work: Callable[[Session], Awaitable[Outcome]]
    unfinished: str = "stopped"
    until_stopped: bool = False
