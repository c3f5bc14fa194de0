"""Scheme -> store, imported when first used and kept open; what is not installed says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, NamedTuple, cast

import anyio

from ..clock import Clock
from ..concurrency import Threads
from ..errors import ConfigError, quote
from ..events import Observer, ignore
from ..location import Location
from ..secrets import Secret
from ..wire.names import check_tree_name
from .behaviours import Rate
from .objects import ObjectStore
from .retrying import Backoff, RetryBudget
from .trees import Durability, TreeStore
from .turns import Turns
from .wrappers import equip_objects, equip_trees

__all__ = ["Stores", "check_scheme"]

_PEERS = ("peer", "peers")
_PATIENT = Backoff(attempts=7)  # a server that is restarted is back within half a minute
_BRIEF = Backoff(attempts=2)  # where there is another place to turn to


class _Kind(NamedTuple):
    """How the store of a scheme is made: the extra it needs, where it is, what it survives."""

    extra: str
    module: str
    name: str
    durability: Durability


_OBJECTS = {
    "memory": _Kind("", "memory", "memory_objects", "memory"),
    "s3": _Kind("s3", "s3", "S3Objects", "cloud"),
    "gs": _Kind("gcs", "gcs", "GcsObjects", "cloud"),
}
_PEER = _Kind("peer", "peer", "open_trees", "fsync")
_JOINED = _Kind("peer", "peer", "open_joined", "fsync")
_FSSPEC = _Kind("fsspec", "fsspec_objects", "FsspecObjects", "reduced")

# What fsspec itself does not bring along.
_PACKAGES = {
    "abfs": "adlfs",
    "az": "adlfs",
    "gcs": "gcsfs",
    "github": "requests",
    "hdfs": "pyarrow",
    "http": "aiohttp",
    "https": "aiohttp",
    "oci": "ocifs",
    "oss": "ossfs",
    "sftp": "paramiko",
    "smb": "smbprotocol",
    "webdav": "webdav4",
    "webhdfs": "requests",
}
_ALSO_FSSPEC = ("ftp", "local")


def check_scheme(scheme: str) -> None:
    """Accept a scheme that asyncsync knows, whether or not its extra is installed. No I/O.

    Raises:
        ConfigError: and names the schemes there are.
    """
    if scheme in ("file", *_OBJECTS, *_PEERS, *_PACKAGES, *_ALSO_FSSPEC):
        return
    raise ConfigError(
        f"unknown scheme {quote(scheme)}://; known are a path, file://, memory://, s3://, gs://, "
        "peer:// and, by pip install 'asyncsync[fsspec]', "
        f"{', '.join(sorted((*_PACKAGES, *_ALSO_FSSPEC)))}"
    )


class Stores:
    """The stores that one syncer uses: each is opened once, shared, and closed with them all.

    Args:
        max_requests: to one store at once.
        rate: bytes per second, over all stores.
        observe: hears of what concerns a store as a whole, and of retried requests.
    """

    def __init__(
        self,
        *,
        threads: Threads,
        clock: Clock,
        max_requests: int = 32,
        rate: Rate | None = None,
        observe: Observer = ignore,
    ) -> None:
        self._threads, self._clock, self._max_requests = threads, clock, max_requests
        self._rate, self._observe = rate, observe
        self._open: dict[tuple[str, str, frozenset[tuple[str, str]]], TreeStore] = {}
        self._turn = anyio.Lock()
        self._budget = RetryBudget(clock)

    async def open(
        self, location: Location, observe: Observer, *, patient: bool = True
    ) -> tuple[TreeStore, str]:
        """The store that `location` is in, ready for use, and the name of its tree there.

        Connects to nothing. Closed by `aclose`, not by whoever uses it.

        Args:
            observe: hears of what is retried in this use.
            patient: whether a node that does not answer is waited for.

        Raises:
            ConfigError: the scheme is unknown, or its extra is not installed.
            RefusedError: a head has no trees of that name.
        """
        check_scheme(location.scheme)
        backoff = Backoff()
        if location.scheme in _PEERS:
            check_tree_name(location.path)
            backoff = _PATIENT if patient else _BRIEF
        equip = _Equip(self._clock, self._max_requests, observe, backoff)
        if location.scheme == "file":
            local = import_module(".local", __package__)
            trees = cast("TreeStore", local.LocalTrees("/", self._threads))
            return equip(trees, self._rate), location.path.lstrip("/")
        key = (location.scheme, location.authority, frozenset(location.options.items()))
        async with self._turn:
            if key not in self._open:
                self._open[key] = await self._connect(location)
        # Where trees are made of objects, it is those that are paid for.
        rate = self._rate if location.scheme in _PEERS else None
        return equip(self._open[key], rate), location.path

    async def turns(self, location: Location) -> Turns:
        """The head at `location`, as the one that says who reads a commit where.

        Raises:
            ConfigError: it is no location at a head.
        """
        if location.scheme not in _PEERS:
            raise ConfigError(
                f"{quote(str(location))} is not at a head: nobody there says whose turn it is"
            )
        await self.open(location, ignore)
        return cast("Turns", self._open[location.scheme, location.authority, frozenset()])

    @asynccontextmanager
    async def joined(self, line: Secret, observe: Observer) -> AsyncIterator[TreeStore]:
        """The store of another node, by its join string, for the length of the block.

        Raises:
            ConfigError: it is none.
        """
        make = await self._threads.run(_load, "peer", _JOINED)
        trees = make(
            line, threads=self._threads, max_requests=self._max_requests, clock=self._clock
        )
        try:
            yield _Equip(self._clock, self._max_requests, observe, _BRIEF)(trees, self._rate)
        finally:
            await trees.aclose()

    async def _connect(self, location: Location) -> TreeStore:
        if location.scheme in _PEERS:
            make = await self._threads.run(_load, location.scheme, _PEER)
            peers = make(
                location.authority,
                secure=location.scheme == "peers",
                threads=self._threads,
                max_requests=self._max_requests,
                clock=self._clock,
            )
            return cast("TreeStore", peers)
        kind = _OBJECTS.get(location.scheme, _FSSPEC)
        make = await self._threads.run(_load, location.scheme, kind)
        objects = equip_objects(
            self._objects(location, make),
            clock=self._clock,
            backoff=_PATIENT,
            budget=self._budget,
            max_requests=self._max_requests,
            rate=self._rate,
            observe=self._observe,
        )
        committed = import_module(".committed", __package__)
        trees = committed.CommittedTrees(
            objects,
            clock=self._clock,
            durability=kind.durability,
            where=f"{location.scheme}://{location.authority}",
            observe=self._observe,
        )
        return cast("TreeStore", trees)

    def _objects(self, location: Location, make: Callable[..., Any]) -> ObjectStore:
        scheme, authority = location.scheme, location.authority
        if scheme == "memory":
            return cast("ObjectStore", make(authority))
        if scheme in _OBJECTS:
            return cast(
                "ObjectStore",
                make(
                    authority,
                    location.options,
                    threads=self._threads,
                    clock=self._clock,
                    max_requests=self._max_requests,
                ),
            )
        return cast("ObjectStore", make(scheme, authority, threads=self._threads))

    @property
    def connected(self) -> bool:
        """Whether there may be connections, which belong to the loop they were made in."""
        return any(scheme != "memory" for scheme, _, _ in self._open)

    async def aclose(self) -> None:
        """Close every store. Again: no effect."""
        while self._open:
            await self._open.popitem()[1].aclose()


class _Equip(NamedTuple):
    """What is put around a store for one use of it."""

    clock: Clock
    max_requests: int
    observe: Observer
    backoff: Backoff

    def __call__(self, trees: TreeStore, rate: Rate | None) -> TreeStore:
        return equip_trees(
            trees,
            backoff=self.backoff,
            clock=self.clock,
            max_requests=self.max_requests,
            rate=rate,
            observe=self.observe,
        )


def _load(scheme: str, kind: _Kind) -> Callable[..., Any]:
    """Import what makes the store; an SDK takes a while, so this runs in a thread."""
    try:
        return cast(
            "Callable[..., Any]", getattr(import_module(f".{kind.module}", __package__), kind.name)
        )
    except ModuleNotFoundError as exc:
        package = f" {_PACKAGES[scheme]}" if scheme in _PACKAGES else ""
        raise ConfigError(
            f"{scheme}:// needs the package {exc.name}: "
            f"pip install 'asyncsync[{kind.extra}]'{package}"
        ) from exc
