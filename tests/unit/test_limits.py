"""The limits of the peer transfer: their defaults, what they may be, and how they are shown."""

from __future__ import annotations

import ast
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

import asyncsync
from asyncsync.errors import ConfigError
from asyncsync.units import GIB
from asyncsync.wire.limits import Limits

NAMES = [limit.name for limit in fields(Limits)]
MAY_BE_0 = ("disk_reserve_bytes", "disk_reserve_ratio")
AT_MOST = {
    "max_files": 1_000_000,
    "max_manifest_bytes": 256 * 1024**2,
    "max_component_bytes": 255,
    "max_path_bytes": 4095,
    "max_depth": 64,
    "disk_reserve_ratio": 1,
}


def limits(name: str, value: object) -> Limits:
    wrong: dict[str, Any] = {name: value}
    return Limits(**wrong)


def test_the_defaults_are_limits() -> None:
    found = Limits()

    assert found.header_deadline_s == 10
    assert found.keep_alive_s == 75
    assert found.max_connections == 512
    assert found.session_expiry_s == 24 * 3600
    assert found.hash_threads >= 1
    with pytest.raises(FrozenInstanceError):
        found.max_files = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", [-1, float("nan"), float("inf"), -float("inf"), True, "10", [], 10**400 * -1], ids=repr
)
def test_what_is_no_amount_is_refused_for_every_limit(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} takes a") as caught:
        limits(name, value)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_is_above_nothing_unless_it_is_what_stays_free(name: str) -> None:
    if name in MAY_BE_0:
        assert getattr(limits(name, 0), name) == 0
    else:
        with pytest.raises(ConfigError, match="above 0"):
            limits(name, 0)


@pytest.mark.parametrize("name", NAMES)
def test_no_limit_but_one_can_be_switched_off(name: str) -> None:
    if name == "max_push_bytes":
        assert limits(name, None).max_push_bytes is None
    else:
        with pytest.raises(ConfigError, match="not None"):
            limits(name, None)


@pytest.mark.parametrize("name", AT_MOST)
def test_a_head_is_not_laxer_than_the_format(name: str) -> None:
    most = AT_MOST[name]

    assert getattr(limits(name, most), name) == most
    with pytest.raises(ConfigError, match=f"{name} takes .* at most {most}, not {most + 1}"):
        limits(name, most + 1)


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith(("_bytes", "_files"))])
def test_what_is_counted_is_whole(name: str) -> None:
    with pytest.raises(ConfigError, match="takes a whole number"):
        limits(name, 1.5)


def test_what_stays_free_is_the_larger_of_a_part_and_an_amount() -> None:
    assert Limits().reserve_bytes(10 * GIB) == GIB
    assert Limits().reserve_bytes(1000 * GIB) == 10 * GIB
    assert Limits(disk_reserve_bytes=0).reserve_bytes(101) == 2
    assert Limits(disk_reserve_bytes=0, disk_reserve_ratio=0).reserve_bytes(GIB) == 0


def test_the_text_has_a_line_for_every_limit() -> None:
    lines = str(Limits(hash_threads=3)).splitlines()

    assert [line.split()[0] for line in lines] == NAMES
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert shown["keep_alive_s"] == "1 min 15 s"
    assert shown["min_body_bytes_per_s"] == "4.0 KiB/s"
    assert shown["max_manifest_bytes"] == "256.0 MiB"
    assert shown["max_push_bytes"] == "none"
    assert shown["disk_reserve_ratio"] == "1.0%"
    assert shown["hash_threads"] == "3"


def test_every_limit_is_looked_at_somewhere() -> None:
    package = Path(asyncsync.__file__).parent
    found = set[str]()
    for path in [*package.glob("peer/*.py"), package / "wire" / "limits.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)

    assert {limit.name for limit in fields(Limits)} <= found
