"""Where bytes live.

An ObjectStore is flat keys, a TreeStore is what the engine knows: begin, write, commit, read,
find, delete. `Stores` opens the store for a location.
"""

from .behaviours import Rate
from .groups import Group
from .objects import Capabilities, Condition, ObjectInfo, ObjectStore, Part, Upload
from .registry import Stores, check_scheme
from .retrying import Backoff, retry
from .trees import (
    Block,
    Deleted,
    Durability,
    File,
    Gathering,
    Glance,
    Intent,
    NewFile,
    Sighting,
    Stored,
    TreeCapabilities,
    TreeReader,
    TreeStore,
    TreeWriter,
)
from .turns import Became, Share, Turn, Turns

__all__ = [
    "Backoff",
    "Became",
    "Block",
    "Capabilities",
    "Condition",
    "Deleted",
    "Durability",
    "File",
    "Gathering",
    "Glance",
    "Group",
    "Intent",
    "NewFile",
    "ObjectInfo",
    "ObjectStore",
    "Part",
    "Rate",
    "Share",
    "Sighting",
    "Stored",
    "Stores",
    "TreeCapabilities",
    "TreeReader",
    "TreeStore",
    "TreeWriter",
    "Turn",
    "Turns",
    "Upload",
    "check_scheme",
    "retry",
]
