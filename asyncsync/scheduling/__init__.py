"""When trees are synced: by period, when asked for, and before a program ends."""

from .due import Decision, Facts, Overlap, Rules, decide
from .listeners import Feed
from .scheduler import SyncScheduler
from .ticket import Ticket
from .values import (
    Alarm,
    Blocked,
    DrainError,
    DrainReport,
    Dropped,
    Durable,
    Failed,
    Lost,
    Missed,
    Notice,
    Same,
    Started,
    Status,
    Synced,
    TrialStatus,
)

__all__ = [
    "Alarm",
    "Blocked",
    "Decision",
    "DrainError",
    "DrainReport",
    "Dropped",
    "Durable",
    "Facts",
    "Failed",
    "Feed",
    "Lost",
    "Missed",
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
