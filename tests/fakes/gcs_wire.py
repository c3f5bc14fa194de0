"""The wire format of Cloud Storage's JSON API: objects, preconditions, ranges, listings. No I/O."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from email.utils import formatdate
from typing import Any

import crc32c

__all__ = [
    "GRANULE_BYTES",
    "MAX_SOURCES",
    "Json",
    "RefusedError",
    "Session",
    "Stored",
    "byte_range",
    "check",
    "content_range",
    "hashes",
    "keep",
    "listed",
    "media_headers",
    "only_fields",
    "source_of",
    "two_parts",
]

GRANULE_BYTES = 256 * 1024
MAX_SOURCES = 32
_PAGE = 1000

Json = dict[str, Any]


class RefusedError(Exception):
    """What the service answers instead of doing it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Stored:
    """An object as it is kept; `data` is what is stored, not what transcoding makes of it."""

    name: str
    data: bytes
    generation: int
    bucket: str = "bucket"
    content_type: str = "application/octet-stream"
    content_encoding: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    updated_at: float = 0.0
    components: int = 0

    @property
    def crc32c(self) -> str:
        """As the API writes it: base64 of four bytes, the most significant first."""
        return base64.b64encode(crc32c.crc32c(self.data).to_bytes(4, "big")).decode()

    @property
    def md5(self) -> str:
        """Base64; a composite object has none, but that is left to whoever shows it."""
        return base64.b64encode(hashlib.md5(self.data).digest()).decode()

    def resource(self) -> Json:
        """The object's metadata as the API shows it."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.updated_at))
        shown: Json = {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": "1",
            "contentType": self.content_type,
            "size": str(len(self.data)),
            "crc32c": self.crc32c,
            "etag": base64.b64encode(str(self.generation).encode()).decode(),
            "timeCreated": f"{stamp}.{int(self.updated_at % 1 * 1000):03}Z",
            "updated": f"{stamp}.{int(self.updated_at % 1 * 1000):03}Z",
            "storageClass": "STANDARD",
        }
        if self.components:
            shown["componentCount"] = self.components
        else:
            shown["md5Hash"] = self.md5
        if self.content_encoding:
            shown["contentEncoding"] = self.content_encoding
        if self.metadata:
            shown["metadata"] = self.metadata
        return shown


@dataclass
class Session:
    """A resumable upload: what has arrived, and what it became."""

    bucket: str
    name: str
    query: Mapping[str, str]
    resource: Json
    total: int | None = None
    received: bytearray = field(default_factory=bytearray)
    done: Json | None = None
    expired: int = 0
    """Status that every further request gets: 404, 410 or, when the client ended it, 499."""


def content_range(headers: Mapping[str, str]) -> tuple[int, int | None, int | None]:
    """Start, end (exclusive) and total; without the header the body is all there is."""
    text = headers.get("Content-Range")
    if text is None:
        return 0, None, None
    span, _, total = text.removeprefix("bytes ").partition("/")
    first, _, final = span.partition("-")
    return int(first), int(final) + 1, None if total == "*" else int(total)


def byte_range(text: str | None, size_bytes: int) -> tuple[int, int]:
    if text is None:
        return 0, size_bytes
    first, _, final = text.removeprefix("bytes=").partition("-")
    if not first:
        return max(0, size_bytes - int(final)), size_bytes
    if int(first) >= size_bytes:
        raise RefusedError(416, "Requested range not satisfiable")
    return int(first), min(size_bytes, int(final) + 1 if final else size_bytes)


def hashes(headers: Mapping[str, str]) -> Json:
    """What `X-Goog-Hash: crc32c=...,md5=...` demands of the bytes."""
    known = {"crc32c": "crc32c", "md5": "md5Hash"}
    pairs = (item.strip().partition("=") for item in headers.get("X-Goog-Hash", "").split(","))
    return {known[name]: value for name, _, value in pairs if name in known}


def two_parts(content_type: str, body: bytes) -> tuple[Json, bytes]:
    """The two parts of a multipart/related upload."""
    text = b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body
    message = BytesParser(policy=HTTP).parsebytes(text)
    parts = message.get_payload()
    if not isinstance(parts, list) or len(parts) != 2:
        raise RefusedError(400, "a multipart upload has two parts")
    boundary = b"\r\n--" + str(message.get_boundary()).encode()
    # The parser may change line ends of binary data, so they are cut out of the original.
    data = body.split(boundary)[1].split(b"\r\n\r\n", 1)[1]
    resource = json.loads(parts[0].get_payload())  # type: ignore[union-attr,arg-type]
    resource.setdefault("contentType", parts[1].get_content_type())  # type: ignore[union-attr]
    return resource, data


# ---------------------------------------------------------------- deciding


def check(stored: Stored | None, query: Mapping[str, str | None]) -> None:
    """The preconditions of a request against what is there."""
    generation = str(stored.generation) if stored else "0"
    if query.get("ifGenerationMatch") not in (None, generation):
        raise RefusedError(412, "At least one of the pre-conditions you specified did not hold.")
    if query.get("ifGenerationNotMatch") == generation:
        raise RefusedError(304, "not modified")
    if query.get("ifMetagenerationMatch") not in (None, "1"):
        raise RefusedError(412, "At least one of the pre-conditions you specified did not hold.")


def source_of(there: Mapping[str, Stored], wanted: Json) -> Stored:
    stored = there.get(wanted["name"])
    if stored is None or wanted.get("generation") not in (None, str(stored.generation)):
        raise RefusedError(404, f"Object {wanted['name']} not found.")
    match = (wanted.get("objectPreconditions") or {}).get("ifGenerationMatch")
    check(stored, {"ifGenerationMatch": None if match is None else str(match)})
    return stored


def keep(session: Session, start: int, data: bytes, limit: int | None, *, last: bool) -> None:
    """Take what is new of a chunk; unless it is the last, only up to a multiple of the granule."""
    fresh = data[:limit][max(0, len(session.received) - start) :]
    end = len(session.received) + len(fresh)
    if not last:
        end = max(len(session.received), end // GRANULE_BYTES * GRANULE_BYTES)
    session.received += fresh[: end - len(session.received)]


def listed(there: Mapping[str, Stored], query: Mapping[str, str]) -> Json:
    """One page of a listing."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    token = base64.urlsafe_b64decode(query.get("pageToken", "")).decode()
    size = min(int(query.get("maxResults", _PAGE)), _PAGE)
    start, end = query.get("startOffset", ""), query.get("endOffset", "")
    found: dict[str, Stored | None] = {}
    for name in sorted(n for n in there if n.startswith(prefix) and n >= start):
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        shown = name if cut < 0 else name[: cut + len(delimiter)]
        if shown > token and not (end and name >= end):
            found.setdefault(shown, None if cut >= 0 else there[name])
    page = list(found)[:size]
    answer: Json = {"kind": "storage#objects"}
    items = [stored.resource() for name in page if (stored := found[name])]
    prefixes = [name for name in page if found[name] is None]
    answer.update({"items": items} if items else {}, **{"prefixes": prefixes} if prefixes else {})
    if len(found) > size:
        answer["nextPageToken"] = base64.urlsafe_b64encode(page[-1].encode()).decode()
    return answer


def only_fields(answer: Json, query: Mapping[str, str]) -> Json:
    """Only what `fields=a,b(c,d)` asks for."""
    if "fields" not in query:
        return answer
    wanted, _ = _parsed_fields(query["fields"])
    return dict(_picked(answer, wanted))


def _parsed_fields(text: str) -> tuple[Json, str]:
    wanted: Json = {}
    while text and text[0] != ")":
        text = text.lstrip(",")
        size = next((i for i, c in enumerate(text) if c in ",()"), len(text))
        name, text = text[:size].strip(), text[size:]
        inner: Json = {}
        if text.startswith("("):
            inner, text = _parsed_fields(text[1:])
            text = text[1:]
        wanted[name] = inner
    return wanted, text


def _picked(value: Any, wanted: Json) -> Any:
    if not wanted or "*" in wanted:
        return value
    if isinstance(value, list):
        return [_picked(item, wanted) for item in value]
    return {name: _picked(value[name], inner) for name, inner in wanted.items() if name in value}


def media_headers(stored: Stored) -> dict[str, str]:
    hashes = f"crc32c={stored.crc32c}" + ("" if stored.components else f",md5={stored.md5}")
    return {
        "Content-Type": stored.content_type,
        "Accept-Ranges": "bytes",
        "ETag": str(stored.resource()["etag"]),
        "Last-Modified": formatdate(stored.updated_at, usegmt=True),
        "x-goog-generation": str(stored.generation),
        "x-goog-metageneration": "1",
        "x-goog-hash": hashes,
        "x-goog-storage-class": "STANDARD",
        "x-goog-stored-content-encoding": stored.content_encoding or "identity",
        "x-goog-stored-content-length": str(len(stored.data)),
    }
