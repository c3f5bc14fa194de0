"""SyncConfig: every field, its default, its errors, and what it implies."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from asyncsync.errors import ConfigError
from asyncsync.syncing import AsyncSyncer, CommandSyncer, SyncConfig


class Idle:
    """A syncer that does nothing."""

    async def sync_up(
        self, local_dir: object, remote_dir: object, *, exclude: Sequence[str] = ()
    ) -> None: ...
    async def sync_down(
        self, remote_dir: object, local_dir: object, *, exclude: Sequence[str] = ()
    ) -> None: ...
    async def delete(self, remote_dir: object) -> None: ...
    async def aclose(self) -> None: ...
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Idle)

    def __hash__(self) -> int:
        return 0


class Judge(Idle):
    """One that has its own opinion of upload directories."""

    def validate_upload_dir(self, upload_dir: str) -> bool:
        return upload_dir != "bad"


class Half:
    """Not a syncer: it can neither delete nor close."""

    async def sync_up(self) -> None: ...
    async def sync_down(self) -> None: ...


COMMANDS = CommandSyncer(
    sync_up="cp -R {source} {target}", sync_down="cp -R {source} {target}", delete="rm -r {target}"
)


def test_the_defaults_are_those_of_the_head_node_mode() -> None:
    config = SyncConfig()

    assert dataclasses.asdict(config) == {
        "upload_dir": None,
        "syncer": "auto",
        "sync_period": 300,
        "sync_timeout": 1800,
        "sync_artifacts": True,
        "sync_on_checkpoint": True,
    }
    assert config.validate_upload_dir() is True


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({}, "head"),
        ({"syncer": None}, "shared"),
        ({"upload_dir": "s3://bucket/exp"}, "cloud"),
        ({"upload_dir": "s3://bucket/exp", "syncer": Idle()}, "cloud"),
    ],
)
def test_upload_dir_and_syncer_choose_the_mode(settings: dict[str, Any], mode: str) -> None:
    assert SyncConfig(**settings).mode == mode


@pytest.mark.parametrize(
    "upload_dir",
    [
        "file:///valid/dir",
        "FILE:///valid/dir",
        "s3://valid/bucket",
        "s3://valid",
        "gs://valid/bucket/",
        "memory://valid",
    ],
)
def test_a_url_of_a_known_scheme_is_accepted_unseen(upload_dir: str) -> None:
    config = SyncConfig(upload_dir=upload_dir)

    assert config.validate_upload_dir() is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upload_dir": "invalid://some/url"}, "invalid://.*s3://"),
        ({"upload_dir": "/plain/a b"}, r"/plain/a b is not a URL.* write file:///plain/a%20b$"),
        ({"upload_dir": "/plain/x://y"}, "is not a URL"),
        ({"upload_dir": "my_bucket://x"}, "is not a URL"),
        ({"upload_dir": "relative"}, "is not a URL.* write file:///.*/relative$"),
        ({"upload_dir": Path("/plain")}, "is not a URL.* write file:///plain$"),
        ({"upload_dir": ""}, "is not a URL"),
        ({"upload_dir": 5}, "is not a URL"),
        ({"upload_dir": "s3://"}, "needs a name"),
        ({"upload_dir": "s3://bucket/x", "syncer": None}, "syncer is None"),
        ({"syncer": Idle()}, "set upload_dir"),
        ({"syncer": "rsync {source} {target}"}, r"CommandSyncer\(\.\.\.\)"),
        ({"syncer": ""}, "not known"),
        ({"syncer": Idle}, "call it to make an instance"),
        ({"upload_dir": "s3://bucket/x", "syncer": Half()}, "a Half without delete, aclose"),
        ({"syncer": lambda source, target: None}, "a function without sync_up"),
        ({"syncer": False}, "a bool without"),
        ({"sync_period": 0}, "sync_period"),
        ({"sync_period": -1}, "sync_period"),
        ({"sync_timeout": 0}, "sync_timeout"),
        ({"sync_timeout": -0.5}, "sync_timeout"),
        ({"sync_timeout": math.nan}, "sync_timeout"),
        ({"sync_period": math.nan}, "sync_period"),
        ({"sync_period": True}, "sync_period"),
        ({"sync_timeout": "300"}, "sync_timeout"),
        ({"sync_timeout": None}, "sync_timeout"),
        ({"sync_artifacts": "no"}, "sync_artifacts"),
        ({"sync_on_checkpoint": 0}, "sync_on_checkpoint"),
    ],
)
def test_a_wrong_setting_is_refused_when_it_is_written_down(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        SyncConfig(**settings)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_a_key_in_an_upload_dir_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        SyncConfig(upload_dir="s3://AKIA:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


def test_infinity_and_fractions_are_seconds_too() -> None:
    config = SyncConfig(sync_period=0.5, sync_timeout=math.inf)

    assert (config.sync_period, config.sync_timeout) == (0.5, math.inf)


def test_settings_have_names_only_and_do_not_change() -> None:
    with pytest.raises(TypeError):
        SyncConfig("s3://bucket/x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="node_sync_period"):
        SyncConfig(node_sync_period=3)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        SyncConfig().sync_period = 3  # type: ignore[misc]


def test_a_syncer_may_judge_upload_dirs_itself() -> None:
    assert SyncConfig(upload_dir="/plain", syncer=Judge()).validate_upload_dir() is True
    assert SyncConfig(upload_dir="hdfs://h:8020/x", syncer=COMMANDS).mode == "cloud"
    with pytest.raises(ConfigError, match="bad is refused by the syncer"):
        SyncConfig(upload_dir="bad", syncer=Judge())
    with pytest.raises(ConfigError, match="needs a name"):
        SyncConfig(upload_dir="hdfs://", syncer=COMMANDS)


def test_a_syncer_without_a_judgment_gets_the_usual_one() -> None:
    with pytest.raises(ConfigError, match="not a URL"):
        SyncConfig(upload_dir="/plain", syncer=Idle())


@pytest.mark.parametrize("settings", [{}, {"syncer": None}])
def test_without_an_upload_dir_nothing_syncs_to_it(settings: dict[str, Any]) -> None:
    assert SyncConfig(**settings).choose_syncer() is None


def test_a_syncer_of_the_users_own_is_chosen_as_it_is() -> None:
    assert SyncConfig(upload_dir="s3://bucket/x", syncer=COMMANDS).choose_syncer() is COMMANDS


async def test_auto_makes_a_storage_syncer_with_the_timeout_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from asyncsync.syncing import storage_syncer

    made: list[dict[str, object]] = []

    class Spy(storage_syncer.StorageSyncer):
        def __init__(self, **settings: Any) -> None:
            made.append(settings)
            super().__init__(**settings)

    monkeypatch.setattr(storage_syncer, "StorageSyncer", Spy)
    syncer = SyncConfig(upload_dir="memory://x", sync_timeout=7).choose_syncer()

    assert isinstance(syncer, Spy)
    assert isinstance(syncer, AsyncSyncer)
    assert made == [{"sync_timeout": 7}]
    await syncer.aclose()


@pytest.mark.parametrize(
    "config",
    [
        SyncConfig(),
        SyncConfig(upload_dir="s3://bucket/x", sync_period=60, sync_artifacts=False),
        SyncConfig(upload_dir="s3://bucket/x", syncer=Idle(), sync_on_checkpoint=False),
    ],
)
def test_settings_pickle(config: SyncConfig) -> None:
    assert pickle.loads(pickle.dumps(config)) == config


def test_settings_with_commands_pickle() -> None:
    config = SyncConfig(upload_dir="s3://bucket/x", syncer=COMMANDS)

    assert repr(pickle.loads(pickle.dumps(config))) == repr(config)


class Cells(HTMLParser):
    """The texts of a table's cells, row by row; also every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data


def cells_of(config: SyncConfig) -> tuple[dict[str, str], set[str]]:
    parser = Cells()
    parser.feed(config._repr_html_())
    return dict(zip(parser.cells[::2], parser.cells[1::2], strict=True)), parser.tags


def test_a_notebook_shows_the_mode_and_every_field() -> None:
    table, _ = cells_of(SyncConfig(sync_timeout=42.5, sync_artifacts=False))

    assert table == {
        "Setting": "Value",
        "mode": "head",
        "upload_dir": "None",
        "syncer": "auto",
        "sync_period": "300",
        "sync_timeout": "42.5",
        "sync_artifacts": "False",
        "sync_on_checkpoint": "True",
    }


def test_a_notebook_shows_values_as_text_whatever_they_hold() -> None:
    class Nasty(Judge):
        def __repr__(self) -> str:
            return "<img src=x onerror='alert(1)'>"

    upload_dir = 's3://bucket/<script>alert("&")</script>'
    table, tags = cells_of(SyncConfig(upload_dir=upload_dir, syncer=Nasty()))

    assert tags == {"table", "thead", "tr", "th", "td"}
    assert table["upload_dir"] == upload_dir
    assert table["syncer"] == "<img src=x onerror='alert(1)'>"


def test_the_plain_form_is_that_of_a_dataclass() -> None:
    assert repr(SyncConfig(upload_dir="s3://b/x")).startswith("SyncConfig(upload_dir='s3://b/x', ")
