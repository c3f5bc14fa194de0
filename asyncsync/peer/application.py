"""From a request to its answer: the frame around both, and what has to be true before any work."""

from __future__ import annotations

import asyncio
import math
import re
from contextlib import AsyncExitStack
from typing import NamedTuple

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from ..errors import (
    AccessDeniedError,
    AsyncSyncError,
    FormatError,
    NotFoundError,
    TransientError,
)
from ..units import KIB
from ..wire import messages as m
from ..wire.claims import Claims, Operation
from ..wire.failures import CodingError, UnauthorizedError, fault_of
from .audit import Entry, note
from .calls import Answer, Call, Head
from .guard import Guard, check_operations
from .handlers import HANDLERS
from .mishaps import tell
from .queues import Queue, Queues

__all__ = ["Application", "Found", "find", "new_request"]

_NOBODY = Claims(
    scope="", operations=frozenset({Operation.LIST}), not_before=0, expires_at=1, id="0" * 32
)
_LARGE_BYTES = 256 * KIB
_REQUEST_ID = re.compile(r"[0-9a-f]{1,32}")
_PLACES = {"{session}": "(?P<session>[0-9a-f]{32})", "{blob}": "(?P<blob>0|[1-9][0-9]{0,9})"}
# What changes how a request is read, or by whom, does not exist here.
_OUT_OF_STEP = (400, 415)  # whoever sends such a request may see its end elsewhere
_FOREIGN = ("Transfer-Encoding", "Upgrade", "Expect", "Trailer")


class Found(NamedTuple):
    """A route, and what a target says in its places."""

    name: str
    route: m.Route
    session: str = ""
    blob: int = 0


def _pattern(route: m.Route) -> re.Pattern[str]:
    path = re.escape(m.BASE + route.path).replace(r"\{", "{").replace(r"\}", "}")
    for place, pattern in _PLACES.items():
        path = path.replace(place, pattern)
    return re.compile(path)


_PLAIN = {
    (route.method, route.url()): Found(name, route)
    for name, route in m.ROUTES.items()
    if "{" not in route.path
}
_WITH_PLACES = [
    (_pattern(route), Found(name, route)) for name, route in m.ROUTES.items() if "{" in route.path
]


def find(method: str, target: str) -> Found | None:
    """The route of a request. Its target has one spelling, and nothing in it is decoded. Pure."""
    if (plain := _PLAIN.get((method, target))) is not None:
        return plain
    for pattern, found in _WITH_PLACES:
        if method == found.route.method and (match := pattern.fullmatch(target)) is not None:
            places = match.groupdict()
            return found._replace(session=places["session"], blob=int(places.get("blob") or 0))
    return None


class _Request(web.BaseRequest):
    """A request whose answer, whoever makes it, has the frame of the protocol, and no banner."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.pop("Server", None)
        response.headers[m.VERSION_HEADER] = str(m.VERSION)
        number = self.headers.get(m.REQUEST_ID, "")
        if _REQUEST_ID.fullmatch(number):
            response.headers[m.REQUEST_ID] = number


def new_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """What aiohttp makes of the head of a request, one that it could not read among them."""
    return _Request(message, payload, protocol, writer, task, asyncio.get_running_loop())


class Application:
    """Answers every request: with a refusal, unless a route is known and its policy allows it."""

    def __init__(self, head: Head, guard: Guard) -> None:
        self._head, self._guard = head, guard
        self._queues = Queues(head.limits.max_connections_per_token, head.share_bytes)

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to a request. Never an error."""
        found: Answer | web.StreamResponse
        entry = Entry(request.remote or "", request.content_length or 0)
        error: Exception | None = None
        try:
            found = await self._answer(request, entry)
        except AsyncSyncError as exc:
            error = exc
            # A stranger must not keep a connection by a body that comes drop by drop.
            within_s = math.inf if entry.token else self._head.limits.json_deadline_s
            await self._head.bodies.drop(request, within_s)
            found = self._failed(exc)
        except Exception as exc:  # noqa: BLE001 - a bug: whoever runs the head hears of it
            error = exc
            tell(f"the head failed at {request.method}", exc)
            found = self._failed(TransientError("the head failed; its log says how"))
        note(entry, error, self._head.clock.now())
        if isinstance(found, web.StreamResponse):
            return found
        response = web.Response(body=found.body, status=found.status, headers=found.headers)
        response.content_type = m.CONTENT_TYPE
        if found.status in _OUT_OF_STEP:
            response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest, entry: Entry) -> Answer | web.StreamResponse:
        asked = find(request.method, request.raw_path)
        if asked is None:
            raise NotFoundError("there is no such request")
        _check_frame(request, asked.route)
        if "public" in asked.route.needs:
            return await self._handle(request, entry, _NOBODY, asked, Queue(0, 0))
        entry.operation, entry.route = asked.name, asked.route
        claims = self._admit(request, entry, asked.route)
        async with self._queues.turn(claims.id) as queue:
            return await self._handle(request, entry, claims, asked, queue)

    async def _handle(
        self, request: web.BaseRequest, entry: Entry, claims: Claims, asked: Found, queue: Queue
    ) -> Answer | web.StreamResponse:
        async with AsyncExitStack() as holds:
            call = Call(
                request, entry, claims, asked.route, queue, holds, asked.session, asked.blob
            )
            found = await HANDLERS[asked.name](self._head, call)
            if isinstance(found, Answer) and len(found.body) > _LARGE_BYTES:
                # By slices: aiohttp would copy what is not taken at once.
                body, status, headers = found
                found = await self._head.bodies.send(request, [memoryview(body)], status, headers)
            return found

    def _admit(self, request: web.BaseRequest, entry: Entry, route: m.Route) -> Claims:
        shown = request.headers.getall("Authorization", [])
        claims = self._guard.admit(shown, entry.address)
        entry.token = claims.id
        check_operations(claims, route)
        if route.changes and self._head.readonly:
            raise AccessDeniedError("this head is read-only")
        return claims

    def _failed(self, error: AsyncSyncError) -> Answer:
        status, fault = fault_of(error, hide=self._head.root)
        headers = {}
        if isinstance(error, UnauthorizedError):
            headers["WWW-Authenticate"] = "Bearer"
        if status == 429 and fault.retry_after_s is not None:
            headers["Retry-After"] = str(math.ceil(fault.retry_after_s))
        return Answer(m.encode(fault), status, headers)


def _check_frame(request: web.BaseRequest, route: m.Route) -> None:
    """Refuse a request that could be read in another way than it is read here."""
    if request.headers.get(m.VERSION_HEADER) != str(m.VERSION):
        raise FormatError(f"this head speaks version {m.VERSION} of the protocol")
    if "Content-Encoding" in request.headers:
        raise CodingError("a body in another coding; send it as it is")
    for name in _FOREIGN:
        if name in request.headers:
            raise FormatError(f"a request with {name}; send it without")
    if request.content_length and not route.has_body:
        raise FormatError("a body where there is none; send it without")
