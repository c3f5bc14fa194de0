"""What a tree consists of: the manifest, its text form and its identity. Pure.

The format is specified in docs/formats/manifest.md; the vectors there are the tests' vectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import msgspec

from .digest import ALGORITHM, CHUNK_BYTES, Hasher, chunk_count, tree_digest
from .errors import FormatError, IntegrityError, RefusedError, quote
from .names import check_path, check_set, path_from_json, path_to_json, sort_key
from .units import GIB, KIB, MIB

__all__ = [
    "MAX_ENTRIES",
    "MAX_FILE_BYTES",
    "MAX_HEADER_BYTES",
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
MAX_HEADER_BYTES = 64 * KIB
MAX_FILE_BYTES = 15 * 1024 * GIB  # the digests of its chunks fit into a line of 64 MiB
_MAX_INTEGER = 2**63 - 1

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
            RefusedError: a path that no tree may hold, or more than a manifest may list.
        """
        found = tuple(entries)
        _check_header(header)
        _check_paths(found)
        ordered = tuple(sorted(found, key=_order(found)))
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

    @property
    def source(self) -> str:
        """The identity of the tree that it is, or is a selected part of."""
        return self.header.part_of or self.header.identity

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


def _order(entries: Sequence[Entry]) -> Callable[[Entry], str | bytes]:
    """What to sort by; where all paths are ASCII they are in order as they are."""
    if all(entry.path.isascii() for entry in entries):
        return lambda entry: entry.path
    return lambda entry: sort_key(entry.path)


def _check_header(header: Header) -> None:
    for count in (header.epoch, header.step or 0, header.sequence):
        if not 0 <= count <= _MAX_INTEGER:
            raise RefusedError(f"epoch, step and sequence are 0 to {_MAX_INTEGER}, not {count}")


def _check_paths(entries: Sequence[Entry]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise RefusedError(
            f"a tree of {len(entries)} files is refused: {MAX_ENTRIES} is the limit; sync parts of "
            "it as trees of their own"
        )
    for entry in entries:
        check_path(entry.path)
        if isinstance(entry, FileEntry) and entry.size_bytes > MAX_FILE_BYTES:
            reason = f"it has {entry.size_bytes} bytes; {MAX_FILE_BYTES} is the limit"
            raise RefusedError(f"{quote(entry.path)} refused: {reason}", paths=[entry.path])
    check_set(
        [e.path for e in entries if isinstance(e, FileEntry)],
        [e.path for e in entries if isinstance(e, DirectoryEntry)],
        [e.path for e in entries if isinstance(e, NestedEntry)],
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
            return ["f", path_to_json(entry.path), entry.size_bytes, entry.digest, entry.mode]
        case DirectoryEntry():
            return ["d", path_to_json(entry.path), entry.mode]
        case NestedEntry():
            return ["n", path_to_json(entry.path), entry.identity]


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


_decode_entry = msgspec.json.Decoder(_File | _Directory | _Nested).decode
_encode = msgspec.json.encode

_DIGEST = re.compile("[0-9a-f]{64}")
_OPENING = b',"entries":['
_VERSION = re.compile(rb'\{"asyncsync":([1-9][0-9]{0,8})[,}]')


def encode(manifest: Manifest) -> Iterator[bytes]:
    """The text form, line by line; together one JSON document.

    Streams: memory does not grow with the number of entries.

    Raises:
        RefusedError: it would be longer than a reader accepts.
    """
    hasher = Hasher()
    size_bytes = 0
    for line in _body(manifest):
        size_bytes += len(line)
        if size_bytes > MAX_MANIFEST_BYTES - KIB:  # the last line fits, too
            raise RefusedError(
                f"the manifest of {quote(manifest.header.name)} would have more than "
                f"{MAX_MANIFEST_BYTES} bytes; sync parts of it as trees of their own"
            )
        hasher.update(line)
        yield line
    yield _last_line(hasher)


def _last_line(hasher: Hasher) -> bytes:
    return b'],"self":"' + hasher.hexdigest().encode() + b'"}\n'


def _body(manifest: Manifest) -> Iterator[bytes]:
    fields = msgspec.to_builtins(manifest.header)
    fields["name"] = path_to_json(manifest.header.name)
    yield _encode(fields)[:-1] + _OPENING + b"\n"
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


def read_header(line: bytes) -> Header:
    """The header from the first line of a manifest; nothing else is checked.

    Raises:
        FormatError: another version or algorithm.
        IntegrityError: it is not the first line of a manifest.
    """
    version = _VERSION.match(line)
    if version is not None and int(version[1]) != VERSION:
        raise FormatError(
            f"the manifest has format version {int(version[1])}, this release reads {VERSION}; "
            "upgrade asyncsync, and delete nothing"
        )
    text, opening, rest = line.removesuffix(b"\n").rpartition(_OPENING)
    if version is None or not opening or rest or len(line) > MAX_HEADER_BYTES:
        raise IntegrityError("not a manifest: its first line is damaged")
    with _damaged():
        header = _header(text + b"}")
    if header.digest != ALGORITHM or header.chunk_bytes != CHUNK_BYTES:
        raise FormatError(
            f"the manifest uses {quote(header.digest[:20])} over {header.chunk_bytes} byte chunks, "
            "which this release does not know; upgrade asyncsync"
        )
    return header


def _header(text: bytes) -> Header:
    # Fields that we do not know are allowed; a second reading of those that we know is not.
    fields = msgspec.json.decode(text)
    _check(_encode(fields) == text, "its header is not in canonical form")
    fields["name"] = path_from_json(msgspec.convert(fields.get("name", ""), str | list[str]))
    header = msgspec.convert(fields, Header)
    _check_header(header)
    for identity in (header.identity, header.parent, header.part_of):
        _check_digest(identity or header.identity)
    return header


@contextmanager
def _damaged() -> Iterator[None]:
    """Whatever garbage leads to is an IntegrityError, and nothing else."""
    try:
        yield
    except RefusedError as exc:
        raise IntegrityError(f"manifest refused: {exc}") from exc
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise IntegrityError(f"manifest damaged: {exc}") from exc


def decode(lines: Iterable[bytes]) -> Manifest:
    """Read the text form from its lines (each with its line end), checking everything.

    Raises:
        FormatError: a version or algorithm of another release.
        IntegrityError: damaged, truncated, hostile or inconsistent. Never any other error.
    """
    with _damaged():
        return _decode(iter(lines))


def _decode(lines: Iterator[bytes]) -> Manifest:
    first = next(lines, b"")
    header = read_header(first)
    hasher = Hasher(first)
    entries: list[Entry] = []
    previous, last = b"", False
    for line in lines:
        if line.startswith(b"]"):
            _check(last or not entries, "a comma follows its last entry")
            complete = line == _last_line(hasher) and next(lines, None) is None
            _check(complete, "its text does not match its own digest")
            manifest = Manifest.of(header, entries)
            _check(manifest.header == header, "its totals or identity do not match its entries")
            return manifest
        hasher.update(line)
        _check(not last, "a comma is missing between two entries")
        _check(len(entries) < MAX_ENTRIES, f"it has more than {MAX_ENTRIES} entries")
        text = line.removesuffix(b"\n")
        last = not text.endswith(b",")
        entry = _entry(text.removesuffix(b","))
        key = sort_key(entry.path)
        _check(not entries or key > previous, "its entries are not sorted, or one is double")
        previous = key
        entries.append(entry)
    raise IntegrityError("manifest truncated: its last line is missing")


def _entry(text: bytes) -> Entry:
    entry = _from_line(_decode_entry(text))
    # One content, one text: no space, no second spelling, nothing that we would not read.
    _check(_encode(_line(entry)) == text, "an entry is not in canonical form")
    return entry


def _from_line(line: _File | _Directory | _Nested) -> Entry:
    path = path_from_json(line.path)
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
    _check(-_MAX_INTEGER <= line.mtime_ns <= _MAX_INTEGER, "a time is out of range")
    _check_digest(line.digest)
    expected = chunk_count(line.size_bytes)
    _check(len(line.chunks) == (expected if expected > 1 else 0), "the number of chunks is wrong")
    for chunk in line.chunks:
        _check_digest(chunk)
    if line.chunks:
        _check(tree_digest(line.chunks) == line.digest, "a digest does not match its chunks")
    return FileEntry(
        path, line.size_bytes, line.digest, line.mode, line.mtime_ns, tuple(line.chunks)
    )


def _check_digest(text: str) -> None:
    _check(_DIGEST.fullmatch(text) is not None, "a digest is malformed")


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise IntegrityError(f"manifest damaged: {otherwise}")
