"""Planning and moving trees: scan, plan (pure), then files by chunks under common bounds."""

from .committed import Committed, Inspected, Unverified
from .engine import Arrived, Bounds, Engine, Outcome
from .failures import unstable
from .journal import Journal
from .pieces import SourceFile
from .plan import Plan, plan_transfer, vanished
from .records import Records
from .snapshot import Chosen, Held, Snapshots
from .source import Directory, Links, Scan
from .tally import Tally

__all__ = [
    "Arrived",
    "Bounds",
    "Chosen",
    "Committed",
    "Directory",
    "Engine",
    "Held",
    "Inspected",
    "Journal",
    "Links",
    "Outcome",
    "Plan",
    "Records",
    "Scan",
    "Snapshots",
    "SourceFile",
    "Tally",
    "Unverified",
    "plan_transfer",
    "unstable",
    "vanished",
]
