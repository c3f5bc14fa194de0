"""The keys of a head on its disk. Everything here blocks and belongs in a thread.

A head that cannot read its keys does not start: nothing here makes up for a damaged file.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import ConfigError, quote
from ..secrets import Secret
from ..wire.claims import DEFAULT_LIFE_S
from ..wire.tokens import HeadKey, KeyRing, Revoked
from .private_files import MAX_BYTES, read_private, write_private

__all__ = ["create_keys", "load_keys", "revoke", "rotate_keys"]


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    secret: str
    retires_at: int | None


class _File(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename={"version": "asyncsync_keys"},
):
    version: Literal[1]
    keys: list[_Key]
    revoked: Revoked = Revoked()


def create_keys(path: Path) -> KeyRing:
    """Make a key and the file that holds it.

    Raises:
        ConfigError: there is such a file already, or it cannot be written.
    """
    ring = KeyRing((HeadKey.new(),))
    write_private(path, _text(ring), replace=False)
    return ring


def load_keys(path: Path) -> KeyRing:
    """The keys of the head.

    Raises:
        ConfigError: the file is not there, damaged, a link, or not for its owner alone.
    """
    content = read_private(path)
    if content is None:
        raise ConfigError(f"there is no key file {quote(str(path))}; run asyncsync head --init")
    try:
        found = msgspec.json.decode(content, type=_File)
        ring: KeyRing | None = KeyRing(
            tuple(
                HeadKey(id=key.id, secret=Secret(key.secret), retires_at=key.retires_at)
                for key in found.keys
            ),
            found.revoked,
        )
    except (msgspec.MsgspecError, ValueError, RecursionError):
        ring = None
    # Outside of the handler: the cause of a damaged file may quote what is in it.
    if ring is None:
        raise ConfigError(
            f"key file {quote(str(path))} is damaged or of another release; put back a copy, or "
            "remove it, run asyncsync head --init and join the workers again"
        )
    return ring


def rotate_keys(path: Path, *, now: float, overlap_s: float = DEFAULT_LIFE_S) -> KeyRing:
    """Put a new key into use. Tokens of the present one are good for `overlap_s` more.

    Raises:
        ConfigError: as `load_keys`, or the file cannot be written; then it is as it was.
    """
    with _alone(path):
        ring = load_keys(path).rotated(HeadKey.new(), now=now, overlap_s=overlap_s)
        _replace(path, ring)
    return ring


def revoke(path: Path, *, tokens: Iterable[str] = (), experiments: Iterable[str] = ()) -> KeyRing:
    """Refuse these tokens from now on, by their ids, and all of these experiments.

    A head that runs takes it up with the file. It lasts for as long as the file: whoever has the
    name of an experiment revoked chooses another one for the next.

    Raises:
        ConfigError: as `load_keys`, or there are too many; then nothing has changed.
    """
    with _alone(path):
        ring = load_keys(path)
        before = ring.revoked
        more = Revoked(before.tokens.union(tokens), before.experiments.union(experiments))
        ring = KeyRing(ring.keys, more)
        _replace(path, ring)
    return ring


def _replace(path: Path, ring: KeyRing) -> None:
    if len(text := _text(ring)) > MAX_BYTES:
        raise ConfigError(
            "so many keys are in use, or tokens revoked, that it is time to begin anew: remove the "
            "key file, run asyncsync head --init, and join the workers again"
        )
    write_private(path, text, replace=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else changes the file meanwhile: what was revoked beside it would not be."""
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise ConfigError(f"cannot open {quote(str(path.parent))}: {exc.strerror}") from exc
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _text(ring: KeyRing) -> bytes:
    keys = [_Key(key.id, key.secret.reveal(), key.retires_at) for key in ring.keys]
    return (
        msgspec.json.format(
            msgspec.json.encode(_File(1, keys, ring.revoked), order="deterministic"), indent=1
        )
        + b"\n"
    )
