"""Digests of chunks, files and holes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from asyncsync.digest import CHUNK_BYTES, Hasher, chunk_count, digest, tree_digest, zeros_digest

VECTOR = Path(__file__).parents[1] / "vectors" / "manifest" / "valid-chunks.json"

# Published with BLAKE3's reference implementation: nothing, and the bytes 0 to 250 over and over.
PUBLISHED = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
}


@pytest.mark.parametrize("length", PUBLISHED)
def test_the_digest_is_blake3(length: int) -> None:
    data = bytes(number % 251 for number in range(length))

    assert digest(data) == PUBLISHED[length]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_digested(kind: Any) -> None:
    assert digest(kind(b"content")) == blake3(b"content").hexdigest()


def test_a_hasher_fed_piece_by_piece_agrees() -> None:
    hasher = Hasher()
    hasher.update(b"con")
    hasher.update(b"tent")

    assert hasher.hexdigest() == digest(b"content")


@pytest.mark.parametrize(
    ("size_bytes", "chunks"),
    [
        (0, 1),
        (1, 1),
        (CHUNK_BYTES - 1, 1),
        (CHUNK_BYTES, 1),
        (CHUNK_BYTES + 1, 2),
        (2 * CHUNK_BYTES, 2),
        (2 * CHUNK_BYTES + 1, 3),
    ],
)
def test_a_file_has_at_least_one_chunk_and_no_empty_ones(size_bytes: int, chunks: int) -> None:
    assert chunk_count(size_bytes) == chunks


def test_the_digest_of_one_chunk_is_that_of_the_file() -> None:
    assert tree_digest([digest(b"small")]) == digest(b"small")


def test_the_digest_of_several_chunks_is_that_of_a_prefix_and_their_raw_digests() -> None:
    chunks = [digest(b"one"), digest(b"two")]
    raw = blake3(b"one").digest() + blake3(b"two").digest()

    assert tree_digest(chunks) == blake3(b"asyncsync chunk list v1\n" + raw).hexdigest()


def test_a_list_of_digests_cannot_pass_for_the_file_that_holds_their_bytes() -> None:
    chunks = [digest(b"one"), digest(b"two")]
    forged = b"".join(bytes.fromhex(chunk) for chunk in chunks)

    assert tree_digest(chunks) != digest(forged)


def test_order_counts() -> None:
    one, two = digest(b"one"), digest(b"two")

    assert tree_digest([one, two]) != tree_digest([two, one])


def test_the_vector_of_the_format_page_agrees() -> None:
    entries = json.loads(VECTOR.read_bytes())["entries"]
    large = next(entry for entry in entries if entry[1] == "large")

    assert tree_digest(large[6]) == large[3]
    assert large[6][0] == zeros_digest(CHUNK_BYTES)


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, CHUNK_BYTES])
def test_a_hole_has_the_digest_of_its_zeros(size_bytes: int) -> None:
    assert zeros_digest(size_bytes) == digest(bytes(size_bytes))
