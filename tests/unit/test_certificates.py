"""The certificates of a head: who trusts them, when they are made anew, and their files."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from asyncsync.errors import ConfigError
from asyncsync.peer.certificates import Certificates, prepare_certificates, server_context
from asyncsync.wire.trust import client_context, fingerprint_of

DAY_S = 24 * 3600
HOSTS = ("head.example", "localhost", "127.0.0.1", "::1")
NOW = datetime.now(UTC).timestamp()
"""A handshake compares with the clock of the machine, which no test can set."""


def prepare(directory: Path, hosts: Sequence[str] = HOSTS, *, now: float = NOW) -> Certificates:
    return prepare_certificates(directory, hosts, now=now)


def shake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> ssl.SSLObject:
    """A handshake between the two, without a socket.

    Raises:
        ssl.SSLError: the client does not trust the server.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in tuple(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
            first = end
    return first


def trusting(found: Certificates) -> ssl.SSLContext:
    return client_context(found.authority, fingerprint=found.fingerprint)


# ---------------------------------------------------------------- trust


@pytest.mark.parametrize("host", HOSTS)
def test_a_worker_that_knows_the_ca_trusts_the_head_by_each_of_its_names(
    host: str, tmp_path: Path
) -> None:
    found = prepare(tmp_path / "tls")

    connection = shake(server_context(found.file), trusting(found), host)

    assert connection.version() == "TLSv1.3"


@pytest.mark.parametrize("host", ["other.example", "sub.head.example", "example", "127.0.0.2"])
def test_a_head_of_another_name_is_not_trusted(host: str, tmp_path: Path) -> None:
    found = prepare(tmp_path / "tls")

    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        shake(server_context(found.file), trusting(found), host)


def test_a_head_of_another_ca_is_not_trusted(tmp_path: Path) -> None:
    found, other = prepare(tmp_path / "tls"), prepare(tmp_path / "other")

    with pytest.raises(ssl.SSLCertVerificationError):
        shake(server_context(other.file), trusting(found), "head.example")


def test_a_head_of_a_foreign_ca_is_not_trusted(tmp_path: Path) -> None:
    found, foreign = prepare(tmp_path / "tls"), trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    foreign.issue_cert("head.example").configure_cert(server)

    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get|self-signed"):
        shake(server, trusting(found), "head.example")


@pytest.mark.parametrize("days", [-91, -120])
def test_a_head_whose_certificate_has_ended_is_not_trusted(days: int, tmp_path: Path) -> None:
    found = prepare(tmp_path / "tls", now=NOW + days * DAY_S)

    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake(server_context(found.file), trusting(found), "head.example")


def test_a_head_from_the_future_is_not_trusted(tmp_path: Path) -> None:
    found = prepare(tmp_path / "tls", now=NOW + 2 * 3600)

    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        shake(server_context(found.file), trusting(found), "head.example")


def test_a_clock_that_is_half_an_hour_behind_does_not_matter(tmp_path: Path) -> None:
    found = prepare(tmp_path / "tls", now=NOW + 1800)

    shake(server_context(found.file), trusting(found), "head.example")


def test_a_certificate_of_the_head_signs_no_others(tmp_path: Path) -> None:
    """What steals the key of the head's certificate is that head, and no other."""
    from asyncsync.peer.authority import Pair

    ca = Pair.make_authority(NOW)
    stolen = ca.issue(["head.example"], NOW)
    forged = stolen.issue(["other.example"], NOW)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(forged.pem() + stolen.certificate_pem().encode())
    client = client_context(ca.certificate_pem(), fingerprint=fingerprint_of(ca.certificate_pem()))

    with pytest.raises(ssl.SSLCertVerificationError, match=r"invalid CA|issuer"):
        shake(server_context(chain), client, "other.example")


def test_old_tls_is_not_spoken(tmp_path: Path) -> None:
    found = prepare(tmp_path / "tls")

    contexts = [server_context(found.file), trusting(found)]

    assert {c.minimum_version for c in contexts} == {ssl.TLSVersion.TLSv1_2}
    assert contexts[1].check_hostname
    assert contexts[1].verify_mode is ssl.CERT_REQUIRED


def test_a_ca_with_another_fingerprint_is_refused(tmp_path: Path) -> None:
    found, other = prepare(tmp_path / "tls"), prepare(tmp_path / "other")

    with pytest.raises(ConfigError, match="another CA than the one in the join string"):
        client_context(other.authority, fingerprint=found.fingerprint)


def test_a_second_certificate_behind_the_right_one_is_not_trusted(tmp_path: Path) -> None:
    """A fingerprint is of one certificate; whoever is in between may send more text."""
    found, evil = prepare(tmp_path / "tls"), prepare(tmp_path / "evil")

    for text in (found.authority + evil.authority, evil.authority + found.authority):
        try:
            client = client_context(text, fingerprint=found.fingerprint)
        except ConfigError:
            continue
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(server_context(evil.file), client, "head.example")


@pytest.mark.parametrize("text", ["", "canary", "-----BEGIN CERTIFICATE-----", "\u00e9", "\0"])
def test_what_is_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no certificate in PEM") as caught:
        client_context(text, fingerprint="ab" * 32)

    assert "canary" not in str(caught.value)


def test_garbage_with_the_right_fingerprint_is_refused() -> None:
    text = ssl.DER_cert_to_PEM_cert(b"garbage")

    with pytest.raises(ConfigError, match="cannot be read"):
        client_context(text, fingerprint=fingerprint_of(text))


def test_a_fingerprint_is_of_the_certificate_and_not_of_its_text(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509 import load_pem_x509_certificate

    found = prepare(tmp_path / "tls")

    certificate = load_pem_x509_certificate(found.authority.encode())
    assert certificate.fingerprint(SHA256()).hex() == found.fingerprint
    assert fingerprint_of(f"\n{found.authority}\n\n") == found.fingerprint


# ---------------------------------------------------------------- life


def test_what_is_there_is_used_again(tmp_path: Path) -> None:
    first = prepare(tmp_path / "tls")
    before = {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()}

    again = prepare(tmp_path / "tls", now=NOW + 59 * DAY_S)

    assert again == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()} == before
    assert first.expires_at == pytest.approx(NOW + 90 * DAY_S, abs=1)


def test_the_certificate_is_renewed_in_its_last_month_and_the_ca_stays(tmp_path: Path) -> None:
    first = prepare(tmp_path / "tls")

    renewed = prepare(tmp_path / "tls", now=NOW + 61 * DAY_S)

    assert renewed.fingerprint == first.fingerprint
    assert renewed.expires_at == pytest.approx(NOW + 151 * DAY_S, abs=1)


def test_no_certificate_outlives_its_ca(tmp_path: Path) -> None:
    first = prepare(tmp_path / "tls")

    last = prepare(tmp_path / "tls", now=NOW + 334 * DAY_S)

    assert last.fingerprint == first.fingerprint
    assert last.expires_at == pytest.approx(NOW + 365 * DAY_S, abs=1)


def test_in_its_last_month_the_ca_is_made_anew(tmp_path: Path) -> None:
    first = prepare(tmp_path / "tls", now=NOW - 336 * DAY_S)

    anew = prepare(tmp_path / "tls")

    assert anew.fingerprint != first.fingerprint
    shake(server_context(anew.file), trusting(anew), "head.example")


def test_a_clock_that_is_not_set_throws_no_ca_away(tmp_path: Path) -> None:
    first = prepare(tmp_path / "tls")

    with pytest.raises(ConfigError, match="the clock is before"):
        prepare(tmp_path / "tls", now=0)

    assert prepare(tmp_path / "tls") == first


def test_other_names_need_another_certificate_of_the_same_ca(tmp_path: Path) -> None:
    first = prepare(tmp_path / "tls")
    before = first.file.read_bytes()

    same = prepare(tmp_path / "tls", [*HOSTS[::-1], HOSTS[0]])
    assert first.file.read_bytes() == before
    other = prepare(tmp_path / "tls", ["other.example"])

    assert same.fingerprint == other.fingerprint == first.fingerprint
    shake(server_context(other.file), trusting(first), "other.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(server_context(other.file), trusting(first), "head.example")


def test_a_crash_between_ca_and_certificate_is_made_good(tmp_path: Path) -> None:
    prepare(tmp_path / "tls")
    (tmp_path / "tls" / "ca.pem").unlink()

    anew = prepare(tmp_path / "tls")

    shake(server_context(anew.file), trusting(anew), "head.example")


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [""],
        ["*"],
        ["*.example"],
        ["a b"],
        ["x" * 254],
        ["-x"],
        ["a..b"],
        ["h\u00e9ad"],
        ["x\n"],
        ["head.example", "https://head.example"],
    ],
    ids=ascii,
)
def test_what_is_no_host_is_refused_before_anything_is_made(
    hosts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="by which workers reach the head"):
        prepare(tmp_path / "tls", hosts)

    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- files


def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        prepare(tmp_path / "tls")
    finally:
        os.umask(mask)

    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "tls").iterdir()}
    assert modes == {"ca.pem": 0o600, "head.pem": 0o600}
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700


def test_what_is_for_everybody_holds_no_key(tmp_path: Path) -> None:
    found = prepare(tmp_path / "tls")

    assert "KEY" not in found.authority
    assert "PRIVATE KEY" not in repr(found)


@pytest.mark.parametrize("name", ["ca.pem", "head.pem"])
@pytest.mark.parametrize(
    "content",
    [b"", b"canary", b"-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n", b"cut"],
    ids=["empty", "garbage", "garbage in PEM", "cut off"],
)
def test_a_damaged_file_is_refused_and_left(name: str, content: bytes, tmp_path: Path) -> None:
    prepare(tmp_path / "tls")
    path = tmp_path / "tls" / name
    content = path.read_bytes()[:-100] if content == b"cut" else content
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=f"{name} is damaged") as caught:
        prepare(tmp_path / "tls")

    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert path.read_bytes() == content


def test_the_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    found, other = prepare(tmp_path / "tls"), prepare(tmp_path / "other")
    end = b"-----END PRIVATE KEY-----\n"
    key, certificate = (p.file.read_bytes().partition(end) for p in (other, found))
    found.file.write_bytes(key[0] + end + certificate[2])

    with pytest.raises(ConfigError, match=r"head\.pem is damaged"):
        prepare(tmp_path / "tls")
    with pytest.raises(ConfigError, match="cannot be used"):
        server_context(found.file)


def test_a_ca_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """Of a kind that we do not make."""
    (tmp_path / "tls").mkdir(mode=0o700)
    foreign = trustme.CA(key_type=trustme.KeyType.RSA).private_key_pem.bytes()
    foreign += trustme.CA().cert_pem.bytes()
    (tmp_path / "tls" / "ca.pem").write_bytes(foreign)
    (tmp_path / "tls" / "ca.pem").chmod(0o600)

    with pytest.raises(ConfigError, match=r"ca\.pem is damaged"):
        prepare(tmp_path / "tls")


@pytest.mark.parametrize("name", ["ca.pem", "head.pem"])
def test_a_file_that_others_can_read_is_refused(name: str, tmp_path: Path) -> None:
    prepare(tmp_path / "tls")
    (tmp_path / "tls" / name).chmod(0o644)

    with pytest.raises(ConfigError, match=f"chmod 600 .*{name}"):
        prepare(tmp_path / "tls")


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls").chmod(0o750)

    with pytest.raises(ConfigError, match="chmod 700 "):
        prepare(tmp_path / "tls")


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot make .*: No such file or directory"):
        prepare(tmp_path / "missing" / "tls")


def test_a_link_to_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o700)
    (tmp_path / "tls").symlink_to(tmp_path / "there")

    with pytest.raises(ConfigError, match="is not a directory"):
        prepare(tmp_path / "tls")


# ---------------------------------------------------------------- certificates of others


def test_a_certificate_of_ones_own_is_used_in_one_file_or_two(tmp_path: Path) -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("head.example")
    both, chain, key = (tmp_path / name for name in ("both.pem", "chain.pem", "key.pem"))
    issued.private_key_and_cert_chain_pem.write_to_path(both)
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    client = ssl.create_default_context(cadata=ca.cert_pem.bytes().decode())

    for server in (server_context(both), server_context(chain, key)):
        shake(server, client, "head.example")


def test_a_certificate_that_cannot_be_used_is_an_error_that_says_which(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("canary")

    for path in (garbage, tmp_path / "missing.pem", tmp_path):
        with pytest.raises(ConfigError, match=f"certificate {path} cannot be used") as caught:
            server_context(path)
        assert "canary" not in str(caught.value)


def test_a_key_with_a_password_is_an_error_and_no_question(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    locked = generate_private_key(SECP256R1()).private_bytes(
        form.Encoding.PEM,
        form.PrivateFormat.PKCS8,
        form.BestAvailableEncryption(b"a password"),
    )
    (tmp_path / "key.pem").write_bytes(locked)
    certificate = prepare(tmp_path / "tls").file

    with pytest.raises(ConfigError, match="without a password"):
        server_context(certificate, tmp_path / "key.pem")


# ---------------------------------------------------------------- what it needs


def test_the_module_loads_without_cryptography_and_then_says_what_to_install() -> None:
    code = """
import sys
sys.modules["cryptography"] = None
from pathlib import Path
from asyncsync.peer.certificates import prepare_certificates, server_context
from asyncsync.errors import ConfigError
try:
    prepare_certificates(Path("unused"), ["localhost"], now=0)
except ConfigError as exc:
    print(exc)
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert printed.stderr == ""
    assert "needs cryptography; pip install 'asyncsync[head]'" in printed.stdout
