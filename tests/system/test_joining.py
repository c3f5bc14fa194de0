"""A worker joins a head: what is checked first, what is kept, and how its token is renewed."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncsync.clock import SystemClock
from asyncsync.concurrency import Threads
from asyncsync.errors import AccessDeniedError, ConfigError, NoSpaceError, TransientError
from asyncsync.peer import PeerServer
from asyncsync.peer.certificates import Certificates, prepare_certificates, server_context
from asyncsync.secrets import Secret
from asyncsync.storage.peer import Joined, join_head, link, open_trees
from asyncsync.wire.claims import DEFAULT_LIFE_S, Operation
from asyncsync.wire.joining import Join
from asyncsync.wire.tokens import HeadKey, KeyRing, claims_of

pytestmark = pytest.mark.one_loop

WEEK = DEFAULT_LIFE_S
ALL = frozenset(Operation)


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.delenv("ASYNCSYNC_JOIN", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return {"XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "root").mkdir()
    return str(tmp_path / "root")


@pytest.fixture
def tls(tmp_path: Path) -> Certificates:
    return prepare_certificates(tmp_path / "tls", ["127.0.0.1"], now=now_of(str(tmp_path)))


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    threads = Threads(2)
    yield threads
    threads.close()


class Calendar(SystemClock):
    """A clock whose wall time the test moves, and nothing else."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def now(self) -> float:
        return self.time


def now_of(directory: str) -> float:
    """The time by the clock that OpenSSL looks at, too."""
    return os.stat(directory).st_mtime


def secure(root: str, made: Certificates) -> PeerServer:
    return PeerServer(root, tls=server_context(made.file), authority=made.authority)


def kept(head: PeerServer, environ: dict[str, str]) -> Path:
    return Path(environ["XDG_CONFIG_HOME"]) / "asyncsync" / "heads" / head.address


async def test_what_a_worker_was_told_is_kept_for_it_alone(
    root: str, environ: dict[str, str], threads: Threads
) -> None:
    async with PeerServer(root) as head:
        line = head.join_string("exp/trial_1", life_s=WEEK)

        joined = await join_head(line, threads, Calendar(), environ)

    path = kept(head, environ)
    assert joined == Joined(
        location=f"{head.location}/exp/trial_1",
        operations=("pull", "push"),
        expires_at=claims_of(Join.parse(line).token).expires_at,
        readonly=False,
        forwards=False,
        file=str(path),
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == line.reveal() + "\n"
    assert os.listdir(path.parent) == [head.address]


async def test_over_tls_the_ca_is_kept_as_well(
    root: str, tls: Certificates, environ: dict[str, str], threads: Threads
) -> None:
    async with secure(root, tls) as head:
        joined = await join_head(head.join_string(), threads, Calendar(), environ)

    assert joined.location == head.location
    assert joined.location.startswith("peers://127.0.0.1:")
    assert kept(head, environ).read_text().partition("\n")[2] == tls.authority


def broken(head: PeerServer, how: str) -> Secret:
    join = Join.parse(head.join_string())
    other = KeyRing((HeadKey.new(),)).mint(claims_of(join.token))
    if how == "of another head":
        return Join(address=join.address, token=other).line()
    return Join(address="127.0.0.1:9", token=join.token).line()


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("of another head", AccessDeniedError, "does not know this join string"),
        ("of a head that is gone", TransientError, r"127\.0\.0\.1:9"),
    ],
)
async def test_what_does_not_lead_to_its_head_is_not_kept(
    how: str,
    error: type[Exception],
    says: str,
    root: str,
    environ: dict[str, str],
    threads: Threads,
) -> None:
    async with PeerServer(root, clock=Calendar()) as head:
        line = head.join_string()
        await join_head(line, threads, Calendar(), environ)
        before = kept(head, environ).read_text()

        with pytest.raises(error, match=says) as info:
            await join_head(broken(head, how), threads, Calendar(), environ)

    assert kept(head, environ).read_text() == before
    assert "as1." not in str(info.value)
    assert len(list(kept(head, environ).parent.iterdir())) == 1


async def test_another_ca_is_noticed_before_the_token_is_shown(
    root: str, tls: Certificates, environ: dict[str, str], threads: Threads
) -> None:
    async with secure(root, tls) as head:
        join = Join.parse(head.join_string())
        forged = Join(address=join.address, fingerprint="ab" * 32, token=join.token)

        with pytest.raises(ConfigError, match="another CA than the one in the join string"):
            await join_head(forged.line(), threads, Calendar(), environ)

    assert not kept(head, environ).exists()


async def test_a_token_that_expired_says_so(
    root: str, environ: dict[str, str], threads: Threads
) -> None:
    clock = Calendar()
    async with PeerServer(root, clock=clock) as head:
        line = head.join_string(life_s=10)
        clock.time += 41  # a head forgives half a minute

        with pytest.raises(AccessDeniedError, match=r"has expired; take a new one from `asyncsync"):
            await join_head(line, threads, clock, environ)


# ---------------------------------------------------------------- renewal


def token_in(path: Path) -> Secret:
    return Join.parse(Secret(path.read_text().partition("\n")[0])).token


async def test_a_token_is_renewed_in_the_middle_of_its_life_and_the_file_with_it(
    root: str, environ: dict[str, str], threads: Threads
) -> None:
    clock = Calendar()
    async with PeerServer(root, clock=clock) as head:
        await join_head(head.join_string(operations=ALL), threads, clock, environ)
        first = token_in(kept(head, environ))
        store = open_trees(head.address, secure=False, threads=threads, max_requests=2, clock=clock)

        clock.time += WEEK / 2 - 1
        await store.glance("exp")
        unchanged = token_in(kept(head, environ))
        for _ in range(6):  # three weeks, with a look in each half
            clock.time += WEEK / 2 + 1
            await store.glance("exp")
        await store.aclose()

    renewed = token_in(kept(head, environ))
    assert unchanged == first
    assert claims_of(renewed).id == claims_of(first).id
    assert claims_of(renewed).expires_at > clock.now() + WEEK / 2


@pytest.mark.parametrize("where", ["the environment", "a file that cannot be written"])
async def test_a_token_is_renewed_again_and_again_where_it_cannot_be_kept(
    where: str,
    root: str,
    environ: dict[str, str],
    threads: Threads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise NoSpaceError("the disk is full")

    clock = Calendar()
    async with PeerServer(root, clock=clock) as head:
        line = head.join_string(operations=ALL)
        if where == "the environment":
            monkeypatch.setenv("ASYNCSYNC_JOIN", line.reveal())
        else:
            await join_head(line, threads, clock, environ)
            monkeypatch.setattr(link, "keep_access", full)
        store = open_trees(head.address, secure=False, threads=threads, max_requests=2, clock=clock)
        for _ in range(6):
            await store.glance("exp")
            clock.time += WEEK / 2 + 1
        await store.glance("exp")
        await store.aclose()


async def test_a_token_that_somebody_else_has_put_there_is_used_and_not_written_over(
    root: str, environ: dict[str, str], threads: Threads
) -> None:
    clock = Calendar()
    async with PeerServer(root, clock=clock) as head:
        await join_head(head.join_string(operations=ALL), threads, clock, environ)
        store = open_trees(head.address, secure=False, threads=threads, max_requests=2, clock=clock)
        await store.glance("exp")
        clock.time += WEEK / 2 + 1
        await join_head(head.join_string("other", operations=ALL), threads, clock, environ)
        other = token_in(kept(head, environ))

        with pytest.raises(AccessDeniedError):
            await store.glance("exp")
        await store.aclose()

    assert token_in(kept(head, environ)) == other


async def test_a_head_that_does_not_renew_is_asked_again_an_hour_later(
    root: str, environ: dict[str, str], threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked = Calendar(), list[float]()

    def refuse(self: KeyRing, token: Secret, now: float) -> Secret:
        asked.append(now)
        raise TransientError("the disk is full")

    monkeypatch.setattr(KeyRing, "renew", refuse)
    async with PeerServer(root, clock=clock) as head:
        await join_head(head.join_string(operations=ALL), threads, clock, environ)
        store = open_trees(head.address, secure=False, threads=threads, max_requests=2, clock=clock)
        clock.time += WEEK / 2
        for _ in range(3):
            await store.glance("exp")
            clock.time += 3599
        await store.aclose()

    assert asked == [clock.now() - 3 * 3599, clock.now() - 3599]
