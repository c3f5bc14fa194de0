"""Arguments and options that several commands take, and what becomes of their values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, quote
from ..location import Location
from ..units import parse_bytes
from .job import Limits, Options, Patterns

if TYPE_CHECKING:
    from ..storage.groups import Group

__all__ = [
    "Decorator",
    "again",
    "as_one",
    "limits_of",
    "local",
    "location",
    "place_of",
    "seconds",
    "switch",
    "with_dry_run",
    "with_group",
    "with_limits",
    "with_options",
    "with_patterns",
    "with_step",
]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def local(text: str, usage: str) -> str:
    """A local directory as a path; the usual mistake is to swap source and target."""
    where = Location.parse(text)
    if where.scheme != "file":
        raise ConfigError(
            f"{quote(str(where))} is not a local directory; the order is asyncsync {usage}"
        )
    return where.path


def place_of(text: str) -> str:
    return str(Location.parse(text))


def limits_of(jobs: int | None, bwlimit: str | None, timeout: float | None) -> Limits:
    rate = parse_bytes(bwlimit) if bwlimit is not None else None
    if rate == 0:
        raise ConfigError("--bwlimit 0 would never end; leave it out for no limit")
    if timeout is not None and not 0 < timeout < math.inf:
        raise ConfigError(f"--timeout {timeout:g} is no time; give seconds above 0")
    return Limits(jobs=jobs, bwlimit=rate, timeout_s=timeout)


def group_of(group: str | None, rank: int | None, size: int | None) -> Group | None:
    given = (group, rank, size)
    if None in given and given != (None, None, None):
        raise ConfigError("--group, --rank and --size belong together; give all three or none")
    if group is None or rank is None or size is None:
        return None
    from ..storage.groups import Group

    return Group(id=group, rank=rank, size=size)


def again(place: str) -> str:
    """What people need to know when a signal stopped a sync before its commit."""
    return (
        f"{quote(place)}: not committed; what was committed there before is untouched, "
        "the same command continues"
    )


def switch(*names: str, text: str) -> Decorator:
    return click.option(*names, is_flag=True, help=text)


def as_one(name: str, make: Callable[..., object], *options: Decorator) -> Decorator:
    """Options that reach the command as one value: what `make` makes of them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def call(**given: Any) -> Any:
            mine = {option: given.pop(option) for option in signature(make).parameters}
            return command(**given, **{name: make(**mine)})

        described: Callable[..., Any] = call
        for option in reversed(options):  # click lists the last one first
            described = option(described)
        return described

    return decorate


def seconds(name: str, default: float, text: str) -> Decorator:
    range_ = click.FloatRange(min=0, min_open=True)
    return click.option(
        name, type=range_, default=default, show_default=True, metavar="SECONDS", help=text
    )


location = click.argument("location", metavar="LOCATION")
with_patterns = as_one(
    "patterns",
    Patterns,
    click.option(
        "--exclude", metavar="PATTERN", multiple=True, help="Leave out what matches. Repeatable."
    ),
    click.option(
        "--include", metavar="PATTERN", multiple=True, help="Take only what matches. Repeatable."
    ),
)
with_limits = as_one(
    "limits",
    limits_of,
    click.option(
        "--jobs", "-j", type=click.IntRange(min=1), metavar="N", help="Files moved at once."
    ),
    click.option("--bwlimit", metavar="SIZE", help="Bytes per second, like 10MiB."),
    click.option(
        "--timeout", type=float, metavar="SECONDS", help="Time allowed for the whole sync."
    ),
)
with_options = as_one(
    "options",
    Options,
    switch("--json", text="One JSON object per line on stdout."),
    switch("--quiet", "-q", text="Only errors and results."),
    switch("--verbose", "-v", text="Details and tracebacks."),
)
with_dry_run = switch("--dry-run", "-n", text="Print the plan, change nothing.")
with_step = click.option("--step", type=click.IntRange(min=0), metavar="N", help="Training step.")
with_group = as_one(
    "group",
    group_of,
    click.option(
        "--group", metavar="ID", help="SRC is the part of one rank; all parts become one commit."
    ),
    click.option("--rank", type=click.IntRange(min=0), metavar="N", help="Whose part, from 0."),
    click.option("--size", type=click.IntRange(min=1), metavar="N", help="How many ranks."),
)
