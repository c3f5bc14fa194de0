"""What every upload and download works with."""

from __future__ import annotations

from dataclasses import dataclass

from ..clock import Clock
from ..concurrency import Threads
from ..events import Observer
from ..transfer import Engine

__all__ = ["Tools"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The bounds that one sync works within, its clock, and who hears of it.

    `name` is the program, with its version, as manifests name it.
    """

    engine: Engine
    threads: Threads
    clock: Clock
    observe: Observer
    name: str
