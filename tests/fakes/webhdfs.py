"""WebHDFS in memory: a namenode that redirects, and a datanode that holds the bytes.

It runs in a thread of its own, for clients that block theirs. As in Hadoop, a plain rename leaves
an existing file alone and only answers "false", and a directory that is not empty is deleted only
when the request says so.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Self
from urllib.parse import quote, unquote

from aiohttp import ClientPayloadError, web

__all__ = ["FakeWebHdfs", "Node"]

_PREFIX = "/webhdfs/v1"
_MOVES_BYTES = ("CREATE", "APPEND", "OPEN")


@dataclass
class Node:
    """A file, or a directory when `data` is None."""

    number: int
    data: bytes | None = None
    modified_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


class _RemoteError(Exception):
    def __init__(self, status: int, name: str, text: str) -> None:
        super().__init__(text)
        self.status, self.name = status, name


class FakeWebHdfs:
    """A cluster of two servers; `host` is that of the namenode, for `webhdfs://host/...`.

    Attributes:
        nodes: files and directories by absolute path.
        requests: operation, path and the server that was asked ("name" or "data"), in order.
        refused: operations that fail, with status and the name of the exception.
        cut: operations whose connection is cut.
    """

    def __init__(self) -> None:
        self._numbers = count(16385)
        self.nodes: dict[str, Node] = {"/": Node(next(self._numbers))}
        self.requests: list[tuple[str, str, str]] = []
        self.refused: dict[str, tuple[int, str]] = {}
        self.cut: set[str] = set()
        self.host = self._data_host = ""
        self._up = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._up.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._loop is not None and self._over is not None:
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def clear(self) -> None:
        """Forget every file, request and fault."""
        self.nodes = {"/": self.nodes["/"]}
        self.requests.clear()
        self.refused.clear()
        self.cut.clear()

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        runners = [await _listening(self._name_node), await _listening(self._data_node)]
        self.host, self._data_host = (f"127.0.0.1:{runner.addresses[0][1]}" for runner in runners)
        self._up.set()
        await self._over.wait()
        for runner in runners:
            await runner.cleanup()

    # -- the two servers

    async def _name_node(self, request: web.BaseRequest) -> web.StreamResponse:
        operation, path = _asked(request)
        self.requests.append((operation, path, "name"))
        try:
            self._fail(request, operation)
            if operation in _MOVES_BYTES:
                if operation != "CREATE":
                    self._file(path)
                query = request.raw_path.partition("?")[2]
                where = f"http://{self._data_host}{_PREFIX}{quote(path)}?{query}"
                return web.Response(status=307, headers={"Location": where})
            return self._answer(operation, path, request)
        except _RemoteError as exc:
            return _refusal(exc)

    async def _data_node(self, request: web.BaseRequest) -> web.StreamResponse:
        operation, path = _asked(request)
        self.requests.append((operation, path, "data"))
        try:
            self._fail(request, f"{operation} data")
            body = b"".join([piece async for piece in request.content.iter_any()])
            return self._move_bytes(operation, path, request, body)
        except _RemoteError as exc:
            return _refusal(exc)
        except ClientPayloadError:
            return web.Response(status=500)

    def _fail(self, request: web.BaseRequest, operation: str) -> None:
        if operation in self.cut and request.transport is not None:
            request.transport.abort()
        if operation in self.refused:
            status, name = self.refused[operation]
            raise _RemoteError(status, name, "told to fail")

    # -- what they do

    def _answer(self, operation: str, path: str, request: web.BaseRequest) -> web.Response:
        match operation:
            case "GETFILESTATUS":
                return web.json_response({"FileStatus": _status("", self._found(path))})
            case "LISTSTATUS":
                return web.json_response({"FileStatuses": {"FileStatus": self._listed(path)}})
            case "MKDIRS":
                self._make_directory(path)
                return web.json_response({"boolean": True})
            case "DELETE":
                recursive = request.query.get("recursive") == "true"
                return web.json_response({"boolean": self._delete(path, recursive=recursive)})
            case "RENAME":
                target = request.query["destination"]
                if "renameoptions" in request.query:
                    self._rename_over(path, target)
                    return web.Response()
                return web.json_response({"boolean": self._rename(path, target)})
        raise _RemoteError(400, "IllegalArgumentException", f"Invalid value for op: {operation}")

    def _move_bytes(
        self, operation: str, path: str, request: web.BaseRequest, body: bytes
    ) -> web.Response:
        if operation == "CREATE":
            node = self.nodes.get(path)
            if node is not None and (node.data is None or request.query.get("overwrite") != "true"):
                raise _RemoteError(403, "FileAlreadyExistsException", f"{path} already exists")
            self._make_directory(_parent(path))
            self.nodes[path] = Node(next(self._numbers), body)
            return web.Response(status=201)
        node = self._file(path)
        data = node.data or b""
        if operation == "APPEND":
            self.nodes[path] = Node(node.number, data + body)
            return web.Response()
        start = int(request.query.get("offset", "0"))
        size = int(request.query.get("length", str(len(data))))
        if start > len(data):
            raise _RemoteError(403, "IOException", f"Offset={start} out of the range [0, ...]")
        return web.Response(body=data[start : start + size])

    def _found(self, path: str) -> Node:
        if path not in self.nodes:
            raise _RemoteError(404, "FileNotFoundException", f"File does not exist: {path}")
        return self.nodes[path]

    def _file(self, path: str) -> Node:
        node = self._found(path)
        if node.data is None:
            raise _RemoteError(404, "FileNotFoundException", f"Path is not a file: {path}")
        return node

    def _listed(self, path: str) -> list[dict[str, Any]]:
        node = self._found(path)
        if node.data is not None:
            return [_status("", node)]
        names = sorted(name for name in self.nodes if name != "/" and _parent(name) == path)
        return [_status(name.rpartition("/")[2], self.nodes[name]) for name in names]

    def _make_directory(self, path: str) -> None:
        above = path
        while above != "/":
            if above in self.nodes and self.nodes[above].data is not None:
                kind = "ParentNotDirectoryException" if above != path else "FileAlreadyExists"
                raise _RemoteError(403, kind, f"{above} (is not a directory)")
            above = _parent(above)
        while path not in self.nodes:
            self.nodes[path] = Node(next(self._numbers))
            path = _parent(path)

    def _delete(self, path: str, *, recursive: bool) -> bool:
        below = [name for name in self.nodes if name.startswith(path.rstrip("/") + "/")]
        if below and not recursive:
            raise _RemoteError(
                403, "PathIsNotEmptyDirectoryException", f"`{path} is non empty': not empty"
            )
        for name in below:
            del self.nodes[name]
        return self.nodes.pop(path, None) is not None

    def _rename(self, path: str, target: str) -> bool:
        if target in self.nodes and self.nodes[target].data is None:
            target = f"{target.rstrip('/')}/{path.rpartition('/')[2]}"
        if path not in self.nodes or target in self.nodes or _parent(target) not in self.nodes:
            return False
        self._carry(path, target)
        return True

    def _rename_over(self, path: str, target: str) -> None:
        self._found(path)
        there, parent = self.nodes.get(target), self._found(_parent(target))
        if parent.data is not None:
            raise _RemoteError(403, "ParentNotDirectoryException", f"{target}: not a directory")
        if there is not None and there.data is None:
            raise _RemoteError(403, "IOException", f"rename destination directory: {target}")
        self._carry(path, target)

    def _carry(self, path: str, target: str) -> None:
        for name in [n for n in self.nodes if n == path or n.startswith(path + "/")]:
            self.nodes[target + name[len(path) :]] = self.nodes.pop(name)


async def _listening(handler: Callable[[web.BaseRequest], Any]) -> web.ServerRunner:
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


def _asked(request: web.BaseRequest) -> tuple[str, str]:
    path = unquote(request.raw_path.partition("?")[0].removeprefix(_PREFIX))
    return request.query.get("op", "").upper(), "/" + path.strip("/")


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _status(suffix: str, node: Node) -> dict[str, Any]:
    return {
        "pathSuffix": suffix,
        "type": "DIRECTORY" if node.data is None else "FILE",
        "length": len(node.data or b""),
        "fileId": node.number,
        "modificationTime": node.modified_ms,
        "accessTime": node.modified_ms,
        "owner": "hdfs",
        "group": "hdfs",
        "permission": "755",
        "blockSize": 128 * 1024 * 1024,
        "replication": 1,
    }


def _refusal(exc: _RemoteError) -> web.Response:
    error = {"exception": exc.name, "javaClassName": f"org.apache.{exc.name}", "message": str(exc)}
    return web.json_response({"RemoteException": error}, status=exc.status)
