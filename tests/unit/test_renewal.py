"""A token may be had for another while, if it was made to last."""

from __future__ import annotations

import pytest

from asyncsync.errors import AccessDeniedError
from asyncsync.wire.claims import DEFAULT_LIFE_S, Claims, Operation
from asyncsync.wire.tokens import HeadKey, KeyRing, TokenError, narrow

NOW = 1_795_219_200
RING = KeyRing((HeadKey.new(),))


def claims(life_s: float = DEFAULT_LIFE_S) -> Claims:
    return Claims.new("exp", now=NOW, life_s=life_s, max_bytes=7)


def test_a_renewed_token_allows_the_same_for_as_long_again() -> None:
    first = claims(2 * DEFAULT_LIFE_S)
    later = NOW + DEFAULT_LIFE_S

    renewed = RING.verify(RING.renew(RING.mint(first), later), later)

    assert (renewed.not_before, renewed.expires_at) == (later, later + 2 * DEFAULT_LIFE_S)
    assert (renewed.scope, renewed.operations) == (first.scope, first.operations)
    assert (renewed.id, renewed.max_bytes) == (first.id, first.max_bytes)


def test_a_token_of_the_last_key_is_renewed_by_the_present_one() -> None:
    token = RING.mint(claims())
    rotated = RING.rotated(HeadKey.new(), now=NOW)

    renewed = rotated.renew(token, NOW + 1)

    assert KeyRing((rotated.keys[0],)).verify(renewed, NOW + 1).scope == "exp"


def test_a_token_that_was_made_to_end_is_not_renewed() -> None:
    with pytest.raises(AccessDeniedError, match="just ends"):
        RING.renew(RING.mint(claims(DEFAULT_LIFE_S - 1)), NOW)


def test_a_token_that_was_narrowed_is_not_renewed_even_if_it_lasts_as_long() -> None:
    wide = claims()
    less = Claims(
        scope="exp/trial",
        operations=frozenset({Operation.PULL}),
        not_before=wide.not_before,
        expires_at=wide.expires_at,
        id=wide.id,
        max_bytes=7,
    )

    with pytest.raises(AccessDeniedError, match="just ends"):
        RING.renew(narrow(RING.mint(wide), less), NOW)


def test_a_token_that_is_over_is_not_renewed() -> None:
    with pytest.raises(TokenError):
        RING.renew(RING.mint(claims()), NOW + 2 * DEFAULT_LIFE_S)
    with pytest.raises(TokenError):
        KeyRing((HeadKey.new(),)).renew(RING.mint(claims()), NOW)
