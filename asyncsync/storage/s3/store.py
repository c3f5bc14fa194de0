"""S3Objects: a bucket as an ObjectStore.

Objects and parts travel by our own requests, and so do HEAD and DELETE, of which there may be
thousands. What has a document in it is written and read by the SDK.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote as percent

from ...clock import Clock
from ...concurrency import Threads
from ...errors import (
    AccessDeniedError,
    CorruptedError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    RefusedError,
    TransientError,
    quote,
    quote_some,
)
from ..checksums import crc_text
from ..http import Answer, http_time
from ..objects import (
    MARKED_TYPE,
    Capabilities,
    Condition,
    Data,
    Examined,
    Fetched,
    ObjectInfo,
    Part,
    Upload,
)
from .answers import fault_of, is_page, lacking, not_s3, rejects_extras
from .checks import Ongoing, Proof, check_echo, prove_crc, prove_md5
from .connection import Connection
from .listing import list_objects, list_uploads, unquoted

__all__ = ["S3Objects"]

_AT_AWS, _ELSEWHERE = Capabilities(assured=True), Capabilities(assured=False)
_CONTENT_TYPE = {"Content-Type": MARKED_TYPE}
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class S3Objects:
    """The objects of one bucket. See ObjectStore for the contract. Tags are ETags without quotes.

    Constructing it loads and asks nothing; the first request connects.

    Args:
        options: endpoint_url, region, profile and addressing (auto, path, virtual), each optional.
        max_requests: connections at once.
    """

    def __init__(
        self,
        bucket: str,
        options: Mapping[str, str],
        *,
        threads: Threads,
        clock: Clock,
        max_requests: int = 32,
    ) -> None:
        self._threads = threads
        self._connection = Connection(
            bucket, options, threads=threads, clock=clock, max_requests=max_requests
        )
        self._sends_crc = True
        self._checks_uploads = True
        self._ongoing: dict[str, Ongoing] = {}

    @property
    def capabilities(self) -> Capabilities:
        return _AT_AWS if self._connection.at_aws else _ELSEWHERE

    # -- objects

    async def head(self, key: str) -> ObjectInfo:
        what = self._what("look at", key)
        answer = await self._connection.send("HEAD", key, {}, what=what)
        self._check(what, answer)
        size = answer.headers.get("Content-Length", "")
        if not size.isdecimal():
            raise not_s3(what, answer)
        return self._info(what, key, answer, int(size))

    async def get(
        self,
        key: str,
        start: int = 0,
        end: int | None = None,
        *,
        tag: str | None = None,
        into: memoryview | None = None,
    ) -> Fetched:
        what = self._what("get", key)
        if end is not None and end <= start:
            return self._nothing(what, await self.head(key), start, end, tag)
        headers = {"If-Match": _quoted(tag)} if tag is not None else {}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        if into is not None and end is not None:
            into = into[: end - start]
        answer = await self._connection.send("GET", key, headers, what=what, into=into)
        if answer.status == 416:
            return self._nothing(what, await self.head(key), start, end, tag)
        self._check(what, answer)
        info = self._info(what, key, answer, _whole_size(what, answer, start, end))
        _check_tag(what, info, tag)
        return Fetched(info, answer.body)

    def _nothing(
        self, what: str, info: ObjectInfo, start: int, end: int | None, tag: str | None
    ) -> Fetched:
        _check_tag(what, info, tag)
        if start < info.size_bytes and (end is None or start < end):
            raise TransientError(f"{what}: the object was replaced meanwhile")
        return Fetched(info, b"")

    async def put(self, key: str, data: Data, *, condition: Condition | None = None) -> ObjectInfo:
        what = self._what("put", key)
        self._check_key(what, key)
        if len(data) > self.capabilities.max_put_bytes:
            raise PermanentError(f"{what}: too large for one put; use an upload")
        tag, _ = await self._send(key, "", _condition_headers(condition), data, what)
        return ObjectInfo(key, len(data), tag)

    async def delete(self, key: str, *, tag: str | None = None) -> None:
        what = self._what("delete", key)
        headers = {"If-Match": _quoted(tag)} if tag is not None else {}
        answer = await self._connection.send("DELETE", key, headers, what=what)
        try:
            self._check(what, answer)
        except NotFoundError:
            return
        except PreconditionError:
            if await self._exists(key):
                raise

    async def _exists(self, key: str) -> bool:
        try:
            await self.head(key)
        except NotFoundError:
            return False
        return True

    # -- listings

    async def scan(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        what = self._what("list", prefix)
        async for info in list_objects(self._connection, what, prefix):
            yield info

    async def scan_level(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        what = self._what("list", prefix)
        async for info in list_objects(self._connection, what, prefix, delimiter="/"):
            yield info

    async def scan_uploads(self, prefix: str) -> AsyncIterator[Upload]:
        what = self._what("list uploads below", prefix)
        try:
            async for upload in list_uploads(self._connection, what, prefix):
                yield upload
        except NotFoundError:  # how some servers say that there are none
            return

    # -- multipart

    async def create_upload(self, key: str) -> Upload:
        what = self._what("begin an upload of", key)
        self._check_key(what, key)
        extras = _UPLOAD_CHECKS if self._checks_uploads else {}
        plain = {"Key": key, "ContentType": MARKED_TYPE}
        answer = await self._with_extras(what, "create_multipart_upload", plain, extras)
        upload = Upload(key, answer["UploadId"])
        self._ongoing[upload.upload_id] = Ongoing(
            declared=answer.get("ChecksumAlgorithm") == "CRC32",
            whole=answer.get("ChecksumType") == "FULL_OBJECT",
        )
        return upload

    async def put_part(self, upload: Upload, number: int, data: Data) -> Part:
        what = self._what(f"put part {number} of", upload.key)
        if not 1 <= number <= self.capabilities.max_parts:
            raise PermanentError(f"{what}: parts go from 1 to {self.capabilities.max_parts}")
        query = f"partNumber={number}&uploadId={percent(upload.upload_id, safe='-._~')}"
        tag, proof = await self._send(upload.key, query, {}, data, what)
        if proof.crc is not None and upload.upload_id in self._ongoing:
            self._ongoing[upload.upload_id].crcs[number, tag] = proof.crc
        return Part(number, tag, len(data))

    async def complete_upload(
        self, upload: Upload, parts: Sequence[Part], *, condition: Condition | None = None
    ) -> ObjectInfo:
        what = self._what("complete the upload of", upload.key)
        ongoing = self._ongoing.get(upload.upload_id, Ongoing())
        crc = ongoing.of_whole(parts)
        size_bytes = sum(part.size_bytes for part in parts)
        plain = {
            "Key": upload.key,
            "UploadId": upload.upload_id,
            "MultipartUpload": {"Parts": [_plain_part(part) for part in parts]},
            **_condition_parameters(condition),
        }
        extras: dict[str, Any] = {}
        if self._checks_uploads:
            extras["MpuObjectSize"] = size_bytes
            listed = [_checked_part(part, ongoing) for part in parts]
            extras["MultipartUpload"] = {"Parts": listed}
        if self._checks_uploads and crc is not None:
            extras |= {"ChecksumCRC32": crc_text(crc), "ChecksumType": "FULL_OBJECT"}
        try:
            answer = await self._with_extras(what, "complete_multipart_upload", plain, extras)
        except NotFoundError:
            self._ongoing.pop(upload.upload_id, None)
            raise
        self._ongoing.pop(upload.upload_id, None)
        said = answer.get("ChecksumCRC32")
        if said and crc is not None and "-" not in said and said != crc_text(crc):
            raise CorruptedError(f"{what}: the store made other bytes of the parts")
        tag = unquoted(answer.get("ETag") or "")
        return ObjectInfo(upload.key, size_bytes, tag) if tag else await self.head(upload.key)

    async def abort_upload(self, upload: Upload) -> None:
        what = self._what("abort the upload of", upload.key)
        self._ongoing.pop(upload.upload_id, None)
        try:
            async with self._connection.sdk(what) as client:
                await client.abort_multipart_upload(
                    Bucket=self._connection.bucket, Key=upload.key, UploadId=upload.upload_id
                )
        except NotFoundError:
            return

    # -- the store itself

    async def examine(self) -> Examined:
        what = f"look at s3://{quote(self._connection.bucket)}"
        answer = await self._connection.look(what)
        offset_s = self._connection.clock_offset_s(answer.headers)
        if answer.status == 403:  # as where only what is below a prefix may be listed
            return Examined(offset_s, ("the bucket as a whole may not be looked at",))
        self._check(what, answer)
        return Examined(offset_s, (await self._lifecycle_note(),))

    async def _lifecycle_note(self) -> str:
        what = f"read the lifecycle rules of s3://{quote(self._connection.bucket)}"
        advice = (
            "a rule that aborts incomplete multipart uploads after 7 days keeps what a crash "
            "leaves behind from being paid for"
        )
        try:
            async with self._connection.sdk(what) as client:
                answer = await client.get_bucket_lifecycle_configuration(
                    Bucket=self._connection.bucket
                )
        except NotFoundError:
            return f"the bucket has no lifecycle rules; {advice}"
        except AccessDeniedError:
            return f"the lifecycle rules may not be read; {advice}"
        except PermanentError:
            return f"the store has no lifecycle rules; {advice}"
        if not (rules := [rule for rule in answer.get("Rules", ()) if _aborts(rule)]):
            return f"no lifecycle rule aborts uploads; {advice}"
        below = sorted({_prefix(rule) for rule in rules})
        if "" in below:
            return "a lifecycle rule aborts incomplete multipart uploads, wherever they are"
        return f"lifecycle rules abort uploads only below {quote_some(below)}; elsewhere, {advice}"

    async def aclose(self) -> None:
        await self._connection.aclose()

    # -- helpers

    def _what(self, verb: str, key: str) -> str:
        return f"{verb} s3://{quote(self._connection.bucket)}/{quote(key[:300])}"

    def _check_key(self, what: str, key: str) -> None:
        try:
            size_bytes = len(key.encode())
        except UnicodeEncodeError:
            raise RefusedError(f"{what}: the name is not UTF-8, so S3 cannot keep it") from None
        if size_bytes > self.capabilities.max_key_bytes:
            limit = self.capabilities.max_key_bytes
            raise PermanentError(f"{what}: the key is longer than {limit} bytes")

    def _check(self, what: str, answer: Answer, *, replaces: bool = False) -> None:
        if answer.status >= 300 or is_page(answer):
            raise self._connection.error(what, answer, replaces=replaces)

    def _info(self, what: str, key: str, answer: Answer, size_bytes: int) -> ObjectInfo:
        marked = answer.headers.get("Content-Type") == MARKED_TYPE
        return ObjectInfo(key, size_bytes, _tag_of(what, answer), _modified_at(answer), marked)

    async def _send(
        self, key: str, query: str, headers: Mapping[str, str], data: Data, what: str
    ) -> tuple[str, Proof]:
        """Send a body with a checksum of it and see that it arrived as it was."""

        connection, headers = self._connection, {**_CONTENT_TYPE, **headers}
        proof = await (prove_crc if self._sends_crc else prove_md5)(data, self._threads)
        proven = {**headers, **proof.headers}
        answer = await connection.send("PUT", key, proven, what=what, query=query, data=data)
        if proof.crc is not None and answer.status >= 400 and rejects_extras(fault_of(answer)):
            proof = await prove_md5(data, self._threads)
            proven = {**headers, **proof.headers}
            answer = await connection.send("PUT", key, proven, what=what, query=query, data=data)
            self._sends_crc = self._sends_crc and answer.status >= 300
        self._check(what, answer, replaces="If-Match" in headers)
        tag = _tag_of(what, answer)
        if not check_echo(what, proof, answer.headers, tag) and proof.crc is not None:
            self._sends_crc = False
            check_echo(what, await prove_md5(data, self._threads), answer.headers, tag)
        return tag, proof

    async def _with_extras(
        self, what: str, operation: str, plain: Mapping[str, Any], extras: Mapping[str, Any]
    ) -> Any:
        """Call the SDK; a store that rejects the extras is asked without, and that is kept."""
        async with self._connection.sdk(what) as client:
            call = getattr(client, operation)
            bucket = self._connection.bucket
            try:
                return await call(Bucket=bucket, **{**plain, **extras})
            except PermanentError as exc:
                if not extras or type(exc) is not PermanentError:
                    raise
            answer = await call(Bucket=bucket, **plain)
            self._checks_uploads = False
            return answer


_UPLOAD_CHECKS = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}


def _quoted(tag: str) -> str:
    return tag if tag.startswith("W/") else f'"{tag}"'


def _tag_of(what: str, answer: Answer) -> str:
    tag = unquoted(answer.headers.get("ETag", ""))
    if not tag:
        raise lacking(what, answer, "ETag")
    return tag


def _modified_at(answer: Answer) -> float:
    return http_time(answer.headers.get("Last-Modified")) or 0.0


def _check_tag(what: str, info: ObjectInfo, tag: str | None) -> None:
    if tag is not None and info.tag != tag:
        raise PreconditionError(f"{what}: the object is another one by now; read it again")


def _whole_size(what: str, answer: Answer, start: int, end: int | None) -> int:
    """The size of the object, once it is sure that the answer is the range asked for."""
    got = len(answer.body)
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if found is None and answer.status == 200 and start == 0 and (end is None or got <= end):
        return got  # the whole object is what was asked for
    if found is None:
        raise PermanentError(f"{what}: the store does not honour ranges; it cannot be read from")
    first, last, size = map(int, found.groups())
    expected = size if end is None else min(end, size)
    if (first, last + 1) != (start, expected) or got != expected - start:
        raise TransientError(f"{what}: another range arrived than was asked for")
    return size


def _condition_headers(condition: Condition | None) -> dict[str, str]:
    headers: dict[str, str] = {}
    if condition is not None and condition.absent:
        headers["If-None-Match"] = "*"
    if condition is not None and condition.tag is not None:
        headers["If-Match"] = _quoted(condition.tag)
    return headers


def _condition_parameters(condition: Condition | None) -> dict[str, str]:
    """The same for the SDK."""
    return {name.replace("-", ""): text for name, text in _condition_headers(condition).items()}


def _plain_part(part: Part) -> dict[str, Any]:
    return {"PartNumber": part.number, "ETag": _quoted(part.tag)}


def _checked_part(part: Part, ongoing: Ongoing) -> dict[str, Any]:
    crc = ongoing.of_part(part)
    return _plain_part(part) | ({} if crc is None else {"ChecksumCRC32": crc_text(crc)})


def _aborts(rule: Mapping[str, Any]) -> bool:
    """Whether a lifecycle rule ends uploads; S3 lets none do so by tags or sizes."""
    return (
        rule.get("Status") == "Enabled"
        and "AbortIncompleteMultipartUpload" in rule
        and rule.get("Filter", {}).keys() <= {"Prefix"}
    )


def _prefix(rule: Mapping[str, Any]) -> str:
    """What the keys have in common that a rule is for; older rules have no filter."""
    return str(rule.get("Filter", rule).get("Prefix", ""))
