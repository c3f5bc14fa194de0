"""Capability tokens: made and verified by who has the key, narrowed by who has the token. Pure.

The format is specified in docs/formats/tokens.md; the vectors there are the tests' vectors.
"""

from __future__ import annotations

import hmac
import re
import secrets
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple, Self

import msgspec
from msgspec.structs import replace as replace_fields

from ..errors import AccessDeniedError, ConfigError
from ..secrets import Secret
from . import base64url
from .claims import DEFAULT_LIFE_S, Claims, Operation, is_token_id
from .hkdf import hkdf
from .names import is_tree_name

__all__ = [
    "MAX_LINKS",
    "MAX_TOKEN_BYTES",
    "SKEW_S",
    "Claims",
    "HeadKey",
    "KeyRing",
    "Operation",
    "Revoked",
    "TokenError",
    "TokenFault",
    "claims_of",
    "ends_at",
    "narrow",
]

MAX_TOKEN_BYTES = 2048
MAX_LINKS = 4  # claims in one token: the first is the head's, each other one narrows it
SKEW_S = 30

_TOKEN = re.compile(
    rf"as1\.([0-9a-f]{{8}})((?:\.[A-Za-z0-9_-]+){{1,{MAX_LINKS}}})\.([A-Za-z0-9_-]{{43}})"
)
_KEY_ID = re.compile(r"[0-9a-f]{8}")
_KEY_SECRET = re.compile(r"[0-9a-f]{64}")

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Claims).decode


class TokenFault(StrEnum):
    """Why a token was refused: for the audit log of the head, never for who sent it."""

    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown key"
    BAD_MAC = "bad mac"
    WIDER = "wider than what it was derived from"
    EXPIRED = "expired"
    NOT_YET = "not valid yet"
    REVOKED = "revoked"


class TokenError(AccessDeniedError):
    """A token is not valid here. The message is the same for every reason.

    Attributes:
        fault: the reason, for the audit log.
        id: of the token, where that is certain; else empty.
    """

    def __init__(self, fault: TokenFault, token_id: str = "") -> None:
        super().__init__("the token is not valid; get a new one from the head")
        self.fault, self.id = fault, token_id


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadKey:
    """A secret of the head, from which the keys of all its experiments follow.

    Attributes:
        id: 8 hexadecimal digits; tokens name the key by them.
        secret: 32 bytes in hexadecimal digits.
        retires_at: unix seconds after which its tokens are refused; None for the current key.

    Raises:
        ConfigError: id or secret has another form; the secret is not repeated.
    """

    id: str
    secret: Secret
    retires_at: int | None = None

    def __post_init__(self) -> None:
        if _KEY_ID.fullmatch(self.id) is None:
            raise ConfigError("the id of a key is 8 hexadecimal digits in lower case")
        if _KEY_SECRET.fullmatch(self.secret.reveal()) is None:
            raise ConfigError("the secret of a key is 64 hexadecimal digits in lower case")

    @classmethod
    def new(cls) -> Self:
        """A key that nobody has."""
        return cls(id=secrets.token_hex(4), secret=Secret(secrets.token_hex(32)))

    def derive(self, purpose: str, context: str) -> bytes:
        """32 bytes for one purpose: `token` is taken; `context` says for which of its kind."""
        info = f"asyncsync {purpose} 1\n{context}".encode()
        return hkdf(bytes.fromhex(self.secret.reveal()), info=info)


class Revoked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is refused although a key made it.

    Attributes:
        tokens: ids; what was derived from such a token has the same id.
        experiments: first components of scopes; "" are the tokens for all trees.

    Raises:
        ConfigError: one of them can be no such id or name, so that it would revoke nothing.
    """

    tokens: frozenset[str] = frozenset()
    experiments: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not all(map(is_token_id, self.tokens)):
            raise ConfigError("a token is revoked by its id, 32 hexadecimal digits")
        if not all(is_tree_name(name) and "/" not in name for name in self.experiments):
            raise ConfigError("an experiment is revoked by its name, the first part of a scope")

    def has(self, first: Claims, last: Claims) -> bool:
        """Whether a token is, that was made with `first` and narrowed to `last`."""
        both = {first.experiment, last.experiment}
        return first.id in self.tokens or not self.experiments.isdisjoint(both)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of a head: the first one makes tokens, the others still verify theirs.

    Raises:
        ConfigError: no key, two of one id, a current one that retires, an older one that does not.
    """

    keys: tuple[HeadKey, ...]
    revoked: Revoked = field(default_factory=Revoked)

    def __post_init__(self) -> None:
        if not self.keys:
            raise ConfigError("a head needs a key")
        if len({key.id for key in self.keys}) < len(self.keys):
            raise ConfigError("two keys of the head have the same id")
        if [key.retires_at is None for key in self.keys] != [True] + [False] * (len(self.keys) - 1):
            raise ConfigError("the first key of a head is in use, and all others retire")

    def mint(self, claims: Claims) -> Secret:
        """A token that says `claims`.

        Raises:
            ConfigError: it would be longer than a head reads.
        """
        key = self.keys[0]
        link = _link(claims)
        return _join(key.id, (link,), _mac(key, claims, (link,)))

    def verify(self, token: Secret, now: float) -> Claims:
        """What the token allows its holder.

        Args:
            token: as it came.
            now: unix seconds.

        Raises:
            TokenError: it is not valid. Never any other error, whatever the token is.
        """
        parsed = _parse(token)
        key = next((key for key in self.keys if key.id == parsed.key_id), None)
        if key is None or not (key.retires_at is None or now < key.retires_at):
            raise TokenError(TokenFault.UNKNOWN_KEY)
        first = claims = _claims(parsed.links[0])
        expected = base64url.encode(_mac(key, claims, parsed.links))
        if not hmac.compare_digest(expected, parsed.mac):
            raise TokenError(TokenFault.BAD_MAC)
        for link in parsed.links[1:]:
            wider, claims = claims, _claims(link)
            if not claims.is_within(wider):
                raise TokenError(TokenFault.WIDER, first.id)
        # The last claims lie within all others, their times too.
        if now < claims.not_before - SKEW_S:
            raise TokenError(TokenFault.NOT_YET, first.id)
        if not now < claims.expires_at + SKEW_S:
            raise TokenError(TokenFault.EXPIRED, first.id)
        if self.revoked.has(first, claims):
            raise TokenError(TokenFault.REVOKED, first.id)
        return claims

    def renew(self, token: Secret, now: float) -> Secret:
        """A token that allows the same as this one, for as long again from now.

        Whoever narrowed a token, or gave it less than the usual life, wants it to end.

        Raises:
            AccessDeniedError: it is such a one; a TokenError if it is not valid.
        """
        claims, life_s = self.verify(token, now), 0
        if len(_parse(token).links) == 1:
            life_s = claims.expires_at - claims.not_before
        if life_s < DEFAULT_LIFE_S:
            raise AccessDeniedError("a token that was narrowed, or lives for days only, just ends")
        start = int(now)
        return self.mint(replace_fields(claims, not_before=start, expires_at=start + life_s))

    def rotated(self, key: HeadKey, *, now: float, overlap_s: float = DEFAULT_LIFE_S) -> KeyRing:
        """A ring with `key` in use, in which the present one is good for `overlap_s` more."""
        current, *older = self.keys
        kept = [one for one in older if one.retires_at is not None and now < one.retires_at]
        retiring = replace(current, retires_at=int(now + overlap_s))
        return KeyRing((key, retiring, *kept), self.revoked)


def claims_of(token: Secret) -> Claims:
    """What a token says of itself, for its holder. Only the head can tell whether it is true.

    Raises:
        ConfigError: it is not a token.
    """
    return _said(token, -1)


def _said(token: Secret, link: int) -> Claims:
    try:
        return _claims(_parse(token).links[link])
    except TokenError:
        raise ConfigError("this is no token; copy it again from where it was made") from None


def ends_at(token: Secret) -> int:
    """When a token ends, or the one that it was derived from: nothing with its id lasts longer.

    Raises:
        ConfigError: it is not a token.
    """
    return _said(token, 0).expires_at


def narrow(token: Secret, claims: Claims) -> Secret:
    """A token that allows less, made without a key: `claims` within those of `token`.

    The way back is closed: the wider token does not follow from the narrower one.

    Raises:
        ConfigError: `token` is none, has been narrowed too often, or allows less than `claims`.
    """
    if not claims.is_within(claims_of(token)):
        raise ConfigError("a token is narrowed, not widened: keep its id, and ask for less")
    key_id, links, mac = _parse(token)
    if len(links) == MAX_LINKS:
        raise ConfigError(f"a token is narrowed {MAX_LINKS - 1} times at most; use a wider one")
    link = _link(claims)
    try:
        key = base64url.decode(mac)
    except ValueError:
        raise ConfigError("this is no token; copy it again from where it was made") from None
    return _join(key_id, (*links, link), hmac.digest(key, link.encode(), "sha256"))


class _Parsed(NamedTuple):
    key_id: str
    links: tuple[str, ...]
    mac: str


def _parse(token: Secret) -> _Parsed:
    text = token.reveal()
    # The length first: what is longer is not even looked at.
    match = _TOKEN.fullmatch(text) if len(text) <= MAX_TOKEN_BYTES else None
    if match is None:
        raise TokenError(TokenFault.MALFORMED)
    key_id, links, mac = match.groups()
    return _Parsed(key_id, tuple(links[1:].split(".")), mac)


def _join(key_id: str, links: tuple[str, ...], mac: bytes) -> Secret:
    text = ".".join(["as1", key_id, *links, base64url.encode(mac)])
    if len(text) > MAX_TOKEN_BYTES:
        raise ConfigError(f"the token would be longer than {MAX_TOKEN_BYTES} bytes; shorten scopes")
    return Secret(text)


def _link(claims: Claims) -> str:
    return base64url.encode(_encode(claims))


def _claims(link: str) -> Claims:
    try:
        claims = _decode(base64url.decode(link))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise TokenError(TokenFault.MALFORMED) from None
    # One content, one text: no second spelling of the same claims.
    if _link(claims) != link:
        raise TokenError(TokenFault.MALFORMED)
    return claims


def _mac(key: HeadKey, first: Claims, links: tuple[str, ...]) -> bytes:
    """The end of the chain: each link is authenticated by the code of the one before it."""
    mac = hmac.digest(
        key.derive("token", first.experiment), f"as1.{key.id}.{links[0]}".encode(), "sha256"
    )
    for link in links[1:]:
        mac = hmac.digest(mac, link.encode(), "sha256")
    return mac
