"""Turns at reading one commit that many nodes want."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

__all__ = ["Became", "Share", "Turn", "Turns"]

Became = Literal["ask", "done", "failed"]
"""What a reader says: it wants a turn, or is still at it; it has the commit; it did not get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How others read here what this node has restored; made by `PeerServer.share`.

    Attributes:
        line: a join string: it lets others in, so it is a secret.
        tree: the name of the restored directory there.
    """

    line: str = field(repr=False)
    tree: str


class Turn(NamedTuple):
    """Where to read.

    Attributes:
        go: False: nowhere yet; ask again.
        line, held: of another reader that has the commit: its join string, and the tree there;
            empty: at the origin.
    """

    go: bool
    line: str = ""
    held: str = ""

    def __repr__(self) -> str:  # the line is a secret
        return f"<Turn: {'wait' if not self.go else 'another reader' if self.line else 'origin'}>"


class Turns(Protocol):
    """Says who reads a commit where: the origin about once, the others from one another."""

    async def turn(
        self,
        tree: str,
        identity: str,
        reader: str,
        became: Became,
        *,
        line: str = "",
        held: str = "",
    ) -> Turn:
        """Ask for a turn, or say what became of it.

        Args:
            reader: 32 hexadecimal digits of its own.
            line, held: of `done`: how others read it there.
        """
        ...
