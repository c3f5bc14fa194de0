"""A command with placeholders, checked where it is written down and filled in later. Pure."""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from ..errors import ConfigError, quote
from ..patterns import Selection

__all__ = ["LISTS", "SELECTING", "Template"]

LISTS: Mapping[str, bytes] = {"filelist": b"\n", "filelist0": b"\0"}
"""Placeholders for a file that lists names, and what ends each name in it."""

SELECTING = frozenset({"exclude", *LISTS})
"""Placeholders through which a command learns what to leave out."""

# Where gitignore and the tools agree. "*" stands only at the ends: in the middle, some tools let
# it match "/" and gitignore does not.
_SHARED_PATTERN = re.compile(r"\*?(?=[^*]*\w)[\w.@+=,~%-]+\*?")

_Argument = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A command as arguments, each of them pieces: a text and the placeholder after it or ""."""

    name: str
    text: str
    arguments: tuple[_Argument, ...]

    @classmethod
    def parse(
        cls, name: str, text: str, *, needs: frozenset[str], takes: frozenset[str] = frozenset()
    ) -> Template:
        """Split `text` the way a shell would and find its placeholders.

        Args:
            name: what to call it in errors.
            text: the command; `{{` and `}}` are braces.
            needs: placeholders that it must have.
            takes: placeholders that it may have besides.

        Raises:
            ConfigError: it is not a command, or its placeholders are wrong.
        """
        template = cls(name, text, tuple(_pieces(name, word) for word in _words(name, text)))
        template._check_placeholders(needs, takes)
        template._check_places()
        return template

    @property
    def fields(self) -> frozenset[str]:
        """The placeholders it has."""
        return frozenset().union(*map(_fields, self.arguments))

    def _check_placeholders(self, needs: frozenset[str], takes: frozenset[str]) -> None:
        if unknown := self.fields - needs - takes:
            raise ConfigError(
                f"{self.name} has an unknown placeholder {_braced(unknown)}; it takes "
                f"{_braced(needs | takes)}, and a literal brace is written {{{{"
            )
        if missing := needs - self.fields:
            raise ConfigError(
                f"{self.name} lacks {_braced(missing)}: the command has to say where it goes"
            )
        if len(self.fields & SELECTING) > 1:
            raise ConfigError(f"{self.name} takes one of {_braced(SELECTING)}, not several")

    def _check_places(self) -> None:
        if _fields(self.arguments[0]):
            raise ConfigError(f"{self.name} begins with a placeholder; begin with a program")
        for argument in self.arguments:
            fields = _fields(argument)
            if "exclude" in fields and (fields != {"exclude"} or not argument[0][0]):
                raise ConfigError(
                    f"{self.name} needs an argument of its own for each pattern; write it like "
                    "--exclude={exclude}"
                )

    def select(self, exclude: Sequence[str]) -> Selection:
        """The patterns as a selection.

        Raises:
            ConfigError: this command has no place for them, or may read one of them differently.
        """
        selection = Selection(cast("tuple[str, ...]", exclude))  # any iterable but a string will do
        if selection.exclude and not self.fields & SELECTING:
            way = "--exclude={exclude}" + (" or {filelist0}" if self.name == "sync_up" else "")
            raise ConfigError(
                f"exclude is given and the command of {self.name} has no place for it; add {way}"
            )
        if "exclude" in self.fields:
            for pattern in selection.exclude:
                self._check_pattern(pattern)
        return selection

    def _check_pattern(self, pattern: str) -> None:
        if not _SHARED_PATTERN.fullmatch(pattern):
            way = "use {filelist0} instead" if self.name == "sync_up" else "leave it out"
            raise ConfigError(
                f"the pattern '{quote(pattern)}' may mean something else to the command of "
                f"{self.name}, which takes names with '*' before or after them; {way}"
            )

    def argv(self, values: Mapping[str, str], exclude: Sequence[str] = ()) -> list[str]:
        """The arguments, filled in; values are never looked at for placeholders."""
        filled = []
        for argument in self.arguments:
            for pattern in exclude if "exclude" in _fields(argument) else ("",):
                known = {**values, "exclude": pattern, "": ""}
                filled.append("".join(text + known[field] for text, field in argument))
        return filled


def _words(name: str, text: str) -> list[str]:
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ConfigError(f"{name} takes a command as one string, not {text!r}")
    try:
        return shlex.split(text)
    except ValueError as exc:
        raise ConfigError(f"{name} is not a command: {exc} in {text!r}") from exc


def _pieces(name: str, word: str) -> _Argument:
    try:
        parsed = list(string.Formatter().parse(word))
    except ValueError as exc:
        raise ConfigError(f"{name}: {exc} in {word!r}; write {{{{ or }}}} for a brace") from exc
    if any(field == "" or spec or conversion for _, field, spec, conversion in parsed):
        raise ConfigError(f"{name}: {word!r} has no plain placeholder; write {{{{ for a brace")
    return tuple((text, field or "") for text, field, _, _ in parsed)


def _fields(argument: _Argument) -> frozenset[str]:
    return frozenset(field for _, field in argument if field)


def _braced(fields: Iterable[str]) -> str:
    return ", ".join(f"{{{field}}}" for field in sorted(fields))
