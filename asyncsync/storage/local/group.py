"""Many writers of one tree on a disk: a stage for each, and who completes links them together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from ...errors import BusyError, ConflictError, IntegrityError, NotFoundError, RefusedError
from ...manifest import Manifest
from ...names import LOCK, holder_name, holder_of, is_group, new_attempt
from ..groups import Group, merge
from ..objects import Data
from ..trees import Block, Durability, Gathering, Intent, NewFile
from .fs import DIRECTORY, create_file, fsync_directory, is_at, opened, remove_tree, rename_over
from .locks import Lock
from .manifests import current_header, load
from .place import Place, Root
from .publish import Attempt
from .stage import Stage
from .trash import TREE, sweep

__all__ = ["PartAttempt", "abandon_groups", "gather", "read_part"]

_PART = "part"
_RANK = re.compile(r"(?P<rank>[0-9]+)-of-(?P<size>[0-9]+)")
_FENCES = "fences-"


class PartAttempt(Attempt):
    """One rank's attempt to leave its part."""

    def _prepare(self) -> Callable[[Manifest], bool]:
        group = self.intent.group
        assert group is not None, "the caller looks"
        self._group = group
        self._root = -1
        with _committed(self.place) as there:
            self._expect(there)
        self._home = _Home(self.place, group)
        self._undo.callback(self._home.close)
        self._home.enter()
        self._stage_part()
        return self._leave_part

    def _stage_part(self) -> None:
        home, where = self._home, self.place.where
        part = home.read()
        if part is not None:
            raise ConflictError(
                f"{where}: rank {self._group.rank} of {self._group.what} has left its part already",
                winner=part.identity,
            )
        resumes = home.tidy_rank(keep=self.intent.keep)
        try:
            self.stage = Stage(home.fd, home.rank_name, where, resumes=resumes)
        except FileExistsError:
            raise BusyError(
                f"rank {self._group.rank} is at work at {where}", side="target"
            ) from None
        self._undo.callback(self.stage.close)

    def write(self, file: NewFile, offset: int, block: Block) -> None:
        with self._noticing():
            super().write(file, offset, block)

    def write_many(self, files: Sequence[tuple[NewFile, Data]]) -> None:
        with self._noticing():
            super().write_many(files)

    def commit(self, manifest: Manifest) -> Durability:
        with self._noticing():
            return super().commit(manifest)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Say why the stage has gone from under this rank."""
        try:
            yield
        except FileNotFoundError:
            self._home.check()
            raise

    def _leave_part(self, manifest: Manifest) -> bool:
        sealed = self.stage.seal(manifest)
        self._home.check()
        rename_over(self.stage.fd, TREE, self.stage.fd, _PART)
        return all([sealed, fsync_directory(self.stage.fd), fsync_directory(self._home.fd)])


class _Home:
    """The directory of a group, beside its tree or, where that is not possible, in it.

    Attributes:
        fd: of it, once it was entered or found; else -1.
    """

    def __init__(self, place: Place, group: Group) -> None:
        self._place, self._group = place, group
        self._inside = place.open_root() if place.parent < 0 else -1
        self._at = place.parent if place.parent >= 0 else self._inside
        self._name = place.name if place.parent >= 0 else ""
        self._mine = holder_name(self._name, "group", group.attempt)
        self.rank_name = f"{group.rank}-of-{group.size}"
        self.fd = -1

    # -- getting there

    def find(self) -> bool:
        """Open it if it is there."""
        with suppress(FileNotFoundError):
            self.fd = os.open(self._mine, DIRECTORY, dir_fd=self._at)
            self._check_size()
        return self.fd >= 0

    def enter(self) -> None:
        """Open it, or make it; other groups are superseded by this one.

        Raises:
            ConflictError: it is this one that has been superseded.
            BusyError: another rank is at the same.
        """
        if not self.find() or self._others():
            with self.locked():
                self._check_fences()
                self._make()
                self._supersede()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the name of the tree: nobody else begins or completes a group there."""
        name = holder_name(self._name, "group", "0" * 32)
        lock = Lock.take(self._at, name, self._place.path)
        try:
            yield
        finally:
            lock.release()

    def _others(self) -> list[str]:
        return [entry for entry in _groups(self._at, self._name) if entry != self._mine]

    def _check_fences(self) -> None:
        for entry in self._others():
            with opened(self._at, entry) as other:
                if _FENCES + self._group.attempt in os.listdir(other):
                    raise self._superseded()

    def _superseded(self) -> ConflictError:
        return ConflictError(
            f"{self._place.where}: {self._group.what} has been superseded by a newer one; a "
            "trainer that is restarted takes another id for its group",
            winner="",
        )

    def _make(self) -> None:
        if self.fd < 0:
            with suppress(FileExistsError):
                os.mkdir(self._mine, 0o700, dir_fd=self._at)
            self.fd = os.open(self._mine, DIRECTORY, dir_fd=self._at)
            fsync_directory(self._at)
        self._check_size()

    def _check_size(self) -> None:
        for entry in os.listdir(self.fd):
            match = _RANK.fullmatch(entry)
            if match and int(match["size"]) != self._group.size:
                raise RefusedError(
                    f"{self._place.where}: {self._group.what} has {match['size']} ranks there, not "
                    f"{self._group.size}; all ranks of one id name the same size",
                    side="target",
                )

    def _supersede(self) -> None:
        for entry in self._others():
            with opened(self._at, entry) as other:
                fenced = [name for name in os.listdir(other) if name.startswith(_FENCES)]
            for name in (_FENCES + entry[-32:], *fenced):
                with suppress(FileExistsError):
                    os.close(create_file(self.fd, name))
        fsync_directory(self.fd)  # or a power cut could bring back who was superseded
        for entry in self._others():
            self._take_away(entry)

    def _take_away(self, entry: str) -> None:
        """Remove a group's directory; out of sight first: its ranks may be alive."""
        holder = holder_name(self._name, "tmp", new_attempt())
        while _exists(self._at, entry):
            os.mkdir(holder, 0o700, dir_fd=self._at)
            # Who sweeps just then takes the holder for one that was left behind: once more.
            with suppress(FileNotFoundError), opened(self._at, holder) as held:
                rename_over(self._at, entry, held, TREE)
        with suppress(OSError):  # a rank that has not noticed yet: swept by the next attempt
            if self._name:
                sweep(self._at, self._name, self._place.where)
            else:
                remove_tree(self._at, holder)

    def check(self) -> None:
        """ConflictError if it is no longer there: a newer group has taken it away."""
        if not is_at(self.fd, self._at, self._mine):
            raise self._superseded()

    # -- what is in it

    def tidy_rank(self, *, keep: bool) -> bool:
        """Whether there is a stage of this rank to go on with; one that is not wanted is removed.

        Raises:
            BusyError: its writer is alive.
        """
        try:
            held = os.open(self.rank_name, DIRECTORY, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        try:
            lock = Lock.take(held, LOCK, self._place.path)
            try:
                if keep and TREE in os.listdir(held):
                    return True
                remove_tree(held, TREE)
            finally:
                lock.release()
        finally:
            os.close(held)
        remove_tree(self.fd, self.rank_name)
        return False

    def ranks(self) -> dict[int, str]:
        """The ranks that have left a part, and where."""
        found: dict[int, str] = {}
        for entry in os.listdir(self.fd):
            match = _RANK.fullmatch(entry)
            path = f"{entry}/{_PART}"
            if match and _exists(self.fd, path):
                found[int(match["rank"])] = path
        return found

    def read(self) -> Manifest | None:
        """What this rank has left."""
        path = f"{self.rank_name}/{_PART}"
        if not _exists(self.fd, path):
            return None
        return _load(self.fd, path, self._place.where)

    def show_life(self) -> None:
        """By that the age of what is left is told. ConflictError if it has been superseded."""
        if self.fd < 0:
            self._check_fences()
        else:
            with suppress(OSError):
                os.utime(self.fd)

    # -- the end

    def complete(self, intent: Intent) -> Durability:
        """Make one tree of all parts. The name is held."""
        where = self._place.where
        paths = self.ranks()
        parts = {rank: _load(self.fd, path, where) for rank, path in paths.items()}
        whole = merge(parts, where)
        place = Place(self._place.root, self._place.tree)  # its own: the attempt closes it
        attempt = Attempt(place, Intent(attempt=new_attempt(), expect=intent.expect))
        try:
            for rank, part in sorted(parts.items()):
                with opened(self.fd, paths[rank]) as root:
                    for entry in part.files.values():
                        if entry.path not in attempt.stage.written:
                            attempt.stage.keep(root, entry)
                            attempt.stage.written.add(entry.path)
            return attempt.commit(whole)
        finally:
            attempt.close()

    def left_over(self) -> bool:
        """Whether groups have left anything, be it the lock."""
        return bool(_entries(self._at, self._name))

    def remove(self) -> None:
        """Remove what groups have left. The name is held."""
        for entry in _groups(self._at, self._name):
            self._take_away(entry)

    def close(self) -> None:
        for fd in (self.fd, self._inside):
            if fd >= 0:
                os.close(fd)


def read_part(root: Root, tree: str, group: Group) -> Manifest:
    with _home(root, tree, group) as home:
        part = home.read() if home.find() else None
    if part is None:
        raise NotFoundError(f"rank {group.rank} of {group.what} has left no part")
    return part


def gather(root: Root, tree: str, intent: Intent, confirm: Callable[[], Durability]) -> Gathering:
    """See TreeStore.gather. `confirm` makes the commit durable that is there."""
    group = intent.group
    assert group is not None, "the caller looks"
    with closing(Place(root, tree)) as place, closing(_Home(place, group)) as home:
        there = home.find()
        if _is_committed(place, group):
            if home.left_over():
                with suppress(BusyError), home.locked():
                    home.remove()
            return Gathering(durability=confirm())
        ranks = home.ranks().keys() if there else set[int]()
        if missing := tuple(rank for rank in range(group.size) if rank not in ranks):
            if _is_committed(place, group):  # meanwhile; and whoever commits removes the parts
                return Gathering(durability=confirm())
            home.show_life()
            return Gathering(missing=missing)
        try:
            with home.locked():
                # Whoever has just committed has also removed what `check` looks for.
                if not _is_committed(place, group):
                    home.check()
                    durability = home.complete(intent)
                    home.remove()
                    return Gathering(durability=durability)
        except BusyError:  # somebody else is at it
            return Gathering()
    return Gathering(durability=confirm())


@contextmanager
def _home(root: Root, tree: str, group: Group) -> Iterator[_Home]:
    with closing(Place(root, tree)) as place, closing(_Home(place, group)) as home:
        yield home


@contextmanager
def _committed(place: Place) -> Iterator[Manifest | None]:
    root = place.open_root()
    try:
        yield load(root, place.where) if root >= 0 else None
    finally:
        if root >= 0:
            os.close(root)


def _is_committed(place: Place, group: Group) -> bool:
    root = place.open_root()
    if root < 0:
        return False
    try:
        return current_header(root, place.where).attempt == group.attempt
    except NotFoundError:
        return False
    finally:
        os.close(root)


def _entries(at: int, name: str) -> list[str]:
    found = [entry for entry in sorted(os.listdir(at)) if is_group(entry)]
    if name:
        return [entry for entry in found if holder_of(entry, name)]
    return [entry for entry in found if entry.startswith(".asyncsync-")]


def _groups(at: int, name: str) -> list[str]:
    """The directories of groups of tree `name` in the open directory `at`."""
    return [entry for entry in _entries(at, name) if not entry.endswith("0" * 32)]


def abandon_groups(at: int, names: list[str], before_ns: int) -> list[str]:
    """Remove those of these directories of groups that have shown no life since; their names."""
    removed = []
    for entry in names:
        with suppress(FileNotFoundError, NotADirectoryError):
            with opened(at, entry) as home:
                seen_ns = max(os.fstat(home).st_mtime_ns, *_seen(home), 0)
            if seen_ns <= before_ns:
                remove_tree(at, entry)
                removed.append(entry)
    return removed


def _seen(home: int) -> Iterator[int]:
    """When something was written for each rank."""
    for entry in os.listdir(home):
        for path in (entry, f"{entry}/{TREE}"):
            with suppress(FileNotFoundError, NotADirectoryError):
                yield os.stat(path, dir_fd=home, follow_symlinks=False).st_mtime_ns


def _load(at: int, path: str, where: str) -> Manifest:
    with opened(at, path) as root:
        part = load(root, where)
    if part is None:
        raise IntegrityError(f"{where}: the part {path} has no manifest; delete it", side="target")
    return part


def _exists(at: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=at, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
