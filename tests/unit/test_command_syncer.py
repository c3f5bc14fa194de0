"""CommandSyncer: other people's programs, run with care."""

from __future__ import annotations

import asyncio
import os
import pickle
import shlex
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.errors import (
    AsyncSyncError,
    ConfigError,
    DeadlineError,
    NotFoundError,
    PermanentError,
    RefusedError,
    TransientError,
)
from asyncsync.patterns import Selection
from asyncsync.syncing import AsyncSyncer, CommandSyncer
from asyncsync.testing import FakeClock, SyncerContract

UP = """
import os, shutil, sys
source, target, names = map(os.fsencode, sys.argv[1:])
shutil.rmtree(target + b".half", True)
os.makedirs(target + b".half")
for name in open(names, "rb").read().split(b"\\0")[:-1]:
    path = os.path.join(target + b".half", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shutil.copyfile(os.path.join(source, name), path)
shutil.rmtree(target, True)
os.rename(target + b".half", target)
"""

DOWN = """
import os, shutil, sys
source, target, *options = sys.argv[1:]
if not os.path.isdir(source):
    sys.exit(66)
left_out = shutil.ignore_patterns(*[option.removeprefix("--exclude=") for option in options])
shutil.rmtree(target + ".half", True)
shutil.copytree(source, target + ".half", ignore=left_out)
os.rename(target + ".half", target)
"""

DELETE = """
import os, shutil, sys
shutil.rmtree(sys.argv[1]) if os.path.isdir(sys.argv[1]) else sys.exit(66)
"""

RECORD = """
import os, sys
with open(sys.argv[1], "wb") as file:
    file.write(b"".join(os.fsencode(a) + b"\\0" for a in sys.argv[2:]))
"""

# Says "x" twice when both processes of its group are there, and never ends by itself.
STAY = """
import os, signal, sys
fifo = os.open(sys.argv[1], os.O_WRONLY)
os.fork()
os.write(fifo, b"x")
while True:
    signal.pause()
"""

# Ends as soon as a child, which never ends by itself, has said "x".
LEAVE = """
import os, signal, sys
fifo = os.open(sys.argv[1], os.O_WRONLY)
ready, go = os.pipe()
if os.fork() == 0:
    os.write(fifo, b"x")
    os.write(go, b"x")
    while True:
        signal.pause()
os.read(ready, 1)
"""

# As STAY, but one process, which answers SIGTERM with "t".
STUBBORN = """
import os, signal, sys
fifo = os.open(sys.argv[1], os.O_WRONLY)
signal.signal(signal.SIGTERM, lambda *_: os.write(fifo, b"t"))
os.write(fifo, b"x")
while True:
    signal.pause()
"""


def python(script: str, *arguments: object) -> str:
    """A command that runs a small program, which must hold no braces."""
    words = (sys.executable, "-I", "-S", "-c", script, *map(str, arguments))
    return shlex.join(words)


def make_syncer(
    sync_up: str = "true {source} {target}",
    sync_down: str = "true {source} {target}",
    delete: str = "true {target}",
    *,
    sync_timeout: float = 1800.0,
    clock: FakeClock | None = None,
) -> CommandSyncer:
    return CommandSyncer(
        sync_up=sync_up,
        sync_down=sync_down,
        delete=delete,
        sync_timeout=sync_timeout,
        clock=clock,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "sub").mkdir(parents=True)
    (directory / "a.txt").write_text("a")
    (directory / "sub" / "b.tmp").write_text("b")
    return directory


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Where RECORD writes the arguments it was given."""
    return tmp_path / "record"


def recorded(record: Path) -> list[str]:
    return [os.fsdecode(word) for word in record.read_bytes().split(b"\0")[:-1]]


class TestCommands(SyncerContract):
    """The contract, with three programs that replace a directory as a whole."""

    @pytest.fixture
    def syncer(self) -> AsyncSyncer:
        return CommandSyncer(
            sync_up=python(UP) + " {source} {target} {filelist0}",
            sync_down=python(DOWN) + " {source} {target} --exclude={exclude}",
            delete=python(DELETE) + " {target}",
        )

    @pytest.fixture
    def remote(self, tmp_path: Path) -> str:
        (tmp_path / "remote").mkdir()
        return str(tmp_path / "remote")


async def test_plain_tools_of_the_system_rebuild_a_deleted_source(
    source: Path, tmp_path: Path
) -> None:
    syncer = make_syncer(
        "cp -R {source}/. {target}", "cp -R {source}/. {target}", "rm -r -- {target}"
    )
    remote = tmp_path / "remote"

    await syncer.sync_up(source, remote)
    os.rename(source, tmp_path / "away")
    await syncer.sync_down(remote, source)
    await syncer.delete(remote)

    assert (source / "sub" / "b.tmp").read_text() == "b"
    assert not remote.exists()


# Templates


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ({"sync_up": "cp {source}"}, r"sync_up lacks \{target\}"),
        ({"sync_up": "cp {target}"}, r"sync_up lacks \{source\}"),
        ({"sync_down": "cp"}, r"sync_down lacks \{source\}, \{target\}"),
        ({"delete": "rm -r"}, r"delete lacks \{target\}"),
        ({"delete": "rm {source} {target}"}, r"unknown placeholder \{source\}"),
        ({"delete": "rm {target} {exclude}"}, r"unknown placeholder \{exclude\}"),
        ({"sync_down": "cp {source} {target} {filelist}"}, r"unknown placeholder \{filelist\}"),
        ({"sync_up": "cp {sauce} {target}"}, r"unknown placeholder \{sauce\}"),
        ({"sync_up": "cp {source.real} {target}"}, r"unknown placeholder \{source\.real\}"),
        ({"sync_up": "cp {} {source} {target}"}, "no plain placeholder"),
        ({"sync_up": "cp {source!r} {target}"}, "no plain placeholder"),
        ({"sync_up": "cp {source:>9} {target}"}, "no plain placeholder"),
        ({"sync_up": "cp {source} {target"}, "write {{ or }} for a brace"),
        ({"sync_up": "cp {source} {target}}"}, "write {{ or }} for a brace"),
        ({"sync_up": "cp '{source} {target}"}, "not a command"),
        ({"sync_up": "  "}, "takes a command"),
        ({"sync_up": None}, "takes a command"),
        ({"sync_up": ["cp", "{source}", "{target}"]}, "takes a command"),
        ({"sync_up": "cp {source} {target}\0"}, "takes a command"),
        ({"sync_up": "{source} {target}"}, "begin with a program"),
        ({"sync_up": "x {source} {target} {filelist} {filelist0}"}, "not several"),
        ({"sync_up": "x {source} {target} {exclude}"}, "an argument of its own"),
        ({"sync_up": "x {source} {target} -x {exclude}"}, "an argument of its own"),
        ({"sync_up": "x {target} --exclude={source}/{exclude}"}, "an argument of its own"),
        ({"sync_timeout": 0}, "sync_timeout"),
    ],
)
def test_a_wrong_command_is_refused_when_it_is_written_down(
    commands: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_syncer(**commands)  # type: ignore[arg-type]


async def test_arguments_reach_the_program_as_they_are(
    tmp_path: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a b", "$HOME;true", 'it\'s "q"', "{target}{0}", "-rf", "l\u00e4ngs", "new\nline"]
    syncer = make_syncer(python(RECORD, record) + " {{literal}} '{source} to' {target}")
    monkeypatch.chdir(tmp_path)
    for name in names:
        Path(name).mkdir()
        await syncer.sync_up(name, "-far")

        assert recorded(record) == ["{literal}", f"{tmp_path}/{name} to", f"{tmp_path}/-far"]


@pytest.mark.parametrize(
    ("remote", "argument"),
    [
        ("/mnt/nfs/trial/", "/mnt/nfs/trial"),
        ("file:///mnt/nfs/a%20b", "/mnt/nfs/a b"),
        (Path("/mnt/host:dir"), "/mnt/host:dir"),
        ("s3://bucket/exp/trial", "s3://bucket/exp/trial"),
        ("s3://bucket/exp?region=eu", "s3://bucket/exp?region=eu"),
        ("user@host:dir/trial", "user@host:dir/trial"),
        ("host::module/dir", "host::module/dir"),
    ],
)
async def test_a_remote_is_a_path_or_what_the_tool_calls_it(
    remote: str, argument: str, record: Path
) -> None:
    await make_syncer(delete=python(RECORD, record) + " {target}").delete(remote)

    assert recorded(record) == [argument]


@pytest.mark.parametrize(
    "remote", ["", "-oProxyCommand=evil:/x", "s3://key:secret@bucket/x", "a\0b", "s3://"]
)
async def test_a_remote_that_is_no_address_is_refused_before_anything_runs(
    remote: str, record: Path
) -> None:
    syncer = make_syncer(delete=python(RECORD, record) + " {target}")

    with pytest.raises(ConfigError) as caught:
        await syncer.delete(remote)
    assert "secret" not in str(caught.value)
    assert not record.exists()


async def test_a_url_is_not_a_local_directory(source: Path, record: Path) -> None:
    command = python(RECORD, record) + " {source} {target}"
    syncer = make_syncer(command, command)

    with pytest.raises(ConfigError, match="not a local directory"):
        await syncer.sync_up("s3://bucket/x", source)
    with pytest.raises(ConfigError, match="not a local directory"):
        await syncer.sync_down(source, "s3://bucket/x")
    assert not record.exists()


# Patterns


@pytest.mark.parametrize(
    ("exclude", "options"),
    [
        ((), []),
        (["*.tmp"], ["--exclude=*.tmp"]),
        (["*.tmp", "checkpoint_*"], ["--exclude=*.tmp", "--exclude=checkpoint_*"]),
    ],
)
async def test_each_pattern_is_an_option_of_its_own(
    exclude: list[str], options: list[str], record: Path, tmp_path: Path
) -> None:
    syncer = make_syncer(
        sync_down=python(RECORD, record) + " --exclude={exclude} {source} {target}"
    )

    await syncer.sync_down("s3://bucket/x", tmp_path / "back", exclude=exclude)

    assert recorded(record) == [*options, "s3://bucket/x", str(tmp_path / "back")]


@pytest.mark.parametrize(
    "pattern",
    [
        *("a/b", "/a", "a/", "!a", "a**", "**", "[ab]", "a ", " a", "#a", "\\a", "a?", "a*b"),
        *("", "*", ".", "..", ".*", "{a,b}", "$HOME", "a\nb", "*a*b*"),
    ],
)
async def test_a_pattern_that_the_tool_may_read_otherwise_is_refused_by_name(
    pattern: str, source: Path, record: Path
) -> None:
    syncer = make_syncer(python(RECORD, record) + " --exclude={exclude} {source} {target}")

    with pytest.raises(ConfigError, match="may mean something else") as caught:
        await syncer.sync_up(source, "host:x", exclude=["fine", pattern])
    assert pattern.encode("unicode_escape").decode() in str(caught.value)
    assert not record.exists()


@pytest.mark.parametrize(
    "pattern", ["a", "*.tmp", ".git", "core*", "*_exclude*", "a-b_c.d@e+f=g,h~i%j", "\u5317*"]
)
async def test_a_pattern_that_means_the_same_everywhere_is_handed_over(
    pattern: str, source: Path, record: Path
) -> None:
    syncer = make_syncer(python(RECORD, record) + " -x{exclude} {source} {target}")

    await syncer.sync_up(source, "host:x", exclude=[pattern])

    assert recorded(record)[0] == f"-x{pattern}"


@given(
    st.builds("{}{}{}".format, *map(st.sampled_from, (["", "*"], ["a", ".t", "ab"], ["", "*"]))),
    st.lists(
        st.sampled_from(["a", "b", "ab", "aab", "x.t", ".t", "x.tab"]), min_size=1, max_size=3
    ),
)
def test_the_patterns_that_are_handed_over_mean_the_same_to_every_kind_of_tool(
    pattern: str, components: list[str]
) -> None:
    path = "/".join(components)
    by_component = any(fnmatchcase(component, pattern) for component in components)
    forms = [pattern, f"*/{pattern}", f"{pattern}/*", f"*/{pattern}/*"]
    by_path = any(fnmatchcase(path, form) for form in forms)  # here "*" matches "/" too

    assert by_component == by_path == (not Selection(exclude=(pattern,)).takes(path))


@pytest.mark.parametrize("operation", ["up", "down"])
async def test_patterns_are_never_ignored(operation: str, source: Path, record: Path) -> None:
    command = python(RECORD, record) + " {source} {target}"
    syncer = make_syncer(command, command)
    call = syncer.sync_up if operation == "up" else syncer.sync_down

    with pytest.raises(ConfigError, match=r"has no place for it; add --exclude=\{exclude\}"):
        await call(source, source, exclude=["*.tmp"])
    assert not record.exists()


# Lists of names


async def listed(
    source: Path, copy: Path, placeholder: str, exclude: tuple[str, ...] = ()
) -> bytes:
    """What the list held while the program ran."""
    script = "import shutil, sys; shutil.copyfile(sys.argv[1].removeprefix('--from='), sys.argv[2])"
    command = (
        python(script) + f" --from={placeholder} {shlex.quote(str(copy))} {{source}} {{target}}"
    )
    await make_syncer(command).sync_up(source, "host:x", exclude=exclude)
    return copy.read_bytes()


async def test_a_list_holds_what_the_patterns_leave(source: Path, record: Path) -> None:
    (source / "cache").mkdir()
    (source / "cache" / "c.txt").touch()
    (source / "empty").mkdir()

    assert await listed(source, record, "{filelist}") == b"a.txt\ncache/c.txt\nsub/b.tmp\n"
    assert await listed(source, record, "{filelist}", ("*.tmp", "cache/")) == b"a.txt\n"
    assert await listed(source, record, "{filelist0}", ("cache",)) == b"a.txt\0sub/b.tmp\0"
    assert await listed(source, record, "{filelist0}", ("*",)) == b""


async def test_a_list_names_links_and_does_not_follow_them(source: Path, record: Path) -> None:
    (source / "link").symlink_to(source / "sub")

    assert await listed(source, record, "{filelist}") == b"a.txt\nlink\nsub/b.tmp\n"


async def test_a_list_leaves_out_what_asyncsync_itself_wrote(source: Path, record: Path) -> None:
    (source / ".asyncsync.json").touch()
    (source / f".asyncsync-tmp-{'0' * 32}").mkdir()
    (source / f".asyncsync-tmp-{'0' * 32}" / "half").touch()

    assert await listed(source, record, "{filelist}") == b"a.txt\nsub/b.tmp\n"


@pytest.mark.parametrize(
    "name",
    [b"new\nline", b"-T", b"#x", b";x", b" x", b"x ", b"a\\b", b"tab\tbed", b"cr\r", b"\x7f"],
)
async def test_names_that_a_line_cannot_hold_travel_in_the_other_list_only(
    name: bytes, source: Path, record: Path
) -> None:
    (source / os.fsdecode(name)).touch()

    with pytest.raises(RefusedError, match=r"use \{filelist0\}") as caught:
        await listed(source, record, "{filelist}")
    assert caught.value.paths == (os.fsdecode(name),)
    assert name + b"\0" in await listed(source, record, "{filelist0}")
    assert await listed(source, record, "{filelist}", ("/?*", "!/a.txt")) == b"a.txt\n"


async def test_a_name_that_is_not_utf_8_is_listed_byte_for_byte(source: Path, record: Path) -> None:
    try:
        (source / os.fsdecode(b"\xff")).touch()
    except OSError:
        pytest.skip("this file system stores no such names")

    assert await listed(source, record, "{filelist}") == b"a.txt\nsub/b.tmp\n\xff\n"


@pytest.mark.parametrize("status", [0, 1])
async def test_a_list_is_private_and_gone_afterwards(
    status: int, source: Path, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(lists))
    script = f"""{RECORD}
    file.write(b"%o" % os.stat(os.path.dirname(sys.argv[2])).st_mode)
sys.exit({status})"""
    syncer = make_syncer(python(script, record) + " {filelist} {source} {target}")
    try:
        await syncer.sync_up(source, "host:x")
    except PermanentError:
        assert status

    path, *_, mode = record.read_bytes().split(b"\0")
    assert path.startswith(os.fsencode(lists))
    assert stat.S_IMODE(int(mode, 8)) == 0o700
    assert list(lists.iterdir()) == []


# What is there


async def test_a_wrong_source_is_refused_before_anything_runs(source: Path, record: Path) -> None:
    syncer = make_syncer(python(RECORD, record) + " {source} {target}")

    with pytest.raises(NotFoundError, match="nowhere"):
        await syncer.sync_up(source / "nowhere", "host:x")
    with pytest.raises(ConfigError, match=r"a\.txt is a file"):
        await syncer.sync_up(source / "a.txt", "host:x")
    assert not record.exists()


async def test_a_target_gets_its_parents_and_is_no_file(
    source: Path, record: Path, tmp_path: Path
) -> None:
    syncer = make_syncer(sync_down=python(RECORD, record) + " {source} {target}")

    with pytest.raises(ConfigError, match=r"a\.txt is a file"):
        await syncer.sync_down("host:x", source / "a.txt")
    assert not record.exists()
    await syncer.sync_down("host:x", tmp_path / "new" / "deep" / "back")
    assert os.listdir(tmp_path / "new" / "deep") == []


# How a program ends


@pytest.mark.parametrize(
    ("ending", "error", "message"),
    [
        ("sys.exit(1)", PermanentError, "ended with exit status 1; it said nothing"),
        ("sys.exit(66)", NotFoundError, "ended with exit status 66"),
        ("sys.exit(75)", TransientError, "ended with exit status 75"),
        ("sys.exit('no\\n  bucket')", PermanentError, r"status 1; it said 'no\\n  bucket'"),
        ("os.kill(os.getpid(), signal.SIGKILL)", PermanentError, "was ended by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", PermanentError, "was ended by signal 35"),
    ],
)
async def test_a_failed_program_is_an_error_that_says_how_it_ended(
    ending: str, error: type[AsyncSyncError], message: str
) -> None:
    syncer = make_syncer(delete=python(f"import os, signal, sys; {ending}") + " {target}")

    with pytest.raises(error, match=message) as caught:
        await syncer.delete("host:x")
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"delete of host:x failed: {sys.executable} ")


async def test_the_last_words_of_a_program_are_bounded_and_safe_on_a_terminal() -> None:
    script = "import sys; sys.exit('w' * 300000 + chr(27) + '[31mend')"
    syncer = make_syncer(delete=python(script) + " {target}")

    with pytest.raises(PermanentError) as caught:
        await syncer.delete("host:x")
    assert str(caught.value).endswith("w\\x1b[31mend'")
    assert str(caught.value).isprintable()
    assert 8_000 < str(caught.value).count("w") < 8_300


async def test_a_program_has_no_input_and_no_terminal(record: Path) -> None:
    script = (
        f"{RECORD}    file.write(sys.stdin.buffer.read() + b'%d' % (os.getsid(0) == os.getpid()))"
    )
    syncer = make_syncer(delete=python(script, record) + " {target}")

    await syncer.delete("host:x")

    assert record.read_bytes() == b"host:x\x001"


@pytest.mark.parametrize("program", ["no-such-program-here", "{0}/a.txt", "{0}/a.txt/below"])
async def test_a_program_that_cannot_be_started_is_named(program: str, source: Path) -> None:
    program = program.format(source)
    syncer = make_syncer(delete=f"{program} {{target}}")

    with pytest.raises(ConfigError, match=f"cannot run {program}: .*; install it or correct"):
        await syncer.delete("host:x")


async def test_file_descriptors_are_given_back(source: Path) -> None:
    good = make_syncer(python("") + " {filelist} {source} {target}")
    bad = make_syncer(delete="no-such-program-here {target}")
    await good.sync_up(source, "host:x")
    before = os.listdir("/dev/fd")

    await good.sync_up(source, "host:x")
    with pytest.raises(ConfigError):
        await bad.delete("host:x")

    assert os.listdir("/dev/fd") == before


# Cancellation and time


@dataclass
class Call:
    """A call under way, in a task of its own."""

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    task: asyncio.Task[object] | None = None
    error: AsyncSyncError | None = None
    ended: bool = False

    def cancel_task(self) -> None:
        """Cancel the way that other people's code does."""
        assert self.task is not None
        self.task.cancel()


@asynccontextmanager
async def running(call: Callable[[], Awaitable[object]]) -> AsyncIterator[Call]:
    """Make the call in the background; waits for its end when the block is left."""
    state = Call()

    async def run() -> None:
        state.task = asyncio.current_task()
        try:
            with state.scope:
                await call()
        except AsyncSyncError as exc:
            state.error = exc
        finally:
            state.ended = True

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        yield state


class Fifo:
    """What programs say; its end is the end of everyone who holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        os.mkfifo(path)

    async def read(self, size: int) -> bytes:
        """Up to `size` bytes, or less where nobody is left to write."""
        with anyio.fail_after(20):
            return await anyio.to_thread.run_sync(self._read, size, abandon_on_cancel=True)

    def _read(self, size: int) -> bytes:
        self._file = self._file or open(self.path, "rb")  # noqa: SIM115 - closed by the fixture
        return self._file.read(size)

    def close(self) -> None:
        # A reader that a failed test left waiting would keep the whole run from ending.
        os.close(os.open(self.path, os.O_RDWR | os.O_NONBLOCK))
        if self._file:
            self._file.close()


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Fifo]:
    fifo = Fifo(tmp_path / "fifo")
    yield fifo
    fifo.close()


async def test_a_cancelled_call_leaves_no_process(source: Path, fifo: Fifo) -> None:
    syncer = make_syncer(python(STAY, fifo.path) + " {source} {target}", clock=FakeClock())
    async with running(partial(syncer.sync_up, source, "host:x")) as call:
        assert await fifo.read(2) == b"xx"
        call.scope.cancel()

    assert call.scope.cancelled_caught
    assert await fifo.read(1) == b""


async def test_a_program_that_ignores_sigterm_is_killed_after_a_grace(fifo: Fifo) -> None:
    clock = FakeClock()
    syncer = make_syncer(delete=python(STUBBORN, fifo.path) + " {target}", clock=clock)
    async with running(partial(syncer.delete, "host:x")) as call:
        assert await fifo.read(1) == b"x"
        call.scope.cancel()
        assert await fifo.read(1) == b"t"
        await clock.advance(4.9)
        assert not call.ended
        await clock.advance(0.2)

    assert await fifo.read(1) == b""


async def test_a_task_that_is_cancelled_again_and_again_leaves_no_process(fifo: Fifo) -> None:
    clock = FakeClock()
    syncer = make_syncer(delete=python(STUBBORN, fifo.path) + " {target}", clock=clock)
    async with running(partial(syncer.delete, "host:x")) as call:
        assert await fifo.read(1) == b"x"
        call.cancel_task()
        await anyio.lowlevel.checkpoint()
        call.cancel_task()
        assert await fifo.read(1) == b"t"
        call.cancel_task()
        await clock.advance(4.9)
        assert not call.ended
        await clock.advance(0.2)

    assert await fifo.read(1) == b""


@pytest.mark.parametrize("turns", range(1, 13))
async def test_cancelled_while_it_starts_a_call_leaves_nothing(
    turns: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(lists))
    syncer = make_syncer("tail -q -f {filelist} {source} {target}")
    async with running(partial(syncer.sync_up, source, source)) as call:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        call.cancel_task()
        await anyio.lowlevel.checkpoint()
        call.cancel_task()

    assert list(lists.iterdir()) == []


async def test_a_program_that_takes_too_long_is_stopped(source: Path, fifo: Fifo) -> None:
    clock = FakeClock()
    syncer = make_syncer(
        python(STAY, fifo.path) + " {source} {target}", sync_timeout=60, clock=clock
    )
    async with running(partial(syncer.sync_up, source, "host:x")) as call:
        assert await fifo.read(2) == b"xx"
        await clock.advance(59)
        assert not call.ended
        await clock.advance(2)

    assert isinstance(call.error, DeadlineError)
    assert f"sync up of {source} to host:x took longer than 60 s" in str(call.error)
    assert await fifo.read(1) == b""


async def test_what_a_program_leaves_in_the_background_ends_with_it(fifo: Fifo) -> None:
    syncer = make_syncer(delete=python(LEAVE, fifo.path) + " {target}")
    async with running(partial(syncer.delete, "host:x")) as call:
        assert await fifo.read(1) == b"x"

    assert call.error is None
    assert await fifo.read(1) == b""


async def test_nobody_waits_for_a_process_that_left_the_group(tmp_path: Path) -> None:
    # It holds stderr open, as a shared connection of ssh does, and stays until the fifo is closed.
    os.mkfifo(tmp_path / "fifo")
    script = """
import os, sys
left, leaves = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.write(leaves, b"x")
    open(sys.argv[1]).read()
else:
    os.read(left, 1)
"""
    syncer = make_syncer(delete=python(script, tmp_path / "fifo") + " {target}")

    with anyio.fail_after(20):
        await syncer.delete("host:x")
        stays = await anyio.to_thread.run_sync(open, tmp_path / "fifo", "wb")

    stays.write(b"still there")
    stays.close()


# The object


async def test_it_is_configuration_that_pickles(tmp_path: Path) -> None:
    syncer = make_syncer(delete=python(DELETE) + " {target}", sync_timeout=7)
    (tmp_path / "trial").mkdir()

    copy = pickle.loads(pickle.dumps(syncer))
    await copy.delete(tmp_path / "trial")

    assert not (tmp_path / "trial").exists()
    assert repr(copy) == repr(syncer)
    assert "sync_timeout=7" in repr(copy)


async def test_it_stays_usable_after_it_was_closed(tmp_path: Path) -> None:
    syncer = make_syncer()

    await syncer.aclose()

    await syncer.delete(tmp_path)
