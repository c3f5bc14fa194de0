"""What an answer of an S3 server means: a failure becomes the error that says what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate, parsedate_to_datetime
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
from ..http import Answer

__all__ = [
    "EXPIRED",
    "SKEWED",
    "Fault",
    "date_of",
    "error_of",
    "fault_of",
    "is_document",
    "is_page",
    "not_s3",
    "rejects_extras",
]

SKEWED = "RequestTimeTooSkewed"
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken"})
"""What may go away once credentials are looked up anew."""

_PAGES = (b"<!doctype html", b"<html")
_MAX_MESSAGE = 200
_MAX_WAIT_S = 300.0
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
    if any(name.lower().startswith("x-amz") for name in answer.headers):
        return False
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind == "text/html" or bytes(answer.body[:256]).lstrip().lower().startswith(_PAGES)


def is_document(answer: Answer) -> bool:
    """Whether a success holds what an S3 server sends where no object was asked for."""
    body = bytes(answer.body[:256]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return not body or (body[:1] == b"<" and not body.startswith(_PAGES))


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


def error_of(what: str, answer: Answer | Fault, *, now: float) -> AsyncSyncError:
    """The error for a failed request.

    Args:
        what: the request, in words.
        now: Unix seconds of this machine's clock.
    """
    if isinstance(answer, Answer):
        if is_page(answer) and answer.status < 500:
            return not_s3(what, answer)
        answer = fault_of(answer)
    kind = _kind(answer)
    text = f"{what}: {_reason(answer)}{_advice(kind, answer, now)}"
    if issubclass(kind, TransientError):
        return kind(text, retry_after_s=_wait_s(answer.headers))
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


def _wait_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds, also where it is a date; that is taken by the server's own clock."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _MAX_WAIT_S)
    until, at = _moment(text), date_of(headers)
    return None if until is None or at is None else min(max(until - at, 0.0), _MAX_WAIT_S)


def date_of(headers: Mapping[str, str]) -> float | None:
    """What the server's clock said, in Unix seconds; None if it did not say."""
    return _moment(headers.get("Date", ""))


def _moment(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
