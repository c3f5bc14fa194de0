"""Scheme -> store, imported when first used; what is not built or not installed says so."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ..clock import Clock
from ..concurrency import Threads
from ..errors import ConfigError, quote
from ..location import Location
from .trees import TreeStore

__all__ = ["check_scheme", "open_trees"]

_BUILT = ("file", "memory")
_PLANNED = ("s3", "gs", "peer", "peers")
_HINTS = {
    "az": "adlfs",
    "abfs": "adlfs",
    "hdfs": "pyarrow",
    "webhdfs": "fsspec",
    "sftp": "paramiko",
    "http": "aiohttp",
    "https": "aiohttp",
}


def check_scheme(scheme: str) -> None:
    """Accept a scheme that asyncsync knows, whether or not its extra is installed. No I/O.

    Raises:
        ConfigError: and names the schemes there are, or the package that would be needed.
    """
    if scheme in _BUILT or scheme in _PLANNED:
        return
    if scheme in _HINTS:
        raise ConfigError(
            f"{scheme}:// needs fsspec and {_HINTS[scheme]} "
            f"(pip install 'asyncsync[fsspec]' {_HINTS[scheme]}), and is not built yet; "
            "use a path, file:// or memory://"
        )
    raise ConfigError(
        f"unknown scheme {quote(scheme)}://; known are a path, file://, memory://, s3://, gs://, "
        "peer:// and, by pip install 'asyncsync[fsspec]', what fsspec knows"
    )


def open_trees(location: Location, *, threads: Threads, clock: Clock) -> tuple[TreeStore, str]:
    """The store that `location` is in, and the name of its tree there. No I/O.

    Raises:
        ConfigError: the scheme is unknown, not installed, or not built yet.
    """
    check_scheme(location.scheme)
    if location.scheme == "file":
        local = import_module(".local", __package__)
        return cast("TreeStore", local.LocalTrees("/", threads)), location.path.lstrip("/")
    if location.scheme == "memory":
        memory = import_module(".memory", __package__)
        committed = import_module(".committed", __package__)
        objects = memory.memory_objects(location.authority)
        return cast("TreeStore", committed.CommittedTrees(objects, clock=clock)), location.path
    raise ConfigError(
        f"{location.scheme}:// is not built yet in this release; use a path, file:// or memory://"
    )
