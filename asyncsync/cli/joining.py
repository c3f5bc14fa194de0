"""`asyncsync join`: what this node may do at a head from now on."""

from __future__ import annotations

import time
from dataclasses import asdict

from ..concurrency import Threads
from ..errors import ConfigError, quote
from ..secrets import Secret
from .job import Outcome
from .runner import Session

__all__ = ["join", "shown_time"]


async def join(session: Session, *, line: Secret) -> Outcome:
    """Prove that the head is there and takes the token, and keep both."""
    try:
        from ..storage.peer import join_head
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"to join a head needs the package {exc.name}: pip install 'asyncsync[peer]'"
        ) from exc
    threads = Threads(2)
    try:
        joined = await join_head(line, threads, session.world.clock)
    finally:
        threads.close()
    session.output.note(f"asyncsync: the token is in {quote(joined.file)}, for you alone")
    where = joined.location
    if joined.readonly:
        session.output.note("asyncsync: this head is read-only: it takes nothing")
    if "push" in joined.operations and not joined.readonly:
        session.output.note(f"asyncsync: try it: asyncsync doctor {where}")
    text = (
        f"{quote(where)}: joined; you may {' and '.join(joined.operations)} there and below until "
        f"{shown_time(joined.expires_at)}"
    )
    return Outcome(summary=asdict(joined), text=text)


def shown_time(instant: float) -> str:
    """Local time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(instant))
