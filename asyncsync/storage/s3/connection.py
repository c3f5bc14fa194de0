"""One connection to one bucket: every request, the SDK's and ours, is signed and sent here."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from urllib.parse import quote as percent
from urllib.parse import urlsplit

import anyio

from ...clock import Clock
from ...concurrency import Threads
from ...errors import AsyncSyncError, ConfigError, quote
from ...units import KIB
from ..http import Answer, Http, http_time
from ..objects import Data
from . import sdk
from .answers import (
    EXPIRED,
    SKEWED,
    error_of,
    fault_of,
    no_document,
)
from .credentials import CredentialChain, unlogged
from .settings import Settings, plain_settings, settings_files
from .signing import UNSIGNED_PAYLOAD, Scope, sha256_hex, sign

__all__ = ["Connection"]

_EMPTY = sha256_hex(b"")
_IN_A_THREAD_BYTES = 256 * KIB
_REASONS = frozenset({400, 401, 403})
_WITHOUT_DOCUMENT = frozenset({"HEAD", "DELETE"})
_MUTE = frozenset({301, 307, *_REASONS})  # what a HEAD cannot explain: it has no body

_what: ContextVar[str] = ContextVar("what", default="ask S3")
"""What the SDK is doing for this task, in words: it hands on nothing but the request."""


class _Request(NamedTuple):
    method: str
    url: str
    headers: Mapping[str, str]
    what: str
    payload: str
    data: Data = b""
    into: memoryview | None = None

    def __repr__(self) -> str:  # the address may hold the id of an upload
        return f"<{self.method} to {self.what}>"


class _Opened(NamedTuple):
    http: Http
    base_url: str
    at_aws: bool
    scope: Scope


class Connection:
    """Made by the first request and then kept; constructing it does nothing.

    Args:
        options: endpoint_url, region, profile, addressing; each may be missing.
        max_requests: connections at once.
    """

    def __init__(
        self,
        bucket: str,
        options: Mapping[str, str],
        *,
        threads: Threads,
        clock: Clock,
        max_requests: int,
    ) -> None:
        self.bucket = bucket
        self._options, self._threads, self._clock = options, threads, clock
        self._max_requests = max_requests
        self._chain = CredentialChain(options.get("profile"), threads=threads, clock=clock)
        self._offset_s = 0.0
        self._opened: _Opened | None = None
        self._client: Any = None  # the SDK's, made when it is needed
        self._closed = False
        self._turn = anyio.Lock()
        self._stack = AsyncExitStack()

    @property
    def at_aws(self) -> bool:
        """Whether this is connected to AWS, and not to something that speaks like it."""
        return self._opened is not None and self._opened.at_aws

    # -- requests

    async def send(
        self,
        method: str,
        key: str,
        headers: Mapping[str, str],
        *,
        what: str,
        query: str = "",
        data: Data = b"",
        into: memoryview | None = None,
    ) -> Answer:
        """Send one request about one object, its body unsigned; see `Http.send`.

        Raises:
            AccessDeniedError: there are no credentials.
            ConfigError: the settings make no sense, or this is closed.
        """
        opened = await self._open(what)
        url = opened.base_url + percent(key, safe="/-._~", errors="surrogateescape")
        if query:
            url += f"?{query}"
        payload = UNSIGNED_PAYLOAD if len(data) else _EMPTY
        request = _Request(method, url, headers, what, payload, data, into)
        # Few are of that kind, and thousands of the others.
        return await (self._answered if method == "HEAD" else self._signed)(opened, request)

    async def look(self, what: str) -> Answer:
        """Ask whether the bucket is there; whatever comes is the answer."""
        opened = await self._open(what)
        url = bucket_url(opened.base_url, self.bucket)
        return await self._answered(opened, _Request("HEAD", url, {}, what, _EMPTY))

    async def ask(self, what: str, query: str) -> Answer:
        """Read a document about the bucket; `query` is encoded.

        Raises:
            AsyncSyncError: the request failed, or what came is no document.
        """
        opened = await self._open(what)
        url = f"{bucket_url(opened.base_url, self.bucket)}?{query}"
        return await self._exchange("GET", url, {}, b"", what=what)

    @asynccontextmanager
    async def sdk(self, what: str) -> AsyncIterator[Any]:
        """The SDK's client, for requests that are not bulk; only errors of ours get out.

        Args:
            what: what the request does, as errors name it.
        """
        await self._open(what)
        if self._client is None:
            async with self._turn:
                self._check_open(what)
                if self._client is None:
                    async with AsyncExitStack() as stack:
                        client, _ = await self._load_client(stack)
                        self._stack.push_async_exit(stack.pop_all())
                    self._client = client
        token = _what.set(what)
        try:
            with sdk.sdk_errors(what), unlogged():
                yield self._client
        finally:
            _what.reset(token)

    def clock_offset_s(self, headers: Mapping[str, str]) -> float | None:
        """The server's clock minus ours, by an answer that has just come."""
        theirs = http_time(headers.get("Date"))
        return None if theirs is None else theirs - self._clock.now()

    def error(self, what: str, answer: Answer, *, replaces: bool = False) -> AsyncSyncError:
        """The error for an answer that is a failure; see `error_of`."""
        return error_of(what, answer, now=self._clock.now(), replaces=replaces)

    async def aclose(self) -> None:
        """Let go of every connection. Again: no effect."""
        self._closed = True
        async with self._turn:
            self._opened = self._client = None
            await self._stack.aclose()

    # -- opening

    async def _open(self, what: str) -> _Opened:
        if self._opened is None:
            async with self._turn:
                self._check_open(what)
                if self._opened is None:
                    self._opened = await self._connect()
        return self._opened

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise ConfigError(f"{what}: the store is closed")

    async def _connect(self) -> _Opened:
        if self.bucket.endswith("--x-s3"):
            raise ConfigError(
                f"{self._connecting}: directory buckets are not supported; use a general one"
            )
        found = plain_settings(self.bucket, self._options, os.environ)
        client = None
        async with AsyncExitStack() as stack:
            if found is None or await self._threads.run(_any_exists, settings_files(os.environ)):
                client, found = await self._load_client(stack)
            http = Http(max_connections=self._max_requests, ca_file=found.ca_file)
            stack.push_async_callback(http.aclose)
            await http.open(self._threads)
            self._stack = stack.pop_all()
        self._client = client
        host = urlsplit(found.base_url).hostname or ""
        at_aws = host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
        return _Opened(http, found.base_url, at_aws, Scope(found.region))

    @property
    def _connecting(self) -> str:
        return f"connect to s3://{quote(self.bucket)}"

    async def _load_client(self, stack: AsyncExitStack) -> tuple[Any, Settings]:
        """The SDK's client, which `stack` closes, and the settings as it sees them."""
        with sdk.sdk_errors(self._connecting):
            loaded = await self._threads.run(sdk.load, self._options)
            client = await sdk.open_client(loaded, stack)
            base_url = await sdk.base_url(client, self.bucket)
            sdk.send_through(client, self._exchange)
        return client, Settings(base_url, loaded.region, loaded.ca_file)

    # -- signing and sending

    async def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, what: str = ""
    ) -> Answer:
        """One request that the SDK has built; a failure is raised, not handed back to it."""
        what = what or _what.get()
        in_a_thread = len(body) > _IN_A_THREAD_BYTES
        payload = await self._threads.run(sha256_hex, body) if in_a_thread else sha256_hex(body)
        request = _Request(method, url, headers, what, payload, body)
        answer = await self._answered(await self._open(what), request)
        if answer.status >= 300:
            raise self.error(what, answer, replaces=method == "POST" and "If-Match" in headers)
        fault = None if method in _WITHOUT_DOCUMENT else no_document(what, answer)
        if fault is not None:
            raise fault
        return answer

    async def _answered(self, opened: _Opened, request: _Request) -> Answer:
        """The answer; where a HEAD is refused, that to a GET, which says why."""
        answer = await self._signed(opened, request)
        if request.method != "HEAD" or answer.status not in _MUTE:
            return answer
        asking = {**request.headers, "Range": "bytes=0-0"}
        told = await self._signed(opened, request._replace(method="GET", headers=asking))
        # Perhaps the clock or the credentials were the trouble, and are repaired by now.
        return told if told.status in _MUTE else await self._signed(opened, request)

    async def _signed(self, opened: _Opened, request: _Request) -> Answer:
        """Sign and send; once more after the clock was corrected or credentials were renewed."""
        repaired: set[str] = set()
        while True:
            credentials = await self._chain.get()
            headers = sign(
                request.method,
                request.url,
                request.headers,
                credentials=credentials,
                scope=opened.scope,
                at=self._clock.now() + self._offset_s,
                payload=request.payload,
            )
            answer = await opened.http.send(
                request.method,
                request.url,
                headers,
                what=request.what,
                data=request.data,
                into=request.into,
                patient=request.method == "POST",
            )
            repair = _repair(answer)
            if repair is None or repair in repaired:
                return answer
            repaired.add(repair)
            if repair == "credentials":
                await self._chain.renew(credentials)
            elif (offset_s := self.clock_offset_s(answer.headers)) is not None:
                self._offset_s = offset_s


def bucket_url(base_url: str, bucket: str) -> str:
    """The address of the bucket itself: in a path, a slash behind it would begin a key. Pure."""
    return base_url.removesuffix("/") if base_url.endswith(f"/{bucket}/") else base_url


def _any_exists(paths: Iterable[str]) -> bool:
    # As the SDK looks: a file that cannot be seen, or a home that is not known, is none.
    return any(os.path.exists(os.path.expanduser(os.path.expandvars(path))) for path in paths)


def _repair(answer: Answer) -> str | None:
    """What to repair before the same request is worth another try."""
    if answer.status not in _REASONS:
        return None
    code = fault_of(answer).code
    if code == SKEWED:
        return "clock"
    return "credentials" if code in EXPIRED else None
