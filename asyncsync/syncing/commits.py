"""What can be found at a location: commits, which is the newest, and whether they are whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..concurrency import each
from ..errors import (
    BusyError,
    CorruptedError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    quote,
    quote_some,
)
from ..events import Observer, Skipped
from ..location import Location
from ..manifest import Header, Kind
from ..storage import Sighting, TreeCapabilities, TreeStore
from ..transfer import Engine, Inspected, Tally
from .decisions import step_of

__all__ = [
    "Commit",
    "ProbeReport",
    "VerifyReport",
    "candidates",
    "damaged_error",
    "find_commits",
    "read_commit",
    "refuse_damaged",
    "to_restore",
    "verify_commit",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A commit as its header describes it.

    Attributes:
        location: where it is.
        step, epoch, sequence, created: what it is ordered by; see the manifest's header.
        identity: digest of the content; empty if the manifest is damaged.
        attempt: what wrote it; equal content that is committed again has another one.
        part_of: identity of the commit that this is a restored part of, or None.
        damaged: why the manifest cannot be read, or None.
    """

    location: str
    name: str
    kind: Kind = "sealed"
    step: int | None = None
    epoch: int = 0
    sequence: int = 1
    created: float = 0.0
    identity: str = ""
    attempt: str = ""
    files: int = 0
    size_bytes: int = 0
    part_of: str | None = None
    damaged: str | None = None

    @classmethod
    def of(cls, location: Location, header: Header) -> Commit:
        """The commit at `location`."""
        return cls(
            location=str(location),
            name=location.name,
            kind=header.kind,
            step=header.step,
            epoch=header.epoch,
            sequence=header.sequence,
            created=header.created,
            identity=header.identity,
            attempt=header.attempt,
            files=header.files,
            size_bytes=header.size_bytes,
            part_of=header.part_of,
        )

    @property
    def order(self) -> tuple[bool, int, int, int, float, str]:
        """Newer commits compare greater.

        A damaged one whose name has no step could be the newest, so it counts as that: whoever
        asks for the newest must hear of it.
        """
        unknown = self.damaged is not None and self.step is None
        step = -1 if self.step is None else self.step
        return (unknown, self.epoch, step, self.sequence, self.created, self.location)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What reading every byte of a commit showed. `failures` are (path, reason)."""

    location: str
    identity: str
    files: int
    size_bytes: int
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        return not self.failures


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """What a place can do.

    Attributes:
        marker: id of the storage root, equal on every machine that sees the same one.
        clock_offset_s: the store's clock minus ours; None where it has none of its own.
    """

    location: str
    capabilities: TreeCapabilities
    marker: str
    clock_offset_s: float | None = None


async def find_commits(store: TreeStore, location: Location, tree: str) -> list[Commit]:
    """The commits at and below `location`, newest first; damaged ones are among them, and say so.

    Raises:
        NotFoundError: there is nothing at all.
    """
    found: list[Commit] = []

    async def read(sighting: Sighting) -> None:
        commit = await read_commit(store, location, tree, sighting.tree)
        if commit is not None:
            found.append(commit)

    await each([sighting async for sighting in store.find(tree)], read)
    return sorted(found, key=lambda commit: commit.order, reverse=True)


async def read_commit(store: TreeStore, location: Location, tree: str, found: str) -> Commit | None:
    """The commit at the tree `found`, by its header; a damaged one says so.

    So does one with a name by which its store cannot be asked for it.

    Args:
        location, tree: from where it was found, as a location and in the store.

    Returns:
        None when it has been deleted, or is being replaced, since it was listed.
    """
    below = found[len(tree) :].lstrip("/")
    place = location / below if below else location
    try:
        return Commit.of(place, await store.read_header(found))
    except CorruptedError:  # on the way, not in the store
        raise
    except (IntegrityError, RefusedError) as exc:
        return Commit(
            location=str(place), name=place.name, step=step_of(place.name), damaged=str(exc)
        )
    except (NotFoundError, BusyError):
        return None


def candidates(found: Sequence[Commit], remote: Location) -> list[Commit]:
    """Newest first: the commit itself if it is sealed, else what is below it, else itself.

    A damaged one does not say which it is: then it comes before what is below.
    """
    here = [commit for commit in found if commit.location == str(remote)]
    below = [c for c in found if c.location != str(remote) and c.part_of is None]
    if here and here[0].damaged is not None:
        return here + below
    if here and (here[0].kind == "sealed" or not below):
        return here
    return below


def to_restore(found: Sequence[Commit], step: int | None, remote: Location) -> list[Commit]:
    """The candidates in question when one of `step`, or any, is wanted; at least one.

    Raises:
        NotFoundError: there is none.
    """
    chosen = [commit for commit in found if step in (None, commit.step)]
    if chosen:
        return chosen
    if not found:
        raise NotFoundError(f"no commit at or below {quote(str(remote))}")
    steps = [str(commit.step) for commit in found if commit.step is not None]
    raise NotFoundError(
        f"no commit of step {step} at {quote(str(remote))}; there are {quote_some(steps)}"
    )


def refuse_damaged(commit: Commit) -> None:
    if commit.damaged is not None:
        raise IntegrityError(commit.damaged, side="source")


def damaged_error(commit: Commit, reason: str, older: Sequence[Commit]) -> IntegrityError:
    offer = (
        f"the next older one is {quote(older[0].location)} (step {older[0].step}); fallback uses it"
        if older
        else "there is no older one"
    )
    return IntegrityError(
        f"the newest commit, {quote(commit.location)}, is damaged: {reason}; {offer}",
        side="source",
    )


async def verify_commit(
    store: TreeStore, tree: str, remote: Location, engine: Engine, observe: Observer
) -> VerifyReport:
    """Read every byte of a commit and compare it with the manifest; raises as `verify`."""
    manifest = await store.read_manifest(tree)
    async with store.open(tree, manifest) as reader:
        source = Inspected(reader, quote(str(remote)))
        await engine.check(tuple(manifest.files.values()), source, Tally(observe))
    for entry in manifest.nested:
        try:
            await store.read_header(f"{tree}/{entry.path}".lstrip("/"))
        except NotFoundError:
            observe(Skipped(path=entry.path, reason="this commit inside is gone"))
    return VerifyReport(
        location=str(remote),
        identity=manifest.identity,
        files=manifest.header.files,
        size_bytes=manifest.header.size_bytes,
        failures=tuple(sorted(source.damaged.items())),
    )
