"""Peers that are libraries for single objects, driven as one would: 32 tasks, parts of 16 MiB."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from tests.servers import ACCESS_KEY, SECRET_KEY

from .work import MIB, Job

__all__ = ["bare_client", "botocore_client", "move", "obstore_job"]

TASKS = 32
PART_BYTES = 16 * MIB
T = TypeVar("T")


class Objects(Protocol):
    """What `move` needs of a client."""

    async def put(self, key: str, data: bytes) -> None: ...
    async def create(self, key: str) -> str: ...
    async def part(self, key: str, upload: str, number: int, data: bytes) -> str: ...
    async def complete(self, key: str, upload: str, tags: Mapping[int, str]) -> None: ...
    async def get(self, key: str, start: int, size: int) -> bytes: ...
    async def sizes(self, prefix: str) -> dict[str, int]: ...


async def each(items: Iterable[T], action: Callable[[T], Awaitable[None]]) -> None:
    """A fixed number of tasks takes the items from one row."""
    row = iter(items)

    async def work() -> None:
        for item in row:
            await action(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(work())


async def move(job: Job, objects: Objects) -> None:
    """Do a job; nothing is verified, and nothing is written but the objects."""
    await (_down if job.action == "down" else _up)(job, objects)


async def _up(job: Job, objects: Objects) -> None:
    paths = [path for path in Path(job.local).rglob("*") if path.is_file()]
    sizes = {path: path.stat().st_size for path in paths}
    keys = {path: f"{job.key}/{path.relative_to(job.local).as_posix()}" for path in paths}
    large = [path for path in paths if sizes[path] > PART_BYTES]
    uploads = {path: await objects.create(keys[path]) for path in large}
    tags: dict[Path, dict[int, str]] = {path: {} for path in large}

    async def send(item: tuple[Path, int]) -> None:
        path, number = item
        if path not in uploads:
            await objects.put(keys[path], path.read_bytes())
            return
        data = await asyncio.to_thread(_read, path, number * PART_BYTES)
        tag = await objects.part(keys[path], uploads[path], number + 1, data)
        tags[path][number + 1] = tag

    await each(_parts(sizes), send)
    for path in large:
        await objects.complete(keys[path], uploads[path], tags[path])


async def _down(job: Job, objects: Objects) -> None:
    sizes = await objects.sizes(f"{job.key}/")
    targets = {key: Path(job.local) / key.removeprefix(f"{job.key}/") for key in sizes}
    for folder in {target.parent for target in targets.values()}:
        folder.mkdir(parents=True, exist_ok=True)

    async def fetch(item: tuple[str, int]) -> None:
        key, number = item
        start = number * PART_BYTES
        size = min(PART_BYTES, sizes[key] - start)
        data = await objects.get(key, start, size)
        if size < MIB:
            targets[key].write_bytes(data)
        else:
            await asyncio.to_thread(_write, targets[key], start, data)

    await each(_parts(sizes), fetch)


def _parts(sizes: Mapping[T, int]) -> list[tuple[T, int]]:
    """Items and the numbers of their parts, the largest item first."""
    order = sorted(sizes, key=lambda item: -sizes[item])
    return [(i, n) for i in order for n in range(max(1, -(-sizes[i] // PART_BYTES)))]


def _read(path: Path, start: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), PART_BYTES, start)


def _write(path: Path, start: int, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.pwrite(file, data, start)
    finally:
        os.close(file)


# -- aiohttp with asyncsync's signatures: the floor


@contextlib.asynccontextmanager
async def bare_client(job: Job) -> AsyncIterator[Objects]:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=TASKS)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        yield _Bare(session, f"{job.url}/{job.bucket}")


class _Bare:
    def __init__(self, session: Any, base: str) -> None:
        from asyncsync.secrets import Secret
        from asyncsync.storage.s3.signing import Credentials, Scope, sign

        self._session, self._base, self._sign = session, base, sign
        self._who = Credentials(ACCESS_KEY, Secret(SECRET_KEY))
        self._scope = Scope("us-east-1")

    async def _send(
        self, method: str, target: str, data: bytes | None = None, **headers: str
    ) -> tuple[Mapping[str, str], bytes]:
        from yarl import URL

        url = self._base + target
        signed = self._sign(
            method, url, headers, credentials=self._who, scope=self._scope, at=time.time()
        )
        where = URL(url, encoded=True)
        async with self._session.request(method, where, data=data, headers=signed) as answer:
            answer.raise_for_status()
            return answer.headers, await answer.read()

    async def put(self, key: str, data: bytes) -> None:
        await self._send("PUT", f"/{key}", data)

    async def create(self, key: str) -> str:
        _, body = await self._send("POST", f"/{key}?uploads=")
        return _element(body, "UploadId")

    async def part(self, key: str, upload: str, number: int, data: bytes) -> str:
        query = f"partNumber={number}&uploadId={quote(upload, safe='')}"
        headers, _ = await self._send("PUT", f"/{key}?{query}", data)
        return headers["ETag"]

    async def complete(self, key: str, upload: str, tags: Mapping[int, str]) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{tags[number]}</ETag></Part>"
            for number in sorted(tags)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        await self._send("POST", f"/{key}?uploadId={quote(upload, safe='')}", body)

    async def get(self, key: str, start: int, size: int) -> bytes:
        wanted = {"Range": f"bytes={start}-{start + size - 1}"} if size else {}
        return (await self._send("GET", f"/{key}", None, **wanted))[1]

    async def sizes(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        more = ""
        while True:
            query = f"list-type=2&prefix={quote(prefix, safe='')}{more}"
            _, body = await self._send("GET", f"?{query}")
            for item in re.findall(rb"<Contents>.*?</Contents>", body, re.DOTALL):
                found[_element(item, "Key")] = int(_element(item, "Size"))
            if b"<IsTruncated>true" not in body:
                return found
            token = _element(body, "NextContinuationToken")
            more = f"&continuation-token={quote(token, safe='')}"


def _element(body: bytes, name: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>".encode(), body)
    assert found is not None, body[:200]
    return found[1].decode()


# -- aiobotocore


@contextlib.asynccontextmanager
async def botocore_client(job: Job) -> AsyncIterator[Objects]:
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    config = AioConfig(max_pool_connections=TASKS)
    async with get_session().create_client("s3", endpoint_url=job.url, config=config) as client:
        yield _Botocore(client, job.bucket)


class _Botocore:
    def __init__(self, client: Any, bucket: str) -> None:
        self._client, self._bucket = client, bucket

    async def put(self, key: str, data: bytes) -> None:
        await self._client.put_object(Bucket=self._bucket, Key=key, Body=data)

    async def create(self, key: str) -> str:
        answer = await self._client.create_multipart_upload(Bucket=self._bucket, Key=key)
        return str(answer["UploadId"])

    async def part(self, key: str, upload: str, number: int, data: bytes) -> str:
        answer = await self._client.upload_part(
            Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=data
        )
        return str(answer["ETag"])

    async def complete(self, key: str, upload: str, tags: Mapping[int, str]) -> None:
        parts = [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]
        await self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )

    async def get(self, key: str, start: int, size: int) -> bytes:
        wanted = {"Range": f"bytes={start}-{start + size - 1}"} if size else {}
        answer = await self._client.get_object(Bucket=self._bucket, Key=key, **wanted)
        async with answer["Body"] as body:
            return bytes(await body.read())

    async def sizes(self, prefix: str) -> dict[str, int]:
        pages = self._client.get_paginator("list_objects_v2")
        found: dict[str, int] = {}
        async for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
            found |= {item["Key"]: item["Size"] for item in page.get("Contents", ())}
        return found


# -- obstore, which splits large objects itself


async def obstore_job(job: Job) -> None:
    obstore: Any = import_module("obstore")  # loaded by name: not there where types are checked
    store = import_module("obstore.store").S3Store(
        job.bucket,
        endpoint=job.url,
        region="us-east-1",
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        client_options={"allow_http": True},
    )
    root = Path(job.local)

    async def send(path: Path) -> None:
        await obstore.put_async(store, f"{job.key}/{path.relative_to(root).as_posix()}", path)

    async def fetch(item: Mapping[str, Any]) -> None:
        target = root / item["path"].removeprefix(f"{job.key}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        answer = await obstore.get_async(store, item["path"])
        with target.open("wb") as file:
            async for piece in answer.stream():
                file.write(piece)

    if job.action == "down":
        listed = await obstore.list(store, job.key).collect_async()
        await each(sorted(listed, key=lambda item: -item["size"]), fetch)
    else:
        paths = [path for path in root.rglob("*") if path.is_file()]
        await each(sorted(paths, key=lambda path: -path.stat().st_size), send)
