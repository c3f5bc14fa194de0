"""Which objects of earlier versions have to go. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ...manifest import Manifest

__all__ = ["gone", "in_the_way"]


def gone(paths: Iterable[str], manifest: Manifest) -> list[str]:
    """Those of `paths` that are no longer part of the tree, nor of a commit inside it."""
    nested = {entry.path for entry in manifest.nested}
    return [p for p in paths if p not in manifest.files and nested.isdisjoint(_above(p))]


def in_the_way(paths: Iterable[str], manifest: Manifest) -> list[str]:
    """Those of `paths` that go and that a file system could not hold beside the new files.

    A file where a directory will be, or the reverse: some stores keep their objects as files.
    """
    directories = {above for path in manifest.files for above in _above(path)}
    return [
        path
        for path in gone(paths, manifest)
        if path in directories or not manifest.files.keys().isdisjoint(_above(path))
    ]


def _above(path: str) -> Iterable[str]:
    while path := path.rpartition("/")[0]:
        yield path
