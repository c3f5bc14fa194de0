"""What a scheduler refuses, and how it puts several errors into one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import inf

from ..errors import AsyncSyncError, ConfigError, TransferError, TransientError, quote
from ..patterns import Selection
from ..syncing import AsyncSyncer, SyncConfig
from .jobs import Direction, Target
from .trials import Trial

__all__ = [
    "check_alone",
    "check_apart",
    "check_count",
    "check_free",
    "check_name",
    "check_number",
    "check_syncer",
    "excluded",
    "raise_all",
]


def check_syncer(syncer: AsyncSyncer | None, config: SyncConfig) -> None:
    """Refuse a syncer that contradicts the configuration."""
    if syncer is None:
        return
    if config.syncer is None:
        raise ConfigError("a syncer is given, and the configuration says that there is none")
    if config.syncer not in ("auto", syncer):
        raise ConfigError("a syncer is given, and the configuration names another; leave one out")


def check_name(trial: str) -> None:
    """Refuse what is no name of a directory."""
    if not isinstance(trial, str):
        raise ConfigError(f"the name of a trial is text, not {trial!r}")
    if trial in ("", ".", "..") or "/" in trial or not trial.isprintable():
        raise ConfigError(f"trial {quote(trial) or repr(trial)} cannot be the name of a directory")


def check_number(name: str, value: float | None) -> None:
    """Refuse what is no count and no time."""
    if value is None:
        return
    try:
        good = 0 <= value < inf
    except TypeError:
        good = False
    if not good:
        raise ConfigError(f"{name} is a number of at least 0, not {value!r}")


def check_count(name: str, value: int) -> None:
    """Refuse what is no number of things."""
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is a whole number of at least 1, not {value!r}")


def check_apart(trial: Trial, name: str) -> None:
    """Refuse a checkpoint in whose place there are files of the trial's directory."""
    inside = f"{trial.local}/{name}"
    if Selection(trial.driven.exclude).takes(f"{name}/file") and os.path.lexists(inside):
        raise ConfigError(
            f"{quote(inside)} is synced as a part of {quote(trial.local)}; tell `add` how "
            f"checkpoints are named, as in checkpoints={name.rstrip('0123456789') + '*/'!r}"
        )


def check_free(targets: Mapping[str, Target], remote: str) -> None:
    """Refuse a place that the directory of a trial goes to."""
    if remote in targets and (trees := targets[remote].trees):
        raise ConfigError(
            f"{quote(remote)} is the target of trial {quote(trees[0].trial)}; give each its own"
        )


def check_alone(trials: Iterable[Trial], local: str, direction: Direction, name: str) -> None:
    """Refuse a second trial that downloads into the same directory."""
    for other in trials if direction == "down" else ():
        if other.name != name and other.local == local:
            raise ConfigError(f"{quote(local)} is the directory of trial {quote(other.name)}, too")


def excluded(exclude: Sequence[str], *more: str) -> tuple[str, ...]:
    """The patterns of what is left out, checked."""
    if isinstance(exclude, str):
        Selection(exclude)  # which says what to give instead
    return _checked((*more, *exclude))


@lru_cache  # most trials name theirs alike
def _checked(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(Selection(patterns).exclude)


def raise_all(trial: str, errors: list[Exception]) -> None:
    """Raise the error of a trial, or one for all of them."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        ours = [e if isinstance(e, AsyncSyncError) else TransientError(repr(e)) for e in errors]
        what = f"{len(errors)} syncs of trial {quote(trial)} failed; the first: {errors[0]}"
        raise TransferError(what, failures=ours)
