"""What an answer of an S3 server means: a failure becomes the error that says what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate
from html import unescape
from typing import NamedTuple

from ...errors import (
    AccessDeniedError,
    AsyncSyncError,
    ConfigError,
    CorruptedError,
    NoSpaceError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    SlowDownError,
    TransientError,
    quote,
)
from ..http import Answer, retry_after_s

__all__ = [
    "EXPIRED",
    "SKEWED",
    "Fault",
    "error_of",
    "fault_of",
    "is_page",
    "lacking",
    "no_document",
    "not_s3",
    "rejects_extras",
]

SKEWED = "RequestTimeTooSkewed"
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken"})
"""What may go away once credentials are looked up anew."""

_PAGES = (b"<!doctype html", b"<html")
_MAX_MESSAGE = 200
_FIELDS = (b"Code", b"Message", b"Region")
_FIELD = re.compile(rb"<(Code|Message|Region)>([^<]*)</\1>")

_KINDS: dict[str, type[AsyncSyncError]] = {
    "NoSuchKey": NotFoundError,
    "NoSuchUpload": NotFoundError,
    "InvalidPart": NotFoundError,
    "NoSuchVersion": NotFoundError,
    "NoSuchLifecycleConfiguration": NotFoundError,
    "NoSuchBucket": ConfigError,
    "InvalidBucketName": ConfigError,
    "PreconditionFailed": PreconditionError,
    "ConditionalRequestConflict": TransientError,
    "OperationAborted": TransientError,
    "SlowDown": SlowDownError,
    "SlowDownRead": SlowDownError,
    "SlowDownWrite": SlowDownError,
    "TooManyRequests": SlowDownError,
    "Throttling": SlowDownError,
    "ThrottlingException": SlowDownError,
    "RequestLimitExceeded": SlowDownError,
    "InternalError": TransientError,
    "ServiceUnavailable": SlowDownError,
    "RequestTimeout": TransientError,
    "IncompleteBody": TransientError,
    "BadDigest": CorruptedError,
    "XAmzContentChecksumMismatch": CorruptedError,
    "XAmzContentSHA256Mismatch": CorruptedError,
    "PermanentRedirect": ConfigError,
    "TemporaryRedirect": ConfigError,
    "AuthorizationHeaderMalformed": ConfigError,
    "IllegalLocationConstraintException": ConfigError,
    "AccessDenied": AccessDeniedError,
    "AllAccessDisabled": AccessDeniedError,
    "AccountProblem": AccessDeniedError,
    "SignatureDoesNotMatch": AccessDeniedError,
    "QuotaExceeded": NoSpaceError,
    "XMinioStorageFull": NoSpaceError,
    "InvalidObjectState": PermanentError,
    SKEWED: PermanentError,
} | dict.fromkeys(EXPIRED, AccessDeniedError)

_STATUSES: dict[int, type[AsyncSyncError]] = {
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: NotFoundError,
    407: ConfigError,
    408: TransientError,
    409: TransientError,
    412: PreconditionError,
    425: TransientError,
    429: SlowDownError,
    503: SlowDownError,
    507: NoSpaceError,
}

_ADVICE: dict[str, str] = {
    "NoSuchKey": "check the spelling",
    "NoSuchUpload": "it was completed or aborted; begin it again",
    "InvalidPart": "the store does not hold a part as it confirmed it; begin the upload again",
    "NoSuchBucket": "create the bucket, or check its name and the endpoint",
    "InvalidBucketName": "check the name of the bucket",
    "PreconditionFailed": "it is another one by now; read it and compare",
    "AccessDenied": "allow it in the policy; S3 says the same of a missing key where listing the "
    "bucket is not allowed",
    "SignatureDoesNotMatch": "check the secret key",
    "InvalidAccessKeyId": "the store does not know this access key; check it and the endpoint",
    "InvalidToken": "the session token is not that of the access key; supply both anew",
    "ExpiredToken": "supply new credentials",
    "ExpiredTokenException": "supply new credentials",
    "InvalidObjectState": "the object is archived; restore it first",
}


class Fault(NamedTuple):
    """A failure as the server told it; `code` and the texts are empty where it did not."""

    status: int
    code: str
    message: str
    region: str
    headers: Mapping[str, str]


def fault_of(answer: Answer) -> Fault:
    """Read an error document: only its plain elements, so that no entity or DTD does anything."""
    found = dict(reversed(_FIELD.findall(bytes(answer.body))))  # of several, the first counts
    code, message, region = (
        unescape(found.get(name, b"").decode("utf-8", "replace")).strip() for name in _FIELDS
    )
    region = answer.headers.get("x-amz-bucket-region") or region
    return Fault(answer.status, code, message, region, answer.headers)


def is_page(answer: Answer) -> bool:
    """Whether this comes from something else than an S3 server: a web page, a captive portal."""
    if _is_of_s3(answer):
        return False
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind == "text/html" or bytes(answer.body[:256]).lstrip().lower().startswith(_PAGES)


def _is_of_s3(answer: Answer) -> bool:
    headers = answer.headers  # the usual one first: this looks at every answer
    return "x-amz-request-id" in headers or any(n.lower().startswith("x-amz") for n in headers)


def no_document(what: str, answer: Answer) -> AsyncSyncError | None:
    """The error for a success without a document; None where there is one."""
    body = bytes(answer.body).lstrip(b"\xef\xbb\xbf \t\r\n")[:256].lower()
    if body[:1] == b"<" and not body.startswith(_PAGES):
        return None
    return lacking(what, answer, "body") if not body else not_s3(what, answer)


def lacking(what: str, answer: Answer, part: str) -> AsyncSyncError:
    """The error for a success without what belongs to one; an S3 server may have failed then."""
    if _is_of_s3(answer):
        return TransientError(f"{what}: the answer has no {part}; try again")
    return not_s3(what, answer)


def not_s3(what: str, answer: Answer) -> ConfigError:
    """The error for an answer that no S3 server has given."""
    return ConfigError(
        f"{what}: what answers there is not an S3 server ({answer.status}); check the endpoint, "
        "and whether a network login is in between"
    )


def rejects_extras(fault: Fault) -> bool:
    """Whether the store may have failed for a header or field that it does not know."""
    if fault.status not in (400, 411, 501):
        return False
    return fault.code not in _KINDS and fault.code not in _NOT_EXTRAS


_NOT_EXTRAS = frozenset({"InvalidPartOrder", "EntityTooSmall", "EntityTooLarge", "KeyTooLongError"})


def error_of(
    what: str, answer: Answer | Fault, *, now: float, replaces: bool = False
) -> AsyncSyncError:
    """The error for a failed request.

    Args:
        what: the request, in words.
        now: Unix seconds of this machine's clock.
        replaces: it was to replace one version of an object; then a missing key is another version.
    """
    if isinstance(answer, Answer):
        if is_page(answer) and answer.status < 500:
            return not_s3(what, answer)
        answer = fault_of(answer)
    if replaces and answer.code == "NoSuchKey":
        return PreconditionError(
            f"{what}: it is gone by now ({answer.status} NoSuchKey); look at what is there"
        )
    kind = _kind(answer)
    text = f"{what}: {_reason(answer)}{_advice(kind, answer, now)}"
    if issubclass(kind, TransientError):
        return kind(text, retry_after_s=retry_after_s(answer.headers))
    return kind(text)


def _kind(fault: Fault) -> type[AsyncSyncError]:
    if fault.code in _KINDS:
        return _KINDS[fault.code]
    if fault.status in _STATUSES:
        return _STATUSES[fault.status]
    if 300 <= fault.status < 400 or (fault.status == 400 and fault.region):
        return ConfigError
    return TransientError if fault.status in (500, 502, 504) else PermanentError


def _reason(fault: Fault) -> str:
    said = " ".join(fault.message.split())
    if len(said) > _MAX_MESSAGE:
        said = said[:_MAX_MESSAGE] + "..."
    status = f"{fault.status} {quote(fault.code[:64])}".strip()
    return f"{quote(said)} ({status})" if said else f"the store answered {status}"


def _advice(kind: type[AsyncSyncError], fault: Fault, now: float) -> str:
    if fault.code == SKEWED:
        theirs = fault.headers.get("Date", "another time")
        return f"; here it is {formatdate(now, usegmt=True)}, there {quote(theirs)}; set the clock"
    if kind is ConfigError and fault.region:
        region = quote(fault.region[:64])
        return f"; the bucket is in {region}: add ?region={region} or set AWS_REGION"
    if kind is ConfigError and 300 <= fault.status < 400:
        return "; check the endpoint and the region"
    code = fault.code or {403: "AccessDenied", 412: "PreconditionFailed"}.get(fault.status, "")
    return f"; {_ADVICE[code]}" if code in _ADVICE else ""
