"""What a caller asked for, checked before anything happens. No I/O."""

from __future__ import annotations

import operator
from typing import get_args

from ..errors import ConfigError, quote
from ..location import Location
from ..manifest import Kind
from ..patterns import Selection
from ..transfer import Links
from .base import Path
from .upload import Request

__all__ = ["local_path", "upload_request"]

_MAX_STEP = 10**18  # what a name may end in, too


def upload_request(
    local_dir: Path,
    remote_dir: Path,
    selection: Selection,
    kind: Kind | None,
    links: Links,
    replace: bool,
    step: int | None,
) -> Request:
    """The request, checked: what cannot be written down, or read again, is refused here."""
    if kind not in (None, *get_args(Kind)):
        raise ConfigError(f"kind is 'sealed', 'rolling' or None, not {kind!r}")
    if links not in get_args(Links):
        raise ConfigError(f"links is 'refuse' or 'follow', not {links!r}")
    if not isinstance(replace, bool):
        raise ConfigError(f"replace is True or False, not {replace!r}")
    return Request(
        local=local_path(local_dir),
        remote=Location.parse(remote_dir),
        selection=selection,
        kind=kind,
        replace=replace,
        links=links,
        step=_step(step),
    )


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
