"""`asyncsync head`: sets one up, runs it, and hands out join strings."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import anyio.to_thread

from ..errors import ConfigError, RefusedError, quote
from ..head import (
    Forwarded,
    HeadEvent,
    Listening,
    Note,
    Notes,
    NotForwarded,
    Renewed,
    Service,
    Settings,
    State,
    Vanished,
    check_place,
    default_state,
    join_address,
    join_string,
    serve,
    split_address,
)
from ..location import Location
from ..peer import revoke as revoke_keys
from ..secrets import Secret
from ..units import format_amount, format_bytes, format_seconds
from ..wire.claims import Operation, is_token_id
from ..wire.joining import Join
from ..wire.limits import Limits
from ..wire.names import check_tree_name
from ..wire.tokens import claims_of
from .auditing import audit_to
from .job import Outcome
from .joining import shown_time
from .output import Output, event_name
from .runner import Session

__all__ = ["DAY_S", "Wanted", "revoke", "rotate", "run", "state_at", "status", "token", "wanted"]

DAY_S = 24 * 3600.0
_LISTEN = "127.0.0.1:7420"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a join string shall allow."""

    scope: str
    operations: frozenset[Operation]
    life_s: float


def wanted(scope: str, allow: str, days: float) -> Wanted:
    """What was said, checked.

    Raises:
        ConfigError: no such operation, or no tree can have that name.
    """
    try:
        check_tree_name(scope)
        operations = frozenset(Operation(word.strip()) for word in allow.split(","))
    except RefusedError as exc:
        raise ConfigError(f"--scope: {exc}") from exc
    except ValueError:
        raise ConfigError(
            f"--allow {quote(allow) or 'nothing'}: give a list with commas of "
            f"{', '.join(Operation)}"
        ) from None
    return Wanted(scope=scope, operations=operations, life_s=days * DAY_S)


def state_at(path: str | None) -> State:
    """The state of a head there, or where it is if nothing is said."""
    return State(default_state() if path is None else Path(path))


async def run(  # noqa: PLR0913 - each is an option
    session: Session,
    *,
    state: State,
    root: str | None,
    listen: str | None,
    names: tuple[str, ...],
    readonly: bool,
    forward: Location | None,
    audit: str | None,
    grant: Wanted | None,
) -> Outcome:
    """Set a head up if `grant` is there, and serve if `root` is."""
    now = session.world.clock.now()
    if root is not None and forward is not None:
        check_place(root, forward)
    prepare = partial(_prepare, state, root, listen, names, init=grant is not None, now=now)
    settings = await anyio.to_thread.run_sync(prepare)
    if root is None:
        assert grant is not None, "the grammar asks for one of them"
        await _hand_out(session, state, settings, grant)
        session.output.note("asyncsync: then run it here: asyncsync head --root DIR")
        return Outcome(summary={"location": _location(settings)})
    service = Service(
        root=root,
        listen=settings.listen,
        names=tuple(settings.names),
        readonly=readonly,
        forward=forward,
    )
    if forward is not None and forward.scheme == "file":
        session.output.note(
            f"asyncsync: `cloud` will mean that a commit is in {quote(forward.path)}; it does not "
            "survive the loss of this machine if that is one of its own disks"
        )
    speaker = _Speaker(session.output)
    async with AsyncExitStack() as stack:
        stack.enter_context(audit_to(audit, root))
        serving = serve(service, state, clock=session.world.clock, listen=speaker)
        try:
            running = await stack.enter_async_context(serving)
        except ExceptionGroup as group:  # of what was begun beside it, and ended with it
            raise _first(group) from None
        if grant is not None:
            await _hand_out(session, state, running, grant)
        else:
            session.output.note("asyncsync: a join string for a worker: asyncsync head --token")
        await session.stop.wait()
    return Outcome(
        summary={"location": _location(running), "forwarded": speaker.forwarded},
        text=f"{_location(running)}: stopped; what was acknowledged is on the disk",
    )


def _first(error: Exception) -> Exception:
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


def _prepare(
    state: State,
    root: str | None,
    listen: str | None,
    names: tuple[str, ...],
    *,
    init: bool,
    now: float,
) -> Settings:
    """How the head is going to be reached; what it needs for that is there afterwards."""
    state.make(root)
    before = state.settings()
    listen = listen or (before.listen if before else _LISTEN)
    host, port = split_address(listen)
    known = list(names) or (before.names if before else [])
    if names and not init and not (before and before.names):
        raise ConfigError("--name is what the certificate of --init is for; add --init")
    if init:
        known = known or _names_of(host)
        if root is None and not port:
            raise ConfigError(
                "--init without --root needs a port that is known: --listen HOST:PORT"
            )
    state.keys(make=init or before is None)
    settings = Settings(
        listen=listen, address=join_address(known[0] if known else host, port), names=known
    )
    if init:
        state.certificates(known, now=now)
        state.save(settings)
    return settings


def _names_of(host: str) -> list[str]:
    """By what a head that listens there can be reached."""
    try:
        everywhere = ip_address(host).is_unspecified
    except ValueError:
        everywhere = False
    if not everywhere:
        return [host]
    names = [socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # which sends nothing, and is nobody's address
            names.insert(0, probe.getsockname()[0])
        except OSError:
            pass  # no way out of this machine: then its name has to do
    return names


async def token(session: Session, *, state: State, grant: Wanted) -> Outcome:
    """Print another join string."""
    settings = await anyio.to_thread.run_sync(_set_up, state)
    await _hand_out(session, state, settings, grant)
    return Outcome(summary={"location": _location(settings)})


async def rotate(session: Session, *, state: State, grant: Wanted, overlap_s: float) -> Outcome:
    """Use another key, and print a join string of it."""
    settings = await anyio.to_thread.run_sync(_set_up, state)
    now = session.world.clock.now()
    await anyio.to_thread.run_sync(partial(state.rotate, now=now, overlap_s=overlap_s))
    await _hand_out(session, state, settings, grant)
    until = f"good until {shown_time(now + overlap_s)}" if overlap_s else "not good any more"
    session.output.note(
        f"asyncsync: join strings from before are {until}; a head that runs knows that in a second"
    )
    return Outcome(summary={"location": _location(settings), "overlap_s": overlap_s})


async def revoke(
    session: Session, *, state: State, tokens: Sequence[str], experiments: Sequence[str]
) -> Outcome:
    """Refuse these tokens, and all for these experiments."""
    settings = await anyio.to_thread.run_sync(_set_up, state)
    for one in tokens:
        if not is_token_id(one):
            raise ConfigError(
                f"--revoke {quote(one[:40]) or 'nothing'}: give the id of a token, 32 hexadecimal "
                "digits: the audit log and --token say it; or - and the join string as input"
            )
    change = partial(revoke_keys, state.key_file, tokens=tokens, experiments=experiments)
    await anyio.to_thread.run_sync(change)
    what = [f"token {one}" for one in tokens] + [
        f"every token for {one or 'all trees'}" for one in experiments
    ]
    return Outcome(
        summary={
            "location": _location(settings),
            "revoked": list(tokens),
            "revoked_experiments": list(experiments),
        },
        text=f"refused from now on: {', '.join(what)}; a head that runs knows that in a second",
    )


def _set_up(state: State) -> Settings:
    settings = state.settings()
    if settings is None:
        raise ConfigError(
            f"no head was set up in {quote(str(state.path))}; run asyncsync head --init, or name "
            "another directory with --state"
        )
    return settings


async def _hand_out(session: Session, state: State, settings: Settings, grant: Wanted) -> None:
    now = session.world.clock.now()
    make = partial(
        join_string,
        state,
        settings,
        now=now,
        scope=grant.scope,
        operations=grant.operations,
        life_s=grant.life_s,
    )
    line: Secret = await anyio.to_thread.run_sync(make)
    token_id = claims_of(Join.parse(line).token).id
    output, until = session.output, now + grant.life_s
    operations = sorted(grant.operations)
    fields = {"join": line.reveal(), "address": settings.address, "scope": grant.scope}
    output.emit("join", {**fields, "operations": operations, "expires_at": until, "id": token_id})
    if not output.options.json:
        output.stdout.write(line.reveal() + "\n")
    reach = quote(grant.scope) if grant.scope else "everything"
    output.note(
        f"asyncsync: that line lets whoever has it {' and '.join(operations)} {reach} until "
        f"{shown_time(until)}; a worker is given it by: asyncsync join"
    )
    output.note(f"asyncsync: if others get to see it: asyncsync head --revoke {token_id}")


async def status(session: Session, *, state: State) -> Outcome:
    """Say how a head is set up, and what waits to be carried on."""
    settings = await anyio.to_thread.run_sync(_set_up, state)
    found = list[Note]()
    if settings.forward:
        notes = Notes(state.path, Location.parse(settings.forward))
        found += (await anyio.to_thread.run_sync(notes.load)).values()
    keys = await anyio.to_thread.run_sync(state.keys)
    revoked = keys.revoked
    waiting = [note for note in found if note.waits]
    failed = [note for note in waiting if note.failure]
    lines = [
        _location(settings),
        f"  listens         {settings.listen}",
        f"  certificate     {', '.join(settings.names) or 'none: loopback only'}",
        f"  keys            {len(keys.keys)}",
        f"  revoked         {len(revoked.tokens)} tokens, {len(revoked.experiments)} experiments",
    ]
    if settings.forward:
        done = f"{len(found) - len(waiting)} trees, {len(waiting)} wait"
        lines.append(f"  carried on      {done}; to {quote(settings.forward)}")
    for note in failed:
        kind = "needs you" if note.permanent else "tried again"
        lines.append(f"  {kind:<15} {quote(note.tree)}: {note.failure}")
    if session.output.options.verbose:
        lines += [f"  {line}" for line in str(Limits()).splitlines()]
    summary = {
        "location": _location(settings),
        "listen": settings.listen,
        "names": settings.names,
        "keys": len(keys.keys),
        "revoked": sorted(revoked.tokens),
        "revoked_experiments": sorted(revoked.experiments),
        "forwarded": len(found) - len(waiting),
        "waiting": len(waiting),
        "failed": [{"tree": n.tree, "reason": n.failure, "permanent": n.permanent} for n in failed],
    }
    return Outcome(summary=summary, text="\n".join(lines))


def _location(settings: Settings) -> str:
    return f"{'peers' if settings.names else 'peer'}://{settings.address}"


class _Speaker:
    """Says what happens at a head.

    Attributes:
        forwarded: how many commits have been carried on.
    """

    def __init__(self, output: Output) -> None:
        self._output, self.forwarded = output, 0

    def __call__(self, event: HeadEvent) -> None:
        self.forwarded += isinstance(event, Forwarded)
        self._output.emit("head", {"what": event_name(event), **asdict(event)})
        if isinstance(event, NotForwarded) and event.permanent:
            self._output.error(_words(event))
        else:
            self._output.note(f"asyncsync: {_words(event)}")


def _words(event: HeadEvent) -> str:
    match event:
        case Listening():
            kind = "read-only, " if event.readonly else ""
            return f"serving {quote(event.root)} at {event.location} ({kind}on {event.address})"
        case Renewed():
            return event.reason
        case Forwarded():
            amount = format_amount(event.files, event.size_bytes)
            return f"{quote(event.location)}: {amount}, {format_bytes(event.sent_bytes)} sent"
        case NotForwarded():
            again = f"again in {format_seconds(event.wait_s)}"
            return f"{quote(event.location)}: not carried on: {event.reason}; {again}"
        case Vanished():
            return f"{quote(event.tree)}: deleted before it was carried on"
