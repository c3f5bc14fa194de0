"""Buckets and objects of the fake S3 server: what each request does to them."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .s3_faults import Effect
from .s3_wire import (
    CHECKSUMS,
    Page,
    Reply,
    Request,
    S3Error,
    document,
    encode_name,
    http_date,
    iso_date,
)

__all__ = ["Buckets", "Stored", "base64_of", "checksum_of", "kept_headers", "xml"]


@dataclass(frozen=True, slots=True)
class Stored:
    """An object. `checksum` is (algorithm in small letters, value, type), as it was sent."""

    data: bytes = field(repr=False)
    etag: str
    modified: float
    checksum: tuple[str, str, str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Buckets:
    """State and switches; `FakeS3` says what they mean."""

    def __init__(self, buckets: Sequence[str], region: str, page_size: int) -> None:
        self.objects: dict[str, dict[str, Stored]] = {name: {} for name in buckets}
        self.region = region
        self.page_size = page_size
        self.clock_offset_s = 0.0
        self.heeds_conditions = True
        self.accepts_checksums = True
        self.echoes_checksums = True
        self.list_lag = 0
        self.lifecycle: str | None = None
        self._writes: list[tuple[str, str, Stored | None]] = []

    def now(self) -> float:
        """Seconds since 1970 by the server's clock."""
        return time.time() + self.clock_offset_s

    def put(self, key: str, data: bytes, *, bucket: str = "bucket") -> Stored:
        """Store an object without a request."""
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        stored = Stored(data, etag, self.now())
        self._write(bucket, key, stored)
        return stored

    def _bucket(self, request: Request) -> dict[str, Stored]:
        if request.bucket not in self.objects:
            raise S3Error(404, "NoSuchBucket", BucketName=request.bucket)
        return self.objects[request.bucket]

    def _write(self, bucket: str, key: str, stored: Stored | None) -> None:
        held = self.objects[bucket]
        self._writes.append((bucket, key, held.get(key)))
        if stored is None:
            held.pop(key, None)
        else:
            held[key] = stored

    # -- buckets

    def _head_bucket(self, request: Request) -> Reply:
        self._bucket(request)
        return Reply(200, {"x-amz-bucket-region": self.region})

    def _create_bucket(self, request: Request) -> Reply:
        self.objects.setdefault(request.bucket, {})
        return Reply(200, {"Location": f"/{request.bucket}"})

    def _get_bucket_location(self, request: Request) -> Reply:
        self._bucket(request)
        return xml("LocationConstraint", "" if self.region == "us-east-1" else self.region)

    def _get_bucket_lifecycle_configuration(self, request: Request) -> Reply:
        self._bucket(request)
        if self.lifecycle is None:
            raise S3Error(404, "NoSuchLifecycleConfiguration")
        return xml("LifecycleConfiguration", self.lifecycle)

    # -- objects

    def _found(self, request: Request) -> Stored:
        held = self._bucket(request)
        if request.key not in held:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.", Key=request.key)
        return held[request.key]

    def _head_object(self, request: Request) -> Reply:
        reply = self._get_object(request)
        reply.headers["Content-Length"] = str(len(reply.body))
        reply.body = b""
        return reply

    def _get_object(self, request: Request) -> Reply:
        stored = self._found(request)
        headers = {
            "ETag": stored.etag,
            "Last-Modified": http_date(stored.modified),
            "Accept-Ranges": "bytes",
            **stored.headers,
        }
        if self.heeds_conditions:
            if _differs(request.headers.get("If-Match"), stored):
                raise S3Error(412, "PreconditionFailed", Condition="If-Match")
            none = request.headers.get("If-None-Match")
            if none is not None and not _differs(none, stored):
                return Reply(304, {"ETag": stored.etag})
        span = _range(request.headers.get("Range", ""), len(stored.data))
        if span is not None:
            start, end = span
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(stored.data)}"
            return Reply(206, headers, stored.data[start:end])
        if request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
            headers |= self._echo(stored.checksum)
        return Reply(200, headers, stored.data)

    def _put_object(self, request: Request) -> Reply:
        self._check_write(request)
        checksum = self._verify(request)
        stored = Stored(
            request.body,
            f'"{hashlib.md5(request.body).hexdigest()}"',
            self.now(),
            (*checksum, "FULL_OBJECT") if checksum else None,
            kept_headers(request),
        )
        self._write(request.bucket, request.key, stored)
        return Reply(200, {"ETag": stored.etag, **self._echo(stored.checksum)})

    def _delete_object(self, request: Request) -> Reply:
        self._check_write(request)
        if request.key in self._bucket(request):
            self._write(request.bucket, request.key, None)
        return Reply(204)

    def _check_write(self, request: Request) -> None:
        stored = self._bucket(request).get(request.key)
        if len(request.key.encode()) > 1024:
            raise S3Error(400, "KeyTooLongError")
        none, match = request.headers.get("If-None-Match"), request.headers.get("If-Match")
        if not self.heeds_conditions:
            return
        if none is not None and none != "*":
            raise S3Error(501, "NotImplemented", Header="If-None-Match")
        if none is not None and stored is not None:
            raise S3Error(412, "PreconditionFailed", Condition="If-None-Match")
        if match is not None and _differs(match, self._found(request)):
            raise S3Error(412, "PreconditionFailed", Condition="If-Match")

    def _verify(self, request: Request) -> tuple[str, str] | None:
        """The checksum that came with the body, verified, as (algorithm, value)."""
        md5 = request.headers.get("Content-MD5")
        if md5 is not None and md5 != base64_of(hashlib.md5(request.body).digest()):
            raise S3Error(400, "BadDigest", "The Content-MD5 you specified did not match.")
        named = checksum_of(request)
        if named is None:
            return None
        if not self.accepts_checksums:
            name = f"x-amz-checksum-{named[0]}"
            raise S3Error(400, "InvalidRequest", f"Unsupported header {name}")
        algorithm, value = named
        if value != base64_of(CHECKSUMS[algorithm](request.body)):
            upper = algorithm.upper()
            message = f"The {upper} you specified did not match the calculated checksum."
            raise S3Error(400, "BadDigest", message)
        return named

    def _echo(self, checksum: tuple[str, str, str] | None) -> dict[str, str]:
        if checksum is None or not self.echoes_checksums:
            return {}
        algorithm, value, kind = checksum
        return {f"x-amz-checksum-{algorithm}": value, "x-amz-checksum-type": kind}

    # -- listing

    def _list_objects(self, request: Request, effects: Sequence[Effect]) -> Reply:
        keys = self._listed(request)
        page = first = self._page(keys, request.query)
        if "continuation-token" in request.query:
            start = {"continuation-token", "start-after"}
            rest = {name: text for name, text in request.query.items() if name not in start}
            first = self._page(keys, rest)
        for effect in effects:
            if effect.page is not None:
                page = effect.page(request, page, first)
        return xml("ListBucketResult", self._page_xml(request, page))

    def _listed(self, request: Request) -> list[str]:
        """The keys that a listing shows."""
        shown: dict[str, Stored] = self._bucket(request)
        if self.list_lag:
            shown = dict(shown)
            for bucket, key, before in reversed(self._writes[-self.list_lag :]):
                if bucket == request.bucket and before is not None:
                    shown[key] = before
                elif bucket == request.bucket:
                    shown.pop(key, None)
        return sorted(shown)

    def _page(self, keys: Sequence[str], query: Mapping[str, str]) -> Page:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        token = base64.urlsafe_b64decode(query.get("continuation-token", "")).decode()
        after = token or query.get("start-after", "")
        limit = min(int(query.get("max-keys", "1000")), self.page_size)
        found: dict[str, bool] = {}  # name -> whether it stands for deeper keys
        if limit == 0:
            return _make_page(found, None)
        for key in keys:
            if not key.startswith(prefix) or key <= after:
                continue
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            name = key if end < 0 else key[: end + len(delimiter)]
            if name in found or (token and name == token):
                continue
            if len(found) == limit:
                last = next(reversed(found))
                return _make_page(found, base64.urlsafe_b64encode(last.encode()).decode())
            found[name] = end >= 0
        return _make_page(found, None)

    def _page_xml(self, request: Request, page: Page) -> str:
        query, known = request.query, self._bucket(request)
        gone = Stored(b"", '"d41d8cd98f00b204e9800998ecf8427e"', 0.0)
        parts = [
            f"<Name>{request.bucket}</Name>",
            f"<Prefix>{encode_name(query.get('prefix', ''), query)}</Prefix>",
            f"<KeyCount>{len(page.keys) + len(page.prefixes)}</KeyCount>",
            f"<MaxKeys>{query.get('max-keys', '1000')}</MaxKeys>",
            f"<IsTruncated>{'true' if page.next_token else 'false'}</IsTruncated>",
        ]
        if query.get("encoding-type"):
            parts.append(f"<EncodingType>{query['encoding-type']}</EncodingType>")
        if page.next_token:
            parts.append(f"<NextContinuationToken>{page.next_token}</NextContinuationToken>")
        for key in page.keys:
            stored = known.get(key, gone)
            parts.append(
                f"<Contents><Key>{encode_name(key, query)}</Key>"
                f"<LastModified>{iso_date(stored.modified)}</LastModified>"
                f"<ETag>{stored.etag.replace(chr(34), '&quot;')}</ETag>"
                f"<Size>{len(stored.data)}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        for name in page.prefixes:
            inner = f"<Prefix>{encode_name(name, query)}</Prefix>"
            parts.append(f"<CommonPrefixes>{inner}</CommonPrefixes>")
        return "".join(parts)


def checksum_of(request: Request) -> tuple[str, str] | None:
    for algorithm in CHECKSUMS:
        name = f"x-amz-checksum-{algorithm}"
        value = request.headers.get(name) or request.trailers.get(name)
        if value is not None:
            return algorithm, value
    return None


def kept_headers(request: Request) -> dict[str, str]:
    """Headers of a put that an answer to a get repeats."""
    kept = {
        name: value
        for name, value in request.headers.items()
        if name.lower() == "content-type" or name.lower().startswith("x-amz-meta-")
    }
    return {"Content-Type": "binary/octet-stream", **kept}


def _differs(condition: str | None, stored: Stored) -> bool:
    return condition not in {None, "*"} and str(condition).strip('"') != stored.etag.strip('"')


def _range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None if it is no range."""
    unit, _, span = header.partition("=")
    first, dash, last = span.partition("-")
    if unit != "bytes" or not dash or "," in span or not (first + last).isdigit():
        return None
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
    if start >= size:
        raise S3Error(
            416,
            "InvalidRange",
            "The requested range is not satisfiable",
            headers={"Content-Range": f"bytes */{size}"},
            ActualObjectSize=str(size),
        )
    return (start, end) if start < end else None


def _make_page(found: Mapping[str, bool], next_token: str | None) -> Page:
    keys = tuple(name for name, deeper in found.items() if not deeper)
    prefixes = tuple(name for name, deeper in found.items() if deeper)
    return Page(keys, prefixes, next_token)


def base64_of(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def xml(root: str, inner: str, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(200, {"Content-Type": "application/xml", **(headers or {})}, document(root, inner))
