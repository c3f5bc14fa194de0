"""Where on the disk a tree is: its directory, and the one above that holds its name."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from ...errors import ConfigError, quote
from .fs import DIRECTORY, fsync_directory, open_beneath

__all__ = ["Place", "real_path"]


def real_path(root: str, tree: str) -> str:
    """The directory of `tree`, with links in the way that leads there followed.

    Whoever names a target may reach it through links; below the target none is followed.
    """
    return os.path.realpath(os.path.join(root, tree))


class Place:
    """The parent directory, held open, and the name of the tree in it.

    Attributes:
        where: the path, as text for messages.
        parent: open directory; -1 when the tree is a mount point, or the root, whose parent
            cannot be written to from here.
        name: the last component.
    """

    def __init__(self, root: str, tree: str) -> None:
        self.path = real_path(root, tree)
        self.where = quote(self.path)
        above, self.name = os.path.split(self.path)
        self._made: list[str] = []
        self._make(above)
        self.parent = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fixed = not self.name or os.path.ismount(self.path) or not os.access(above, os.W_OK)
        if fixed and os.path.isdir(self.path):
            os.close(self.parent)
            self.parent = -1

    def _make(self, directory: str) -> None:
        """Create the missing directories above, each durable in its own parent."""
        if os.path.isdir(directory):
            return
        above, name = os.path.split(directory)
        self._make(above)
        held = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=held)
                self._made.append(directory)
            fsync_directory(held)
        finally:
            os.close(held)

    def open_root(self) -> int:
        """The tree's directory, open; -1 if there is nothing.

        Raises:
            ConfigError: a file has the name.
        """
        try:
            if self.parent < 0:
                return os.open(self.path, DIRECTORY)
            return open_beneath(self.parent, self.name, DIRECTORY)
        except FileNotFoundError:
            return -1
        except OSError as exc:
            if exc.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise ConfigError(f"target {self.where} is a file; name a directory") from exc

    def is_root(self, fd: int) -> bool:
        """Whether an open directory is still the one that has the tree's name."""
        mine = os.fstat(fd)
        with suppress(FileNotFoundError):
            there = os.stat(self.path, follow_symlinks=False)
            return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
        return False

    def flush(self) -> bool:
        """Make the tree's name durable."""
        return fsync_directory(self.parent)

    def close(self) -> None:
        """Let go, and remove the directories above that were made in vain."""
        if self.parent >= 0:
            os.close(self.parent)
        for directory in reversed(self._made):
            with suppress(OSError):  # in use: the tree is in it
                os.rmdir(directory)
