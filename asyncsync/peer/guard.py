"""Who may ask for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from ..clock import Clock
from ..errors import AccessDeniedError, AsyncSyncError, SlowDownError
from ..secrets import Secret
from ..wire.claims import Claims, Operation
from ..wire.failures import UnauthorizedError
from ..wire.limits import Limits
from ..wire.messages import Route
from ..wire.tokens import KeyRing, TokenError

__all__ = ["Guard", "check_operations", "check_scope", "source_of"]

_SCHEME = "Bearer "
_MINUTE_S = 60.0
_MOST_DOUBLINGS = 30
_MOST_ADDRESSES = 10_000


@dataclass
class _Failures:
    """Of one address, until it has shown none for a minute."""

    at: float
    count: int = 0


class Guard:
    """Looks at tokens; who shows many that are no good is told to wait, longer each time.

    One that is good is always let in: many may come from one address, one of them a guesser, and
    256 bits are not guessed.
    """

    def __init__(self, keys: KeyRing, limits: Limits, clock: Clock) -> None:
        self.keys, self._limits, self._clock = keys, limits, clock
        self._failures: dict[str, _Failures] = {}

    def admit(self, shown: Sequence[str], address: str) -> Claims:
        """What the token in the one header that is `shown` allows.

        Raises:
            UnauthorizedError: it is not good, or there was none.
            SlowDownError: the same, and many from there were not.
        """
        address = source_of(address)
        if len(shown) != 1 or not shown[0].startswith(_SCHEME):
            raise self._failed(address)
        token = Secret(shown[0].removeprefix(_SCHEME))
        try:
            return self.keys.verify(token, self._clock.now())
        except TokenError as exc:  # whose reason is for the audit log alone
            raise self._failed(address) from exc

    def _failed(self, address: str) -> AsyncSyncError:
        now = self._clock.monotonic()
        seen = self._failures.pop(address, None)
        if seen is None or now - seen.at >= _MINUTE_S:
            seen = _Failures(now)
        if len(self._failures) >= _MOST_ADDRESSES:
            del self._failures[next(iter(self._failures))]
        self._failures[address] = seen
        seen.at, seen.count = now, seen.count + 1
        beyond = seen.count - self._limits.max_failed_auths_per_minute
        if beyond <= 0:
            return UnauthorizedError("a token that is good here is needed; join again to get one")
        wait_s = min(self._limits.max_auth_delay_s, 2.0 ** min(beyond - 1, _MOST_DOUBLINGS))
        return SlowDownError("too many tokens that are not good; wait", retry_after_s=wait_s)


def source_of(address: str) -> str:
    """By what somebody at that address is counted: whoever has one IPv6 address has 2^64. Pure."""
    if ":" not in address:
        return address
    found = IPv6Address(address)
    mapped = found.ipv4_mapped
    return str(mapped) if mapped else str(IPv6Network((int(found) >> 64 << 64, 64)))


def check_operations(claims: Claims, route: Route) -> None:
    """AccessDeniedError if a token allows nothing of what a route needs, on any tree."""
    if "any" not in route.needs and not claims.operations.intersection(route.needs):
        raise AccessDeniedError("this token does not allow that")


def check_scope(claims: Claims, tree: str, needs: Sequence[str]) -> None:
    """AccessDeniedError if a token does not reach that far, whether or not there is anything."""
    if not any(claims.allows(Operation(need), tree) for need in needs):
        raise AccessDeniedError("this token does not allow that")
