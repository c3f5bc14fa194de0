"""Files of any file system that fsspec knows, taken for objects: blocking calls, for a thread.

A file system that can rename writes each object beside its place and moves it there. One that
cannot is an object store, whose writes appear as a whole. Directories are made as needed and stay
when they are empty, but nobody sees empty ones. What crashed writes leave behind looks like the
part of an upload, so that it is found as one.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime
from threading import Lock
from typing import Any

from ..errors import (
    AsyncSyncError,
    ClashError,
    NotFoundError,
    PermanentError,
    PreconditionError,
    RefusedError,
    TransientError,
    quote,
)
from .objects import Data, Fetched, ObjectInfo, Part, Upload
from .parts import (
    FIRST_JOINED,
    MARKER,
    MAX_KEY_BYTES,
    is_hidden,
    new_upload,
    part_key,
    parts_prefix,
    uploads_among,
)

__all__ = ["Files"]

_READS = 10
"""How often a read begins again when the object is replaced under it."""

_MAX_NAME_BYTES = 200
"""What a name may have that is followed by the suffix of a parts directory, in 255 bytes."""


class Files:
    """What the store does, as blocking calls of fsspec.

    Args:
        fs: the file system.
        root: the directory of the objects, as `fs` writes paths.
        base: the class of file systems that can do nothing, to see what this one can.

    Attributes:
        turn: to hold during each call; FTP has one connection, which serves one at a time.
    """

    def __init__(self, fs: Any, root: str, base: Any) -> None:
        self._fs = fs
        self._root = root.rstrip("/") + "/" if root else ""
        kind = type(fs)
        self._renames = kind.mv is not base.mv
        self._has_rmdir = kind.rmdir is not base.rmdir
        self._walks = getattr(fs.find, "__func__", None) is base.find
        protocols = (kind.protocol,) if isinstance(kind.protocol, str) else kind.protocol
        self._is_webhdfs = "webhdfs" in protocols
        self.turn: AbstractContextManager[object] = Lock() if "ftp" in protocols else nullcontext()

    # -- names

    def _path(self, key: str) -> str:
        """Where `key` is; RefusedError for one that a file system would take for another."""
        if any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
            raise RefusedError(f"key {quote(key[:200])} cannot be a path; choose another name")
        return self._root + key

    def _key(self, name: str) -> str:
        return name.lstrip("/")[len(self._root.lstrip("/")) :]

    def _info_of(self, key: str, raw: Mapping[str, Any]) -> ObjectInfo:
        return ObjectInfo(key, int(raw.get("size") or 0), _tag(raw), _modified_at(raw))

    # -- reading

    def _raw(self, path: str) -> Mapping[str, Any] | None:
        """What the file system says of `path`; None if nothing is there."""
        self._fs.invalidate_cache()
        try:
            found: Mapping[str, Any] = self._fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found

    def info(self, key: str) -> ObjectInfo:
        raw = self._raw(self._path(key))
        if raw is None or raw["type"] == "directory":
            raise NotFoundError(f"no object {quote(key)}; check the spelling")
        return self._info_of(key, raw)

    def read(
        self, key: str, start: int, end: int | None, tag: str | None, into: memoryview | None
    ) -> Fetched:
        """Bytes, and the object they are of: it is the same before and after they were read."""
        path = self._path(key)
        for _ in range(_READS):
            info = self.info(key)
            if tag is not None and tag != info.tag:
                raise PreconditionError(f"object {quote(key)} is another one by now; read it again")
            stop = info.size_bytes if end is None else min(end, info.size_bytes)
            data = self._fs.cat_file(path, start=start, end=stop) if start < stop else b""
            if self.info(key) == info:
                return _fetched(info, data, max(0, stop - start), into)
        raise TransientError(f"object {quote(key)} is replaced all the time; read it later")

    def walk(self, prefix: str) -> list[ObjectInfo]:
        """Every object whose key begins with `prefix`, hidden ones too, by key."""
        files = (
            (self._key(raw["name"]), raw)
            for raw in self._below(self._root + prefix.rpartition("/")[0])
            if raw["type"] == "file"
        )
        return sorted(self._info_of(key, raw) for key, raw in files if key.startswith(prefix))

    def _below(self, directory: str) -> Iterator[Mapping[str, Any]]:
        """Everything in a directory and those in it, but no directories."""
        if not self._walks:
            yield from self._find(directory)
            return
        # The walk of the base class would leave out directories that it may not or cannot read.
        for raw in self._ls(directory):
            if raw["type"] != "directory":
                yield raw
            elif raw["name"].rstrip("/") != directory.rstrip("/"):
                yield from self._below(raw["name"])

    def _find(self, directory: str) -> Iterable[Mapping[str, Any]]:
        self._fs.invalidate_cache()
        try:
            found: Mapping[str, Mapping[str, Any]] = self._fs.find(directory, detail=True)
        except FileNotFoundError:
            return ()
        return found.values()

    def _ls(self, path: str) -> list[Mapping[str, Any]]:
        """What a directory holds; nothing if it does not exist."""
        self._fs.invalidate_cache()
        try:
            found: list[Mapping[str, Any]] = self._fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return found

    def entries(self, prefix: str) -> list[tuple[str, Mapping[str, Any]]]:
        """What a directory holds, as keys; those of directories end in a slash."""
        directory = prefix[: prefix.rfind("/") + 1]
        keys = (
            (self._key(raw["name"].rstrip("/")) + "/" * (raw["type"] == "directory"), raw)
            for raw in self._ls((self._root + directory).rstrip("/") or self._root)
            if raw["type"] in ("file", "directory")
        )
        return [
            (key, raw)
            for key, raw in keys
            if key.startswith(prefix) and key != directory and not is_hidden(key)
        ]

    def level(self, prefix: str) -> list[ObjectInfo]:
        """What lies directly below `prefix`, by key, without directories that hold nothing."""
        return sorted(
            ObjectInfo(key, 0, "") if key.endswith("/") else self._info_of(key, raw)
            for key, raw in self.entries(prefix)
            if not key.endswith("/") or self._holds_objects(key)
        )

    def _holds_objects(self, directory: str) -> bool:
        entries = [key for key, _ in self.entries(directory)]
        below = (key for key in entries if key.endswith("/"))
        return any(not key.endswith("/") for key in entries) or any(map(self._holds_objects, below))

    # -- writing

    def put(self, key: str, data: Data) -> ObjectInfo:
        """Replace `key` in one step."""
        path = self._checked(key)
        home = self._homes(new_upload(key))[0]
        try:
            self._make_way(key, path)
            self._write(f"{home}/{FIRST_JOINED}", path, data)
        except BaseException as exc:
            self._drop_after(exc, home)
            self._check_above(key, exc)
            raise
        if self._renames:
            self._remove_directory(home)
        return self._written(key, path, len(data))

    def remove(self, key: str) -> None:
        path = self._path(key)
        raw = self._raw(path)
        if raw is not None and raw["type"] != "directory":
            self._remove_file(path)

    def _checked(self, key: str) -> str:
        try:
            size_bytes = len(key.encode())
        except UnicodeEncodeError:
            raise RefusedError(f"key {quote(key[:200])} is not UTF-8; rename it") from None
        if size_bytes > MAX_KEY_BYTES:
            raise PermanentError(f"key {quote(key[:200])} is longer than {MAX_KEY_BYTES} bytes")
        return self._path(key)

    def _written(self, key: str, path: str, size_bytes: int) -> ObjectInfo:
        raw = self._raw(path)
        if raw is None or raw.get("size") != size_bytes:
            raise TransientError(f"object {quote(key)} is not what was written; write it again")
        return self._info_of(key, raw)

    def _write(self, beside: str, path: str, data: Data) -> None:
        if not self._renames:
            self._fs.pipe_file(path, bytes(data))
            return
        self._fs.makedirs(beside.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(beside, bytes(data))
        self._move(beside, path)

    def _move(self, beside: str, path: str) -> None:
        """Put a file in the place of another. Where a rename does not do that, nothing is there
        for a moment."""
        if not self._renames:
            self._fs.cp_file(beside, path)
            self._fs.rm_file(beside)
        elif self._is_webhdfs:
            # `mv` knows only the rename that leaves an existing file alone, and says nothing.
            options = {"destination": path, "renameoptions": "OVERWRITE"}
            self._fs._call("RENAME", method="put", path=beside, **options)
        else:
            try:
                self._fs.mv(beside, path)
            except OSError as exc:
                if exc.errno != errno.EEXIST:
                    raise
                self._fs.rm_file(path)
                self._fs.mv(beside, path)

    def _make_way(self, key: str, path: str) -> None:
        """Remove a directory that is in the place of an object, if nothing is in it."""
        raw = self._raw(path)
        if raw is None or raw["type"] != "directory":
            return
        if self.walk(key + "/"):
            raise ClashError(
                f"{quote(key)} is a directory with objects in it, and this store cannot hold an "
                "object of the same name; choose another name"
            )
        directories = self._fs.find(path, withdirs=True, detail=False)
        for directory in sorted({path, *directories}, reverse=True):
            self._remove_directory(directory)

    def _remove_file(self, path: str) -> None:
        try:
            self._fs.rm_file(path)
        except FileNotFoundError:
            return

    def _remove_directory(self, path: str) -> None:
        """Remove an empty directory; no error when it is gone already."""
        remove = self._fs.rmdir if self._has_rmdir else self._fs.rm
        try:
            remove(path)
        except FileNotFoundError:
            return

    def _drop_after(self, error: BaseException, home: str) -> None:
        """Clean up after `error`, which is the one to report."""
        try:
            self._empty(home)
        except Exception as exc:  # noqa: BLE001 - what stays behind is found by scan_uploads
            error.add_note(f"cleaning up failed, too: {type(exc).__name__}")

    def _check_above(self, key: str, error: BaseException) -> None:
        """ClashError if the reason of `error` is an object in the place of a directory."""
        above = None if isinstance(error, AsyncSyncError) else self._file_above(key)
        if above is not None:
            raise ClashError(
                f"{quote(above)} is an object, and this store cannot hold {quote(key)} below it; "
                "choose another name"
            ) from error

    def _file_above(self, key: str) -> str | None:
        """The object that is in the place of a directory of `key`."""
        for above in _above(key):
            raw = self._raw(self._root + above)
            if raw is not None and raw["type"] == "file":
                return above
        return None

    # -- uploads: a directory of parts beside the key, or where an object is in the way still
    # (it may be gone when the upload completes), further up. The marker holds the key.

    def _homes(self, upload: Upload) -> list[str]:
        """Where the parts of an upload may be, the most likely first."""
        name = upload.key.rpartition("/")[2].encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
        directories = [*(f"{above}/" for above in reversed(list(_above(upload.key)))), ""]
        named = (replace(upload, key=directory + name) for directory in directories)
        return [self._root + parts_prefix(one).rstrip("/") for one in named]

    def _home(self, upload: Upload) -> str:
        """Where the parts of an upload are; NotFoundError if there is no such upload."""
        for home in self._homes(upload):
            if self._raw(f"{home}/{MARKER:05}") is not None:
                return home
        raise NotFoundError(f"no upload of {quote(upload.key)}; begin it again")

    def create_upload(self, upload: Upload) -> None:
        self._checked(upload.key)
        homes, key = self._homes(upload), upload.key.encode()
        try:
            self._write_part(homes[0], MARKER, key)
        except Exception:
            above = self._file_above(upload.key)
            if above is None:
                raise
            self._write_part(homes[-1 - above.count("/")], MARKER, key)

    def put_part(self, upload: Upload, number: int, data: Data) -> Part:
        home = self._home(upload)
        self._write_part(home, number, data)
        info = self._written(upload.key, f"{home}/{number:05}", len(data))
        return Part(number, info.tag, info.size_bytes)

    def _write_part(self, home: str, number: int, data: Data) -> None:
        """A part put again is another file, so that its tag differs."""
        self._write(f"{home}/{FIRST_JOINED + 1 + number}", f"{home}/{number:05}", data)

    def begin_join(self, upload: Upload, parts: Sequence[Part]) -> tuple[Any, str]:
        """Check that the parts are those stored; open the file that they are joined in."""
        home = self._home(upload)
        found = {raw["name"].rpartition("/")[2]: raw for raw in self._ls(home)}
        for part in parts:
            raw = found.get(f"{part.number:05}")
            if raw is None or _tag(raw) != part.tag:
                raise NotFoundError(
                    f"a part of {quote(upload.key)} is not the one stored; begin the upload again"
                )
        return self._fs.open(f"{home}/{FIRST_JOINED}", "wb"), home

    def join(self, joined: Any, home: str, number: int, start: int, end: int) -> None:
        """Append bytes of a part to the file that was opened."""
        data = self._fs.cat_file(f"{home}/{number:05}", start=start, end=end)
        if len(data) != end - start:
            raise TransientError(f"part {number} ended early; send it again")
        joined.write(data)

    def end_join(self, joined: Any, home: str, upload: Upload, size_bytes: int) -> ObjectInfo:
        """Move what was joined to its place."""
        joined.close()
        beside, path = f"{home}/{FIRST_JOINED}", self._path(upload.key)
        self._written(upload.key, beside, size_bytes)
        try:
            self._make_way(upload.key, path)
            if self._renames:
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._move(beside, path)
        except Exception as exc:
            self._check_above(upload.key, exc)
            raise
        return self._written(upload.key, path, size_bytes)

    def drop(self, upload: Upload) -> None:
        """Remove an upload and its parts; no error when it is gone already."""
        for home in self._homes(upload):
            self._empty(home)

    def _empty(self, home: str) -> None:
        """Remove a directory of parts, the marker last: until then it can be found."""
        names = sorted((raw["name"] for raw in self._ls(home)), reverse=True)
        for name in names:
            self._remove_file(name)
        if self._renames:
            self._remove_directory(home)

    def uploads(self, prefix: str) -> list[Upload]:
        """Those in progress whose key begins with `prefix`, and what crashed writes left."""
        found = uploads_among(info.key for info in self.walk(prefix))
        uploads = (replace(upload, key=self._key_of(upload)) for upload in found)
        return [upload for upload in uploads if upload.key.startswith(prefix)]

    def _key_of(self, found: Upload) -> str:
        try:
            text: bytes = self._fs.cat_file(self._root + part_key(found, MARKER))
        except FileNotFoundError:
            return found.key
        return text.decode()

    def close(self) -> None:
        """Close the connections of an implementation that has a session of its own."""
        session = getattr(self._fs, "session", None)
        if self._renames and session is not None and hasattr(session, "close"):
            session.close()


def _fetched(info: ObjectInfo, data: bytes, size_bytes: int, into: memoryview | None) -> Fetched:
    if len(data) != size_bytes:
        raise TransientError(f"object {quote(info.key)} ended early; read it again")
    if into is None:
        return Fetched(info, data)
    into[:size_bytes] = data
    return Fetched(info, into[:size_bytes])


def _above(key: str) -> Iterator[str]:
    """The directories that `key` is in, from the top."""
    parts = key.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))


# ---------------------------------------------------------------- what fsspec says


def _tag(raw: Mapping[str, Any]) -> str:
    """What changes with every write: ETag or generation; else number, time and size of the file."""
    for name in ("ETag", "etag", "generation"):
        if raw.get(name):
            return str(raw[name]).strip('"')
    number = raw.get("fileId", raw.get("ino", ""))
    return f"{number}-{_written_at(raw)}-{raw.get('size')}"


def _written_at(raw: Mapping[str, Any]) -> Any:
    names = ("mtime", "modificationTime", "LastModified", "last_modified", "updated", "modified")
    at = next((raw[name] for name in (*names, "created") if raw.get(name)), 0.0)
    return at.timestamp() if isinstance(at, datetime) else at


def _modified_at(raw: Mapping[str, Any]) -> float:
    at = _written_at(raw)
    if not isinstance(at, int | float):
        return 0.0
    return at / 1000 if "modificationTime" in raw else float(at)  # Hadoop counts milliseconds
