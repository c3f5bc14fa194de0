"""Include and exclude patterns: gitignore syntax, relative to the tree, in both directions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from .errors import ConfigError

__all__ = ["TEMPORARY_NAMES", "Selection"]

TEMPORARY_NAMES = (
    "checkpoint_-00001",
    "checkpoint_tmp*",
    "*.orbax-checkpoint-tmp*",
    "tmp-checkpoint-*",
    "save_to_object*",
    "/rank_*",
    ".lazy_checkpoint_marker",
)
"""What a trial directory holds while a framework is still writing it (Ray Tune's list,
and what Orbax and Hugging Face call theirs)."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which paths of a tree take part. Pure; pickles.

    Args:
        exclude: patterns of what is left out.
        include: patterns of what takes part; empty means everything. Exclusion wins.
        base: directory, ending in `/`, that the asked-for paths are in; patterns see it.

    Raises:
        ConfigError: a pattern is not valid gitignore syntax.
    """

    exclude: Sequence[str] = ()
    include: Sequence[str] = ()
    base: str = ""
    _exclude: GitIgnoreSpec = field(init=False, repr=False, compare=False)
    _include: GitIgnoreSpec = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "exclude", _patterns("exclude", self.exclude))
        object.__setattr__(self, "include", _patterns("include", self.include))
        object.__setattr__(self, "_exclude", _compile(self.exclude))
        object.__setattr__(self, "_include", _compile(self.include))

    def __reduce__(self) -> tuple[type[Selection], tuple[Sequence[str], Sequence[str], str]]:
        return Selection, (self.exclude, self.include, self.base)

    def below(self, directory: str) -> Selection:
        """The same choice for a tree that lies at `directory` of this one."""
        return Selection(self.exclude, self.include, f"{self.base}{directory}/")

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.exclude and not self.include

    def takes(self, path: str) -> bool:
        """Whether the file `path` takes part."""
        full = self.base + path
        if self.exclude and (self._exclude.match_file(full) or self._inside_excluded(full)):
            return False
        return not self.include or self._include.match_file(full)

    def takes_directory(self, path: str) -> bool:
        """Whether the empty directory `path` takes part."""
        return self.takes(path + "/")

    def prunes(self, directory: str) -> bool:
        """Whether nothing below `directory` can take part, so that no one needs to look."""
        return bool(self.exclude) and self._exclude.match_file(f"{self.base}{directory}/")

    def _inside_excluded(self, path: str) -> bool:
        # As in git, "!pattern" brings nothing back from inside a directory that is excluded;
        # a walk prunes it, so a lookup has to agree. Without "!" the first match has said so.
        if not any(pattern.startswith("!") for pattern in self.exclude):
            return False
        parts = path.rstrip("/").split("/")
        above = ("/".join(parts[:n]) + "/" for n in range(1, len(parts)))
        return any(self._exclude.match_file(directory) for directory in above)


def _patterns(kind: str, patterns: Sequence[str]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        raise ConfigError(f"{kind} takes a list of patterns, not one string: [{patterns!r}]")
    return tuple(patterns)


class _Pattern(GitIgnoreSpecPattern):
    """pathspec's translation, without three of its differences from git.

    `*` alone must rank like other patterns, or `!*/` brings nothing back; a newline in a name is
    a letter like any other; and a set such as `[!0]` matches no slash.
    """

    __slots__ = ()

    @classmethod
    def pattern_to_regex(cls, pattern: str) -> tuple[str | None, bool | None]:  # type: ignore[override]
        regex, include = super().pattern_to_regex(_ALL.sub(r"\1?*", pattern))
        if regex is not None:
            regex = "(?s)" + _NEGATED.sub(r"[^\1/", regex).replace("|$)", r"|\Z)")
        return regex, include


_ALL = re.compile(r"^(!?)\*{1,2}\s*\Z")
_NEGATED = re.compile(r"\[\^(?!/)(\]?)")


def _compile(patterns: Sequence[str]) -> GitIgnoreSpec:
    try:
        # Other back ends, used when installed, know neither our expressions nor names in bytes.
        return GitIgnoreSpec.from_lines(patterns, _Pattern, backend="simple")
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"not a gitignore pattern: {exc}") from exc
