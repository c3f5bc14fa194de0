"""Where bytes live.

An ObjectStore is flat keys, a TreeStore is what the engine knows: begin, write, commit, read,
find, delete. `open_trees` finds the store for a location.
"""

from .objects import Capabilities, Condition, ObjectInfo, ObjectStore, Part, Upload
from .registry import check_scheme, open_trees
from .retrying import Backoff, retry
from .trees import (
    Block,
    Deleted,
    Durability,
    Intent,
    NewFile,
    TreeCapabilities,
    TreeReader,
    TreeStore,
    TreeWriter,
)
from .wrappers import Rate, equip_trees

__all__ = [
    "Backoff",
    "Block",
    "Capabilities",
    "Condition",
    "Deleted",
    "Durability",
    "Intent",
    "NewFile",
    "ObjectInfo",
    "ObjectStore",
    "Part",
    "Rate",
    "TreeCapabilities",
    "TreeReader",
    "TreeStore",
    "TreeWriter",
    "Upload",
    "check_scheme",
    "equip_trees",
    "open_trees",
    "retry",
]
