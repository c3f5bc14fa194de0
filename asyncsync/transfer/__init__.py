"""Planning and moving trees: scan, plan (pure), then files by chunks under common bounds."""

from .committed import Committed, Inspected, Unverified
from .engine import Arrived, Bounds, Engine, Outcome, Tally
from .journal import Journal
from .plan import Plan, plan_transfer
from .records import Records
from .source import Directory, Links, Scan, SourceFile

__all__ = [
    "Arrived",
    "Bounds",
    "Committed",
    "Directory",
    "Engine",
    "Inspected",
    "Journal",
    "Links",
    "Outcome",
    "Plan",
    "Records",
    "Scan",
    "SourceFile",
    "Tally",
    "Unverified",
    "plan_transfer",
]
