"""The shape of the package: doors, cost of the import, and what its code never does."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from inspect import ismodule
from pathlib import Path

import pytest

import asyncsync

PACKAGE = Path(asyncsync.__file__).parent
CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"
MODULES = sorted(PACKAGE.rglob("*.py"))
DOORS = [
    "asyncsync.scheduling",
    "asyncsync.storage",
    "asyncsync.storage.committed",
    "asyncsync.storage.local",
    "asyncsync.syncing",
    "asyncsync.syncing.isolation",
    "asyncsync.testing",
    "asyncsync.transfer",
]
HEAVY = ("aiobotocore", "aiohttp", "botocore", "click", "fsspec", "gcloud", "numpy", "rich")

MAX_LINES = 450
LONGER = {
    "scheduling/scheduler.py": 490,  # a front door: every method with what it promises
    "syncing/loop_syncer.py": 480,  # the same, done
    "syncing/storage_syncer.py": 510,  # the front door: every method with what it promises
    "syncing/upload.py": 550,  # one upload from look to receipt
    "testing/contract_trees.py": 800,  # a suite, one short test after the other
}

NEVER_CALLED = {
    "time.sleep": "blocks the loop; a Clock sleeps",
    "asyncio.create_task": "a task without an owner; a task group starts tasks",
    "asyncio.ensure_future": "the same",
    "asyncio.gather": "not bounded, and leaves tasks behind; each_bounded",
    "asyncio.wait_for": "a scope limits time",
    "print": "the library never prints; events",
}

EXCEPT = {
    # `finish` waits for the one task it starts, whatever happens; a group would cost every write
    # three more steps of the loop.
    ("concurrency.py", "asyncio.ensure_future"),
    # A save outlives the call that begins it. Its syncer waits for it or cancels it, and hears of
    # its end by a callback, also when it never had a turn.
    ("syncing/saved.py", "asyncio.create_task"),
    # A scheduler may be opened in one task and left in another, and its supervisor outlives both
    # calls; an attempt whose syncer does not end has to be left behind.
    ("scheduling/runner.py", "asyncio.create_task"),
    # A server, too, may be opened in one task and closed in another.
    ("peer/server.py", "asyncio.create_task"),
    ("scheduling/running.py", "asyncio.create_task"),
}


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names that are called or passed on, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            yield ast.unparse(node), node.lineno


def run(code: str) -> str:
    """What a fresh interpreter prints that sees the same packages as this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


# ---------------------------------------------------------------- doors


@pytest.mark.parametrize("door", DOORS)
def test_a_door_exports_exactly_what_it_lists(door: str) -> None:
    module = import_module(door)
    names = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not ismodule(value) and name != "annotations"
    }

    assert names == set(module.__all__)
    assert list(module.__all__) == sorted(module.__all__)


def test_the_front_door_leads_to_everything_it_lists() -> None:
    missing = [name for name in asyncsync.__all__ if not hasattr(asyncsync, name)]

    assert missing == []
    assert dir(asyncsync) == asyncsync.__all__ == sorted(asyncsync.__all__)


def test_the_front_door_lists_what_it_declares_for_type_checkers() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    declared = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }

    assert declared == set(asyncsync.__all__)


def test_the_front_door_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="module 'asyncsync' has no attribute 'upload'"):
        _ = asyncsync.upload


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_says_what_it_is_and_lists_what_it_offers(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    assert ast.get_docstring(tree)
    assert "__all__" in assigned or path.name == "__main__.py"


# ---------------------------------------------------------------- imports


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = run("import asyncsync, sys; print(*sorted(sys.modules))").split()

    assert "asyncsync" in loaded
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []


def test_using_every_name_of_the_front_door_loads_nothing_heavy() -> None:
    code = """
import asyncsync, sys
for name in asyncsync.__all__:
    if name != "PeerServer":  # whoever serves needs a server
        getattr(asyncsync, name)
print(*sorted(sys.modules))
"""
    loaded = run(code).split()

    assert "asyncsync.syncing.storage_syncer" in loaded
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []


def test_importing_the_package_costs_less_than_a_tenth_of_a_second() -> None:
    def seconds(code: str) -> float:
        started = time.perf_counter()
        run(code)
        return time.perf_counter() - started

    run("import asyncsync")  # so that everything is compiled
    extra = min(seconds("import asyncsync") - seconds("pass") for _ in range(5))

    assert extra < 0.1


# ---------------------------------------------------------------- code


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_never_does_what_has_a_better_way_here(path: Path) -> None:
    forbidden = [
        f"{name} in line {line}: {NEVER_CALLED[name]}"
        for name, line in calls(ast.parse(path.read_text()))
        if name in NEVER_CALLED and (relative(path), name) not in EXCEPT
    ]

    assert forbidden == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_imports_none_of_those_names_either(path: Path) -> None:
    imported = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]

    assert sorted(set(imported) & NEVER_CALLED.keys()) == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_is_finished(path: Path) -> None:
    assert re.findall(r"\b(?:TODO|FIXME|XXX)\b", path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text().splitlines())

    assert lines <= LONGER.get(relative(path), MAX_LINES)


def test_the_exceptions_in_length_are_needed() -> None:
    needless = [
        name for name in LONGER if len((PACKAGE / name).read_text().splitlines()) <= MAX_LINES
    ]

    assert needless == []


# ---------------------------------------------------------------- version


def test_the_version_is_in_the_changelog_or_still_unreleased() -> None:
    newest = re.search(r"^## \[(.+?)\]", CHANGELOG.read_text(), re.MULTILINE)

    assert newest is not None
    assert newest[1] in ("Unreleased", asyncsync.__version__)
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:\.?(?:dev|a|b|rc)\d+)?", asyncsync.__version__)
