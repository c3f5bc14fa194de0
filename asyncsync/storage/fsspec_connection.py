"""fsspec itself: imported when first used, connected, and its errors turned into ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ..errors import (
    AccessDeniedError,
    AsyncSyncError,
    ClashError,
    ConfigError,
    DeviceError,
    NoSpaceError,
    NotFoundError,
    PermanentError,
    RefusedError,
    SlowDownError,
    TransientError,
    quote,
)

__all__ = ["connect", "translated"]

_PACKAGES = {"smbclient": "smbprotocol", "distributed": "dask distributed"}
"""What to install for a module whose package has another name."""


def connect(scheme: str, authority: str, filesystem: Any) -> tuple[Any, str, Any]:
    """Import fsspec and what it needs for `scheme`, and connect.

    Returns:
        The file system, the path of its root there, and the class that all of them inherit from.

    Raises:
        ConfigError: no such protocol, or a package is missing: it says which.
    """
    try:
        fsspec = import_module("fsspec")
    except ImportError as exc:
        raise ConfigError(f"{scheme}:// needs fsspec; pip install 'asyncsync[fsspec]'") from exc
    base = fsspec.AbstractFileSystem
    if filesystem is not None:
        return filesystem, filesystem._strip_protocol(authority), base
    if scheme not in {*fsspec.available_protocols(), *fsspec.registry}:
        raise ConfigError(f"fsspec knows no {quote(scheme)}://; check the spelling")
    try:
        fs, root = fsspec.core.url_to_fs(f"{scheme}://{authority}/", skip_instance_cache=True)
    except ImportError as exc:
        package = _missing(exc)
        raise ConfigError(
            f"{scheme}:// needs {package}; pip install 'asyncsync[fsspec]' {package}"
        ) from exc
    return fs, root, base


def _missing(exc: ImportError) -> str:
    """The package that fsspec could not import."""
    cause = exc.__cause__ if isinstance(exc.__cause__, ImportError) else exc
    module = (cause.name or "the package of this protocol").partition(".")[0]
    return _PACKAGES.get(module, module.replace("_", "-"))


_BY_CLASS: tuple[tuple[type[Exception], type[AsyncSyncError], str], ...] = (
    (FileNotFoundError, NotFoundError, "is not there; check the spelling"),
    (PermissionError, AccessDeniedError, "may not be accessed; check the permissions"),
    (FileExistsError, ClashError, "is taken by something else; choose another name"),
    (IsADirectoryError, ClashError, "is a directory; choose another name"),
    (NotADirectoryError, ClashError, "has a file in its path; choose another name"),
    (TimeoutError, TransientError, "took too long; try again"),
    (ConnectionError, TransientError, "lost the connection; try again"),
)

_BY_ERRNO: dict[int, tuple[type[AsyncSyncError], str]] = {
    errno.ENOSPC: (NoSpaceError, "does not fit; free space, then run it again"),
    errno.EDQUOT: (NoSpaceError, "does not fit the quota; free some of it, then run it again"),
    errno.EROFS: (AccessDeniedError, "may not be written; choose another place"),
    errno.ENAMETOOLONG: (RefusedError, "is too long a name; choose another"),
    errno.EILSEQ: (RefusedError, "is no name there; choose another"),
    errno.EIO: (DeviceError, "cannot be reached: the device failed; look at the kernel log"),
}

_BY_STATUS: dict[int, tuple[type[AsyncSyncError], str]] = {
    401: (AccessDeniedError, "may not be accessed; check the credentials"),
    403: (AccessDeniedError, "may not be accessed; check the permissions"),
    404: (NotFoundError, "is not there; check the spelling"),
    429: (SlowDownError, "was asked for too often; try again later"),
    503: (SlowDownError, "cannot be served now; try again later"),
}


@contextmanager
def translated(scheme: str, key: str) -> Iterator[None]:
    """Turn whatever an implementation raises into ours. Its text may hold a token, so it is only
    kept as the cause."""
    try:
        yield
    except AsyncSyncError:
        raise
    except (AssertionError, AttributeError, KeyError, NameError, TypeError):
        raise  # a bug
    except Exception as exc:
        kind, what = _meaning(exc)
        name = f"{scheme}:// object {quote(key)}" if key else f"{scheme}://"
        raise kind(f"{name} {what} ({type(exc).__name__})") from exc


def _meaning(exc: Exception) -> tuple[type[AsyncSyncError], str]:
    for kind, ours, what in _BY_CLASS:
        if isinstance(exc, kind):
            return ours, what
    status = getattr(getattr(exc, "response", None), "status_code", getattr(exc, "status", None))
    if isinstance(status, int):
        unknown = TransientError if status >= 500 else PermanentError
        return _BY_STATUS.get(status, (unknown, f"was answered with status {status}"))
    if isinstance(exc, OSError):
        # Clients of network file systems raise their own kinds of OSError without a number.
        return _BY_ERRNO.get(exc.errno or 0, (TransientError, "cannot be reached; try again"))
    return PermanentError, "cannot be used; look at the cause"
