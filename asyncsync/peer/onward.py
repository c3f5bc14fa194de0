"""What becomes of a commit after it is on the disk of the head."""

from __future__ import annotations

from typing import Protocol

from ..storage import Durability
from .mishaps import own_files

__all__ = ["Nowhere", "Onward", "level_of", "queue"]


class Onward(Protocol):
    """Carries trees on from the head, to where the loss of the head does not matter.

    Attributes:
        forwards: whether it does.
    """

    forwards: bool

    async def queue(self, tree: str, identity: str) -> None:
        """Note durably that this commit has to be carried on. Again: no effect.

        What has not been noted is not acknowledged; raising, the commit stands all the same, and
        whoever asks for it again notes it then.
        """
        ...

    def has(self, tree: str, identity: str) -> bool:
        """Whether this very commit has arrived there."""
        ...

    def failure(self, tree: str, identity: str) -> str:
        """Why this very commit cannot arrive until somebody changes something; empty: it can."""
        ...


class Nowhere:
    """Trees stay where they are."""

    forwards = False

    async def queue(self, tree: str, identity: str) -> None:
        """Nothing to note."""

    def has(self, tree: str, identity: str) -> bool:
        del tree, identity
        return False

    def failure(self, tree: str, identity: str) -> str:
        del tree, identity
        return ""


async def queue(onward: Onward, tree: str, identity: str) -> None:
    """See `Onward.queue`. TransientError: it cannot be noted now; asked again, it is."""
    with own_files("note what has to be carried on"):
        await onward.queue(tree, identity)


_LEVELS: dict[Durability, Durability] = {"fsync": "head-fsync", "cloud": "cloud"}


def level_of(local: Durability, onward: Onward, tree: str, identity: str) -> Durability:
    """What a commit survives, seen from a worker."""
    return "cloud" if onward.has(tree, identity) else _LEVELS.get(local, "received")
