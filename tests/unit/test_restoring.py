"""From which place a commit is restored when the nearest one does not give it."""

from __future__ import annotations

from asyncsync.errors import TransientError
from asyncsync.events import Event, FellBack
from asyncsync.location import Location
from asyncsync.syncing import Commit, Receipt
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
