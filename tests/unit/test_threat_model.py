"""The page on threats: every test that it names is there, and controls that no request can show."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import asyncsync

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
PAGE = ROOT / "docs" / "threat-model.md"
PACKAGE = Path(asyncsync.__file__).parent

_ROW = re.compile(r"^\| (T\d+) \|.*\| ([^|]*) \|$", re.MULTILINE)
_TEST = re.compile(r"`((?:system|unit)/test_\w+\.py)::(test_\w+)`")
_LOADERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch", "yaml"}
_CLIENTS = re.compile(r"\.+(storage\.)?(http|dialing|connection|peer|s3|gcs)(\..*)?")
_DIALERS = {"urllib.request", "http.client", "requests", "aiobotocore", "botocore", "gcloud"}


def _functions(file: Path) -> set[str]:
    defined = ast.FunctionDef | ast.AsyncFunctionDef
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, defined)}


def _imports(file: Path) -> set[str]:
    found = set[str]()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def test_every_threat_names_a_test_that_is_there() -> None:
    rows = dict(_ROW.findall(PAGE.read_text("utf-8")))

    assert list(rows) == [f"T{number}" for number in range(1, 23)]
    for threat, named in rows.items():
        tests = _TEST.findall(named)
        assert tests, threat
        assert _TEST.sub("", named).strip(", ") == "", f"{threat} names something else, too"
        for file, test in tests:
            assert test in _functions(TESTS / file), f"{threat}: {file}::{test}"


def test_nothing_that_is_received_is_unpickled() -> None:
    for file in PACKAGE.rglob("*.py"):
        found = {name.partition(".")[0] for name in _imports(file)}
        assert not found & _LOADERS, file


def test_a_head_connects_to_nobody() -> None:
    """Its code has no client: not ours, nor another one."""
    for file in (PACKAGE / "peer").glob("*.py"):
        for name in _imports(file):
            assert not name.startswith(tuple(_DIALERS)), file
            assert not _CLIENTS.fullmatch(name), file
        text = file.read_text("utf-8")
        for call in ("ClientSession", "open_connection", "create_connection", "connect_tcp"):
            assert call not in text, file


def test_no_release_of_the_http_library_with_known_flaws_is_accepted() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    named = re.findall(r"'aiohttp>=(\d+)\.(\d+)", repr(settings["project"]))

    assert named
    assert all((int(major), int(minor)) >= (3, 14) for major, minor in named)
