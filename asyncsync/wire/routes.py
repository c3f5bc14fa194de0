"""Which requests a head knows, and what a token has to allow for each; see docs/formats/peer.md."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["BASE", "ROUTES", "VERSION", "Need", "Route"]

VERSION = 1
BASE = f"/asyncsync/{VERSION}"

Need = Literal["push", "pull", "list", "delete", "any", "public"]
"""What a token has to allow: one operation, any at all, or none because nobody has one yet."""


class Route(NamedTuple):
    """A request that a head knows.

    Attributes:
        path: below `BASE`; `{session}` is 32 hexadecimal digits, `{blob}` a number from 0.
        needs: any of these operations.
        changes: a head that is read-only refuses it.
    """

    method: str
    path: str
    needs: tuple[Need, ...]
    changes: bool = False

    @property
    def has_body(self) -> bool:
        """Whether such a request says more than its head."""
        return self.method != "GET" and self.path != "/reads/{session}"

    def url(self, session: str = "", blob: int = 0) -> str:
        """The path of one request."""
        return BASE + self.path.replace("{session}", session).replace("{blob}", str(blob))


ROUTES: dict[str, Route] = {
    "hello": Route("GET", "/", ("any",)),
    "authority": Route("GET", "/authority", ("public",)),
    "renew": Route("POST", "/renew", ("any",)),
    "manifest": Route("POST", "/manifest", ("pull", "push")),
    "header": Route("POST", "/header", ("pull", "push", "list")),
    "find": Route("POST", "/find", ("list", "pull", "push")),
    "glance": Route("POST", "/glance", ("list", "pull", "push")),
    "files": Route("POST", "/files", ("list", "pull")),
    "confirm": Route("POST", "/confirm", ("push",), changes=True),
    "delete": Route("POST", "/delete", ("delete",), changes=True),
    "clean": Route("POST", "/clean", ("delete",), changes=True),
    "mark": Route("POST", "/mark", ("push",), changes=True),
    "probe": Route("POST", "/probe", ("push", "list"), changes=True),
    "part": Route("POST", "/part", ("push",)),
    "gather": Route("POST", "/gather", ("push",), changes=True),
    "open": Route("POST", "/reads", ("pull",)),
    "read": Route("GET", "/reads/{session}/blobs/{blob}", ("pull",)),
    "read_many": Route("POST", "/reads/{session}/batch", ("pull",)),
    "close": Route("DELETE", "/reads/{session}", ("pull",)),
    "turn": Route("POST", "/turns", ("pull",)),
    "begin": Route("POST", "/pushes", ("push",), changes=True),
    "plan": Route("POST", "/pushes/{session}/plan", ("push",), changes=True),
    "recall": Route("POST", "/pushes/{session}/recall", ("push",), changes=True),
    "write": Route("PATCH", "/pushes/{session}/blobs/{blob}", ("push",), changes=True),
    "write_many": Route("POST", "/pushes/{session}/batch", ("push",), changes=True),
    "discard": Route("POST", "/pushes/{session}/discard", ("push",), changes=True),
    "commit": Route("POST", "/pushes/{session}/commit", ("push",), changes=True),
    "leave": Route("DELETE", "/pushes/{session}", ("push",), changes=True),
}
