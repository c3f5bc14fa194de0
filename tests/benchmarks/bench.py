"""What a run has at hand: servers, trees, and how one sample of a case is taken."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.servers import Server

from . import peers, servers
from .measure import Sample, Verdict, alternate, judge, medians, run
from .nodes import NODES, Node, is_missing
from .rows import Case, Row
from .work import TREES, Job, Tree, check

__all__ = ["Bench", "Result"]

ROOT = Path(__file__).parents[2]
STALLED_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A row that was measured.

    Attributes:
        cases: medians by label.
        skipped: labels that could not run, with the reason.
    """

    row: Row
    cases: Mapping[str, Mapping[str, float]]
    skipped: Mapping[str, str]
    verdicts: tuple[Verdict, ...]
    repeat: int


class Bench:
    """Takes samples; `stack` ends the servers.

    Args:
        folder: on tmpfs. disk: on a disk.
        divisor: trees are made smaller by it.
    """

    def __init__(self, stack: ExitStack, folder: Path, disk: Path, divisor: int) -> None:
        self._folder, self._disk, self._divisor = folder, disk, divisor
        self._servers = {"rclone": stack.enter_context(servers.rclone(folder / "rclone"))}
        self._buckets: dict[tuple[str, str], str] = {}  # by server and tree
        self._stack, self._nodes = stack, dict[tuple[str, bool], Node]()
        if servers.has_nginx():
            self._servers["nginx"] = stack.enter_context(servers.nginx(folder / "nginx"))

    def measure(self, row: Row, repeat: int) -> Result:
        """All cases of a row in turn."""
        repeat = min(repeat, row.max_repeat)
        reasons = {label: self._reason(case) for label, case in row.cases.items()}
        skipped = {label: reason for label, reason in reasons.items() if reason}
        able = {
            label: partial(self._sample, case)
            for label, case in row.cases.items()
            if label not in skipped
        }
        taken, failures = alternate(able, repeat)
        cases = {label: medians(samples) for label, samples in taken.items()}
        verdicts = tuple(judge(limit, cases) for limit in row.limits)
        left_out = skipped | failures
        return Result(row=row, cases=cases, skipped=left_out, verdicts=verdicts, repeat=repeat)

    def forget(self, tree: str) -> None:
        """Remove a tree and what was made of it."""
        shutil.rmtree(self._folder / "trees" / tree, ignore_errors=True)
        for place in [place for place in self._buckets if place[1] == tree]:
            servers.drop(self._servers[place[0]], self._buckets.pop(place))

    def _reason(self, case: Case) -> str:
        if peers.missing(case.tool):
            return "not installed"
        if case.server in NODES:
            return f"{case.server} is not installed" if is_missing(case.server) else ""
        if case.server and case.server not in self._servers:
            return f"{case.server} is not installed"
        return ""

    def _tree(self, name: str) -> Tree:
        return TREES[name].smaller(self._divisor) if self._divisor > 1 else TREES[name]

    def _sample(self, case: Case) -> Sample:
        with ExitStack() as stack:
            tree = self._tree(case.tree)
            source = tree.make(self._folder / "trees" / case.tree)
            target = (self._disk if case.to_disk else self._folder) / "target"
            shutil.rmtree(target, ignore_errors=True)
            stack.callback(shutil.rmtree, target, ignore_errors=True)
            if not case.server:
                job = Job(action=case.action, local=str(source), url=str(target), bucket="")
                return self._run(case, job, tree, target if case.tool == "rsync" else None)
            if case.server in NODES:
                return self._to_node(stack, case, tree, source)
            server = self._servers[case.server]
            if case.action == "up":
                bucket = server.bucket()
                stack.callback(servers.drop, server, bucket)
            else:
                bucket = self._committed(case, source)
            if case.stalls_after is not None:
                server = stack.enter_context(servers.stalling(server, case.stalls_after))
            job = self._job(case, server, bucket, target if case.action == "down" else source)
            return self._run(case, job, tree, self._arrives(case, job))

    def _node(self, case: Case) -> Node:
        place = (case.server, case.to_disk)
        if place not in self._nodes:
            base = self._disk if case.to_disk else self._folder
            folder = base / f"node-{len(self._nodes)}"
            folder.mkdir()
            self._nodes[place] = self._stack.enter_context(NODES[case.server](folder))
        return self._nodes[place]

    def _to_node(self, stack: ExitStack, case: Case, tree: Tree, source: Path) -> Sample:
        node = self._node(case)
        bucket = node.bucket()
        stack.callback(shutil.rmtree, node.files / bucket, ignore_errors=True)
        job = Job(
            action=case.action,
            local=str(source),
            url=node.url,
            bucket=bucket,
            isolation=case.isolation,
        )
        environ = {**self._environ(case, job), **node.environ}
        if case.action in ("sync", "one byte"):
            run(peers.command(case.tool, job), environ, folder=self._folder)
        if case.action == "one byte":
            changed = next(source.rglob("*.bin"))
            with changed.open("r+b") as file:
                file.seek(changed.stat().st_size // 2)
                file.write(os.urandom(1))
        node.fared()
        sample = dict(run(peers.command(case.tool, job), environ, folder=self._folder))
        sample |= node.fared()
        if case.tool != "64 clients":
            check(tree, node.files / bucket / job.key, by=case.tool)
        return sample

    def _job(self, case: Case, server: Server, bucket: str, local: Path) -> Job:
        return Job(
            action=case.action,
            local=str(local),
            url=server.url,
            bucket=bucket,
            isolation=case.isolation,
            trainer=case.trainer,
            bwlimit=case.bwlimit,
            timeout_s=None if case.stalls_after is None else STALLED_S,
        )

    def _arrives(self, case: Case, job: Job) -> Path | None:
        """Where the tree must be afterwards; None: the sink has dropped it."""
        if case.action == "down":
            return Path(job.local)
        files = self._servers[case.server].files
        if case.action == "sync" or case.server == "nginx" or files is None:
            return None
        return files / job.bucket / job.key

    def _run(self, case: Case, job: Job, tree: Tree, arrives: Path | None) -> Sample:
        log = self._folder / "nginx" / "access.log"
        size = log.stat().st_size if case.counted else 0
        environ = self._environ(case, job)
        sample = dict(run(peers.command(case.tool, job), environ, folder=self._folder))
        if arrives is not None:
            check(tree, arrives, by=case.tool)
        sample["cpu_per_file_s"] = sample["cpu_s"] / tree.files
        if case.counted:
            sample |= servers.count_requests(log, size)
        return sample

    def _environ(self, case: Case, job: Job) -> dict[str, str]:
        """Only what a tool needs: no settings of the caller's own get in."""
        environ = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        environ |= {"HOME": str(self._folder), "PYTHONPATH": _path()}
        if case.server in self._servers:
            environ |= {**self._servers[case.server].environ, "AWS_ENDPOINT_URL": job.url}
        if case.threads is not None:
            names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
            environ |= dict.fromkeys(names, str(case.threads))
        return environ

    def _committed(self, case: Case, source: Path) -> str:
        """A bucket with the tree and its commit, put there as files; made only once."""
        server, place = self._servers[case.server], (case.server, case.tree)
        assert server.files is not None
        if place not in self._buckets:
            bucket = server.bucket()
            environ = {**os.environ, "PYTHONPATH": _path()}
            target = str(server.files / bucket / "tree")
            command = [sys.executable, "-m", "asyncsync", "up", str(source), target]
            run(command, environ, folder=self._folder)
            for path in (server.files / bucket).rglob("*.bin"):
                os.utime(path)  # newer than the source also where only seconds count
            if case.server == "nginx":
                servers.write_listing(server, bucket)
            self._buckets[place] = bucket
        return self._buckets[place]


def _path() -> str:
    """Where a process that is started finds the same modules as this one."""
    return os.pathsep.join([str(ROOT), *filter(None, sys.path)])
