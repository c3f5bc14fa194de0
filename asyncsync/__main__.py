"""`python -m asyncsync` is the `asyncsync` command."""

from __future__ import annotations

import sys

from .cli import run

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(run())
