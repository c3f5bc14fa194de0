"""Heads over TLS: who is not the head that was joined sees no token, and nothing of a tree."""

from __future__ import annotations

import secrets
import socket
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from anyio import to_thread

from asyncsync.concurrency import Threads
from asyncsync.digest import CHUNK_BYTES
from asyncsync.errors import ConfigError, PermanentError, TransientError
from asyncsync.peer import PeerServer
from asyncsync.peer.authority import Pair
from asyncsync.peer.certificates import server_context
from asyncsync.secrets import Secret
from asyncsync.storage.peer import open_trees
from asyncsync.testing import Finish, Flip, Reset
from asyncsync.testing.network import Direction, LineFault
from asyncsync.testing.values import load, save
from asyncsync.units import MIB
from asyncsync.wire import messages as m
from asyncsync.wire.claims import Claims, Operation
from asyncsync.wire.joining import Join
from asyncsync.wire.tokens import HeadKey, KeyRing
from asyncsync.wire.trust import fingerprint_of

from ..fakes.head import Asked, ScriptedHead, reply
from .peer_place import PeerPlace, peer_place

pytestmark = pytest.mark.one_loop

Patch = pytest.MonkeyPatch
NOW = time.time()
DAY_S = 86400.0


class Shown(NamedTuple):
    """What a server shows, and the CA that it names to whoever asks."""

    context: ssl.SSLContext
    authority: str


def _shown(folder: Path, pem: bytes, authority: str) -> Shown:
    file = folder / f"{secrets.token_hex(4)}.pem"
    file.write_bytes(pem)
    return Shown(server_context(file), authority)


def _issued(folder: Path, hosts: list[str], now: float = NOW, ca: Pair | None = None) -> Shown:
    ca = ca or Pair.make_authority(min(now, NOW))
    return _shown(folder, ca.issue(hosts, now).pem(), ca.certificate_pem())


def _of_trustme(folder: Path) -> Shown:
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    return _shown(
        folder, issued.private_key_and_cert_chain_pem.bytes(), ca.cert_pem.bytes().decode()
    )


def _old_tls(folder: Path) -> Shown:
    shown = _issued(folder, ["127.0.0.1"])
    _speak_old(shown.context)
    return shown


def _speak_old(context: ssl.SSLContext) -> None:
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1


def _another_ca(folder: Path) -> Shown:
    """The true CA is named, which is public; the certificate is of another."""
    return Shown(_issued(folder, ["127.0.0.1"]).context, Pair.make_authority(NOW).certificate_pem())


def _self_signed(folder: Path) -> Shown:
    ca = Pair.make_authority(NOW)
    return _shown(folder, Pair.make_authority(NOW).pem(), ca.certificate_pem())


IMPOSTORS: dict[str, Callable[[Path], Shown]] = {
    "another CA": _another_ca,
    "another name": lambda folder: _issued(folder, ["head.example"]),
    "another address": lambda folder: _issued(folder, ["127.0.0.2"]),
    "expired": lambda folder: _issued(folder, ["127.0.0.1"], NOW - 100 * DAY_S),
    "not yet valid": lambda folder: _issued(
        folder, ["127.0.0.1"], NOW + 10 * DAY_S, Pair.make_authority(NOW)
    ),
    "self-signed": _self_signed,
    "TLS 1.1": _old_tls,
}


class Worker(NamedTuple):
    """How a worker knows a head, and what it must not show to others."""

    token: Secret
    address: str

    async def looks(self, *, secure: bool = True) -> None:
        threads = Threads(2)
        store = open_trees(self.address, secure=secure, threads=threads, max_requests=2)
        try:
            await store.read_header("tree")
        finally:
            await store.aclose()
            threads.close()


def _join(address: str, fingerprint: str | None, monkeypatch: Patch) -> Worker:
    token = KeyRing((HeadKey.new(),)).mint(Claims.new("", now=NOW))
    line = Join(address=address, token=token, fingerprint=fingerprint).line()
    monkeypatch.setenv("ASYNCSYNC_JOIN", line.reveal())
    return Worker(token, address)


@asynccontextmanager
async def _impostor(shown: Shown | None) -> AsyncIterator[ScriptedHead]:
    """Says the CA to whoever asks, and is a head in all else."""

    def script(asked: Asked) -> bytes:
        authority = shown.authority.encode() if shown else b""
        return reply(asked, authority) if asked.method == "GET" else reply(asked, b"{}")

    async with ScriptedHead(script, tls=shown.context if shown else None) as head:
        yield head


@pytest.mark.parametrize("name", IMPOSTORS)
async def test_who_is_not_the_head_sees_no_token(
    name: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    shown = await to_thread.run_sync(IMPOSTORS[name], tmp_path)
    async with _impostor(shown) as head:
        worker = _join(head.address, fingerprint_of(shown.authority), monkeypatch)
        with pytest.raises(TransientError if name == "TLS 1.1" else ConfigError) as caught:
            await worker.looks()

    said = str(caught.value)
    assert head.address in said
    assert "\n" not in said
    assert worker.token.reveal() not in said
    assert [asked.path for asked in head.asked] in ([], [m.ROUTES["authority"].url()])
    assert not any("authorization" in asked.headers for asked in head.asked)


async def test_who_names_another_ca_than_the_one_that_was_joined_sees_no_token(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    shown = await to_thread.run_sync(lambda: _issued(tmp_path, ["127.0.0.1"]))
    async with _impostor(shown) as head:
        worker = _join(head.address, "0" * 64, monkeypatch)
        with pytest.raises(ConfigError, match="another CA"):
            await worker.looks()

    assert not any("authorization" in asked.headers for asked in head.asked)


@pytest.mark.parametrize("authority", ["", "no PEM", "x" * 100_000])
async def test_who_names_no_ca_sees_no_token(
    authority: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    shown = await to_thread.run_sync(lambda: _issued(tmp_path, ["127.0.0.1"]))
    async with _impostor(Shown(shown.context, authority)) as head:
        worker = _join(head.address, fingerprint_of(shown.authority), monkeypatch)
        with pytest.raises((ConfigError, PermanentError)):
            await worker.looks()

    assert not any("authorization" in asked.headers for asked in head.asked)


async def test_a_worker_that_joined_with_tls_speaks_to_no_head_without(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "root").mkdir()
    async with PeerServer(str(tmp_path / "root")) as head:
        worker = _join(head.address, "0" * 64, monkeypatch)
        with pytest.raises(ConfigError, match="does not speak TLS") as caught:
            await worker.looks()
        with pytest.raises(ConfigError, match="was joined with TLS"):
            await worker.looks(secure=False)

    assert head.address in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_worker_that_joined_without_tls_learns_nothing_from_a_head_with(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    shown = await to_thread.run_sync(lambda: _issued(tmp_path, ["127.0.0.1"]))
    async with _impostor(shown) as head:
        worker = _join(head.address, None, monkeypatch)
        with pytest.raises(TransientError, match="broke") as caught:
            await worker.looks(secure=False)
        with pytest.raises(ConfigError, match="was joined without TLS"):
            await worker.looks(secure=True)

    assert head.asked == []
    assert worker.token.reveal() not in str(caught.value)


async def test_a_head_that_was_set_up_anew_is_joined_again_without_a_restart(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    shown, another = await to_thread.run_sync(
        lambda: (_issued(tmp_path, ["127.0.0.1"]), Pair.make_authority(NOW))
    )
    authority = shown.authority

    def script(asked: Asked) -> bytes:
        body = authority.encode() if asked.method == "GET" else m.Seen(tag="", names=[])
        return reply(asked, body, Connection="close")

    threads = Threads(2)
    async with ScriptedHead(script, tls=shown.context) as head:
        _join(head.address, fingerprint_of(authority), monkeypatch)
        store = open_trees(head.address, secure=True, threads=threads, max_requests=2)
        await store.glance("tree")
        (tmp_path / "another.pem").write_bytes(another.issue(["127.0.0.1"], NOW).pem())
        shown.context.load_cert_chain(tmp_path / "another.pem")
        authority = another.certificate_pem()
        with pytest.raises(ConfigError, match=r"is not trusted .*take a new join string"):
            await store.glance("tree")
        worker = _join(head.address, fingerprint_of(authority), monkeypatch)
        await store.glance("tree")
        await store.aclose()
    threads.close()

    assert head.asked[-1].headers["authorization"] == f"Bearer {worker.token.reveal()}"


async def test_a_head_answers_nobody_who_speaks_tls_1_1(tmp_path: Path) -> None:
    shown = await to_thread.run_sync(lambda: _issued(tmp_path, ["127.0.0.1"]))
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    _speak_old(old)
    (tmp_path / "root").mkdir()

    def ask(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), 5) as line:
            old.wrap_socket(line).close()

    async with PeerServer(str(tmp_path / "root"), tls=shown.context) as head:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await to_thread.run_sync(ask, int(head.address.rpartition(":")[2]))


@pytest.mark.parametrize("make", [_of_trustme, lambda folder: _issued(folder, ["127.0.0.1"])])
async def test_a_tree_of_large_and_small_files_goes_over_tls_and_back(
    tmp_path: Path, monkeypatch: Patch, make: Callable[[Path], Shown]
) -> None:
    shown = await to_thread.run_sync(make, tmp_path)
    (tmp_path / "root").mkdir()
    files = {"big": secrets.token_bytes(CHUNK_BYTES + 2 * MIB), "small": b"x", "empty": b""}
    threads = Threads(4)
    root = str(tmp_path / "root")
    async with PeerServer(root, tls=shown.context, authority=shown.authority) as head:
        token = head.token(operations=frozenset(Operation))
        join = Join(address=head.address, token=token, fingerprint=fingerprint_of(shown.authority))
        monkeypatch.setenv("ASYNCSYNC_JOIN", join.line().reveal())
        store = open_trees(head.address, secure=True, threads=threads, max_requests=4)
        await save(store, "exp/tree", files)
        found = await load(store, "exp/tree")
        await store.aclose()
    threads.close()

    assert found == files


# -- faults below TLS


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: Patch) -> AsyncIterator[PeerPlace]:
    async with peer_place(tmp_path, monkeypatch, secure=True) as place:
        place.files["big"] = place.files["big"] * 4
        await place.make()
        yield place


@pytest.mark.parametrize("on", ["request", "response"])
@pytest.mark.parametrize("kind", [Flip, Reset, Finish])
@pytest.mark.parametrize("at", [0, 50, 400, 1500, 400_000, 1_500_000])
async def test_what_happens_to_bytes_of_tls_ends_the_connection_and_no_more(
    place: PeerPlace, at: int, kind: type[LineFault], on: Direction
) -> None:
    whole = await place.up("there")
    first = len(place.proxy.connections) + 1
    place.proxy.faults = [kind(on=on, at=at, connection=n) for n in (first, first + 1)]
    try:
        found = await (place.up() if on == "request" else place.down("there"))
    except ConfigError:  # a handshake in which a bit is wrong is no TLS
        place.proxy.faults = []
        found = await (place.up() if on == "request" else place.down("there"))

    assert found.identity == whole.identity
    assert place.proxy.acted
    assert await (place.held() if on == "request" else place.restored()) == place.files
    assert await place.left() == []
