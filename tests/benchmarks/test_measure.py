"""The arithmetic of the benchmarks, and how a process is watched."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import arguments, chosen, complete_pages
from tests.benchmarks.measure import Limit, Verdict, alternate, judge, medians, run
from tests.benchmarks.peers import CLIENTS, COMMANDS
from tests.benchmarks.rows import ROWS
from tests.benchmarks.servers import count_requests
from tests.benchmarks.work import TREES, Tree, check

CASES = {
    "asyncsync": {"wall_s": 1.0, "steps_ratio": 0.95},
    "fast": {"wall_s": 2.0},
    "slow": {"wall_s": 4.0},
    "instant": {"wall_s": 0.0},
}


def test_the_median_is_taken_of_each_metric() -> None:
    samples = [{"wall_s": 3.0, "cpu_s": 1.0}, {"wall_s": 1.0, "cpu_s": 2.0}, {"wall_s": 2.0}]

    assert medians(samples) == {"wall_s": 2.0}
    assert medians(samples[:2]) == {"cpu_s": 1.5, "wall_s": 2.0}
    assert medians([]) == {}


@pytest.mark.parametrize(
    ("limit", "value", "met"),
    [
        (Limit(case="asyncsync", over=("slow",), bound=0.25), 0.25, True),
        (Limit(case="asyncsync", over=("slow",), bound=0.2), 0.25, False),
        (Limit(case="asyncsync", over=("slow", "fast", "absent"), bound=0.6), 0.5, True),
        (Limit(case="asyncsync", metric="steps_ratio", bound=0.9, at_least=True), 0.95, True),
        (Limit(case="asyncsync", metric="steps_ratio", bound=0.98, at_least=True), 0.95, False),
        (Limit(case="asyncsync", metric="cpu_s", bound=1.0), None, None),
        (Limit(case="absent", over=("fast",), bound=1.0), None, None),
        (Limit(case="asyncsync", over=("absent",), bound=1.0), None, None),
        (Limit(case="asyncsync", over=("instant",), bound=1.0), None, None),
    ],
)
def test_a_limit_is_judged(limit: Limit, value: float | None, met: bool | None) -> None:
    verdict = judge(limit, CASES)

    assert verdict == Verdict(limit, value)
    assert verdict.met is met


def test_cases_take_turns() -> None:
    order: list[str] = []

    def case(name: str) -> dict[str, float]:
        order.append(name)
        return {"wall_s": len(order)}

    samples, _ = alternate({"a": lambda: case("a"), "b": lambda: case("b")}, 2)

    assert order == ["a", "b", "b", "a"]
    assert samples["b"] == [{"wall_s": 2}, {"wall_s": 3}]


def test_a_case_that_fails_is_out_and_the_others_go_on() -> None:
    def broken() -> dict[str, float]:
        raise RuntimeError("no route")

    samples, failures = alternate({"a": broken, "b": lambda: {"wall_s": 1.0}}, 2)

    assert samples == {"b": [{"wall_s": 1.0}, {"wall_s": 1.0}]}
    assert failures == {"a": "no route"}


def test_a_program_is_watched_with_its_children(tmp_path: Path) -> None:
    code = (
        "import os, time; os.fork() or bytearray(b'x') * 50_000_000; time.sleep(0.5); os._exit(0)"
    )

    sample = run([sys.executable, "-c", code], os.environ, folder=tmp_path)

    assert sample["wall_s"] >= 0.5
    assert sample["pss_bytes"] > 0


def test_what_a_program_says_of_itself_comes_first(tmp_path: Path) -> None:
    code = """print('hello'); print('{"wall_s": 77.0, "base_bytes": 0}')"""

    sample = run([sys.executable, "-c", code], os.environ, folder=tmp_path)

    assert sample["wall_s"] == 77.0
    assert sample["pss_over_bytes"] == sample["pss_bytes"]


def test_a_failure_shows_what_was_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 1: no luck"):
        run([sys.executable, "-c", "raise SystemExit('no luck')"], os.environ, folder=tmp_path)


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    code = "import time; time.sleep(60)"

    with pytest.raises(RuntimeError, match="ended with -9"):
        run([sys.executable, "-c", code], os.environ, folder=tmp_path, timeout_s=0.1)


def test_a_tree_is_made_as_it_is_described(tmp_path: Path) -> None:
    tree = Tree(((600, 10), (1, 5_000)))

    folder = tree.make(tmp_path / "tree")

    check(tree, folder)
    assert len({path.read_bytes() for path in folder.rglob("*.bin")}) == tree.files
    with pytest.raises(RuntimeError, match="601 files, 11000 bytes arrived"):
        check(Tree(((601, 10),)), folder)


def test_a_smaller_tree_keeps_its_few_large_files() -> None:
    assert Tree(((1, 1000), (5_000, 10))).smaller(10) == Tree(((1, 100), (500, 10)))


def test_requests_are_counted_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    asked = ["PUT /b/old", "GET /b/k", "HEAD /b/k", "GET /b?list-type=2&prefix=t", "DELETE /b/k"]
    lines = [f'127.0.0.1 - - [now] "{text} HTTP/1.1" 200 5 "-" "-"\n' for text in asked]
    log.write_text("".join(lines))

    counts = count_requests(log, len(lines[0]))

    assert counts == {"requests": 4, "writes": 1, "lists": 1}


def test_every_row_names_what_there_is() -> None:
    cases = [case for row in ROWS for case in row.cases.values()]
    limits = [(row, limit) for row in ROWS for limit in row.limits]

    assert {case.tool for case in cases} <= CLIENTS.keys() | COMMANDS.keys()
    assert {case.tree for case in cases} <= TREES.keys()
    assert all({limit.case, *limit.over} <= row.cases.keys() for row, limit in limits)


def pages_after(*line: str) -> list[str]:
    options = arguments(line)
    return list(complete_pages(options, chosen(options.only, rare=options.all)))


@pytest.mark.parametrize("partial", [["--quick"], ["--only", "lag"], ["--repeat", "4"]])
def test_a_partial_run_never_replaces_a_page(partial: list[str]) -> None:
    assert pages_after(*partial) == []


def test_a_run_of_all_rows_of_a_page_replaces_that_page_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    between = [row.name for row in ROWS if row.page == "benchmarks-nodes"]

    assert pages_after("--only", *between) == ["benchmarks-nodes"]
    assert pages_after("--only", *between[1:]) == []
    monkeypatch.setattr("tests.benchmarks.servers.has_nginx", lambda: True)
    assert pages_after() == ["benchmarks", "benchmarks-nodes"]
    monkeypatch.setattr("tests.benchmarks.servers.has_nginx", lambda: False)
    assert pages_after() == ["benchmarks-nodes"]


def test_a_million_files_are_moved_on_demand_only() -> None:
    assert all(not row.rare for row in chosen([], rare=False))
    assert chosen([], rare=True) == list(ROWS)
    assert [row.name for row in chosen(["memory-million"], rare=False)] == ["memory-million"]
