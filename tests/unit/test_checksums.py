from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.storage.checksums import combine_crc32, combine_crc32c, crc32, crc32c, crc_text

PIECES = st.binary(max_size=300)


def test_the_published_check_values_come_out() -> None:
    assert (crc32(b"123456789"), crc32c(b"123456789")) == (0xCBF43926, 0xE3069283)


@given(PIECES, PIECES)
def test_the_checksum_of_two_pieces_follows_from_theirs(first: bytes, second: bytes) -> None:
    size = len(second)

    assert combine_crc32(crc32(first), crc32(second), size) == zlib.crc32(first + second)
    assert combine_crc32c(crc32c(first), crc32c(second), size) == crc32c(first + second)


def test_large_pieces_are_put_together_without_their_bytes() -> None:
    size = 5 * 1024**3
    whole = combine_crc32(crc32(b"head"), 0, size)  # as if it were followed by so many bytes

    assert combine_crc32(whole, 0, 0) == whole
    assert combine_crc32(combine_crc32(crc32(b"head"), 0, size // 2), 0, size - size // 2) == whole


def test_a_checksum_goes_on_from_the_last_piece() -> None:
    assert crc32(b"456789", crc32(b"123")) == crc32(b"123456789")
    assert crc32c(b"456789", crc32c(b"123")) == crc32c(b"123456789")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_bytes_has_a_checksum(kind: type) -> None:
    assert crc32(kind(b"abc")) == zlib.crc32(b"abc")


def test_stores_write_a_checksum_in_base64_with_the_highest_byte_first() -> None:
    assert crc_text(crc32(b"123456789")) == "y/Q5Jg=="
    assert crc_text(1) == "AAAAAQ=="
