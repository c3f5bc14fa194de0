"""The certificates of a head on its disk. Everything here blocks and belongs in a thread."""

from __future__ import annotations

import re
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, quote
from ..wire.trust import fingerprint_of, tls_context
from .private_files import open_private_directory, read_private, write_private

if TYPE_CHECKING:
    from .authority import Pair

__all__ = ["Certificates", "prepare_certificates", "server_context", "throwaway_context"]

_CA, _HEAD = "ca.pem", "head.pem"
_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]*)(?:\.[A-Za-z0-9][A-Za-z0-9-]*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What a head shows to its workers, and how they know it.

    Attributes:
        file: the certificate of the head with its key, for `server_context`.
        authority: the certificate of its CA in PEM, which is for everybody.
        fingerprint: of that certificate, for join strings. Another one than the last time means
            that every worker needs a new join string.
        expires_at: unix seconds; a head that runs longer has to be started again before.
    """

    file: Path
    authority: str
    fingerprint: str
    expires_at: float


def prepare_certificates(directory: Path, hosts: Sequence[str], *, now: float) -> Certificates:
    """Load the CA and the certificate of the head; make what is not there or ends within 30 days.

    The CA lasts a year, the certificate 90 days. It is made anew, too, when `hosts` differ.

    Args:
        directory: made if it is not there; nobody else may enter it.
        hosts: names and addresses by which workers reach the head.
        now: unix seconds.

    Raises:
        ConfigError: a host is none, a file is damaged or not private, or cryptography is missing.
    """
    _check_hosts(hosts)
    try:
        from .authority import Pair  # noqa: PLC0415 - only a head with TLS needs it
    except ModuleNotFoundError as exc:
        hint = f"a head with TLS needs {exc.name}; pip install 'asyncsync[head]'"
        raise ConfigError(hint) from exc
    open_private_directory(directory)
    found = _load(Pair, directory / _CA)
    if found is not None and not found.has_begun(now):
        # A machine that has not got the time yet must not throw away what its workers trust.
        raise ConfigError("the clock is before the head's CA was made; set it, then start again")
    authority = found
    if authority is None or not authority.is_fresh(now):
        authority = Pair.make_authority(now)
        write_private(directory / _CA, authority.pem(), replace=found is not None)
    head = _load(Pair, directory / _HEAD)
    if head is None or not (head.is_for(hosts, authority) and head.is_fresh(now)):
        head = authority.issue(hosts, now)
        write_private(directory / _HEAD, head.pem(), replace=True)
    certificate = authority.certificate_pem()
    return Certificates(
        file=directory / _HEAD,
        authority=certificate,
        fingerprint=fingerprint_of(certificate),
        expires_at=head.certificate.not_valid_after_utc.timestamp(),
    )


def throwaway_context(host: str, *, now: float) -> tuple[ssl.SSLContext, str]:
    """TLS for 90 days with a CA of its own, and that CA's certificate; nothing stays on the disk.

    Raises:
        ConfigError: as of `prepare_certificates`; or no worker can name that host.
    """
    if host in ("0.0.0.0", "::", ""):
        raise ConfigError(
            f"tls='own' is for one address, and {host or 'none'} is none: give as host the address "
            "by which others reach this node"
        )
    with tempfile.TemporaryDirectory() as folder:
        made = prepare_certificates(Path(folder) / "tls", [host], now=now)
        return server_context(made.file), made.authority


def server_context(certificate: Path, key: Path | None = None) -> ssl.SSLContext:
    """TLS for a server with that certificate chain; without `key`, the file holds both.

    Raises:
        ConfigError: they cannot be read, or do not belong to each other.
    """
    context = tls_context(ssl.PROTOCOL_TLS_SERVER)
    try:
        # With a password at hand, an encrypted key is an error and not a question on a terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ConfigError(
            f"certificate {quote(str(certificate))} cannot be used: {reason}; a head needs a chain "
            "and its key in PEM, without a password"
        ) from exc
    return context


def _load(kind: type[Pair], path: Path) -> Pair | None:
    content = read_private(path)
    if content is None:
        return None
    try:
        return kind.parse(content)
    except Exception:  # noqa: BLE001 - foreign, of many kinds, and may quote the key
        pass  # what is raised below, outside of the handler, does not bring it along
    raise ConfigError(
        f"{quote(str(path))} is damaged; put back a copy, or remove its directory and join the "
        "workers again"
    )


def _check_hosts(hosts: Sequence[str]) -> None:
    for host in hosts:
        try:
            ip_address(host)
        except ValueError:
            if _NAME.fullmatch(host) is None:
                reason = f"{quote(host[:80]) or 'nothing'} is no name or address of a host"
                raise ConfigError(f"{reason}; name those by which workers reach the head") from None
    if not hosts:
        raise ConfigError("a certificate needs a name or address by which workers reach the head")
