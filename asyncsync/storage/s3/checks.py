"""Checksums of what is sent: which kind the store understands, and whether it got the same bytes.

A store is asked for CRC-32 first. One that rejects it, or takes no notice, gets MD5 from then on,
which every store checks.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...concurrency import Threads
from ...errors import CorruptedError
from ...units import KIB
from ..checksums import combine_crc32, crc32, crc_text
from ..objects import Data, Part

__all__ = ["CRC_HEADER", "Ongoing", "Proof", "check_echo", "prove_crc", "prove_md5"]

CRC_HEADER = "x-amz-checksum-crc32"

_IN_A_THREAD_BYTES = 256 * KIB
_PLAIN_TAG = re.compile(r"[0-9a-f]{32}")  # an MD5; tags of multipart objects hold a dash


@dataclass(frozen=True, slots=True)
class Proof:
    """A checksum of a body and the headers that carry it."""

    value: str
    headers: Mapping[str, str]
    md5: str | None = None
    crc: int | None = None


async def prove_crc(data: Data, threads: Threads) -> Proof:
    """CRC-32; in a thread where it takes a while."""
    value = await threads.run(crc32, data) if len(data) > _IN_A_THREAD_BYTES else crc32(data)
    text = crc_text(value)
    return Proof(text, {CRC_HEADER: text, "x-amz-sdk-checksum-algorithm": "CRC32"}, crc=value)


async def prove_md5(data: Data, threads: Threads) -> Proof:
    """MD5; in a thread where it takes a while."""
    digest = await threads.run(_md5, data) if len(data) > _IN_A_THREAD_BYTES else _md5(data)
    text = base64.b64encode(digest).decode()
    return Proof(text, {"Content-MD5": text}, md5=digest.hex())


def _md5(data: Data) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def check_echo(what: str, proof: Proof, headers: Mapping[str, str], tag: str) -> bool:
    """Compare what the store says of the bytes it got.

    Returns: whether it said anything that can be compared.

    Raises:
        CorruptedError: it got other bytes.
    """
    if proof.md5 is None:
        said, expected = headers.get(CRC_HEADER), proof.value
    elif tag == proof.md5:
        return True
    else:
        encrypted = any(name.lower().startswith("x-amz-server-side") for name in headers)
        plain = _PLAIN_TAG.fullmatch(tag) and not encrypted
        said, expected = (tag if plain else None), proof.md5
    if said is not None and said != expected:
        raise CorruptedError(f"{what}: the store got other bytes than were sent")
    return said is not None


@dataclass(slots=True)
class Ongoing:
    """What this process knows of an upload: what was agreed on, and the CRC of each part by tag.

    Attributes:
        declared: the store knows that parts come with a CRC, and may insist on their list.
        whole: it checks the CRC of the whole object, too.
    """

    declared: bool = False
    whole: bool = False
    crcs: dict[tuple[int, str], int] = field(default_factory=dict)

    def of_part(self, part: Part) -> int | None:
        """The CRC of a part, if it is this process that sent it and the store wants it."""
        return self.crcs.get((part.number, part.tag)) if self.declared else None

    def of_whole(self, parts: Sequence[Part]) -> int | None:
        """The CRC of the object that `parts` make; None if that of any is not known."""
        if not self.whole:
            return None
        whole = 0
        for part in parts:
            crc = self.of_part(part)
            if crc is None:
                return None
            whole = combine_crc32(whole, crc, part.size_bytes)
        return whole
