"""The rows of the table: who moves what where, and the target that each is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .measure import Limit
from .work import MIB

__all__ = ["ROWS", "Case", "Page", "Row"]

Page = Literal["benchmarks", "benchmarks-nodes"]

BUDGET_BYTES = 256 * MIB  # what StorageSyncer holds at most, unless told otherwise
ABOVE_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One contestant of a row.

    Attributes:
        tool: a name of `peers`.
        action: as in `Job`.
        to_disk: what comes down goes to a disk, not to tmpfs.
        counted: the requests are taken from the server's log.
        stalls_after: bytes after which the server takes no more; the transfer runs into its limit.
        isolation: of asyncsync. The others work in the process that is measured, and so does it,
            except where it matters what the caller's own loop feels.
    """

    tool: str
    action: str
    tree: str
    server: str
    to_disk: bool = False
    counted: bool = False
    trainer: str = ""
    threads: int | None = None
    bwlimit: float | None = None
    stalls_after: int | None = None
    isolation: str = "loop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        cases: by label; they alternate.
        note: what one has to know to read the numbers.
        max_repeat: more runs than this would take too long.
        rare: only with `--all`.
        page: of the documentation that it stands on.
    """

    name: str
    title: str
    cases: dict[str, Case]
    limits: tuple[Limit, ...] = ()
    note: str = ""
    max_repeat: int = 1000
    rare: bool = False
    page: Page = "benchmarks"


def _race(
    tools: str, action: str, tree: str, server: str, *, to_disk: bool = False
) -> dict[str, Case]:
    return {
        tool: Case(tool=tool, action=action, tree=tree, server=server, to_disk=to_disk)
        for tool in tools.split(", ")
    }


def _ours(action: str, tree: str, server: str = "nginx", **more: object) -> Case:
    return Case(tool="asyncsync", action=action, tree=tree, server=server, **more)  # type: ignore[arg-type]


def _nodes(action: str, tree: str, head: str = "head") -> dict[str, Case]:
    return {
        "asyncsync": _ours(action, tree, head),
        "rsync": Case(tool="rsync", action=action, tree=tree, server="rsync daemon"),
    }


_NODES_NOTE = (
    "rsync: a daemon, `--archive --whole-file`, the whole program's time. The head compares the "
    "digest of everything, and flushes; where both ends lie on tmpfs, that costs nothing. The bare "
    "pipe reads, hashes and sends, and receives, hashes and writes, in two plain loops: the floor."
)


def _against(bound: float, *peers: str) -> Limit:
    return Limit(case="asyncsync", over=peers, bound=bound)


def _trainer(kind: str) -> Row:
    limits = (
        Limit(case="busy", over=("idle",), bound=2.0),
        Limit(case="busy", metric="steps_ratio", bound=0.9, at_least=True),
    )
    cases = {
        "idle": _ours("up", "small", "rclone", isolation="process"),
        "busy": _ours("up", "small", "rclone", isolation="process", trainer=kind),
    }
    if kind == "numpy":  # by itself it takes all cores, of which the server needs some
        one = _ours("up", "small", "rclone", isolation="process", trainer=kind, threads=1)
        cases["busy, BLAS threads = 1"] = one
    return Row(
        name=f"trainer-{kind}",
        title=f"2,000 x 10 KiB up while the caller's loop runs 50 ms blocking steps of {kind}",
        cases=cases,
        limits=limits,
        max_repeat=5,
    )


def _memory(name: str, title: str, case: Case, files: int = 0) -> Row:
    bound = BUDGET_BYTES + ABOVE_BYTES + 500 * files
    limit = Limit(case="asyncsync", metric="pss_over_bytes", bound=bound)
    return Row(
        name=f"memory-{name}",
        title=f"memory over baseline: {title}",
        cases={"asyncsync": case},
        limits=(limit,),
        max_repeat=1,
        rare=files > 0,
    )


_ALL = "asyncsync, bare client, obstore, s5cmd, rclone, aiobotocore, s3fs, awscli"
_BULK = "asyncsync, bare client, obstore, s5cmd, rclone, aiobotocore, awscli"
_PEERS = ("obstore", "s5cmd", "rclone", "aiobotocore", "awscli")
_TREES = ("1e3", "1e4", "1e5")

ROWS = (
    Row(
        name="small-up",
        title="2,000 x 10 KiB up",
        cases=_race(_ALL, "up", "small", "rclone"),
        limits=(_against(0.6, "s5cmd"), _against(1.0, "obstore"), _against(0.4, "aiobotocore")),
    ),
    Row(
        name="small-down",
        title="2,000 x 10 KiB down, to tmpfs",
        cases=_race(_ALL, "down", "small", "rclone"),
        limits=(_against(0.9, "s5cmd"),),
    ),
    Row(
        name="small-down-disk",
        title="2,000 x 10 KiB down, to a disk",
        cases=_race("asyncsync, s5cmd, obstore", "down", "small", "rclone", to_disk=True)
        | {"rsync": Case(tool="rsync", action="down", tree="small", server="", to_disk=True)},
        note="asyncsync flushes every file and directory; no peer does. rsync copies from tmpfs.",
    ),
    Row(
        name="large-up",
        title="4 x 256 MiB up",
        cases=_race(_BULK, "up", "large", "nginx"),
        limits=(
            _against(1.0, "obstore"),
            _against(round(1 / 1.8, 3), "s5cmd"),
            _against(0.5, "aiobotocore"),
        ),
    ),
    Row(
        name="large-down",
        title="4 x 256 MiB down, to tmpfs",
        cases=_race(_BULK, "down", "large", "nginx"),
        limits=(_against(1.0, *_PEERS),),
    ),
    Row(
        name="mixed-up",
        title="1 x 1 GiB, 20 x 50 MiB, 5,000 x 10 KiB up",
        cases=_race(_BULK, "up", "mixed", "nginx"),
        limits=(_against(0.9, *_PEERS), _against(0.7, *_PEERS)),
    ),
    Row(
        name="resync",
        title="re-sync of 10,000 unchanged files",
        cases=_race("asyncsync, s5cmd, awscli", "sync", "many", "rclone")
        | {"asyncsync, counted": _ours("sync", "many", counted=True)},
        limits=(
            _against(1.0, "s5cmd"),
            Limit(case="asyncsync, counted", metric="writes", bound=0),
            Limit(case="asyncsync, counted", metric="lists", bound=0),
            Limit(case="asyncsync, counted", metric="requests", bound=3),
        ),
        note="asyncsync compares digests, known for files whose times are the same; the others "
        "compare sizes and times. Requests: at the sink.",
    ),
    Row(
        name="command",
        title="the command line, 2,000 x 10 KiB up, whole process",
        cases=_race("asyncsync command, s5cmd", "up", "small", "rclone"),
        limits=(Limit(case="asyncsync command", over=("s5cmd",), bound=1.2),),
    ),
    _trainer("numpy"),
    _trainer("python"),
    Row(
        name="bwlimit",
        title="16 x 64 MiB up at 64 MiB/s beside steps of numpy, BLAS threads = 1",
        cases={
            "asyncsync": _ours(
                "up",
                "limited",
                isolation="process",
                trainer="numpy",
                threads=1,
                bwlimit=64.0 * MIB,
            )
        },
        limits=(Limit(case="asyncsync", metric="steps_ratio", bound=0.98, at_least=True),),
        max_repeat=3,
    ),
    Row(
        name="lag",
        title="lag of the caller's event loop, 2 GiB + 10,000 x 10 KiB up",
        cases={"asyncsync": _ours("up", "busy", isolation="process")},
        limits=(
            Limit(case="asyncsync", metric="lag_p99_s", bound=0.005),
            Limit(case="asyncsync", metric="lag_max_s", bound=0.05),
        ),
    ),
    _memory("sparse", "a sparse file of 20 GiB up", _ours("up", "sparse")),
    _memory("stalled", "a sink that stalls", _ours("up", "large", stalls_after=64 * MIB)),
    _memory("million", "1,000,000 x 1 KiB up", _ours("up", "1e6"), files=10**6),
    Row(
        name="scheduler",
        page="benchmarks-nodes",
        title="10,000 trials that report once a second",
        cases={"scheduler": Case(tool="scheduler", action="schedule", tree="1e3", server="")},
        limits=(
            Limit(case="scheduler", metric="cpu_ratio", bound=0.10),
            Limit(case="scheduler", metric="pss_bytes", bound=200 * MIB),
            Limit(case="scheduler", metric="decision_s", bound=5e-6),
            Limit(case="scheduler", metric="report_p99_s", bound=50e-6),
        ),
        note="The syncer costs nothing. Period 300 s; each trial has been synced once before the "
        "clock of CPU and reports starts. Without reports: what the same program takes that calls "
        "an empty function instead.",
        max_repeat=3,
    ),
    Row(
        name="peer-large",
        page="benchmarks-nodes",
        title="4 x 256 MiB to a head",
        cases=_nodes("up", "large")
        | {"bare pipe": Case(tool="bare pipe", action="up", tree="large", server="")},
        limits=(_against(1 / 2, "rsync"), _against(1 / 3, "rsync")),
        note=_NODES_NOTE,
    ),
    Row(
        name="peer-large-disk",
        page="benchmarks-nodes",
        title="4 x 256 MiB to a head, on a disk",
        cases={
            "asyncsync": _ours("up", "large", "head", to_disk=True),
            "rsync --fsync": Case(
                tool="rsync --fsync",
                action="up",
                tree="large",
                server="rsync daemon",
                to_disk=True,
            ),
        },
        note=_NODES_NOTE,
    ),
    Row(
        name="peer-large-tls",
        page="benchmarks-nodes",
        title="4 x 256 MiB to a head over TLS",
        cases=_nodes("up", "large", "head, TLS")
        | {
            "rsync over ssh": Case(
                tool="rsync", action="up", tree="large", server="rsync over ssh"
            ),
            "bare pipe, TLS": Case(tool="bare pipe, TLS", action="up", tree="large", server=""),
        },
        limits=(_against(1 / 0.8, "rsync"), _against(round(1 / 1.5, 3), "rsync over ssh")),
        note=_NODES_NOTE,
    ),
    Row(
        name="peer-small",
        page="benchmarks-nodes",
        title="2,000 x 10 KiB to a head",
        cases=_nodes("up", "small"),
        limits=(_against(2.0, "rsync"), _against(1.2, "rsync")),
        note=_NODES_NOTE,
    ),
    Row(
        name="peer-resync",
        page="benchmarks-nodes",
        title="10,000 unchanged files to a head",
        cases=_nodes("sync", "many"),
        limits=(
            _against(2.0, "rsync"),
            Limit(case="asyncsync", metric="requests", bound=1),
        ),
        note=_NODES_NOTE,
    ),
    Row(
        name="peer-one-byte",
        page="benchmarks-nodes",
        title="20 x 64 MiB to a head, one byte of one file changed",
        cases={"asyncsync": _ours("one byte", "twenty", "head")},
        limits=(Limit(case="asyncsync", metric="sent_files", bound=1),),
        max_repeat=1,
    ),
    Row(
        name="peer-clients",
        page="benchmarks-nodes",
        title="64 clients in 4 programs, 32 MiB each, to one head",
        cases={"64 clients": Case(tool="64 clients", action="up", tree="client", server="head")},
        limits=(
            Limit(case="64 clients", metric="slowest_ratio", bound=2.0),
            Limit(case="64 clients", metric="head_pss_bytes", bound=400 * MIB),
            Limit(case="64 clients", metric="head_lag_p99_s", bound=0.02),
        ),
        max_repeat=3,
    ),
    Row(
        name="files",
        title="CPU seconds per file: 1,000, 10,000 and 100,000 x 1 KiB up",
        cases={tree: _ours("up", tree) for tree in _TREES},
        limits=tuple(
            Limit(case=tree, metric="cpu_per_file_s", over=_TREES, bound=1.2) for tree in _TREES
        ),
        max_repeat=3,
    ),
)
