"""The error tree: what it says of itself, and how the system's errors become ours."""

from __future__ import annotations

import errno
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync import errors
from asyncsync.errors import (
    AsyncSyncError,
    ConfigError,
    DeadlineError,
    os_errors,
    quote,
    quote_some,
)

ROW = re.compile(r"(?P<lead>[\u2502\u251c\u2514\u2500 ]*)(?P<name>\w+Error) +(?P<code>\d+)")


def documented() -> dict[str, tuple[str | None, int]]:
    """Name -> (parent, exit code), as the module's docstring draws the tree."""
    tree: dict[str, tuple[str | None, int]] = {}
    above: list[str] = []
    for row in filter(None, map(ROW.match, (errors.__doc__ or "").splitlines())):
        depth = len(row["lead"]) // 4
        above[depth:] = [row["name"]]
        tree[row["name"]] = (above[depth - 1] if depth else None, int(row["code"]))
    return tree


def classes() -> list[type[AsyncSyncError]]:
    exported = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    return [kind for kind in exported if issubclass(kind, AsyncSyncError)]


def test_the_docstring_draws_the_tree_and_its_exit_codes() -> None:
    actual = {
        kind.__name__: (
            kind.__bases__[0].__name__ if kind is not AsyncSyncError else None,
            kind.exit_code,
        )
        for kind in classes()
    }

    assert documented() == actual


def test_every_class_of_the_module_is_exported() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, AsyncSyncError)
    }

    assert {kind.__name__ for kind in classes()} == defined


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(DeadlineError, TimeoutError)


def test_an_error_knows_its_side_and_its_files() -> None:
    error = errors.RefusedError("no", side="source", paths=["a", "b"])

    assert (error.side, error.paths, str(error)) == ("source", ("a", "b"), "no")
    assert (AsyncSyncError("x").side, AsyncSyncError("x").paths) == (None, ())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, errors.NotFoundError),
        (errno.EACCES, errors.AccessDeniedError),
        (errno.EROFS, errors.AccessDeniedError),
        (errno.ENOSPC, errors.NoSpaceError),
        (errno.EDQUOT, errors.NoSpaceError),
        (errno.EMFILE, errors.TransientError),
        (errno.ESTALE, errors.TransientError),
        (errno.EIO, errors.DeviceError),
        (errno.ENAMETOOLONG, errors.RefusedError),
        (errno.EBADF, errors.PermanentError),
    ],
)
def test_the_systems_errors_become_ours_by_their_number(
    code: int, kind: type[AsyncSyncError]
) -> None:
    with pytest.raises(kind, match=r"^target /x: \w") as caught, os_errors("target", "/x"):
        raise OSError(code, "whatever")
    assert type(caught.value) is kind
    assert caught.value.side == "target"
    assert isinstance(caught.value.__cause__, OSError)


def test_only_the_systems_errors_are_translated() -> None:
    with pytest.raises(KeyError), os_errors("source", "/x"):
        raise KeyError
    with pytest.raises(errors.BusyError), os_errors("source", "/x"):
        raise errors.BusyError("ours")
    with pytest.raises(DeadlineError), os_errors("source", "/x"):
        raise DeadlineError("an OSError too, since TimeoutError is one")


def test_a_full_disk_says_what_to_do() -> None:
    with (
        pytest.raises(errors.NoSpaceError, match="free space or inodes"),
        os_errors("target", "/x"),
    ):
        raise OSError(errno.ENOSPC, "full")


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_a_quoted_name_is_printable_and_unambiguous(name: str) -> None:
    quoted = quote(name)

    assert quoted.isprintable()
    if quoted != name:
        escapes = quoted[1:-1].encode("latin-1", "backslashreplace")
        assert escapes.decode("unicode_escape") == name


def test_many_names_are_shown_as_some_and_a_number() -> None:
    assert quote_some(["a", "b\n"]) == "a, 'b\\n'"
    assert quote_some(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert quote_some(list("abc"), limit=1) == "a and 2 more"


FAILURES = [errors.NoSpaceError("full", side="target", paths=["a"])]


@pytest.mark.parametrize(
    "error",
    [
        *FAILURES,
        errors.DeadlineError("late"),
        errors.TransientError("busy", retry_after_s=3.0),
        errors.ConflictError("another", winner="b3:1"),
        errors.TransferError("several", failures=FAILURES),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_a_process_boundary(error: errors.AsyncSyncError) -> None:
    there = pickle.loads(pickle.dumps(error))

    assert type(there) is type(error)
    assert (str(there), repr(vars(there))) == (str(error), repr(vars(error)))


def test_the_exit_code_of_several_failures_is_theirs_if_they_have_the_same() -> None:
    full, damaged = errors.NoSpaceError("full"), errors.IntegrityError("damaged")
    codes = [
        errors.TransferError("several", failures=failures).exit_code
        for failures in ([full, full], [damaged], [full, damaged])
    ]

    assert codes == [7, 8, 6]
