"""The grammar of the commands by which nodes find each other: `head` and `join`."""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from ..errors import ConfigError, quote
from ..location import Location
from ..secrets import Secret
from ..wire.joining import Join
from ..wire.tokens import claims_of
from .job import Job, Options
from .options import as_one, local, place_of, switch, with_options

__all__ = ["head", "join"]

_DEFAULT_ALLOW = "push,pull"
_MAX_BYTES = 64 * 1024
_DAY_S = 24 * 3600
_days = click.FloatRange(min=0, max=3650)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What `head` does instead of serving, or before it."""

    init: bool
    token: bool
    rotate: bool
    revoke: tuple[str, ...]
    revoke_experiment: tuple[str, ...]
    status: bool

    @property
    def name(self) -> str:
        """The one that was asked for; empty: none.

        Raises:
            ConfigError: there are several.
        """
        names = ("init", "token", "rotate", "revoke", "status")
        asked = [name for name in names if getattr(self, name)]
        if self.revoke_experiment and not self.revoke:
            asked.append("revoke")
        if len(asked) > 1:
            raise ConfigError(f"--{asked[0]} and --{asked[1]} exclude each other; give one of them")
        return asked[0] if asked else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the token allows that is handed out."""

    scope: str | None
    allow: str | None
    days: float | None

    @property
    def given(self) -> bool:
        return (self.scope, self.allow, self.days) != (None, None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What is served, and where."""

    root: str | None
    listen: str | None
    name: tuple[str, ...]
    read_only: bool
    forward: str | None
    audit: str | None
    state: str | None


_with_action = as_one(
    "action",
    Action,
    switch("--init", text="Set up TLS and a key first, and print a join string."),
    switch("--token", text="Print another join string."),
    switch("--rotate", text="Use another key, and print a join string of it."),
    click.option(
        "--revoke",
        metavar="ID",
        multiple=True,
        help="Refuse this token from now on; - reads its join string. Repeatable.",
    ),
    click.option(
        "--revoke-experiment",
        metavar="NAME",
        multiple=True,
        help="Refuse all tokens for that tree and below it. Repeatable.",
    ),
    switch("--status", text="Say how it is set up, and what waits to be carried on."),
)
_with_grant = as_one(
    "grant",
    Grant,
    click.option("--scope", metavar="TREE", help="The tree that a join string is for.  [all]"),
    click.option(
        "--allow", metavar="OPERATIONS", help=f"What it allows there.  [{_DEFAULT_ALLOW}]"
    ),
    click.option("--days", type=_days, metavar="N", help="How long it is good.  [7]"),
)
_with_place = as_one(
    "place",
    Place,
    click.option("--root", metavar="DIR", help="The directory whose trees are served."),
    click.option("--listen", metavar="HOST:PORT", help="Where to listen.  [127.0.0.1:7420]"),
    click.option(
        "--name",
        metavar="NAME",
        multiple=True,
        help="With --init: name or address by which workers reach it. Repeatable.",
    ),
    switch("--read-only", text="Nothing is written."),
    click.option("--forward", metavar="LOCATION", help="Carry what is committed on to there."),
    click.option("--audit", metavar="FILE", help="Note who has changed what, or was refused."),
    click.option(
        "--state", metavar="DIR", help="Where keys are kept.  [~/.local/state/asyncsync/head]"
    ),
)


@click.command("head")
@_with_place
@_with_action
@_with_grant
@click.option(
    "--overlap",
    type=_days,
    metavar="DAYS",
    help="With --rotate: how long older join strings stay good.  [7]",
)
@with_options
def head(
    *, place: Place, action: Action, grant: Grant, overlap: float | None, options: Options
) -> Job:
    """Serve the trees below DIR to other nodes, until it is stopped.

    A worker joins with the line that --init or --token prints: asyncsync join
    """
    try:
        from . import head as commands
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"a head needs the package {exc.name}: pip install 'asyncsync[head]'"
        ) from exc

    name = action.name
    _check_grant(name, grant, overlap)
    state = commands.state_at(_path("--state", place.state))
    wanted = commands.wanted(
        grant.scope or "",
        _DEFAULT_ALLOW if grant.allow is None else grant.allow,
        7.0 if grant.days is None else grant.days,
    )
    if name in ("token", "rotate", "revoke", "status"):
        _check_nothing_else(name, place)
        if name == "rotate":
            overlap_s = (7.0 if overlap is None else overlap) * commands.DAY_S
            work = partial(commands.rotate, state=state, grant=wanted, overlap_s=overlap_s)
        elif name == "token":
            work = partial(commands.token, state=state, grant=wanted)
        elif name == "revoke":
            _check_no_secret(action.revoke)
            tokens = [_id_of(_line(None)) if one == "-" else one for one in action.revoke]
            experiments = action.revoke_experiment
            work = partial(commands.revoke, state=state, tokens=tokens, experiments=experiments)
        else:
            work = partial(commands.status, state=state)
        return Job(command="head", options=options, work=work)
    root = _path("--root", place.root)
    if root is None and name != "init":
        raise ConfigError("head serves a directory: asyncsync head --root DIR")
    _check_service(place, root)
    work = partial(
        commands.run,
        state=state,
        root=root,
        listen=place.listen,
        names=place.name,
        readonly=place.read_only,
        forward=None if place.forward is None else _location(place.forward),
        audit=_path("--audit", place.audit),
        grant=wanted if name == "init" else None,
    )
    return Job(command="head", options=options, work=work, until_stopped=root is not None)


def _id_of(line: Secret) -> str:
    return claims_of(Join.parse(line).token).id


def _path(option: str, text: str | None) -> str | None:
    if text is None:
        return None
    if not text:
        raise ConfigError(f"{option} is empty; name a path, or leave it out")
    return local(text, f"head {option} PATH")


def _location(text: str) -> Location:
    if not text:
        raise ConfigError("--forward is empty; name a location, or leave it out")
    return Location.parse(place_of(text))


def _check_grant(name: str, grant: Grant, overlap: float | None) -> None:
    if grant.given and name in ("", "status", "revoke"):
        raise ConfigError("--scope, --allow and --days are of the join string that --token prints")
    if grant.days is not None and not grant.days * _DAY_S >= 1:  # also what is no number
        raise ConfigError(f"--days {grant.days:g} would be over at once; give a number above 0")
    if overlap is not None and (name != "rotate" or not overlap >= 0):
        raise ConfigError("--overlap belongs to --rotate; it is a number of days")


def _check_nothing_else(name: str, place: Place) -> None:
    given = [
        option
        for option in ("root", "listen", "name", "read_only", "forward", "audit")
        if getattr(place, option)
    ]
    if given:
        option = given[0].replace("_", "-")
        raise ConfigError(f"--{name} serves nothing, so --{option} means nothing; leave it out")


def _check_service(place: Place, root: str | None) -> None:
    if root is None and (place.read_only or place.forward or place.audit):
        raise ConfigError(
            "--read-only, --forward and --audit are of a head that serves; add --root DIR"
        )
    if place.read_only and place.forward:
        raise ConfigError("nothing is committed at a head with --read-only; leave --forward out")


@click.command("join")
@click.argument("words", nargs=-1, metavar="")
@click.option("--from", "source", metavar="FILE", help="A file that holds the join string.")
@with_options
def join(*, words: tuple[str, ...], source: str | None, options: Options) -> Job:
    """Join the head that printed a join string, so that its locations work on this node.

    The join string is read from standard input, from --from FILE, from ASYNCSYNC_JOIN, or asked
    for: never from the command line, which other users can see.
    """
    from .joining import join as run

    _check_no_secret(words)
    if words:
        raise ConfigError("join takes no arguments; it reads the join string from standard input")
    work = partial(run, line=_line(source))
    return Job(command="join", options=options, work=work, unfinished="not joined")


def _check_no_secret(words: tuple[str, ...]) -> None:
    if any("as1." in word or "asj1." in word for word in words):
        raise ConfigError(
            "other users can see the command line, so that join string is not secret any more: "
            "give the next one to `asyncsync join` on standard input, and run "
            "`asyncsync head --rotate --overlap 0` on the head"
        )


def _line(source: str | None) -> Secret:
    """The join string, from wherever it comes. Before a loop runs: then Ctrl-C ends it at once."""
    if source is not None:
        text = _read_file(source)
    else:
        stdin = sys.stdin
        asked = stdin is not None and stdin.isatty()
        text = "" if stdin is None or asked else stdin.readline(_MAX_BYTES).strip()
        text = text or os.environ.get("ASYNCSYNC_JOIN", "")
        if not text and asked:
            text = getpass.getpass("Join string (it is not shown): ")
    if not text.strip():
        raise ConfigError(
            "there is no join string on standard input; take the line that `asyncsync head "
            "--token` prints on the head"
        )
    return Secret(text)


def _read_file(source: str) -> str:
    try:
        with Path(source).open("rb") as file:
            text = file.read(_MAX_BYTES).decode("ascii", "replace")
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or "no file can have that name"
        raise ConfigError(f"--from {quote(source)}: {reason}; name the file") from exc
    return text.strip().partition("\n")[0]
