"""A head that runs takes up new keys and certificates, and says what became of them."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.streams.tls import TLSAttribute

from asyncsync.clock import SystemClock
from asyncsync.concurrency import Threads
from asyncsync.errors import AccessDeniedError, ConfigError, StalledError
from asyncsync.head import (
    HeadEvent,
    Listening,
    Renewed,
    Service,
    Settings,
    State,
    join_string,
    serve,
    split_address,
)
from asyncsync.storage.peer import join_head
from asyncsync.wire.claims import WORKER
from asyncsync.wire.joining import Join
from asyncsync.wire.tokens import KeyRing

pytestmark = pytest.mark.one_loop

DAY_S = 24 * 3600.0


class Ticking(SystemClock):
    """A clock whose wall time and whose seconds the test moves."""

    def __init__(self, start: float) -> None:
        self.time, self.passed_s = start, 0.0
        self._second, self._asleep = anyio.Event(), anyio.Event()

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.passed_s

    def go_on(self, seconds: float) -> None:
        """So much passes on both clocks, and nobody wakes."""
        self.time += seconds
        self.passed_s += seconds

    async def sleep(self, seconds: float) -> None:
        if seconds != 1.0:
            await anyio.sleep_forever()
        self._asleep.set()
        await self._second.wait()

    async def tick(self) -> None:
        """A second passes."""
        await self._asleep.wait()
        second, self._second, self._asleep = self._second, anyio.Event(), anyio.Event()
        second.set()


class Heard(list[HeadEvent]):
    def __init__(self) -> None:
        super().__init__()
        self._more = anyio.Event()

    def __call__(self, event: HeadEvent) -> None:
        self.append(event)
        self._more.set()

    async def until(self, number: int) -> HeadEvent:
        while len(self) < number:
            self._more = anyio.Event()
            await self._more.wait()
        return self[number - 1]


class Running:
    """A head, its clock and what it says."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        (folder / "root").mkdir()
        self.folder, self.names = folder, names
        self.clock = Ticking(os.stat(folder).st_mtime)
        self.heard, self.state = Heard(), State(folder / "state")
        self.state.make(str(folder / "root"))
        self.state.keys(make=True)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Settings]:
        service = Service(
            root=str(self.folder / "root"), listen="127.0.0.1:0", names=tuple(self.names)
        )
        async with serve(service, self.state, clock=self.clock, listen=self.heard) as settings:
            yield settings

    async def joins(self, settings: Settings) -> None:
        threads = Threads(2)
        environ = {"XDG_CONFIG_HOME": str(self.folder / "config")}

        def make() -> Join:
            line = join_string(
                self.state,
                settings,
                now=self.clock.now(),
                scope="",
                operations=WORKER,
                life_s=DAY_S,
            )
            return Join.parse(line)

        try:
            join = await threads.run(make)
            await join_head(join.line(), threads, self.clock, environ)
        finally:
            threads.close()


@pytest.fixture
def plain(tmp_path: Path) -> Running:
    return Running(tmp_path, [])


@pytest.fixture
def secure(tmp_path: Path) -> Running:
    return Running(tmp_path, ["127.0.0.1"])


async def in_thread(function: object) -> None:
    await anyio.to_thread.run_sync(function)  # type: ignore[arg-type]


async def test_a_new_key_is_taken_within_a_second(plain: Running) -> None:
    async with plain.serving() as settings:
        await plain.joins(settings)
        now = plain.clock.now()
        await in_thread(lambda: plain.state.rotate(now=now, overlap_s=DAY_S))
        with pytest.raises(AccessDeniedError):
            await plain.joins(settings)
        await plain.clock.tick()
        event = await plain.heard.until(2)
        await plain.joins(settings)

    assert event == Renewed(reason="its keys, and what is revoked, were read again")


async def test_a_damaged_key_is_told_and_the_one_before_stays_in_use(plain: Running) -> None:
    async with plain.serving() as settings:
        kept = plain.state.key_file.read_bytes()
        plain.state.key_file.write_bytes(b"{")
        await plain.clock.tick()
        event = await plain.heard.until(2)
        plain.state.key_file.write_bytes(kept)
        await plain.joins(settings)

    assert isinstance(event, Renewed)
    assert event.reason.startswith("still with the keys it had: key file ")


@pytest.mark.parametrize("error", [ConfigError("no descriptor is left"), StalledError("no answer")])
async def test_what_is_revoked_is_taken_up_as_soon_as_the_file_can_be_read(
    plain: Running, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    read, failures = State.keys, [error, error]

    def keys(state: State) -> KeyRing:
        if failures:
            raise failures.pop()
        return read(state)

    async with plain.serving() as settings:
        await in_thread(lambda: plain.state.rotate(now=plain.clock.now(), overlap_s=0))
        monkeypatch.setattr(State, "keys", keys)
        for _ in range(3):
            await plain.clock.tick()
        await plain.heard.until(3)
        await plain.joins(settings)

    reasons = [event.reason for event in plain.heard if isinstance(event, Renewed)]
    assert reasons == [
        f"still with the keys it had: {error}",
        "its keys, and what is revoked, were read again",
    ]


async def test_a_certificate_is_renewed_a_month_before_it_ends(secure: Running) -> None:
    async with secure.serving() as settings:
        first = await shown_by(settings)
        await secure.clock.tick()
        secure.clock.go_on(61 * DAY_S)
        await secure.clock.tick()
        event = await secure.heard.until(2)
        second = await shown_by(settings)
        listening = secure.heard[0]

    assert event == Renewed(reason="another certificate is in use")
    assert first != second
    assert isinstance(listening, Listening)
    assert listening.expires_at is not None


async def shown_by(settings: Settings) -> bytes:
    """The certificate that whoever connects is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = split_address(settings.address)
    async with await anyio.connect_tcp(host, port, ssl_context=context) as stream:
        shown = stream.extra(TLSAttribute.peer_certificate_binary)
    assert shown is not None
    return shown


async def test_the_end_of_the_authority_is_told_to_whoever_runs_the_head(secure: Running) -> None:
    secure.clock.time -= 340 * DAY_S
    async with secure.serving() as settings:
        await secure.clock.tick()
        secure.clock.go_on(340 * DAY_S)
        await secure.clock.tick()
        event = await secure.heard.until(2)
        await secure.joins(settings)

    assert isinstance(event, Renewed)
    assert event.reason.endswith("of another CA: every worker has to join again")


async def test_a_wall_clock_that_was_wrong_for_a_while_leaves_no_wrong_certificate(
    secure: Running,
) -> None:
    async with secure.serving() as settings:
        await secure.clock.tick()
        secure.clock.time += 100 * DAY_S
        secure.clock.passed_s += 3600
        await secure.clock.tick()
        await secure.heard.until(2)
        with pytest.raises(ConfigError, match="not yet valid"):
            await secure.joins(settings)
        secure.clock.time -= 100 * DAY_S
        secure.clock.passed_s += 3600
        await secure.clock.tick()
        await secure.heard.until(3)
        await secure.joins(settings)


async def test_how_it_is_reached_is_remembered(secure: Running) -> None:
    async with secure.serving() as settings:
        pass

    assert await anyio.to_thread.run_sync(secure.state.settings) == settings
    assert settings.address.startswith("127.0.0.1:")
    assert settings.listen == "127.0.0.1:0"
    assert settings.names == ["127.0.0.1"]


async def test_a_start_that_fails_lets_go_of_the_state(plain: Running) -> None:
    (plain.folder / "root").rmdir()
    with pytest.raises(ConfigError, match="is no directory"):
        async with plain.serving():
            pass
    (plain.folder / "root").mkdir()

    async with plain.serving() as settings:
        await plain.joins(settings)


async def test_a_state_that_cannot_be_locked_is_an_error_that_says_why(plain: Running) -> None:
    (plain.folder / "state" / "lock").mkdir()

    with pytest.raises(ConfigError, match=r"cannot lock the state .*: Is a directory"):
        async with plain.serving():
            pass


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("127.0.0.1:7420", ("127.0.0.1", 7420)),
        ("[::1]:0", ("::1", 0)),
        ("head1.example:1", ("head1.example", 1)),
    ],
)
def test_an_address_is_host_and_port(text: str, pair: tuple[str, int]) -> None:
    assert split_address(text) == pair
