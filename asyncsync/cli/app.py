"""The grammar of the command line: typer turns arguments into a Job, the runner runs it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import ConfigError, quote
from ..location import Location
from ..units import parse_bytes
from ..version import __version__
from .job import Job, Limits, Options, Patterns

if TYPE_CHECKING:
    from ..manifest import Kind
    from .runner import World

__all__ = ["app", "main"]

app = typer.Typer(
    name="asyncsync",
    help="Moves checkpoints to where they are safe and back again, whole or not at all.",
    epilog="Exit codes, and what --json writes: docs/cli.md",
    rich_markup_mode=None,  # plain help is there in half the time
    pretty_exceptions_enable=False,
)

# The class of all wrong usage; it has moved between releases of typer and is not exported.
UsageError = cast("type[Exception]", typer.BadParameter.__base__)


class LinkChoice(StrEnum):
    """What happens to symbolic links in the source."""

    refuse = "refuse"
    follow = "follow"


Place = Annotated[
    str,
    typer.Argument(
        metavar="LOCATION", help="A path, or a URL such as s3://bucket/run or gs://bucket/run."
    ),
]
Source = Annotated[str, typer.Argument(metavar="SRC", help="A local directory.")]
Target = Annotated[str, typer.Argument(metavar="DST", help="A local directory.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Leave out what matches. Repeatable."),
]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="PATTERN", help="Take only what matches. Repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Print the plan, change nothing.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, metavar="N", help="Files moved at once.")
]
Bwlimit = Annotated[
    str | None, typer.Option("--bwlimit", metavar="SIZE", help="Bytes per second, like 10MiB.")
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", help="Time allowed for the whole sync."),
]
AllowUnverified = Annotated[
    bool, typer.Option("--allow-unverified", help="Read a tree that has no manifest.")
]
Step = Annotated[int | None, typer.Option("--step", min=0, metavar="N", help="Training step.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors and results.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Details and tracebacks.")]


def main(argv: Sequence[str] | None = None, world: World | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        job = app(args=args or ["--help"], prog_name="asyncsync", standalone_mode=False)
    except (UsageError, ConfigError) as exc:
        return _refuse(args, exc, world)
    except (KeyboardInterrupt, typer.Abort):
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
    known = command in {info.name for info in app.registered_commands}
    return report_failure(output, command if known else "", error)


def _without_secrets(text: str, args: Sequence[str]) -> str:
    """Take locations that are refused out of a message: they may hold keys."""
    for arg in filter(None, args):
        try:
            Location.parse(arg)
        except ConfigError:
            text = text.replace(arg, "...")
    return text


def _local(text: str, usage: str) -> str:
    """A local directory as a path; the usual mistake is to swap source and target."""
    where = Location.parse(text)
    if where.scheme != "file":
        raise ConfigError(
            f"{quote(str(where))} is not a local directory; the order is asyncsync {usage}"
        )
    return where.path


def _place(text: str) -> str:
    return str(Location.parse(text))


def _patterns(exclude: list[str] | None, include: list[str] | None) -> Patterns:
    return Patterns(exclude=tuple(exclude or ()), include=tuple(include or ()))


def _limits(jobs: int | None, bwlimit: str | None, timeout: float | None) -> Limits:
    rate = parse_bytes(bwlimit) if bwlimit is not None else None
    if rate == 0:
        raise ConfigError("--bwlimit 0 would never end; leave it out for no limit")
    if timeout is not None and not 0 < timeout < math.inf:
        raise ConfigError(f"--timeout {timeout:g} is no time; give seconds above 0")
    return Limits(jobs=jobs, bwlimit=rate, timeout_s=timeout)


def _again(place: str) -> str:
    """What people need to know when a signal stopped a sync before its commit."""
    return (
        f"{quote(place)}: not committed; what was committed there before is untouched, "
        "the same command continues"
    )


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"asyncsync {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Moves checkpoints to where they are safe and back again, whole or not at all."""


@app.command("up")
def _up(  # noqa: PLR0913 - a parameter is an option here
    *,
    source: Source,
    location: Place,
    exclude: Exclude = None,
    include: Include = None,
    rolling: Annotated[
        bool | None,
        typer.Option(
            "--rolling/--sealed",
            help="A tree that keeps changing, or a checkpoint. Default: as it is; else sealed.",
            show_default=False,
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace another checkpoint of that name.")
    ] = False,
    links: Annotated[
        LinkChoice, typer.Option("--links", help="Symbolic links in the source.")
    ] = LinkChoice.refuse,
    step: Step = None,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    bwlimit: Bwlimit = None,
    timeout: Timeout = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Job:
    """Commit the directory SRC to LOCATION."""
    from . import commands

    place = _place(location)
    kind: Kind | None = None if rolling is None else "rolling" if rolling else "sealed"
    work = partial(
        commands.up,
        source=_local(source, "up SRC LOCATION"),
        location=place,
        patterns=_patterns(exclude, include),
        kind=kind,
        replace=replace,
        links=links.value,
        step=step,
        limits=_limits(jobs, bwlimit, timeout),
        dry_run=dry_run,
    )
    options = Options(json=json, quiet=quiet, verbose=verbose)
    return Job(command="up", options=options, work=work, unfinished=_again(place))


@app.command("down")
def _down(  # noqa: PLR0913 - a parameter is an option here
    *,
    location: Place,
    target: Target,
    exclude: Exclude = None,
    include: Include = None,
    allow_unverified: AllowUnverified = False,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    bwlimit: Bwlimit = None,
    timeout: Timeout = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Job:
    """Bring the tree at LOCATION into the directory DST, verified."""
    from . import commands

    path = _local(target, "down LOCATION DST")
    work = partial(
        commands.down,
        location=_place(location),
        target=path,
        patterns=_patterns(exclude, include),
        allow_unverified=allow_unverified,
        limits=_limits(jobs, bwlimit, timeout),
        dry_run=dry_run,
    )
    options = Options(json=json, quiet=quiet, verbose=verbose)
    return Job(command="down", options=options, work=work, unfinished=_again(path))


@app.command("restore")
def _restore(  # noqa: PLR0913 - a parameter is an option here
    *,
    location: Place,
    target: Annotated[str, typer.Argument(metavar="DIR", help="A local directory.")],
    latest: Annotated[
        bool, typer.Option("--latest", help="The newest commit; this is the default.")
    ] = False,
    step: Step = None,
    exclude: Exclude = None,
    include: Include = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Use an older commit if the newest is damaged.")
    ] = False,
    jobs: Jobs = None,
    bwlimit: Bwlimit = None,
    timeout: Timeout = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Job:
    """Bring the newest commit at or below LOCATION, or that of a step, into DIR."""
    from . import commands

    if latest and step is not None:
        raise ConfigError("--latest and --step exclude each other; give one of them")
    path = _local(target, "restore LOCATION DIR")
    work = partial(
        commands.restore,
        location=_place(location),
        target=path,
        step=step,
        patterns=_patterns(exclude, include),
        fallback=fallback,
        limits=_limits(jobs, bwlimit, timeout),
    )
    options = Options(json=json, quiet=quiet, verbose=verbose)
    return Job(command="restore", options=options, work=work, unfinished=_again(path))


@app.command("verify")
def _verify(
    *,
    location: Place,
    jobs: Jobs = None,
    bwlimit: Bwlimit = None,
    timeout: Timeout = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Job:
    """Read the commit at LOCATION and compare every byte with its manifest."""
    from . import commands

    place = _place(location)
    work = partial(commands.verify, location=place, limits=_limits(jobs, bwlimit, timeout))
    options = Options(json=json, quiet=quiet, verbose=verbose)
    return Job(
        command="verify", options=options, work=work, unfinished=f"{quote(place)}: not verified"
    )


@app.command("ls")
def _ls(location: Place, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> Job:
    """List the commits at and below LOCATION, newest first."""
    from . import commands

    options = Options(json=json, quiet=quiet, verbose=verbose)
    work = partial(commands.ls, location=_place(location))
    return Job(command="ls", options=options, work=work)


@app.command("rm")
def _rm(
    location: Place,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    allow_uncommitted: Annotated[
        bool, typer.Option("--allow-uncommitted", help="Delete files that no manifest lists too.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Job:
    """Delete the commit at LOCATION, with the commits inside it."""
    from . import commands

    place = _place(location)
    work = partial(commands.rm, location=place, yes=yes, allow_uncommitted=allow_uncommitted)
    options = Options(json=json, quiet=quiet, verbose=verbose)
    unfinished = f"{quote(place)}: not deleted, or not completely; the same command finishes it"
    return Job(command="rm", options=options, work=work, unfinished=unfinished)


@app.command("doctor")
def _doctor(
    location: Place,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what interrupted syncs left there.")
    ] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="HOURS", help="With --clean: how old.")
    ] = 24.0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Job:
    """Find out what LOCATION can do and what is missing there."""
    from . import commands

    options = Options(json=json, quiet=quiet, verbose=verbose)
    older_than_s = older_than * 3600 if clean else None
    work = partial(commands.doctor, location=_place(location), older_than_s=older_than_s)
    return Job(command="doctor", options=options, work=work)


@app.command("demo")
def _demo(
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="LOCATION", help="Where checkpoints go and stay; also s3:// or gs://."
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the temporary directory of the run.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Job:
    """Train, kill the training in the middle of a checkpoint, restore, finish, compare."""
    from .demo import demo

    work = partial(demo, to=None if to is None else _place(to), keep=keep)
    options = Options(json=json, quiet=quiet, verbose=verbose)
    return Job(
        command="demo", options=options, work=work, unfinished="stopped; nothing is left running"
    )
