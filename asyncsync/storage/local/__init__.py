"""Local disks and network mounts as a TreeStore.

stage.py     gather a tree in a hidden sibling, every file durable
snapshot.py  hold a second version of a tree in a hidden sibling
publish.py   make it the tree: rename, exchange, or file by file
trash.py     delete and sweep, without touching what is not ours
manifests.py read and write the manifest
place.py     parent directory and name; locks.py one writer; fs.py the system calls
probe.py     what this file system can do
store.py     all of it as coroutines
"""

from .fs import data_extents, open_beneath, read_at, zeros
from .locks import Lock
from .place import HeldRoot
from .snapshot import Holder, Way, free_bytes, sweep_beside
from .store import LocalTrees

__all__ = [
    "HeldRoot",
    "Holder",
    "LocalTrees",
    "Lock",
    "Way",
    "data_extents",
    "free_bytes",
    "open_beneath",
    "read_at",
    "sweep_beside",
    "zeros",
]
