"""A head and those who mean it no good: refused by the right status, and nobody else notices."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from anyio import to_thread

from asyncsync import manifest as manifests
from asyncsync.digest import digest
from asyncsync.manifest import FileEntry, encode
from asyncsync.names import MANIFEST
from asyncsync.secrets import Secret
from asyncsync.testing.values import make_manifest
from asyncsync.units import MIB
from asyncsync.wire import messages as m
from asyncsync.wire.claims import Claims, Operation
from asyncsync.wire.framing import join_batch
from asyncsync.wire.limits import Limits
from asyncsync.wire.tokens import HeadKey, KeyRing, narrow

from .raw_head import Answer, RawHead, raw_head, request

HELLO = m.ROUTES["hello"].url()
HEADER = m.ROUTES["header"].url()
NOW = 1_700_000_000
SESSION = "0" * 32
BY_NAME = ("header", "manifest", "find", "glance", "files", "confirm", "delete", "probe", "open")


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RawHead]:
    limits = Limits(max_failed_auths_per_minute=1000)
    async with raw_head(tmp_path, monkeypatch, limits=limits) as place:
        yield place
        await place.good_push()


# -- what is no request, or could be two


def _with(*lines: str, target: str = HELLO, method: str = "GET", version: str = "1.1") -> bytes:
    """A request with these lines only; TOKEN is a good one."""
    frame = [f"{m.VERSION_HEADER}: {m.VERSION}", "Authorization: Bearer TOKEN"]
    return "\r\n".join([f"{method} {target} HTTP/{version}", *frame, *lines, "", ""]).encode()


MALFORMED = {
    "a length and chunks": _with("Host: h", "Content-Length: 3", "Transfer-Encoding: chunked")
    + b"0\r\n\r\n",
    "two lengths": _with("Host: h", "Content-Length: 0", "Content-Length: 3") + b"abc",
    "two equal lengths": _with("Host: h", "Content-Length: 3", "Content-Length: 3") + b"abc",
    "a list of lengths": _with("Host: h", "Content-Length: 3, 3") + b"abc",
    "a length with a sign": _with("Host: h", "Content-Length: +3") + b"abc",
    "a negative length": _with("Host: h", "Content-Length: -1"),
    "a length in hexadecimal": _with("Host: h", "Content-Length: 0x3") + b"abc",
    "a length with a blank": _with("Host: h", "Content-Length: 1 2"),
    "a length of nothing": _with("Host: h", "Content-Length: "),
    "a length above all numbers": _with("Host: h", f"Content-Length: {'9' * 40}"),
    "two codings": _with("Host: h", "Transfer-Encoding: chunked, identity"),
    "an unknown coding": _with("Host: h", "Transfer-Encoding: xchunked"),
    "a coding twice": _with("Host: h", "Transfer-Encoding: chunked", "Transfer-Encoding: x"),
    "a bare line feed": _with("Host: h").replace(b"\r\n", b"\n"),
    "a bare carriage return": _with("Host: h", "X: a\rb"),
    "a folded line": _with("Host: h", "X: a", " b"),
    "a blank before the colon": _with("Host : h"),
    "a line without a colon": _with("Host: h", "nonsense"),
    "a name that is none": _with("Host: h", "X(y): a"),
    "a NUL in a value": _with("Host: h", "X: a\0b"),
    "two hosts": _with("Host: h", "Host: i"),
    "a version of nobody": _with("Host: h", version="9.9"),
    "a version that is none": _with("Host: h", version="x"),
    "no version": f"GET {HELLO}\r\n\r\n".encode(),
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    "nonsense": b"\0\xff" * 64 + b"\r\n\r\n",
    "a line of 9 kB": _with("Host: h", target="/" + "a" * 9000),
    "a header of 9 kB": _with("Host: h", f"X: {'a' * 9000}"),
    "200 headers": _with("Host: h", *(f"X{n}: y" for n in range(200))),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_request_is_answered_400_and_nothing_more(
    place: RawHead, name: str
) -> None:
    before = await place.content()
    sent = MALFORMED[name].replace(b"TOKEN", place.token.reveal().encode())
    async with place.line() as line:
        await line.send(sent + request("GET", HELLO, token=place.token))

        place.check(await line.answer(), 400)
        assert await line.ended(), "what follows is not another request"
    assert await place.content() == before


FOREIGN: dict[str, tuple[int, dict[str, str | None]]] = {
    "gzip": (415, {"Content-Encoding": "gzip"}),
    "br": (415, {"Content-Encoding": "br"}),
    "deflate": (415, {"Content-Encoding": "deflate"}),
    "identity": (415, {"Content-Encoding": "identity"}),
    "no version": (400, {m.VERSION_HEADER: None}),
    "another version": (400, {m.VERSION_HEADER: "2"}),
    "a version in other words": (400, {m.VERSION_HEADER: "01"}),
    "upgrade": (400, {"Connection": "Upgrade", "Upgrade": "websocket"}),
    "expect": (400, {"Expect": "100-continue"}),
    "expect something else": (400, {"Expect": "the unexpected"}),
    "trailers": (400, {"Trailer": "X"}),
}


@pytest.mark.parametrize("name", FOREIGN)
async def test_what_would_be_read_in_another_way_is_refused(place: RawHead, name: str) -> None:
    status, headers = FOREIGN[name]
    bomb = gzip.compress(bytes(8 * MIB))
    before = await place.content()

    place.check(await place.told("header", bomb, headers=headers), status)
    assert await place.content() == before


async def test_a_body_in_chunks_is_refused_however_it_goes_on(place: RawHead) -> None:
    head = request(
        "POST",
        HEADER,
        token=place.token,
        headers={"Content-Length": None, "Transfer-Encoding": "chunked"},
    )
    for body in (
        b"2\r\n{}\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"-1\r\n",
        b"2;" + b"x=y;" * 5000,
        b"0\r\n" + b"X: y\r\n" * 5000,
    ):
        async with place.line() as line:
            await line.send(head + body)
            place.check(await line.answer(), 400)
            assert await line.ended()


async def test_a_body_where_there_is_none_is_refused(place: RawHead) -> None:
    for name in ("hello", "read", "close"):
        route = m.ROUTES[name]
        sent = request(route.method, route.url(SESSION), b"{}", token=place.token)
        place.check(await place.ask(sent), 400)


@pytest.mark.parametrize("length", [2**63 - 1, 2**63, 2**64 - 1])
async def test_a_length_beyond_everything_is_refused_before_any_of_it(
    place: RawHead, length: int
) -> None:
    for name in ("header", "begin", "manifest"):
        headers = {"Content-Length": str(length)}
        place.check(await place.told(name, b"{}", headers=headers), 422, 400)


async def test_what_stands_behind_a_request_is_another_one(place: RawHead) -> None:
    good = request("GET", HELLO, token=place.token)
    async with place.line() as line:
        await line.send(good * 3)
        answers = [await line.answer() for _ in range(3)]
        assert [one.status for one in answers if one] == [200, 200, 200]

        await line.send(b"rubbish\r\n\r\n" + good)
        place.check(await line.answer(), 400)
        assert await line.ended()


# -- targets


TRAVERSAL = [
    *("..", "../x", "a/../../x", "./x", "x/.", "//x", "/etc/passwd", "x//y", "x/", "..\\x"),
    *("C:\\x", "\\\\host\\s", "%2e%2e/", "%2e%2e%2f", "%252e%252e%252f", "..%00", "a\0b"),
    *("%c0%ae%c0%ae/", "..;/", "\uff0e\uff0e/", "\uff0e\uff0e\uff0fx", "a\u2215b", "\u2024\u2024"),
    *("\u202ex", "x.", "x ", "x\ny", "a" * 4097, "a" * 256, "/".join("a" * 65), "~", "~root"),
    *("$HOME", "-rf", "x?y", "x#y", MANIFEST, ".asyncsync-lock", "x\x7f", "x\x1b[0m"),
    f".ckpt.asyncsync-tmp-{SESSION}",
    f"a.asyncsync-parts-{SESSION}",
]
# As names of trees these are plain; as paths in a URL they are not.
PLAIN = {"x.", "con"}


@pytest.mark.parametrize("name", [*TRAVERSAL, "con"], ids=repr)
async def test_a_target_that_is_none_is_not_found_in_any_spelling(
    place: RawHead, name: str
) -> None:
    before = await place.content()
    raw = name.replace("\n", "%0a").replace(" ", "%20").replace("\0", "%00").replace("\x7f", "%7f")
    raw = raw.replace("\x1b", "%1b")
    for target in (f"/{raw}", f"{m.BASE}/{raw}", f"{HEADER}/{raw}", f"{m.BASE}/reads/{raw}"):
        place.check(await place.ask(request("POST", target, b"{}", token=place.token)), 404, 400)
    assert await place.content() == before


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/asyncsync/1",
            "/asyncsync/1/?",
            "/asyncsync/1/?x=y",
            "/asyncsync/1/#",
            "/asyncsync//1/",
        ),
        *("/asyncsync/%31/", "/%61syncsync/1/", "/asyncsync/1/./", "/asyncsync/1/../1/", "*"),
        *("http://head/asyncsync/1/", "//head/asyncsync/1/", "/ASYNCSYNC/1/", "asyncsync/1/"),
        *("/asyncsync/2/", "/", "/asyncsync/1/hello", "head:80", "/asyncsync/1/;x"),
        f"/asyncsync/1/reads/{SESSION.replace('0', 'A')}/blobs/0",
        f"/asyncsync/1/reads/{SESSION}/blobs/00",
        f"/asyncsync/1/reads/{SESSION}/blobs/-1",
        f"/asyncsync/1/reads/{SESSION}/blobs/99999999999",
        f"/asyncsync/1/reads/{SESSION}0/blobs/0",
        f"/asyncsync/1/reads/{SESSION}/blobs/0/",
    ],
)
async def test_a_target_has_one_spelling(place: RawHead, target: str) -> None:
    place.check(await place.ask(request("GET", target, token=place.token)), 404, 400)


# -- names in messages


@pytest.mark.parametrize("name", TRAVERSAL, ids=repr)
async def test_no_tree_has_such_a_name(place: RawHead, name: str) -> None:
    if name in PLAIN:
        return
    before = await place.content()
    for route in BY_NAME:
        answer = await place.told(route, {"tree": name})
        place.check(answer, 422)
        assert "canary" not in answer.fault.message
    place.check(await place.begin(name, ("w", 1)), 422)
    place.check(await place.told("mark", {"tree": name, "marker": ""}), 422)
    place.check(await place.told("clean", {"tree": name, "older_than_s": 0}), 422)

    assert await place.content() == before


@pytest.mark.parametrize(
    "path",
    [
        *("..", "../x", "a/../../x", "./x", "x/.", "//x", "/etc/passwd", "x//y", "x/", "", "a\0b"),
        *("a" * 4097, "a" * 256, "/".join("a" * 65), MANIFEST, ".asyncsync-lock"),
        f"d/.ckpt.asyncsync-tmp-{SESSION}",
        f"a.asyncsync-parts-{SESSION}/x",
    ],
    ids=repr,
)
async def test_no_file_of_a_plan_has_such_a_name(place: RawHead, path: str) -> None:
    before = await place.content()
    place.check(await place.begin("exp", ("w", 1), (path, 1)), 422)

    begun = await place.begin("exp", ("w", 1))
    session = m.decode(begun.body, m.Begun).session
    line = m.FileLine(m.text_of(path), 1, 0o644, 0)
    place.check(await place.told("plan", [line], session=session), 422)
    manifest = _hostile_manifest([path])
    place.check(await place.told("commit", manifest, session=session), 422)
    assert (await place.told("leave", m.Leave(), session=session)).status == 200
    assert await place.content() == before


def _hostile_manifest(paths: list[str]) -> bytes:
    """The text of a manifest that is right but for the names of its files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "_check_paths", lambda _: None)
        named = [FileEntry(path, 1, digest(b"x")) for path in paths]
        return b"".join(encode(make_manifest({}, others=named)))


@pytest.mark.parametrize(
    "paths", [["w", "w"], ["a", "a/b"], ["a/b", "a/b/c/d"], ["w", "../other"]], ids=repr
)
async def test_a_manifest_that_no_tree_can_have_is_refused(
    place: RawHead, paths: list[str]
) -> None:
    before = await place.content()
    begun = await place.begin("exp", ("w", 1))
    session = m.decode(begun.body, m.Begun).session
    wrote = await place.told("write", b"x", session=session, headers={m.OFFSET: "0"})
    assert wrote.status == 200

    answer = await place.told("commit", _hostile_manifest(paths), session=session)
    place.check(answer, 422)
    assert (await place.told("leave", m.Leave(), session=session)).status == 200
    assert await place.content() == before


# -- messages


NO_IDS = [
    *("", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 32 + "\n", "\0" * 32, "\u0660" * 32),
    *("/../../../evil", "x/../../y", "../" * 10 + "ab", "." * 32, "/" * 32),
]


@pytest.mark.parametrize("attempt", NO_IDS)
async def test_no_attempt_has_such_a_name(place: RawHead, attempt: str) -> None:
    """A directory is named by it; the first one is a way for what the second leads out by."""
    before = await place.content()
    group = m.Member(id="one", rank=0, size=1)
    for name in ("", attempt):
        begin = m.encode(m.Begin(tree="exp", attempt=name)) + b"\n"
        place.check(await place.told("begin", begin), 400)
        gather = m.Gather(tree="exp", attempt=name, group=group)
        place.check(await place.told("gather", gather), 400)
        turn = m.Turn(tree="exp", identity="0" * 64, reader=name)
        place.check(await place.told("turn", turn), 400)
    assert await place.content() == before


async def test_what_is_remembered_of_a_request_is_short(place: RawHead) -> None:
    for length, status in ((256, 200), (257, 400)):
        word = "w" * length
        begin = m.encode(m.Begin(tree="exp", attempt=SESSION, writer=word)) + b"\n"
        turn = m.Turn(tree="exp", identity=word, reader=SESSION)
        assert (await place.told("begin", begin)).status == status
        assert (await place.told("turn", turn)).status == status
    expect = m.encode(m.Begin(tree="exp", attempt=SESSION, expect="0" * 257)) + b"\n"
    place.check(await place.told("begin", expect), 400)
    for name in ("open", "delete"):
        field = {"open": "identity", "delete": "expect"}[name]
        place.check(await place.told(name, {"tree": "exp", field: "0" * 257}), 400)


BOMBS = {
    "deep": b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "deep where there is a field": b'{"tree":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a field twice": b'{"tree":"exp","tree":"canary"}',
    "a field twice, spelt in another way": b'{"tree":"exp","tr\\u0065e":"canary"}',
    "a field too many": b'{"tree":"exp","x":1}',
    "a field too few": b"{}",
    "another type": b'{"tree":1}',
    "null": b'{"tree":null}',
    "an array": b'["exp"]',
    "half a surrogate pair": b'{"tree":"\\ud800"}',
    "no UTF-8": b'{"tree":"\xff"}',
    "UTF-16": '{"tree":"exp"}'.encode("utf-16"),
    "a mark of order": b'\xef\xbb\xbf{"tree":"exp"}',
    "something behind it": b'{"tree":"exp"}{"tree":"exp"}',
    "a comma behind it": b'{"tree":"exp",}',
    "a comment": b'{"tree":"exp"}//',
    "a NUL behind it": b'{"tree":"exp"}\0',
    "nothing": b"",
    "a name of a megabyte": b'{"tree":"' + b"a" * (MIB - 20) + b'"}',
    "one byte too many": b" " * (MIB + 1),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_message_that_is_none_is_refused(place: RawHead, name: str) -> None:
    place.check(await place.told("header", BOMBS[name]), 400, 422)


NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1", "1" * 400, "1e400", "1.5", '"1"', "true"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda text: text[:9])
async def test_a_number_that_is_none_is_refused(place: RawHead, number: str) -> None:
    before = await place.content()
    if number != "1.5":  # seconds may be that
        clean = f'{{"tree":"exp","older_than_s":{number}}}'.encode()
        place.check(await place.told("clean", clean), 400)
    window = f'{{"tree":"exp","start":{number}}}'.encode()
    place.check(await place.told("manifest", window), 400, 404)
    for field in (1, 2, 3):
        if number == "-1" and field == 3:  # before 1970
            continue
        line = ['"w"', "1", "420", "0"]
        line[field] = number
        first = m.encode(m.Begin(tree="exp", attempt=SESSION))
        text = first + f"\n[{','.join(line)}]\n".encode()
        place.check(await place.told("begin", text), 400)
    assert await place.content() == before


async def test_blobs_that_are_not_in_the_plan_are_refused(place: RawHead) -> None:
    begun = await place.begin("exp", ("w", 3))
    session = m.decode(begun.body, m.Begun).session
    for blob in (-1, 1, 2**31, 2**70):
        text = f'{{"blobs":[{blob}]}}'.encode()
        place.check(await place.told("discard", text, session=session), 400)
        recalled = f'[{blob},[0],["{"0" * 64}"]]\n'.encode()
        place.check(await place.told("recall", recalled, session=session), 400)
    for chunk in (-1, 1, 2**31, 2**70):
        recalled = f'[0,[{chunk}],["{"0" * 64}"]]\n'.encode()
        answer = await place.told("recall", recalled, session=session)
        assert m.decode(answer.body, m.Held).held == [], "no file has such a chunk"
    for offset in ("-1", "1", "3", "16777216", "9" * 19, "9" * 40, "0x0", "", "00"):
        answer = await place.told("write", b"abc", session=session, headers={m.OFFSET: offset})
        place.check(answer, 400)
    for extents in ("0-4", "3-0", "0-1,0-1", "1", "-", "0-" + "9" * 30, "a-b", "0-1,"):
        headers = {m.OFFSET: "0", m.EXTENTS: extents}
        place.check(await place.told("write", b"a", session=session, headers=headers), 400)
    for batch in (b"", bytes(4), b"\0\0\0\1", join_batch([1]), join_batch([0, 0]) + b"abcabc"):
        place.check(await place.told("write_many", batch, session=session), 400)
    for body in (b"", b"ab", b"abcd"):
        answer = await place.told("write", body, session=session, headers={m.OFFSET: "0"})
        place.check(answer, 400, 422)
    assert (await place.told("leave", m.Leave(), session=session)).status == 200


# -- tokens


def _claims(**given: object) -> Claims:
    plain = {"scope": "exp/a", "operations": frozenset(Operation), "id": "1" * 32}
    return Claims(**{**plain, "not_before": NOW, "expires_at": 2**33, **given})  # type: ignore[arg-type]


class Tokens(NamedTuple):
    """Those of a head, and of others."""

    ring: KeyRing
    good: Secret
    bad: dict[str, Secret]


def _tokens() -> Tokens:
    key, other = HeadKey.new(), HeadKey.new()
    ring, foreign = KeyRing((key,)), KeyRing((HeadKey(id=key.id, secret=other.secret),))
    good = ring.mint(_claims())
    start, key_id, link, mac = good.reveal().split(".")
    wider = ring.mint(_claims(scope="")).reveal().split(".")[2]
    bad = {
        "nothing": "",
        "a word": "secret",
        "truncated": good.reveal()[:-1],
        "longer": good.reveal() + "A",
        "of another head": foreign.mint(_claims()).reveal(),
        "of another key": KeyRing((other,)).mint(_claims()).reveal(),
        "expired": ring.mint(_claims(expires_at=NOW + 1)).reveal(),
        "not valid yet": ring.mint(_claims(not_before=2**32)).reveal(),
        "another scope under the same code": ".".join([start, key_id, wider, mac]),
        "without its code": ".".join([start, key_id, link, ""]),
        "with a code of zeros": ".".join([start, key_id, link, "A" * 43]),
        "another format": ".".join(["as2", key_id, link, mac]),
        "a JSON web token without an algorithm": "eyJhbGciOiJub25lIn0.e30.",
        "very long": "as1." + "a" * 8000,
        "with a blank": good.reveal() + " x",
        "widened": ".".join([start, key_id, link, wider, mac]),
    }
    return Tokens(ring, good, {name: Secret(text) for name, text in bad.items()})


TOKENS = _tokens()


@pytest.fixture
async def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RawHead]:
    limits = Limits(max_failed_auths_per_minute=1000)
    async with raw_head(tmp_path, monkeypatch, keys=TOKENS.ring, limits=limits) as place:
        yield place
        await place.good_push()


@pytest.mark.parametrize("name", TOKENS.bad)
async def test_a_token_that_is_not_good_is_401_and_nothing_says_why(
    locked: RawHead, name: str
) -> None:
    before = await locked.content()
    without = await locked.told("header", {"tree": "exp/a"}, token=None)
    asked = {"header": {"tree": "exp/a"}, "delete": {"tree": "good"}, "hello": None}
    for route, body in asked.items():
        answer = await locked.told(route, body, token=TOKENS.bad[name])
        locked.check(answer, 401)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.body == without.body, "all are refused in the same words"
    assert await locked.content() == before


@pytest.mark.parametrize(
    "header", ["Basic TOKEN", "bearer TOKEN", "Bearer", "Bearer  TOKEN", "TOKEN", "Bearer TOKEN,x"]
)
async def test_a_token_is_shown_in_one_way(locked: RawHead, header: str) -> None:
    headers = {"Authorization": header.replace("TOKEN", TOKENS.good.reveal())}
    locked.check(await locked.told("hello", headers=headers), 401)


async def test_of_two_tokens_none_is_believed(locked: RawHead) -> None:
    line = f"Authorization: Bearer {TOKENS.good.reveal()}\r\n".encode()
    sent = request("GET", HELLO).replace(b"Host:", line + b"Host:")
    once = await locked.ask(sent)
    assert once is not None
    assert once.status == 200

    locked.check(await locked.ask(sent.replace(line, line + line)), 401)


async def test_a_token_of_one_trial_is_nothing_for_another_one(locked: RawHead) -> None:
    await locked.good_push()
    before = await locked.content()
    for tree in ("exp/b", "exp/ab", "exp", "good/tree_1", "", "nothing/there"):
        for route in BY_NAME:
            answer = await locked.told(route, {"tree": tree}, token=TOKENS.good)
            locked.check(answer, 403)
            assert answer.fault.message == "this token does not allow that"
        locked.check(await locked.begin(tree, ("w", 1), token=TOKENS.good), 403)
        clean = {"tree": tree, "older_than_s": 0}
        locked.check(await locked.told("clean", clean, token=TOKENS.good), 403)
        mark = {"tree": tree, "marker": ""}
        locked.check(await locked.told("mark", mark, token=TOKENS.good), 403)
    assert await locked.content() == before


async def test_a_session_is_of_no_use_with_another_token(locked: RawHead) -> None:
    begun = await locked.begin("exp/a/x", ("w", 3), token=TOKENS.good)
    session = m.decode(begun.body, m.Begun).session
    other = TOKENS.ring.mint(_claims(id="2" * 32))
    narrowed = narrow(TOKENS.good, _claims(scope="exp/a/y"))
    for token, status in ((other, 410), (narrowed, 403)):
        asked = {"plan": [], "discard": {"blobs": []}, "leave": {}, "commit": b"x"}
        for route, body in asked.items():
            answer = await locked.told(route, body, token=token, session=session)
            locked.check(answer, status)
    left = await locked.told("leave", {}, token=TOKENS.good, session=session)
    assert left.status == 200


async def test_a_request_that_is_sent_again_changes_nothing_more(place: RawHead) -> None:
    """What somebody has recorded and plays back: the same answer, or a refusal."""
    await place.good_push()
    identity = await _identity(place, "good/tree_1")
    gone = {"tree": "good/tree_1", "expect": identity}
    assert (await place.told("delete", gone)).status == 200
    place.check(await place.told("delete", gone), 404)

    await place.good_push()
    place.check(await place.told("delete", {"tree": "good/tree_2", "expect": "0" * 64}), 409)
    assert await _identity(place, "good/tree_2") == identity, "equal content"


async def _identity(place: RawHead, tree: str) -> str:
    answer = await place.told("header", {"tree": tree})
    return str(m.decode(answer.body, dict)["identity"])


async def test_no_commit_is_deleted_that_was_not_named(place: RawHead) -> None:
    for _ in range(2):
        await place.good_push()
    for uncommitted in (False, True):
        one = {"tree": "good/tree_1", "uncommitted": uncommitted}
        refused = await place.told("delete", one)
        place.check(refused, 409)
    all_of_them = {"tree": "good", "uncommitted": True}
    place.check(await place.told("delete", all_of_them), 422)
    place.check(await place.told("delete", {**all_of_them, "tree": ""}), 422)
    assert len(m.decode((await place.told("find", {"tree": ""})).body, list[m.Sight])) == 2

    gone = await place.told("delete", {"tree": "good/tree_1", "expect": refused.fault.winner})
    assert gone.status == 200
    await to_thread.run_sync(place.root.joinpath("good/raw").mkdir)
    await to_thread.run_sync(place.root.joinpath("good/raw/file").touch)
    gone = await place.told("delete", {"tree": "good/raw", "uncommitted": True})
    assert gone.status == 200


async def test_what_is_out_of_scope_and_what_is_not_there_look_the_same(locked: RawHead) -> None:
    await locked.good_push()
    there = await locked.told("header", {"tree": "good/tree_1"}, token=TOKENS.good)
    nowhere = await locked.told("header", {"tree": "good/tree_9"}, token=TOKENS.good)
    assert _without_date(there) == _without_date(nowhere)


def _without_date(answer: Answer) -> Answer:
    return answer._replace(headers={**answer.headers, "Date": ""})
