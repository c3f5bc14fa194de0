"""The door of the program: what has to work even where click and rich are missing."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

__all__ = ["run"]


def run() -> int:
    """Run `sys.argv` and return the exit code."""
    _hold_standard_streams()
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"asyncsync: error: the command line needs {' and '.join(missing)}: "
            "pip install 'asyncsync[cli]'\n"
        )
        return 2
    try:
        from .app import main
    except KeyboardInterrupt:
        return 130
    return main()


def _hold_standard_streams() -> None:
    """Open what the caller closed, or a checkpoint could get the number of standard output."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
