"""asyncsync moves the checkpoints of training experiments, whole or not at all.

Names are imported when they are first used: `import asyncsync` is cheap for programs that may
never sync.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

if sys.platform == "win32":
    raise ImportError("asyncsync runs on Linux (and, in part, macOS); on Windows use WSL")

if TYPE_CHECKING:
    from .errors import (
        AccessDeniedError,
        AsyncSyncError,
        BusyError,
        ClashError,
        ConfigError,
        ConflictError,
        DeadlineError,
        IntegrityError,
        NoSpaceError,
        NotCommittedError,
        NotFoundError,
        PermanentError,
        RefusedError,
        SourceChangedError,
        TransferError,
        TransientError,
    )
    from .oneshot import (
        check_reach,
        check_shared,
        commits,
        delete,
        follow,
        join,
        latest,
        mark_shared,
        restore,
        sync_down,
        sync_up,
        verify,
        wait_durable,
    )
    from .peer import PeerServer
    from .scheduling import DrainError, DrainReport, SyncScheduler, Ticket
    from .syncing import (
        AsyncSyncer,
        CommandSyncer,
        Commit,
        Group,
        Receipt,
        Saved,
        StorageSyncer,
        SyncConfig,
        VerifyReport,
    )

__all__ = [
    "AccessDeniedError",
    "AsyncSyncError",
    "AsyncSyncer",
    "BusyError",
    "ClashError",
    "CommandSyncer",
    "Commit",
    "ConfigError",
    "ConflictError",
    "DeadlineError",
    "DrainError",
    "DrainReport",
    "Group",
    "IntegrityError",
    "NoSpaceError",
    "NotCommittedError",
    "NotFoundError",
    "PeerServer",
    "PermanentError",
    "Receipt",
    "RefusedError",
    "Saved",
    "SourceChangedError",
    "StorageSyncer",
    "SyncConfig",
    "SyncScheduler",
    "Ticket",
    "TransferError",
    "TransientError",
    "VerifyReport",
    "__version__",
    "check_reach",
    "check_shared",
    "commits",
    "delete",
    "follow",
    "join",
    "latest",
    "mark_shared",
    "restore",
    "sync_down",
    "sync_up",
    "verify",
    "wait_durable",
]

_SCHEDULING = {"DrainError", "DrainReport", "SyncScheduler", "Ticket"}
_FUNCTIONS = {
    "check_reach",
    "check_shared",
    "commits",
    "delete",
    "follow",
    "join",
    "latest",
    "mark_shared",
    "restore",
    "sync_down",
    "sync_up",
    "verify",
    "wait_durable",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'asyncsync' has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{_home(name)}", __name__), name)
    except ModuleNotFoundError as exc:
        if name != "PeerServer":
            raise
        reason = f"a head needs the package {exc.name}: pip install 'asyncsync[head]'"
        raise ModuleNotFoundError(reason, name=exc.name) from exc
    globals()[name] = value
    return value


def _home(name: str) -> str:
    if name in _SCHEDULING:
        return "scheduling"
    if name == "PeerServer":
        return "peer"
    return "errors" if name.endswith("Error") else "oneshot" if name in _FUNCTIONS else "syncing"


def __dir__() -> list[str]:
    return __all__
