"""Where on the disk a tree is: its directory, and the one above that holds its name."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from ...errors import ConfigError, RefusedError, quote
from .fs import DIRECTORY, fsync_directory, open_beneath, opened, split

__all__ = ["HeldRoot", "Place", "Root"]


class Root:
    """What names of trees are relative to. Links in the way that leads to a tree are followed.

    Whoever names a target may reach it through links; below the target none is followed.
    """

    def __init__(self, directory: str = "/") -> None:
        self._directory = directory

    def name(self, tree: str) -> str:
        """What a tree is called in messages."""
        return os.path.join(self._directory, tree)

    def path(self, tree: str) -> str:
        """The path of a tree, for `open`."""
        return os.path.realpath(os.path.join(self._directory, tree))

    def open(self, path: str) -> int:
        """Open the directory of that path. OSError: there is none."""
        return os.open(path, DIRECTORY)

    def close(self) -> None:
        """Let go. Again: no effect."""


class HeldRoot(Root):
    """A directory, held open, that no way to a tree leads out of, whatever others make of it.

    No link is followed, and paths are relative to it, so that no message says where it is.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def name(self, tree: str) -> str:
        return tree or "the root"

    def path(self, tree: str) -> str:
        if not tree:
            return ""
        path = os.path.normpath(tree)
        if path.startswith("/") or ".." in path.split("/"):
            raise RefusedError(f"tree {quote(tree)} refused: it is outside of the root")
        return "" if path == "." else path

    def open(self, path: str) -> int:
        """Open the directory of that path.

        Raises:
            RefusedError: a link is on the way.
        """
        try:
            return open_beneath(self._fd, path or ".", DIRECTORY)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENOTDIR) and (link := self._link(path)):
                raise RefusedError(
                    f"{quote(link)} is a link, and none is followed here; make it a directory"
                ) from None
            raise

    def close(self) -> None:
        fd, self._fd = self._fd, -1  # a thread that comes later finds nothing, and nothing else
        if fd >= 0:
            os.close(fd)

    def _link(self, path: str) -> str:
        """The part of a path that is a link; empty if none is."""
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            above, name = split("/".join(parts[:depth]))
            with suppress(OSError), opened(self._fd, above) as held:
                if stat.S_ISLNK(os.stat(name, dir_fd=held, follow_symlinks=False).st_mode):
                    return "/".join(parts[:depth])
        return ""


class Place:
    """The parent directory, held open, and the name of the tree in it.

    Attributes:
        where: the path, as text for messages.
        parent: open directory; -1 when the tree is a mount point, or the root, whose parent
            cannot be written to from here.
        name: the last component; empty for the root.
        is_mount: whether a file system begins there.
    """

    def __init__(self, root: Root, tree: str) -> None:
        self.root, self.tree = root, tree
        self.path = root.path(tree)
        self.where = quote(self.path) or "the root"
        above, self.name = os.path.split(self.path)
        self._made: list[str] = []
        self.parent = self._reach(above)
        there = self._there()
        self.is_mount = there is not None and there.st_dev != os.fstat(self.parent).st_dev
        writable = os.access(".", os.W_OK, dir_fd=self.parent)
        if not self.name or self.is_mount or (there is not None and not writable):
            os.close(self.parent)
            self.parent = -1

    def _reach(self, directory: str) -> int:
        """Open a directory; what is missing is created, each durable in its own parent."""
        with suppress(FileNotFoundError):
            return self.root.open(directory)
        above, name = os.path.split(directory)
        held = self._reach(above)
        try:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=held)
                self._made.append(directory)
            fsync_directory(held)
            return open_beneath(held, name, DIRECTORY)
        finally:
            os.close(held)

    def _there(self) -> os.stat_result | None:
        """What has the name, if that is a directory."""
        try:
            found = os.stat(self.name or ".", dir_fd=self.parent, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found if stat.S_ISDIR(found.st_mode) else None

    def open_root(self) -> int:
        """The tree's directory, open; -1 if there is nothing.

        Raises:
            ConfigError: a file has the name.
        """
        try:
            if self.parent < 0:
                return self.root.open(self.path)
            return open_beneath(self.parent, self.name, DIRECTORY)
        except FileNotFoundError:
            return -1
        except OSError as exc:
            if exc.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise ConfigError(f"target {self.where} is a file; name a directory") from exc

    def is_root(self, fd: int) -> bool:
        """Whether an open directory is still the one that has the tree's name."""
        there = self.open_root()
        if there < 0:
            return False
        try:
            return os.path.sameopenfile(fd, there)
        finally:
            os.close(there)

    def flush(self) -> bool:
        """Make the tree's name durable."""
        return fsync_directory(self.parent)

    def close(self) -> None:
        """Let go, and remove the directories above that were made in vain."""
        if self.parent >= 0:
            os.close(self.parent)
        for directory in reversed(self._made):
            above, name = os.path.split(directory)
            with suppress(OSError, RefusedError):  # in use: the tree is in it
                held = self.root.open(above)
                try:
                    os.rmdir(name, dir_fd=held)
                finally:
                    os.close(held)
