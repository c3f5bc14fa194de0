"""The table and the plots."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from . import peers, servers
from .bench import Result
from .measure import Verdict
from .rows import Page
from .work import GIB, MIB

__all__ = ["page", "plot", "section"]

_HEAD = """# {title}

Written by `nox -s bench` on {date}; do not edit. {machine}

{versions}

{conditions}
"""
_TITLES: dict[Page, str] = {
    "benchmarks": "Benchmarks",
    "benchmarks-nodes": "Benchmarks between nodes, and of the scheduler",
}
_CONDITIONS: dict[Page, str] = {
    "benchmarks": """\
asyncsync runs with everything on: digests of every file, manifest, seal, verification; on a uvloop
in the process that asks. Peers run at their defaults, rclone and the Python clients with 32
transfers at once. The bare client is aiohttp with signed requests, nothing else: the floor. Cases
alternate, each run is a fresh process, and each number is a median. The clock of commands covers
the whole process; that of Python clients starts after their imports. CPU is user + system of the
process and its children; memory is the peak of the summed PSS, taken every 100 ms. Transport is
HTTP/1.1 over loopback without TLS; servers and trees lie on tmpfs, so the page cache is always
warm. `rclone serve s3` checks signatures and MD5, and after each run the number and sizes of the
files were compared; the nginx sink (two workers) checks nothing and drops what comes in parts.
Servers share the cores with the clients.""",
    "benchmarks-nodes": """\
asyncsync runs with everything on: digests of every file at both ends, manifest, seal; on a uvloop
in the process that asks. Cases alternate, each run is a fresh process, and each number is a median.
The clock of commands covers the whole process; that of Python clients starts after their imports.
CPU is user + system of the client and its children, without that of a server; memory is the peak of
the summed PSS, taken every 100 ms. All of it goes over loopback, and both ends share the cores;
trees lie on tmpfs unless a row says otherwise.""",
}

_BASIC = {"wall_s", "cpu_s", "pss_bytes", "lag_p99_s", "lag_max_s", "empty_cpu_ratio"}
_SHOWN = {  # metric -> heading, unit
    "wall_s": ("wall", 1.0, "s"),
    "cpu_s": ("CPU", 1.0, "s"),
    "pss_bytes": ("peak PSS", MIB, "MiB"),
    "lag_p99_s": ("lag p99", 1e-3, "ms"),
    "lag_max_s": ("lag max", 1e-3, "ms"),
    "steps_ratio": ("steps", 0.01, "%"),
    "pss_over_bytes": ("over baseline", MIB, "MiB"),
    "cpu_per_file_s": ("CPU per file", 1e-6, "µs"),
    "cpu_ratio": ("of one core", 0.01, "%"),
    "empty_cpu_ratio": ("without reports", 0.01, "%"),
    "report_p99_s": ("report p99", 1e-6, "µs"),
    "decision_s": ("decision", 1e-6, "µs"),
    "writes": ("writes", 1, ""),
    "lists": ("lists", 1, ""),
    "requests": ("requests", 1, ""),
    "sent_files": ("files sent", 1, ""),
    "slowest_ratio": ("slowest / median", 1, ""),
    "head_pss_bytes": ("head's memory", MIB, "MiB"),
    "head_lag_p99_s": ("head's lag p99", 1e-3, "ms"),
    "head_lag_max_s": ("head's lag max", 1e-3, "ms"),
}


def page(name: Page, results: Sequence[Result], plots: Collection[Path] = ()) -> str:
    """The whole document; `plots` are those that `plot` has written."""
    images = {path.stem: f"![{path.stem}](images/{path.name})\n" for path in plots}
    found = peers.versions() | ({"nginx": servers.nginx_version()} if servers.has_nginx() else {})
    head = _HEAD.format(
        title=_TITLES[name],
        conditions=_CONDITIONS[name],
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=machine(),
        versions=", ".join(f"{name} {version}" for name, version in found.items()),
    )
    verdicts = [(result.row.title, verdict) for result in results for verdict in result.verdicts]
    summary = _table(("work", "measured", "value", "target", ""), map(_verdict_cells, verdicts))
    sections = (section(r) + "\n" + images.get(f"bench-{r.row.name}", "") for r in results)
    return "\n".join((head, "## Targets\n", summary, *sections))


def section(result: Result) -> str:
    """One row: its cases, its verdicts, and what was left out."""
    servers_ = sorted({case.server or "no server" for case in result.row.cases.values()})
    lines = [f"## {result.row.title}\n"]
    where = " and ".join(servers_)
    lines.append(f"`{result.row.name}`, {where}, median of {result.repeat}. {result.row.note}\n")
    wanted = _BASIC | {limit.metric for limit in result.row.limits}
    there = set().union(*result.cases.values())
    names = [name for name in _SHOWN if name in wanted & there]
    body = ([label, *(_cell(case, n) for n in names)] for label, case in result.cases.items())
    lines.append(_table(["", *(_SHOWN[name][0] for name in names)], body))
    if result.verdicts:
        cells = (_verdict_cells(("", verdict))[1:] for verdict in result.verdicts)
        lines.append(_table(("measured", "value", "target", ""), cells))
    lines += [f"Left out: {label}: {_short(reason)}\n" for label, reason in result.skipped.items()]
    return "\n".join(lines)


def _short(reason: str) -> str:
    """Its last line, and at most 300 characters of that."""
    return reason.strip().rpartition("\n")[2].strip()[:300]


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(heads)
    body = [[*row] for row in rows]
    widths = [max(len(line[i]) for line in [names, *body]) for i in range(len(names))]

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(c.ljust(w) for c, w in zip(cells, widths, strict=True))} |"

    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join((line(names), rule, *map(line, body), ""))


def _cell(case: Mapping[str, float], name: str) -> str:
    return _amount(case[name], name) if name in case else ""


def _amount(value: float, name: str) -> str:
    _, divisor, unit = _SHOWN[name]
    return (
        f"{value / divisor:.3g} {unit}".strip()
        if value / divisor < 100
        else (f"{value / divisor:,.0f} {unit}".strip())
    )


def _verdict_cells(item: tuple[str, Verdict]) -> tuple[str, ...]:
    title, verdict = item
    limit = verdict.limit
    mark = {True: "met", False: "**not met**", None: "not measured"}[verdict.met]
    sign = "≥" if limit.at_least else "≤"

    def text(value: float) -> str:
        return f"{value:.2f}" if limit.over else _amount(value, limit.metric)

    shown = "" if verdict.value is None else text(verdict.value)
    against = f" / {' or '.join(limit.over)}" if limit.over else ""
    what = f"{limit.case}{against}: {_SHOWN[limit.metric][0]}"
    return title, what, shown, f"{sign} {text(limit.bound)}", mark


def machine() -> str:
    """Processor, memory and kernel in one sentence."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    cores = len(os.sched_getaffinity(0))
    python = platform.python_version()
    return (
        f"{cores} cores of {model}, {memory:.0f} GiB, Linux {platform.release()}, Python {python}."
    )


def plot(results: Sequence[Result], folder: Path) -> list[Path]:
    """Bars of the wall times of each row with peers, as SVG; nothing without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    new_figure = importlib.import_module("matplotlib.figure").Figure
    importlib.import_module("matplotlib").rcParams["svg.hashsalt"] = (
        "asyncsync"  # the same names in every run
    )
    written = []
    for result in results:
        bars = {label: case["wall_s"] for label, case in result.cases.items() if "wall_s" in case}
        if len(bars) < 2:
            continue
        figure = new_figure(figsize=(7, 0.6 + 0.35 * len(bars)), layout="constrained")
        axes = figure.subplots()
        colors = ["#1f77b4" if label.startswith("asyncsync") else "#bbbbbb" for label in bars]
        axes.barh(list(bars), list(bars.values()), color=colors)
        axes.invert_yaxis()
        axes.set(title=result.row.title, xlabel="seconds; less is better")
        path = folder / f"bench-{result.row.name}.svg"
        figure.savefig(path, metadata={"Date": None})
        written.append(path)
    return written
