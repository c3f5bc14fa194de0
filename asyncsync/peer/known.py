"""What a head knows of commits since it started, so that asking again costs little."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from ..storage import Durability
from ..units import MIB

__all__ = ["Known"]

_MOST = 10_000
_TEXT_BYTES = 8 * MIB  # of one manifest; a larger one is read again each time
_TEXTS_BYTES = 32 * MIB  # of all of them


@dataclass(frozen=True, slots=True)
class _Commit:
    """Of one tree.

    Attributes:
        level: what it survives; None: nobody has asked.
        tag, text: its manifest, for as long as the store shows that tag.
    """

    identity: str
    level: Durability | None = None
    tag: str = ""
    text: bytes = b""


class Known:
    """The commits that were made durable here, and texts of manifests; the oldest are forgotten."""

    def __init__(self) -> None:
        self._commits: OrderedDict[str, _Commit] = OrderedDict()
        self._text_bytes = 0

    def note(self, tree: str, identity: str, level: Durability) -> None:
        """This commit of a tree is durable."""
        found = self._commits.get(tree)
        tag, text = (found.tag, found.text) if found and found.identity == identity else ("", b"")
        self._put(tree, _Commit(identity, level, tag, text))

    def keep(self, tree: str, identity: str, tag: str, text: bytes) -> None:
        """Under that tag, the store has this manifest."""
        if tag and len(text) <= _TEXT_BYTES:
            self._put(tree, _Commit(identity, self.level(tree, identity), tag, text))

    def level(self, tree: str, identity: str) -> Durability | None:
        """What a commit survives; None: nobody has asked yet."""
        found = self._commits.get(tree)
        return found.level if found and found.identity == identity else None

    def text(self, tree: str, tag: str) -> tuple[str, bytes] | None:
        """Identity and manifest of a tree whose manifest has that tag; None: not known."""
        found = self._commits.get(tree)
        return (found.identity, found.text) if found and tag and found.tag == tag else None

    def _put(self, tree: str, commit: _Commit) -> None:
        self._drop(tree)
        self._commits[tree] = commit
        self._text_bytes += len(commit.text)
        while len(self._commits) > _MOST or self._text_bytes > _TEXTS_BYTES:
            self._drop(next(iter(self._commits)))

    def _drop(self, tree: str) -> None:
        if (old := self._commits.pop(tree, None)) is not None:
            self._text_bytes -= len(old.text)
