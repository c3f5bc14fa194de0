"""Google Cloud Storage in memory: the JSON API, a token server, and faults on demand.

What it holds is plain Python: `objects`, `sessions`, `requests`. It enforces what the real service
documents, among that preconditions, checksums and the 256 KiB granularity of resumable uploads.
As a program it serves until it is killed: `python -m tests.fakes.gcs` prints its URL.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ssl import SSLContext
from typing import Any, Self

from aiohttp import web

from .gcs_calls import (
    Call,
    CutError,
    Seen,
    arriving,
    body_of,
    refusal,
    resume_incomplete,
    route,
    seen,
)
from .gcs_faults import Fault, omit_items, repeat_items, wrong_crc32c, wrong_size
from .gcs_wire import (
    GRANULE_BYTES,
    MAX_SOURCES,
    Json,
    RefusedError,
    Session,
    Stored,
    byte_range,
    content_range,
    hashes,
    keep,
    listed,
    media_headers,
    only_fields,
    source_of,
    two_parts,
)
from .gcs_wire import check as _check

__all__ = [
    "GRANULE_BYTES",
    "FakeGcs",
    "Fault",
    "Seen",
    "Session",
    "Stored",
    "omit_items",
    "repeat_items",
    "wrong_crc32c",
    "wrong_size",
]


class FakeGcs:
    """One server. Operations: media, multipart, start, chunk, status, cancel (uploads); get, read,
    list, delete, patch, compose, rewrite, bucket, buckets; token.

    Attributes:
        objects: by name, those of the first bucket; `buckets` has all.
        sessions: resumable uploads by id.
        requests: what was asked, in order.
        faults: those at work; add to it at any time.
        tokens: accepted bearer tokens; None: nobody is asked for one.
        issued: tokens handed out by the token server, each accepted when `tokens` is a set.
        token_expires_in_s: what the token server says of those.
        issue_expired: hand out tokens that are not accepted.
        denied: names that nobody may touch.
        ignores_conditions: as some emulators do.
        bucket_resource: fields shown for every bucket, such as "lifecycle".
    """

    def __init__(self, *buckets: str, ssl_context: SSLContext | None = None) -> None:
        self.buckets: dict[str, dict[str, Stored]] = {name: {} for name in buckets or ("bucket",)}
        self.sessions: dict[str, Session] = {}
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.tokens: set[str] | None = None
        self.issued: list[str] = []
        self.token_expires_in_s = 3600
        self.issue_expired = False
        self.denied: set[str] = set()
        self.ignores_conditions = False
        self.bucket_resource: Json = {"location": "EU", "storageClass": "STANDARD"}
        self.url = ""
        self._ssl = ssl_context
        self._generation = int(time.time() * 1e6)
        self._over = asyncio.Event()
        self._runner: web.ServerRunner | None = None

    @property
    def objects(self) -> dict[str, Stored]:
        return next(iter(self.buckets.values()))

    @property
    def environ(self) -> dict[str, str]:
        """What a program needs to find the server, as an emulator."""
        return {"STORAGE_EMULATOR_HOST": self.url}

    def put(self, name: str, data: bytes, *, bucket: str = "", **more: Any) -> Stored:
        """Store an object as somebody else would."""
        bucket = bucket or next(iter(self.buckets))
        self._generation += 1
        stored = Stored(name, data, self._generation, bucket=bucket, updated_at=time.time(), **more)
        self.buckets[bucket][name] = stored
        return stored

    def credentials(self) -> Json:
        """The content of a file for GOOGLE_APPLICATION_CREDENTIALS that leads to this server."""
        return {
            "type": "authorized_user",
            "client_id": "fake",
            "client_secret": "fake-client-secret",
            "refresh_token": "fake-refresh-token",
            "token_uri": f"{self.url}/token",
        }

    def count(self, operation: str) -> int:
        """How often that was asked."""
        return sum(seen.operation == operation for seen in self.requests)

    async def start(self, port: int = 0) -> None:
        """Listen on 127.0.0.1; 0 takes a free port."""
        server = web.Server(self._serve, auto_decompress=False)
        self._runner = web.ServerRunner(server, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=self._ssl).start()
        scheme = "https" if self._ssl else "http"
        self.url = f"{scheme}://127.0.0.1:{self._runner.addresses[0][1]}"

    async def aclose(self) -> None:
        """Cut every connection."""
        self._over.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    # -- every request

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        call = route(request)
        call.faults = [fault for fault in self.faults if fault.hits(call.operation, call.name)]
        number = len(self.requests)
        self.requests.append(seen(call, 0, answered=False))
        for fault in call.faults:
            waits = fault.before(number + 1) if fault.before else None
            if waits is not None:
                await waits
        try:
            answer = await self._answer(call)
            self.requests[number] = seen(call, answer.status, answered=not call.first("lost"))
            if not call.first("lost"):
                return await self._send(call, answer)
        except CutError:
            pass
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    async def _answer(self, call: Call) -> web.Response:
        instead = next((fault for fault in call.faults if fault.status or fault.drop), None)
        try:
            if instead is None:
                self._admit(call)
                return await _HANDLERS[call.operation](self, call)
            if call.operation == "chunk":
                await self._keep_some(call)
        except RefusedError as exc:
            return refusal(call, exc)
        if instead.drop:
            raise CutError
        await body_of(call)
        if instead.body:
            kind = "text/html" if instead.body.startswith("<") else "text/plain"
            headers = instead.headers
            return web.Response(
                status=instead.status, text=instead.body, content_type=kind, headers=headers
            )
        answer = refusal(call, RefusedError(instead.status, "told to fail"))
        answer.headers.update(instead.headers)
        return answer

    def _admit(self, call: Call) -> None:
        if call.operation == "token":
            return
        scheme, _, token = call.request.headers.get("Authorization", "").partition(" ")
        # The URI of a session is its own permission.
        open_door = self.tokens is None or call.operation in ("chunk", "status", "cancel")
        if not open_door and (scheme != "Bearer" or token not in (self.tokens or ())):
            raise RefusedError(401, "Invalid Credentials")
        if call.operation == "unknown":
            raise RefusedError(404, "Not Found")
        if call.bucket and call.bucket not in self.buckets:
            raise RefusedError(404, "The specified bucket does not exist.")
        if call.name in self.denied:
            raise RefusedError(403, "the caller does not have storage.objects access")

    async def _send(self, call: Call, answer: web.Response) -> web.StreamResponse:
        body = bytes(answer.body) if isinstance(answer.body, bytes | bytearray) else b""
        flip = call.bytes_of("flip")
        if flip is not None:
            wrong = bytearray(body)
            wrong[flip // 8] ^= 1 << flip % 8
            body = bytes(wrong)
            answer.body = body
        stall = call.bytes_of("stall")
        cut = call.bytes_of("truncate") if stall is None else stall
        if cut is None:
            return answer
        stream = web.StreamResponse(status=answer.status, headers=answer.headers)
        stream.content_length = len(body)
        await stream.prepare(call.request)
        await stream.write(body[:cut])
        if stall is not None:
            await self._over.wait()
        raise CutError

    def _check(self, stored: Stored | None, query: Mapping[str, str | None]) -> None:
        if not self.ignores_conditions:
            _check(stored, query)

    # -- uploads

    async def _media(self, call: Call) -> web.Response:
        data = await body_of(call)
        headers = call.request.headers
        resource: Json = {"contentType": headers.get("Content-Type", "application/octet-stream")}
        if "contentEncoding" in call.query:
            resource["contentEncoding"] = call.query["contentEncoding"]
        resource.update(hashes(headers))
        return self._json(call, self._insert(call.bucket, call.name, call.query, resource, data))

    async def _multipart(self, call: Call) -> web.Response:
        resource, data = two_parts(call.request.headers["Content-Type"], await body_of(call))
        call.name = str(resource.get("name", call.name))
        if call.name in self.denied:
            raise RefusedError(403, "the caller does not have storage.objects access")
        resource.update(hashes(call.request.headers))
        return self._json(call, self._insert(call.bucket, call.name, call.query, resource, data))

    async def _start(self, call: Call) -> web.Response:
        resource = json.loads(await body_of(call) or b"{}")
        call.name = str(resource.get("name", call.name))
        if not call.name:
            raise RefusedError(400, "Required object name")
        self._check(self.buckets[call.bucket].get(call.name), call.query)
        upload_id = secrets.token_urlsafe(24)
        declared = call.request.headers.get("X-Upload-Content-Length")
        session = Session(call.bucket, call.name, dict(call.query), resource)
        session.total = None if declared is None else int(declared)
        session.resource.setdefault(
            "contentType",
            call.request.headers.get("X-Upload-Content-Type", "application/octet-stream"),
        )
        self.sessions[upload_id] = session
        path = f"/upload/storage/v1/b/{call.bucket}/o?uploadType=resumable&upload_id={upload_id}"
        return web.Response(headers={"Location": self.url + path, "X-GUploader-UploadID": "x"})

    def _session(self, call: Call) -> Session:
        session = self.sessions.get(call.query["upload_id"])
        if session is None:
            raise RefusedError(404, "no such upload")
        session.expired = call.first("expire") or session.expired
        if session.expired:
            raise RefusedError(session.expired, "the upload is over")
        call.name = session.name
        return session

    async def _chunk(self, call: Call) -> web.Response:
        session = self._session(call)
        if session.done is not None:
            await body_of(call)
            return self._json(call, session.done)
        start, end, total = content_range(call.request.headers)
        if None not in (total, session.total) and total != session.total:
            raise RefusedError(400, "the total is not the one declared")
        if start > len(session.received):
            raise RefusedError(400, "there is a gap before this chunk")
        data, whole = await arriving(call)
        if end is not None and whole and len(data) != end - start:
            raise RefusedError(400, "the length is not that of the range")
        last = whole and (end is None or end == total) and call.bytes_of("keep") is None
        keep(session, start, data, None if last else call.bytes_of("keep"), last=last)
        if not whole:
            raise CutError
        return self._finish(call, session) if last else resume_incomplete(call, session)

    async def _keep_some(self, call: Call) -> None:
        """What of a chunk arrives before something else happens."""
        session = self._session(call)
        start, _, _ = content_range(call.request.headers)
        size = call.bytes_of("keep")
        data, _ = await arriving(call, limit=size if call.first("drop") else None)
        keep(session, start, data, size or 0, last=False)

    async def _status(self, call: Call) -> web.Response:
        session = self._session(call)
        total = call.request.headers["Content-Range"].rpartition("/")[2]
        if session.done is not None:
            return self._json(call, session.done)
        if total != "*" and int(total) == len(session.received):
            return self._finish(call, session)
        return resume_incomplete(call, session)

    async def _cancel(self, call: Call) -> web.Response:
        self._session(call).expired = 499
        return web.Response(status=499)

    def _finish(self, call: Call, session: Session) -> web.Response:
        resource = {**session.resource, **hashes(call.request.headers)}
        data = bytes(session.received)
        session.done = self._insert(session.bucket, session.name, session.query, resource, data)
        return self._json(call, session.done)

    def _insert(
        self, bucket: str, name: str, query: Mapping[str, str], resource: Json, data: bytes
    ) -> Json:
        if not name or len(name.encode()) > 1024 or "\n" in name or "\r" in name:
            raise RefusedError(400, "Invalid object name")
        self._check(self.buckets[bucket].get(name), query)
        made = Stored(name, data, 0)
        if resource.get("crc32c", made.crc32c) != made.crc32c:
            raise RefusedError(400, "Provided CRC32C does not match the calculated one")
        if resource.get("md5Hash", made.md5) != made.md5:
            raise RefusedError(400, "Provided MD5 does not match the calculated one")
        stored = self.put(
            name,
            data,
            bucket=bucket,
            content_type=resource.get("contentType", "application/octet-stream"),
            content_encoding=resource.get("contentEncoding", ""),
            metadata=resource.get("metadata", {}),
        )
        return stored.resource()

    # -- objects

    def _found(self, call: Call) -> Stored:
        stored = self.buckets[call.bucket].get(call.name)
        wanted = call.query.get("generation")
        if stored is None or wanted not in (None, str(stored.generation)):
            raise RefusedError(404, f"No such object: {call.bucket}/{call.name}")
        self._check(stored, call.query)
        return stored

    async def _get(self, call: Call) -> web.Response:
        return self._json(call, self._found(call).resource())

    async def _read(self, call: Call) -> web.Response:
        stored = self._found(call)
        asked = call.request.headers
        headers = media_headers(stored)
        data, status = stored.data, 200
        if stored.content_encoding == "gzip" and "gzip" not in asked.get("Accept-Encoding", ""):
            data = gzip.decompress(data)  # and then a Range means nothing
        else:
            if stored.content_encoding:
                headers["Content-Encoding"] = stored.content_encoding
            start, end = byte_range(asked.get("Range"), len(data))
            if "Range" in asked:
                status = 206
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            data = data[start:end]
        return web.Response(status=status, body=data, headers=headers)

    async def _delete(self, call: Call) -> web.Response:
        self._found(call)
        del self.buckets[call.bucket][call.name]
        return web.Response(status=204)

    async def _patch(self, call: Call) -> web.Response:
        stored = self._found(call)
        stored.metadata.update(json.loads(await body_of(call)).get("metadata", {}))
        return self._json(call, stored.resource())

    async def _compose(self, call: Call) -> web.Response:
        asked = json.loads(await body_of(call))
        sources = asked.get("sourceObjects", [])
        if not 1 <= len(sources) <= MAX_SOURCES:
            raise RefusedError(400, f"The number of sources must be 1 to {MAX_SOURCES}")
        there = self.buckets[call.bucket]
        parts = [source_of(there, source) for source in sources]
        data = b"".join(part.data for part in parts)
        resource = asked.get("destination", {})
        self._insert(call.bucket, call.name, call.query, resource, data)
        there[call.name].components = sum(part.components or 1 for part in parts)
        return self._json(call, there[call.name].resource())

    async def _rewrite(self, call: Call) -> web.Response:
        wanted = {"generation": call.query.get("sourceGeneration")}
        wanted["objectPreconditions"] = {  # type: ignore[assignment]
            "ifGenerationMatch": call.query.get("ifSourceGenerationMatch")
        }
        source = source_of(self.buckets[call.bucket], {"name": call.name, **wanted})
        bucket, name = call.target
        if bucket not in self.buckets:
            raise RefusedError(404, "The specified bucket does not exist.")
        kept: Json = {"contentType": source.content_type, "metadata": source.metadata}
        resource = {**kept, **json.loads(await body_of(call) or b"{}")}
        made = self._insert(bucket, name, call.query, resource, source.data)
        size = made["size"]
        done = {"kind": "storage#rewriteResponse", "done": True, "resource": made}
        return self._json(call, {**done, "objectSize": size, "totalBytesRewritten": size})

    async def _list(self, call: Call) -> web.Response:
        return self._json(call, listed(self.buckets[call.bucket], call.query))

    async def _bucket(self, call: Call) -> web.Response:
        return self._json(call, {"name": call.bucket, "id": call.bucket, **self.bucket_resource})

    async def _buckets(self, call: Call) -> web.Response:
        return self._json(call, {"items": [{"id": name, "name": name} for name in self.buckets]})

    async def _token(self, call: Call) -> web.Response:
        metadata = "computeMetadata" in call.request.raw_path
        if metadata and call.request.headers.get("Metadata-Flavor") != "Google":
            raise RefusedError(403, "Missing Metadata-Flavor:Google header.")
        await body_of(call)
        token = f"fake-token-{len(self.issued) + 1}"
        self.issued.append(token)
        if self.tokens is not None and not self.issue_expired:
            self.tokens.add(token)
        shown = {"access_token": token, "expires_in": self.token_expires_in_s}
        answer = self._json(call, {**shown, "token_type": "Bearer"})
        answer.headers["Metadata-Flavor"] = "Google"
        return answer

    def _json(self, call: Call, answer: Json) -> web.Response:
        alter = call.first("alter")
        return web.json_response(only_fields(alter(answer) if alter else answer, call.query))


_HANDLERS: dict[str, Callable[[FakeGcs, Call], Awaitable[web.Response]]] = {
    operation: getattr(FakeGcs, f"_{operation}")
    for operation in (
        *("media", "multipart", "start", "chunk", "status", "cancel", "get", "read", "delete"),
        *("patch", "compose", "rewrite", "list", "bucket", "buckets", "token"),
    )
}


async def _main(arguments: Sequence[str]) -> None:
    async with FakeGcs(*arguments) as fake:
        print(fake.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
