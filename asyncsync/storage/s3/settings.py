"""Where a bucket is, if the environment alone says so: then nobody has to ask the SDK.

Importing it and building its client takes as long as moving a thousand small files. Whatever is
not plain, it decides: profiles, configuration files, addresses of AWS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["DEFAULT_REGION", "Settings", "plain_settings", "settings_files"]

DEFAULT_REGION = "us-east-1"
"""What the AWS command line takes, too."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ENDPOINT = re.compile(r"(https?://(?!.*(?:amazonaws|api\.aws))[a-z0-9][a-z0-9.-]*(?::[0-9]+)?)/?")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
# What else changes the address, or where the rest is found.
_NOT_PLAIN = frozenset(
    {
        "AWS_DATA_PATH",
        "AWS_DEFAULT_PROFILE",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        "AWS_PROFILE",
        "AWS_USE_DUALSTACK_ENDPOINT",
        "AWS_USE_FIPS_ENDPOINT",
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
        or "profile" in options
        or options.get("addressing", "auto") not in ("auto", "path")
        or not _NOT_PLAIN.isdisjoint(environ)
        or _BUCKET.fullmatch(bucket) is None
        or bucket.endswith("--x-s3")
        or _REGION.fullmatch(region) is None
    ):
        return None
    return Settings(f"{server[1]}/{bucket}/", region, environ.get("AWS_CA_BUNDLE"))
