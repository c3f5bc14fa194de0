"""Syncing the directory of a program that knows nothing of it, as it changes."""

from .hints import NoHints
from .watch import CHECKPOINTS, Away, Back, Polling, Refused, Sight, Watch

__all__ = ["CHECKPOINTS", "Away", "Back", "NoHints", "Polling", "Refused", "Sight", "Watch"]
