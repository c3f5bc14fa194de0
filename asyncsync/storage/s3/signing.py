"""AWS Signature Version 4 for S3. Pure: what to sign goes in, the headers to send come out."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from ...secrets import Secret

__all__ = ["UNSIGNED_PAYLOAD", "Credentials", "Scope", "sha256_hex", "sign"]

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
"""In place of a body's digest: the body is left to TLS and to its own checksum."""

_ALGORITHM = "AWS4-HMAC-SHA256"
_SERVICE = "s3"
_BLOCK_BYTES = 64  # of SHA-256

# Besides host and x-amz-*: what changes the meaning of a request. Others may be changed on the way.
_ALSO_SIGNED = frozenset(
    {"content-md5", "content-type", "if-match", "if-none-match", "if-modified-since", "range"}
)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key, and a session token where the key is a temporary one."""

    access_key: str = field(repr=False)
    secret_key: Secret
    token: Secret | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """What a signature is good for, besides the day."""

    region: str
    service: str = _SERVICE


def sign(
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    credentials: Credentials,
    scope: Scope,
    at: float,
    payload: str = UNSIGNED_PAYLOAD,
) -> dict[str, str]:
    """The headers of one request with its signature.

    Args:
        url: as it will be sent, encoded.
        headers: those of the request so far; an Authorization among them is replaced.
        at: Unix seconds on the server's clock; it accepts up to 15 minutes of difference.
        payload: SHA-256 of the body in hex, or `UNSIGNED_PAYLOAD`.
    """
    stamp = _stamp(int(at))
    sent = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    sent["x-amz-date"] = stamp
    sent["x-amz-content-sha256"] = payload
    if credentials.token is not None:
        sent["x-amz-security-token"] = credentials.token.reveal()
    host, path, query = _split(url)
    signed = _to_sign(sent, host)
    names = ";".join([name for name, _ in signed])
    lines = [f"{name}:{value}" for name, value in signed]
    request = "\n".join([method, path, query, *lines, "", names, payload])
    within = f"{stamp[:8]}/{scope.region}/{scope.service}/aws4_request"
    text = "\n".join((_ALGORITHM, stamp, within, sha256_hex(request.encode())))
    key = _signing_key(credentials.secret_key, stamp[:8], scope)
    signature = key.sign(text.encode())
    sent["authorization"] = (
        f"{_ALGORITHM} Credential={credentials.access_key}/{within}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return sent


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """The digest of a body as `sign` takes it."""
    return hashlib.sha256(data).hexdigest()


def _split(url: str) -> tuple[str, str, str]:
    """Host, path and query as they are signed: nothing is decoded, the query is sorted."""
    scheme, _, rest = url.partition("://")
    authority, _, tail = rest.partition("/")
    path, _, query = tail.partition("?")
    host = authority.lower().removesuffix(_DEFAULT_PORTS.get(scheme, ""))
    if not query:
        return host, f"/{path}", ""
    pairs = sorted(pair.partition("=")[::2] for pair in query.split("&"))
    return host, f"/{path}", "&".join(f"{name}={value}" for name, value in pairs)


def _to_sign(headers: Mapping[str, str], host: str) -> list[tuple[str, str]]:
    found = {"host": host}
    for name, value in headers.items():
        lower = name.lower()
        if lower.startswith("x-amz-") or lower in _ALSO_SIGNED:
            found[lower] = " ".join(value.split())
    return sorted(found.items())


@lru_cache(maxsize=4)
def _stamp(at: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))


class _Key:
    """A derived key: as good as the secret for one day, so it prints as little."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        padded = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def sign(self, text: bytes) -> str:
        """HMAC-SHA-256 (RFC 2104); what depends on the key alone is computed once."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.hexdigest()

    def __repr__(self) -> str:
        return "***"


@lru_cache(maxsize=64)
def _signing_key(secret: Secret, day: str, scope: Scope) -> _Key:
    key = f"AWS4{secret.reveal()}".encode()
    for text in (day, scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, text.encode(), "sha256")
    return _Key(key)
