"""What a bucket holds, page by page; a server that leads in circles is found out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import unquote_plus

from ...errors import IntegrityError, quote
from ..objects import ObjectInfo, Upload
from .connection import Connection

__all__ = ["list_objects", "list_uploads", "unquoted"]

_MAX_EMPTY_PAGES = 100
_HELD = ("Contents", "CommonPrefixes", "Uploads")

# Parameter of the next request -> element of the answer that it is taken from.
_V2_MARKERS = {"ContinuationToken": "NextContinuationToken"}
_UPLOAD_MARKERS = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}


async def list_objects(
    connection: Connection, what: str, prefix: str, *, delimiter: str = ""
) -> AsyncIterator[ObjectInfo]:
    """Objects below `prefix` by key; with a delimiter, what is deeper as one name each.

    Raises:
        IntegrityError: the listing repeats itself, is out of order, or holds something else.
    """
    asked = {"Prefix": prefix} | ({"Delimiter": delimiter} if delimiter else {})
    last: str | None = None
    async for page in _pages(connection, what, "list_objects_v2", asked, _V2_MARKERS):
        infos = [_listed(item) for item in page.get("Contents", ())]
        infos += [ObjectInfo(i["Prefix"], 0, "") for i in page.get("CommonPrefixes", ())]
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
    asked = {"Prefix": prefix, "EncodingType": "url"}
    seen: set[Upload] = set()
    async for page in _pages(connection, what, "list_multipart_uploads", asked, _UPLOAD_MARKERS):
        for item in page.get("Uploads", ()):
            upload = Upload(_decoded(page, item["Key"]), item["UploadId"])
            if upload in seen:
                raise IntegrityError(f"{what}: the listing repeats itself")
            seen.add(upload)
            yield upload


async def _pages(
    connection: Connection,
    what: str,
    operation: str,
    asked: Mapping[str, str],
    markers: Mapping[str, str],
) -> AsyncIterator[Any]:
    """Page after page of a listing, of which each begins where the last one ended."""
    seen: set[tuple[str, ...]] = set()
    at: dict[str, str] = {}
    empty = 0
    while True:
        async with connection.sdk(what) as client:
            call = getattr(client, operation)
            page = await call(Bucket=connection.bucket, **asked, **at)
        yield page
        if not page.get("IsTruncated"):
            return
        at = {name: page.get(element) or "" for name, element in markers.items()}
        if "KeyMarker" in at:
            at["KeyMarker"] = _decoded(page, at["KeyMarker"])
        place = tuple(at.values())
        empty = 0 if any(page.get(name) for name in _HELD) else empty + 1
        if place in seen or not any(place) or empty > _MAX_EMPTY_PAGES:
            raise IntegrityError(f"{what}: the listing repeats itself and does not end")
        seen.add(place)


def unquoted(tag: str) -> str:
    """A tag without the quotes around it; a weak one stays as it is."""
    return tag if tag.startswith("W/") else tag.removeprefix('"').removesuffix('"')


def _listed(item: Mapping[str, Any]) -> ObjectInfo:
    modified = item.get("LastModified")
    at = modified.timestamp() if modified else 0.0
    return ObjectInfo(item["Key"], item.get("Size", 0), unquoted(item.get("ETag", "")), at)


def _decoded(page: Mapping[str, Any], name: str) -> str:
    """A name in a list of uploads as it is; the SDK itself does this only for lists of objects."""
    return unquote_plus(name) if page.get("EncodingType") == "url" else name
