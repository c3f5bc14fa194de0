"""SyncConfig: how the directories of an experiment are synced, checked where it is written down."""

from __future__ import annotations

from dataclasses import dataclass, fields
from html import escape
from pathlib import PurePath
from typing import Literal

from ..errors import ConfigError, quote
from ..location import Location
from ..storage import check_scheme
from .base import AsyncSyncer

__all__ = ["SyncConfig", "check_seconds"]

_METHODS = ("sync_up", "sync_down", "delete", "aclose")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    """When and how trial and experiment directories are synced. Pickles if its syncer does.

    Attributes:
        upload_dir: URL of the cloud storage or shared file system that collects everything; None:
            there is none, and the head collects what the workers have.
        syncer: `"auto"`, an `AsyncSyncer` (with an `upload_dir` only), or None: nothing is synced,
            because every node sees the same directory.
        sync_period: seconds that lie at least between two syncs of one directory.
        sync_timeout: seconds that one sync may take. A syncer may have a limit of its own, too.
        sync_artifacts: whether what a trial writes beside its checkpoints is synced too.
        sync_on_checkpoint: whether every checkpoint is synced at once to the head, however short
            ago the last sync was. Without effect with an `upload_dir`.

    Raises:
        ConfigError: a value is wrong, or two contradict each other. It is a ValueError too.
    """

    upload_dir: str | None = None
    syncer: AsyncSyncer | Literal["auto"] | None = "auto"
    sync_period: float = 300
    sync_timeout: float = 1800
    sync_artifacts: bool = True
    sync_on_checkpoint: bool = True

    def __post_init__(self) -> None:
        _check_syncer(self.syncer)
        check_seconds("sync_period", self.sync_period)
        check_seconds("sync_timeout", self.sync_timeout)
        _check_switch("sync_artifacts", self.sync_artifacts)
        _check_switch("sync_on_checkpoint", self.sync_on_checkpoint)
        self._check_pair()
        self.validate_upload_dir()

    def _check_pair(self) -> None:
        if self.upload_dir is not None and self.syncer is None:
            raise ConfigError(
                "upload_dir is set and syncer is None, so nothing would be uploaded; leave one out"
            )
        if self.upload_dir is None and self.syncer not in (None, "auto"):
            raise ConfigError("a syncer needs a place to sync to; set upload_dir")

    def validate_upload_dir(self) -> bool:
        """Check the upload directory without touching it: True, or an error.

        A syncer that has a method `validate_upload_dir(upload_dir)` decides itself.

        Raises:
            ConfigError: not a URL, or of a scheme that nothing here can reach. A syncer may raise
                what it likes.
        """
        if self.upload_dir is None:
            return True
        own = getattr(self.syncer, "validate_upload_dir", None)
        if own is None:
            _check_url(self.upload_dir)
        elif own(self.upload_dir) is False:
            raise ConfigError(f"upload_dir {quote(str(self.upload_dir))} is refused by the syncer")
        return True

    @property
    def mode(self) -> Literal["cloud", "head", "shared"]:
        """Who collects: `upload_dir`, the head node, or nobody since all see one directory."""
        if self.upload_dir is not None:
            return "cloud"
        return "shared" if self.syncer is None else "head"

    def choose_syncer(self) -> AsyncSyncer | None:
        """What syncs to `upload_dir`; None when there is none. `"auto"` makes one per call."""
        if self.upload_dir is None or self.syncer is None:
            return None
        if self.syncer != "auto":
            return self.syncer
        from .storage_syncer import StorageSyncer  # noqa: PLC0415 - settings load no engine

        return StorageSyncer(sync_timeout=self.sync_timeout)

    def _repr_html_(self) -> str:
        """The table that a notebook shows: the mode and every field."""
        settings = [(field.name, getattr(self, field.name)) for field in fields(self)]
        rows = "".join(
            f"<tr><td>{name}</td><td>{escape(value if isinstance(value, str) else repr(value))}"
            "</td></tr>"
            for name, value in [("mode", self.mode), *settings]
        )
        return f"<table><thead><tr><th>Setting</th><th>Value</th></tr></thead>{rows}</table>"


def check_seconds(name: str, value: object) -> None:
    """Refuse anything but a number of seconds above zero; infinity is one.

    Raises:
        ConfigError: and says which setting it is.
    """
    # bool is an int, and NaN is above nothing
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(f"{name} takes a number of seconds above 0, not {value!r}")


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is True or False, not {value!r}")


def _check_syncer(syncer: object) -> None:
    if syncer is None or syncer == "auto":
        return
    if isinstance(syncer, type):
        raise ConfigError(f"syncer is the class {syncer.__name__}; call it to make an instance")
    if isinstance(syncer, str):
        raise ConfigError(
            f"syncer {syncer!r} is not known; write 'auto', and a command as CommandSyncer(...)"
        )
    if missing := [name for name in _METHODS if not callable(getattr(syncer, name, None))]:
        raise ConfigError(
            f"syncer is a {type(syncer).__name__} without {', '.join(missing)}; pass 'auto', None "
            "or an AsyncSyncer"
        )


def _check_url(upload_dir: object) -> None:
    if not isinstance(upload_dir, str) or "://" not in upload_dir:
        raise _plain_path(upload_dir)
    location = Location.parse(upload_dir)
    if location.scheme == "file" and not upload_dir.lower().startswith("file://"):
        raise _plain_path(upload_dir)
    check_scheme(location.scheme)


def _plain_path(upload_dir: object) -> ConfigError:
    try:
        hint = PurePath(Location.parse(str(upload_dir)).path).as_uri()
    except ConfigError:
        hint = "file:///path"
    return ConfigError(
        f"upload_dir {quote(str(upload_dir))} is not a URL; for a directory that every node has "
        f"mounted write {hint}"
    )
