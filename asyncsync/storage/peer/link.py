"""Requests to a head: every answer is checked before any of it is believed."""

from __future__ import annotations

import math
import secrets
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple, TypeVar

import anyio

from ...clock import Clock, SystemClock
from ...concurrency import Threads
from ...errors import (
    AsyncSyncError,
    ConfigError,
    FormatError,
    PermanentError,
    RefusedError,
    TransientError,
    quote,
)
from ...secrets import Secret
from ...wire import messages as m
from ...wire.claims import DEFAULT_LIFE_S
from ...wire.failures import GoneError, UnauthorizedError, error_of
from ...wire.names import check_session_id
from ...wire.tokens import claims_of
from ...wire.trust import client_context
from ..dialing import Direct
from ..heads import Head
from ..http import Answer, Http
from ..objects import Data
from .credentials import Access, find_access, keep_access

__all__ = ["Link", "fetch_authority"]

T = TypeVar("T")

_STALL_S = 60.0
_MAX_CONNECTIONS = 8  # a head takes 64 from one address, where several programs may work
_ASK_AGAIN_S = 3600.0
_MAX_AUTHORITY_BYTES = 16 * 1024
_PROXIES = (408, 502, 503, 504)  # what stands before a head says so while the head does not answer


class _Opened(NamedTuple):
    """What requests go by.

    Attributes:
        found: what was read last: `access` is that, or was renewed since.
    """

    http: Http
    found: Access
    access: Access
    renew_at: float


class Link:
    """The way to one head.

    Args:
        authority: `HOST:PORT`.
        secure: over TLS.
        clock: by which a token is renewed.
        access: what lets us in; None: what `find_access` finds.
    """

    def __init__(
        self,
        authority: str,
        *,
        secure: bool,
        threads: Threads,
        max_requests: int,
        clock: Clock | None = None,
        access: Access | None = None,
    ) -> None:
        self.where = f"{'peers' if secure else 'peer'}://{authority}"
        self._authority, self._secure = authority, secure
        self._base = f"{'https' if secure else 'http'}://{authority}"
        self._threads, self._max_requests = threads, max_requests
        self._clock, self._given = clock or SystemClock(), access
        self._opened: _Opened | None = None
        self._turn = anyio.Lock()

    async def ask(
        self,
        name: str,
        body: object = None,
        *,
        what: str,
        session: str = "",
    ) -> Answer:
        """Send a message, and receive the answer.

        Raises:
            RefusedError: the name of a tree is no text.
            AsyncSyncError: what the head has answered, if that was an error.
        """
        try:
            data = b"" if body is None else m.encode(body)
        except UnicodeEncodeError:  # which a head may have found on its disk
            raise RefusedError(f"{what}: that name is no text; choose another name") from None
        return await self.send(name, data, what=what, session=session)

    async def end(self, name: str, body: object, *, what: str, session: str) -> None:
        """End a session; once more, if the connection breaks: else it would be held for long."""
        try:
            await self.ask(name, body, what=what, session=session)
        except GoneError:
            return
        except TransientError:
            await self.ask(name, body, what=what, session=session)

    async def told(self, kind: type[T], name: str, body: object, *, what: str) -> T:
        """The message that a head answers a message with. Raises as `ask`."""
        return self.read(kind, await self.ask(name, body, what=what), what)

    def read(self, kind: type[T], answer: Answer, what: str) -> T:
        """The message in an answer.

        Raises:
            PermanentError: it is none of that kind.
        """
        try:
            return m.decode(bytes(answer.body), kind)
        except FormatError as exc:
            raise self.foreign(what, str(exc)) from None

    def session_of(self, text: str, what: str) -> str:
        """The number of a session, which becomes part of an address.

        Raises:
            PermanentError: it is none.
        """
        try:
            check_session_id(text)
        except RefusedError as exc:
            raise self.foreign(what, str(exc)) from None
        return text

    def path_of(self, text: m.Text, what: str) -> str:
        """A path below the root of the head.

        Raises:
            PermanentError: it leads somewhere else, or is none.
        """
        try:
            path = m.path_of(text)
        except FormatError as exc:
            raise self.foreign(what, str(exc)) from None
        if "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
            raise self.foreign(what, f"it names {quote(path[:100]) or 'nothing'}")
        return path

    def path_of_file(self, line: m.FileLine, what: str) -> str:
        """The path of a file that is listed. PermanentError: that, or a number, is none."""
        try:
            line.check()
        except FormatError as exc:
            raise self.foreign(what, str(exc)) from None
        return self.path_of(line.path, what)

    async def send(
        self,
        name: str,
        data: Data = b"",
        *,
        what: str,
        session: str = "",
        blob: int = 0,
        headers: Mapping[str, str] | None = None,
        into: memoryview | None = None,
    ) -> Answer:
        """Send bytes; see `Http.send`. Raises as `ask`."""
        opened = self._opened or await self._open()
        if self._given is None and self._clock.now() >= opened.renew_at:
            opened = await self._renew(opened)
        try:
            return await self._once(opened, name, data, what, session, blob, headers, into)
        except (UnauthorizedError, ConfigError):
            # The token, or the head's CA, may have been changed for another since it was read.
            found = await self._look()
            if found == opened.found:
                raise
            opened = await self._changed(opened, found)
        return await self._once(opened, name, data, what, session, blob, headers, into)

    async def _once(
        self,
        opened: _Opened,
        name: str,
        data: Data,
        what: str,
        session: str,
        blob: int,
        headers: Mapping[str, str] | None,
        into: memoryview | None,
    ) -> Answer:
        route, number = m.ROUTES[name], secrets.token_hex(8)
        frame = {
            m.VERSION_HEADER: str(m.VERSION),
            m.REQUEST_ID: number,
            "Authorization": f"Bearer {opened.access.token.reveal()}",
            **(headers or {}),
        }

        def check(head: Head) -> None:
            self._check(head, number, what)

        answer = await opened.http.send(
            route.method,
            self._base + route.url(session, blob),
            frame,
            what=what,
            data=data,
            into=into,
            check=check,
        )
        if answer.status == (206 if name == "read" else 200):
            return answer
        raise self._error(answer, what)

    def _check(self, head: Head, number: str, what: str) -> None:
        """Refuse an answer of somebody else, or to something else."""
        version = head.headers.get(m.VERSION_HEADER)
        if version is None and head.status in _PROXIES:
            raise TransientError(
                f"{what}: something before {self.where} answers with status {head.status}; check "
                "that the head runs"
            )
        if version is None and head.status == 400:  # what reads HTTP there knows of no version
            raise TransientError(
                f"{what}: {self.where} did not understand it: it was damaged on its way, or that "
                "is no asyncsync head; check the address"
            )
        if version is None:
            raise self.foreign(what, f"status {head.status} without a version")
        if version != str(m.VERSION):
            raise PermanentError(
                f"{what}: {self.where} speaks version {quote(version[:20])} of the protocol, this "
                f"release version {m.VERSION}; use the same release on both sides"
            )
        if head.headers.get(m.REQUEST_ID) != number:
            raise TransientError(f"{what}: {self.where} has answered another request; try again")
        if "Content-Encoding" in head.headers or 300 <= head.status < 400:
            raise self.foreign(what, f"status {head.status}, or a coding that was not asked for")

    def foreign(self, what: str, how: str) -> PermanentError:
        """The error for an answer that is none of a head, or of one that is not to be trusted."""
        return PermanentError(
            f"{what}: what answers at {self.where} is no asyncsync head ({how}); check the address"
        )

    def _error(self, answer: Answer, what: str) -> AsyncSyncError:
        try:
            error = error_of(answer.status, m.decode(bytes(answer.body), m.Fault), what)
        except FormatError as exc:
            if answer.status >= 500:
                return TransientError(f"{what}: {self.where} answers with status {answer.status}")
            return self.foreign(what, f"status {answer.status}, {exc}")
        if self._given is not None:  # such a node is only read: our end is none of its concern
            error.side = "source"
        return error

    async def _open(self) -> _Opened:
        async with self._turn:
            if self._opened is None:
                self._opened = await self._connected(await self._look())
        return self._opened

    async def _connected(self, access: Access) -> _Opened:
        advice = f"take a new join string from the head at {self._authority}"
        http = Http(
            max_connections=min(self._max_requests, _MAX_CONNECTIONS),
            stall_s=_STALL_S,
            direct=Direct(await self._context(access), advice),
        )
        await http.open(self._threads)
        return _with(http, access, access)

    async def _changed(self, opened: _Opened, access: Access) -> _Opened:
        """What is used once the head has been joined anew."""
        if access.fingerprint == opened.access.fingerprint:
            return self._use(_with(opened.http, access, access))
        async with self._turn:
            if self._opened is opened:  # else another task has done that, or it was closed
                self._opened = await self._connected(access)
                await opened.http.aclose()
        return self._opened or opened

    def _use(self, opened: _Opened) -> _Opened:
        if self._opened is not None and self._opened.http is opened.http:  # else it was closed
            self._opened = opened
        return opened

    async def _look(self) -> Access:
        """What lets us in, as it is now."""
        if self._given is not None:
            return self._given
        return await self._threads.run(find_access, self._authority, self._secure)

    async def _renew(self, opened: _Opened) -> _Opened:
        """Have the token for another while; if that fails, it is asked for again later."""
        what = f"renew the token for {self.where}"
        # Whoever sends something meanwhile does not ask, too.
        opened = self._use(opened._replace(renew_at=self._clock.now() + _ASK_AGAIN_S))
        try:
            found = access = await self._look()
            if found == opened.found:  # else somebody has joined, or renewed it
                answer = await self._once(opened, "renew", b"", what, "", 0, None, None)
                token = Secret(self.read(m.Renewed, answer, what).token)
                access = opened.access._replace(token=token)
                if access.file is not None:
                    with suppress(AsyncSyncError):  # else this program alone has it
                        await self._threads.run(keep_access, self._authority, access)
                        found = access
            return self._use(_with(opened.http, found, access))
        except AsyncSyncError:
            return opened

    async def _context(self, access: Access) -> ssl.SSLContext | None:
        if access.fingerprint is None:
            return None
        authority = access.authority or await fetch_authority(self._authority, self._threads)
        return client_context(authority, fingerprint=access.fingerprint)

    async def aclose(self) -> None:
        """Let go of every connection. Again: no effect."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.http.aclose()


def _with(http: Http, found: Access, access: Access) -> _Opened:
    """What requests go by; in the middle of its life a token has to be renewed."""
    claims = claims_of(access.token)
    lasts = claims.expires_at - claims.not_before >= DEFAULT_LIFE_S
    renew_at = (claims.not_before + claims.expires_at) / 2 if lasts else math.inf
    return _Opened(http, found, access, renew_at)


async def fetch_authority(address: str, threads: Threads) -> str:
    """The certificate of the CA that whoever answers there names, in PEM.

    It proves nothing by itself: the join string says which one it has to be. No token is shown.

    Raises:
        AsyncSyncError: nobody answers, or no head.
    """
    nobody_checked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody_checked.check_hostname, nobody_checked.verify_mode = False, ssl.CERT_NONE
    http = Http(max_connections=1, direct=Direct(nobody_checked, "check the address"))
    what = f"ask {quote(address)} for its CA"
    route = m.ROUTES["authority"]
    try:
        await http.open(threads)
        frame = {m.VERSION_HEADER: str(m.VERSION)}
        answer = await http.send(route.method, f"https://{address}{route.url()}", frame, what=what)
    finally:
        await http.aclose()
    if answer.status != 200 or len(answer.body) > _MAX_AUTHORITY_BYTES:
        raise PermanentError(f"{what}: it is no asyncsync head; check the address")
    return bytes(answer.body).decode("ascii", "replace")
