"""Joining a head: what a worker was told of it is checked there, and kept for its programs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ...clock import Clock
from ...concurrency import Threads
from ...errors import AccessDeniedError, quote
from ...secrets import Secret
from ...wire import messages as m
from ...wire.failures import UnauthorizedError
from ...wire.joining import Join
from ...wire.tokens import claims_of
from .credentials import Access, joined_file, keep_access
from .link import Link, fetch_authority

__all__ = ["Joined", "join_head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What a worker may do at a head.

    Attributes:
        location: where it may do that, with all below.
        operations: what: some of push, pull, list, delete, admin.
        expires_at: unix seconds of the head's clock.
        readonly: whatever the token allows, this head takes nothing.
        forwards: it carries commits on to where its own loss does not matter.
        file: where the token is kept.
    """

    location: str
    operations: tuple[str, ...]
    expires_at: float
    readonly: bool
    forwards: bool
    file: str


async def join_head(
    line: Secret, threads: Threads, clock: Clock, environ: Mapping[str, str] = os.environ
) -> Joined:
    """Prove that this node reaches a head that knows its token, and keep both.

    What was kept of that head before stays if this fails.

    Raises:
        ConfigError: no join string, or another head answers there.
        AccessDeniedError: the head does not take the token.
        AsyncSyncError: nobody answers, or the file cannot be written.
    """
    join = Join.parse(line)
    secure = join.fingerprint is not None
    authority = await fetch_authority(join.address, threads) if secure else ""
    path = joined_file(join.address, environ)
    access = Access.of(join, authority, path)
    link = Link(join.address, secure=secure, threads=threads, max_requests=1, access=access)
    what = f"join the head at {quote(join.address)}"
    try:
        hello = link.read(m.Hello, await link.ask("hello", what=what), what)
    except UnauthorizedError:
        raise AccessDeniedError(f"{what}: {_why_not(join, clock.now())}") from None
    finally:
        await link.aclose()
    await threads.run(keep_access, join.address, access)
    return Joined(
        location=f"{link.where}/{hello.scope}".rstrip("/"),
        operations=tuple(hello.operations),
        expires_at=hello.expires_at,
        readonly=hello.readonly,
        forwards=hello.forwards,
        file=str(path),
    )


def _why_not(join: Join, now: float) -> str:
    """All that a head says is that a token is not good; the token itself may say more."""
    claims = claims_of(join.token)
    if now >= claims.expires_at:
        why = "the join string has expired"
    elif now < claims.not_before:
        why = "the join string is from the future: compare the clocks of both machines"
    else:
        why = "the head there does not know this join string: it was made by another one, or the "
        why += "key has been changed"
    return f"{why}; take a new one from `asyncsync head --token` there"
