"""How a worker knows its head: by the certificate of the head's own CA. No I/O."""

from __future__ import annotations

import hashlib
import hmac
import ssl

from ..errors import ConfigError

__all__ = ["client_context", "fingerprint_of", "tls_context"]


def fingerprint_of(certificate: str) -> str:
    """SHA-256 of the DER form of a certificate in PEM, 64 hexadecimal digits.

    Raises:
        ConfigError: it is no certificate in PEM.
    """
    return hashlib.sha256(_der(certificate)).hexdigest()


def _der(certificate: str) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(certificate.strip())
    except ValueError:
        raise ConfigError("this is no certificate in PEM; ask the head for its CA again") from None


def client_context(authority: str, *, fingerprint: str) -> ssl.SSLContext:
    """TLS to a head whose certificate that CA, and no other, has signed for the name asked for.

    Args:
        authority: the certificate of the CA in PEM. It may come from anywhere, the network too.
        fingerprint: what it has to be, from the join string.

    Raises:
        ConfigError: it is another certificate, or none.
    """
    der = _der(authority)
    if not hmac.compare_digest(hashlib.sha256(der).hexdigest(), fingerprint):
        raise ConfigError(
            "the head has another CA than the one in the join string: take a new join string from "
            "the head, and if it has not been set up again, find out who answers there"
        )
    context = tls_context(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and name
    # As Python 3.13 does by default: what a certificate has to say, it says.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        # What was hashed, not the text: that may hold further certificates behind the first.
        context.load_verify_locations(cadata=der)
    except ssl.SSLError as exc:
        raise ConfigError(
            "the certificate of the CA cannot be read; set up the head again"
        ) from exc
    return context


def tls_context(protocol: int) -> ssl.SSLContext:
    """What both ends use. They agree on TLS 1.3; a proxy between them may know 1.2 only."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
