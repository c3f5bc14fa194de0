"""CommandSyncer: trees moved by somebody else's program, such as rsync, run without a shell."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio

from ..clock import Clock, SystemClock
from ..concurrency import Threads
from ..errors import ConfigError, DeadlineError, RefusedError, os_errors, quote, quote_some
from ..location import Location
from ..names import is_ours, sort_key
from ..patterns import Selection
from .base import Path
from .program import run_program, within
from .settings import check_seconds
from .template import LISTS, SELECTING, Template

__all__ = ["CommandSyncer"]

# What a tool that reads names line by line takes for an option, a comment, an escape or two names.
_AMBIGUOUS = re.compile(r"[-#;\s].*|.*(?:[\\\x00-\x1f\x7f].*|\s)", re.DOTALL)

_TOOLS_OWN = re.compile(r"[^/]*:.*", re.DOTALL)  # host:dir, remote:dir


class CommandSyncer:
    """An AsyncSyncer made of three commands. Holds nothing between calls; pickles.

    A command is split into arguments once, the way a shell would, and run without one: names with
    spaces or quotes need no care. `{{` and `}}` stand for braces. In every argument but the first

    - `{source}` and `{target}` become what is synced. A directory is made absolute, a `file://` URL
      becomes its path; other URLs and addresses like `host:dir` are handed over as they are.
    - `{filelist}`, in `sync_up`, becomes the path of a file with one relative name on each line:
      those that the patterns leave, without directories (an empty one does not travel) and without
      asyncsync's own files. `{filelist0}` is the same with a NUL after each name, which every name
      survives; `{filelist}` refuses names that tools would read as something else.
    - an argument such as `--exclude={exclude}` is repeated for each pattern, and dropped when there
      is none. It is read by the tool, in the tool's own language. So it takes only patterns that
      mean the same there as in gitignore syntax, if the tool compares them with each component of
      a path (rsync, tar): a name made of letters, digits and `. _ - @ + = , ~ %`, with `*` before
      it, after it or both. For a tool that compares them with the whole path (aws s3), write four
      arguments: `{exclude}`, `*/{exclude}`, `{exclude}/*` and `*/{exclude}/*`, each after the
      tool's `--exclude=`.

    A command succeeds with exit status 0. 75 (EX_TEMPFAIL) says that another try may help, 66
    (EX_NOINPUT) that the source, or what is to be deleted, does not exist. When it ends, is
    cancelled or takes too long, nothing of its process group is left: SIGTERM first, then SIGKILL
    as soon as the command itself is gone, or after 5 s. Whether a target is then as it was or
    complete is in the hands of the program.

    Args:
        sync_up: a command with `{source}` and `{target}`, like `rsync -a {source}/ {target}/`.
        sync_down: the same for the other way.
        delete: a command with `{target}`.
        sync_timeout: seconds one call may take.
        clock: what the waiting goes by.

    Raises:
        ConfigError: a command is not one, lacks a placeholder or has an unknown one.
    """

    def __init__(
        self,
        *,
        sync_up: str,
        sync_down: str,
        delete: str,
        sync_timeout: float = 1800.0,
        clock: Clock | None = None,
    ) -> None:
        check_seconds("sync_timeout", sync_timeout)
        ends, target = frozenset({"source", "target"}), frozenset({"target"})
        exclude = frozenset({"exclude"})
        self._up = Template.parse("sync_up", sync_up, needs=ends, takes=SELECTING)
        self._down = Template.parse("sync_down", sync_down, needs=ends, takes=exclude)
        self._delete = Template.parse("delete", delete, needs=target)
        self._sync_timeout = sync_timeout
        self._clock = clock or SystemClock()

    def __repr__(self) -> str:
        templates = (self._up, self._down, self._delete)
        commands = ", ".join(f"{template.name}={template.text!r}" for template in templates)
        return f"CommandSyncer({commands}, sync_timeout={self._sync_timeout!r})"

    def validate_upload_dir(self, upload_dir: str) -> bool:
        """Accept whatever the commands may understand; SyncConfig asks."""
        _address(upload_dir)
        return True

    async def sync_up(
        self, local_dir: Path, remote_dir: Path, *, exclude: Sequence[str] = ()
    ) -> None:
        selection = self._up.select(exclude)
        source, target = _directory(local_dir), _address(remote_dir)
        what = f"sync up of {quote(source)} to {quote(target)}"

        async def work() -> None:
            async with _threads() as threads:
                await threads.run(_check_source, source)
                async with _file_list(threads, self._up, source, selection) as names:
                    values = {"source": source, "target": target, **names}
                    await self._run(self._up.argv(values, selection.exclude), what)

        await self._in_time(work, what)

    async def sync_down(
        self, remote_dir: Path, local_dir: Path, *, exclude: Sequence[str] = ()
    ) -> None:
        selection = self._down.select(exclude)
        source, target = _address(remote_dir), _directory(local_dir)
        what = f"sync down of {quote(source)} to {quote(target)}"
        argv = self._down.argv({"source": source, "target": target}, selection.exclude)

        async def work() -> None:
            async with _threads() as threads:
                await threads.run(_prepare_target, target)
            await self._run(argv, what)

        await self._in_time(work, what)

    async def delete(self, remote_dir: Path) -> None:
        target = _address(remote_dir)
        what = f"delete of {quote(target)}"
        await self._in_time(partial(self._run, self._delete.argv({"target": target}), what), what)

    async def aclose(self) -> None:
        """Nothing is held; the syncer stays usable."""

    async def _run(self, argv: Sequence[str], what: str) -> None:
        await run_program(argv, clock=self._clock, what=what)

    async def _in_time(self, work: Callable[[], Awaitable[None]], what: str) -> None:
        if not await within(self._clock, self._sync_timeout, work):
            raise DeadlineError(
                f"{what} took longer than {self._sync_timeout:g} s and was stopped; see why it "
                "hangs or raise sync_timeout"
            )


def _directory(path: Path) -> str:
    """A local directory, absolute: it can then be no option, and no `host:dir` either."""
    location = Location.parse(path)
    if location.scheme != "file":
        raise ConfigError(f"{quote(str(location))} is not a local directory; give a path")
    return location.path


def _address(remote: Path) -> str:
    """A remote directory as the command gets it."""
    location = Location.parse(remote)
    tools_own = isinstance(remote, str) and _TOOLS_OWN.fullmatch(remote) and "://" not in remote
    if not tools_own:
        return str(location)
    if os.fspath(remote).startswith("-"):
        raise ConfigError(f"the address {quote(str(remote))} would be read as an option")
    return str(remote)


def _check_source(path: str) -> None:
    with os_errors("source", path):
        mode = os.stat(path).st_mode
    if not stat.S_ISDIR(mode):
        raise ConfigError(f"source {quote(path)} is a file; name the directory that holds it")


def _prepare_target(path: str) -> None:
    with os_errors("target", path):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise ConfigError(f"target {quote(path)} is a file; name a directory")
        os.makedirs(os.path.dirname(path), exist_ok=True)


@asynccontextmanager
async def _threads() -> AsyncIterator[Threads]:
    threads = Threads(1)
    try:
        yield threads
    finally:
        threads.close()


@asynccontextmanager
async def _file_list(
    threads: Threads, template: Template, source: str, selection: Selection
) -> AsyncIterator[dict[str, str]]:
    """The value of the list placeholder that `template` has, if any; the file is gone after."""
    kinds = template.fields & LISTS.keys()
    if not kinds:
        yield {}
        return
    [kind] = kinds
    with anyio.CancelScope(shield=True):  # a cancellation must not lose the path
        path = await threads.run(_write_list, source, selection, LISTS[kind])
    try:
        yield {kind: path}
    finally:
        with anyio.CancelScope(shield=True):
            await threads.run(shutil.rmtree, os.path.dirname(path), True)


def _write_list(source: str, selection: Selection, end: bytes) -> str:
    """Write the selected names into a file in a directory of its own, and return its path."""
    with os_errors("source", source):
        names = sorted(_selected(source, selection), key=sort_key)
    if end == b"\n":
        _refuse_ambiguous(names)
    with os_errors("target", tempfile.gettempdir()):
        directory = tempfile.mkdtemp(prefix="asyncsync-")
        try:
            return _write_names(os.path.join(directory, "names"), names, end)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise


def _write_names(path: str, names: Iterable[str], end: bytes) -> str:
    with open(path, "xb") as file:
        file.writelines(os.fsencode(name) + end for name in names)
    return path


def _selected(source: str, selection: Selection) -> Iterator[str]:
    """Relative names of everything but directories; links are not followed."""
    pending = [""]
    while pending:
        above = pending.pop()
        with os.scandir(os.path.join(source, above)) as entries:
            for entry in entries:
                path = above + entry.name
                if is_ours(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if not selection.prunes(path):
                        pending.append(path + "/")
                elif selection.takes(path):
                    yield path


def _refuse_ambiguous(names: Sequence[str]) -> None:
    if refused := [name for name in names if _AMBIGUOUS.fullmatch(name)]:
        raise RefusedError(
            f"{quote_some(refused)}: a list of lines cannot hold such names safely; use "
            "{filelist0} with a command that reads names up to a NUL",
            side="source",
            paths=refused,
        )
