"""For tests, ours and other people's: suites for every store, a clock, and faults.

pytest is imported here and nowhere else in the package.
"""

from .clock import FakeClock, settle
from .contract_objects import ObjectStoreContract
from .contract_syncer import SyncerContract
from .contract_trees import TreeStoreContract
from .faults import CancelAt, FailAt, FaultyObjects

__all__ = [
    "CancelAt",
    "FailAt",
    "FakeClock",
    "FaultyObjects",
    "ObjectStoreContract",
    "SyncerContract",
    "TreeStoreContract",
    "settle",
]
