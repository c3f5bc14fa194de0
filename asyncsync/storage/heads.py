"""The head of an HTTP/1.1 answer (RFC 9112): what can be read in two ways is refused."""

from __future__ import annotations

import re
from typing import NamedTuple

from multidict import CIMultiDict

__all__ = ["Head", "WireError", "field_of", "read_head"]

_LENGTH_DIGITS = 18
_STATUS = r"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [^\r\n]*)?"
# Nothing here may match in two ways: a head that is none would be tried in all of them.
_FIELD = r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\0\r\n]*)"
# The whole of a head is looked at before its fields are taken out: one by one takes far longer.
_HEAD = re.compile(rf"{_STATUS}((?:\r\n{_FIELD})*)")
_FIELDS = re.compile(rf"\r\n{_FIELD}")
_ONE_FIELD = re.compile(_FIELD)


class WireError(Exception):
    """The other side broke off, or says what makes no sense."""


class Head(NamedTuple):
    """What an answer begins with.

    Attributes:
        length: of its body, in bytes; None: not known before it ends.
    """

    status: int
    headers: CIMultiDict[str]
    length: int | None

    def __repr__(self) -> str:  # a header may be a secret
        return f"<an answer with status {self.status}>"


def read_head(raw: bytes) -> tuple[Head, bool, bool]:
    """A head; whether the connection persists; whether the body comes in chunks. Pure.

    Raises:
        WireError: it makes no sense, or says in two ways how long the body is.
    """
    found = _HEAD.fullmatch(raw.decode("utf-8", "surrogateescape"))
    if found is None:
        raise WireError("an answer that is not HTTP/1.1")
    fields = _FIELDS.findall(found[3])
    headers = CIMultiDict[str]([(name, value.strip(" \t")) for name, value in fields])
    chunked = "Transfer-Encoding" in headers
    if chunked and ",".join(headers.getall("Transfer-Encoding")).lower() != "chunked":
        raise WireError("a transfer coding that is not known")
    options = {
        option.strip()
        for value in headers.getall("Connection", ())
        for option in value.lower().split(",")
    }
    persistent = found[1] == "1" and "close" not in options
    return Head(int(found[2]), headers, _length(headers)), persistent, chunked


def field_of(line: bytes) -> tuple[str, str]:
    """A header's name and value. Pure.

    Raises:
        WireError: it is none. A line break in it would get into what is sent to where it points.
    """
    found = _ONE_FIELD.fullmatch(line.decode("utf-8", "surrogateescape"))
    if found is None:
        raise WireError("a header that is none")
    return found[1], found[2].strip(" \t")


def _length(headers: CIMultiDict[str]) -> int | None:
    texts = set(headers.getall("Content-Length", ()))
    if not texts:
        return None
    text = texts.pop()
    plain = text.isascii() and text.isdigit() and len(text) <= _LENGTH_DIGITS
    if texts or not plain or "Transfer-Encoding" in headers:
        raise WireError("a length that makes no sense")
    return int(text)
