"""Who may ask for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..clock import Clock
from ..errors import AccessDeniedError, SlowDownError
from ..secrets import Secret
from ..wire.claims import Claims, Operation
from ..wire.failures import UnauthorizedError
from ..wire.limits import Limits
from ..wire.messages import Route
from ..wire.tokens import KeyRing, TokenError

__all__ = ["Guard", "check_scope"]

_SCHEME = "Bearer "
_MINUTE_S = 60.0
_MOST_ADDRESSES = 10_000


@dataclass
class _Failures:
    """Of one address, in this minute."""

    since: float
    count: int = 0


class Guard:
    """Looks at tokens; who shows too many that are no good is not looked at for a while."""

    def __init__(self, keys: KeyRing, limits: Limits, clock: Clock) -> None:
        self.keys, self._limits, self._clock = keys, limits, clock
        self._failures: dict[str, _Failures] = {}

    def admit(self, header: str | None, address: str, route: Route) -> Claims:
        """What the token in that header allows; it is good for this kind of request.

        Raises:
            UnauthorizedError: it is not good, or there was none.
            SlowDownError: too many from there were not.
            AccessDeniedError: it does not allow that.
        """
        self._refuse_guesser(address)
        if header is None or not header.startswith(_SCHEME):
            raise self._failed(address)
        try:
            claims = self.keys.verify(Secret(header.removeprefix(_SCHEME)), self._clock.now())
        except TokenError:
            pass
        else:
            if "any" not in route.needs and not claims.operations.intersection(route.needs):
                raise AccessDeniedError("this token does not allow that")
            return claims
        raise self._failed(address)

    def _refuse_guesser(self, address: str) -> None:
        seen, now = self._failures.get(address), self._clock.monotonic()
        if seen is None:
            return
        wait_s = seen.since + _MINUTE_S - now
        if wait_s <= 0:
            del self._failures[address]
        elif seen.count >= self._limits.max_failed_auths_per_minute:
            raise SlowDownError("too many tokens that are not good; wait", retry_after_s=wait_s)

    def _failed(self, address: str) -> UnauthorizedError:
        if len(self._failures) >= _MOST_ADDRESSES:
            self._failures.pop(next(iter(self._failures)))
        seen = self._failures.setdefault(address, _Failures(self._clock.monotonic()))
        seen.count += 1
        return UnauthorizedError("a token that is good here is needed; join again to get one")


def check_scope(claims: Claims, tree: str, needs: Sequence[str]) -> None:
    """AccessDeniedError if a token does not reach that far, whether or not there is anything."""
    if not any(claims.allows(Operation(need), tree) for need in needs):
        raise AccessDeniedError("this token does not allow that")
