"""A trial that takes part in a schedule: its names, and how it is doing."""

from __future__ import annotations

import os
from math import inf
from pathlib import PurePath

from ..errors import ConfigError, quote
from ..location import Location
from ..syncing import AsyncSyncer, Path, StorageSyncer, check_overlap
from .jobs import Direction, Tree
from .ledger import Ledger
from .values import TrialStatus, text_of

__all__ = ["Trial", "name_below", "remote_of"]


class Trial:
    """A trial.

    Attributes:
        trees: of its directory, by direction.
        driven: the one that reports are about.
        over: it is being completed.
    """

    __slots__ = ("driven", "local", "name", "over", "remote", "trees")

    def __init__(self, name: str, local: str, remote: str, driven: Tree) -> None:
        self.name, self.local, self.remote = name, local, remote
        self.driven, self.over = driven, False
        self.trees: dict[Direction, Tree] = {driven.direction: driven}

    def tree(self, direction: Direction) -> Tree:
        """Its directory in one direction."""
        if (found := self.trees.get(direction)) is None:
            found = self.trees[direction] = Tree(
                trial=self.name,
                source=self.local,
                target=self.driven.target,
                direction=direction,
                exclude=self.driven.exclude,
                delete=self.driven.delete,
            )
            found.target.trees.append(found)
        return found

    def status(self, ledger: Ledger, now: float) -> TrialStatus:
        """How fresh its copy is."""
        tree, target = self.driven, self.driven.target
        oldest = min(tree.changed_at, tree.moving_since)
        error, page = ledger.error(self.name, self.remote), ledger.page(self.name)
        return TrialStatus(
            trial=self.name,
            target=self.remote,
            state=_state(tree, now),
            durable_iteration=page.iteration,
            durable_ago_s=now - tree.succeeded_at if page.tree else None,
            checkpoint_step=page.checkpoint.step if page.checkpoint else None,
            stale_s=now - oldest if oldest < inf else 0.0,
            queued_s=target.waiting[0].queued_s(now) if target.waiting else 0.0,
            failures=tree.failures,
            error=text_of(error) if error else "",
        )


def _state(tree: Tree, now: float) -> str:
    """The word that `TrialStatus.state` explains."""
    target = tree.target
    if target.stuck:
        return "blocked"
    if target.running is not None:
        return "syncing"
    if target.waiting and target.waiting[0].not_before <= now:
        return "waiting"
    if tree.rests_until > now:
        return "resting"
    return "changed" if tree.changed_at < inf else "current"


def name_below(path: str, directory: str) -> str:
    """A checkpoint's path below its trial's directory, or its name if it is elsewhere."""
    inside = PurePath(path)
    if path != directory and inside.is_relative_to(directory):
        return inside.relative_to(directory).as_posix()
    return inside.name


def remote_of(
    trial: str,
    local: str,
    remote_dir: Path | None,
    upload_dir: str | None,
    syncer: AsyncSyncer | None,
) -> str:
    """Where a trial goes; in a shared directory, a name that nobody moves anything to."""
    if remote_dir is not None:
        text = os.fspath(remote_dir)
    elif upload_dir is not None:
        text = f"{upload_dir.rstrip('/')}/{trial}"
    elif syncer is None:
        return f"shared:{trial}"
    else:
        raise ConfigError(f"trial {quote(trial)} has no remote_dir, and there is no upload_dir")
    if not isinstance(syncer, StorageSyncer):
        return text.rstrip("/") or text
    location = Location.parse(text)
    check_overlap(local, location)
    return str(location)
