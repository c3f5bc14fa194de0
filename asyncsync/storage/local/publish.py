"""How an attempt becomes the tree: by a rename, an exchange, or file by file.

Every way ends in one atomic step before which readers see the old version and after which they
see the new one. Everything the step uncovers is durable before it, and it is durable itself before
`commit` returns.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack, suppress

from ...errors import BusyError, ClashError, ConflictError, IntegrityError, quote_some
from ...manifest import FileEntry, Manifest
from ...names import LOCK, NEXT, holder_name, sort_key
from ..objects import Data
from ..trees import Block, Durability, Intent, NewFile
from .finish import finish_next, tidy_root
from .fs import (
    exchange,
    fsync_directory,
    is_at,
    opened,
    rename_new,
    rename_over,
    split,
)
from .locks import Lock
from .manifests import load
from .place import Place
from .stage import Stage
from .trash import OLD, TREE, foreign_files, put_back, remove_version, sweep
from .unfinished import unfinished

__all__ = ["Attempt", "conflict"]


class Attempt:
    """One attempt to write one tree. Blocks; closed exactly once.

    Args:
        place: where the tree is; the attempt closes it.
        intent: what the caller is about to do.
    """

    def __init__(self, place: Place, intent: Intent) -> None:
        self.place, self.intent = place, intent
        self._undo = ExitStack()
        self._undo.callback(place.close)
        try:
            self._publish = self._prepare()
        except BaseException:
            self._undo.close()
            raise

    def _prepare(self) -> Callable[[Manifest], bool]:
        """Recover, check what is there, and open the stage; choose the way to publish."""
        place = self.place
        beside = None
        if place.parent >= 0:
            beside = self._unfinished(place.parent, place.name)
            sweep(place.parent, place.name, place.where, spare=beside)
        self._root = place.open_root()
        if self._root < 0:
            self._expect(None)
            self._stage(place.parent, place.name, beside)
            return self._publish_new
        self._undo.callback(os.close, self._root)
        within = self._take_root_lock()
        self.previous = load(self._root, place.where)
        self._expect(self.previous)
        if self.previous is None or self.intent.in_place or place.parent < 0:
            if beside is not None:  # of another plan
                sweep(place.parent, place.name, place.where)
            self._stage(self._root, "", within)
            return self._publish_in_place
        self._refuse_foreign()
        self._stage(place.parent, place.name, beside)
        return self._publish_exchange

    def _unfinished(self, parent: int, name: str) -> str | None:
        return unfinished(parent, name) if self.intent.keep else None

    previous: Manifest | None = None
    _durability: Durability | None = None

    def _stage(self, parent: int, name: str, left: str | None) -> None:
        holder, where = holder_name(name, "tmp", self.intent.attempt), self.place.where
        try:
            self.stage = Stage(parent, left or holder, where, resumes=left is not None)
        except BusyError:
            if left is None:
                raise
            self.stage = Stage(parent, holder, where)  # its attempt is alive
        self._undo.callback(self.stage.close)

    def _take_root_lock(self) -> str | None:
        """Lock the tree and tidy it up; the stage in it that is to be gone on with stays."""
        lock = Lock.take(self._root, LOCK, self.place.where)
        self._undo.callback(lock.release)
        if not self.place.is_root(self._root):
            raise BusyError(f"{self.place.where} was just replaced; try again", side="target")
        spare = self._unfinished(self._root, "")
        tidy_root(self._root, self.place.where, spare=spare)
        return spare

    def _expect(self, found: Manifest | None) -> None:
        there = found.identity if found else None
        if there == self.intent.expect:
            return
        raise conflict(self.place.where, there)

    def _refuse_foreign(self) -> None:
        foreign = sorted(foreign_files(self._root, self.place.where), key=sort_key)
        if foreign:
            raise ClashError(
                f"{self.place.where} cannot be replaced whole: it holds files that asyncsync did "
                f"not write ({quote_some(foreign)}); move them away first",
                side="target",
                paths=foreign,
            )

    # -- writing

    def write(self, file: NewFile, offset: int, block: Block) -> None:
        self.stage.write(file, offset, block)

    def write_many(self, files: Sequence[tuple[NewFile, Data]]) -> None:
        self.stage.write_many(files)

    def discard(self, path: str) -> None:
        self.stage.forget(path)

    def commit(self, manifest: Manifest) -> Durability:
        """Publish; see TreeWriter.commit."""
        if self._durability is None:
            self._check_complete(manifest)
            self._durability = "fsync" if self._publish(manifest) else "reduced"
        return self._durability

    def _check_complete(self, manifest: Manifest) -> None:
        planned = {file.path for file in self.intent.files}
        missing = [
            path
            for path, file in manifest.files.items()
            if path not in self.stage.written
            and not (self._may_stay(path, file, planned) and _lies_there(self._root, file))
        ]
        if missing:
            raise IntegrityError(
                f"{quote_some(missing)} never arrived at {self.place.where}",
                side="target",
                paths=missing,
            )

    def _may_stay(self, path: str, file: FileEntry, planned: Set[str]) -> bool:
        """Whether a file that was not written can be the one that is there.

        In place, the caller may have found it there and compared it, unless it was going to write
        it: then it was lost with the stage of a process that died.
        """
        old = self.previous.files.get(path) if self.previous else None
        if old is not None and old.digest == file.digest:
            return True
        return self.intent.in_place and path not in planned

    def close(self) -> None:
        """Let go; what was not committed disappears."""
        self._undo.close()

    # -- the three ways

    def _publish_new(self, manifest: Manifest) -> bool:
        sealed = self.stage.seal(manifest)
        try:
            self._take_name()
        except FileExistsError:
            self._yield_to_winner(manifest)
        return self.place.flush() and sealed

    def _take_name(self) -> None:
        """Give the stage the name of the tree, which nothing may have."""
        place, holder = self.place, self.stage.fd
        try:
            if rename_new(holder, TREE, place.parent, place.name):
                return
        except FileNotFoundError:
            # A network file system may repeat a rename whose answer got lost.
            if not is_at(self.stage.tree, place.parent, place.name):
                raise
            return
        lock = Lock.take(place.parent, holder_name(place.name, "tmp", "0" * 32), place.where)
        try:
            with suppress(FileNotFoundError):
                os.stat(place.name, dir_fd=place.parent, follow_symlinks=False)
                raise FileExistsError(errno.EEXIST, "it exists", place.name)
            rename_over(holder, TREE, place.parent, place.name)
        finally:
            lock.release()

    def _yield_to_winner(self, manifest: Manifest) -> None:
        """Somebody else created the tree first: the same content is as good as ours."""
        with opened(self.place.parent, self.place.name) as root:
            winner = load(root, self.place.where)
        if winner is None or winner.identity != manifest.identity:
            raise conflict(self.place.where, winner.identity if winner else None) from None

    def _publish_exchange(self, manifest: Manifest) -> bool:
        for path in manifest.files.keys() - self.stage.written:
            self.stage.keep(self._root, manifest.files[path])
        sealed = self.stage.seal(manifest)
        place, holder = self.place, self.stage.fd
        if exchange(holder, TREE, place.parent, place.name):
            superseded = TREE
        else:
            self._replace_by_two_renames()
            superseded = OLD
        durable = place.flush()
        remove_version(holder, superseded, place.where)
        return durable and sealed

    def _replace_by_two_renames(self) -> None:
        """Move the old version aside and the new one in; failing, the old one comes back."""
        place, holder = self.place, self.stage.fd
        fsync_directory(holder)
        place.flush()
        try:
            rename_over(place.parent, place.name, holder, OLD)
            fsync_directory(holder)
            self._take_name()
        except BaseException:
            with suppress(OSError):  # then whoever comes next finishes: see trash.sweep
                put_back(place.parent, holder, OLD, place.name)
            raise

    def _publish_in_place(self, manifest: Manifest) -> bool:
        self._refuse_clashes(manifest)
        sealed = self.stage.seal(manifest)
        if not rename_new(self.stage.fd, TREE, self._root, NEXT):
            rename_over(self.stage.fd, TREE, self._root, NEXT)
        return finish_next(self._root, self.place.where) and sealed

    def _refuse_clashes(self, manifest: Manifest) -> None:
        """A path that we write must be free or ours; checked under the lock.

        From the publishing on there is no way back: whatever could stop the moves is found here.
        """
        ours = set(self.previous.files) if self.previous else set[str]()
        files = self.stage.written & manifest.files.keys()
        clashes = [path for path in files if _in_the_way(self._root, path, ours, manifest)]
        clashes += [
            entry.path
            for entry in manifest.directories
            if _in_the_way(self._root, entry.path, ours, manifest, directory=True)
        ]
        clashes.sort(key=sort_key)
        if clashes:
            raise ClashError(
                f"{self.place.where} holds files that asyncsync did not write: "
                f"{quote_some(clashes)}; move them away or choose another target",
                side="target",
                paths=clashes,
            )


def conflict(where: str, there: str | None) -> ConflictError:
    """The error for a tree that holds commit `there` (None: none) against expectation."""
    found = f"commit {there[:12]}" if there else "no commit"
    return ConflictError(
        f"{where}: found {found} instead of the one expected; somebody else wrote or deleted it. "
        "Sync down first, or replace it on purpose",
        winner=there or "",
    )


def _lies_there(root: int, file: FileEntry) -> bool:
    """Whether a file of that size is in its place."""
    if root < 0:
        return False
    try:
        with opened(root, split(file.path)[0]) as directory:
            found = os.stat(split(file.path)[1], dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == file.size_bytes


def _in_the_way(
    root: int, path: str, ours: set[str], manifest: Manifest, *, directory: bool = False
) -> bool:
    """Whether something that is not ours has the name `path`, or is no directory above it.

    Args:
        ours: files of the version that is replaced by `manifest`.
        directory: an empty directory is to be there, not a file.
    """
    gone = ours - manifest.files.keys()
    parts = path.split("/")
    for depth in range(1, len(parts) + 1):
        above = "/".join(parts[:depth])
        try:
            with opened(root, split(above)[0]) as held:
                mode = os.stat(split(above)[1], dir_fd=held, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return False
        except OSError:  # a link or a file where we need a directory
            return True
        if above in gone:
            return False
        if not stat.S_ISDIR(mode) and (directory or depth < len(parts)):
            return True
    if stat.S_ISDIR(mode):
        return not directory and not _only_gone(root, path, gone)
    return path not in ours or not stat.S_ISREG(mode)


def _only_gone(root: int, directory: str, gone: set[str]) -> bool:
    """Whether all of a directory is about to be deleted, so that a file can take its name."""
    with opened(root, directory) as held:
        for name in os.listdir(held):
            path = f"{directory}/{name}"
            mode = os.stat(name, dir_fd=held, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                if not _only_gone(root, path, gone):
                    return False
            elif path not in gone:
                return False
    return True
