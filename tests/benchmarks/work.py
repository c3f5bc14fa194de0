"""What is moved: trees of random bytes, made once per run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TREES", "Job", "Tree", "check"]

KIB, MIB, GIB = 1024, 1024**2, 1024**3
_BLOCK = 16 * MIB
_PER_FOLDER = 500


@dataclass(frozen=True, slots=True)
class Tree:
    """`groups` are pairs of a number of files and the size in bytes of each."""

    groups: tuple[tuple[int, int], ...]
    sparse: bool = False

    @property
    def files(self) -> int:
        return sum(count for count, _ in self.groups)

    @property
    def size_bytes(self) -> int:
        return sum(count * size for count, size in self.groups)

    def smaller(self, divisor: int) -> Tree:
        """The same with fewer files, or where there are few, with smaller ones."""
        groups = ((n // divisor, s) if n >= 100 else (n, s // divisor) for n, s in self.groups)
        return Tree(tuple(groups), self.sparse)

    def make(self, folder: Path) -> Path:
        """Write the tree unless it is there already."""
        if folder.exists():
            return folder
        making = folder.with_suffix(".making")
        block, number = os.urandom(_BLOCK), 0
        for count, size in self.groups:
            for _ in range(count):
                path = making / f"{number // _PER_FOLDER:04}" / f"{number:07}.bin"
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    if self.sparse:
                        file.truncate(size)
                    else:
                        _fill(file.fileno(), number, size, block)
                number += 1
        return making.rename(folder)


def _fill(file: int, number: int, size: int, block: bytes) -> None:
    """Random bytes, other ones in every file."""
    left = size
    shift = number % 4096
    while left > 0:
        left -= os.write(file, memoryview(block)[shift : shift + left])
    os.pwrite(file, number.to_bytes(8), 0)


TREES = {
    "small": Tree(((2_000, 10 * KIB),)),
    "large": Tree(((4, 256 * MIB),)),
    "mixed": Tree(((1, GIB), (20, 50 * MIB), (5_000, 10 * KIB))),
    "many": Tree(((10_000, 10 * KIB),)),
    "twenty": Tree(((20, 64 * MIB),)),
    "client": Tree(((2, 16 * MIB),)),
    "limited": Tree(((16, 64 * MIB),)),
    "busy": Tree(((8, 256 * MIB), (10_000, 10 * KIB))),
    "sparse": Tree(((1, 20 * GIB),), sparse=True),
    "1e3": Tree(((10**3, KIB),)),
    "1e4": Tree(((10**4, KIB),)),
    "1e5": Tree(((10**5, KIB),)),
    "1e6": Tree(((10**6, KIB),)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One transfer, as a program of its own is told of it.

    Attributes:
        action: `up`, `down`, `sync`: up, where everything is there already; or `one byte`: up,
            where one byte of one file is another.
        local: directory on this machine.
        url: `http://host:port` of the server.
        key: where the tree lies in the bucket.
        isolation: of asyncsync.
        trainer: `numpy` or `python`: blocking steps on the loop meanwhile.
        timeout_s: to be stopped after, and that is no failure.
    """

    action: str
    local: str
    url: str
    bucket: str
    key: str = "tree"
    isolation: str = "loop"
    trainer: str = ""
    bwlimit: float | None = None
    timeout_s: float | None = None


def check(tree: Tree, folder: Path, *, by: str = "") -> None:
    """See that a tree arrived: the number of its files and of their bytes.

    Raises:
        RuntimeError: it is another one.
    """
    sizes = [path.stat().st_size for path in folder.rglob("*.bin")]
    if (len(sizes), sum(sizes)) != (tree.files, tree.size_bytes):
        raise RuntimeError(f"{by}: {len(sizes)} files, {sum(sizes)} bytes arrived of {tree}")
