"""The grammar of the command line: click turns arguments into a Job, the runner runs it."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError, quote
from ..location import Location
from ..version import __version__
from .job import Job, Limits, Links, Options, Patterns
from .nodes import head, join
from .options import (
    again,
    local,
    location,
    place_of,
    seconds,
    switch,
    with_dry_run,
    with_group,
    with_limits,
    with_options,
    with_patterns,
    with_step,
)

if TYPE_CHECKING:
    from ..storage.groups import Group
    from .runner import World

__all__ = ["app", "main"]

_TOKEN = re.compile(r"asj?1\.[A-Za-z0-9_.-]*")


def main(argv: Sequence[str] | None = None, world: World | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        job = app(args=args or ["--help"], prog_name="asyncsync", standalone_mode=False)
    except (click.UsageError, ConfigError) as exc:
        return _refuse(args, exc, world)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except OSError as exc:  # --help or --version, to where nothing can be written
        sys.stderr.write(f"asyncsync: error: cannot print: {exc.strerror}\n")
        return 1
    if not isinstance(job, Job):  # --help or --version, which have printed
        return int(job or 0) if args else ConfigError.exit_code
    from .runner import run_job, this_process

    return run_job(job, world or this_process())


def _refuse(args: Sequence[str], exc: Exception, world: World | None) -> int:
    """Say what is wrong with the arguments; nothing has run."""
    from .output import Output
    from .runner import report_failure, this_process

    world = world or this_process()
    options = Options(json="--json" in args, verbose="-v" in args or "--verbose" in args)
    output = Output(options, stdout=world.stdout, stderr=world.stderr)
    text = exc.format_message() if hasattr(exc, "format_message") else str(exc)
    error = ConfigError(_without_secrets(text.rstrip("."), args))
    if not isinstance(exc, ConfigError):
        error = ConfigError(f"{error}; see asyncsync --help")
    command = next((arg for arg in args if not arg.startswith("-")), "")
    return report_failure(output, command if command in app.commands else "", error)


def _without_secrets(text: str, args: Sequence[str]) -> str:
    """Take locations that are refused out of a message: they may hold keys.

    They may follow the name of an option (`--jobs=`, `-j`), and a message may quote them.
    """
    parts = [part for arg in args for part in (arg, arg.partition("=")[2], arg[2:])]
    for part in filter(None, parts):
        try:
            Location.parse(part)
        except ConfigError:
            text = text.replace(part, "...").replace(repr(part)[1:-1], "...")
    return _TOKEN.sub("...", text)


# -- the commands


class _InOrder(click.Group):
    """Lists its commands in the order in which people meet them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, epilog="Exit codes, and what --json writes: docs/cli.md")
@click.version_option(
    __version__, message="asyncsync %(version)s", help="Print the version and stop."
)
def app() -> None:
    """Moves checkpoints to where they are safe and back again, whole or not at all.

    A LOCATION is a path, or a URL such as s3://bucket/run or gs://bucket/run.
    """


@app.command("up")
@click.argument("source", metavar="SRC")
@location
@with_patterns
@click.option(
    "--rolling/--sealed",
    default=None,
    help="A tree that keeps changing, or a checkpoint. Default: as it is; else sealed.",
)
@switch("--replace", text="Replace another checkpoint of that name.")
@switch("--no-delete", text="Keep in a rolling tree what is gone from SRC.")
@click.option(
    "--links",
    type=click.Choice(["refuse", "follow"]),
    default="refuse",
    show_default=True,
    help="Symbolic links in the source.",
)
@with_step
@with_group
@with_dry_run
@with_limits
@with_options
def _up(  # noqa: PLR0913 - a parameter is an option here
    *,
    source: str,
    location: str,
    patterns: Patterns,
    rolling: bool | None,
    replace: bool,
    no_delete: bool,
    links: Links,
    step: int | None,
    group: Group | None,
    dry_run: bool,
    limits: Limits,
    options: Options,
) -> Job:
    """Commit the local directory SRC to LOCATION."""
    from . import commands

    if dry_run and group is not None:
        raise ConfigError("--dry-run looks at one directory alone; leave out --group with it")
    place = place_of(location)
    work = partial(
        commands.up,
        source=local(source, "up SRC LOCATION"),
        location=place,
        patterns=patterns,
        kind=None if rolling is None else "rolling" if rolling else "sealed",
        replace=replace,
        delete=not no_delete,
        links=links,
        step=step,
        group=group,
        limits=limits,
        dry_run=dry_run,
    )
    return Job(command="up", options=options, work=work, unfinished=again(place))


@app.command("down")
@location
@click.argument("target", metavar="DST")
@with_patterns
@switch("--allow-unverified", text="Read a tree that has no manifest.")
@with_dry_run
@with_limits
@with_options
def _down(
    *,
    location: str,
    target: str,
    patterns: Patterns,
    allow_unverified: bool,
    dry_run: bool,
    limits: Limits,
    options: Options,
) -> Job:
    """Bring the tree at LOCATION into the local directory DST, verified."""
    from . import commands

    path = local(target, "down LOCATION DST")
    work = partial(
        commands.down,
        location=place_of(location),
        target=path,
        patterns=patterns,
        allow_unverified=allow_unverified,
        limits=limits,
        dry_run=dry_run,
    )
    return Job(command="down", options=options, work=work, unfinished=again(path))


@app.command("restore")
@location
@click.argument("target", metavar="DIR")
@switch("--latest", text="The newest commit; this is the default.")
@with_step
@with_patterns
@switch("--fallback", text="Use an older commit if the newest is damaged.")
@click.option(
    "copies",
    "--copy",
    metavar="LOCATION",
    multiple=True,
    help="Where commits may be as well, and nearer. Repeatable.",
)
@with_limits
@with_options
def _restore(  # noqa: PLR0913 - as of up
    *,
    location: str,
    target: str,
    latest: bool,
    step: int | None,
    patterns: Patterns,
    fallback: bool,
    copies: tuple[str, ...],
    limits: Limits,
    options: Options,
) -> Job:
    """Bring the newest commit at or below LOCATION, or that of a step, into DIR."""
    from . import commands

    if latest and step is not None:
        raise ConfigError("--latest and --step exclude each other; give one of them")
    path = local(target, "restore LOCATION DIR")
    work = partial(
        commands.restore,
        location=place_of(location),
        target=path,
        step=step,
        patterns=patterns,
        fallback=fallback,
        copies=[place_of(copy) for copy in copies],
        limits=limits,
    )
    return Job(command="restore", options=options, work=work, unfinished=again(path))


@app.command("verify")
@location
@with_limits
@with_options
def _verify(*, location: str, limits: Limits, options: Options) -> Job:
    """Read the commit at LOCATION and compare every byte with its manifest."""
    from . import commands

    place = place_of(location)
    work = partial(commands.verify, location=place, limits=limits)
    return Job(
        command="verify", options=options, work=work, unfinished=f"{quote(place)}: not verified"
    )


@app.command("ls")
@location
@with_options
def _ls(*, location: str, options: Options) -> Job:
    """List the commits at and below LOCATION, newest first."""
    from . import commands

    return Job(
        command="ls", options=options, work=partial(commands.ls, location=place_of(location))
    )


@app.command("rm")
@location
@switch("--yes", "-y", text="Do not ask.")
@switch("--allow-uncommitted", text="Delete files that no manifest lists too.")
@with_options
def _rm(*, location: str, yes: bool, allow_uncommitted: bool, options: Options) -> Job:
    """Delete the commit at LOCATION, with the commits inside it."""
    from . import commands

    place = place_of(location)
    work = partial(commands.rm, location=place, yes=yes, allow_uncommitted=allow_uncommitted)
    unfinished = f"{quote(place)}: not deleted, or not completely; the same command finishes it"
    return Job(command="rm", options=options, work=work, unfinished=unfinished)


@app.command("doctor")
@location
@switch("--clean", text="Remove what interrupted syncs left there.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="With --clean: how old.",
)
@with_options
def _doctor(*, location: str, clean: bool, older_than: float, options: Options) -> Job:
    """Find out what LOCATION can do and what is missing there."""
    from . import commands

    older_than_s = older_than * 3600 if clean else None
    work = partial(commands.doctor, location=place_of(location), older_than_s=older_than_s)
    return Job(command="doctor", options=options, work=work)


@app.command("watch")
@click.argument("source", metavar="DIR")
@location
@seconds("--period", 60.0, "Between two syncs of what is no checkpoint.")
@seconds("--settle", 10.0, "How long a checkpoint must not have changed.")
@click.option(
    "--checkpoints",
    metavar="PATTERN",
    multiple=True,
    help="How checkpoint directories are named.  [default: checkpoint[-_]*/]",
)
@click.option(
    "--exclude", metavar="PATTERN", multiple=True, help="Leave out what matches. Repeatable."
)
@with_limits
@with_options
def _watch(
    *,
    source: str,
    location: str,
    period: float,
    settle: float,
    checkpoints: tuple[str, ...],
    exclude: tuple[str, ...],
    limits: Limits,
    options: Options,
) -> Job:
    """Sync the local directory DIR to LOCATION as it changes, until it is stopped.

    Checkpoints go up once they are complete; what vanishes from DIR stays at LOCATION.
    """
    from ..watching import CHECKPOINTS
    from .watch import watch

    for name, value in (("period", period), ("settle", settle)):
        if not math.isfinite(value):
            raise ConfigError(f"--{name} {value:g} is no time; give seconds above 0")
    work = partial(
        watch,
        directory=local(source, "watch DIR LOCATION"),
        location=place_of(location),
        period_s=period,
        settle_s=settle,
        checkpoints=checkpoints or CHECKPOINTS,
        exclude=exclude,
        limits=limits,
    )
    return Job(command="watch", options=options, work=work, until_stopped=True)


app.add_command(head)
app.add_command(join)


@app.command("demo")
@click.option(
    "--to", metavar="LOCATION", help="Where checkpoints go and stay; also s3:// or gs://."
)
@switch("--keep", text="Keep the temporary directory of the run.")
@with_options
def _demo(*, to: str | None, keep: bool, options: Options) -> Job:
    """Train, kill the training in the middle of a checkpoint, restore, finish, compare."""
    from .demo import demo

    work = partial(demo, to=None if to is None else place_of(to), keep=keep)
    return Job(
        command="demo", options=options, work=work, unfinished="stopped; nothing is left running"
    )
