"""Tokens: what they allow, that nobody makes them without a key, and that they only narrow."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from asyncsync.errors import AccessDeniedError, ConfigError, RefusedError
from asyncsync.secrets import Secret
from asyncsync.wire import base64url
from asyncsync.wire.claims import DEFAULT_LIFE_S, WORKER, Claims, Operation
from asyncsync.wire.hkdf import hkdf
from asyncsync.wire.tokens import (
    MAX_LINKS,
    MAX_TOKEN_BYTES,
    SKEW_S,
    HeadKey,
    KeyRing,
    TokenError,
    TokenFault,
    claims_of,
    narrow,
)

PAGE = (Path(__file__).parents[2] / "docs" / "formats" / "tokens.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE.partition("## Vectors")[2], re.DOTALL | re.MULTILINE)

NOW = 1_795_219_200
KEY = HeadKey(id="5eed0001", secret=Secret(bytes(range(32)).hex()))
RING = KeyRing((KEY,))
EXP = Claims(
    scope="exp",
    operations=frozenset({Operation.PUSH, Operation.PULL, Operation.LIST}),
    not_before=NOW,
    expires_at=NOW + DEFAULT_LIFE_S,
    id="00112233445566778899aabbccddeeff",
    max_bytes=2**40,
)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

components = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._=,+@-]{0,9}", fullmatch=True)
scopes = st.lists(components, max_size=3).map("/".join)
caps = st.none() | st.integers(0, 2**63 - 1)
some_operations = st.frozensets(st.sampled_from(Operation), min_size=1)


@st.composite
def claims_in_time(draw: st.DrawFn) -> Claims:
    return Claims(
        scope=draw(scopes),
        operations=draw(some_operations),
        not_before=draw(st.integers(0, NOW)),
        expires_at=draw(st.integers(NOW + 1, 2**40)),
        id=draw(st.from_regex(r"[0-9a-f]{32}", fullmatch=True)),
        max_bytes=draw(caps),
        max_files=draw(caps),
    )


def fault_of(token: str, *, ring: KeyRing = RING, now: float = NOW) -> TokenFault:
    with pytest.raises(TokenError) as caught:
        ring.verify(Secret(token), now)
    return caught.value.fault


def forged(*links: str, key: bytes | None = None) -> str:
    """A token with a right code over whatever the links are."""
    mac = hmac.digest(
        key or KEY.derive("token", "exp"), f"as1.5eed0001.{links[0]}".encode(), "sha256"
    )
    for link in links[1:]:
        mac = hmac.digest(mac, link.encode(), "sha256")
    return ".".join(["as1", "5eed0001", *links, base64url.encode(mac)])


def link_of(token: Secret) -> str:
    return token.reveal().split(".")[-2]


def link(fields: dict[str, Any]) -> str:
    return base64url.encode(json.dumps(fields, separators=(",", ":")).encode())


FIELDS: dict[str, Any] = json.loads(base64url.decode(link_of(RING.mint(EXP))))


# ---------------------------------------------------------------- the page


def vector(number: int) -> tuple[str, str]:
    """The claims and the token of a block of the page."""
    claims, _, token = BLOCKS[number].partition("\n\n")
    return claims, token.replace("\n", "")


@pytest.mark.parametrize("number", [0, 2])
def test_the_page_has_the_token_that_the_head_makes(number: int) -> None:
    text, token = vector(number)
    fields = json.loads(text)
    operations = frozenset(map(Operation, fields.pop("operations")))

    made = RING.mint(Claims(operations=operations, **fields))

    assert made.reveal() == token
    assert base64url.decode(link_of(made)) == text.encode()


def test_the_page_has_the_token_that_a_holder_derives() -> None:
    text, token = vector(1)
    fields = json.loads(text)
    fields["operations"] = frozenset(map(Operation, fields["operations"]))

    derived = narrow(Secret(vector(0)[1]), Claims(**fields))

    assert derived.reveal() == token
    assert RING.verify(derived, NOW) == Claims(**fields)


def test_the_tokens_of_the_page_follow_from_the_page_alone() -> None:
    """A second implementation: the words of the page, json, base64 and hmac, nothing of ours."""
    secret = bytes(range(32))

    def experiment_key(experiment: str) -> bytes:
        pseudo_random = hmac.new(bytes(32), secret, hashlib.sha256).digest()
        info = f"asyncsync token 1\n{experiment}".encode()
        return hmac.new(pseudo_random, info + b"\x01", hashlib.sha256).digest()

    def encoded(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def code(key: bytes, text: str) -> bytes:
        return hmac.new(key, text.encode(), hashlib.sha256).digest()

    for number in (0, 2):
        claims, token = vector(number)
        key = experiment_key(json.loads(claims)["scope"].partition("/")[0])
        begin = f"as1.5eed0001.{encoded(claims.encode())}"
        assert f"{begin}.{encoded(code(key, begin))}" == token
        assert key.hex() in PAGE
        if number == 0:
            added = encoded(vector(1)[0].encode())
            end = encoded(code(code(key, begin), added))
            assert f"{begin}.{added}.{end}" == vector(1)[1]
    assert secret.hex() in PAGE


@pytest.mark.parametrize(
    ("secret", "salt", "info", "expected"),
    [  # RFC 5869, appendix A.1 to A.3
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)).hex(),
            bytes(range(0x60, 0xB0)).hex(),
            bytes(range(0xB0, 0x100)).hex(),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c6"
            "5e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            "0b" * 22,
            "",
            "",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_keys_are_derived_as_the_rfc_says(secret: str, salt: str, info: str, expected: str) -> None:
    found = hkdf(
        bytes.fromhex(secret),
        salt=bytes.fromhex(salt),
        info=bytes.fromhex(info),
        length=len(expected) // 2,
    )

    assert found.hex() == expected


@pytest.mark.parametrize("length", [0, 255 * 32 + 1])
def test_a_length_that_hkdf_cannot_give_is_a_bug(length: int) -> None:
    with pytest.raises(ValueError, match="HKDF gives 1 to 8160 bytes"):
        hkdf(b"secret", info=b"", length=length)


# ---------------------------------------------------------------- claims


@pytest.mark.parametrize(
    ("scope", "tree", "below"),
    [
        ("exp", "exp", True),
        ("exp", "exp/trial_1", True),
        ("exp/trial_1", "exp/trial_1/ckpt_7", True),
        ("", "exp", True),
        ("", "", True),
        ("exp", "", False),
        ("exp", "exp2", False),
        ("exp", "Exp", False),
        ("exp/trial_1", "exp", False),
        ("exp/trial_1", "exp/trial_10", False),
        ("exp", "other/exp", False),
        # What is no name is below nothing, whatever it begins with.
        ("exp", "exp/../other", False),
        ("exp", "exp/", False),
        ("exp", "exp//x", False),
        ("", "/etc", False),
        ("", "..", False),
    ],
)
def test_a_scope_is_a_tree_and_what_lies_below(scope: str, tree: str, below: bool) -> None:
    assert changed(EXP, scope=scope).allows(Operation.PULL, tree) is below


@pytest.mark.parametrize("operation", Operation)
def test_no_operation_includes_another(operation: Operation) -> None:
    claims = changed(EXP, operations=frozenset({operation}))

    assert [o for o in Operation if claims.allows(o, "exp")] == [operation]


def test_a_worker_may_push_and_pull_for_a_week_and_nothing_else() -> None:
    claims = Claims.new("exp/trial_1", now=NOW + 0.9)

    assert claims.operations == WORKER == {"push", "pull"}
    assert (claims.not_before, claims.expires_at) == (NOW, NOW + 7 * 24 * 3600)
    assert claims.experiment == "exp"
    assert Claims.new("exp/trial_1", now=NOW).id != claims.id


def test_a_scope_that_is_no_name_is_refused_with_its_rule() -> None:
    with pytest.raises(RefusedError, match="begins with a letter or digit"):
        Claims.new("exp/../x", now=NOW)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scope": "../x"},
        {"scope": "exp/"},
        {"operations": frozenset()},
        {"operations": frozenset({"push", "format"})},
        {"not_before": -1},
        {"not_before": NOW + 0.5},
        {"expires_at": NOW},
        {"expires_at": 2**63},
        {"expires_at": True},
        {"id": "A" * 32},
        {"id": "a" * 31},
        {"id": "a" * 32 + "\n"},
        {"max_bytes": -1},
        {"max_bytes": 1.5},
        {"max_files": 2**63},
    ],
    ids=lambda wrong: json.dumps(wrong, default=sorted),
)
def test_claims_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        changed(EXP, **wrong)


# ---------------------------------------------------------------- verifying


@given(claims_in_time())
def test_what_was_minted_is_verified(claims: Claims) -> None:
    assert RING.verify(RING.mint(claims), NOW) == claims


@given(st.data())
def test_any_other_character_is_refused(data: st.DataObject) -> None:
    token = data.draw(st.sampled_from([vector(0)[1], vector(1)[1]]))
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from(ALPHABET + ".= \n\0é"))
    if other == token[at]:
        other = "~"

    fault_of(token[:at] + other + token[at + 1 :])


def test_every_last_character_of_a_code_counts() -> None:
    """Its last bits carry nothing: a decoder that ignores them would take four spellings."""
    token = vector(0)[1]

    for other in set(ALPHABET) - {token[-1]}:
        assert fault_of(token[:-1] + other) is TokenFault.BAD_MAC


@given(st.text() | st.text(alphabet=ALPHABET + ".", max_size=3000))
def test_garbage_is_refused_and_nothing_else_happens(garbage: str) -> None:
    fault_of(garbage)
    fault_of(f"as1.5eed0001.{garbage}")


@given(st.binary(max_size=200))
def test_garbage_with_a_right_code_is_refused_and_nothing_else_happens(garbage: bytes) -> None:
    fault_of(forged(base64url.encode(garbage) or "A"))
    fault_of(forged(link(FIELDS), base64url.encode(garbage) or "A"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "as1",
        "as1.5eed0001..",
        "as2" + vector(0)[1][3:],
        " " + vector(0)[1],
        vector(0)[1] + "\n",
        vector(0)[1] + "=",
        vector(0)[1].replace("5eed0001", "5EED0001"),
        ".".join(["as1.5eed0001", *["e30"] * (MAX_LINKS + 1), "A" * 43]),
        "as1.5eed0001." + "A" * MAX_TOKEN_BYTES + "." + "A" * 43,
        "as1." * 1_000_000,
    ],
    ids=range(11),
)
def test_a_token_of_another_form_is_malformed(text: str) -> None:
    assert fault_of(text) is TokenFault.MALFORMED


@pytest.mark.parametrize(
    "fields",
    [
        {**FIELDS, "alg": "none"},
        {**FIELDS, "max_bytes": None},
        {**FIELDS, "operations": ["push", "list", "pull"]},
        {**FIELDS, "operations": ["list", "list"]},
        {**FIELDS, "operations": ["list", "format"]},
        {**FIELDS, "scope": "exp/.."},
        {**FIELDS, "expires_at": float(FIELDS["expires_at"])},
        {**FIELDS, "expires_at": 10**400},
        dict(reversed(FIELDS.items())),
        {name: FIELDS[name] for name in FIELDS if name != "expires_at"},
        {},
    ],
    ids=range(11),
)
def test_claims_of_another_form_are_malformed_even_with_a_right_code(
    fields: dict[str, Any],
) -> None:
    assert fault_of(forged(link(fields))) is TokenFault.MALFORMED


def test_a_field_that_is_there_twice_is_malformed() -> None:
    text = base64url.decode(link(FIELDS)).decode()

    twice = text.replace("}", ',"scope":"exp"}')

    assert fault_of(forged(base64url.encode(twice.encode()))) is TokenFault.MALFORMED


def test_a_token_is_valid_within_its_time_and_half_a_minute_around() -> None:
    token = RING.mint(EXP)
    end = EXP.expires_at

    assert RING.verify(token, NOW - SKEW_S) == RING.verify(token, end + SKEW_S - 0.001) == EXP
    assert fault_of(token.reveal(), now=NOW - SKEW_S - 0.001) is TokenFault.NOT_YET
    assert fault_of(token.reveal(), now=end + SKEW_S) is TokenFault.EXPIRED
    assert fault_of(token.reveal(), now=float("nan")) is TokenFault.EXPIRED


def test_the_token_of_another_head_is_refused() -> None:
    other = KeyRing((HeadKey(id="5eed0001", secret=Secret("f" * 64)),))

    assert fault_of(other.mint(EXP).reveal()) is TokenFault.BAD_MAC
    assert fault_of(KeyRing((HeadKey.new(),)).mint(EXP).reveal()) is TokenFault.UNKNOWN_KEY


def test_the_key_of_one_experiment_makes_no_token_of_another() -> None:
    key = KEY.derive("token", "exp")

    assert fault_of(forged(link({**FIELDS, "scope": "other"}), key=key)) is TokenFault.BAD_MAC
    assert fault_of(forged(link({**FIELDS, "scope": ""}), key=key)) is TokenFault.BAD_MAC


def test_an_error_tells_nothing_of_the_token_nor_of_the_reason() -> None:
    tokens = [vector(0)[1], vector(1)[1], "canary", vector(0)[1][:-1] + "A", forged(link({}))]
    errors = []
    for token in tokens:
        with pytest.raises(AccessDeniedError) as caught:
            RING.verify(Secret(token), 0)
        errors.append(caught.value)

    assert len({(str(e), repr(e), e.paths, e.side) for e in errors}) == 1
    shown = "".join("".join(traceback.format_exception(e)) for e in errors)
    assert not any(token in shown for token in tokens)


def test_no_text_shows_a_token_or_a_key() -> None:
    token = RING.mint(EXP)

    shown = f"{token} {token!r} {RING} {RING!r} {KEY}"

    assert token.reveal() not in shown
    assert KEY.secret.reveal() not in shown


def test_a_token_that_would_be_too_long_is_not_made() -> None:
    with pytest.raises(ConfigError, match="longer than 2048 bytes"):
        RING.mint(changed(EXP, scope="/".join(["x" * 200] * 8)))


# ---------------------------------------------------------------- narrowing


@given(claims_in_time(), claims_in_time())
def test_narrowing_never_widens(first: Claims, wanted: Claims) -> None:
    """What can be derived allows a part; what cannot is refused, here and by the head."""
    wanted = changed(wanted, id=first.id)
    token = RING.mint(first)

    try:
        derived = narrow(token, wanted)
    except ConfigError:
        key = KEY.derive("token", first.experiment)
        assert fault_of(forged(link_of(token), link_of(RING.mint(wanted)), key=key)) is (
            TokenFault.WIDER
        )
        return

    found = RING.verify(derived, NOW)
    assert found == wanted
    assert found.is_within(first)


@given(claims_in_time(), st.data())
def test_a_part_can_always_be_derived_and_allows_no_more(
    first: Claims, data: st.DataObject
) -> None:
    below = data.draw(components)
    part = changed(
        first,
        scope=f"{first.scope}/{below}" if first.scope else below,
        operations=data.draw(st.sets(st.sampled_from(sorted(first.operations)), min_size=1)),
        expires_at=data.draw(st.integers(NOW + 1, first.expires_at)),
        max_bytes=data.draw(
            st.integers(0, 2**63 - 1 if first.max_bytes is None else first.max_bytes)
        ),
    )
    part = changed(part, operations=frozenset(part.operations))
    tree = data.draw(st.sampled_from([part.scope, f"{part.scope}/x", first.scope, "x"]))

    found = RING.verify(narrow(RING.mint(first), part), NOW)

    assert found == part
    assert all(first.allows(o, tree) for o in Operation if found.allows(o, tree))


@pytest.mark.parametrize(
    "wider",
    [
        {"scope": ""},
        {"scope": "other"},
        {"scope": "exp2"},
        {"operations": frozenset(Operation)},
        {"not_before": EXP.not_before - 1},
        {"expires_at": EXP.expires_at + 1},
        {"id": "f" * 32},
        {"max_bytes": None},
        {"max_bytes": 2**40 + 1},
    ],
    ids=lambda wider: next(iter(wider)),  # sets are printed in any order
)
def test_every_way_to_widen_is_refused_by_holder_and_head(wider: dict[str, Any]) -> None:
    token, wanted = RING.mint(EXP), changed(EXP, **wider)

    with pytest.raises(ConfigError, match="narrowed, not widened"):
        narrow(token, wanted)
    with_a_right_code = forged(link_of(token), link_of(RING.mint(wanted)))
    assert fault_of(with_a_right_code) is TokenFault.WIDER


def test_a_link_cannot_be_taken_away_or_put_elsewhere() -> None:
    narrower = narrow(RING.mint(EXP), changed(EXP, scope="exp/a"))
    narrowest = narrow(narrower, changed(EXP, scope="exp/a/b"))
    *begin, one, two, three, mac = narrowest.reveal().split(".")

    for links in ([one], [one, two], [one, three], [one, three, two], [two, three], [two]):
        assert fault_of(".".join([*begin, *links, mac])) is TokenFault.BAD_MAC


def test_a_wider_link_is_not_hidden_by_a_narrower_one_behind_it() -> None:
    wider, narrowest = changed(EXP, scope="", operations=frozenset(Operation)), EXP
    links = [link_of(RING.mint(c)) for c in (EXP, wider, narrowest)]

    assert fault_of(forged(*links)) is TokenFault.WIDER


def test_a_token_is_narrowed_three_times_at_most() -> None:
    token = RING.mint(EXP)
    for depth in range(MAX_LINKS - 1):
        token = narrow(token, changed(EXP, scope="/".join(["exp", *"abc"[: depth + 1]])))

    assert RING.verify(token, NOW).scope == "exp/a/b/c"
    with pytest.raises(ConfigError, match="narrowed 3 times at most"):
        narrow(token, claims_of(token))


def test_what_is_no_token_is_not_narrowed_and_not_repeated() -> None:
    for text in ("canary", vector(0)[1][:-1] + "9"):
        with pytest.raises(ConfigError, match="this is no token") as caught:
            narrow(Secret(text), EXP)
        assert text not in "".join(traceback.format_exception(caught.value))


def test_a_holder_can_read_its_token() -> None:
    assert claims_of(RING.mint(EXP)) == EXP
    assert claims_of(Secret(vector(1)[1])).scope == "exp/trial_1"


# ---------------------------------------------------------------- keys


def test_after_a_rotation_old_tokens_are_good_until_the_old_key_retires() -> None:
    old = RING.mint(EXP)

    ring = RING.rotated(HeadKey.new(), now=NOW, overlap_s=3600)

    assert ring.verify(old, NOW + 3599) == EXP == ring.verify(ring.mint(EXP), NOW + 3600)
    assert fault_of(old.reveal(), ring=ring, now=NOW + 3600) is TokenFault.UNKNOWN_KEY
    assert ring.mint(EXP) != old


def test_a_rotation_drops_what_has_retired_and_keeps_what_has_not() -> None:
    keys = [HeadKey.new() for _ in range(3)]

    ring = RING.rotated(keys[0], now=NOW, overlap_s=100)
    soon = ring.rotated(keys[1], now=NOW + 50, overlap_s=100)
    later = soon.rotated(keys[2], now=NOW + 100, overlap_s=100)

    assert [key.id for key in soon.keys] == [keys[1].id, keys[0].id, KEY.id]
    assert [key.id for key in later.keys] == [keys[2].id, keys[1].id, keys[0].id]


@pytest.mark.parametrize(
    "keys",
    [
        (),
        (KEY, replace(KEY, retires_at=NOW)),
        (replace(KEY, retires_at=NOW),),
        (KEY, HeadKey.new()),
    ],
    ids=["none", "twice", "retiring", "two in use"],
)
def test_a_ring_has_one_key_in_use_and_each_key_once(keys: tuple[HeadKey, ...]) -> None:
    with pytest.raises(ConfigError):
        KeyRing(keys)


@pytest.mark.parametrize(
    "wrong", [{"id": "XYZ"}, {"secret": Secret("canary")}], ids=["id", "secret"]
)
def test_a_key_of_another_form_is_refused_and_not_repeated(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(KEY, **wrong)

    assert "canary" not in str(caught.value)


def test_a_key_gives_other_bytes_for_every_purpose() -> None:
    derived = {KEY.derive(p, c) for p in ("token", "receipt") for c in ("", "exp", "exp2")}

    assert len(derived) == 6
