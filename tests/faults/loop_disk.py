"""A file system of its own in a file, whose power can be cut."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from contextlib import ExitStack
from pathlib import Path

__all__ = ["LoopDisk"]

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN (XFS_IOC_GOINGDOWN), linux/fs.h and xfs_fs.h
_NO_LOG_FLUSH = 2  # what is in memory only is lost, as it would be with the power

_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
_SIZE_BYTES = 320 << 20  # the least that mkfs.xfs accepts is 300 MiB; the file is sparse


class LoopDisk:
    """An image with a fresh file system, mounted for the length of a block.

    Args:
        folder: where image and mount point are made.
        kind: `ext4` or `xfs`.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._image, self.path, self._kind = folder / f"{kind}.img", folder / kind, kind

    def __enter__(self) -> LoopDisk:
        with ExitStack() as stack:
            stack.callback(self._image.unlink, missing_ok=True)
            with self._image.open("wb") as image:
                image.truncate(_SIZE_BYTES)
            _run(*_MAKE[self._kind], str(self._image))
            self._device = _run("losetup", "--find", "--show", str(self._image))
            stack.callback(_run, "losetup", "--detach", self._device)
            self.path.mkdir()
            stack.callback(self.path.rmdir)
            # Shared, or the disk would stay mounted, and its power on, wherever a program was given
            # mounts of its own meanwhile, as `ip netns exec` does.
            _run("mount", "--bind", str(self.path), str(self.path))
            stack.callback(self._unmount)
            _run("mount", "--make-shared", str(self.path))
            self._mount()
            stack.callback(self._unmount)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def cut_power(self) -> None:
        """Lose what was not flushed, and start again as a machine would."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)
        self.mount_again()

    def turn_read_only(self) -> None:
        """As ext4 does by itself after an error; until it is mounted again."""
        _run("mount", "-o", "remount,abort", str(self.path))

    def mount_again(self) -> None:
        """Unmount and mount."""
        self._unmount()
        self._mount()

    def flush(self) -> None:
        """Make everything durable that is there now."""
        _run("sync", "--file-system", str(self.path))

    def _mount(self) -> None:
        _run("mount", "-t", self._kind, self._device, str(self.path))

    def _unmount(self) -> None:
        _run("umount", str(self.path))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()
