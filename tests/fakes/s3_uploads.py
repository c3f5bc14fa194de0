"""Multipart uploads of the fake S3 server."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

from .s3_bucket import Buckets, Stored, base64_of, checksum_of, kept_headers, xml
from .s3_wire import CHECKSUMS, Reply, Request, S3Error, encode_name, iso_date

__all__ = ["MultipartUpload", "StoredPart", "Uploads"]


@dataclass(frozen=True, slots=True)
class StoredPart:
    data: bytes = field(repr=False)
    etag: str
    modified: float
    checksum: str | None = None


@dataclass(slots=True)
class MultipartUpload:
    """An upload in progress. `algorithm` is in small letters; "" if none was declared."""

    bucket: str
    key: str
    started: float
    algorithm: str = ""
    whole: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: dict[int, StoredPart] = field(default_factory=dict)


class Uploads(Buckets):
    """Buckets with uploads in progress."""

    def __init__(
        self, buckets: Sequence[str], region: str, page_size: int, min_part_bytes: int
    ) -> None:
        super().__init__(buckets, region, page_size)
        self.uploads: dict[str, MultipartUpload] = {}
        self.min_part_bytes = min_part_bytes
        self.wants_declared_checksums = False

    def _upload(self, request: Request) -> MultipartUpload:
        self._bucket(request)
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None or (upload.bucket, upload.key) != (request.bucket, request.key):
            raise S3Error(404, "NoSuchUpload", "The specified upload does not exist.")
        return upload

    def _create_multipart_upload(self, request: Request) -> Reply:
        self._bucket(request)
        if len(request.key.encode()) > 1024:
            raise S3Error(400, "KeyTooLongError")
        algorithm = request.headers.get("x-amz-checksum-algorithm", "").lower()
        kind = request.headers.get("x-amz-checksum-type", "COMPOSITE")
        if algorithm and not self.accepts_checksums:
            raise S3Error(400, "InvalidRequest", "Unsupported header x-amz-checksum-algorithm")
        upload_id = secrets.token_hex(16)
        self.uploads[upload_id] = MultipartUpload(
            request.bucket,
            request.key,
            self.now(),
            algorithm,
            kind == "FULL_OBJECT",
            kept_headers(request),
        )
        headers = {}
        if algorithm and self.echoes_checksums:
            headers = {
                "x-amz-checksum-algorithm": algorithm.upper(),
                "x-amz-checksum-type": kind,
            }
        inner = (
            f"<Bucket>{request.bucket}</Bucket><Key>{encode_name(request.key, {})}</Key>"
            f"<UploadId>{upload_id}</UploadId>"
        )
        return xml("InitiateMultipartUploadResult", inner, headers)

    def _upload_part(self, request: Request) -> Reply:
        upload = self._upload(request)
        number = int(request.query["partNumber"])
        if not 1 <= number <= 10_000:
            raise S3Error(400, "InvalidArgument", "Part number must be between 1 and 10000")
        algorithm, value = self._verify(request) or (upload.algorithm, None)
        declared = upload.algorithm or (None if self.wants_declared_checksums else algorithm)
        if value is not None and algorithm != declared:
            message = (
                "Checksum Type mismatch occurred, expected checksum Type: "
                f"{declared or 'null'}, actual checksum Type: {algorithm}"
            )
            raise S3Error(400, "InvalidRequest", message)
        if value is None and algorithm:
            value = base64_of(CHECKSUMS[algorithm](request.body))
        etag = f'"{hashlib.md5(request.body).hexdigest()}"'
        upload.parts[number] = StoredPart(request.body, etag, self.now(), value)
        echo = {f"x-amz-checksum-{algorithm}": value} if value and self.echoes_checksums else {}
        return Reply(200, {"ETag": etag, **echo})

    def _abort_multipart_upload(self, request: Request) -> Reply:
        self._upload(request)
        del self.uploads[request.query["uploadId"]]
        return Reply(204)

    def _complete_multipart_upload(self, request: Request) -> Reply:
        upload = self._upload(request)
        parts = self._named_parts(request, upload)
        self._check_write(request)
        data = b"".join(part.data for part in parts)
        checksum = _whole_checksum(upload, parts, data)
        _check_whole(request, checksum, len(data))
        digests = b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)
        etag = f'"{hashlib.md5(digests).hexdigest()}-{len(parts)}"'
        stored = Stored(data, etag, self.now(), checksum, upload.headers)
        self._write(request.bucket, request.key, stored)
        del self.uploads[request.query["uploadId"]]
        inner = (
            f"<Location>/{request.bucket}</Location><Bucket>{request.bucket}</Bucket>"
            f"<Key>{encode_name(request.key, {})}</Key><ETag>{etag}</ETag>"
        )
        if checksum is not None and self.echoes_checksums:
            name = f"Checksum{checksum[0].upper()}"
            inner += f"<{name}>{checksum[1]}</{name}><ChecksumType>{checksum[2]}</ChecksumType>"
        return xml("CompleteMultipartUploadResult", inner)

    def _named_parts(self, request: Request, upload: MultipartUpload) -> list[StoredPart]:
        """The parts that the request lists, checked one by one."""
        listed = _parts_of(request.body)
        numbers = [number for number, _, _ in listed]
        if numbers != sorted(set(numbers)):
            raise S3Error(400, "InvalidPartOrder")
        found = []
        for number, etag, checksum in listed:
            part = upload.parts.get(number)
            if part is None or part.etag.strip('"') != etag.strip('"'):
                raise S3Error(400, "InvalidPart", PartNumber=str(number))
            if checksum is None and upload.algorithm and not upload.whole:
                message = f"The complete request must include the checksum for part {number}"
                raise S3Error(400, "InvalidRequest", message)
            if checksum is not None and checksum != part.checksum:
                raise S3Error(400, "InvalidPart", PartNumber=str(number))
            found.append(part)
        for part in found[:-1]:
            if len(part.data) < self.min_part_bytes:
                raise S3Error(400, "EntityTooSmall", MinSizeAllowed=str(self.min_part_bytes))
        return found

    def _list_multipart_uploads(self, request: Request) -> Reply:
        self._bucket(request)
        query = request.query
        after = (query.get("key-marker", ""), query.get("upload-id-marker", ""))
        limit = min(int(query.get("max-uploads", "1000")), self.page_size)
        names = sorted(
            (upload.key, upload_id)
            for upload_id, upload in self.uploads.items()
            if upload.bucket == request.bucket and upload.key.startswith(query.get("prefix", ""))
        )
        # Without an id the marker stands for every upload of its key.
        names = [name for name in names if (name > after if after[1] else name[0] > after[0])]
        inner = f"<Bucket>{request.bucket}</Bucket>"
        if query.get("encoding-type"):
            inner += f"<EncodingType>{query['encoding-type']}</EncodingType>"
        inner += f"<IsTruncated>{'true' if len(names) > limit else 'false'}</IsTruncated>"
        if len(names) > limit:
            key, upload_id = names[limit - 1]
            inner += f"<NextKeyMarker>{encode_name(key, query)}</NextKeyMarker>"
            inner += f"<NextUploadIdMarker>{upload_id}</NextUploadIdMarker>"
        for key, upload_id in names[:limit]:
            inner += (
                f"<Upload><Key>{encode_name(key, query)}</Key><UploadId>{upload_id}</UploadId>"
                f"<Initiated>{iso_date(self.uploads[upload_id].started)}</Initiated></Upload>"
            )
        return xml("ListMultipartUploadsResult", inner)

    def _list_parts(self, request: Request) -> Reply:
        upload = self._upload(request)
        after = int(request.query.get("part-number-marker", "0"))
        limit = min(int(request.query.get("max-parts", "1000")), self.page_size)
        numbers = sorted(number for number in upload.parts if number > after)
        inner = f"<IsTruncated>{'true' if len(numbers) > limit else 'false'}</IsTruncated>"
        if len(numbers) > limit:
            inner += f"<NextPartNumberMarker>{numbers[limit - 1]}</NextPartNumberMarker>"
        for number in numbers[:limit]:
            part = upload.parts[number]
            name = f"Checksum{upload.algorithm.upper()}"
            checksum = f"<{name}>{part.checksum}</{name}>" if upload.algorithm else ""
            inner += (
                f"<Part><PartNumber>{number}</PartNumber><ETag>{part.etag}</ETag>{checksum}"
                f"<LastModified>{iso_date(part.modified)}</LastModified>"
                f"<Size>{len(part.data)}</Size></Part>"
            )
        return xml("ListPartsResult", inner)


def _parts_of(body: bytes) -> list[tuple[int, str, str | None]]:
    """Number, ETag and checksum of each part in a CompleteMultipartUpload document."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        raise S3Error(400, "MalformedXML") from None
    found = []
    for element in root:
        texts = {child.tag.rpartition("}")[2]: child.text or "" for child in element}
        checksums = [text for name, text in texts.items() if name.startswith("Checksum")]
        found.append((int(texts["PartNumber"]), texts["ETag"], next(iter(checksums), None)))
    if not found:
        raise S3Error(400, "MalformedXML")
    return found


def _whole_checksum(
    upload: MultipartUpload, parts: Sequence[StoredPart], data: bytes
) -> tuple[str, str, str] | None:
    if not upload.algorithm:
        return None
    compute = CHECKSUMS[upload.algorithm]
    if upload.whole:
        return upload.algorithm, base64_of(compute(data)), "FULL_OBJECT"
    digests = b"".join(base64.b64decode(part.checksum or "") for part in parts)
    return upload.algorithm, f"{base64_of(compute(digests))}-{len(parts)}", "COMPOSITE"


def _check_whole(request: Request, checksum: tuple[str, str, str] | None, size: int) -> None:
    named = checksum_of(request)
    if named is not None and (checksum is None or named != checksum[:2]):
        raise S3Error(
            400,
            "BadDigest",
            f"The {named[0].upper()} you specified did not match the calculated checksum.",
        )
    promised = request.headers.get("x-amz-mp-object-size")
    if promised is not None and int(promised) != size:
        message = "The provided 'x-amz-mp-object-size' header does not match what was computed."
        raise S3Error(400, "InvalidRequest", message)
