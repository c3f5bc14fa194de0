"""Every row of the decision table, as the docs print it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from asyncsync.errors import (
    AsyncSyncError,
    ConfigError,
    ConflictError,
    DeadlineError,
    IntegrityError,
    TransferError,
    TransientError,
)
from asyncsync.scheduling import Decision, Facts, Rules, decide
from asyncsync.scheduling.due import is_transient, pause_s
from asyncsync.syncing import SyncConfig

PAGE = Path(__file__).parents[2] / "docs" / "scheduling.md"
POLICIES = ("coalesce", "queue", "skip", "supersede")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table(first: str) -> list[list[str]]:
    """The rows of the table whose header begins with `first`."""
    lines = PAGE.read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append(cells(line))
    return found


ROWS = table("forced")
BY_POLICY = {row[0].strip("`"): row[1] for row in table("policy")}


def fits(cell: str, value: bool) -> bool:
    return cell == "any" or (cell == "yes") is value


def said(facts: Facts, policy: str) -> str:
    """What the first row that fits says; what is forced is due and has changed."""
    asked = facts.forced
    values = (
        asked,
        asked or facts.changed,
        asked or facts.reached,
        asked or facts.wait_s <= 0,
        facts.busy,
        facts.stuck,
    )
    row = next(r for r in ROWS if all(map(fits, r[:6], values)))
    return BY_POLICY[policy] if row[6] == "by policy" else row[6]


def all_facts() -> Iterator[Facts]:
    yes = (False, True)
    for forced, changed, reached, wait_s, busy, stuck in product(
        yes, yes, yes, (-1.0, 0.0, 1e-9, 5.0), yes, yes
    ):
        yield Facts(forced, changed, reached, wait_s, busy, stuck)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_case_is_decided_as_the_table_says(policy: str) -> None:
    wrong = [
        facts
        for facts in all_facts()
        if decide(facts, policy).value != said(facts, policy)  # type: ignore[arg-type]
    ]

    assert wrong == []


def test_every_row_and_every_decision_is_met() -> None:
    met = {said(facts, policy) for facts in all_facts() for policy in POLICIES}

    assert met == {decision.value for decision in Decision}
    assert set(BY_POLICY) == set(POLICIES)


@pytest.mark.parametrize(
    ("iterations", "seconds", "reached"),
    [
        (0, 0.0, False),
        (1, 5.0, False),
        (1, 9.999, False),
        (2, 0.0, True),
        (1, 10.0, True),
        (None, 1.0, True),
        (1, None, True),
        (None, None, True),
    ],
)
def test_one_threshold_is_enough_and_a_missing_number_counts_as_reached(
    iterations: float | None, seconds: float | None, reached: bool
) -> None:
    assert Rules().reached(iterations, seconds) is reached


@pytest.mark.parametrize(
    ("environ", "iterations", "seconds"),
    [
        ({}, 2, 10.0),
        ({"TUNE_NODE_SYNCING_MIN_ITER_THRESHOLD": "5"}, 5, 10.0),
        ({"TUNE_NODE_SYNCING_MIN_TIME_S_THRESHOLD": "2.5"}, 2, 2.5),
        ({"ASYNCSYNC_MIN_ITERATIONS": "0", "ASYNCSYNC_MIN_SECONDS": "0"}, 0, 0.0),
        (
            {"ASYNCSYNC_MIN_ITERATIONS": "7", "TUNE_NODE_SYNCING_MIN_ITER_THRESHOLD": "5"},
            7,
            10.0,
        ),
    ],
)
def test_the_environment_changes_the_thresholds(
    environ: dict[str, str], iterations: int, seconds: float
) -> None:
    rules = Rules.of(SyncConfig(), environ)

    assert (rules.min_iterations, rules.min_seconds) == (iterations, seconds)
    assert rules.period_s == 300


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ASYNCSYNC_MIN_ITERATIONS", "many"),
        ("ASYNCSYNC_MIN_ITERATIONS", "1.5"),
        ("ASYNCSYNC_MIN_ITERATIONS", "-1"),
        ("ASYNCSYNC_MIN_SECONDS", "nan"),
        ("ASYNCSYNC_MIN_SECONDS", "inf"),
        ("TUNE_NODE_SYNCING_MIN_TIME_S_THRESHOLD", ""),
    ],
)
def test_a_threshold_that_is_no_number_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Rules.of(SyncConfig(), {name: value})


def test_an_overlap_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="coalesce, queue, skip, supersede"):
        Rules(overlap="wait")  # type: ignore[arg-type]


def test_pauses_double_up_to_a_period() -> None:
    assert [pause_s(n, 60.0) for n in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert pause_s(10_000, float("inf")) > 0


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (TransientError("x"), True),
        (DeadlineError("x"), True),
        (RuntimeError("who knows"), True),
        (ConflictError("x", winner=""), False),
        (IntegrityError("x"), False),
        (AsyncSyncError("x"), False),
        (TransferError("x", failures=[TransientError("y")]), True),
        (TransferError("x", failures=[TransientError("y"), IntegrityError("z")]), False),
    ],
)
def test_an_unknown_error_counts_as_transient(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient
