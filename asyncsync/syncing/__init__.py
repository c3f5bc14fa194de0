"""Keeping a tree in sync: what moves it, by which settings, and what became of it."""

from ..storage import Group
from .base import AsyncSyncer, Path, Receipt, Replace, SyncPlan
from .command import CommandSyncer
from .commits import Commit, ProbeReport, VerifyReport
from .decisions import check_overlap
from .probing import marker_in
from .program import within
from .requests import local_path
from .saved import Saved
from .settings import SyncConfig
from .storage_syncer import Isolation, StorageSyncer

__all__ = [
    "AsyncSyncer",
    "CommandSyncer",
    "Commit",
    "Group",
    "Isolation",
    "Path",
    "ProbeReport",
    "Receipt",
    "Replace",
    "Saved",
    "StorageSyncer",
    "SyncConfig",
    "SyncPlan",
    "VerifyReport",
    "check_overlap",
    "local_path",
    "marker_in",
    "within",
]
