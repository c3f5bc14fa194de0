"""Manifests on disk: written once and flushed; read as a stream."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress

from ...errors import FormatError, IntegrityError, NotCommittedError, NotFoundError, quote
from ...manifest import MAX_MANIFEST_BYTES, Header, Manifest, decode, encode, read_header
from ...names import MANIFEST, NEXT, is_ours, sort_key
from ...units import MIB
from ..trees import Sighting
from .fs import DIRECTORY, create_file, opened

__all__ = [
    "current",
    "current_header",
    "is_commit",
    "load",
    "read_place",
    "tag_of",
    "trees",
    "write_manifest",
]

_MAX_LINE_BYTES = 64 * MIB
_PLACES = (f"{NEXT}/{MANIFEST}", MANIFEST)
"""Where the current manifest is: what an in-place update has published comes first."""


def write_manifest(directory: int, manifest: Manifest) -> None:
    """Write the manifest into an open directory where there is none, and fsync it."""
    fd = create_file(directory, MANIFEST, 0o666)
    with open(fd, "wb", buffering=1 * MIB) as file:
        file.writelines(encode(manifest))
        file.flush()
        os.fsync(fd)


def current(root: int, where: str) -> Manifest:
    """The commit in the open directory `root`.

    Raises:
        NotFoundError: the directory is empty.
        NotCommittedError: there are files but no manifest.
        IntegrityError, FormatError: the manifest cannot be used.
    """
    for place in _PLACES:
        if (manifest := read_place(root, place, where)) is not None:
            return manifest
    raise _absent(root, where)


def load(root: int, where: str) -> Manifest | None:
    """`current`, or None where there is no manifest."""
    try:
        return current(root, where)
    except NotFoundError:
        return None


def current_header(root: int, where: str) -> Header:
    """The header of `current`, from the first line alone. The same errors."""
    for place in _PLACES:
        try:
            with _lines(root, place) as lines:
                return read_header(next(lines, b""))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except IntegrityError as exc:
            raise type(exc)(f"{where}: {exc}") from exc
    raise _absent(root, where)


def is_commit(root: int) -> bool:
    """Whether there is a manifest in the open directory, good or not."""
    return bool(tag_of(root))


def tag_of(root: int) -> str:
    """What changes whenever the manifest in the open directory does; empty when there is none."""
    for place in _PLACES:
        try:
            found = os.stat(place, dir_fd=root, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISREG(found.st_mode):
            return f"{found.st_ino}.{found.st_mtime_ns}.{found.st_ctime_ns}.{found.st_size}"
        return ""
    return ""


def read_place(root: int, place: str, where: str) -> Manifest | None:
    """The manifest at `place` below the open directory, or None where there is none."""
    try:
        with _lines(root, place) as lines:
            return decode(lines)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except FormatError as exc:
        raise FormatError(f"{where}: {exc}") from exc
    except IntegrityError as exc:
        raise IntegrityError(
            f"{where}: {exc}; put a good copy in its place, or delete it as uncommitted"
        ) from exc


@contextmanager
def _lines(root: int, place: str) -> Iterator[Iterator[bytes]]:
    """The lines of a manifest, bounded in length and number of bytes."""
    with opened(root, place, os.O_RDONLY | os.O_NONBLOCK) as fd:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_MANIFEST_BYTES:
            raise IntegrityError("manifest refused: not a file, or too large")
        with open(fd, "rb", buffering=1 * MIB, closefd=False) as file:
            yield iter(lambda: file.readline(_MAX_LINE_BYTES), b"")


def _is_commit_below(root: int, name: str) -> bool:
    try:
        with opened(root, name) as below:
            return is_commit(below)
    except OSError:  # a file, a link, or not readable: no commit that we can name
        return False


def _absent(root: int, where: str) -> NotFoundError:
    names = [name for name in sorted(os.listdir(root)) if not is_ours(name)]
    commits = [name for name in names if _is_commit_below(root, name)]
    if commits:
        return NotCommittedError(
            f"{where} is not a commit itself; it holds {len(commits)}, such as "
            f"{quote(commits[-1])}: name one of them"
        )
    if names:
        return NotCommittedError(
            f"{where} holds files but no commit: another tool wrote them; "
            "allow_unverified reads them as they are"
        )
    return NotFoundError(f"no commit at {where}: it is an empty directory")


def trees(root: int, tree: str) -> Generator[Sighting, None, None]:
    """The trees at and below an open directory, which is closed in the end."""
    try:
        if tag := tag_of(root):
            yield Sighting(tree, tag)
        for entry in sorted(os.scandir(root), key=lambda e: sort_key(e.name)):
            if entry.is_dir(follow_symlinks=False) and not is_ours(entry.name):
                with suppress(PermissionError, FileNotFoundError, NotADirectoryError):
                    below = os.open(entry.name, DIRECTORY, dir_fd=root)
                    yield from trees(below, f"{tree}/{entry.name}".lstrip("/"))
    finally:
        os.close(root)
