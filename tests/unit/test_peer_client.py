"""The client of heads against one that says whatever a test wants: nothing of it is believed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from anyio import to_thread

from asyncsync.concurrency import Threads
from asyncsync.digest import CHUNK_BYTES, digest
from asyncsync.errors import (
    AccessDeniedError,
    AsyncSyncError,
    ConfigError,
    ConflictError,
    IntegrityError,
    NoSpaceError,
    PermanentError,
    SlowDownError,
    StalledError,
    TransientError,
)
from asyncsync.manifest import MAX_MANIFEST_BYTES, Header, Manifest, encode
from asyncsync.names import new_attempt
from asyncsync.secrets import Secret
from asyncsync.storage import Block, Intent, NewFile, Stored
from asyncsync.storage.peer import link
from asyncsync.storage.peer.credentials import find_access, joined_file
from asyncsync.storage.peer.link import Link
from asyncsync.storage.peer.store import PeerTrees, open_joined
from asyncsync.storage.peer.values import batches
from asyncsync.testing import FakeClock
from asyncsync.testing.values import make_manifest
from asyncsync.wire import messages as m
from asyncsync.wire.claims import Claims
from asyncsync.wire.failures import UnauthorizedError
from asyncsync.wire.framing import join_batch
from asyncsync.wire.joining import Join
from asyncsync.wire.tokens import HeadKey, KeyRing

from ..fakes.head import Asked, ScriptedHead, http, reply

SESSION = "0123456789abcdef" * 2
HEADER = Header(name="tree", attempt="1" * 32, identity="2" * 64)
KEYS = KeyRing((HeadKey.new(),))


def _token() -> Secret:
    return KEYS.mint(Claims.new("", now=time.time()))


class Client(NamedTuple):
    """A store, the head that it talks to, and the token that it shows there."""

    store: PeerTrees
    head: ScriptedHead
    token: Secret

    async def fails(self, kind: type[AsyncSyncError], text: str, act: Any) -> AsyncSyncError:
        """Expect an error of that class, in one line that names the place and no secret."""
        with pytest.raises(kind, match=text) as caught:
            await act
        said = str(caught.value)
        assert self.head.address in said
        assert "\n" not in said
        self.check_secret(said, repr(caught.value), repr(self.store), repr(self.store._link))
        return caught.value

    def check_secret(self, *texts: str) -> None:
        secret = self.token.reveal()
        for text in texts:
            assert secret not in text
            assert secret[-16:] not in text


@asynccontextmanager
async def serving(
    script: Callable[[Asked], Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Client]:
    async with ScriptedHead(script) as head:
        token = _token()
        join = Join(address=head.address, token=token)
        monkeypatch.setenv("ASYNCSYNC_JOIN", join.line().reveal())
        threads = Threads(2)
        way = Link(head.address, secure=False, threads=threads, max_requests=2)
        store = PeerTrees(way, threads)
        try:
            yield Client(store, head, token)
        finally:
            await store.aclose()
            threads.close()


Patch = pytest.MonkeyPatch

# -- the frame


FRAMES: dict[str, tuple[Callable[[Asked], bytes | None], type[AsyncSyncError], str]] = {
    "another version": (
        lambda a: reply(a, HEADER, Asyncsync_Version="2"),
        PermanentError,
        "speaks version",
    ),
    "a captive page": (
        lambda a: http(b"<html>log in", Content_Type="text/html"),
        PermanentError,
        "no asyncsync head .*check the address",
    ),
    "another request": (
        lambda a: reply(a, HEADER, Asyncsync_Request="0" * 16),
        TransientError,
        "another request",
    ),
    "no request": (
        lambda a: reply(a, HEADER, Asyncsync_Request=None),
        TransientError,
        "another request",
    ),
    "a redirect": (
        lambda a: reply(a, status="307 Go", Location="http://127.0.0.1:1/"),
        PermanentError,
        "307",
    ),
    "a redirect of anybody": (
        lambda a: http(status="301 Go", Location="http://127.0.0.1:1/"),
        PermanentError,
        "301",
    ),
    "a coding": (
        lambda a: reply(a, HEADER, Content_Encoding="gzip"),
        PermanentError,
        "coding",
    ),
    "a gateway without a head": (
        lambda a: http(b"<html>502", status="502 Bad Gateway"),
        TransientError,
        "502; check that the head runs",
    ),
    "a gateway that waited in vain": (
        lambda a: http(b"<html>", status="504 Gateway Time-out"),
        TransientError,
        "504",
    ),
    "a server that understands nothing": (
        lambda a: http(b"<html>", status="400 Bad Request"),
        TransientError,
        "did not understand",
    ),
    "a server that has no such page": (
        lambda a: http(b"<html>", status="404 Not Found"),
        PermanentError,
        "no asyncsync head",
    ),
    "a fault that is none": (
        lambda a: reply(a, b"\xff\0garbage", status="422 No"),
        PermanentError,
        "422",
    ),
    "a fault of a broken head": (
        lambda a: reply(a, b"Traceback", status="500 No"),
        TransientError,
        "500",
    ),
    "a fault with another status": (
        lambda a: reply(a, m.Fault(kind="NotFoundError", message="no"), status="409 No"),
        PermanentError,
        "409",
    ),
    "a fault of no kind": (
        lambda a: reply(a, m.Fault(kind="KeyboardInterrupt", message="no"), status="422 No"),
        PermanentError,
        "422",
    ),
    "another success": (lambda a: reply(a, HEADER, status="206 Some"), PermanentError, "206"),
    "nothing at all": (lambda a: reply(a, status="204 No"), PermanentError, "204"),
    "a body that is too short": (
        lambda a: reply(a, HEADER, length=9999)[:-1],
        TransientError,
        "broke",
    ),
    "no JSON": (lambda a: reply(a, b"{"), PermanentError, "no Header"),
    "JSON of another shape": (lambda a: reply(a, [1, 2]), PermanentError, "no Header"),
    "JSON without a bottom": (lambda a: reply(a, b"[" * 100_000), PermanentError, "no Header"),
    "no HTTP": (lambda a: b"SSH-2.0-OpenSSH_9\r\n\r\n", TransientError, "broke"),
    "an end": (lambda a: None, TransientError, "broke"),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_an_answer_in_another_frame_is_an_error_and_ends_the_connection(
    name: str, monkeypatch: Patch
) -> None:
    answer, kind, text = FRAMES[name]

    async def script(asked: Asked) -> bytes | None:
        found = answer(asked) if len(client.head.asked) == 1 else reply(asked, HEADER)
        if found is not None and len(client.head.asked) == 1 and "short" in name:
            await client.head.end_with(asked, found)
            return None
        return found

    async with serving(script, monkeypatch) as client:
        await client.fails(kind, text, client.store.read_header("tree"))
        again = await client.store.read_header("tree")

    assert again == HEADER
    lost_step = client.head.asked[1].connection == 2
    assert lost_step or name in _IN_STEP


# Answers that are whole, and to this very request: whatever is in them, the connection is in step.
_IN_STEP = {
    "a fault that is none",
    "a fault of a broken head",
    "a fault with another status",
    "a fault of no kind",
    "another success",
    "nothing at all",
    "no JSON",
    "JSON of another shape",
    "JSON without a bottom",
}


async def test_more_than_an_answer_is_not_taken_for_the_next_one(monkeypatch: Patch) -> None:
    def script(asked: Asked) -> bytes:
        if len(client.head.asked) == 1:
            forged = Header(name="forged", attempt="1" * 32, identity="3" * 64)
            return reply(asked, HEADER) + reply(asked, forged)
        return reply(asked, HEADER)

    async with serving(script, monkeypatch) as client:
        try:
            first = await client.store.read_header("tree")
        except TransientError:
            first = HEADER
        second = await client.store.read_header("tree")

    assert first == second == HEADER
    assert [asked.connection for asked in client.head.asked] == [1, 2]


async def test_a_redirect_is_not_followed_and_the_token_goes_nowhere_else(
    monkeypatch: Patch,
) -> None:
    async with ScriptedHead(lambda asked: reply(asked, HEADER)) as other:
        there = f"http://{other.address}/asyncsync/1/header"

        def script(asked: Asked) -> bytes:
            return reply(asked, status="307 Go", Location=there)

        async with serving(script, monkeypatch) as client:
            await client.fails(PermanentError, "307", client.store.read_header("tree"))

    assert other.connections == 0


async def test_what_a_head_says_of_an_error_is_one_line_without_control_characters(
    monkeypatch: Patch,
) -> None:
    fault = m.Fault(kind="PermanentError", message="a\nb\x1b[31m\u202e" + "x" * 10_000)

    async with serving(lambda asked: reply(asked, fault, status="422 No"), monkeypatch) as client:
        error = await client.fails(PermanentError, "a.b", client.store.read_header("tree"))

    assert str(error).isprintable()
    assert len(str(error)) < 3000


@pytest.mark.parametrize(("said", "meant"), [(1e300, 300.0), (-5.0, 0.0), (2.0, 2.0), (None, None)])
async def test_how_long_to_wait_is_not_for_a_head_to_say(
    said: float | None, meant: float | None, monkeypatch: Patch
) -> None:
    fault = m.Fault(kind="SlowDownError", message="wait", retry_after_s=said)

    async with serving(lambda asked: reply(asked, fault, status="429 No"), monkeypatch) as client:
        error = await client.fails(SlowDownError, "wait", client.store.read_header("tree"))

    assert isinstance(error, SlowDownError)
    assert error.retry_after_s == meant


async def test_the_winner_of_a_conflict_is_a_commit_or_the_answer_is_none(
    monkeypatch: Patch,
) -> None:
    fault = m.Fault(kind="ConflictError", message="no", winner="1" * 64)

    def script(asked: Asked) -> bytes:
        return reply(asked, fault, status="409 No")

    async with serving(script, monkeypatch) as client:
        error = await client.fails(ConflictError, "no", client.store.read_header("tree"))
        fault.winner = "\x1b]0;evil"
        await client.fails(PermanentError, "no commit", client.store.read_header("tree"))

    assert isinstance(error, ConflictError)
    assert error.winner == "1" * 64


async def test_another_worker_cannot_pretend_that_it_is_the_disk_here_that_fails(
    monkeypatch: Patch,
) -> None:
    fault = m.Fault(kind="NoSpaceError", message="full", side="target")

    async with serving(lambda asked: reply(asked, fault, status="507 No"), monkeypatch) as client:
        line, threads = Join(address=client.head.address, token=client.token).line(), Threads(1)
        other = open_joined(line, threads=threads, max_requests=1, clock=FakeClock())
        with pytest.raises(NoSpaceError) as caught:
            await other.read_header("tree")
        await other.aclose()
        threads.close()

    assert caught.value.side == "source"


# -- time


@pytest.mark.parametrize("trickle", [b"", b"HTTP/1.1 102 Processing\r\n\r\n"])
async def test_a_head_that_says_nothing_or_hardly_anything_is_given_up(
    trickle: bytes, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(link, "_STALL_S", 0.1)

    async def script(asked: Asked) -> bytes:
        while trickle:
            client.head.write(asked.connection, trickle)
            await asyncio.sleep(0.01)
        await anyio.sleep_forever()
        return b""

    async with serving(script, monkeypatch) as client:
        with anyio.fail_after(5):
            await client.fails(StalledError, "hardly anything", client.store.read_header("tree"))


async def test_the_end_of_a_session_is_said_once_more_when_the_connection_breaks(
    monkeypatch: Patch,
) -> None:
    def script(asked: Asked) -> bytes | None:
        return reply(asked) if len(client.head.asked) > 1 else None

    async with serving(script, monkeypatch) as client:
        way = client.store._link
        await way.end("leave", m.Leave(keep=True), what="leave", session=SESSION)

    assert [asked.body for asked in client.head.asked] == [m.encode(m.Leave(keep=True))] * 2


def test_a_request_carries_so_many_files_and_bytes_and_no_more() -> None:
    tiny, large = [1] * 2500, [5 << 20, 9 << 20, 1, 7 << 20]

    assert [len(some) for some in batches(tiny, lambda size: size)] == [1024, 1024, 452]
    assert [len(some) for some in batches(large, lambda size: size)] == [1, 1, 2]


# -- tokens


async def test_a_token_that_was_renewed_in_its_file_is_shown_after_a_refusal(
    monkeypatch: Patch,
) -> None:
    new, refusal = _token(), m.Fault(kind="UnauthorizedError", message="no")

    def script(asked: Asked) -> bytes:
        if asked.headers["authorization"] != f"Bearer {new.reveal()}":
            return reply(asked, refusal, status="401 No")
        return reply(asked, HEADER)

    async with serving(script, monkeypatch) as client:
        monkeypatch.delenv("ASYNCSYNC_JOIN")
        path = joined_file(client.head.address, os.environ)
        _write(path, Join(address=client.head.address, token=client.token))
        await client.fails(UnauthorizedError, "no", client.store.read_header("tree"))
        refused = len(client.head.asked)
        _write(path, Join(address=client.head.address, token=new))
        found = await client.store.read_header("tree")

    assert refused == 1
    assert found == HEADER
    assert len(client.head.asked) == 3


def _write(path: Path, join: Join) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text(join.line().reveal() + "\n")
    path.chmod(0o600)


async def test_a_fifo_in_the_place_of_a_token_holds_nobody_up(monkeypatch: Patch) -> None:
    def place() -> Path:
        path = joined_file("127.0.0.1:7")
        path.parent.mkdir(parents=True)
        os.mkfifo(path, 0o600)
        return path

    path = await to_thread.run_sync(place)
    with anyio.fail_after(10), pytest.raises(ConfigError, match="no join string"):
        await to_thread.run_sync(find_access, "127.0.0.1:7", False)
    await to_thread.run_sync(path.unlink)


@pytest.mark.parametrize("address", ["..", "10.0.0.5", "10.0.0.5:", ":7420", "10.0.0.5:http"])
async def test_an_address_without_a_port_is_named_before_a_token_is_looked_for(
    address: str,
) -> None:
    with pytest.raises(ConfigError, match=r"the address of a head is HOST:PORT, which .* is not"):
        await to_thread.run_sync(find_access, address, True)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
async def test_a_token_that_others_may_read_is_not_used(mode: int) -> None:
    path = joined_file("127.0.0.1:7")

    def place() -> None:
        _write(path, Join(address="127.0.0.1:7", token=_token()))
        path.chmod(mode)

    await to_thread.run_sync(place)
    with pytest.raises(ConfigError, match="may be read by others; chmod 600"):
        await to_thread.run_sync(find_access, "127.0.0.1:7", False)
    await to_thread.run_sync(path.unlink)


async def test_a_token_for_another_head_is_not_shown_to_this_one() -> None:
    path = joined_file("127.0.0.1:7")
    await to_thread.run_sync(_write, path, Join(address="127.0.0.1:8", token=_token()))
    with pytest.raises(ConfigError, match="is for another head; join this one again"):
        await to_thread.run_sync(find_access, "127.0.0.1:7", False)
    await to_thread.run_sync(path.unlink)


async def test_it_is_said_where_a_join_string_stands_that_is_none(monkeypatch: Patch) -> None:
    path = joined_file("127.0.0.1:7")

    def place() -> None:
        path.parent.mkdir(parents=True)
        path.touch(0o600)

    await to_thread.run_sync(place)
    with pytest.raises(ConfigError, match=f"{path}: this is no join string"):
        await to_thread.run_sync(find_access, "127.0.0.1:7", False)
    monkeypatch.setenv("ASYNCSYNC_JOIN", "asj1.hunter2")
    with pytest.raises(ConfigError, match="ASYNCSYNC_JOIN: the join string is damaged") as caught:
        await to_thread.run_sync(find_access, "127.0.0.1:7", False)
    await to_thread.run_sync(path.unlink)

    assert "hunter2" not in str(caught.value)


async def test_a_directory_in_the_place_of_a_token_is_named() -> None:
    path = joined_file("127.0.0.1:7")
    await to_thread.run_sync(lambda: path.mkdir(parents=True))
    with pytest.raises(ConfigError, match=r"Is a directory; join the head again"):
        await to_thread.run_sync(find_access, "127.0.0.1:7", False)
    await to_thread.run_sync(path.rmdir)


async def test_a_token_that_may_not_do_that_is_not_shown_again(monkeypatch: Patch) -> None:
    fault = m.Fault(kind="AccessDeniedError", message="this token does not allow that")

    async with serving(lambda asked: reply(asked, fault, status="403 No"), monkeypatch) as client:
        await client.fails(AccessDeniedError, "allow", client.store.read_header("tree"))

    assert len(client.head.asked) == 1


# -- manifests


def _text(manifest: Manifest) -> bytes:
    return b"".join(encode(manifest))


def _forged(path: str) -> bytes:
    """A manifest with a name of the same length in place of another, and its digest put right."""
    text = _text(make_manifest({"n" * len(path): b"x"}))
    body = text.rpartition(b'],"self":')[0].replace(b"n" * len(path), path.encode())
    return body + b'],"self":"' + digest(body).encode() + b'"}\n'


GOOD = _text(make_manifest({"a": b"1", "b/c": b"22"}))
MANIFESTS: dict[str, tuple[Callable[[Asked, int], bytes], type[AsyncSyncError], int]] = {
    "truncated": (
        lambda a, n: reply(a, GOOD[:-9], Asyncsync_Total=str(len(GOOD) - 9)),
        IntegrityError,
        1,
    ),
    "with another byte": (
        lambda a, n: reply(a, GOOD[:-90] + b"#" + GOOD[-89:], Asyncsync_Total=str(len(GOOD))),
        IntegrityError,
        1,
    ),
    "with a name that escapes": (
        lambda a, n: reply(a, _forged("../evil"), Asyncsync_Total=str(len(_forged("../evil")))),
        IntegrityError,
        1,
    ),
    "with an absolute name": (
        lambda a, n: reply(a, _forged("/etc/no"), Asyncsync_Total=str(len(_forged("/etc/no")))),
        IntegrityError,
        1,
    ),
    "of no length": (lambda a, n: reply(a, GOOD), PermanentError, 1),
    "of a length that is none": (
        lambda a, n: reply(a, GOOD, Asyncsync_Total="-1"),
        PermanentError,
        1,
    ),
    "of an absurd length": (
        lambda a, n: reply(a, b"x" * 1000, Asyncsync_Total=str(10**18)),
        PermanentError,
        1,
    ),
    "one byte longer than may be": (
        lambda a, n: reply(a, b"x" * 1000, Asyncsync_Total=str(MAX_MANIFEST_BYTES + 1)),
        PermanentError,
        1,
    ),
    "longer than it says": (
        lambda a, n: reply(a, GOOD, Asyncsync_Total=str(len(GOOD) - 1)),
        PermanentError,
        1,
    ),
    "that never ends": (
        lambda a, n: reply(a, b"x" * 1000, Asyncsync_Total=str(1000 * n + 1000)),
        TransientError,
        2,
    ),
    "that stops in the middle": (
        lambda a, n: reply(a, GOOD[: 50 * (n < 2)], Asyncsync_Total=str(len(GOOD))),
        PermanentError,
        2,
    ),
    "of two versions": (
        lambda a, n: reply(a, GOOD[:-20] if n < 2 else b"y" * 20, Asyncsync_Total=str(len(GOOD))),
        TransientError,
        2,
    ),
    "that survives what nobody knows": (
        lambda a, n: reply(
            a, GOOD, Asyncsync_Total=str(len(GOOD)), Asyncsync_Durability="eternity"
        ),
        PermanentError,
        1,
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
async def test_a_manifest_that_is_none_is_refused(name: str, monkeypatch: Patch) -> None:
    answer, kind, requests = MANIFESTS[name]

    async with serving(lambda a: answer(a, len(client.head.asked)), monkeypatch) as client:
        with pytest.raises(kind) as caught:
            await client.store.read_manifest("tree")

    assert len(client.head.asked) == requests
    assert "\n" not in str(caught.value)
    client.check_secret(str(caught.value))


async def test_a_manifest_comes_in_as_many_windows_as_the_head_likes(monkeypatch: Patch) -> None:
    def script(asked: Asked) -> bytes:
        start = m.decode(asked.body, m.Window).start
        return reply(asked, GOOD[start : start + 50], Asyncsync_Total=str(len(GOOD)))

    async with serving(script, monkeypatch) as client:
        found = await client.store.read_manifest("tree")

    assert set(found.files) == {"a", "b/c"}
    assert len(client.head.asked) == -(-len(GOOD) // 50)


@pytest.mark.parametrize(
    "header",
    [
        Header(version=2, identity="2" * 64),
        Header(digest="md5", identity="2" * 64),
        Header(chunk_bytes=1, identity="2" * 64),
        Header(identity="not a digest\n"),
        Header(identity="2" * 64, parent="../x"),
        Header(identity="2" * 64, step=-1),
        Header(identity="2" * 64, sequence=2**63),
        Header(identity="2" * 64, files=-1),
    ],
    ids=["version", "digest", "chunks", "identity", "parent", "step", "sequence", "files"],
)
async def test_a_header_that_is_none_of_ours_is_refused(header: Header, monkeypatch: Patch) -> None:
    async with serving(lambda asked: reply(asked, header), monkeypatch) as client:
        with pytest.raises((PermanentError, IntegrityError), match=client.head.address):
            await client.store.read_header("tree")


# -- names

ESCAPES = ["../x", "/etc/passwd", "", "a/../b", "a/./b", "a//b", "a/", "..", "a\0b"]
TEXTS: list[Any] = [*ESCAPES, ["Li4veA=="], ["?"], ["YQ==", "YQ=="]]


@pytest.mark.parametrize("text", TEXTS, ids=repr)
async def test_a_name_that_leads_elsewhere_is_refused_wherever_it_stands(
    text: Any, monkeypatch: Patch
) -> None:
    answers: dict[str, object] = {
        "/find": [(text, "tag")],
        "/glance": m.Seen(tag="tag", names=[text]),
        "/files": [m.FileLine(text, 1, 0o644, 0)],
        "/delete": m.Deletion(files=1, kept=[text]),
        "/reads": m.Opened(session=SESSION, files=[m.FileLine(text, 1, 0o644, 0)]),
    }

    async def find() -> None:
        async for _ in client.store.find("exp"):
            raise AssertionError("nothing of it is handed on")

    async def read() -> None:
        async with client.store.open("exp", None):
            raise AssertionError("nothing of it is read")

    async with serving(lambda a: reply(a, answers.get(a.route, b"")), monkeypatch) as client:
        for act in (
            find(),
            client.store.glance("exp"),
            client.store.list_files("exp"),
            client.store.delete("exp"),
            read(),
        ):
            await client.fails(PermanentError, "no asyncsync head", act)


NO_FILES = {
    "a size below 0": (-1, 420, 0),
    "a size that no disk has": (2**62, 420, 0),
    "a size that no machine has": (2**70, 420, 0),
    "a mode below 0": (1, -1, 0),
    "a mode of 60 bits": (1, 2**60, 0),
    "a time that no file has": (1, 420, 2**63),
    "a time before all": (1, 420, -(2**63)),
}


@pytest.mark.parametrize("name", NO_FILES)
async def test_a_file_that_there_cannot_be_costs_nothing(name: str, monkeypatch: Patch) -> None:
    files = [m.FileLine("w", *NO_FILES[name])]
    answers: dict[str, object] = {
        "/files": files,
        "/reads": m.Opened(session=SESSION, files=files),
    }

    async def read() -> None:
        async with client.store.open("exp", None):
            raise AssertionError("nothing of it is read")

    async with serving(lambda a: reply(a, answers.get(a.route, b"")), monkeypatch) as client:
        await client.fails(PermanentError, "makes no sense", client.store.list_files("exp"))
        await client.fails(PermanentError, "makes no sense", read())


@pytest.mark.parametrize("tree", ["other", "exp2", "ex", "expe/x"])
async def test_a_commit_that_nobody_asked_for_is_not_found(tree: str, monkeypatch: Patch) -> None:
    async with serving(lambda asked: reply(asked, [(tree, "tag")]), monkeypatch) as client:
        with pytest.raises(PermanentError, match="names"):
            [sight async for sight in client.store.find("exp")]


async def test_what_lies_deeper_is_no_name_of_a_glance(monkeypatch: Patch) -> None:
    seen = m.Seen(tag="", names=["a/b"])

    async with serving(lambda asked: reply(asked, seen), monkeypatch) as client:
        await client.fails(PermanentError, "does not lie there", client.store.glance("exp"))


@pytest.mark.parametrize("session", ["", "../../x", SESSION.upper(), SESSION + "0", "x y\r\nz: 1"])
async def test_a_session_that_is_none_gets_into_no_address(
    session: str, monkeypatch: Patch
) -> None:
    answers: dict[str, object] = {
        "/pushes": m.Begun(session=session, resumes=False),
        "/reads": m.Opened(session=session),
    }

    async def push() -> None:
        async with client.store.begin("exp", Intent(attempt=new_attempt())):
            raise AssertionError("there is nothing to write to")

    async def read() -> None:
        async with client.store.open("exp", None):
            raise AssertionError("there is nothing to read from")

    async with serving(lambda asked: reply(asked, answers[asked.route]), monkeypatch) as client:
        await client.fails(PermanentError, "no asyncsync head", push())
        await client.fails(PermanentError, "no asyncsync head", read())

    assert [asked.route for asked in client.head.asked] == ["/pushes", "/reads"]


# -- writing

BIG = NewFile("big", CHUNK_BYTES + 5)
SMALL = NewFile("small", 3)
Answers = dict[str, Callable[[Asked], bytes]]


@asynccontextmanager
async def pushing(answers: Answers, monkeypatch: Patch, **intent: Any) -> AsyncIterator[Any]:
    """A push to a head that answers so, and otherwise as a good one does."""
    good: Answers = {
        "/pushes": lambda a: reply(a, m.Begun(session=SESSION, resumes=True)),
        "/pushes/*": reply,
    }

    def script(asked: Asked) -> bytes:
        return {**good, **answers}[asked.route](asked)

    plan = Intent(attempt=new_attempt(), files=(BIG, SMALL), **intent)
    async with serving(script, monkeypatch) as client:
        async with client.store.begin("exp", plan) as writer:
            yield client, writer


DIGEST = digest(b"abc")


def _written(asked: Asked, body: object) -> bytes:
    return reply(asked, body, Upload_Offset=str(CHUNK_BYTES + 5))


WRITES: dict[str, tuple[Callable[[Asked], bytes], type[AsyncSyncError]]] = {
    "another end": (lambda a: reply(a, [DIGEST], Upload_Offset="5"), IntegrityError),
    "no end": (lambda a: reply(a, [DIGEST]), IntegrityError),
    "no digest": (lambda a: _written(a, []), PermanentError),
    "two digests": (lambda a: _written(a, [DIGEST] * 2), PermanentError),
    "what is no digest": (lambda a: _written(a, ["x" * 64]), PermanentError),
    "a digest of any length": (lambda a: _written(a, [DIGEST * 1000]), PermanentError),
    "no list": (lambda a: _written(a, {"a": 1}), PermanentError),
}


@pytest.mark.parametrize("name", WRITES)
async def test_a_chunk_is_not_written_by_an_answer_that_makes_no_sense(
    name: str, monkeypatch: Patch
) -> None:
    answer, kind = WRITES[name]
    async with pushing({"/pushes/*/blobs/*": answer}, monkeypatch) as (client, writer):
        await client.fails(kind, "write big", writer.write(BIG, CHUNK_BYTES, Block(b"abcde")))


@pytest.mark.parametrize("digests", [[], [DIGEST] * 2, ["x"], "text"])
async def test_files_are_not_written_by_an_answer_that_makes_no_sense(
    digests: object, monkeypatch: Patch
) -> None:
    answers: Answers = {"/pushes/*/batch": lambda a: reply(a, digests)}
    async with pushing(answers, monkeypatch) as (_, writer):
        with pytest.raises((PermanentError, IntegrityError), match="write 1 files"):
            await writer.write_many([(SMALL, b"abc")])


@pytest.mark.parametrize("held", [[(0, [7])], [(1, [1])], [(5, [0])], [(-1, [0])]])
async def test_what_nobody_has_sent_is_not_recalled(
    held: list[tuple[int, list[int]]], monkeypatch: Patch
) -> None:
    answers: Answers = {"/pushes/*/recall": lambda a: reply(a, m.Held(held=held))}
    async with pushing(answers, monkeypatch) as (client, writer):
        asked = [(BIG, {0: Stored(DIGEST), 1: Stored(DIGEST)}), (SMALL, {0: Stored(DIGEST)})]
        await client.fails(PermanentError, "nobody sent", writer.recall(asked))


@pytest.mark.parametrize("first", [-1, 0, 1, 10**6])
async def test_a_head_that_counts_in_another_way_is_refused(first: int, monkeypatch: Patch) -> None:
    answers: Answers = {"/pushes/*/plan": lambda a: reply(a, m.Planned(first=first))}
    async with pushing(answers, monkeypatch) as (client, writer):
        new = NewFile("new", 3)
        await client.fails(PermanentError, "counts", writer.write_many([(new, b"abc")]))


async def test_a_plan_whose_answer_was_lost_does_not_end_the_push(monkeypatch: Patch) -> None:
    answers: Answers = {
        "/pushes/*/plan": lambda a: reply(a, m.Planned(first=3)),  # it had been added as 2
        "/pushes/*/batch": lambda a: reply(a, [DIGEST]),
    }
    async with pushing(answers, monkeypatch) as (client, writer):
        await writer.write_many([(NewFile("new", 3), b"abc")])
        sent = client.head.asked[-1].body

    assert sent == join_batch([3]) + b"abc"


async def test_a_plan_of_a_session_that_is_gone_is_made_in_the_next_one(
    monkeypatch: Patch,
) -> None:
    gone = m.Fault(kind="GoneError", message="the session is over")

    def plan(asked: Asked) -> bytes:
        if asked.path.endswith(f"{SESSION}/plan") and len(client.head.asked) == 2:
            return reply(asked, gone, status="410 Gone")
        return reply(asked, m.Planned(first=2))

    answers: Answers = {
        "/pushes/*/plan": plan,
        "/pushes/*/recall": lambda a: reply(a, m.Held(held=[])),
        "/pushes/*/batch": lambda a: reply(a, [DIGEST]),
    }
    async with pushing(answers, monkeypatch) as (client, writer):
        await writer.write_many([(NewFile("new", 3), b"abc")])
        routes = [asked.route for asked in client.head.asked]

    assert routes == [
        *("/pushes", "/pushes/*/plan"),
        *("/pushes", "/pushes/*/recall", "/pushes/*/plan"),
        "/pushes/*/batch",
    ]


@pytest.mark.parametrize(
    ("receipt", "text"),
    [
        (m.Receipt(identity="0" * 64, durability="head-fsync"), "something else"),
        (m.Receipt(identity="", durability="eternity"), "something else|eternity"),
    ],
)
async def test_a_receipt_for_something_else_is_none(
    receipt: m.Receipt, text: str, monkeypatch: Patch
) -> None:
    answers: Answers = {"/pushes/*/commit": lambda a: reply(a, receipt)}
    async with pushing(answers, monkeypatch) as (client, writer):
        await client.fails(PermanentError, text, writer.commit(make_manifest({"small": b"abc"})))


async def test_a_receipt_of_an_unknown_level_is_none(monkeypatch: Patch) -> None:
    manifest = make_manifest({"small": b"abc"})
    receipt = m.Receipt(identity=manifest.identity, durability="eternity")
    answers: Answers = {"/pushes/*/commit": lambda a: reply(a, receipt)}
    async with pushing(answers, monkeypatch) as (client, writer):
        await client.fails(PermanentError, "eternity", writer.commit(manifest))


# -- reading


RANGE = f"bytes 0-4/{CHUNK_BYTES + 5}"
READS: dict[str, tuple[Callable[[Asked], bytes], type[AsyncSyncError]]] = {
    "another range": (
        lambda a: _part(a, b"abcde", Content_Range=f"bytes 1-5/{CHUNK_BYTES + 5}"),
        IntegrityError,
    ),
    "a file of another length": (
        lambda a: _part(a, b"abcde", Content_Range="bytes 0-4/5"),
        IntegrityError,
    ),
    "no range": (lambda a: _part(a, b"abcde"), IntegrityError),
    "all of it": (lambda a: reply(a, b"abcde", Content_Range=RANGE), PermanentError),
    "too little": (lambda a: _part(a, b"abcd", Content_Range=RANGE), TransientError),
    "too much": (lambda a: _part(a, b"abcdef", Content_Range=RANGE), TransientError),
    "extents that overlap": (
        lambda a: _part(a, b"abcde", Content_Range=RANGE, Asyncsync_Extents="0-3,2-4"),
        PermanentError,
    ),
    "extents beyond the chunk": (
        lambda a: _part(a, b"a", Content_Range=RANGE, Asyncsync_Extents="4-6"),
        PermanentError,
    ),
    "extents of other bytes": (
        lambda a: _part(a, b"abc", Content_Range=RANGE, Asyncsync_Extents="0-1"),
        TransientError,
    ),
}


def _part(asked: Asked, body: bytes, **headers: str) -> bytes:
    return reply(asked, body, status="206 Some", length=None, **headers)


@asynccontextmanager
async def pulling(answers: Answers, monkeypatch: Patch) -> AsyncIterator[Any]:
    """A read from a head that answers so."""
    lines = [m.FileLine(one.path, one.size_bytes, 0o644, 0) for one in (BIG, SMALL)]
    good: Answers = {
        "/reads": lambda a: reply(a, m.Opened(session=SESSION, files=lines)),
        "/reads/*": reply,
    }

    def script(asked: Asked) -> bytes:
        return {**good, **answers}[asked.route](asked)

    async with serving(script, monkeypatch) as client:
        async with client.store.open("exp", None) as reader:
            yield client, reader


@pytest.mark.parametrize("name", READS)
async def test_a_chunk_is_not_read_from_an_answer_that_makes_no_sense(
    name: str, monkeypatch: Patch
) -> None:
    answer, kind = READS[name]
    async with pulling({"/reads/*/blobs/*": answer}, monkeypatch) as (client, reader):
        await client.fails(kind, "read big", reader.read(BIG, 0, 5))


@pytest.mark.parametrize(
    ("extents", "body", "whole"),
    [
        ("", b"", b"\0\0\0\0\0"),
        ("1-2", b"x", b"\0x\0\0\0"),
        ("0-1,3-5", b"abc", b"a\0\0bc"),
        ("0-5", b"abcde", b"abcde"),
    ],
)
async def test_bytes_around_holes_come_to_their_places(
    extents: str, body: bytes, whole: bytes, monkeypatch: Patch
) -> None:
    answers: Answers = {
        "/reads/*/blobs/*": lambda a: _part(a, body, Content_Range=RANGE, Asyncsync_Extents=extents)
    }
    into = memoryview(bytearray(b"#" * 9))
    async with pulling(answers, monkeypatch) as (_, reader):
        found = await reader.read(BIG, 0, 5, into)

    assert bytes(found.data) == whole
    assert bytes(into[5:]) == b"####"


@pytest.mark.parametrize("body", [b"", b"ab", b"abcd"])
async def test_files_are_not_read_from_an_answer_of_another_length(
    body: bytes, monkeypatch: Patch
) -> None:
    answers: Answers = {"/reads/*/batch": lambda a: reply(a, body)}
    async with pulling(answers, monkeypatch) as (_, reader):
        with pytest.raises((IntegrityError, TransientError, PermanentError), match="read 1 files"):
            await reader.read_many([SMALL])
