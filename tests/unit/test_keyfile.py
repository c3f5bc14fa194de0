"""The keys of a head on its disk: for its owner alone, whole or not there, never made up for."""

from __future__ import annotations

import json
import os
import stat
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from asyncsync.errors import ConfigError
from asyncsync.peer.keyfile import create_keys, load_keys, revoke, rotate_keys
from asyncsync.peer.private_files import read_private, write_private
from asyncsync.secrets import Secret
from asyncsync.wire.claims import DEFAULT_LIFE_S, Claims
from asyncsync.wire.tokens import TokenError, narrow

NOW = 1_795_219_200
CLAIMS = Claims.new("exp/trial_1", now=NOW)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)


def test_keys_are_read_as_they_were_made(path: Path) -> None:
    made = create_keys(path)

    assert load_keys(path) == made
    assert load_keys(path).verify(made.mint(CLAIMS), NOW) == CLAIMS


def test_the_file_is_for_its_owner_alone_and_nothing_else_is_left(path: Path) -> None:
    mask = os.umask(0)
    try:
        create_keys(path)
        rotate_keys(path, now=NOW)
    finally:
        os.umask(mask)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_is_there_is_not_made_again(path: Path) -> None:
    made = create_keys(path)

    with pytest.raises(ConfigError, match="is there already; remove it"):
        create_keys(path)

    assert load_keys(path) == made
    assert os.listdir(path.parent) == [path.name]


def test_a_link_is_not_replaced_and_not_followed_when_keys_are_made(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")

    with pytest.raises(ConfigError, match="is there already"):
        create_keys(path)

    assert not (path.parent / "elsewhere").exists()


def test_a_missing_file_is_an_error_that_says_how_to_make_it(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no key file .* asyncsync head --init"):
        load_keys(path)


def test_a_missing_directory_is_an_error(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*: No such file"):
        create_keys(path.parent / "missing" / "keys.json")


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o601, 0o777])
def test_a_file_that_others_can_use_is_refused(path: Path, mode: int) -> None:
    create_keys(path)
    path.chmod(mode)

    for use in (load_keys, lambda path: rotate_keys(path, now=NOW)):
        with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
            use(path)


def test_a_link_to_a_good_file_is_refused(path: Path) -> None:
    create_keys(path)
    link = path.parent / "link.json"
    link.symlink_to(path)

    with pytest.raises(ConfigError, match="is a link; name the file itself"):
        load_keys(link)


def test_a_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_keys(path)
    owner = path.stat().st_uid
    if owner == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)

    with pytest.raises(ConfigError, match="belongs to another user"):
        load_keys(path)


def test_what_is_no_file_is_refused_and_does_not_hang(path: Path) -> None:
    os.mkfifo(path, 0o600)
    (path.parent / "directory").mkdir(mode=0o700)

    for there in (path, path.parent / "directory", Path("/dev/null")):
        with pytest.raises(ConfigError):
            load_keys(there)


def test_a_file_that_cannot_be_read_is_an_error_that_says_why(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: File name too long"):
        load_keys(path.parent / ("x" * 256))


def fields(**other: Any) -> dict[str, Any]:
    key = {"id": "5eed0001", "secret": "0" * 64, "retires_at": None}
    return {"asyncsync_keys": 1, "keys": [key | other]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\0" * 200,
        b"\xff",
        json.dumps(fields()).encode()[:-1],
        json.dumps({"asyncsync_keys": 1, "keys": []}).encode(),
        json.dumps({**fields(), "asyncsync_keys": 2}).encode(),
        json.dumps({**fields(), "open": True}).encode(),
        json.dumps(fields(secret="canary")).encode(),
        json.dumps(fields(secret="")).encode(),
        json.dumps(fields(secret="0" * 63)).encode(),
        json.dumps(fields(id="")).encode(),
        json.dumps(fields(retires_at=1)).encode(),
        json.dumps(fields(retires_at="canary")).encode(),
        json.dumps({"asyncsync_keys": 1, "keys": fields()["keys"] * 2}).encode(),
        b"[" * 60_000,
        b" " * 70_000,
    ],
    ids=range(19),
)
def test_a_damaged_file_is_an_error_that_does_not_repeat_it(path: Path, content: bytes) -> None:
    write(path, content)

    with pytest.raises(ConfigError) as caught:
        load_keys(path)

    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


@given(st.binary())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_garbage_opens_a_head(path: Path, content: bytes) -> None:
    write(path, content)

    with pytest.raises(ConfigError):
        load_keys(path)


def test_a_rotation_keeps_the_key_before_it_for_an_overlap(path: Path) -> None:
    token = create_keys(path).mint(CLAIMS)

    ring = rotate_keys(path, now=NOW)

    assert load_keys(path) == ring
    assert [key.retires_at for key in ring.keys] == [None, NOW + DEFAULT_LIFE_S]
    assert ring.verify(token, NOW + 1) == ring.verify(ring.mint(CLAIMS), NOW + 1) == CLAIMS
    later = rotate_keys(path, now=NOW + DEFAULT_LIFE_S, overlap_s=60)
    assert [key.id for key in later.keys][1:] == [ring.keys[0].id]


def test_a_rotation_of_a_damaged_file_leaves_it(path: Path) -> None:
    write(path, b"damaged")

    with pytest.raises(ConfigError):
        rotate_keys(path, now=NOW)

    assert path.read_bytes() == b"damaged"


@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
def test_a_write_that_fails_leaves_the_keys_as_they_were(
    path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every call of that name that a rotation makes."""
    ring = create_keys(path)
    real, step, failing = getattr(os, call), 0, 0

    def fail_once(*args: Any, **named: Any) -> Any:
        nonlocal step
        step += 1
        if step == failing:
            raise OSError(28, "No space left on device")
        return real(*args, **named)

    monkeypatch.setattr(os, call, fail_once)
    errors: list[str] = []
    while True:
        step, failing = 0, len(errors) + 1
        try:
            rotated = rotate_keys(path, now=NOW)
        except ConfigError as exc:
            errors.append(str(exc))
            step, failing = 0, 0
            # The last flush comes after the rename: the new keys are there, but unacknowledged.
            assert load_keys(path) == ring or (call, len(errors)) == ("fsync", 2)
            assert os.listdir(path.parent) == [path.name]
        else:
            break

    failing = 0
    assert load_keys(path) == rotated
    assert errors
    assert all("No space left" in error for error in errors)


def test_what_is_flushed_is_the_file_before_its_name_and_then_the_directory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def noted(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **named: Any) -> Any:
            kind = ""
            if name == "fsync":
                kind = " directory" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else " file"
            seen.append(name + kind)
            return real(*args, **named)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "link"):
        noted(name)
    create_keys(path)
    rotate_keys(path, now=NOW)

    made, rotated = seen[:3], seen[3:]
    assert made == ["fsync file", "link", "fsync directory"]
    assert rotated == ["fsync file", "rename", "fsync directory"]


def test_a_file_that_is_not_there_is_nothing(path: Path) -> None:
    assert read_private(path) is None


# -- what is refused although a key made it


def _is_good(path: Path, token: Secret) -> bool:
    try:
        load_keys(path).verify(token, NOW)
    except TokenError:
        return False
    return True


def test_a_token_is_revoked_by_its_id_with_all_that_is_derived_from_it(path: Path) -> None:
    token = create_keys(path).mint(CLAIMS)
    derived = narrow(token, replace(CLAIMS, scope="exp/trial_1/x"))
    other = load_keys(path).mint(Claims.new("exp/trial_1", now=NOW))
    assert _is_good(path, derived)

    revoke(path, tokens=[CLAIMS.id])

    assert not _is_good(path, token)
    assert not _is_good(path, derived)
    assert _is_good(path, other)


def test_an_experiment_is_revoked_with_all_its_tokens(path: Path) -> None:
    ring = create_keys(path)
    mine = [ring.mint(Claims.new(scope, now=NOW)) for scope in ("exp", "exp/trial_1", "exp/x/y")]
    everything = Claims.new("", now=NOW)
    mine.append(narrow(ring.mint(everything), replace(everything, scope="exp/trial_2")))
    others = [ring.mint(Claims.new(scope, now=NOW)) for scope in ("", "exp2", "ex/exp")]

    revoke(path, experiments=["exp"])

    assert not any(_is_good(path, token) for token in mine)
    assert all(_is_good(path, token) for token in others)


def test_what_is_revoked_at_the_same_time_is_revoked(path: Path) -> None:
    create_keys(path)
    ids = [f"{number:032x}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(revoke, path, tokens=[one]) for one in ids]:
            done.result()
        pool.submit(rotate_keys, path, now=NOW).result()

    assert load_keys(path).revoked.tokens == set(ids)


def test_what_is_revoked_stays_so_with_another_key_and_with_more_of_it(path: Path) -> None:
    token = create_keys(path).mint(CLAIMS)
    revoke(path, tokens=[CLAIMS.id])
    rotate_keys(path, now=NOW)
    revoke(path, experiments=["other"])
    revoke(path)

    assert not _is_good(path, token)
    assert load_keys(path).revoked.experiments == {"other"}


@pytest.mark.parametrize("wrong", ["", "a", "A" * 32, "0" * 31, "as1.token", "0" * 32 + "\n"])
def test_what_would_revoke_nothing_is_an_error(path: Path, wrong: str) -> None:
    create_keys(path)
    before = path.read_bytes()

    with pytest.raises(ConfigError, match="32 hexadecimal digits"):
        revoke(path, tokens=[wrong])
    with pytest.raises(ConfigError, match="the first part of a scope"):
        revoke(path, experiments=["exp/trial_1"])

    assert path.read_bytes() == before


def test_a_file_that_would_be_too_long_to_be_read_is_not_written(path: Path) -> None:
    create_keys(path)
    before = path.read_bytes()

    with pytest.raises(ConfigError, match="time to begin anew"):
        revoke(path, tokens=[f"{number:032x}" for number in range(2000)])
    assert path.read_bytes() == before

    revoke(path, tokens=[f"{number:032x}" for number in range(1600)])
    with suppress(ConfigError):
        for _ in range(500):
            rotate_keys(path, now=NOW)
    with pytest.raises(ConfigError, match="time to begin anew"):
        rotate_keys(path, now=NOW)
    assert 10 < len(load_keys(path).keys) < 500
    with pytest.raises(ConfigError, match="longer than 3 bytes"):
        write_private(path, b"four", replace=True, most_bytes=3)
    assert load_keys(path)


@pytest.mark.parametrize(
    "damage", [b'"x"', b"[]", b'{"tokens":["a"]}', b'{"tokens":[1]}', b"{", b'{"x":[]}']
)
def test_a_damaged_list_is_not_taken_for_an_empty_one(path: Path, damage: bytes) -> None:
    create_keys(path)
    revoke(path, tokens=[CLAIMS.id])
    text = path.read_bytes()
    at = text.index(b'"revoked":') + len(b'"revoked":')
    write(path, text[:at] + damage + b"}")

    with pytest.raises(ConfigError, match="damaged"):
        load_keys(path)
