"""Join strings: one line there and back, and nothing of it in any other text."""

from __future__ import annotations

import json
import re
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.errors import ConfigError
from asyncsync.secrets import Secret
from asyncsync.wire import base64url
from asyncsync.wire.joining import MAX_JOIN_BYTES, Join, is_loopback
from asyncsync.wire.tokens import MAX_TOKEN_BYTES

PAGE = (Path(__file__).parents[2] / "docs" / "formats" / "tokens.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE.partition("## Vectors")[2], re.DOTALL | re.MULTILINE)
FIRST, SECOND = (block.partition("\n\n")[2].replace("\n", "") for block in BLOCKS[:2])
PLAIN, TLS = (block.replace("\n", "") for block in BLOCKS[3:5])

JOIN = Join(address="head.example:7400", fingerprint="ab" * 32, token=Secret(SECOND))


def parse(line: str) -> Join:
    return Join.parse(Secret(line))


def line_of(fields: object) -> str:
    return "asj1." + base64url.encode(json.dumps(fields).encode())


def fields_of(**other: Any) -> dict[str, Any]:
    return {"address": "127.0.0.1:7400", "token": FIRST, **other}


def test_the_page_has_the_line_of_a_head_without_tls() -> None:
    expected = Join(address="127.0.0.1:7400", token=Secret(FIRST))

    assert parse(PLAIN) == expected
    assert expected.line().reveal() == PLAIN


def test_the_page_has_the_line_of_a_head_with_tls() -> None:
    assert parse(TLS) == JOIN
    assert JOIN.line().reveal() == TLS


@pytest.mark.parametrize(
    "address",
    ["head:1", "head.example:65535", "10.0.0.7:7400", "[fe80::1]:7400", "[::ffff:10.0.0.7]:80"],
)
def test_a_line_is_read_as_it_was_written(address: str) -> None:
    join = replace(JOIN, address=address)

    assert parse(f"  {join.line().reveal()}\r\n") == join


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "[::1]"])
def test_a_head_without_tls_is_joined_on_loopback(host: str) -> None:
    join = Join(address=f"{host}:7400", token=Secret(FIRST))

    assert parse(join.line().reveal()) == join


@pytest.mark.parametrize(
    "host", ["10.0.0.7", "0.0.0.0", "[::]", "head", "localhost.evil.example", "127.0.0.1.nip.io"]
)
def test_a_head_without_tls_is_joined_nowhere_else(host: str) -> None:
    with pytest.raises(ConfigError, match="needs TLS"):
        Join(address=f"{host}:7400", token=Secret(FIRST))


@pytest.mark.parametrize(
    "address",
    [
        "",
        "head",
        "head:",
        "head:0",
        "head:07400",
        "head:65536",
        "head:99999",
        ":7400",
        "head:7400\n",
        "head:7400/x",
        "user@head:7400",
        "http://head:7400",
        "::1:7400",
        "[::1]",
        "[1.2.3.4]:80",
        "[:::]:80",
        "[::1%eth0]:80",
        "he ad:80",
        "h\u00e9ad:80",
        "x" * 254 + ":80",
    ],
    ids=ascii,
)
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        replace(JOIN, address=address)


@pytest.mark.parametrize("fingerprint", ["", "ab" * 31, "AB" * 32, "ab" * 32 + "\n", "g" * 64])
def test_a_fingerprint_of_another_form_is_refused(fingerprint: str) -> None:
    with pytest.raises(ConfigError, match="fingerprint"):
        replace(JOIN, fingerprint=fingerprint)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "canary",
        "asj1.",
        "asj2." + TLS[5:],
        TLS[:-1],
        TLS[:40],
        TLS + "A",
        TLS + "=",
        TLS.replace(".", ":"),
        TLS[:30] + " " + TLS[30:],
        "asj1.\u00e9",
        "asj1." + "A" * MAX_JOIN_BYTES,
        line_of([]),
        line_of({}),
        line_of(fields_of(token="canary")),
        line_of(fields_of(token=None)),
        line_of(fields_of(address=7400)),
        line_of(fields_of(ca="")),
        line_of(fields_of(plain=True)),
        line_of(fields_of(address="10.0.0.7:7400")),
    ],
    ids=range(20),
)
def test_a_damaged_line_is_refused_in_one_line_that_does_not_repeat_it(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(line)

    shown = "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)
    assert not any(len(part) > 5 and part in shown for part in (line, line[5:], FIRST, SECOND))


@given(st.text() | st.binary().map(lambda raw: "asj1." + base64url.encode(raw)))
def test_garbage_is_refused_and_nothing_else_happens(line: str) -> None:
    with pytest.raises(ConfigError):
        parse(line)


def test_the_longest_token_fits_into_a_line() -> None:
    fields = fields_of(address="x" * 253 + ":65535", ca="ab" * 32, token="A" * MAX_TOKEN_BYTES)

    assert len(line_of(fields)) <= MAX_JOIN_BYTES


def test_no_text_shows_the_token() -> None:
    shown = f"{JOIN} {JOIN!r} {JOIN.line()} {JOIN.line()!r}"

    assert SECOND not in shown
    assert TLS not in shown
    assert "head.example:7400" in shown


def test_only_loopback_is_loopback() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert not any(is_loopback(h) for h in ("", "0.0.0.0", "::", "10.0.0.1", "localhost.", "head"))
