"""What an answer of an S3 server means."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from asyncsync.errors import (
    AccessDeniedError,
    AsyncSyncError,
    ConfigError,
    CorruptedError,
    NoSpaceError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    SlowDownError,
    TransientError,
)
from asyncsync.storage.http import Answer
from asyncsync.storage.s3.answers import (
    Fault,
    error_of,
    fault_of,
    is_page,
    lacking,
    no_document,
    rejects_extras,
)

NOW = 1_700_000_000.0
XML = '<?xml version="1.0" encoding="UTF-8"?>\n<Error>{}</Error>'


def answer(
    status: int, code: str = "", message: str = "", region: str = "", **headers: str
) -> Answer:
    elements = {"Code": code, "Message": message, "Region": region}
    body = XML.format("".join(f"<{k}>{v}</{k}>" for k, v in elements.items() if v)).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, CIMultiDict({"Content-Type": "application/xml", **named}), body)


def error(status: int, code: str = "", message: str = "", **headers: str) -> AsyncSyncError:
    return error_of("put k", answer(status, code, message, **headers), now=NOW)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", NotFoundError),
        (404, "", NotFoundError),
        (404, "NoSuchUpload", NotFoundError),
        (400, "InvalidPart", NotFoundError),
        (404, "NoSuchBucket", ConfigError),
        (400, "InvalidBucketName", ConfigError),
        (412, "PreconditionFailed", PreconditionError),
        (412, "", PreconditionError),
        (409, "ConditionalRequestConflict", TransientError),
        (409, "OperationAborted", TransientError),
        (503, "SlowDown", SlowDownError),
        (503, "", SlowDownError),
        (429, "", SlowDownError),
        (500, "InternalError", TransientError),
        (502, "", TransientError),
        (504, "", TransientError),
        (400, "RequestTimeout", TransientError),
        (403, "AccessDenied", AccessDeniedError),
        (403, "", AccessDeniedError),
        (401, "", AccessDeniedError),
        (403, "SignatureDoesNotMatch", AccessDeniedError),
        (400, "ExpiredToken", AccessDeniedError),
        (403, "InvalidAccessKeyId", AccessDeniedError),
        (400, "InvalidToken", AccessDeniedError),
        (400, "BadDigest", CorruptedError),
        (400, "XAmzContentChecksumMismatch", CorruptedError),
        (301, "PermanentRedirect", ConfigError),
        (307, "TemporaryRedirect", ConfigError),
        (302, "", ConfigError),
        (400, "AuthorizationHeaderMalformed", ConfigError),
        (507, "", NoSpaceError),
        (400, "InvalidRequest", PermanentError),
        (501, "NotImplemented", PermanentError),
        (405, "MethodNotAllowed", PermanentError),
        (403, "InvalidObjectState", PermanentError),
        (418, "Teapot", PermanentError),
    ],
)
def test_each_failure_is_the_error_that_says_what_to_do(
    status: int, code: str, kind: type[AsyncSyncError]
) -> None:
    found = error(status, code, "said so")

    assert type(found) is kind
    assert str(found).startswith("put k: said so")


def test_a_wait_that_the_server_wants_is_taken_over() -> None:
    waits = [error(503, "SlowDown", Retry_After=text) for text in ("7", "soon", "")]

    assert [getattr(found, "retry_after_s", 0) for found in waits] == [7, None, None]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", PreconditionError),
        (404, "NoSuchUpload", NotFoundError),
        (400, "InvalidPart", NotFoundError),
        (404, "NoSuchBucket", ConfigError),
        (412, "PreconditionFailed", PreconditionError),
    ],
)
def test_what_was_to_be_replaced_and_is_gone_is_another_version(
    status: int, code: str, kind: type[AsyncSyncError]
) -> None:
    found = error_of("put k", answer(status, code), now=NOW, replaces=True)

    assert type(found) is kind
    assert "check the spelling" not in str(found)


def test_a_wrong_region_names_the_right_one_wherever_it_stands() -> None:
    by_header = error(301, "PermanentRedirect", x_amz_bucket_region="eu-west-1")
    by_body = error_of(
        "put k", answer(400, "AuthorizationHeaderMalformed", region="eu-west-1"), now=NOW
    )
    bare = error_of(
        "look", Answer(400, CIMultiDict({"x-amz-bucket-region": "eu-west-1"}), b""), now=NOW
    )

    for found in (by_header, by_body, bare):
        assert type(found) is ConfigError
        assert "?region=eu-west-1 or set AWS_REGION" in str(found)


def test_a_wrong_clock_is_shown_beside_the_right_one() -> None:
    found = error(403, "RequestTimeTooSkewed", Date="Wed, 15 Nov 2023 00:13:20 GMT")

    assert "here it is Tue, 14 Nov 2023 22:13:20 GMT" in str(found)
    assert "there Wed, 15 Nov 2023 00:13:20 GMT; set the clock" in str(found)


def test_a_denial_says_that_the_key_may_be_missing() -> None:
    assert "a missing key where listing the bucket is not allowed" in str(error(403))


def test_what_a_server_says_is_shortened_and_cannot_harm_a_terminal() -> None:
    found = str(error(400, "InvalidRequest", "one\ntwo \x1b[31m" + "x" * 5000))

    assert "\n" not in found
    assert "\x1b" not in found
    assert len(found) < 400


def test_a_message_may_be_missing() -> None:
    assert str(error(418, "Teapot")) == "put k: the store answered 418 Teapot"
    assert str(error_of("put k", Fault(418, "", "", "", {}), now=NOW)) == (
        "put k: the store answered 418"
    )


@pytest.mark.parametrize(
    "page",
    [
        Answer(200, CIMultiDict({"Content-Type": "text/html; charset=utf-8"}), b""),
        Answer(302, CIMultiDict({"Location": "http://login"}), b"  <!DOCTYPE html><html>"),
        Answer(404, CIMultiDict(), b"<html><body>nginx</body></html>"),
    ],
)
def test_a_web_page_is_not_an_s3_server(page: Answer) -> None:
    found = error_of("get k", page, now=NOW)

    assert is_page(page)
    assert type(found) is ConfigError
    assert "is not an S3 server" in str(found)


def test_a_page_about_a_failure_in_between_is_passing() -> None:
    page = Answer(502, CIMultiDict({"Content-Type": "text/html"}), b"<html>bad gateway</html>")

    assert type(error_of("get k", page, now=NOW)) is TransientError


def test_an_answer_of_a_store_is_not_taken_for_a_page() -> None:
    headers = CIMultiDict({"Content-Type": "text/html", "x-amz-request-id": "1"})

    assert not is_page(Answer(404, headers, b""))
    assert type(error_of("get k", Answer(404, headers, b""), now=NOW)) is NotFoundError


@pytest.mark.parametrize(
    ("headers", "body", "kind"),
    [
        ({}, b"<ListBucketResult/>", type(None)),
        ({}, b" " * 1000 + b"\n<CompleteMultipartUploadResult/>", type(None)),
        ({"x-amz-request-id": "1"}, b"", TransientError),
        ({"x-amz-request-id": "1"}, b" \n", TransientError),
        ({}, b"", ConfigError),
        ({}, b"<html></html>", ConfigError),
        ({"x-amz-request-id": "1"}, b"{}", ConfigError),
    ],
)
def test_a_success_without_a_document_is_none(
    headers: dict[str, str], body: bytes, kind: type[object]
) -> None:
    found = no_document("list b", Answer(200, CIMultiDict(headers), body))

    assert type(found) is kind


def test_entities_and_document_types_in_an_error_do_nothing() -> None:
    body = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><Error><Code>&a;</Code></Error>'
    fault = fault_of(Answer(400, CIMultiDict(), body))

    assert fault.code == "&a;"


def test_a_truncated_error_tells_what_it_still_holds() -> None:
    whole = answer(404, "NoSuchBucket", "none &amp; nothing")
    cut = whole._replace(body=bytes(whole.body)[:-20])

    assert fault_of(whole).message == "none & nothing"
    assert fault_of(cut).code == "NoSuchBucket"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "InvalidRequest", True),
        (501, "NotImplemented", True),
        (411, "MissingContentLength", True),
        (400, "ExpiredToken", False),
        (400, "BadDigest", False),
        (400, "EntityTooLarge", False),
        (403, "AccessDenied", False),
        (412, "", False),
    ],
)
def test_only_some_failures_can_come_from_an_unknown_header(
    status: int, code: str, expected: bool
) -> None:
    assert rejects_extras(fault_of(answer(status, code))) is expected


@pytest.mark.parametrize(
    ("headers", "kind"), [({"x-amz-request-id": "1"}, TransientError), ({}, ConfigError)]
)
def test_a_success_without_what_belongs_to_it_is_no_s3_server_or_one_that_failed(
    headers: dict[str, str], kind: type[AsyncSyncError]
) -> None:
    found = lacking("get k", answer(200, **headers), "ETag")

    assert type(found) is kind
    assert str(found).startswith("get k: ")
