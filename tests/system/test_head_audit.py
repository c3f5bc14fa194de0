"""The audit log of a head: who has changed what, who was refused, and no secret."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncsync.errors import FormatError, SlowDownError
from asyncsync.manifest import encode
from asyncsync.peer.audit import Entry, line_of
from asyncsync.secrets import Secret
from asyncsync.testing.values import make_manifest
from asyncsync.wire import messages as m
from asyncsync.wire.claims import WORKER, Claims
from asyncsync.wire.limits import Limits
from asyncsync.wire.tokens import HeadKey, KeyRing, Revoked, claims_of

from .raw_head import RawHead, raw_head

pytestmark = pytest.mark.one_loop

NOW = 1_795_219_200.25
Lines = pytest.LogCaptureFixture


@pytest.fixture
async def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Lines
) -> AsyncIterator[RawHead]:
    caplog.set_level(logging.INFO, "asyncsync.audit")
    limits = Limits(max_failed_auths_per_minute=2)
    async with raw_head(tmp_path, monkeypatch, limits=limits) as made:
        yield made


def said(caplog: Lines) -> list[dict[str, Any]]:
    """What was noted since the last time, without the time."""
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "asyncsync.audit"]
    caplog.clear()
    for line in lines:
        assert line.pop("time").endswith("+00:00")
    return lines


async def test_what_changes_something_is_noted_and_what_does_not_is_not(
    place: RawHead, caplog: Lines
) -> None:
    token = place.head.token("exp")
    begun = await place.begin("exp/1", ("w", 3), token=token)
    where = {"session": m.decode(begun.body, m.Begun).session, "token": token}
    await place.told("write", b"abc", headers={m.OFFSET: "0"}, **where)
    text = b"".join(encode(make_manifest({"w": b"abc"})))
    await place.told("commit", text, **where)
    await place.told("header", {"tree": "exp/1"}, token=token)
    await place.told("hello", token=token)

    lines = said(caplog)
    assert [(line["operation"], line["bytes"]) for line in lines[1:]] == [
        ("write", 3),
        ("commit", len(text)),
    ]
    assert lines[0] == {
        "from": "127.0.0.1",
        "token": claims_of(token).id,
        "operation": "begin",
        "tree": "exp/1",
        "outcome": "ok",
        "bytes": lines[0]["bytes"],
    }


async def test_who_is_refused_is_noted_with_the_tree_that_it_was_about(
    place: RawHead, caplog: Lines
) -> None:
    token = place.head.token("exp")
    await place.told("header", {"tree": "other/1"}, token=token)
    await place.told("delete", {"tree": "exp/1"}, token=token)
    await place.told("header", {"tree": "../\x1b[2J"}, token=token)

    assert [(line["operation"], line["tree"], line["outcome"]) for line in said(caplog)] == [
        ("header", "other/1", "AccessDeniedError"),
        ("delete", None, "AccessDeniedError"),
        ("header", None, "RefusedError"),
    ]


async def test_why_a_token_was_refused_is_for_the_log_alone(place: RawHead, caplog: Lines) -> None:
    keys = KeyRing((HeadKey.new(),))
    place.head.use_keys(keys)
    good = Claims.new("exp", now=NOW, life_s=2**31)
    token = keys.mint(good)
    place.head.use_keys(KeyRing(keys.keys, Revoked(tokens=frozenset({good.id}))))
    revoked = await place.told("hello", token=token)
    forged = await place.told("hello", token=Secret(token.reveal()[:-4] + "AAAA"))
    assert revoked.body == forged.body

    assert [(line["token"], line["reason"]) for line in said(caplog)] == [
        (good.id, "revoked"),
        (None, "bad mac"),
    ]


async def test_who_guesses_does_not_fill_the_disk(place: RawHead, caplog: Lines) -> None:
    for _ in range(20):
        await place.told("hello", token=Secret("as1.guess"))

    assert len(said(caplog)) == 2


async def test_no_line_has_a_token(place: RawHead, caplog: Lines) -> None:
    token = place.head.token("exp", operations=WORKER)
    await place.told("renew", token=token)
    await place.told("turn", {"tree": "exp", "line": token.reveal()}, token=token)
    await place.told("find", {"tree": token.reveal()}, token=token)

    assert [line["operation"] for line in said(caplog)] == ["renew", "turn", "find"]
    assert "as1." not in caplog.text


def test_a_line_is_one_line_whatever_is_in_it() -> None:
    entry = Entry("::1\n\x1b", 7, "commit", m.ROUTES["commit"], "0" * 32, "a\r\n\x1b[2J\u202e")
    line = line_of(entry, None, NOW)

    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["time"] == "2026-11-21T00:00:00.250+00:00"
    assert json.loads(line)["tree"] == entry.tree


def test_only_what_is_known_to_be_a_request_is_noted() -> None:
    route = m.ROUTES["commit"]

    assert not line_of(Entry("a", 0), FormatError("no version"), NOW)
    assert not line_of(Entry("a", 0, "commit", route), SlowDownError("wait"), NOW)
    assert line_of(Entry("a", 0, "commit", route, "0" * 32), SlowDownError("too many"), NOW)
    assert not line_of(Entry("a", 0, "header", m.ROUTES["header"], "0" * 32), None, NOW)
