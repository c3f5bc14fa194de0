"""What goes over the network, and what a head leaves behind: no token, and over TLS no content."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from asyncsync.concurrency import Threads
from asyncsync.peer import PeerServer, prepare_certificates, server_context
from asyncsync.secrets import Secret
from asyncsync.storage.local import store as local_store
from asyncsync.storage.peer import open_trees
from asyncsync.testing.values import load, save
from asyncsync.wire import messages as m
from asyncsync.wire.joining import Join

from .raw_head import raw_head, request

CANARY = "a-name-and-its-content-that-nobody-else-may-see"


class Wire:
    """All that passes between a worker and a head."""

    def __init__(self, target: str) -> None:
        self.host, _, port = target.rpartition(":")
        self.port, self.heard = int(port), b""
        self.address = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Wire]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        self.address = f"127.0.0.1:{port}"
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, self._serve)
            yield self
            group.cancel_scope.cancel()

    async def _serve(self, near: SocketStream) -> None:
        async with near, await anyio.connect_tcp(self.host, self.port) as far:
            async with anyio.create_task_group() as group:
                group.start_soon(self._carry, near, far)
                group.start_soon(self._carry, far, near)

    async def _carry(self, source: SocketStream, target: SocketStream) -> None:
        try:
            async for data in source:
                self.heard += data
                await target.send(data)
            await target.send_eof()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            return


@pytest.mark.one_loop
@pytest.mark.parametrize("secure", [True, False], ids=["TLS", "plain"])
async def test_over_tls_nobody_on_the_way_reads_a_token_a_name_or_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    (tmp_path / "root").mkdir()
    made = await anyio.to_thread.run_sync(
        lambda: prepare_certificates(tmp_path / "tls", ["127.0.0.1"], now=time.time())
    )
    tls = await anyio.to_thread.run_sync(server_context, made.file)
    settings = {"tls": tls, "authority": made.authority} if secure else {}
    threads = Threads(2)
    async with PeerServer(str(tmp_path / "root"), **settings) as head:  # type: ignore[arg-type]
        async with Wire(head.address).open() as wire:
            token = head.token()
            fingerprint = made.fingerprint if secure else None
            join = Join(address=wire.address, token=token, fingerprint=fingerprint)
            monkeypatch.setenv("ASYNCSYNC_JOIN", join.line().reveal())
            store = open_trees(wire.address, secure=secure, threads=threads, max_requests=2)
            await save(store, f"exp/{CANARY}", {CANARY: CANARY.encode()})
            assert await load(store, f"exp/{CANARY}") == {CANARY: CANARY.encode()}
            await store.aclose()
    threads.close()

    found = [text for text in (token.reveal(), CANARY) if text.encode() in wire.heard]
    assert len(wire.heard) > 1000
    assert found == ([] if secure else [token.reveal(), CANARY]), (
        "the plain way shows that it looks"
    )


@pytest.mark.one_loop
async def test_no_log_has_a_token_whatever_was_sent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    async with raw_head(tmp_path, monkeypatch) as place:
        secrets = [place.token.reveal(), "as1.00000000.secret.secret"]
        for token in map(Secret, secrets):
            good = request("GET", m.ROUTES["hello"].url(), token=token)
            for sent in (
                good,
                good.replace(b"Host: head", b"Host: head\r\nHost: head"),
                good.replace(b"Authorization:", b"Authorization :"),
                good.replace(b"Authorization: ", b"Authorization: \0"),
                good.replace(b"Authorization: Bearer", b"Authorization: \r\n folded"),
                good.replace(b"GET", f"GET {token.reveal()}".encode()),
                good.replace(b"\r\n\r\n", b"\r\nContent-Length: x\r\n\r\n"),
                token.reveal().encode() + b"\r\n\r\n",
                request("GET", f"/{token.reveal()}", token=token),
                request("POST", m.ROUTES["header"].url(), token.reveal().encode(), token=token),
            ):
                await place.ask(sent)
        await place.good_push()

    said = "".join([caplog.text, *capfd.readouterr(), repr(told)])
    assert [text for text in secrets if text in said] == []
    assert told == [], "and nothing of it was a failure of the head"


async def test_a_failure_of_the_head_says_nothing_to_who_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with raw_head(tmp_path, monkeypatch) as place:
        with monkeypatch.context() as patch:
            patch.setattr(local_store, "_glance", _fail)
            place.check(await place.told("glance", {"tree": ""}), 503)
        await place.good_push()

    assert [str(context["exception"]) for context in told] == ["a bug at /srv/secret"]


def _fail(_: object) -> None:
    raise RuntimeError("a bug at /srv/secret")
