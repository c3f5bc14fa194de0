"""What a bucket holds, page by page; a server that leads in circles is found out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from urllib.parse import quote as percent
from urllib.parse import unquote_plus, urlencode
from xml.etree import ElementTree

from ...errors import IntegrityError, TransientError, quote
from ..http import Answer, http_time
from ..objects import ObjectInfo, Upload
from .answers import not_s3
from .connection import Connection

__all__ = ["list_objects", "list_uploads", "unquoted"]

_MAX_EMPTY_PAGES = 100
_HELD = ("Contents", "CommonPrefixes", "Upload")

# What is asked for, and the document that answers it.
_OBJECTS = ("list-type=2", "ListBucketResult")
_UPLOADS = ("uploads", "ListMultipartUploadsResult")

# Parameter of the next request -> element of the answer that it is taken from.
_V2_MARKERS = {"continuation-token": "NextContinuationToken"}
_UPLOAD_MARKERS = {"key-marker": "NextKeyMarker", "upload-id-marker": "NextUploadIdMarker"}


async def list_objects(
    connection: Connection, what: str, prefix: str, *, delimiter: str = ""
) -> AsyncIterator[ObjectInfo]:
    """Objects below `prefix` by key; with a delimiter, what is deeper as one name each.

    Raises:
        IntegrityError: the listing repeats itself, is out of order, or holds something else.
    """
    asked = {"prefix": prefix} | ({"delimiter": delimiter} if delimiter else {})
    last: str | None = None
    async for page in _pages(connection, what, _OBJECTS, asked, _V2_MARKERS):
        infos = [page.listed(item) for item in page.root.iterfind("{*}Contents")]
        below = page.root.iterfind("{*}CommonPrefixes")
        infos += [ObjectInfo(page.name(item, "Prefix"), 0, "") for item in below]
        for info in sorted(infos) if delimiter else infos:
            if not info.key.startswith(prefix):
                raise IntegrityError(f"{what}: it holds {quote(info.key)}, which is elsewhere")
            if last is not None and info.key <= last:
                raise IntegrityError(f"{what}: the listing repeats itself or is out of order")
            last = info.key
            yield info


async def list_uploads(connection: Connection, what: str, prefix: str) -> AsyncIterator[Upload]:
    """Uploads in progress below `prefix`.

    Raises:
        IntegrityError: the listing repeats itself.
    """
    seen: set[Upload] = set()
    async for page in _pages(connection, what, _UPLOADS, {"prefix": prefix}, _UPLOAD_MARKERS):
        for item in page.root.iterfind("{*}Upload"):
            upload = Upload(page.name(item, "Key"), page.text(item, "UploadId"))
            if upload in seen:
                raise IntegrityError(f"{what}: the listing repeats itself")
            seen.add(upload)
            yield upload


async def _pages(
    connection: Connection,
    what: str,
    kind: tuple[str, str],
    asked: Mapping[str, str],
    markers: Mapping[str, str],
) -> AsyncIterator[_Page]:
    """Page after page of a listing, of which each begins where the last one ended."""
    seen: set[tuple[str, ...]] = set()
    at: dict[str, str] = {}
    empty = 0
    while True:
        parameters = {**asked, **at, "encoding-type": "url"}
        query = urlencode(parameters, safe="-._~", errors="surrogateescape", quote_via=percent)
        answer = await connection.ask(what, f"{kind[0]}&{query}")
        page = _Page(what, _parsed(what, answer))
        if page.kind == "Error":  # of a server that had begun to answer before it failed
            raise connection.error(what, answer._replace(status=500))
        if page.kind != kind[1]:
            raise not_s3(what, answer)
        yield page
        if not page.is_truncated:
            return
        at = {name: page.text(page.root, element, "") for name, element in markers.items()}
        if "key-marker" in at:
            at["key-marker"] = page.name(page.root, "NextKeyMarker", "")
        place = tuple(at.values())
        empty = 0 if any(page.root.find(f"{{*}}{n}") is not None for n in _HELD) else empty + 1
        if place in seen or not any(place) or empty > _MAX_EMPTY_PAGES:
            raise IntegrityError(f"{what}: the listing repeats itself and does not end")
        seen.add(place)


def _parsed(what: str, answer: Answer) -> ElementTree.Element:
    # It is UTF-8 whatever it says; white space that kept the connection open may come before.
    parser = ElementTree.XMLParser(encoding="utf-8")
    try:
        return ElementTree.fromstring(bytes(answer.body).lstrip(), parser)
    except ElementTree.ParseError:
        raise TransientError(f"{what}: the answer is not a whole document") from None


class _Page:
    """One answer of a server; what it lacks is an error, so that no listing is too short.

    Attributes:
        kind: the name of the document.
    """

    def __init__(self, what: str, root: ElementTree.Element) -> None:
        self.root, self._what = root, what
        self.kind = root.tag.rpartition("}")[2]
        self._is_encoded = self.text(root, "EncodingType", "") == "url"

    @property
    def is_truncated(self) -> bool:
        """Whether there are more pages."""
        said = self.text(self.root, "IsTruncated", "").strip().lower()
        if said not in ("true", "false", ""):
            raise self._incomplete()
        return said == "true"

    def text(self, item: ElementTree.Element, name: str, default: str | None = None) -> str:
        """What an element says; TransientError if it is missing and there is no `default`."""
        found = item.findall(f"{{*}}{name}")
        if len(found) > 1 or (not found and default is None):
            raise self._incomplete()
        return (found[0].text or "") if found else (default or "")

    def _incomplete(self) -> TransientError:
        return TransientError(f"{self._what}: the answer is not a whole document")

    def name(self, item: ElementTree.Element, element: str, default: str | None = None) -> str:
        """A name of an object as it is: servers encode what XML cannot hold."""
        found = self.text(item, element, default)
        return unquote_plus(found) if self._is_encoded else found

    def listed(self, item: ElementTree.Element) -> ObjectInfo:
        """What is said of one object."""
        size, modified = self.text(item, "Size", "0"), self.text(item, "LastModified", "").strip()
        at = _seconds(modified) if modified else 0.0
        if at is None or not (size.isascii() and size.isdecimal()):
            raise self._incomplete()
        return ObjectInfo(
            self.name(item, "Key"), int(size), unquoted(self.text(item, "ETag", "")), at
        )


def _seconds(text: str) -> float | None:
    """Unix seconds of a time in ISO 8601, in UTC where it does not say where, or as in HTTP."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return http_time(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def unquoted(tag: str) -> str:
    """A tag without the quotes around it; a weak one stays as it is."""
    return tag if tag.startswith("W/") else tag.removeprefix('"').removesuffix('"')
