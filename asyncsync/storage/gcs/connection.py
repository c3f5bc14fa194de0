"""The connection to Google Cloud Storage: the one module that knows gcloud-aio.

Credentials and small requests are gcloud-aio's; tokens are kept, renewed and hidden here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import quote as percent
from urllib.parse import urlencode

import aiohttp
import anyio
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from anyio.lowlevel import checkpoint
from yarl import URL

from ...clock import Clock
from ...concurrency import Threads, finish
from ...errors import (
    AccessDeniedError,
    AsyncSyncError,
    ConfigError,
    StalledError,
    TransientError,
    quote,
)
from ...secrets import Secret
from ..http import Answer, Http
from ..objects import Data
from .answers import DroppedError, failure, not_gcs

if TYPE_CHECKING:
    from gcloud.aio.auth import Token
    from gcloud.aio.storage import Storage

__all__ = ["Connection"]

_ROOT = "https://storage.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_METADATA_HOST = "metadata.google.internal"
_TOKEN_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
# In all gcloud-aio allows 10 s, the wait for a free connection included.
_IDLE_S = 15.0  # stores close idle connections after 20 s and less
_AUTH_PATIENCE = cast("int", aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=10.0))
_EARLY_S = 225.0  # the metadata server gives out a new token 5 minutes before the old one ends
_ADVICE = (
    "set GOOGLE_APPLICATION_CREDENTIALS to a file of credentials, run "
    "'gcloud auth application-default login', or give this machine a service account"
)

T = TypeVar("T")


class Connection:
    """One HTTP session and one account, made when the first request needs them.

    Args:
        endpoint: address of another server than Google's, which wants credentials all the same.
    """

    def __init__(
        self, endpoint: str | None, *, threads: Threads, clock: Clock, max_requests: int
    ) -> None:
        self._endpoint, self._threads, self._clock = endpoint, threads, clock
        self._max_requests = max_requests
        self._http = Http(max_connections=max_requests)
        self._session: _AsEncoded | None = None
        self._opening = anyio.Lock()
        self._sdk: Storage | None = None
        self._account: _Account | None = None
        self._root = ""
        self._emulated = self._closed = False

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        *,
        what: str,
        data: Data = b"",
        into: memoryview | None = None,
    ) -> Answer:
        """Send a request of ours; a refused token is renewed once. No status is an error here.

        Args:
            path: below the root of the API, encoded.
        """
        await self._open()
        url = f"{self._root}{path}?{urlencode(query, quote_via=percent, safe='')}"
        for last in (False, True):
            token = await self._token()
            signed = {**headers, "Authorization": f"Bearer {token.reveal()}"} if token else headers
            answer = await self._http.send(method, url, signed, what=what, data=data, into=into)
            if answer.status != 401 or last or not await self._renewed(token):
                break
        return answer

    async def send_to(
        self, address: Secret, headers: Mapping[str, str], *, what: str, data: Data
    ) -> Answer:
        """PUT to an address that is its own permission."""
        await self._open()
        return await self._http.send("PUT", address.reveal(), headers, what=what, data=data)

    async def call(
        self, what: str, request: Callable[[Storage], Awaitable[T]], *, of_object: bool = True
    ) -> T:
        """Let gcloud-aio make a request; its errors become ours, a refused token is renewed once.

        Args:
            of_object: as for `failure`.

        Raises:
            DroppedError: the connection ended without an answer.
        """
        await self._open()
        assert self._sdk is not None
        for last in (False, True):
            token = await self._token()
            try:
                return await request(self._sdk)
            except (aiohttp.ClientError, OSError, ValueError) as exc:
                error = _ours(what, exc, of_object=of_object)
                refused = isinstance(exc, aiohttp.ClientResponseError) and exc.status == 401
            # Outside of the handler: theirs shows the request with its token.
            if not refused or last or not await self._renewed(token):
                break
        raise error

    @property
    def at_google(self) -> bool:
        """Whether this is connected to Google, and not to something that speaks like it."""
        return self._root == _ROOT

    async def emulated(self) -> bool:
        """Whether an emulator takes the place of the service; connects."""
        await self._open()
        return self._emulated

    async def aclose(self) -> None:
        """Close every connection. Again: no effect."""
        self._closed = True
        try:
            await self._http.aclose()
        finally:  # cancelled as well
            if self._session is not None:
                await self._session.aclose()

    async def _token(self) -> Secret | None:
        return await self._account.token() if self._account else None

    async def _renewed(self, refused: Secret | None) -> bool:
        if self._account is None or refused is None:
            return False
        await self._account.renew(refused)
        return True

    async def _open(self) -> None:
        """Connect, one task for all that wait."""
        self._refuse_if_closed()
        if self._sdk is None:
            async with self._opening:
                if self._sdk is None:
                    await self._connect()
        self._refuse_if_closed()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ConfigError("this connection to Google Cloud Storage is closed")

    async def _connect(self) -> None:
        """Connect; what an attempt that failed or was cancelled has made is used again."""
        session = self._session = self._session or _AsEncoded(self._http, self._max_requests)
        await self._http.open(self._threads)
        emulator = os.environ.get("STORAGE_EMULATOR_HOST") if self._endpoint is None else None
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        self._emulated = bool(emulator)
        self._root = (emulator or self._endpoint or _ROOT).rstrip("/")
        if not self._emulated:
            token = await self._threads.run(_credentials, session, self._threads)
            self._account = _Account(token, self._threads, self._clock)
        self._sdk = await self._threads.run(
            _storage, session, self._account, self._root, self._emulated
        )


class _Connector(aiohttp.TCPConnector):
    """Over TLS, drops what is not used again at once.

    Closing it politely takes as long as the other side likes, and nobody would wait for that.
    """

    def _release(
        self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False
    ) -> None:
        should_close = should_close or protocol.should_close
        if key.is_ssl and should_close:
            protocol.abort()
        super()._release(key, protocol, should_close=should_close)


class _AsEncoded:
    """The session as gcloud-aio gets it: as it encodes addresses, through proxies, no redirects."""

    def __init__(self, http: Http, max_connections: int) -> None:
        self._http = http
        self._session = aiohttp.ClientSession(
            connector=_Connector(limit=max_connections, keepalive_timeout=_IDLE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        )
        # It would send a request whose answer got lost a second time without a word: a write under
        # a condition then meets its own success. Retrying is done, and told, in one place.
        self._session._retry_connection = False

    async def aclose(self) -> None:
        await self._session.close()
        await checkpoint()  # the loop lets go of aborted connections only now

    async def get(self, url: str, **options: Any) -> aiohttp.ClientResponse:
        return await self._send("GET", url, **options)

    async def post(self, url: str, **options: Any) -> aiohttp.ClientResponse:
        return await self._send("POST", url, **options)

    async def delete(self, url: str, **options: Any) -> aiohttp.ClientResponse:
        return await self._send("DELETE", url, **options)

    async def _send(self, method: str, url: str, **options: Any) -> aiohttp.ClientResponse:
        proxy = None if _TOKEN_PATH in url else self._http.proxy_for(url)

        async def request() -> aiohttp.ClientResponse:
            return await self._session.request(
                method, URL(url, encoded=True), proxy=proxy, allow_redirects=False, **options
            )

        async def write() -> aiohttp.ClientResponse:
            response = await request()
            await response.read()  # nothing is left open if nobody waits for it any more
            return response

        response = await (finish(write) if method == "POST" else request())
        if 300 <= response.status < 400:  # gcloud-aio takes it for a success
            response.close()
            raise aiohttp.ClientResponseError(
                response.request_info, (), status=response.status, headers=response.headers
            )
        return response


class _Account:
    """Tokens of one account, each fetched once for everybody and renewed before it ends."""

    def __init__(self, source: Token, threads: Threads, clock: Clock) -> None:
        self._source, self._threads, self._clock = source, threads, clock
        self._fetching = anyio.Lock()
        self._token: Secret | None = None
        self._renew_at = self._ends_at = 0.0

    async def get(self) -> str:
        """The token as gcloud-aio-storage asks for it."""
        return (await self.token()).reveal()

    async def token(self) -> Secret:
        """A token that is good for a while.

        Raises:
            AccessDeniedError: there are no credentials, or they are refused.
            TransientError: who gives out tokens cannot be reached, and there is none left.
        """
        if self._token is not None and self._clock.monotonic() < self._renew_at:
            return self._token
        async with self._fetching:
            if self._token is None or self._clock.monotonic() >= self._renew_at:
                await self._renew_early()
            assert self._token is not None
            return self._token

    async def renew(self, refused: Secret) -> None:
        """Fetch another token unless somebody did since `refused`. Errors as for `token`."""
        async with self._fetching:
            if self._token == refused:
                await self._fetch()

    async def _renew_early(self) -> None:
        try:
            await self._fetch()
        except TransientError:
            if self._token is None or self._clock.monotonic() >= self._ends_at:
                raise  # otherwise the old one still serves

    async def _fetch(self) -> None:
        try:
            found = await self._source.refresh(timeout=_AUTH_PATIENCE)
        except AsyncSyncError:
            raise
        except (aiohttp.ClientError, OSError, KeyError, ValueError, TypeError) as exc:
            error = _no_token(exc, known=self._token is not None)
        else:
            now, good_s = self._clock.monotonic(), float(found.expires_in)
            self._token = Secret(found.value)
            self._renew_at = now + max(good_s - _EARLY_S, good_s / 2)
            self._ends_at = now + good_s
            return
        raise error  # outside of the handler: theirs shows the request with its secrets


def _no_token(exc: Exception, *, known: bool) -> AsyncSyncError:
    """The error for a token that could not be fetched; `known`: there has been one before."""
    if isinstance(exc, aiohttp.ClientResponseError):
        if exc.status in (408, 429) or exc.status >= 500:
            return TransientError(f"no token for Google Cloud Storage yet ({exc.status})")
        return AccessDeniedError(
            f"the credentials for Google Cloud Storage are refused ({exc.status}); {_ADVICE}"
        )
    if isinstance(exc, aiohttp.ClientError | OSError):
        if known:
            return TransientError("who gives out tokens for Google Cloud Storage does not answer")
        return AccessDeniedError(
            "no credentials for Google Cloud Storage: nobody here gives out tokens; " + _ADVICE
        )
    return AccessDeniedError(f"the credentials for Google Cloud Storage make no sense; {_ADVICE}")


def _ours(what: str, exc: Exception, *, of_object: bool) -> AsyncSyncError:
    """Our error for one of gcloud-aio's or aiohttp's."""
    if isinstance(exc, AsyncSyncError):  # of _Account
        return exc
    if isinstance(exc, aiohttp.ClientResponseError):
        body = exc.message.partition(": ")[2].encode()  # gcloud-aio: "<reason>: <body>"
        return failure(what, Answer(exc.status, exc.headers or {}, body), of_object=of_object)
    if isinstance(exc, aiohttp.ClientError | OSError):
        return _unconnected(what, exc)
    return not_gcs(what)  # what came is no JSON


def _unconnected(what: str, exc: Exception) -> AsyncSyncError:
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return ConfigError(f"{what}: the server's certificate is not trusted; set SSL_CERT_FILE")
    if isinstance(exc, aiohttp.ClientConnectorError):
        return TransientError(f"{what}: cannot connect; check the endpoint and the network")
    if isinstance(exc, TimeoutError):
        return StalledError(f"{what}: no answer in time")
    return DroppedError(f"{what}: the connection broke ({type(exc).__name__})")


# ---------------------------------------------------------------- in a thread


def _credentials(session: Any, threads: Threads) -> Token:
    """Find credentials as Google's own tools do; reads files.

    Raises:
        AccessDeniedError: what is named cannot be read or is not supported.
        ConfigError: gcloud-aio is not installed.
    """
    try:
        from gcloud.aio.auth import Token  # noqa: PLC0415 - loaded when a request needs it
        from gcloud.aio.auth.token import Type  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise _not_installed(exc) from exc

    class Source(Token):
        async def _get_subject_token(
            self,
            credential_source: dict[str, Any],
            timeout: int,  # noqa: ASYNC109 - theirs
        ) -> str:
            if "file" in credential_source:  # read on the loop otherwise, and never as JSON
                return await threads.run(_subject_token, credential_source)
            return await super()._get_subject_token(credential_source, timeout)

    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named:
        _check_file(named)
    try:
        token = Source(session=session, scopes=[_SCOPE])
    except Exception as exc:  # noqa: BLE001 - it raises plain ones
        raise AccessDeniedError(
            f"these credentials for Google Cloud Storage are not supported "
            f"({type(exc).__name__}); {_ADVICE}"
        ) from None
    if token.token_type is Type.GCE_METADATA:
        # The variable counts as it is now, not as it was when the module was loaded.
        host = os.environ.get("GCE_METADATA_HOST") or _METADATA_HOST
        token.token_uri = f"http://{host}{_TOKEN_PATH}"
    return token


def _subject_token(source: dict[str, Any]) -> str:
    """The token that another identity provider keeps in a file."""
    with open(source["file"], encoding="utf-8") as file:
        text = file.read().strip()
    form = source.get("format", {})
    if form.get("type") != "json":
        return text
    return str(json.loads(text)[form["subject_token_field_name"]])


def _check_file(path: str) -> None:
    """gcloud-aio takes a broken file for none and goes on to ask the metadata server."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as exc:
        raise AccessDeniedError(
            f"GOOGLE_APPLICATION_CREDENTIALS names {quote(path)}: {exc.strerror}; correct it"
        ) from exc
    except ValueError:
        found = None
    if not isinstance(found, dict) or "type" not in found:
        raise AccessDeniedError(
            f"GOOGLE_APPLICATION_CREDENTIALS names {quote(path)}, which holds no credentials; "
            "download them again"
        )


def _storage(session: Any, account: _Account | None, root: str, emulated: bool) -> Storage:
    try:
        from gcloud.aio.storage import Storage  # noqa: PLC0415 - loaded when a request needs it
    except ModuleNotFoundError as exc:
        raise _not_installed(exc) from exc
    token = cast("Any", account or _NoAccount())
    return Storage(session=session, token=token, api_root=root, api_is_dev=emulated)


class _NoAccount:
    """For emulators, which ask for no token."""


def _not_installed(exc: ModuleNotFoundError) -> ConfigError:
    return ConfigError(f"gs:// needs {exc.name}: pip install 'asyncsync[gcs]'")
