"""Which copy of a commit is read, when there are several. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .commits import Commit

__all__ = ["Copies", "gather_copies"]

_NEAR = {"": 0, "peer": 1, "peers": 1}  # a path has no scheme
_FAR = 2


class Copies(NamedTuple):
    """One commit, and where it can be read: the nearest place first.

    Attributes:
        order: newer ones compare greater.
    """

    commits: Sequence[Commit]
    order: tuple[object, ...]

    @property
    def first(self) -> Commit:
        """The nearest."""
        return self.commits[0]


def gather_copies(found: Iterable[Sequence[Commit]]) -> list[Copies]:
    """Commits found at several places, the newest first; equal content of one step is one commit.

    A disk of this machine is nearer than another node, and that is nearer than a cloud; among
    equals the place that was named first is. A commit whose manifest is damaged stands for itself.

    Args:
        found: what is at each place, in the order in which they were named.
    """
    same: dict[tuple[str, int, int | None], list[Commit]] = {}
    every = list[Copies]()
    for place in found:
        for commit in place:
            if commit.damaged is None:
                key = commit.identity, commit.epoch, commit.step
                same.setdefault(key, []).append(commit)
            else:  # one that others lie in comes first: nobody knows which of them it would be
                holds = any(one.location.startswith(f"{commit.location}/") for one in place)
                every.append(Copies([commit], (holds, *commit.order)))
    for commits in same.values():
        newest = max(commit.order for commit in commits)
        every.append(Copies(sorted(commits, key=_distance), (False, *newest)))
    return sorted(every, key=lambda copies: copies.order, reverse=True)


def _distance(commit: Commit) -> int:
    return _NEAR.get(commit.location.partition("/")[0].rstrip(":"), _FAR)
