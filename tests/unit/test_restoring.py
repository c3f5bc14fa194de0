"""From which place a commit is restored when the nearest one does not give it."""

from __future__ import annotations

import anyio
import pytest

from asyncsync.errors import (
    AsyncSyncError,
    IntegrityError,
    NoSpaceError,
    TransferError,
    TransientError,
)
from asyncsync.events import Event, FellBack, Skipped
from asyncsync.location import Location
from asyncsync.syncing import Commit, Receipt, restoring
from asyncsync.syncing.restoring import Restore


async def test_only_the_last_place_is_waited_for() -> None:
    tried = list[tuple[str, bool]]()
    places = [Location.parse(f"peer://127.0.0.1:{port}/t") for port in (1, 2, 3)]
    heard: list[Event] = []

    async def find(place: Location, patient: bool) -> list[Commit]:
        assert patient == (place == places[2])
        return [Commit(location=f"{place}/c", name="c", step=1, identity="x")]

    async def fetch(commit: Commit, patient: bool) -> Receipt:
        tried.append((commit.location, patient))
        if not patient:
            raise TransientError("it does not answer")
        return Receipt(location="", identity="x", kind="sealed", files=1, size_bytes=1)

    await Restore(places[2], places[:2], find, fetch, heard.append).run(None, fallback=False)

    assert tried == [(f"{place}/c", place == places[2]) for place in places]
    assert [type(event) for event in heard] == [FellBack, FellBack]


async def test_a_place_that_does_not_answer_is_left_out_and_the_reason_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restoring, "_LOOK_S", 0.01)
    heard: list[Event] = []

    async def find(place: Location, patient: bool) -> list[Commit]:
        if not patient:
            await anyio.sleep_forever()
        return [Commit(location=f"{place}/c", name="c", step=1, identity="x")]

    async def fetch(commit: Commit, patient: bool) -> Receipt:
        return Receipt(location="", identity="x", kind="sealed", files=1, size_bytes=1)

    remote, copy = Location.parse("/t"), Location.parse("peer://10.0.0.9:7420/t")
    await Restore(remote, [copy], find, fetch, heard.append).run(None, fallback=False)

    why = "no copy is read there: it has not answered within 0.01 s"
    assert heard == [Skipped(path=str(copy), reason=why)]


BOTH = [IntegrityError("f1 is damaged"), IntegrityError("f2 is damaged")]


async def test_a_commit_of_which_several_files_are_damaged_falls_back_as_well() -> None:
    heard: list[Event] = []

    used = await _restored(TransferError("2 files failed", failures=BOTH), heard)

    assert used == ["/t/c2", "/t/c1"]
    assert [type(event) for event in heard] == [FellBack]


async def test_where_not_only_files_are_damaged_nothing_older_is_used() -> None:
    failed = TransferError("3 files failed", failures=[*BOTH, NoSpaceError("full")])
    with pytest.raises(TransferError) as caught:
        await _restored(failed, [])

    assert caught.value is failed


async def _restored(failed: AsyncSyncError, heard: list[Event]) -> list[str]:
    """What is tried, where the newest of two commits fails so."""
    tried = list[str]()

    async def find(place: Location, patient: bool) -> list[Commit]:
        return [
            Commit(location=f"{place}/c{step}", name=f"c{step}", step=step, identity=f"{step}")
            for step in (2, 1)
        ]

    async def fetch(commit: Commit, patient: bool) -> Receipt:
        tried.append(commit.location)
        if commit.step == 2:
            raise failed
        return Receipt(location="", identity="1", kind="sealed", files=1, size_bytes=1)

    await Restore(Location.parse("/t"), (), find, fetch, heard.append).run(None, fallback=True)
    return tried
