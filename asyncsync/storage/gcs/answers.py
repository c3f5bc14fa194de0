"""What answers of Google Cloud Storage mean, in our words. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeGuard

from ...errors import (
    AccessDeniedError,
    AsyncSyncError,
    ConfigError,
    CorruptedError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    SlowDownError,
    TransientError,
    quote,
)
from ..http import Answer, retry_after_s
from ..objects import MARKED_TYPE, Condition, Examined, ObjectInfo

__all__ = [
    "DroppedError",
    "Stored",
    "UnsupportedError",
    "changed",
    "condition_query",
    "content_range",
    "document",
    "examined",
    "failure",
    "hash_of",
    "not_gcs",
    "recoded",
    "stored",
]

_CREDENTIALS = (
    "set GOOGLE_APPLICATION_CREDENTIALS to a file of credentials, run "
    "'gcloud auth application-default login', or give this machine a service account"
)
_TOO_FAST = {"rateLimitExceeded", "userRateLimitExceeded"}
_DAY_S = 86_400

Document = Mapping[str, Any]


class DroppedError(TransientError):
    """The connection ended before there was an answer."""


class UnsupportedError(PermanentError):
    """The server does not know this kind of request."""


class Stored(NamedTuple):
    """An object as an answer describes it; `crc32c` as the store writes it, if it does."""

    info: ObjectInfo
    crc32c: str | None


# ---------------------------------------------------------------- success


def document(what: str, body: bytes | memoryview) -> Document:
    """A JSON object out of an answer; ConfigError for anything else, such as a captive page."""
    try:
        found = json.loads(bytes(body))
    except ValueError:
        raise not_gcs(what) from None
    return checked_document(what, found)


def checked_document(what: str, found: object) -> Document:
    """ConfigError unless `found` is a JSON object."""
    if not _is_document(found):
        raise not_gcs(what)
    return found


def _is_document(found: object) -> TypeGuard[Document]:
    return isinstance(found, dict)


def stored(what: str, found: Document) -> Stored:
    """The object that a resource of the JSON API describes; ConfigError if it is none."""
    try:
        info = ObjectInfo(
            str(found["name"]),
            int(found["size"]),
            str(found["generation"]),
            datetime.fromisoformat(found["updated"]).timestamp() if "updated" in found else 0.0,
            found.get("contentType") == MARKED_TYPE,
        )
    except (KeyError, TypeError, ValueError):
        raise not_gcs(what) from None
    return Stored(info, found.get("crc32c"))


def hash_of(headers: Mapping[str, str]) -> str | None:
    """The CRC-32C of the whole object, as `x-goog-hash` gives it."""
    for item in headers.get("X-Goog-Hash", "").split(","):
        name, _, value = item.strip().partition("=")
        if name == "crc32c":
            return value
    return None


def content_range(headers: Mapping[str, str]) -> tuple[int, int] | None:
    """First byte and whole size out of `Content-Range`; None where there is no such header."""
    found = re.fullmatch(r"bytes (\d+)-.*/(\d+)", headers.get("Content-Range", ""))
    return (int(found[1]), int(found[2])) if found else None


def recoded(headers: Mapping[str, str]) -> bool:
    """Whether the body is packed otherwise than the object is stored."""
    sent = headers.get("Content-Encoding", "identity")
    return headers.get("X-Goog-Stored-Content-Encoding", sent) != sent


def condition_query(condition: Condition | None) -> dict[str, str]:
    """The parameters that make a write conditional."""
    if condition is None:
        return {}
    if condition.absent:
        return {"ifGenerationMatch": "0"}
    return {"ifGenerationMatch": condition.tag} if condition.tag is not None else {}


# ---------------------------------------------------------------- failure


def failure(what: str, answer: Answer, *, of_object: bool = True) -> AsyncSyncError:
    """The error that an answer other than a success stands for.

    Args:
        of_object: whether a 404 may mean that there is no such object; otherwise it is the bucket.
    """
    message, reasons = _explained(bytes(answer.body))
    wait_s = retry_after_s(answer.headers)
    status = answer.status
    if status in (429, 503) or (status == 403 and reasons & _TOO_FAST):
        return SlowDownError(
            f"{what}: the store asks for fewer requests ({status})", retry_after_s=wait_s
        )
    if status == 501:
        return UnsupportedError(f"{what}: the server cannot do this (501)")
    if status in (408, 409) or status >= 500:
        return TransientError(
            f"{what}: the store failed ({_with(status, message)})", retry_after_s=wait_s
        )
    if status < 400 or _is_page(answer):
        return not_gcs(what)
    return _refusal(what, status, message, of_object=of_object)


def _refusal(what: str, status: int, message: str, *, of_object: bool) -> AsyncSyncError:
    said = _with(status, message)
    if status in (401, 403):
        return _denied(what, status, said)
    if status == 404:
        return _missing(what, message, of_object=of_object)
    if status == 412:
        return changed(what)
    if status == 405:
        return UnsupportedError(f"{what}: the server cannot do this (405)")
    if status == 400 and re.search(r"crc32c|checksum|hash", message, re.IGNORECASE):
        return CorruptedError(f"{what}: bytes were changed on the way, says the store ({said})")
    return PermanentError(f"{what}: refused ({said}); check the name and the request")


def _denied(what: str, status: int, said: str) -> AccessDeniedError:
    advice = (
        f"the credentials are missing or expired; {_CREDENTIALS}"
        if status == 401
        else "ask for a role such as Storage Object User on the bucket"
    )
    return AccessDeniedError(f"{what}: access denied ({said}); {advice}")


def _missing(what: str, message: str, *, of_object: bool) -> AsyncSyncError:
    of_bucket = not message.startswith("No such object") and re.search(
        r"\bbucket\b.*(?:not exist|not found)", message, re.IGNORECASE
    )
    if of_bucket or not of_object:
        return ConfigError(f"{what}: no such bucket; create it or correct its name")
    return NotFoundError(f"{what}: there is none; check the spelling")


def changed(what: str) -> PreconditionError:
    """The error for an object that is not the one demanded."""
    return PreconditionError(f"{what}: another version is there by now; read it and compare")


def not_gcs(what: str) -> ConfigError:
    """The error for an answer that no Google Cloud Storage gives."""
    return ConfigError(
        f"{what}: this is not a Google Cloud Storage server; check STORAGE_EMULATOR_HOST, the "
        "endpoint and whether a proxy or a login page is in between"
    )


def _explained(body: bytes) -> tuple[str, set[str]]:
    """The message and the reasons out of the body of a failure, JSON or plain text."""
    text = body.decode(errors="replace").strip()
    try:
        error = json.loads(text)["error"]
        reasons = {str(item.get("reason")) for item in error.get("errors", ())}
        message = str(error.get("message") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _one_line(text), set()
    return _one_line(message), reasons


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return quote(line[:200]) if line else ""


def _with(status: int, message: str) -> str:
    return f"{status}: {message}" if message and not message.startswith("<") else str(status)


def _is_page(answer: Answer) -> bool:
    kind = answer.headers.get("Content-Type", "")
    return kind.startswith("text/html") and bytes(answer.body).lstrip().startswith(b"<")


# ---------------------------------------------------------------- the bucket


def examined(bucket: Document, clock_offset_s: float | None) -> Examined:
    """What people should know of a bucket, from its resource."""
    notes = []
    if kept_s := int(bucket.get("softDeletePolicy", {}).get("retentionDurationSeconds", 0)):
        notes.append(
            f"soft delete keeps deleted objects for {kept_s / _DAY_S:g} days, and they are paid for"
        )
    if bucket.get("versioning", {}).get("enabled"):
        notes.append("the bucket keeps old versions of objects, and they are paid for")
    if "retentionPolicy" in bucket:
        notes.append("a retention policy forbids to delete or replace objects for a while")
    actions = {
        rule.get("action", {}).get("type") for rule in bucket.get("lifecycle", {}).get("rule", ())
    }
    if "Delete" in actions:
        notes.append("a lifecycle rule deletes objects, perhaps checkpoints among them")
    return Examined(clock_offset_s, tuple(notes))
