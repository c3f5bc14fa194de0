"""What goes over the wire to the fake S3 server and back: requests, replies, XML, signatures."""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, quote_plus, unquote
from xml.sax.saxutils import escape

from aiohttp import web

__all__ = [
    "CHECKSUMS",
    "Credentials",
    "Delivery",
    "Page",
    "Reply",
    "Request",
    "S3Error",
    "authenticate",
    "document",
    "error_reply",
    "http_date",
    "iso_date",
    "operation_of",
    "unchunk",
]

MAX_SKEW_S = 15 * 60


def _crc32c(data: bytes) -> bytes:
    from crc32c import crc32c

    return int(crc32c(data)).to_bytes(4, "big")


CHECKSUMS: dict[str, Callable[[bytes], bytes]] = {
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "crc32c": _crc32c,
    "sha1": lambda data: hashlib.sha1(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}


@dataclass(eq=False, slots=True)
class Request:
    """A request as it arrived.

    Attributes:
        number: which one of all that the server has had, counted from 1.
        operation: its name in the S3 API, such as "PutObject".
        trailers: headers that came behind the body, in small letters.
        status: of the answer; 0 while there is none, and when the client cannot have seen one.
    """

    number: int
    operation: str
    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: Mapping[str, str]
    http: web.BaseRequest = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    trailers: dict[str, str] = field(default_factory=dict)
    status: int = 0


@dataclass(eq=False, slots=True)
class Reply:
    """An answer; `delivery`, if set, is what sends it."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    delivery: Delivery | None = None

    def head(self, *, length: bool = True) -> bytes:
        """Status line and headers as bytes, for a delivery of its own."""
        lines = [f"HTTP/1.1 {self.status} Status", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if length and "Content-Length" not in self.headers:
            lines.append(f"Content-Length: {len(self.body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


Delivery = Callable[[Request, Reply], Awaitable[None]]


class Page(NamedTuple):
    """A page of a listing: keys, names that stand for deeper keys, where to go on."""

    keys: tuple[str, ...]
    prefixes: tuple[str, ...]
    next_token: str | None


class S3Error(Exception):
    """An answer that is an error; `extra` goes into the document."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        **extra: str,
    ) -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message or code
        self.headers, self.extra = dict(headers or {}), extra


def document(root: str, inner: str) -> bytes:
    """An XML document in the namespace of S3."""
    space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} {space}>{inner}</{root}>'.encode()


def error_reply(error: S3Error, resource: str = "") -> Reply:
    fields = {"Code": error.code, "Message": error.message, "Resource": resource, **error.extra}
    inner = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in fields.items())
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'.encode()
    return Reply(error.status, {"Content-Type": "application/xml", **error.headers}, body)


@lru_cache
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def http_date(seconds: float) -> str:
    return _date(int(seconds))


def iso_date(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def encode_name(name: str, query: Mapping[str, str]) -> str:
    """A key as it stands in a listing."""
    return quote_plus(name, safe="/") if query.get("encoding-type") == "url" else escape(name)


# -- which operation it is

_OPERATIONS: dict[tuple[str, bool], tuple[tuple[str, str], ...]] = {
    ("GET", False): (
        ("uploads", "ListMultipartUploads"),
        ("lifecycle", "GetBucketLifecycleConfiguration"),
        ("location", "GetBucketLocation"),
        ("list-type", "ListObjectsV2"),
    ),
    ("HEAD", False): (("", "HeadBucket"),),
    ("PUT", False): (("", "CreateBucket"),),
    ("POST", True): (
        ("uploads", "CreateMultipartUpload"),
        ("uploadId", "CompleteMultipartUpload"),
    ),
    ("PUT", True): (("uploadId", "UploadPart"), ("", "PutObject")),
    ("GET", True): (("uploadId", "ListParts"), ("", "GetObject")),
    ("HEAD", True): (("", "HeadObject"),),
    ("DELETE", True): (("uploadId", "AbortMultipartUpload"), ("", "DeleteObject")),
}


def operation_of(method: str, key: str, query: Mapping[str, str]) -> str:
    """The name in the S3 API; "Unknown" for what this server does not do."""
    for parameter, name in _OPERATIONS.get((method, bool(key)), ()):
        if not parameter or parameter in query:
            return name
    return "Unknown"


# -- signatures


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Whom the server knows. `expires_at` is seconds since 1970 by the server's clock."""

    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires_at: float | None = None


def authenticate(
    request: Request, known: Mapping[str, Credentials], region: str, now: float
) -> None:
    """Check the signature (version 4, in the header) as S3 does; S3Error if it is not right."""
    scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
    if scheme != "AWS4-HMAC-SHA256":
        raise S3Error(403, "AccessDenied", "Access Denied")
    given = dict(item.strip().partition("=")[::2] for item in rest.split(","))
    access_key, _, scope = given["Credential"].partition("/")
    if access_key not in known:
        raise S3Error(403, "InvalidAccessKeyId", AWSAccessKeyId=access_key)
    who = known[access_key]
    _check_time(request, now)
    _check_token(request, who, now)
    _check_region(scope, region)
    _check_signed(request, given["SignedHeaders"].split(";"))
    expected = _signature(request, given["SignedHeaders"], scope, who.secret)
    if not hmac.compare_digest(expected, given["Signature"]):
        raise S3Error(403, "SignatureDoesNotMatch")
    promised = request.headers.get("x-amz-content-sha256", "")
    if len(promised) == 64 and promised != hashlib.sha256(request.body).hexdigest():
        raise S3Error(400, "XAmzContentSHA256Mismatch")


def _check_time(request: Request, now: float) -> None:
    stamp = request.headers.get("x-amz-date", "")
    try:
        sent = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise S3Error(403, "AccessDenied", "AWS authentication requires a valid date") from None
    if abs(now - sent) > MAX_SKEW_S:
        raise S3Error(
            403,
            "RequestTimeTooSkewed",
            "The difference between the request time and the current time is too large.",
            RequestTime=stamp,
            ServerTime=iso_date(now),
        )


def _check_token(request: Request, who: Credentials, now: float) -> None:
    if request.headers.get("x-amz-security-token") != who.token:
        raise S3Error(400, "InvalidToken", "The provided token is malformed or otherwise invalid.")
    if who.expires_at is not None and now >= who.expires_at:
        raise S3Error(400, "ExpiredToken", "The provided token has expired.")


def _check_region(scope: str, region: str) -> None:
    _, asked, service, end = scope.split("/")
    if asked != region or (service, end) != ("s3", "aws4_request"):
        raise S3Error(
            400,
            "AuthorizationHeaderMalformed",
            f"the region '{asked}' is wrong; expecting '{region}'",
            headers={"x-amz-bucket-region": region},
            Region=region,
        )


def _check_signed(request: Request, signed: list[str]) -> None:
    if "x-amz-content-sha256" not in request.headers:
        raise S3Error(400, "InvalidRequest", "Missing required header: x-amz-content-sha256")
    for name in map(str.lower, request.headers):
        if (name.startswith("x-amz-") or name == "host") and name not in signed:
            message = "There were headers present in the request which were not signed"
            raise S3Error(403, "AccessDenied", message, HeadersNotSigned=name)


def _signature(request: Request, signed: str, scope: str, secret: str) -> str:
    path, _, query = request.http.raw_path.partition("?")
    pairs = sorted(
        tuple(quote(unquote(text), safe="-_.~") for text in item.partition("=")[::2])
        for item in query.split("&")
        if item
    )
    canonical = "\n".join(
        [
            request.method,
            quote(unquote(path), safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in pairs),
            *(f"{name}:{' '.join(request.headers[name].split())}" for name in signed.split(";")),
            "",
            signed,
            request.headers["x-amz-content-sha256"],
        ]
    )
    text = "\n".join(
        [
            "AWS4-HMAC-SHA256",
            request.headers["x-amz-date"],
            scope,
            hashlib.sha256(canonical.encode()).hexdigest(),
        ]
    )
    return _hmac(_signing_key(secret, scope), text).hex()


@lru_cache
def _signing_key(secret: str, scope: str) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


# -- bodies in chunks with trailers


def unchunk(body: bytes) -> tuple[bytes, dict[str, str]]:
    """Data and trailing headers of a body in the aws-chunked encoding."""
    pieces: list[bytes] = []
    position = 0
    while True:
        end = body.index(b"\r\n", position)
        size = int(body[position:end].split(b";")[0], 16)
        position = end + 2
        if size == 0:
            break
        pieces.append(body[position : position + size])
        position += size + 2
    lines = body[position:].decode().split("\r\n")
    trailers = dict(line.partition(":")[::2] for line in lines if ":" in line)
    return b"".join(pieces), {name.strip().lower(): text.strip() for name, text in trailers.items()}
