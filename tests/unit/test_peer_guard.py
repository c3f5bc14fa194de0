"""Who is let in, who has to wait, and what of a target is a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.errors import AccessDeniedError, SlowDownError
from asyncsync.peer.application import find
from asyncsync.peer.guard import Guard, check_operations, check_scope, source_of
from asyncsync.testing import FakeClock
from asyncsync.wire import messages as m
from asyncsync.wire.claims import Claims, Operation
from asyncsync.wire.failures import UnauthorizedError
from asyncsync.wire.limits import Limits
from asyncsync.wire.tokens import HeadKey, KeyRing

HELLO, HEADER, DELETE = (m.ROUTES[name] for name in ("hello", "header", "delete"))
SESSION = "0123456789abcdef" * 2


class Door:
    """A guard and a token that it knows."""

    def __init__(self, **limits: float) -> None:
        self.clock = FakeClock()
        self.ring = KeyRing((HeadKey.new(),))
        self.guard = Guard(self.ring, Limits(**limits), self.clock)  # type: ignore[arg-type]
        self.claims = Claims.new("exp", now=self.clock.now())
        self.good = [f"Bearer {self.ring.mint(self.claims).reveal()}"]

    def fail(self, address: str = "a") -> float | None:
        """Show a token that is not good; how long to wait, or None."""
        with pytest.raises((UnauthorizedError, SlowDownError)) as caught:
            self.guard.admit(["Bearer nonsense"], address)
        return getattr(caught.value, "retry_after_s", None)


def test_a_good_token_is_what_it_says() -> None:
    door = Door()

    assert door.guard.admit(door.good, "a") == door.claims
    check_operations(door.claims, HELLO)
    check_operations(door.claims, HEADER)
    with pytest.raises(AccessDeniedError) as caught:
        check_operations(door.claims, DELETE)
    assert not isinstance(caught.value, UnauthorizedError)


def test_the_wait_doubles_up_to_its_limit_and_ends_with_a_quiet_minute() -> None:
    door = Door(max_failed_auths_per_minute=2, max_auth_delay_s=10)

    assert [door.fail() for _ in range(8)] == [None, None, 1, 2, 4, 8, 10, 10]
    assert door.fail("b") is None, "another address"
    door.clock._time += 59.9
    assert door.fail() == 10, "it goes on within the minute"
    door.clock._time += 60
    assert door.fail() is None


def test_thousands_of_failures_do_not_overflow() -> None:
    door = Door(max_failed_auths_per_minute=1, max_auth_delay_s=1e99)

    waits = [door.fail() for _ in range(2000)]
    assert waits[-1] == 2.0**30


def test_a_good_token_is_let_in_whoever_else_comes_from_there() -> None:
    door = Door(max_failed_auths_per_minute=1)
    for _ in range(100):
        door.fail()

    assert door.guard.admit(door.good, "a") == door.claims


def test_addresses_are_forgotten_before_they_fill_the_memory() -> None:
    door = Door(max_failed_auths_per_minute=1)
    for number in range(10_050):
        door.fail(str(number))

    assert len(door.guard._failures) == 10_000


@pytest.mark.parametrize("shown", [[], [""], ["Bearer "], ["bearer x"], ["Basic x"], ["x", "y"]])
def test_what_is_no_token_is_not_good(shown: list[str]) -> None:
    with pytest.raises(UnauthorizedError):
        Door().guard.admit(shown, "a")


def test_other_keys_count_from_the_next_request_on() -> None:
    door = Door()
    door.guard.keys = KeyRing((HeadKey.new(),))

    with pytest.raises(UnauthorizedError):
        door.guard.admit(door.good, "a")


@pytest.mark.parametrize("tree", ["", "ex", "exp2", "expx/y", "other", "Exp", "exp/", "exp/.."])
def test_a_scope_ends_where_it_ends(tree: str) -> None:
    claims = Claims.new("exp", now=0, operations=frozenset(Operation))
    check_scope(claims, "exp", ["pull"])
    check_scope(claims, "exp/x", ["pull"])

    with pytest.raises(AccessDeniedError):
        check_scope(claims, tree, ["pull"])


def test_one_of_the_operations_is_enough_and_none_is_not() -> None:
    claims = Claims.new("exp", now=0, operations=frozenset({Operation.LIST}))
    check_scope(claims, "exp", ["pull", "list"])

    for needs in (["pull"], ["push", "delete"], []):
        with pytest.raises(AccessDeniedError):
            check_scope(claims, "exp", needs)


# -- targets


@pytest.mark.parametrize("name", m.ROUTES)
def test_a_route_is_found_by_its_one_spelling(name: str) -> None:
    route = m.ROUTES[name]
    found = find(route.method, route.url(SESSION, 42))

    assert found is not None
    assert found.name == name
    assert found.session == (SESSION if "{session}" in route.path else "")
    assert found.blob == (42 if "{blob}" in route.path else 0)
    assert find(route.method.lower(), route.url(SESSION)) is None
    for other in ("/", "?", "#", "?x", " ", "\n", "%00", "/."):
        assert find(route.method, route.url(SESSION) + other) is None
    assert find(route.method, f"http://head{route.url(SESSION)}") is None


@given(st.sampled_from(["GET", "POST", "PATCH", "DELETE"]), st.text())
def test_whatever_else_is_asked_is_no_route(method: str, text: str) -> None:
    known = {route.url() for route in m.ROUTES.values()}
    if text not in known:
        assert find(method, text) is None
    assert find(method, f"/asyncsync/2{text}") is None
    for place in (f"/reads/{text}/blobs/0", f"/reads/{SESSION}/blobs/{text}"):
        found = find(method, m.BASE + place)
        assert found is None or m.BASE + place == found.route.url(found.session, found.blob)


def test_who_has_one_ipv6_address_has_as_many_as_he_likes() -> None:
    door = Door(max_failed_auths_per_minute=1)

    assert door.fail("2001:db8::1") is None
    assert door.fail("2001:db8::ffff:1:2") == 1, "the same network"
    assert door.fail("2001:db8:0:1::1") is None, "another one"
    assert source_of("127.0.0.1") == "127.0.0.1"
    assert source_of("::ffff:10.0.0.7") == "10.0.0.7"
    assert source_of("fe80::1%eth0") == source_of("fe80::2%eth0")
