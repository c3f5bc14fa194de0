"""The engine: its bounds hold, its order is kept, and failures come out as what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest

from asyncsync.digest import CHUNK_BYTES, digest, tree_digest
from asyncsync.errors import AccessDeniedError, DeviceError, TransferError
from asyncsync.events import ignore
from asyncsync.manifest import Manifest
from asyncsync.storage import Block, Durability, NewFile
from asyncsync.transfer import Bounds, Engine, Moving, Outcome, Piece, Tally
from asyncsync.transfer.engine import batches

from ..system.trees import Events

KIB, MIB = 1024, 1024**2
ZEROS = memoryview(bytes(CHUNK_BYTES))
DIGESTS: dict[int, str] = {}

T = TypeVar("T")
