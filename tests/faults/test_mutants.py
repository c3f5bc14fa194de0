"""Known bugs, put into a copy of the package: each has to be caught by the test that it names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

import asyncsync

ROOT = Path(__file__).parents[2]
PATCHES = sorted((ROOT / "tests" / "mutants").glob("*.patch"))
FAILED = 1  # pytest's exit code for "tests ran and failed"; others are errors of the run itself


def _test_of(patch: Path) -> str:
    """The test that a mutant's first line names."""
    first = patch.read_text().splitlines()[0]
    match = re.fullmatch(r"# caught by (tests/\S+::\S+)", first)
    assert match, f"{patch.name} names no test in its first line"
    return match[1]


def _copy(folder: Path) -> Path:
    folder.mkdir()
    package = Path(asyncsync.__file__).parent
    copytree(package, folder / "asyncsync", ignore=ignore_patterns("__pycache__"))
    return folder


def _run(tests: list[str], package: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(package), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *tests], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def _run_mutant(patch: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    package = _copy(folder / patch.stem)
    applied = subprocess.run(
        ["patch", "--strip=1", "--batch", "--forward", f"--directory={package}"],
        input=patch.read_text(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert applied.returncode == 0, f"{patch.name} does not apply any more: {applied.stdout}"
    return _run([_test_of(patch)], package)


Runs = dict[Path, "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The runs of all mutants, two at a time."""
    folder = tmp_path_factory.mktemp("mutants")
    with ThreadPoolExecutor(2) as pool:
        yield {patch: pool.submit(_run_mutant, patch, folder) for patch in PATCHES}


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_mutant_is_one_of_the_code_as_it_is(patch: Path) -> None:
    command = ["patch", "--strip=1", "--batch", "--forward", "--dry-run"]
    with patch.open("rb") as change:
        done = subprocess.run(
            [*command, f"--directory={Path(asyncsync.__file__).parents[1]}"],
            stdin=change,
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 0, f"{patch.name} does not apply any more: {done.stdout}"


@pytest.mark.mutants
@pytest.mark.timeout(300)
def test_the_tests_that_mutants_name_pass_without_them(tmp_path: Path) -> None:
    done = _run(sorted({_test_of(patch) for patch in PATCHES}), _copy(tmp_path / "unchanged"))

    assert done.returncode == 0, done.stdout


@pytest.mark.mutants
@pytest.mark.timeout(300)
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_mutant_is_caught_by_the_test_that_it_names(patch: Path, runs: Runs) -> None:
    done = runs[patch].result()

    assert done.returncode == FAILED, done.stdout + done.stderr
    assert re.search(
        r"AssertionError|asyncsync\.errors\.|DID NOT RAISE|^E +assert", done.stdout, re.M
    )
