"""`python -m tests.benchmarks`: measures every row and prints the table; see docs/benchmarks.md.

A run that is complete for a page of the documentation writes it, and its plots.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

from . import servers
from .bench import ROOT, Bench, Result
from .report import machine, page, plot, section
from .rows import ROWS, Page, Row

__all__: list[str] = []

QUICK_DIVISOR = 10
MEMORY_BYTES = 8 * 1024**3


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.benchmarks", description=__doc__)
    names = [row.name for row in ROWS]
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="NAME")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each case")
    parser.add_argument("--quick", action="store_true", help="one run, smaller trees")
    parser.add_argument("--all", action="store_true", help="with 1,000,000 files, too")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    return parser.parse_args(argv)


def chosen(only: Sequence[str], *, rare: bool) -> list[Row]:
    """The rows to measure, in the order of the table."""
    return [row for row in ROWS if (row.name in only if only else rare or not row.rare)]


def complete_pages(options: argparse.Namespace, rows: Sequence[Row]) -> list[Page]:
    """The pages that a run may replace."""
    if options.quick or options.repeat < 5:
        return []
    missing = {row.page for row in ROWS if not (row.rare or row in rows)}
    if not servers.has_nginx():
        missing.add("benchmarks")
    return [page for page in get_args(Page) if page not in missing]


def main() -> None:
    options = arguments()
    rows = chosen(options.only, rare=options.all)
    if options.list:
        print("\n".join(f"{row.name:16} {row.title}" for row in rows))
        return
    if not servers.has_nginx():
        print("Without nginx and its echo module (nginx-light in Debian) its rows are skipped.\n")
    if shutil.disk_usage("/dev/shm").free < MEMORY_BYTES:
        raise SystemExit("the benchmarks need 8 GiB in /dev/shm")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers and trees go, too
    print(machine() + "\n")
    results = measure(rows, options)
    for name in complete_pages(options, rows):
        mine = [result for result in results if result.row.page == name]
        plots = plot(mine, ROOT / "docs/images")
        (ROOT / "docs" / f"{name}.md").write_text(page(name, mine, plots), encoding="utf-8")


def measure(rows: Sequence[Row], options: argparse.Namespace) -> list[Result]:
    """Measure rows one by one, and print each when it is done."""
    results = []
    with ExitStack() as stack:
        folder, disk = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(dir=where, prefix="asyncsync-")))
            for where in ("/dev/shm", "/var/tmp")
        )
        bench = Bench(stack, folder, disk, QUICK_DIVISOR if options.quick else 1)
        for number, row in enumerate(rows):
            result = bench.measure(row, 1 if options.quick else options.repeat)
            print(section(result), flush=True)
            results.append(result)
            later = {
                case.tree for following in rows[number + 1 :] for case in following.cases.values()
            }
            for tree in {case.tree for case in row.cases.values()} - later:
                bench.forget(tree)
    return results


if __name__ == "__main__":
    main()
