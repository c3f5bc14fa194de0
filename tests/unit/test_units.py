"""Sizes and durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.errors import ConfigError
from asyncsync.units import GIB, KIB, MIB, format_bytes, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("500", 500),
        ("500b", 500),
        ("64KiB", 64 * KIB),
        ("64k", 64 * KIB),
        ("64KB", 64_000),
        ("10M", 10 * MIB),
        ("1.5GB", 1_500_000_000),
        ("1.5GiB", 3 * GIB // 2),
        ("2T", 2048 * GIB),
        ("2tb", 2 * 10**12),
        (" 7 mib ", 7 * MIB),
    ],
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "1e6", "5 PiB", "1,5M", "1.M", ".5M", "5 5", "inf"]
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size; write it like") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (64 * MIB, "64.0 MiB"),
        (3 * GIB, "3.0 GiB"),
        (5000 * GIB, "4.9 TiB"),
        (5_000_000 * GIB, "4882.8 TiB"),
    ],
)
def test_sizes_are_written_with_binary_units(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@given(st.integers(0, 2**60))
def test_a_written_size_is_read_again_within_its_rounding(size_bytes: int) -> None:
    assert parse_bytes(format_bytes(size_bytes)) == pytest.approx(size_bytes, rel=0.051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.25, "0.25 s"),
        (9.5, "9.50 s"),
        (10, "10 s"),
        (59, "59 s"),
        (60, "1 min 00 s"),
        (75.2, "1 min 15 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
