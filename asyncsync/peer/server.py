"""PeerServer: serves the trees below a directory to other nodes, over HTTP."""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import anyio
from aiohttp import web

from ..clock import Clock, SystemClock
from ..concurrency import Budget, ByteBudget, Threads, settled
from ..errors import ConfigError, TransientError, quote
from ..secrets import Secret
from ..storage import Share, TreeStore
from ..storage.local import HeldRoot, LocalTrees
from ..units import MIB
from ..wire.claims import DEFAULT_LIFE_S, WORKER, Claims, Operation
from ..wire.joining import Join, is_loopback
from ..wire.limits import Limits
from ..wire.tokens import HeadKey, KeyRing
from ..wire.trust import fingerprint_of
from .application import Application, new_request
from .bodies import Bodies
from .calls import Head
from .certificates import throwaway_context
from .connections import Connections, listeners
from .guard import Guard
from .known import Known
from .listings import Ledger
from .mishaps import tell
from .onward import Nowhere, Onward
from .pushes import Push
from .quotas import Quotas
from .sessions import Read, Sessions
from .space import Space
from .turns import Turns

__all__ = ["PeerServer"]

_SWEEP_S = 10.0
_LOOKS_PER_EXPIRY = 24
_CLOSE_S = 60.0
_SESSION_IDLE_S = 900.0  # after that, what arrived is kept on the disk and no more in memory


class PeerServer:
    """Serves the trees below `root` at `peer://HOST:PORT/`, or `peers://` over TLS.

    Use it with `async with`; it may be opened in one task and closed in another. Left, it answers
    nothing more, and what pushes had sent stays for the next start to go on with. What has been
    acknowledged is on the disk.

    Args:
        root: a directory that exists.
        host, port: where to listen; port 0 takes a free one.
        readonly: nothing is written, and no token lets anybody.
        keys: what makes and verifies tokens; None makes a key that ends with this server.
        tls: `own` makes a CA and a certificate for `host` that end with this server, which is
            enough where who shall get in is given a join string each time; or what
            `server_context` makes of others. Without TLS only a loopback address is served.
        authority: the certificate of the CA behind `tls`, in PEM; workers ask for it.
        onward: carries what is committed on from here.
        quota_file: counts what tokens with a cap have pushed, also when the head is started anew.
        memory_bytes: bodies that may be held at once.

    Raises:
        ConfigError: the address would be open to others without TLS.
    """

    def __init__(  # noqa: PLR0913 - each has a use of its own, and all but one a default
        self,
        root: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        readonly: bool = False,
        keys: KeyRing | None = None,
        tls: ssl.SSLContext | Literal["own"] | None = None,
        authority: str = "",
        onward: Onward | None = None,
        limits: Limits | None = None,
        quota_file: Path | None = None,
        memory_bytes: int = 128 * MIB,
        clock: Clock | None = None,
    ) -> None:
        if tls is None and not is_loopback(host):
            raise ConfigError(
                f"{host} can be reached from elsewhere, so a head there needs TLS: run "
                "`asyncsync head --init`, give tls='own' in a program, or listen on 127.0.0.1"
            )
        self._root, self._host, self._port = root, host, port
        self._secure, self._authority = tls is not None, authority
        self._own_tls, self._context = tls == "own", None if tls == "own" else tls
        self._clock, self._limits = clock or SystemClock(), limits or Limits()
        keys = keys or KeyRing((HeadKey.new(),))
        self._guard = Guard(keys, self._limits, self._clock)
        self._onward, self._quota_file = onward or Nowhere(), quota_file
        self._readonly, self._memory_bytes = readonly, memory_bytes
        self._run = secrets.token_hex(16)
        self._supervisor: asyncio.Task[None] | None = None
        self._stop = anyio.Event()
        self._listening = False

    # -- life

    async def __aenter__(self) -> Self:
        if self._supervisor is not None:
            raise ConfigError("this PeerServer has been entered before; make a new one")
        ready = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._serve(ready))
        try:
            await ready
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Answer nothing more. Again: no effect.

        Raises:
            Exception: what ended the server before, if anything did.
        """
        self._stop.set()
        if self._supervisor is not None:
            await settled(self._supervisor, _CLOSE_S)
            if self._supervisor.done() and self._listening:
                self._supervisor.result()

    async def _serve(self, ready: asyncio.Future[None]) -> None:
        try:
            async with AsyncExitStack() as stack:
                await self._start(stack)
                self._listening = True
                ready.set_result(None)
                await self._stop.wait()
        except BaseException as exc:
            if ready.done():
                raise
            ready.set_exception(_alone(exc))

    async def _start(self, stack: AsyncExitStack) -> None:
        count = max(8, 2 * self._limits.hash_threads)
        threads = Threads(count)
        stack.callback(threads.close)
        root = await threads.run(_real_root, self._root)
        if self._own_tls:
            self._context, self._authority = await threads.run(
                lambda: throwaway_context(self._host, now=self._clock.now())
            )
        # Others name the trees, and may write below the root by other ways, too.
        store: TreeStore = LocalTrees(await threads.run(HeldRoot, root), threads)
        stack.push_async_callback(store.aclose)
        quotas = Quotas(self._quota_file, threads, self._clock)
        await quotas.load()
        group = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(group.cancel_scope.cancel)
        bodies = Bodies(
            self._clock,
            self._limits.body_idle_s,
            window_s=self._limits.body_window_s,
            least_bytes_per_s=self._limits.min_body_bytes_per_s,
        )
        most = self._limits.max_sessions_per_token
        reads = Sessions[Read](group, store, most=most, idle_s=_SESSION_IDLE_S)

        async def settle(push: Push) -> None:
            with suppress(TransientError):  # it was told; what counts too much ends no head
                await quotas.give_back(push.owner, push.left_files, push.left_bytes)

        pushes = Sessions[Push](group, store, most=most, idle_s=_SESSION_IDLE_S, over=settle)
        stack.push_async_callback(reads.close)
        stack.push_async_callback(pushes.close)
        head = Head(
            store=store,
            limits=self._limits,
            threads=threads,
            memory=ByteBudget(self._memory_bytes),
            memory_bytes=self._memory_bytes,
            walks=Budget(count // 2),
            hashing=Budget(self._limits.hash_threads),
            bodies=bodies,
            space=await threads.run(Space, root, threads, self._limits),
            reads=reads,
            pushes=pushes,
            ledger=Ledger(self._limits.max_listing_bytes),
            known=Known(),
            turns=Turns(),
            quotas=quotas,
            onward=self._onward,
            clock=self._clock,
            root=root,
            run=self._run,
            readonly=self._readonly,
            authority=lambda: self._authority,
            renew=lambda token: self._guard.keys.renew(token, self._clock.now()),
        )
        group.start_soon(bodies.watch)
        group.start_soon(self._sweep, reads, pushes)
        if not self._readonly:
            group.start_soon(self._expire, store)
        await self._listen(stack, Application(head, self._guard))

    async def _listen(self, stack: AsyncExitStack, application: Application) -> None:
        server = web.Server(application.respond, request_factory=new_request)
        runner = web.ServerRunner(server, shutdown_timeout=0.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        connections = Connections(server, self._limits, self._clock, self._context)
        sockets = await listeners(self._host, self._port)
        for one in sockets:
            stack.callback(one.close)
        self._port = sockets[0].getsockname()[1]
        group = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(group.cancel_scope.cancel)
        group.start_soon(connections.watch)
        for one in sockets:
            group.start_soon(connections.accept, group, one)

    async def _sweep(self, *sessions: Sessions[Read] | Sessions[Push]) -> None:
        while True:
            await self._clock.sleep(_SWEEP_S)
            for those in sessions:
                await those.sweep()

    async def _expire(self, store: TreeStore) -> None:
        """Remove what pushes have left that nobody has gone on with."""
        after_s = self._limits.session_expiry_s
        while True:
            try:
                await store.clean("", older_than_s=after_s)
            except Exception as exc:  # noqa: BLE001 - tried again; who runs the head hears of it
                tell("the head cannot tidy up", exc)
            await self._clock.sleep(after_s / _LOOKS_PER_EXPIRY)

    # -- what others need to know

    @property
    def address(self) -> str:
        """`HOST:PORT`, as a location names it."""
        return _address(self._host, self._port)

    @property
    def location(self) -> str:
        """The location of its root."""
        return f"{'peers' if self._secure else 'peer'}://{self.address}"

    def token(
        self,
        scope: str = "",
        *,
        operations: frozenset[Operation] = WORKER,
        life_s: float = DEFAULT_LIFE_S,
    ) -> Secret:
        """A token for the tree `scope` and all below it."""
        claims = Claims.new(scope, now=self._clock.now(), operations=operations, life_s=life_s)
        return self._guard.keys.mint(claims)

    def join_string(
        self,
        scope: str = "",
        *,
        operations: frozenset[Operation] = WORKER,
        life_s: float = DEFAULT_LIFE_S,
        host: str = "",
    ) -> Secret:
        """The line that a worker needs: for `asyncsync join` or `asyncsync.join` there.

        Args:
            scope, operations, life_s: of the token in it.
            host: by what name or address workers reach this head; where it listens if not given.
        """
        return Join(
            address=_address(host or self._host, self._port),
            fingerprint=fingerprint_of(self._authority) if self._secure else None,
            token=self.token(scope, operations=operations, life_s=life_s),
        ).line()

    def share(self, tree: str) -> Share:
        """How others read `tree` here, once it has been restored there: for `sync_down`."""
        line = self.join_string(tree, operations=frozenset({Operation.PULL}))
        return Share(line=line.reveal(), tree=tree)

    def use_keys(self, keys: KeyRing) -> None:
        """Make and verify tokens by these from now on."""
        self._guard.keys = keys

    def use_authority(self, authority: str) -> None:
        """Tell workers of this CA from now on: it has issued what `tls` shows by now."""
        self._authority = authority


def _alone(error: BaseException) -> BaseException:
    """What a task group has wrapped although there was nothing else."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _real_root(root: str) -> str:
    """ConfigError: there is no such directory. A head makes none: a mount may be missing."""
    if not os.path.isdir(root):
        raise ConfigError(f"{quote(root)} is no directory; make it, or mount what is to be there")
    return os.path.realpath(root)
