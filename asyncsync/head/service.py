"""A head as a service: it listens, carries on, and takes up new keys and certificates."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from ..clock import Clock
from ..concurrency import Threads, beside
from ..errors import AsyncSyncError, ConfigError, quote
from ..location import Location
from ..peer import Certificates, PeerServer, server_context
from ..secrets import Secret
from ..wire.claims import Claims, Operation
from ..wire.joining import Join
from ..wire.tokens import KeyRing
from .events import Listener, Listening, Renewed
from .forwarding import Forwarding
from .state import Settings, State

__all__ = ["Service", "join_address", "join_string", "serve", "split_address"]

_Stamp = tuple[int, int]

_LOOK_S = 1.0
_LOOK_AT_CERTIFICATES_S = 3600.0  # by seconds that pass: a wall clock that jumps goes back, too


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, an IPv6 address in brackets, as a pair.

    Raises:
        ConfigError: it is none.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(f"{quote(text[:100])} is no address: HOST:PORT, as in 127.0.0.1:7420")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The way back."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What is to be served, and how.

    Attributes:
        names: of its certificate, the one that workers use in front; none: there is no TLS.
    """

    root: str
    listen: str
    names: tuple[str, ...] = ()
    readonly: bool = False
    forward: Location | None = None


@asynccontextmanager
async def serve(
    service: Service, state: State, *, clock: Clock, listen: Listener
) -> AsyncIterator[Settings]:
    """Serve for as long as the block lasts. The state exists, and has keys.

    Yields:
        How it is reached.

    Raises:
        ConfigError: the address is taken, or open to others without TLS; another head has the
            state.
    """
    threads, host_port = Threads(2), split_address(service.listen)
    names = list(service.names)
    async with AsyncExitStack() as stack:
        stack.callback(threads.close)
        await threads.run(state.lock)
        stack.callback(state.release)
        seen = await threads.run(_stamp, state)  # first: what changes from here on is taken up
        keys, made, tls = await threads.run(partial(_prepare, state, names, clock.now()))
        onward = None
        if service.forward is not None:
            carrying = Forwarding.open(
                service.root,
                service.forward,
                state.path,
                clock=clock,
                listen=listen,
            )
            onward = await stack.enter_async_context(carrying)
        server = PeerServer(
            service.root,
            host=host_port[0],
            port=host_port[1],
            readonly=service.readonly,
            keys=keys,
            tls=tls,
            authority=made.authority if made else "",
            onward=onward,
            quota_file=state.path / "quotas.json",
            clock=clock,
        )
        await stack.enter_async_context(server)
        port = split_address(server.address)[1]
        settings = Settings(
            listen=service.listen,
            address=join_address(names[0] if names else host_port[0], port),
            names=names,
            forward=str(service.forward or ""),
        )
        await threads.run(state.save, settings)
        scheme = "peers" if tls else "peer"
        listen(
            Listening(
                location=f"{scheme}://{settings.address}",
                address=server.address,
                root=service.root,
                readonly=service.readonly,
                expires_at=made.expires_at if made else None,
            )
        )
        fresh = _Fresh(server, state, threads, clock, listen)
        async with beside(partial(fresh.keep, seen, names, made, tls)):
            yield settings


def _prepare(
    state: State, names: list[str], now: float
) -> tuple[KeyRing, Certificates | None, ssl.SSLContext | None]:
    made = state.certificates(names, now=now) if names else None
    return state.keys(), made, server_context(made.file) if made else None


class _Fresh:
    """Takes up another key, and another certificate, while a head runs."""

    def __init__(
        self, server: PeerServer, state: State, threads: Threads, clock: Clock, listen: Listener
    ) -> None:
        self._server, self._state, self._threads = server, state, threads
        self._clock, self._listen = clock, listen
        self._failure = ""  # why the keys could not be read the last time

    async def keep(
        self,
        seen: _Stamp | None,
        names: list[str],
        made: Certificates | None,
        tls: ssl.SSLContext | None,
    ) -> None:
        """Look again and again; ends by cancellation."""
        looked_at = self._clock.monotonic()
        while True:
            await self._clock.sleep(_LOOK_S)
            seen = await self._take_keys(seen)
            now = self._clock.monotonic()
            if made is not None and now - looked_at >= _LOOK_AT_CERTIFICATES_S:
                looked_at = now
                made = await self._take_certificate(names, made, tls)

    async def _take_keys(self, seen: _Stamp | None) -> _Stamp | None:
        """The stamp of the keys in use. What cannot be read is tried again, and told once."""
        try:
            now = await self._threads.run(_stamp, self._state)
            if now == seen:
                return seen
            self._server.use_keys(await self._threads.run(self._state.keys))
        except AsyncSyncError as exc:
            if str(exc) != self._failure:
                self._listen(Renewed(reason=f"still with the keys it had: {exc}"))
            self._failure = str(exc)
            return seen
        self._failure = ""
        self._listen(Renewed(reason="its keys, and what is revoked, were read again"))
        return now

    async def _take_certificate(
        self, names: list[str], made: Certificates, tls: ssl.SSLContext | None
    ) -> Certificates:
        assert tls is not None, "who has certificates has TLS"
        try:
            certificates = partial(self._state.certificates, names, now=self._clock.now())
            found = await self._threads.run(certificates)
            await self._threads.run(tls.load_cert_chain, found.file)
        except (AsyncSyncError, OSError) as exc:
            self._listen(Renewed(reason=f"still with the certificate it had: {exc}"))
            return made
        if found.expires_at == made.expires_at:
            return made
        self._server.use_authority(found.authority)
        other = found.fingerprint != made.fingerprint
        again = ", of another CA: every worker has to join again" if other else ""
        self._listen(Renewed(reason=f"another certificate is in use{again}"))
        return found


def _stamp(state: State) -> _Stamp | None:
    """Changes when the keys do."""
    try:
        found = os.stat(state.key_file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def join_string(
    state: State,
    settings: Settings,
    *,
    now: float,
    scope: str,
    operations: frozenset[Operation],
    life_s: float,
) -> Secret:
    """A line by which a worker joins this head, running or not. Blocks.

    Raises:
        ConfigError: the state is damaged.
        RefusedError: no tree can have the name `scope`.
    """
    claims = Claims.new(scope, now=now, operations=operations, life_s=life_s)
    token = state.keys().mint(claims)
    names = settings.names
    fingerprint = state.certificates(names, now=now).fingerprint if names else None
    return Join(address=settings.address, fingerprint=fingerprint, token=token).line()
