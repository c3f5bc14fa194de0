"""What can go wrong at the fake Cloud Storage, and to which requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from fnmatch import fnmatchcase

from .gcs_wire import Json

__all__ = ["Fault", "omit_items", "repeat_items", "wrong_crc32c", "wrong_size"]


@dataclass
class Fault:
    """What goes wrong, and when. Without any effect it only calls `before`.

    Attributes:
        operation: which requests it counts, a pattern: see `FakeGcs`. "token" is never in "*".
        at: the first of them that it hits, counted from 1 when the fault is added.
        times: how many it hits in all; None: every one from then on.
        name: the same for names of objects, a pattern.
        before: called with the number of the request in the whole run, before any effect.
        status: answer so, with `headers` and `body`, instead of doing it. A chunk is kept only as
            far as `keep` says.
        drop: cut the connection instead of answering; for a chunk after `keep` bytes of it.
        lost: do it, then cut the connection instead of answering.
        keep: bytes of the chunk that are taken, rounded down to the granule.
        bare: the answer 308 names no range, whatever was kept.
        expire: the session ends with this status, 404 or 410.
        alter: changes the JSON of the answer.
        truncate: bytes of the body that are sent before the connection is cut.
        flip: the bit of the body that is turned over.
        stall: bytes of the body that are sent before nothing follows for ever.
    """

    operation: str = "*"
    _: KW_ONLY
    at: int = 1
    times: int | None = 1
    name: str = "*"
    before: Callable[[int], Awaitable[None] | None] | None = None
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    drop: bool = False
    lost: bool = False
    keep: int | None = None
    bare: bool = False
    expire: int = 0
    alter: Callable[[Json], Json] | None = None
    truncate: int | None = None
    flip: int | None = None
    stall: int | None = None
    met: int = 0

    @classmethod
    def slow_down(cls, operation: str = "*", *, status: int = 503, retry_after: str = "1") -> Fault:
        """One request is told to come back later."""
        return cls(operation=operation, status=status, headers={"Retry-After": retry_after})

    @classmethod
    def captive(cls, operation: str = "*") -> Fault:
        """Something between answers every request with a page of its own."""
        page = "<!DOCTYPE html><html><body>Please log in</body></html>"
        return cls(operation=operation, times=None, status=200, body=page)

    @classmethod
    def dead_from(cls, at: int) -> Fault:
        """No request is answered from number `at` on."""
        return cls(at=at, times=None, drop=True)

    def hits(self, operation: str, name: str) -> bool:
        """Count a request; whether it is one of those that go wrong."""
        if not fnmatchcase(operation, self.operation) or not fnmatchcase(name, self.name):
            return False
        if operation == "token" and self.operation == "*":
            return False
        self.met += 1
        late = self.times is not None and self.met >= self.at + self.times
        return self.met >= self.at and not late


def wrong_crc32c(answer: Json) -> Json:
    """For `Fault.alter`."""
    return {**answer, "crc32c": "AAAAAA=="}


def wrong_size(answer: Json) -> Json:
    """For `Fault.alter`."""
    return {**answer, "size": str(int(answer["size"]) + 1)}


def repeat_items(answer: Json) -> Json:
    """For `Fault.alter`: the last object of the page is listed twice."""
    items = answer.get("items", [])
    return {**answer, "items": items + items[-1:]}


def omit_items(answer: Json) -> Json:
    """For `Fault.alter`: the first object of the page is not listed."""
    return {**answer, "items": answer.get("items", [])[1:]}
