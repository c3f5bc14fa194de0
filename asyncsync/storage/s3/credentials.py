"""Who we are to S3: botocore's own chain, asked in a thread, by one request for all that wait."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import anyio

from ...clock import Clock
from ...concurrency import Threads
from ...errors import AccessDeniedError
from ...secrets import Secret
from .sdk import new_session, sdk_errors
from .signing import Credentials

__all__ = ["CredentialChain", "unlogged"]

_MANDATORY_S = 10 * 60  # below that, nobody goes on with the old ones
_CALM_S = 30.0  # between two attempts while the old ones are still good
_WHAT = "find AWS credentials"


class CredentialChain:
    """Environment, profiles, assumed roles, containers, instance metadata, as botocore finds them.

    Temporary ones are renewed before they expire, while requests go on with the old ones as long
    as those are good for ten minutes.

    Args:
        profile: the profile to use; None leaves the choice to the environment.
    """

    def __init__(self, profile: str | None, *, threads: Threads, clock: Clock) -> None:
        self._profile, self._threads, self._clock = profile, threads, clock
        self._source: Any = None  # botocore's object, which knows how to refresh
        self._held: Credentials | None = None
        self._calm_until = 0.0
        self._turn = anyio.Lock()

    async def get(self) -> Credentials:
        """Credentials that are good for a while.

        Raises:
            AccessDeniedError: there are none, or they could not be had.
            ConfigError: the profile is not there or the configuration cannot be read.
        """
        if self._held is None or self._due():
            async with self._turn:
                if self._held is None or self._due():
                    self._calm_until = self._clock.monotonic() + _CALM_S
                    await self._load()
        assert self._held is not None
        return self._held

    async def renew(self, refused: Credentials) -> None:
        """Look them up from scratch, unless that was done since `refused` was handed out."""
        async with self._turn:
            if self._held is refused:
                self._source = None
                await self._load()

    def _due(self) -> bool:
        refresh_needed = getattr(self._source, "refresh_needed", None)
        if refresh_needed is None or not refresh_needed():
            return False
        return self._clock.monotonic() >= self._calm_until or refresh_needed(_MANDATORY_S)

    async def _load(self) -> None:
        with sdk_errors(_WHAT):
            self._source, self._held = await self._threads.run(_freeze, self._source, self._profile)


def _freeze(source: Any, profile: str | None) -> tuple[Any, Credentials]:
    """Runs in a thread: reads files, starts programs, asks servers."""
    with unlogged():
        if source is None:
            source = _find(profile)
        if source is None:
            raise AccessDeniedError(
                "no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name "
                "a profile (AWS_PROFILE, ?profile=), or attach a role to this machine"
            )
        found = source.get_frozen_credentials()
    token = Secret(found.token) if found.token else None
    return source, Credentials(found.access_key, Secret(found.secret_key), token)


class _Named(NamedTuple):
    """Credentials as the environment names them, in the shape of botocore's."""

    access_key: str
    secret_key: str
    token: str | None

    def get_frozen_credentials(self) -> _Named:
        return self

    def __repr__(self) -> str:
        return "***"


def _find(profile: str | None) -> Any:
    named = _named(os.environ) if profile is None else None
    if named is not None:  # botocore looks there first as well, but takes long to get there
        return named
    return new_session(profile).get_credentials()


def _named(environ: Mapping[str, str]) -> _Named | None:
    access_key, secret_key = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not access_key or not secret_key or "AWS_CREDENTIAL_EXPIRATION" in environ:
        return None
    tokens = (environ.get(name) for name in ("AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"))
    return _Named(access_key, secret_key, next(filter(None, tokens), None))


# At level DEBUG botocore logs whole conversations: keys and tokens where a role is assumed, ids of
# uploads.

_TALKATIVE = ("botocore.auth", "botocore.endpoint", "botocore.parsers", "botocore.utils")
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def _is_loud(record: logging.LogRecord) -> bool:
    return not _quiet.get()


@contextmanager
def unlogged() -> Iterator[None]:
    """Nothing that botocore does here meanwhile is logged in detail: in this thread, this task."""
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_is_loud)  # again: no effect
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)
