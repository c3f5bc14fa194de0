"""Keys, tokens and session addresses are seen by the server they are for, and by nobody else."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import os
import random
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, quote_plus

import anyio
import pytest
from _pytest.mark import ParameterSet
from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from asyncsync.errors import AsyncSyncError, TransferError
from asyncsync.events import Event
from asyncsync.storage.gcs import connection
from asyncsync.syncing import StorageSyncer
from asyncsync.units import MIB

from ..fakes import gcs as fake_gcs
from ..fakes import s3_faults, s3_uploads
from ..fakes.gcs import FakeGcs, Fault
from ..fakes.s3 import Credentials, FakeS3
from ..fakes.s3_faults import access_denied, answer, expired_token, internal_error, reset
from . import gcs_place, s3_place
from .s3_place import Hurry
from .trees import make

pytestmark = pytest.mark.one_loop

ACCESS_KEY = "ASIACANARY0000000001"
SECRET_KEY = "cAnArY/secret+access%key=of/S3"
SESSION_TOKEN = "cAnArY//session+token==of%S3&x"
UPLOAD_ID = "cAnArY-upload_id.of~S3"
SESSION_ID = "cAnArY-session_uri.of~GCS"
GCS_TOKEN = "fake-token-"
REFRESH_TOKEN = "fake-refresh-token"
CLIENT_SECRET = "fake-client-secret"

S3_SECRETS = (SECRET_KEY, SESSION_TOKEN, UPLOAD_ID)
GCS_SECRETS = (GCS_TOKEN, REFRESH_TOKEN, CLIENT_SECRET, SESSION_ID)

ROOT = Path(__file__).parents[2]


def disguises(secret: str) -> set[bytes]:
    """A text as it may turn up: as it is, escaped for an address, in Base64 or in hex."""
    raw = secret.encode()
    found = {raw, raw.hex().encode(), quote(secret, safe="").encode(), quote_plus(secret).encode()}
    found.add(repr(secret)[1:-1].encode())
    for shift in range(3):  # where in a longer text it begins
        packed = base64.b64encode(b"\0" * shift + raw)
        found.add(packed[(shift and shift + 1) : -4])
    return found


class Seen:
    """Everything that somebody could see, each with where it was seen."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._wanted = {form: secret for secret in secrets for form in disguises(secret)}
        self.leaks: set[tuple[str, str]] = set()
        self.looks = 0

    def look(self, where: str, what: object) -> None:
        data = what if isinstance(what, bytes) else str(what).encode(errors="replace")
        self.looks += 1
        for form, secret in self._wanted.items():
            if form in data:
                self.leaks.add((where, secret))

    def event(self, event: Event) -> None:
        self.look(f"event {type(event).__name__}", repr(event))

    def error(self, exc: BaseException) -> None:
        """As a traceback shows it; and those that it hides, for who looks closely."""
        self.look(f"traceback of {type(exc).__name__}", "".join(traceback.format_exception(exc)))
        for one in chain(exc):
            where = f"{type(one).__name__} in {type(exc).__name__}"
            self.look(where, f"{one} {one!r} {one.args!r} {vars(one)!r}")

    def objects(self) -> None:
        """What prints of every object that the package has made."""
        for found in gc.get_objects():
            kind = type(found)
            if str(kind.__module__).startswith("asyncsync."):
                self.look(f"repr of {kind.__module__}.{kind.__name__}", f"{found!r} {found}")

    def files(self, directory: Path) -> None:
        for above, _, names in os.walk(directory):
            for name in names:
                path = Path(above, name)
                self.look(f"name {name}", name)
                self.look(f"file {name}", path.read_bytes())


def chain(exc: BaseException) -> Iterator[BaseException]:
    """An error and all behind it, whether they are shown or not."""
    yield exc
    inner = exc.failures if isinstance(exc, TransferError) else ()
    for behind in (exc.__cause__, exc.__context__, *inner):
        if behind is not None:
            yield from chain(behind)


class _Log(logging.Handler):
    def __init__(self, seen: Seen) -> None:
        super().__init__(logging.DEBUG)
        self._seen = seen
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        # What the servers of the test say of themselves is their affair.
        if not record.name.startswith(("aiohttp.access", "aiohttp.server", "aiohttp.web")):
            self._seen.look(f"log of {record.name}", self.format(record))
            self._seen.look(f"log record of {record.name}", repr(record.__dict__))


@contextmanager
def logged(seen: Seen, *, also_loop: bool) -> Iterator[None]:
    """Every logger tells everything; the event loop, too, which makes it slow."""
    root, handler = logging.getLogger(), _Log(seen)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    loop = asyncio.get_running_loop()
    loop.set_debug(also_loop)
    try:
        yield
    finally:
        loop.set_debug(False)
        root.removeHandler(handler)
        root.setLevel(level)


async def use(syncer: StorageSyncer, location: str, directory: Path, seen: Seen) -> int:
    """Every operation once, whatever comes of it; how many failed."""

    async def follow() -> None:
        with anyio.move_on_after(0.3):
            async with aclosing(syncer.follow(location)) as commits:
                async for commit in commits:
                    seen.look("commit", repr(commit))
                    return

    up = lambda: syncer.sync_up(directory / "source", location, replace=True)  # noqa: E731
    operations: list[Callable[[], Awaitable[object]]] = [
        up,
        lambda: syncer.verify(location),
        lambda: syncer.sync_down(location, directory / "restored"),
        lambda: syncer.latest(location),
        follow,
        lambda: syncer.delete(location),
    ]
    failed = 0
    for operation in operations:
        try:
            seen.look("result", repr(await operation()))
        except AsyncSyncError as exc:
            seen.error(exc)
            failed += 1
    seen.objects()
    return failed


async def tree(directory: Path, big_bytes: int) -> None:
    files = {"a": b"one", "big": random.Random(7).randbytes(big_bytes)}
    await to_thread.run_sync(make, directory / "source", files)


def everything_local(seen: Seen, directory: Path) -> None:
    seen.files(Path(os.environ["ASYNCSYNC_CACHE_DIR"]))
    seen.files(directory / "source")
    seen.files(directory / "restored")


# -- S3


S3_TROUBLE = {
    "none": None,
    "access denied": access_denied(),
    "an expired token": expired_token(),
    "an error of the server": internal_error(),
    "no connection": reset("before"),
    "a lost connection": reset("body"),
    "a captive page": answer(200, headers={"Content-Type": "text/html"}, body=b"<html>"),
    "a redirect": answer(301, headers={"Location": "http://127.0.0.1:9/x"}, body=b""),
    "an upload that is gone": answer(404, "NoSuchUpload"),
}


@asynccontextmanager
async def s3(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeS3]:
    numbers = iter(range(10_000))
    ids = SimpleNamespace(token_hex=lambda _: f"{UPLOAD_ID}{next(numbers)}")
    monkeypatch.setattr(s3_uploads, "secrets", ids)
    async with FakeS3() as fake:
        fake.credentials = {ACCESS_KEY: Credentials(secret=SECRET_KEY, token=SESSION_TOKEN)}
        for name, value in s3_environ(fake).items():
            monkeypatch.setenv(name, value)
        yield fake


def s3_environ(fake: FakeS3) -> dict[str, str]:
    secrets = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": SESSION_TOKEN,
    }
    return fake.environ | secrets


def in_a_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same credentials, from where most people have them."""
    file = directory / "credentials"
    file.write_text(
        f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
        f"aws_session_token={SESSION_TOKEN}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)


def s3_held(fake: FakeS3, seen: Seen) -> None:
    for key, stored in fake.objects["bucket"].items():
        seen.look(f"object {key}", key.encode() + stored.data)


def cases(troubles: Iterable[str]) -> list[ParameterSet]:
    """To look at everything takes seconds."""
    return [
        pytest.param(trouble, marks=() if trouble == "none" else pytest.mark.slow)
        for trouble in troubles
    ]


@pytest.mark.parametrize("trouble", cases(S3_TROUBLE))
async def test_nobody_sees_the_secrets_of_s3(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_place.use_small_chunks(monkeypatch)
    await tree(tmp_path, 5 * s3_place.CHUNK)
    seen, effect = Seen(S3_SECRETS), S3_TROUBLE[trouble]
    async with s3(monkeypatch) as fake:
        if trouble == "none":
            in_a_file(tmp_path, monkeypatch)

        def meanwhile(request: object) -> None:
            seen.objects()
            s3_held(fake, seen)

        fake.on("UploadPart", s3_faults.call(meanwhile, "before"))
        with logged(seen, also_loop=effect is None):
            async with StorageSyncer(isolation="loop", clock=Hurry(), observe=seen.event) as syncer:
                if effect is None:
                    assert not await use(syncer, "s3://bucket/run/fine", tmp_path, seen)
                else:
                    fake.on("UploadPart", effect)
                    fake.on("CompleteMultipartUpload", effect)
                    await use(syncer, "s3://bucket/run/once", tmp_path, seen)
                    fake.on(None, effect, times=None)
                    failed = await use(syncer, "s3://bucket/run/ever", tmp_path, seen)
                    assert failed >= 4
        s3_held(fake, seen)
    await to_thread.run_sync(everything_local, seen, tmp_path)

    assert seen.looks > 100
    assert seen.leaks == set()


# -- Google Cloud Storage


GCS_TROUBLE: dict[str, dict[str, Any]] = {
    "none": {},
    "access denied": {"status": 403},
    "an expired token": {"status": 401},
    "an error of the server": {"status": 500},
    "no connection": {"drop": True},
    "a lost connection": {"lost": True},
    "a captive page": {"status": 200, "body": "<html>"},
    "a redirect": {"status": 307, "headers": {"Location": "http://127.0.0.1:9/x"}},
    "a session that is over": {"expire": 410},
}


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def key_lines(private_key: str) -> list[str]:
    """What gives a private key away; and what stands before that which is signed with it."""
    return [*private_key.splitlines()[1:-1], "assertion="]


@asynccontextmanager
async def gcs(
    directory: Path, monkeypatch: pytest.MonkeyPatch, private_key: str | None
) -> AsyncIterator[FakeGcs]:
    """A server that wants tokens, and credentials for it: of a person, or of a service."""
    numbers = iter(range(10_000))
    ids = SimpleNamespace(token_urlsafe=lambda _: f"{SESSION_ID}{next(numbers)}")
    monkeypatch.setattr(fake_gcs, "secrets", ids)
    async with FakeGcs() as fake:
        fake.tokens = set()
        credentials = fake.credentials()
        if private_key is not None:
            credentials |= {
                "type": "service_account",
                "client_email": "trainer@example.com",
                "private_key": private_key,
                "private_key_id": "1",
            }
        file = directory / "credentials.json"
        file.write_text(json.dumps(credentials))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        # A location cannot name another server than Google's that wants credentials.
        monkeypatch.setattr(connection, "_ROOT", fake.url)
        yield fake


@pytest.mark.parametrize("trouble", cases(GCS_TROUBLE))
async def test_nobody_sees_the_secrets_of_google(
    trouble: str,
    private_key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gcs_place.use_small_chunks(monkeypatch)
    await tree(tmp_path, gcs_place.CHUNK + 1000)
    seen, effect = Seen((*GCS_SECRETS, *key_lines(private_key))), GCS_TROUBLE[trouble]
    async with gcs(tmp_path, monkeypatch, None if effect else private_key) as fake:
        fake.faults.append(Fault("chunk", before=lambda _: seen.objects()))
        with logged(seen, also_loop=not effect):
            async with StorageSyncer(isolation="loop", clock=Hurry(), observe=seen.event) as syncer:
                if not effect:
                    assert not await use(syncer, "gs://bucket/run/fine", tmp_path, seen)
                else:
                    fake.faults.append(Fault("chunk", **effect))
                    fake.faults.append(Fault("compose", **effect))
                    await use(syncer, "gs://bucket/run/once", tmp_path, seen)
                    fake.faults.append(Fault(times=None, **effect))
                    await use(syncer, "gs://bucket/run/ever", tmp_path, seen)
        for name, stored in fake.objects.items():
            seen.look(f"object {name}", name.encode() + stored.data)
    await to_thread.run_sync(everything_local, seen, tmp_path)

    assert seen.looks > 100
    assert seen.leaks == set()


@pytest.mark.slow
@pytest.mark.parametrize("effect", [{"status": 400}, {"status": 503}, {"drop": True}], ids=str)
@pytest.mark.parametrize("kind", ["person", "service"])
async def test_nobody_sees_the_secrets_that_a_token_costs(
    kind: str,
    effect: dict[str, Any],
    private_key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await tree(tmp_path, 10)
    seen = Seen((*GCS_SECRETS, *key_lines(private_key)))
    key = private_key if kind == "service" else None
    async with gcs(tmp_path, monkeypatch, key) as fake:
        fake.faults.append(Fault("token", times=None, **effect))
        with logged(seen, also_loop=False):
            async with StorageSyncer(isolation="loop", clock=Hurry(), observe=seen.event) as syncer:
                failed = await use(syncer, "gs://bucket/run", tmp_path, seen)

    assert failed >= 4
    assert seen.leaks == set()


# -- the command line


@pytest.mark.slow
async def test_the_command_line_shows_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tree(tmp_path, 17 * MIB)
    seen = Seen(S3_SECRETS)
    async with s3(monkeypatch) as fake:

        async def run(*argv: str) -> CompletedProcess[bytes]:
            ran = await command(tmp_path, s3_environ(fake), *argv)
            seen.look(f"output of {argv}", ran.stdout + ran.stderr)
            return ran

        fake.on("UploadPart", internal_error())
        well = await run("up", "source", "s3://bucket/run", "--verbose")
        fake.on("UploadPart", expired_token(), times=None)
        for form in ("--verbose", "--json"):
            failed = await run("up", "source", "s3://bucket/other", form)
            assert b"ExpiredToken" in failed.stdout + failed.stderr

    assert well.returncode == 0, well.stderr
    assert fake.operations.count("UploadPart") >= 4
    assert seen.leaks == set()


async def command(
    directory: Path, environ: Mapping[str, str], *argv: str
) -> CompletedProcess[bytes]:
    """Run the program as people do, with its warnings and those of the event loop on."""
    env = {**os.environ, **environ, "PYTHONASYNCIODEBUG": "1", "PYTHONPATH": str(ROOT)}
    return await anyio.run_process(
        [sys.executable, "-W", "default", "-m", "asyncsync", *argv],
        cwd=directory,
        env=env,
        check=False,
    )


# -- the test itself


@pytest.mark.parametrize("shift", range(3))
def test_a_secret_is_recognised_in_every_disguise(shift: int) -> None:
    seen = Seen([SECRET_KEY])
    longer = "x" * shift + SECRET_KEY + "yz"
    shapes = (longer, quote(longer, safe=""), base64.b64encode(longer.encode()).decode(), longer)

    for number, shape in enumerate(shapes):
        seen.look(str(number), shape)

    assert {where for where, _ in seen.leaks} == {"0", "1", "2", "3"}
