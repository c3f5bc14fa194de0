"""Our signatures: those of botocore, and nothing in them that tells a secret."""

from __future__ import annotations

import calendar
import datetime
import re
from typing import NamedTuple
from unittest.mock import patch
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsync.secrets import Secret
from asyncsync.storage.s3.signing import (
    UNSIGNED_PAYLOAD,
    Credentials,
    Scope,
    sha256_hex,
    sign,
)

NOW = datetime.datetime(2024, 2, 29, 23, 59, 59, tzinfo=datetime.UTC)
KEYS = Credentials("AKIDEXAMPLE", Secret("the-secret-key"), Secret("the-session-token"))
URL = "https://bucket.s3.us-east-1.amazonaws.com/dir/key"

keys = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40
).map(lambda key: quote(key, safe="/-._~"))
hosts = st.sampled_from(
    [
        "https://bucket.s3.eu-central-1.amazonaws.com",
        "https://s3.amazonaws.com/bucket",
        "http://127.0.0.1:9000/bucket",
        "https://Store.Example:443/bucket",
        "http://store.example:80/bucket",
        "http://store.example:443/bucket",
    ]
)
pairs = st.tuples(
    st.sampled_from(["uploads", "uploadId", "partNumber", "prefix", "list-type", "a", "A", "a-b"]),
    st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=12)),
)
queries = st.lists(pairs, max_size=5).map(
    lambda found: "&".join(
        name if value is None else f"{name}={quote(value, safe='-._~')}" for name, value in found
    )
)
values = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=30)
headers = st.dictionaries(
    st.sampled_from(
        [
            "Range",
            "If-Match",
            "if-none-match",
            "Content-MD5",
            "content-type",
            "x-amz-checksum-crc32",
            "X-Amz-Meta-A",
            "x-amz-mp-object-size",
        ]
    ),
    values,
)
tokens = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1)
moments = st.datetimes(
    datetime.datetime(1971, 1, 1),
    datetime.datetime(2099, 1, 1),
    timezones=st.just(datetime.UTC),
)


class Case(NamedTuple):
    """One request to sign."""

    method: str
    url: str
    headers: dict[str, str]
    credentials: Credentials
    region: str
    at: datetime.datetime
    payload: str

    @property
    def ours(self) -> dict[str, str]:
        signed = sign(
            self.method,
            self.url,
            self.headers,
            credentials=self.credentials,
            scope=Scope(self.region),
            at=calendar.timegm(self.at.timetuple()),
            payload=self.payload,
        )
        return {name.lower(): value for name, value in signed.items()}

    @property
    def theirs(self) -> dict[str, str]:
        """The headers that botocore would send."""
        request = AWSRequest(self.method, self.url, dict(self.headers))
        keys = self.credentials
        token = keys.token.reveal() if keys.token else None
        frozen = ReadOnlyCredentials(keys.access_key, keys.secret_key.reveal(), token, None)
        signer = S3SigV4Auth(frozen, "s3", self.region)
        with (
            patch("botocore.auth.get_current_datetime", return_value=self.at),
            patch.object(signer, "payload", return_value=self.payload),
        ):
            signer.add_auth(request)
        return {name.lower(): value for name, value in request.headers.items()}


cases = st.builds(
    Case,
    method=st.sampled_from(["GET", "PUT", "HEAD", "POST", "DELETE"]),
    url=st.tuples(hosts, keys, queries).map(
        lambda parts: f"{parts[0]}/{parts[1]}" + (f"?{parts[2]}" if parts[2] else "")
    ),
    headers=headers,
    credentials=st.builds(
        Credentials,
        st.just("AKID"),
        st.builds(Secret, st.text(min_size=1, max_size=40)),
        st.none() | st.builds(Secret, tokens),
    ),
    region=st.sampled_from(["us-east-1", "eu-central-1", "auto", ""]),
    at=moments,
    payload=st.just(UNSIGNED_PAYLOAD) | st.binary(max_size=50).map(sha256_hex),
)


@settings(max_examples=25)
@given(case=cases)
def test_a_signature_is_the_one_that_botocore_makes(case: Case) -> None:
    assert case.ours == case.theirs


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(max_examples=3000)
@given(case=cases)
def test_every_signature_is_the_one_that_botocore_makes(case: Case) -> None:
    assert case.ours == case.theirs


def test_headers_that_a_proxy_may_change_are_not_signed() -> None:
    plain = {"User-Agent": "one", "Expect": "100-continue", "Accept-Encoding": "identity"}
    signed = sign("GET", URL, plain, credentials=KEYS, scope=Scope("r"), at=0.0)

    assert re.search(r"SignedHeaders=([^,]*)", signed["authorization"])[1] == (  # type: ignore[index]
        "host;x-amz-content-sha256;x-amz-date;x-amz-security-token"
    )


def test_an_old_signature_is_replaced() -> None:
    once = sign("GET", URL, {}, credentials=KEYS, scope=Scope("r"), at=0.0)
    twice = sign("GET", URL, once, credentials=KEYS, scope=Scope("r"), at=60.0)

    assert twice == sign("GET", URL, {}, credentials=KEYS, scope=Scope("r"), at=60.0)


def test_a_new_day_has_a_new_key() -> None:
    for at in (NOW, NOW + datetime.timedelta(seconds=1)):
        case = Case("PUT", URL, {}, KEYS, "us-east-1", at, UNSIGNED_PAYLOAD)

        assert case.ours == case.theirs


@pytest.mark.parametrize("secret", ["AKIDEXAMPLE", "the-secret-key", "the-session-token"])
def test_credentials_print_nothing_of_themselves(secret: str) -> None:
    assert secret not in repr(KEYS) + str(KEYS)
