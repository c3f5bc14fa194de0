"""Heads and workers as programs on a network: with addresses of their own, and behind proxies."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from asyncsync.units import MIB

from ..servers import free_port, program, running, wait_for
from .trees import content, make

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0

FILES: dict[str, bytes] = {
    "big": random.Random(1).randbytes(5 * MIB + 3),
    "empty": b"",
    **{f"many/{n}": b"%d" % n for n in range(500)},
}


def _until(holds: Callable[[], object], what: str) -> None:
    """Wait for another program: there is no event to wait for."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S:g} s"
        time.sleep(0.01)


class Node:
    """A place where programs run: a network namespace, or this machine itself."""

    def __init__(self, folder: Path, namespace: str = "") -> None:
        self.folder = folder
        folder.mkdir()
        self._before = ["ip", "netns", "exec", namespace] if namespace else []
        self.environ = {"HOME": str(folder), "ASYNCSYNC_CACHE_DIR": str(folder / "cache")}

    def command(self, *arguments: str | Path) -> list[str]:
        return [*self._before, sys.executable, "-m", "asyncsync", *map(str, arguments)]

    def run(self, *arguments: str | Path) -> str:
        """What it says on stdout. AssertionError, with all that it said, if it fails."""
        done = subprocess.run(
            self.command(*arguments),
            env={**os.environ, **self.environ},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=WAIT_S * 2,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env={**os.environ, **self.environ},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @contextmanager
    def python(self, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A program of somebody else's; it is killed on leaving."""
        with subprocess.Popen(
            [*self._before, sys.executable, "-c", code, *arguments],
            env={**os.environ, **self.environ},
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def _set_up(node: Node, listen: str, *names: str) -> str:
    """Set a head up for an address; the join string that it prints."""
    (node.folder / "root").mkdir()
    said = node.run(
        "head", "--init", "--listen", listen, *[f"--name={name}" for name in names],
        "--state", node.folder / "state", "--quiet",
    )  # fmt: skip
    (line,) = re.findall(r"asj1\.\S+", said)
    return str(line)


def _serve(node: Node, listen: str) -> list[str]:
    return node.command(
        *("head", "--listen", listen, "--root", node.folder / "root"),
        *("--state", node.folder / "state"),
    )


# -- in namespaces of their own


class Net:
    """A head and two workers, each in a network namespace, on one switch.

    Nothing of this machine's own network is touched.
    """

    HEAD = "10.213.7.1"

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self._tag = secrets.token_hex(3)
        self.head = self._node("head")
        self.workers = [self._node(name) for name in ("one", "two")]
        self._ip("-n", self._name("head"), "link", "add", "sw", "type", "bridge")
        self._ip("-n", self._name("head"), "link", "set", "sw", "up")
        self._ip("-n", self._name("head"), "addr", "add", f"{self.HEAD}/24", "dev", "sw")
        for number, name in enumerate(("one", "two"), 2):
            self._connect(name, f"10.213.7.{number}/24")

    def _name(self, name: str) -> str:
        return f"asyncsync-{self._tag}-{name}"

    def _node(self, name: str) -> Node:
        self._ip("netns", "add", self._name(name))
        self._stack.callback(self._remove, self._name(name))
        self._ip("-n", self._name(name), "link", "set", "lo", "up")
        return Node(self._folder / name, self._name(name))

    def _remove(self, namespace: str) -> None:
        """End what still runs in it, and it."""
        found = subprocess.run(
            ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
        )
        for pid in found.stdout.split():
            subprocess.run(["kill", "-9", pid], check=False)
        self._ip("netns", "del", namespace)

    def _connect(self, name: str, address: str) -> None:
        here, there = self._name("head"), self._name(name)
        self._ip(
            *("link", "add", f"v-{name}", "netns", here, "type", "veth"),
            *("peer", "name", "eth0", "netns", there),
        )
        self._ip("-n", here, "link", "set", f"v-{name}", "master", "sw", "up")
        self._ip("-n", there, "addr", "add", address, "dev", "eth0")
        self._ip("-n", there, "link", "set", "eth0", "up")

    def part(self, name: str) -> None:
        """Let no packet through to that worker, or from it."""
        self._ip("-n", self._name("head"), "link", "set", f"v-{name}", "down")

    def heal(self, name: str) -> None:
        self._ip("-n", self._name("head"), "link", "set", f"v-{name}", "up")

    @staticmethod
    def _ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    with ExitStack() as stack:
        yield Net(stack, tmp_path)


@pytest.mark.root
def test_a_tree_goes_from_one_node_to_another_by_way_of_a_head_with_tls(net: Net) -> None:
    listen = f"{net.HEAD}:7420"
    line = _set_up(net.head, listen, net.HEAD)
    one, two = net.workers
    one.environ["ASYNCSYNC_JOIN"] = two.environ["ASYNCSYNC_JOIN"] = line
    make(one.folder / "source", FILES)
    with running(_serve(net.head, listen), net.head.folder, environ=net.head.environ):
        where = f"peers://{listen}/exp/trial_1"
        _until_answers(one, where)
        one.run("up", one.folder / "source", where)
        two.run("down", where, two.folder / "back")
        two.run("verify", where)
        shown = two.run("ls", f"peers://{listen}/exp")

    assert content(two.folder / "back") == FILES
    assert "trial_1" in shown
    assert content(net.head.folder / "root" / "exp" / "trial_1") == FILES


@pytest.mark.root
def test_a_partition_stops_one_worker_only_and_when_it_heals_its_push_goes_on(net: Net) -> None:
    listen = f"{net.HEAD}:7420"
    line = _set_up(net.head, listen, net.HEAD)
    one, two = net.workers
    one.environ["ASYNCSYNC_JOIN"] = two.environ["ASYNCSYNC_JOIN"] = line
    large = {f"part{n}": random.Random(n).randbytes(24 * MIB) for n in range(6)}
    make(one.folder / "source", large)
    make(two.folder / "source", FILES)
    root = net.head.folder / "root"
    with running(_serve(net.head, listen), net.head.folder, environ=net.head.environ):
        where = f"peers://{listen}/exp"
        _until_answers(one, where)
        pushing = one.start("up", one.folder / "source", f"{where}/large")
        try:
            _until(lambda: _bytes_below(root) > 20 * MIB or pushing.poll() is not None, "a push")
            net.part("one")
            two.run("up", two.folder / "source", f"{where}/small")
            parted = pushing.poll() is None and not (root / "exp" / "large").exists()
            net.heal("one")
            said, _ = pushing.communicate(timeout=WAIT_S * 2)
        finally:
            pushing.kill()
            pushing.wait()

    assert parted, "the push was over before the network was parted"
    assert pushing.returncode == 0, said
    assert content(root / "exp" / "large") == large
    assert content(root / "exp" / "small") == FILES


_READER = """
import asyncio, sys
from asyncsync import PeerServer, StorageSyncer

async def main(host, there, root):
    async with (
        PeerServer(root, host=host, readonly=True, tls="own") as mine,
        StorageSyncer(isolation="loop") as syncer,
    ):
        await syncer.sync_down(there, f"{root}/base", share=mine.share("base"))
        print("it is here", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.root
def test_workers_on_two_nodes_read_a_tree_from_one_another(net: Net) -> None:
    listen = f"{net.HEAD}:7420"
    line = _set_up(net.head, listen, net.HEAD)
    where = f"peers://{listen}/exp/base"
    with (
        running(_serve(net.head, listen), net.head.folder, environ=net.head.environ),
        ExitStack() as stack,
    ):
        for number, node in enumerate(net.workers, 2):
            node.environ["ASYNCSYNC_JOIN"] = line
            scratch = node.folder / "scratch"
            scratch.mkdir()
            if number == 2:
                _until_answers(node, where)
                node.run("up", make(node.folder / "source", FILES), where)
            reader = stack.enter_context(
                node.python(_READER, f"10.213.7.{number}", where, str(scratch))
            )
            assert reader.stdout is not None
            assert reader.stdout.readline() == "it is here\n"
            # Whoever reads it there from now on gets what was not committed.
            there = net.head.folder / "root" / "exp" / "base" / "big"
            there.write_bytes(bytes(len(FILES["big"])))

    assert content(net.workers[1].folder / "scratch" / "base") == FILES


def _until_answers(node: Node, where: str) -> None:
    """Wait until the head listens: to look for a tree that is not there is an answer."""

    def answers() -> bool:
        done = subprocess.run(
            node.command("ls", where),
            env={**os.environ, **node.environ},
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        return done.returncode in (0, 3)

    _until(answers, "a head")


def _bytes_below(folder: Path) -> int:
    total = 0
    for above, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(above, name)).st_size
            except FileNotFoundError:
                continue
    return total


# -- behind a proxy


def _from_the_page(kind: str) -> str:
    """The settings that the documentation gives."""
    page = (ROOT / "docs" / "heads.md").read_text()
    blocks = re.findall(
        r"```[a-z]*\n(.*?)```", page.partition("## Behind a reverse proxy")[2], re.S
    )
    (found,) = [block for block in blocks if kind in block.splitlines()[0]]
    return str(found)


def _nginx(folder: Path, port: int, head: int) -> list[str]:
    text = _from_the_page("nginx").replace("10.0.0.5:7420", f"127.0.0.1:{head}")
    text = text.replace("listen 7420", f"listen 127.0.0.1:{port}")
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    load = f"load_module {module};\n" if module.exists() else ""
    (folder / "nginx.conf").write_text(
        f"{load}daemon off; pid {folder}/nginx.pid; error_log stderr; events {{}}\n{text}"
    )
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or program("nginx")
    return [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]


def _haproxy(folder: Path, port: int, head: int) -> list[str]:
    text = _from_the_page("haproxy").replace("10.0.0.5:7420", f"127.0.0.1:{head}")
    (folder / "haproxy.cfg").write_text(text.replace("bind :7420", f"bind 127.0.0.1:{port}"))
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin") or program("haproxy")
    return [found, "-f", str(folder / "haproxy.cfg"), "-db"]


@pytest.mark.parametrize("proxy", [_nginx, _haproxy])
def test_trees_go_through_a_proxy_set_up_as_the_page_says(
    tmp_path: Path, proxy: Callable[[Path, int, int], Sequence[str]]
) -> None:
    head, worker = Node(tmp_path / "head"), Node(tmp_path / "worker")
    port, behind = free_port(), free_port()
    # Both are names of this machine; the worker knows the head by that of the proxy.
    line = _set_up(head, f"127.0.0.1:{port}", "127.0.0.1")
    worker.environ["ASYNCSYNC_JOIN"] = line
    make(worker.folder / "source", FILES)
    where = f"peers://127.0.0.1:{port}/exp/tree"
    with ExitStack() as stack:
        serving = running(_serve(head, f"127.0.0.1:{behind}"), head.folder, environ=head.environ)
        wait_for(behind, stack.enter_context(serving), head.folder)
        command = proxy(tmp_path, port, behind)
        wait_for(port, stack.enter_context(running(command, tmp_path)), tmp_path)
        worker.run("up", worker.folder / "source", where)
        worker.run("down", where, worker.folder / "back")
        told = json.loads(
            worker.run("up", worker.folder / "source", where, "--json").splitlines()[-1]
        )

    assert content(worker.folder / "back") == FILES
    assert told.get("sent_files", 0) == 0
