"""Requests to the fake Cloud Storage: which operation they ask for, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiohttp import ClientPayloadError, web

from .gcs_faults import Fault
from .gcs_wire import RefusedError, Session

__all__ = [
    "Call",
    "CutError",
    "Seen",
    "arriving",
    "body_of",
    "refusal",
    "resume_incomplete",
    "route",
    "seen",
]


@dataclass(frozen=True)
class Seen:
    """A request, and how it was answered; status 0: not at all."""

    method: str
    operation: str
    name: str
    status: int
    answered: bool
    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, str] = field(repr=False)
    size_bytes: int = 0


class CutError(Exception):
    """The connection ends here, without an answer."""


@dataclass
class Call:
    """One request on its way."""

    request: web.BaseRequest
    operation: str
    bucket: str = ""
    name: str = ""
    target: tuple[str, str] = ("", "")
    faults: list[Fault] = field(default_factory=list)
    size_bytes: int = 0

    def first(self, effect: str) -> Any:
        """The value of the first fault that has this effect; None if there is none."""
        found = (getattr(fault, effect) for fault in self.faults)
        return next((value for value in found if value not in (None, False, 0, "")), None)

    def bytes_of(self, effect: str) -> int | None:
        """The same where 0 is an effect."""
        found = (getattr(fault, effect) for fault in self.faults)
        return next((value for value in found if value is not None), None)

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query


def route(request: web.BaseRequest) -> Call:
    """Which operation a request asks for. Names are taken from the path as it was sent."""
    path = request.raw_path.partition("?")[0]
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[0] in ("token", "computeMetadata"):
        return Call(request, "token")
    match parts:
        case ["upload", "storage", "v1", "b", bucket, "o"]:
            return Call(request, _upload(request), bucket, request.query.get("name", ""))
        case ["download", "storage", "v1", "b", bucket, "o", name]:
            return Call(request, "read", bucket, name)
        case ["storage", "v1", "b", *rest]:
            return _of_bucket(request, rest)
    return Call(request, "unknown")


def _of_bucket(request: web.BaseRequest, parts: list[str]) -> Call:
    found = Call(request, "unknown", parts[0] if parts else "", parts[2] if parts[2:] else "")
    match parts[1:]:
        case []:
            found.operation = "bucket" if parts else "buckets"
        case ["o"] if request.method == "GET":
            found.operation = "list"
        case ["o", _]:
            found.operation = _of_object(request)
        case ["o", _, "compose"]:
            found.operation = "compose"
        case ["o", _, "rewriteTo", "b", bucket, "o", name]:
            found.operation, found.target = "rewrite", (bucket, name)
    return found


def _upload(request: web.BaseRequest) -> str:
    if "upload_id" not in request.query:
        kinds = {"media": "media", "multipart": "multipart", "resumable": "start"}
        return kinds.get(request.query.get("uploadType", ""), "unknown")
    if request.method == "DELETE":
        return "cancel"
    asks = request.headers.get("Content-Range", "").startswith("bytes */")
    return "status" if asks else "chunk"


def _of_object(request: web.BaseRequest) -> str:
    if request.method == "GET":
        return "read" if request.query.get("alt") == "media" else "get"
    return {"DELETE": "delete", "PATCH": "patch"}.get(request.method, "unknown")


def seen(call: Call, status: int, *, answered: bool) -> Seen:
    return Seen(
        method=call.request.method,
        operation=call.operation,
        name=call.name,
        status=status,
        answered=answered,
        headers=call.request.headers,
        query=dict(call.query),
        size_bytes=call.size_bytes,
    )


async def body_of(call: Call) -> bytes:
    data, whole = await arriving(call)
    if not whole:
        raise CutError
    return data


async def arriving(call: Call, *, limit: int | None = None) -> tuple[bytes, bool]:
    """The body, or as much of it as arrives or as the limit says; and whether that is all."""
    data = bytearray()
    try:
        async for piece in call.request.content.iter_any():
            data += piece
            if limit is not None and len(data) >= limit:
                break
    except (ConnectionError, ClientPayloadError):
        return bytes(data), False
    call.size_bytes = len(data)
    return bytes(data[:limit]), limit is None


def refusal(call: Call, exc: RefusedError) -> web.Response:
    """An error as the service words it: JSON, and plain text where the body would be bytes."""
    if exc.status == 304:
        return web.Response(status=304)
    if call.operation == "read" or exc.status in (499, 416):
        return web.Response(status=exc.status, text=str(exc), content_type="text/html")
    reasons = {401: "authError", 403: "forbidden", 404: "notFound", 412: "conditionNotMet"}
    reason = reasons.get(exc.status, "backendError" if exc.status >= 500 else "invalid")
    each = {"message": str(exc), "domain": "global", "reason": reason}
    error = {"code": exc.status, "message": str(exc), "errors": [each]}
    return web.json_response({"error": error}, status=exc.status)


def resume_incomplete(call: Call, session: Session) -> web.Response:
    headers = {"X-GUploader-UploadID": "x"}
    if session.received and not call.first("bare"):
        headers["Range"] = f"bytes=0-{len(session.received) - 1}"
    return web.Response(status=308, reason="Resume Incomplete", headers=headers)
