"""For tests, ours and other people's: suites for every store, a clock, and faults.

pytest is imported here and nowhere else in the package.
"""

from .clock import FakeClock, settle
from .contract_objects import ObjectStoreContract
from .contract_syncer import SyncerContract
from .contract_trees import TreeStoreContract
from .faults import CancelAt, FailAt, FaultyObjects
from .network import Drop, Finish, Flip, HangUp, Latency, Pace, Repeat, Reset, Stall
from .proxy import FaultProxy

__all__ = [
    "CancelAt",
    "Drop",
    "FailAt",
    "FakeClock",
    "FaultProxy",
    "FaultyObjects",
    "Finish",
    "Flip",
    "HangUp",
    "Latency",
    "ObjectStoreContract",
    "Pace",
    "Repeat",
    "Reset",
    "Stall",
    "SyncerContract",
    "TreeStoreContract",
    "settle",
]
