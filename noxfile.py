"""The checks of this project: the same by hand and on a build machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"  # pip, and with it the user's own pip settings
nox.options.error_on_external_run = True
nox.options.sessions = ["lint", "types", "tests"]

OLDEST = (3, 11, 3)
MEMORY_BYTES = 2 * 1024**3
QUICK = "not slow and not root and not mutants"
LONG = "slow or root or mutants"
# A process for each core, within reason: many more would wait for one disk.
PARALLEL = ("--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal")
# Two: a long test may keep a core and a disk busy by itself. A file stays in one process: the
# mutants share a fixture that runs them all.
PARALLEL_LONG = ("--numprocesses=2", "--dist=loadfile")
SYSTEM_PATH = os.pathsep.join([*os.get_exec_path(), "/usr/sbin"])
TYPED = ("asyncsync", "tests", "examples", "noxfile.py", "docs/conf.py")

PROBE = "import sys; v = sys.version_info; print(*v[:4], sys.implementation.name, sys.abiflags)"


def group(*names: str) -> tuple[str, ...]:
    """The requirements of dependency groups; spelled out, because older pips cannot read them."""
    return nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), *names)


def candidates() -> list[str]:
    """Paths that look like interpreters, on PATH and among pyenv's versions."""
    found = [sys.executable]
    for folder in os.get_exec_path():
        # pyenv's shims have a name for every version and work for the selected ones only.
        if Path(folder).name != "shims" and Path(folder).is_dir():
            names = sorted(os.listdir(folder))
            found += [f"{folder}/{name}" for name in names if re.fullmatch(r"python3\.\d+", name)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found += sorted(str(path) for path in pyenv.glob("versions/3.*/bin/python3"))
    return found


def interpreters() -> dict[str, str]:
    """The newest usable CPython of each minor version found here: "3.12" -> path."""
    best: dict[tuple[int, int], tuple[int, str]] = {}
    for path in candidates():
        try:
            answer = subprocess.run(
                [path, "-c", PROBE], capture_output=True, text=True, timeout=10, check=True
            ).stdout.split()
        except (OSError, subprocess.SubprocessError):
            continue
        major, minor, micro = map(int, answer[:3])
        if answer[3:] != ["final", "cpython"] or (major, minor, micro) < OLDEST:
            continue
        if (major, minor) not in best or micro > best[major, minor][0]:
            best[major, minor] = (micro, path)
    return {f"{major}.{minor}": best[major, minor][1] for major, minor in sorted(best)}


def install_tested(session: nox.Session) -> None:
    """Install the package with everything its tests use.

    All extras are there, or the test that nothing loads a cloud SDK would prove nothing.
    """
    session.install(".[all]", *group("tests"))
    session.env["PYTHONSAFEPATH"] = "1"  # the installed package is tested, not the checkout


def in_memory(session: nox.Session) -> None:
    """Let temporary trees lie in memory: flushing a disk 100,000 times is for the slow tests."""
    if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > MEMORY_BYTES:
        session.env["PYTEST_DEBUG_TEMPROOT"] = "/dev/shm"


@nox.session
def demo(session: nox.Session) -> None:
    """Train a small model, kill it in the middle of a checkpoint, restore, compare."""
    session.install(".[cli]", *group("demo"))
    session.env["PYTHONSAFEPATH"] = "1"
    session.run("asyncsync", "demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The quick tests, with coverage, on the Python that runs nox."""
    install_tested(session)
    in_memory(session)
    session.run("pytest", "--cov", "-m", QUICK, *PARALLEL, *session.posargs)


@nox.session
@nox.parametrize("python", [nox.param(path, id=name) for name, path in interpreters().items()])
def tests_all(session: nox.Session) -> None:
    """The quick tests on every Python found."""
    install_tested(session)
    in_memory(session)
    session.run("pytest", "-m", QUICK, *PARALLEL, *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The long tests: kill loops, power cuts, mutants, large trees. Some need root and strace."""
    install_tested(session)
    session.run("pytest", "-m", LONG, *PARALLEL_LONG, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure asyncsync against its peers; a complete run writes docs/benchmarks.md."""
    session.install(".[all]", *group("bench"))
    install_system_peers(session)
    # The checkout comes first on the path: the benchmarks are part of it, and so is the page.
    session.run("python", "-m", "tests.benchmarks", *session.posargs)


def install_system_peers(session: nox.Session) -> None:
    """Install the peers that are no Python packages, where that is allowed."""
    needed = ["nginx-light", "rsync", "openssh-server", "openssh-client"]
    if all(shutil.which(name, path=SYSTEM_PATH) for name in ("nginx", "rsync", "sshd", "ssh")):
        return
    if shutil.which("apt-get") is None or os.getuid() != 0:
        session.log(f"{' and '.join(needed)} are not installed; what needs them is skipped")
        return
    command = ("apt-get", "install", "--yes", "--no-install-recommends", *needed)
    # Only the program is wanted: the service that comes with it must not start.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        session.run("apt-get", "update", external=True, silent=True)
        session.run(*command, external=True, env={"DEBIAN_FRONTEND": "noninteractive"})
    finally:
        if ours:
            policy.unlink()


@nox.session
def lint(session: nox.Session) -> None:
    """Format, style, and the direction of imports."""
    session.install(*group("lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Static types of everything that is Python here."""
    session.install(".[all]", *group("types"))
    session.run("mypy", *(name for name in TYPED if Path(name).exists()))


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as HTML, in docs/_build/html; a warning is an error."""
    session.install(*group("docs"))
    options = ("-W", "--keep-going", "-E", "-b", "html")
    session.run("sphinx-build", *options, "docs", "docs/_build/html")
