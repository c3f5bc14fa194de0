"""What a token allows. Pure; the format is specified in docs/formats/tokens.md."""

from __future__ import annotations

import re
import secrets
from enum import StrEnum
from typing import Self

import msgspec

from ..errors import ConfigError
from .names import check_tree_name, is_tree_name

__all__ = ["DEFAULT_LIFE_S", "WORKER", "Claims", "Operation", "is_token_id"]

DEFAULT_LIFE_S = 7 * 24 * 3600

_ID = re.compile(r"[0-9a-f]{32}")
_MAX_INTEGER = 2**63 - 1


class Operation(StrEnum):
    """What somebody may do with trees. None of them includes another."""

    PUSH = "push"
    PULL = "pull"
    LIST = "list"
    DELETE = "delete"
    ADMIN = "admin"


WORKER = frozenset({Operation.PUSH, Operation.PULL})
"""What a worker needs. Deleting is for the head, so a worker that was broken into cannot."""


class Claims(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Who may do what, until when, and how much.

    Attributes:
        scope: the tree that it is about, with all below it; `""` for all trees.
        operations: what is allowed there, at least one.
        not_before, expires_at: unix seconds of the head's clock.
        id: 32 hexadecimal digits that only this token has, and what is derived from it: what
            it uses is counted under this id, so deriving tokens does not multiply the caps.
        max_bytes, max_files: what may be pushed in all; None for no cap.

    Raises:
        ConfigError: a value is out of range.
    """

    scope: str
    operations: frozenset[Operation]
    not_before: int
    expires_at: int
    id: str
    max_bytes: int | None = None
    max_files: int | None = None

    def __post_init__(self) -> None:
        if not is_tree_name(self.scope):
            raise ConfigError("the scope of a token is the name of a tree, or '' for all trees")
        if not self.operations or not self.operations <= frozenset(Operation):
            raise ConfigError(f"a token allows some of {', '.join(Operation)}")
        times = (self.not_before, self.expires_at)
        if not (all(map(_is_count, times)) and self.not_before < self.expires_at):
            raise ConfigError("a token begins and then ends, both in whole unix seconds")
        if not is_token_id(self.id):
            raise ConfigError("the id of a token is 32 hexadecimal digits")
        for cap in (self.max_bytes, self.max_files):
            if not (cap is None or _is_count(cap)):
                raise ConfigError("a cap of a token is a whole number of at least 0")

    @classmethod
    def new(
        cls,
        scope: str,
        *,
        now: float,
        operations: frozenset[Operation] = WORKER,
        life_s: float = DEFAULT_LIFE_S,
        max_bytes: int | None = None,
        max_files: int | None = None,
    ) -> Self:
        """Claims that begin now, with an id of their own.

        Raises:
            RefusedError: no tree can have the name `scope`.
            ConfigError: another value is out of range.
        """
        check_tree_name(scope)
        return cls(
            scope=scope,
            operations=operations,
            not_before=int(now),
            expires_at=int(now + life_s),
            id=secrets.token_hex(16),
            max_bytes=max_bytes,
            max_files=max_files,
        )

    @property
    def experiment(self) -> str:
        """The first component of the scope: `""` if it is all trees."""
        return self.scope.partition("/")[0]

    def allows(self, operation: str, tree: str) -> bool:
        """Whether its holder may do that with that tree; not if it is no name of a tree.

        When it is valid is another question: see `KeyRing.verify`.
        """
        return operation in self.operations and is_tree_name(tree) and _is_below(tree, self.scope)

    def is_within(self, wider: Claims) -> bool:
        """Whether nothing is allowed here that `wider` does not allow."""
        return (
            self.id == wider.id
            and _is_below(self.scope, wider.scope)
            and self.operations <= wider.operations
            and wider.not_before <= self.not_before
            and self.expires_at <= wider.expires_at
            and _is_at_most(self.max_bytes, wider.max_bytes)
            and _is_at_most(self.max_files, wider.max_files)
        )


def is_token_id(text: str) -> bool:
    """Whether a token can have that id."""
    return _ID.fullmatch(text) is not None


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number <= _MAX_INTEGER


def _is_below(tree: str, scope: str) -> bool:
    """Component by component: `exp/trial_10` is not below `exp/trial_1`."""
    return not scope or tree == scope or tree.startswith(f"{scope}/")


def _is_at_most(cap: int | None, wider: int | None) -> bool:
    return wider is None or (cap is not None and cap <= wider)
