"""An S3 server in memory that does what it is told to do wrong.

Strongly consistent, with conditions, checksums and signatures as S3 has them, and with everything
it holds open to tests. Start as a program it prints its port: `python -m tests.fakes.s3`.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self
from urllib.parse import unquote

from aiohttp import ClientPayloadError, web

from .s3_bucket import Stored
from .s3_faults import Effect, Fault, Step, reset_reply
from .s3_uploads import MultipartUpload, StoredPart, Uploads
from .s3_wire import (
    Credentials,
    Page,
    Reply,
    Request,
    S3Error,
    authenticate,
    error_reply,
    http_date,
    operation_of,
    unchunk,
)

__all__ = [
    "ACCESS_KEY",
    "SECRET_KEY",
    "Credentials",
    "FakeS3",
    "MultipartUpload",
    "Page",
    "Reply",
    "Request",
    "S3Error",
    "Stored",
    "StoredPart",
    "threaded",
]

ACCESS_KEY = "AKIAFAKEFAKEFAKEFAKE"
SECRET_KEY = "fake-secret-key-for-tests-only"

Hook = Callable[[Request], "Effect | Awaitable[Effect | None] | None"]


class _Delivered(web.StreamResponse):
    """An answer that a delivery writes by itself; the connection ends with it."""

    def __init__(self, request: Request, reply: Reply) -> None:
        super().__init__()
        self._request, self._reply = request, reply

    async def prepare(self, request: web.BaseRequest) -> None:
        assert self._reply.delivery is not None
        await self._reply.delivery(self._request, self._reply)
        raise ConnectionResetError  # how aiohttp learns that there is nothing more to send


class FakeS3(Uploads):
    """The server; `async with FakeS3() as fake:` runs it on the test's own loop.

    Attributes:
        objects: bucket -> key -> object.
        uploads: upload id -> upload in progress.
        requests: every request so far.
        faults: what goes wrong; the first that hits decides, later ones may change the rest.
        hook: called with every request before its body is read; may return an effect.
        after_hook: called with every request after its effect, before the answer.
        dead_from: from this request on every connection is reset.
        credentials: whom it knows, by access key.
        check_signatures: whether it looks at signatures at all.
        clock_offset_s: its clock minus the real one.
        page_size: most keys, parts or uploads in a page of a listing.
        min_part_bytes: smallest part but the last; S3 has 5 MiB.
        heeds_conditions: False: If-Match and If-None-Match mean nothing.
        accepts_checksums: False: a request with a checksum header is refused with 400.
        echoes_checksums: False: checksums are verified, and not named in answers.
        wants_declared_checksums: a part may have a checksum only if its upload has declared it.
        list_lag: listings show the keys as they were so many writes ago.
        lifecycle: the rules as XML, or None.
    """

    def __init__(
        self,
        *,
        buckets: Sequence[str] = ("bucket",),
        region: str = "us-east-1",
        page_size: int = 1000,
        min_part_bytes: int = 1,
        check_signatures: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(buckets, region, page_size, min_part_bytes)
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.hook: Hook | None = None
        self.after_hook: Callable[[Request], object] | None = None
        self.dead_from: int | None = None
        self.credentials = {ACCESS_KEY: Credentials(secret=SECRET_KEY)}
        self.check_signatures = check_signatures
        self.port = 0
        self._tls = tls
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None

    # -- life

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = web.Server(self._serve, access_log=None, handler_cancellation=True)
        self._listener = await loop.create_server(
            self._server, "127.0.0.1", self.port, ssl=self._tls, backlog=1024
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._listener is not None
        self._listener.close()
        tasks = [c._task_handler for c in self._server.connections if c._task_handler]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.shutdown(0.01)
        await self._listener.wait_closed()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """What a program needs to find the server."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def on(
        self, operation: str | None, effect: Effect, *, at: int = 1, times: int | None = 1
    ) -> Fault:
        """Add a fault: the `at`-th request of that operation from now on, and `times` in all."""
        fault = Fault(effect, operation, at=at, times=times)
        self.faults.append(fault)
        return fault

    @property
    def operations(self) -> list[str]:
        """The names of the requests so far."""
        return [request.operation for request in self.requests]

    # -- one request

    async def _serve(self, http: web.BaseRequest) -> web.StreamResponse:
        request = self._note(http)
        try:
            reply = await self._reply(request)
        except (ConnectionError, ClientPayloadError, asyncio.IncompleteReadError):
            reply = reset_reply()  # the client has gone
        request.status = reply.status
        reply.headers.setdefault("Date", http_date(self.now()))
        if reply.headers.get("Content-Type") != "text/html":  # a page comes from something else
            reply.headers.setdefault("x-amz-request-id", f"{request.number:016X}")
        if reply.delivery is not None:
            return _Delivered(request, reply)
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)

    def _note(self, http: web.BaseRequest) -> Request:
        path, _, raw_query = http.raw_path.partition("?")
        pairs = (item.partition("=")[::2] for item in raw_query.split("&") if item)
        query = {unquote(name): unquote(value) for name, value in pairs}
        bucket, key = _address(http.headers.get("Host", ""), path)
        operation = operation_of(http.method, key, query)
        number = len(self.requests) + 1
        request = Request(number, operation, http.method, bucket, key, query, http.headers, http)
        self.requests.append(request)
        return request

    async def _reply(self, request: Request) -> Reply:
        if self.dead_from is not None and request.number >= self.dead_from:
            return reset_reply()
        effects = await self._effects(request)
        if early := await _first([effect.begin for effect in effects], request):
            return early
        await _read(request)
        if instead := await _first([effect.instead for effect in effects], request):
            return instead
        reply = self._perform(request, effects)
        request.status = reply.status
        if self.after_hook is not None:
            self.after_hook(request)
        for effect in effects:
            if effect.change is not None:
                await effect.change(request, reply)
        return reply

    async def _effects(self, request: Request) -> list[Effect]:
        hits = [fault.effect for fault in tuple(self.faults) if fault.hits(request)]
        if self.hook is not None:
            told = self.hook(request)
            if isinstance(told, Awaitable):
                told = await told
            if told is not None:
                hits.append(told)
        return hits

    def _perform(self, request: Request, effects: Sequence[Effect]) -> Reply:
        try:
            if self.check_signatures:
                authenticate(request, self.credentials, self.region, self.now())
            if request.operation == "ListObjectsV2":
                return self._list_objects(request, effects)
            return _DOES.get(request.operation, FakeS3._refuse)(self, request)
        except S3Error as exc:
            reply = error_reply(exc, f"/{request.bucket}/{request.key}")
            if request.method == "HEAD":
                reply.body = b""
            return reply

    def _refuse(self, request: Request) -> Reply:
        raise S3Error(501, "NotImplemented")


# How each operation is done; ListObjectsV2 is done where faults can change its pages.
_DOES: dict[str, Callable[[FakeS3, Request], Reply]] = {
    "HeadBucket": FakeS3._head_bucket,
    "CreateBucket": FakeS3._create_bucket,
    "GetBucketLocation": FakeS3._get_bucket_location,
    "GetBucketLifecycleConfiguration": FakeS3._get_bucket_lifecycle_configuration,
    "HeadObject": FakeS3._head_object,
    "GetObject": FakeS3._get_object,
    "PutObject": FakeS3._put_object,
    "DeleteObject": FakeS3._delete_object,
    "CreateMultipartUpload": FakeS3._create_multipart_upload,
    "UploadPart": FakeS3._upload_part,
    "AbortMultipartUpload": FakeS3._abort_multipart_upload,
    "CompleteMultipartUpload": FakeS3._complete_multipart_upload,
    "ListMultipartUploads": FakeS3._list_multipart_uploads,
    "ListParts": FakeS3._list_parts,
}


def _address(host: str, path: str) -> tuple[str, str]:
    """Bucket and key of a request, in path style or with the bucket in the host's name."""
    name = host.rpartition(":")[0] or host
    decoded = unquote(path).removeprefix("/")
    if name.endswith(".localhost"):
        return name.removesuffix(".localhost"), decoded
    bucket, _, key = decoded.partition("/")
    return bucket, key


async def _read(request: Request) -> None:
    """Take the body in, without the encoding that a checksum in a trailer needs."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        assert request.http.transport is not None
        request.http.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    pieces = []
    while piece := await request.http.content.readany():
        pieces.append(piece)
    body = b"".join(pieces)
    if "aws-chunked" in request.headers.get("Content-Encoding", ""):
        body, request.trailers = unchunk(body)
    request.body = body


async def _first(steps: Sequence[Step | None], request: Request) -> Reply | None:
    """The reply of the first step that gives one; later steps are not taken then."""
    for step in steps:
        reply = await step(request) if step is not None else None
        if reply is not None:
            return reply
    return None


# -- in a thread or process of its own


@contextmanager
def threaded(fake: FakeS3) -> Iterator[FakeS3]:
    """Run the server on a loop of its own in a thread, for tests that start programs.

    Its state may be looked at and its faults be set from the test's thread.
    """
    started, ended = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        async with fake:
            loops.append(asyncio.get_running_loop())
            started.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="fake-s3", daemon=True)
    thread.start()
    assert started.wait(10), "the fake server did not start"
    try:
        yield fake
    finally:
        loops[0].call_soon_threadsafe(ended.set)
        thread.join(10)


async def _main() -> None:
    async with FakeS3() as fake:
        print(fake.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
