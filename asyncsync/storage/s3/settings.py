"""Where a bucket is, if the environment alone says so: then nobody has to ask the SDK.

Importing it and building its client takes longer than moving many small files. Whatever is not
plain, it decides: profiles, configuration files, addresses of AWS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["DEFAULT_REGION", "Settings", "plain_settings", "settings_files"]

DEFAULT_REGION = "us-east-1"
"""What the AWS command line takes, too."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_NO_BUCKETS = ("--x-s3", "--op-s3")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_REGION = re.compile(rf"(?![0-9]+$){_LABEL}")
_ENDPOINT = re.compile(rf"(https?://({_LABEL}(?:\.{_LABEL})*)(?::[0-9]{{1,5}})?)/?")
_AMAZON = re.compile(r"amazonaws|api\.aws")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
# What is understood here, or has nothing to do with addresses. Any other variable may change them.
_KNOWN = frozenset(
    {
        *_ENDPOINTS,
        "AWS_ACCESS_KEY_ID",
        "AWS_CA_BUNDLE",
        "AWS_CONFIG_FILE",
        "AWS_DEFAULT_REGION",
        "AWS_EC2_METADATA_DISABLED",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SECURITY_TOKEN",
        "AWS_SESSION_TOKEN",
        "AWS_SHARED_CREDENTIALS_FILE",
    }
)


class Settings(NamedTuple):
    """What the requests to a bucket need to know.

    Attributes:
        base_url: what comes before the key in the address of an object.
        ca_file: certificates to trust instead of the system's.
    """

    base_url: str
    region: str
    ca_file: str | None


def settings_files(environ: Mapping[str, str]) -> tuple[str, str]:
    """Where more may be said; `~` is the home directory. Pure."""
    return (
        environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
        environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
    )


def plain_settings(
    bucket: str, options: Mapping[str, str], environ: Mapping[str, str]
) -> Settings | None:
    """The settings as the SDK finds them where there are no files; None: ask it. Pure."""
    endpoint = options.get("endpoint_url")
    if endpoint is None:
        endpoint = next(filter(None, map(environ.get, _ENDPOINTS)), "")
    region = options.get("region") or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    region = region or DEFAULT_REGION
    server = _ENDPOINT.fullmatch(endpoint)
    if (
        server is None
        or _AMAZON.search(server[2])
        or "profile" in options
        or options.get("addressing", "auto") not in ("auto", "path")
        or any(name.startswith("AWS_") and name not in _KNOWN for name in environ)
        or _BUCKET.fullmatch(bucket) is None
        or bucket.endswith(_NO_BUCKETS)
        or _REGION.fullmatch(region) is None
    ):
        return None
    return Settings(f"{server[1]}/{bucket}/", region, environ.get("AWS_CA_BUNDLE"))
