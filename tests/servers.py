"""Real storage servers, each in a process group of its own, as session fixtures.

A server starts when the first test asks for it and ends with the session; on Linux also when the
session is killed. What it says goes to a file in its directory. `tests/conftest.py` takes the
fixtures in, so everything heavy is imported only where it is needed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

__all__ = [
    "Server",
    "gcs_emulator",
    "moto",
    "moto_tls",
    "rados",
    "radosgw",
    "radosgw_tls",
    "rclone",
    "tls_files",
]

ACCESS_KEY = "AKIATESTTESTTESTTEST"
SECRET_KEY = "secret-key-for-tests-only"
START_S = 60.0

# Runs a program that dies with whoever has started it (prctl 1 is PR_SET_PDEATHSIG).
_MORTAL = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent has gone already")
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that runs.

    Attributes:
        url: its endpoint, without a slash at the end.
        ca_file: the authority that has signed its certificate; None: plain HTTP.
        environ: what a program needs in its environment to use it.
        files: the directory where the objects lie as files, if they do.
    """

    url: str
    environ: Mapping[str, str] = field(repr=False)
    access_key: str = ACCESS_KEY
    secret_key: str = field(default=SECRET_KEY, repr=False)
    ca_file: str | None = None
    files: Path | None = None
    _create: Callable[[Server, str], None] = field(repr=False)

    def bucket(self) -> str:
        """Make a bucket of its own for a test; returns its name."""
        name = f"test-{secrets.token_hex(8)}"
        self._create(self, name)
        return name

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


class TlsFiles(NamedTuple):
    """A certificate for 127.0.0.1 and localhost, its key, and the authority to trust."""

    certificate: str
    key: str
    ca: str


def s3_server(url: str, *, ca_file: str | None = None, files: Path | None = None) -> Server:
    environ = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    if ca_file is not None:
        environ["AWS_CA_BUNDLE"] = ca_file
    return Server(url=url, environ=environ, ca_file=ca_file, files=files, _create=_create_on_s3)


def _create_on_s3(server: Server, name: str) -> None:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest("PUT", f"{server.url}/{name}")
    who = Credentials(server.access_key, server.secret_key)
    S3SigV4Auth(who, "s3", "us-east-1").add_auth(request)
    trusted = ssl.create_default_context(cafile=server.ca_file) if server.ca_file else None
    sent = Request(request.url, method="PUT", headers=dict(request.headers))
    urlopen(sent, timeout=START_S, context=trusted).close()


def _create_on_gcs(server: Server, name: str) -> None:
    body = json.dumps({"name": name}).encode()
    headers = {"Content-Type": "application/json"}
    url = f"{server.url}/storage/v1/b?project=test"
    urlopen(Request(url, body, headers), timeout=START_S).close()


# -- processes


def program(name: str) -> str:
    """The path of a program, first of all beside the interpreter; RuntimeError if there is none."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=beside) or shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed; .ci/run and the group `tests` name what is")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], folder: Path, *, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a process group of its own, ended on leaving. Its words go to a file."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "GOOGLE_"))}
    mortal = [sys.executable, "-I", "-c", _MORTAL, str(os.getpid()), *command]
    with (folder / f"{Path(command[0]).name}.log").open("ab") as log:
        process = subprocess.Popen(
            mortal,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**clean, "HOME": str(folder), **(environ or {})},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(START_S)


def wait_for(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Return when something listens on the port; RuntimeError with its log if nothing ever does."""
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    said = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))
    raise RuntimeError(f"no server came up on port {port}:\n{said}")


@contextmanager
def serving(
    command: Sequence[str], port: int, folder: Path, *, environ: Mapping[str, str] | None = None
) -> Iterator[None]:
    with running(command, folder, environ=environ) as process:
        wait_for(port, process, folder)
        yield


# -- fixtures


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    import trustme

    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost", "*.localhost")
    files = TlsFiles(*(str(folder / name) for name in ("server.pem", "server.key", "ca.pem")))
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(files.certificate, append=number > 0)
    issued.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(files.ca)
    return files


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """S3 with conditions; looks neither at signatures nor at checksums."""
    folder, port = tmp_path_factory.mktemp("moto"), free_port()
    command = [program("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, port, folder):
        yield s3_server(f"http://127.0.0.1:{port}")


@pytest.fixture(scope="session")
def moto_tls(tmp_path_factory: pytest.TempPathFactory, tls_files: TlsFiles) -> Iterator[Server]:
    """The same over TLS, with a certificate that only `ca_file` vouches for."""
    folder, port = tmp_path_factory.mktemp("moto-tls"), free_port()
    command = [program("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    command += ["-c", tls_files.certificate, "-k", tls_files.key]
    with serving(command, port, folder):
        yield s3_server(f"https://127.0.0.1:{port}", ca_file=tls_files.ca)


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """S3 that verifies signatures and ignores conditions. The objects are files."""
    folder, port = tmp_path_factory.mktemp("rclone"), free_port()
    files = folder / "objects"
    files.mkdir()
    command = [program("rclone"), "serve", "s3", str(files), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", str(folder / "none.conf")]
    with serving(command, port, folder):
        yield s3_server(f"http://127.0.0.1:{port}", files=files)


@pytest.fixture(scope="session")
def gcs_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """GCS without preconditions and without compose, in memory."""
    folder, port = tmp_path_factory.mktemp("gcs"), free_port()
    command = [program("gcp-storage-emulator"), "start", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--in-memory", "--quiet"]
    url = f"http://127.0.0.1:{port}"
    with serving(command, port, folder):
        environ = {"STORAGE_EMULATOR_HOST": url, "GOOGLE_CLOUD_PROJECT": "test"}
        yield Server(url=url, environ=environ, access_key="", secret_key="", _create=_create_on_gcs)


@pytest.fixture(scope="session")
def radosgw(rados: tuple[Server, Server]) -> Server:
    """Ceph's S3: heeds If-None-Match of a plain put, and no other condition. Slow to start."""
    return rados[0]


@pytest.fixture(scope="session")
def radosgw_tls(rados: tuple[Server, Server]) -> Server:
    """The same server over TLS; it does not know bodies with a checksum at their end."""
    return rados[1]


@pytest.fixture(scope="session")
def rados(
    tmp_path_factory: pytest.TempPathFactory, tls_files: TlsFiles
) -> Iterator[tuple[Server, Server]]:
    """A Ceph cluster of one monitor and one store in memory, and its gateway for S3."""
    if sys.platform != "linux":
        pytest.skip("Ceph's servers exist for Linux only")
    folder = tmp_path_factory.mktemp("ceph")
    plain, tls, monitor = free_port(), free_port(), free_port()
    config = folder / "ceph.conf"
    config.write_text(_ceph_config(folder, plain, tls, tls_files))
    with ExitStack() as stack:
        _start_cluster(stack, folder, monitor)
        gateway = [program("radosgw"), "-f", "-n", "client.rgw.test", "-c", str(config)]
        process = stack.enter_context(running(gateway, folder))
        wait_for(tls, process, folder)
        user = ["user", "create", "--uid", "test", "--display-name", "test"]
        keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]
        _ceph(folder, "radosgw-admin", "-n", "client.rgw.test", *user, *keys)
        yield (
            s3_server(f"http://127.0.0.1:{plain}"),
            s3_server(f"https://127.0.0.1:{tls}", ca_file=tls_files.ca),
        )


def _start_cluster(stack: ExitStack, folder: Path, monitor: int) -> None:
    """Start a monitor and a store. No authentication: it listens on the loopback only."""
    config, keyring, cluster = str(folder / "ceph.conf"), str(folder / "keyring"), _CLUSTER_ID
    for name in ("mon", "osd", "run"):
        (folder / name).mkdir()
    for name in ("mon.", "client.admin", "client.rgw.test"):
        create = [] if Path(keyring).exists() else ["--create-keyring"]
        caps = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        _tool(folder, "ceph-authtool", keyring, *create, "--gen-key", "-n", name, *caps)
    address = f"[v2:127.0.0.1:{monitor}]"
    made = str(folder / "monmap")
    _tool(folder, "monmaptool", "--create", "--fsid", cluster, "--addv", "a", address, made)
    mon = [program("ceph-mon"), "-i", "a", "-c", config, "--mon-data", str(folder / "mon")]
    _tool(folder, *mon, "--mkfs", "--monmap", made, "--keyring", keyring)
    with (folder / "ceph.conf").open("a") as more:
        more.write(f"[global]\nmon_host = {address}\n")
    wait_for(monitor, stack.enter_context(running([*mon, "-f"], folder)), folder)
    _ceph(folder, "ceph", "osd", "new", _STORE_ID)
    osd = [program("ceph-osd"), "-i", "0", "-c", config, "--osd-data", str(folder / "osd")]
    _tool(folder, *osd, "--mkfs", "--osd-uuid", _STORE_ID)
    stack.enter_context(running([*osd, "-f"], folder))


_CLUSTER_ID = "5f0a3c1e-7f1d-4c0b-9a55-0d6c2b8f3e11"
_STORE_ID = "0c9b6a52-1b7e-4f36-8a0d-9e4d3f2c1b00"


def _ceph_config(folder: Path, plain: int, tls: int, files: TlsFiles) -> str:
    ports = f"endpoint=127.0.0.1:{plain} ssl_endpoint=127.0.0.1:{tls}"
    certificate = f"ssl_certificate={files.certificate} ssl_private_key={files.key}"
    settings = {
        "fsid": _CLUSTER_ID,
        "keyring": folder / "keyring",
        "run_dir": folder / "run",
        "admin_socket": "",
        "log_file": folder / "$name.ceph.log",
        "mon_cluster_log_file": folder / "cluster.ceph.log",
        "auth_cluster_required": "none",
        "auth_service_required": "none",
        "auth_client_required": "none",
        "ms_mon_client_mode": "crc",  # the gateway would insist on encryption and hang
        "ms_client_mode": "crc",
        "ms_bind_msgr1": "false",
        "public_addr": "127.0.0.1",
        "osd_objectstore": "memstore",
        "memstore_device_bytes": 4 * 1024**3,
        "osd_pool_default_size": 1,
        "osd_pool_default_min_size": 1,
        "osd_pool_default_pg_num": 8,
        "osd_crush_chooseleaf_type": 0,
        "mon_allow_pool_size_one": "true",
        "rgw_frontends": f"beast {ports} {certificate}",
    }
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())


def _ceph(folder: Path, name: str, *arguments: str) -> None:
    _tool(folder, name, "-c", str(folder / "ceph.conf"), *arguments)


def _tool(folder: Path, name: str, *arguments: str) -> None:
    """Run a program of Ceph to its end; RuntimeError with what it said if it fails."""
    command = [program(name), *arguments]
    environ = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, timeout=START_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed: {done.stderr.decode(errors='replace')[-2000:]}")
