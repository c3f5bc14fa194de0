"""What a tree consists of: the manifest, its text form and its identity. Pure.

The format is specified in docs/formats/manifest.md; the vectors there are the tests' vectors.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import msgspec

from .digest import ALGORITHM, CHUNK_BYTES, Hasher, chunk_count, tree_digest
from .errors import FormatError, IntegrityError, RefusedError
from .names import check_path, check_set, sort_key
from .units import MIB

__all__ = [
    "MAX_ENTRIES",
    "MAX_MANIFEST_BYTES",
    "DirectoryEntry",
    "Entry",
    "FileEntry",
    "Header",
    "Kind",
    "Manifest",
    "NestedEntry",
    "decode",
    "encode",
    "read_header",
]

VERSION = 1
MAX_ENTRIES = 1_000_000
MAX_MANIFEST_BYTES = 256 * MIB
MAX_FILE_BYTES = 1 << 60

Kind = Literal["sealed", "rolling"]


class FileEntry(msgspec.Struct, frozen=True, gc=False):
    """One regular file.

    Attributes:
        path: relative, `/` between components.
        size_bytes: its length.
        digest: of the whole file: see `asyncsync.digest.tree_digest`.
        mode: permission bits, at most 0o777.
        mtime_ns: informational; restored where the disk can.
        chunks: digest of each 16 MiB chunk when there is more than one, else empty.
    """

    path: str
    size_bytes: int
    digest: str
    mode: int = 0o644
    mtime_ns: int = 0
    chunks: tuple[str, ...] = ()

    def chunk_digest(self, number: int) -> str:
        """The digest of chunk `number`, counted from 0."""
        return self.chunks[number] if self.chunks else self.digest


class DirectoryEntry(msgspec.Struct, frozen=True, gc=False):
    """A directory that holds nothing (what holds files needs no entry)."""

    path: str
    mode: int = 0o755


class NestedEntry(msgspec.Struct, frozen=True, gc=False):
    """A directory inside the tree that is a commit of its own, and which one it was."""

    path: str
    identity: str


Entry = FileEntry | DirectoryEntry | NestedEntry


class Header(msgspec.Struct, frozen=True, kw_only=True, rename={"version": "asyncsync"}):
    """The first line of a manifest: everything but the entries.

    Attributes:
        kind: `sealed` or `rolling`.
        name: the last component of the location it was committed to.
        step, epoch, sequence: what commits are ordered by: `epoch` counts runs, `step` training
            steps (None when there is none), `sequence` versions of this very tree.
        attempt: 32 hexadecimal digits that only this attempt has.
        writer: who wrote it: a digest of machine and source directory.
        tool: name and version of the writing program; informational.
        created: unix seconds of the writer's clock; informational, orders only what nothing
            else orders.
        parent: the identity of the commit that this one replaced.
        part_of: the identity of the tree that this is a selected part of.
        files, size_bytes: totals.
        identity: digest over the entries: equal content has equal identity.
    """

    version: int = VERSION
    digest: str = ALGORITHM
    chunk_bytes: int = CHUNK_BYTES
    kind: Kind = "sealed"
    name: str = ""
    step: int | None = None
    epoch: int = 0
    sequence: int = 1
    attempt: str = ""
    writer: str = ""
    tool: str = ""
    created: float = 0.0
    parent: str | None = None
    part_of: str | None = None
    files: int = 0
    size_bytes: int = 0
    identity: str = ""

    @property
    def order(self) -> tuple[int, int, int, float, str]:
        """Later commits compare greater."""
        step = -1 if self.step is None else self.step
        return (self.epoch, step, self.sequence, self.created, self.name)


@dataclass(frozen=True)
class Manifest:
    """A tree: header and entries, sorted by the bytes of their paths.

    Build one with `Manifest.of`, which sorts, checks and fills in totals and identity.
    """

    header: Header
    entries: tuple[Entry, ...] = field(repr=False)

    @classmethod
    def of(cls, header: Header, entries: Iterable[Entry]) -> Manifest:
        """Sort and check `entries`, and complete `header` with totals and identity.

        Raises:
            RefusedError: a path that no tree may hold.
        """
        ordered = tuple(sorted(entries, key=lambda e: sort_key(e.path)))
        _check_paths(ordered)
        files = [e for e in ordered if isinstance(e, FileEntry)]
        complete = msgspec.structs.replace(
            header,
            files=len(files),
            size_bytes=sum(f.size_bytes for f in files),
            identity=_identity(ordered),
        )
        return cls(complete, ordered)

    @property
    def identity(self) -> str:
        return self.header.identity

    @cached_property
    def files(self) -> Mapping[str, FileEntry]:
        """The files by path, in order."""
        return {e.path: e for e in self.entries if isinstance(e, FileEntry)}

    @cached_property
    def directories(self) -> tuple[DirectoryEntry, ...]:
        """The empty directories."""
        return tuple(e for e in self.entries if isinstance(e, DirectoryEntry))

    @cached_property
    def nested(self) -> tuple[NestedEntry, ...]:
        """The commits inside."""
        return tuple(e for e in self.entries if isinstance(e, NestedEntry))

    def with_header(self, header: Header) -> Manifest:
        """The same entries under another header, whose totals and identity must be the same."""
        return replace(self, header=header)


def _check_paths(entries: Sequence[Entry]) -> None:
    for entry in entries:
        check_path(entry.path)
    check_set(
        [e.path for e in entries if isinstance(e, FileEntry)],
        [e.path for e in entries if not isinstance(e, FileEntry)],
    )


def _identity(entries: Iterable[Entry]) -> str:
    hasher = Hasher()
    for entry in entries:
        hasher.update(msgspec.json.encode(_content(entry)) + b"\n")
    return hasher.hexdigest()


def _content(entry: Entry) -> list[object]:
    """What counts for the identity: not the time, and not how the digest was put together."""
    match entry:
        case FileEntry():
            return ["f", _wire_path(entry.path), entry.size_bytes, entry.digest, entry.mode]
        case DirectoryEntry():
            return ["d", _wire_path(entry.path), entry.mode]
        case NestedEntry():
            return ["n", _wire_path(entry.path), entry.identity]


# ---------------------------------------------------------------- text form


class _File(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    path: str | list[str]
    size_bytes: int
    digest: str
    mode: int
    mtime_ns: int
    chunks: list[str] = []


class _Directory(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    path: str | list[str]
    mode: int


class _Nested(msgspec.Struct, frozen=True, array_like=True, tag="n"):
    path: str | list[str]
    identity: str


class _Trailer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    self: str


_decode_header = msgspec.json.Decoder(Header).decode
_decode_entry = msgspec.json.Decoder(_File | _Directory | _Nested).decode
_decode_trailer = msgspec.json.Decoder(_Trailer).decode
_encode = msgspec.json.encode


def encode(manifest: Manifest) -> Iterator[bytes]:
    """The text form, line by line; together one JSON document.

    Streams: memory does not grow with the number of entries.
    """
    hasher = Hasher()
    for line in _body(manifest):
        hasher.update(line)
        yield line
    yield b'],"self":"' + hasher.hexdigest().encode() + b'"}\n'


def _body(manifest: Manifest) -> Iterator[bytes]:
    yield _encode(manifest.header)[:-1] + b',"entries":[\n'
    last = len(manifest.entries) - 1
    for number, entry in enumerate(manifest.entries):
        yield _encode(_line(entry)) + (b"\n" if number == last else b",\n")


def _line(entry: Entry) -> list[object]:
    line = _content(entry)
    if isinstance(entry, FileEntry):
        line.append(entry.mtime_ns)
        if entry.chunks:
            line.append(entry.chunks)
    return line


def _wire_path(path: str) -> str | list[str]:
    """A path as JSON: text, or base64 in a list when its bytes are not UTF-8."""
    raw = os.fsencode(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return [base64.b64encode(raw).decode("ascii")]


def _path(wire: str | list[str]) -> str:
    if isinstance(wire, str):
        return wire
    (encoded,) = wire
    raw = base64.b64decode(encoded, validate=True)
    path = os.fsdecode(raw)
    if not isinstance(_wire_path(path), list) or _wire_path(path) != wire:
        raise ValueError("a name that is valid UTF-8 is written as text")
    return path


def read_header(line: bytes) -> Header:
    """The header from the first line of a manifest; nothing else is checked.

    Raises:
        FormatError: another version or algorithm.
        IntegrityError: it is not the first line of a manifest.
    """
    head, separator, rest = line.rstrip(b"\n").rpartition(b',"entries":[')
    if not separator or rest:
        raise IntegrityError("not a manifest: its first line is damaged")
    try:
        header = _decode_header(head + b"}")
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        _refuse_other_versions(head + b"}")
        raise IntegrityError(f"not a manifest: {exc}") from exc
    if header.version != VERSION:
        raise FormatError(_newer(header.version))
    if header.digest != ALGORITHM or header.chunk_bytes != CHUNK_BYTES:
        raise FormatError(
            f"the manifest uses {header.digest[:20]} over {header.chunk_bytes} byte chunks, which "
            "this release does not know; upgrade asyncsync"
        )
    return header


def _refuse_other_versions(head: bytes) -> None:
    """A newer header may not even have our fields: say the version rather than "damaged"."""
    try:
        version = msgspec.json.decode(head).get("asyncsync")
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError):
        return
    if isinstance(version, int) and version > VERSION:
        raise FormatError(_newer(version))


def _newer(version: int) -> str:
    return (
        f"the manifest has format version {version}, this release reads {VERSION}; "
        "upgrade asyncsync, and delete nothing"
    )


def decode(lines: Iterable[bytes]) -> Manifest:
    """Read the text form from its lines (each with its line end), checking everything.

    Raises:
        FormatError: a version or algorithm of another release.
        IntegrityError: damaged, truncated, hostile or inconsistent. Never any other error.
    """
    try:
        return _decode(iter(lines))
    except IntegrityError:
        raise
    except RefusedError as exc:
        raise IntegrityError(f"manifest refused: {exc}") from exc
    except (msgspec.MsgspecError, ValueError, binascii.Error, UnicodeError) as exc:
        raise IntegrityError(f"manifest damaged: {exc}") from exc


def _decode(lines: Iterator[bytes]) -> Manifest:
    first = next(lines, b"")
    header = read_header(first)
    hasher = Hasher(first)
    entries: list[Entry] = []
    previous = b""
    for line in lines:
        if line.startswith(b"]"):
            _check_trailer(line, hasher, lines)
            return _checked(header, tuple(entries))
        hasher.update(line)
        if len(entries) == MAX_ENTRIES:
            raise IntegrityError(f"manifest refused: more than {MAX_ENTRIES} entries")
        entry = _entry(_decode_entry(line.rstrip(b",\n")))
        key = sort_key(entry.path)
        if key <= previous:
            raise IntegrityError("manifest damaged: its entries are not sorted, or one is double")
        previous = key
        entries.append(entry)
    raise IntegrityError("manifest truncated: its last line is missing")


def _check_trailer(line: bytes, hasher: Hasher, rest: Iterator[bytes]) -> None:
    trailer = _decode_trailer(b"{" + line.rstrip(b"\n")[2:])
    if trailer.self != hasher.hexdigest() or next(rest, None) is not None:
        raise IntegrityError("manifest damaged: its text does not match its own digest")


def _checked(header: Header, entries: tuple[Entry, ...]) -> Manifest:
    manifest = Manifest.of(header, entries)
    if manifest.header != header:
        raise IntegrityError("manifest damaged: its totals or identity do not match its entries")
    return Manifest(header, entries)


def _entry(line: _File | _Directory | _Nested) -> Entry:
    path = _path(line.path)
    match line:
        case _File():
            return _file(path, line)
        case _Directory():
            _check(0 <= line.mode <= 0o777, "a mode is out of range")
            return DirectoryEntry(path, line.mode)
        case _Nested():
            _check_digest(line.identity)
            return NestedEntry(path, line.identity)


def _file(path: str, line: _File) -> FileEntry:
    _check(0 <= line.size_bytes <= MAX_FILE_BYTES, "a size is out of range")
    _check(0 <= line.mode <= 0o777, "a mode is out of range")
    _check_digest(line.digest)
    expected = chunk_count(line.size_bytes)
    _check(len(line.chunks) == (expected if expected > 1 else 0), "a list of chunks is too short")
    for chunk in line.chunks:
        _check_digest(chunk)
    if line.chunks:
        _check(tree_digest(line.chunks) == line.digest, "a digest does not match its chunks")
    return FileEntry(
        path, line.size_bytes, line.digest, line.mode, line.mtime_ns, tuple(line.chunks)
    )


def _check_digest(text: str) -> None:
    _check(len(text) == 64 and set(text) <= set("0123456789abcdef"), "a digest is malformed")


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise IntegrityError(f"manifest damaged: {otherwise}")
