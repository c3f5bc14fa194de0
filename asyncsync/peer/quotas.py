"""What has been pushed with tokens that have a cap, for as long as they live."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import anyio
import msgspec

from ..clock import Clock
from ..concurrency import Threads
from ..errors import ConfigError, NoSpaceError, quote
from ..units import MIB
from ..wire.claims import Claims
from .mishaps import own_files
from .private_files import read_private, write_private

__all__ = ["Quotas"]

_KEPT_S = 60.0  # a token is good for half a minute beyond its end
_MOST_BYTES = 16 * MIB  # of the file: some 200,000 tokens


class _Used(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """With one token and those that were derived from it, the last of which ends at `until`."""

    files: int
    size_bytes: int
    until: int


class _File(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"version": "asyncsync_quotas"}
):
    version: Literal[1]
    tokens: dict[str, _Used]


class Quotas:
    """Counts by the id of a token, so that tokens that are derived from it count with it.

    What is announced counts at once, and what of it has not arrived in the end does not any more:
    a head that was killed has counted too much, never too little.

    Args:
        path: where the counts stay when the head ends; None: they end with it.
    """

    def __init__(self, path: Path | None, threads: Threads, clock: Clock) -> None:
        self._path, self._threads, self._clock = path, threads, clock
        self._used: dict[str, _Used] = {}
        self._turn = anyio.Lock()

    async def load(self) -> None:
        """Go on with what was counted before. ConfigError: the file is damaged."""
        if self._path is not None:
            self._used = await self._threads.run(_read, self._path)

    async def take(self, claims: Claims, ends_at: int, files: int, size_bytes: int) -> None:
        """Count what is announced.

        Args:
            ends_at: when the token ends from which that one was derived, or that one itself.

        Raises:
            NoSpaceError: it is more than the token allows in all; nothing was counted.
            TransientError: the file of the counts cannot be written.
        """
        if claims.max_bytes is None and claims.max_files is None:
            return
        async with self._turn:
            used = self._used.get(claims.id, _Used(0, 0, 0))
            until = max(used.until, ends_at)
            both = _Used(used.files + files, used.size_bytes + size_bytes, until)
            for what, count, most in (
                ("files", both.files, claims.max_files),
                ("bytes", both.size_bytes, claims.max_bytes),
            ):
                if most is not None and count > most:
                    raise NoSpaceError(
                        f"this token may push {most} {what} in all, and with these it would be "
                        f"{count}; ask for another token",
                        side="target",
                    )
            await self._save({**self._used, claims.id: both})

    async def give_back(self, token: str, files: int, size_bytes: int) -> None:
        """Count no longer what was announced with a token and has not arrived.

        Raises:
            TransientError: the file of the counts cannot be written; it still counts.
        """
        async with self._turn:
            used = self._used.get(token)
            if used is not None and (files or size_bytes):
                less = _Used(used.files - files, used.size_bytes - size_bytes, used.until)
                await self._save({**self._used, token: less})

    async def prolong(self, token: str, until: int) -> None:
        """Go on counting for a token that lives longer now.

        Raises:
            TransientError: the file of the counts cannot be written.
        """
        async with self._turn:
            if (used := self._used.get(token)) is not None and until > used.until:
                longer = _Used(used.files, used.size_bytes, until)
                await self._save({**self._used, token: longer})

    async def _save(self, used: dict[str, _Used]) -> None:
        now = self._clock.now()
        used = {token: one for token, one in used.items() if now < one.until + _KEPT_S}
        if (path := self._path) is not None:
            text = msgspec.json.encode(_File(1, used)) + b"\n"
            with own_files("count what this token pushes"):
                await self._threads.run(lambda: _write(path, text))
        self._used = used


def _write(path: Path, text: bytes) -> None:
    write_private(path, text, replace=True, most_bytes=_MOST_BYTES)


def _read(path: Path) -> dict[str, _Used]:
    if (text := read_private(path, most_bytes=_MOST_BYTES)) is None:
        return {}
    try:
        return msgspec.json.decode(text, type=_File).tokens
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ConfigError(
            f"{quote(str(path))} is damaged; put back a copy, or remove it to count from zero"
        ) from None
