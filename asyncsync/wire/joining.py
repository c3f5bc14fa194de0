"""The join string: all that a worker has to be told of its head, in one line. Pure.

The format is specified in docs/formats/tokens.md; the vectors there are the tests' vectors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address, ip_address
from typing import Self

import msgspec

from ..errors import ConfigError
from ..secrets import Secret
from . import base64url
from .tokens import claims_of

__all__ = ["MAX_JOIN_BYTES", "Join", "is_loopback"]

MAX_JOIN_BYTES = 4096

_PREFIX = "asj1."
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9.-]{1,253})):([1-9][0-9]{0,4})")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_AGAIN = "copy the whole line that the head printed"


class _Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    address: str
    token: str
    ca: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Where the head is, how to know it, and the token that it takes.

    Attributes:
        address: `HOST:PORT`; an IPv6 address stands in brackets.
        fingerprint: SHA-256 of the head's CA certificate (DER), 64 hexadecimal digits; None for
            a head without TLS, which is reached by a loopback address only.
        token: sent with every request.

    Raises:
        ConfigError: a value has another form; none is repeated.
    """

    address: str
    fingerprint: str | None = None
    token: Secret

    def __post_init__(self) -> None:
        host = _host(self.address)
        if host is None:
            raise ConfigError("the address of a head is HOST:PORT, an IPv6 address in brackets")
        if self.fingerprint is None and not is_loopback(host):
            raise ConfigError(
                "a head at an address that others reach needs TLS: join it by a line that has the "
                "fingerprint of its CA"
            )
        if not (self.fingerprint is None or _FINGERPRINT.fullmatch(self.fingerprint)):
            raise ConfigError("the fingerprint of a CA is 64 hexadecimal digits in lower case")
        claims_of(self.token)

    @classmethod
    def parse(cls, line: Secret) -> Self:
        """Read a line that `line` gave; white space around it does not matter.

        Raises:
            ConfigError: it is damaged. The message does not repeat it.
        """
        text = line.reveal().strip()
        if len(text) > MAX_JOIN_BYTES or not text.startswith(_PREFIX):
            raise ConfigError(f"this is no join string, which begins with {_PREFIX}; {_AGAIN}")
        try:
            raw = base64url.decode(text.removeprefix(_PREFIX))
            fields = msgspec.json.decode(raw, type=_Fields)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ConfigError(f"the join string is damaged; {_AGAIN}") from None
        return cls(address=fields.address, fingerprint=fields.ca, token=Secret(fields.token))

    def line(self) -> Secret:
        """The line to hand to a worker. It is as secret as the token in it."""
        fields = _Fields(self.address, self.token.reveal(), self.fingerprint)
        return Secret(_PREFIX + base64url.encode(msgspec.json.encode(fields)))


def _host(address: str) -> str | None:
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[3]) > 65535:
        return None
    if match[1] is None:
        return match[2]
    try:
        return str(IPv6Address(match[1]))
    except AddressValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. A name other than `localhost` may lead anywhere."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
