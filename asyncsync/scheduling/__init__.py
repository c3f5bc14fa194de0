"""When trees are synced: by period, when asked for, and before a program ends."""

from .due import Decision, Facts, Overlap, Rules, decide
from .scheduler import SyncScheduler
from .ticket import Ticket
from .values import (
    Blocked,
    DrainError,
    DrainReport,
    Dropped,
    Durable,
    Failed,
    Lost,
    Notice,
    Same,
    Started,
    Status,
    Synced,
    TrialStatus,
)

__all__ = [
    "Blocked",
    "Decision",
    "DrainError",
    "DrainReport",
    "Dropped",
    "Durable",
    "Facts",
    "Failed",
    "Lost",
    "Notice",
    "Overlap",
    "Rules",
    "Same",
    "Started",
    "Status",
    "SyncScheduler",
    "Synced",
    "Ticket",
    "TrialStatus",
    "decide",
]
