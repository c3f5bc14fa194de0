"""Following a location: what to ask for next and what counts as news, decided from values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

from ..errors import BusyError, IntegrityError, NotCommittedError, NotFoundError, RefusedError
from ..storage import Glance, TreeStore
from .commits import Commit
from .newest import Look

__all__ = ["Ask", "State", "Watch", "poll"]

Ask = Literal["glance", "header", "look"]

State = Literal["commit", "begun", "foreign", "unclear"]
"""What a name directly below the location holds: a commit; nothing that may be seen, as long as
somebody writes it; files without a manifest, or commits further down; not known yet."""

_HEADER_EVERY = 4
_LOOK_EVERY = 30
_MANY_FILES = 1000  # of which a store lists no more at once
_PATIENCE = 32  # polls; who writes for longer than that is asked less often
_MAX_UNCLEAR = 16  # names without a commit that are asked one by one


class Watch:
    """What a follower has seen, and what follows from it. Pure: `poll` does the asking.

    A glance shows the tag of the location's own manifest and the names below it. What it does not
    show is asked for now and then: whether the newest commit is still the same by its header, and
    what lies deeper by a look at everything. Where the location itself is the newest commit and has
    so many files that a glance costs several requests, its header is asked for instead.
    """

    def __init__(self) -> None:
        self._look = Look()
        self._seen: set[tuple[str, str, str]] = set()
        self._told: tuple[str, str, str] | None = None
        self._tag = ""
        self._names: dict[str, State] = {}
        self._since: dict[str, int] = {}
        self._polls = self._quiet = 0

    def ask(self) -> Ask:
        """What the next poll asks for; to be called once for each."""
        self._polls += 1
        self._quiet += 1
        if self._look.is_sealed:
            return "header"
        if self._quiet >= _LOOK_EVERY and self._is_blind():
            return "look"
        if self._is_large() or (self._look.newest and self._quiet % _HEADER_EVERY == 0):
            return "header"
        return "glance"

    def _is_large(self) -> bool:
        """Whether a glance would list a commit's own files, page after page."""
        commit = self._look.commit
        return self._look.newest == "" and commit is not None and commit.files > _MANY_FILES

    def _is_blind(self) -> bool:
        """Whether there may be news that is not asked for at other polls."""
        below = [commit for path, commit in self._look.commits.items() if path]
        rolling = any(commit.kind == "rolling" for commit in below)
        return rolling or self._is_large() or "foreign" in self._names.values()

    @property
    def newest(self) -> str | None:
        """Path, below the location, of the commit whose header is asked for."""
        return self._look.newest

    def is_same(self, attempt: str | None) -> bool:
        """Whether the newest commit is the one that was seen, by the attempt that wrote it."""
        return self._look.commit is not None and self._look.commit.attempt == attempt

    def glanced(self, glance: Glance) -> bool:
        """Take note of a glance; whether there may be news."""
        stirred = glance.tag != self._tag or not glance.names <= self._names.keys()
        self._tag = glance.tag
        self._names = {name: self._names.get(name, "unclear") for name in glance.names}
        return stirred

    def looked(self, look: Look) -> Commit | None:
        """Take note of what is there; the newest commit if that is news.

        A commit that was there before, or was told already, is none.
        """
        self._look, self._quiet = look, 0
        keys = {_key(commit) for commit in look.commits.values()}
        known = self._seen | {self._told}
        self._seen = keys
        self._sort_names()
        newest = look.commit
        if newest is None or _key(newest) in known:
            return None
        self._told = _key(newest)
        return newest

    def _sort_names(self) -> None:
        """Tell by the look which names hold commits; of the others, ask the last few."""
        if self._look.is_sealed:
            self._names = {}  # what is inside a checkpoint is no news
        holding = {path.partition("/")[0] for path in self._look.commits}
        for name, state in self._names.items():
            if name in self._look.commits:
                self._names[name] = "commit"
            elif name in holding:
                self._names[name] = "foreign"
            elif state == "commit":
                self._names[name] = "unclear"
        unclear = sorted(name for name, state in self._names.items() if state == "unclear")
        for name in unclear[:-_MAX_UNCLEAR]:
            self._names[name] = "foreign"

    @property
    def unclear(self) -> list[str]:
        """Names that are to be asked what they hold; `settle` takes the answer."""
        return [name for name, state in self._names.items() if state == "unclear"]

    def settle(self, name: str, state: State) -> None:
        """What a name holds."""
        self._names[name] = state
        self._since[name] = self._polls

    @property
    def due(self) -> list[str]:
        """Names where a commit was begun, and it is time to see whether it is there."""
        begun = [name for name, state in self._names.items() if state == "begun"]
        ages = [(name, self._polls - self._since[name]) for name in begun]
        return [name for name, age in ages if age % max(1, age // _PATIENCE) == 0]


def _key(commit: Commit) -> tuple[str, str, str]:
    return commit.location, commit.attempt, commit.identity


async def poll(
    watch: Watch, store: TreeStore, tree: str, look: Callable[[], Awaitable[Look]]
) -> Commit | None:
    """Ask once whether there is a newer commit at or below `tree`.

    Without news that is one small request, or one for every thousand names directly below; one more
    for each commit that was begun there; now and then a look at everything (`Watch.ask`).
    """
    if not await _is_stirred(watch, store, tree):
        return None
    return watch.looked(await look())


async def _is_stirred(watch: Watch, store: TreeStore, tree: str) -> bool:
    stirred = False
    for name in watch.unclear:
        state = await _state(store, _join(tree, name))
        watch.settle(name, state)
        stirred |= state == "commit"
    for name in watch.due:
        stirred |= bool((await store.glance(_join(tree, name))).tag)
    match watch.ask():
        case "look":
            return True
        case "header":
            there = await _attempt(store, _join(tree, watch.newest or ""))
            return stirred or not watch.is_same(there)
        case "glance":
            return watch.glanced(await store.glance(tree)) or stirred


def _join(tree: str, path: str) -> str:
    return f"{tree}/{path}".strip("/")


async def _state(store: TreeStore, tree: str) -> State:
    """What a name holds. What cannot be read is asked for again, as is what is not there yet."""
    try:
        await store.read_header(tree)
    except (NotCommittedError, RefusedError):  # not ours; or none that can be asked for
        return "foreign"
    except (NotFoundError, BusyError, IntegrityError):
        return "begun"
    return "commit"


async def _attempt(store: TreeStore, tree: str) -> str | None:
    """What wrote the commit there; None when there is none that can be read."""
    try:
        return (await store.read_header(tree)).attempt
    except (NotFoundError, BusyError, IntegrityError):
        return None
