"""A CA for one head, and the certificate of the head. The one file that knows cryptography.

No I/O. Keys are EC P-256: every TLS library has it, and a handshake costs a fraction of RSA's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Pair"]

_CA_LIFE = timedelta(days=365)
_LEAF_LIFE = timedelta(days=90)
_RENEWED_WITHIN = timedelta(days=30)
_BACKDATED = timedelta(hours=1)  # a worker's clock may be behind the head's


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def make_authority(cls, now: float) -> Self:
        """A CA that nobody else trusts, for a year."""
        key = generate_private_key(SECP256R1())
        name = _name("asyncsync head CA")
        start, end = _span(now, _CA_LIFE)
        builder = (
            _builder(name, key, start, end)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    def issue(self, hosts: Sequence[str], now: float) -> Pair:
        """A certificate for a server of those names and addresses, signed by this CA."""
        key = generate_private_key(SECP256R1())
        start, end = _span(now, _LEAF_LIFE)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            _builder(
                _name("asyncsync head"), key, start, min(end, self.certificate.not_valid_after_utc)
            )
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(issuer, critical=False)
            .add_extension(_alternative_names(hosts), critical=False)
        )
        return Pair(builder.sign(self.key, hashes.SHA256()), key)

    @classmethod
    def parse(cls, pem: bytes) -> Self:
        """What `pem` gave.

        Raises:
            ValueError: it is something else.
        """
        key = load_pem_private_key(pem, password=None)
        certificate = x509.load_pem_x509_certificate(pem)
        if not isinstance(key, EllipticCurvePrivateKey):
            raise ValueError("a key of another kind")  # noqa: TRY004 - all damage is one error
        if key.public_key() != certificate.public_key():
            raise ValueError("the key of another certificate")
        return cls(certificate, key)

    def pem(self) -> bytes:
        """Key and certificate, the way TLS libraries read them."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key + self.certificate.public_bytes(Encoding.PEM)

    def certificate_pem(self) -> str:
        """The certificate alone, which is for everybody."""
        return self.certificate.public_bytes(Encoding.PEM).decode("ascii")

    def has_begun(self, now: float) -> bool:
        """Whether it is not from the future."""
        return self.certificate.not_valid_before_utc <= _instant(now)

    def is_fresh(self, now: float) -> bool:
        """Whether it is valid, and stays so for 30 days."""
        end = self.certificate.not_valid_after_utc - _RENEWED_WITHIN
        return self.has_begun(now) and _instant(now) < end

    def is_for(self, hosts: Sequence[str], authority: Pair) -> bool:
        """Whether that CA issued it, for just those hosts."""
        try:
            self.certificate.verify_directly_issued_by(authority.certificate)
        except Exception:  # noqa: BLE001 - InvalidSignature, ValueError, TypeError: all say no
            return False
        found = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return set(found.value) == set(_alternative_names(hosts))


def _builder(
    subject: x509.Name, key: EllipticCurvePrivateKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _instant(now: float) -> datetime:
    return datetime.fromtimestamp(int(now), UTC)  # certificates know whole seconds


def _span(now: float, life: timedelta) -> tuple[datetime, datetime]:
    return _instant(now) - _BACKDATED, _instant(now) + life
