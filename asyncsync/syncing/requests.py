"""What a caller asked for, checked before anything happens. No I/O."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from ..errors import ConfigError, quote
from ..location import Location
from ..manifest import Kind
from ..patterns import Selection
from ..storage import Group
from ..transfer import Held, Links
from .base import Path, Replace, Snapshot

__all__ = ["Request", "check_snapshot", "local_path", "upload_request"]

_MAX_STEP = 10**18  # what a name may end in, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the caller of an upload asked for; `held` is a snapshot of `local` to read instead."""

    local: str
    remote: Location
    selection: Selection
    kind: Kind | None = None
    replace: Replace = False
    delete: bool = True
    links: Links = "refuse"
    step: int | None = None
    held: Held | None = None
    group: Group | None = None

    @property
    def place(self) -> str:
        """The directory that is read."""
        return self.held.path if self.held else self.local

    @property
    def what(self) -> str:
        """The request in words."""
        return f"{quote(self.local)} to {quote(str(self.remote))}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What the methods for going up have in common, as plain values."""
        return {
            "local_dir": self.local,
            "remote_dir": str(self.remote),
            "exclude": self.selection.exclude,
            "include": self.selection.include,
            "kind": self.kind,
            "replace": self.replace,
            "delete": self.delete,
            "links": self.links,
        }

    @property
    def who(self) -> str:
        """Which of the writers of one commit this is; empty where there is only one."""
        return f"{self.group.rank} of {self.group.id}" if self.group else ""

    @property
    def group_values(self) -> dict[str, Any] | None:
        """The group as plain values."""
        return asdict(self.group) if self.group else None

    def inside(self, path: str) -> Request:
        """The same for a commit inside, as a tree of its own."""
        return Request(
            local=f"{self.local}/{path}",
            remote=self.remote / path,
            selection=self.selection.below(path),
            replace=self.replace,
            delete=self.delete,
            links=self.links,
            held=self.held.nested[path] if self.held else None,
        )


def upload_request(  # noqa: PLR0913 - the front door's keywords
    local_dir: Path,
    remote_dir: Path,
    exclude: Sequence[str],
    include: Sequence[str],
    kind: Kind | None,
    links: Links,
    *,
    replace: Replace,
    delete: bool,
    step: int | None = None,
    group: Group | None = None,
) -> Request:
    """The request, checked: what cannot be written down, or read again, is refused here."""
    if kind not in (None, *get_args(Kind)):
        raise ConfigError(f"kind is 'sealed', 'rolling' or None, not {kind!r}")
    if links not in get_args(Links):
        raise ConfigError(f"links is 'refuse' or 'follow', not {links!r}")
    if not isinstance(delete, bool):
        raise ConfigError(f"delete is True or False, not {delete!r}")
    if not (isinstance(replace, bool) or replace == "own"):
        raise ConfigError(f"replace is True, False or 'own', not {replace!r}")
    if group is not None:
        kind = _kind_of_group(group, kind, replace)
    return Request(
        local=local_path(local_dir),
        remote=Location.parse(remote_dir),
        selection=Selection(exclude, include),
        kind=kind,
        replace=replace,
        delete=delete,
        links=links,
        step=_step(step),
        group=group,
    )


def _kind_of_group(group: Group, kind: Kind | None, replace: Replace) -> Kind:
    if not isinstance(group, Group):
        raise ConfigError(f"group is a Group, not {group!r}")
    if kind == "rolling" or replace == "own":
        raise ConfigError("a group commits a sealed tree, with replace=True or not at all over one")
    return "sealed"


def check_snapshot(snapshot: Snapshot) -> None:
    """Refuse what says of no way whether it may be taken."""
    if not (isinstance(snapshot, bool) or snapshot == "link"):
        raise ConfigError(f"snapshot is True, False or 'link', not {snapshot!r}")


def _step(step: int | None) -> int | None:
    """A training step as a plain int; integers of other libraries count."""
    if step is None:
        return None
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if isinstance(step, bool) or not 0 <= number < _MAX_STEP:
        raise ConfigError(f"step is a whole number from 0 to {_MAX_STEP - 1}, not {step!r}")
    return number


def local_path(path: Path) -> str:
    """The absolute path of a local directory; ConfigError for a location elsewhere."""
    location = Location.parse(path)
    if location.scheme != "file":
        raise ConfigError(
            f"{quote(str(location))} must be a local directory; `up` goes from local to remote, "
            "`down` from remote to local"
        )
    return location.path
