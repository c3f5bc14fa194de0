"""Deleting trees in a bucket: the manifest first, so that no reader sees half."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import IntegrityError, PreconditionError
from ...manifest import Manifest
from ...names import ATTEMPT, MANIFEST, is_commit_file, is_ours
from ..trees import Deleted
from .looking import absent
from .place import Found, Place, conflict, of_tree
from .record import Lease

__all__ = ["delete", "remove"]


async def delete(place: Place, lease: Lease, expect: str | None, *, uncommitted: bool) -> Deleted:
    old = await _readable(place, uncommitted=uncommitted)
    swept = await _sweep(place, lease, old)
    if expect is not None and (old is None or old.manifest.identity != expect):
        raise conflict(place, old)
    if old is None and not uncommitted:
        if not swept:
            raise await absent(place)
        return await _finished(place, lease, swept)
    paths = await _everything(place) if old is None else await _listed(place, old.manifest)
    if not paths and not swept and old is None:
        raise await absent(place)
    await lease.update(replaces=old.manifest.identity if old else None, listed=paths)
    if old is not None:
        await _delete_manifest(place, old)
    await remove(place, paths)
    await place.abort_uploads(paths.__contains__)
    return await _finished(place, lease, swept | paths)


async def _readable(place: Place, *, uncommitted: bool) -> Found | None:
    """The commit; None for one whose manifest is damaged, when its files are to go all the same."""
    try:
        return await place.manifest()
    except IntegrityError:
        if not uncommitted:
            raise
        return None


async def _sweep(place: Place, lease: Lease, old: Found | None) -> frozenset[str]:
    """Delete what an abandoned attempt left; its paths."""
    left = lease.inherited
    if left is None or (left.kind == "delete" and old is not None):
        return frozenset()
    ours = left.ours - (old.manifest.files.keys() if old else frozenset())
    await place.abort_uploads(left.ours.__contains__)
    await remove(place, ours)
    await lease.update(paths=(), listed=())
    return ours


async def _delete_manifest(place: Place, old: Found) -> None:
    tag = old.tag if place.conditional else None
    try:
        await place.objects.delete(place.manifest_key, tag=tag)
    except PreconditionError:
        raise conflict(place, await place.manifest()) from None


async def remove(place: Place, paths: Iterable[str]) -> None:
    """Delete objects: what says that a tree is complete before the tree, ours and frameworks'."""
    paths = frozenset(paths)
    marks = {path for path in paths if path.rpartition("/")[2] in (MANIFEST, ATTEMPT)}
    commit_files = {path for path in paths - marks if is_commit_file(path)}
    await place.delete(marks)
    await place.delete(commit_files)
    await place.delete(paths - marks - commit_files)


async def _finished(place: Place, lease: Lease, removed: frozenset[str]) -> Deleted:
    # A console's marker of the tree's own folder has no path: its key says what is meant.
    kept = [path or place.prefix async for path, _ in place.scan() if of_tree(path)]
    await lease.drop()
    return Deleted(sum(map(of_tree, removed)), tuple(kept))


async def _listed(place: Place, manifest: Manifest) -> frozenset[str]:
    """What a commit consists of, with the commits inside it. IntegrityError if one is damaged.

    What a probe left that was killed goes with it.
    """
    inside = [path async for path, _ in place.scan() if "/" in path]
    paths = {*manifest.files, *filter(_is_of_probe, inside)}
    for path in [path for path in inside if path.rpartition("/")[2] == MANIFEST]:
        below = path.removesuffix(MANIFEST)
        nested = Place(place.objects, place.key(below).rstrip("/"), conditional=place.conditional)
        found = await nested.manifest()
        if found is not None:
            paths |= {path, *(below + name for name in found.manifest.files)}
    return frozenset(paths)


def _is_of_probe(path: str) -> bool:
    holder, _, name = path.rpartition("/")
    return name == ATTEMPT and is_ours(holder.rpartition("/")[2])


def _is_mark(path: str) -> bool:
    return path.rpartition("/")[2] in (MANIFEST, ATTEMPT)


async def _everything(place: Place) -> frozenset[str]:
    """Every file that is there, and the marks of commits and attempts inside."""
    return frozenset(
        [
            path
            async for path, _ in place.scan()
            if of_tree(path) or path == MANIFEST or ("/" in path and _is_mark(path))
        ]
    )
