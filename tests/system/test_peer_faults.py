"""What networks do to a push and to a pull: the tree is whole or not there, and the retry ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Literal, NamedTuple

import pytest
from anyio import to_thread

from asyncsync.errors import TransientError
from asyncsync.events import Event, Moved, Retrying
from asyncsync.storage.peer.link import Link
from asyncsync.syncing import Receipt
from asyncsync.testing import Drop, Finish, Flip, HangUp, Latency, Pace, Repeat, Reset, Stall
from asyncsync.testing.network import Direction, LineFault, NetworkFault
from asyncsync.units import KIB
from asyncsync.wire.limits import Limits

from .peer_place import CHUNK, PeerPlace, peer_place, use_short_stalls, use_small_chunks
from .trees import Events

pytestmark = pytest.mark.one_loop

Way = Literal["up", "down"]
WAYS: list[Way] = ["up", "down"]
STALL_S = 0.25
_TRIES = 4
# What may move in vain: a request with its body, and what belongs to beginning again.
_IN_VAIN = CHUNK + 8 * KIB


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PeerPlace]:
    use_small_chunks(monkeypatch)
    limits = Limits(body_idle_s=STALL_S)
    async with peer_place(tmp_path, monkeypatch, limits=limits) as place:
        yield place


class Seen(NamedTuple):
    """A request of a run over one connection: where it and its answer are in the stream."""

    name: str
    request: range
    response: range


class Recorder:
    """Notes where every request begins and ends, for runs in which one follows the other."""

    def __init__(self, place: PeerPlace, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Seen] = []
        once = Link._once

        async def noted(link: Link, opened: object, name: str, *rest: object) -> object:
            await self.before(name)
            before = dict(place.proxy.passed_bytes)
            try:
                return await once(link, opened, name, *rest)  # type: ignore[arg-type]
            finally:
                after = place.proxy.passed_bytes
                spans = [range(before[way], after[way]) for way in ("request", "response")]
                self.seen.append(Seen(name, *spans))

        monkeypatch.setattr(Link, "_once", noted)

    async def before(self, name: str) -> None:
        """A request is about to be made."""


async def _run(place: PeerPlace, way: Way, tree: str) -> Receipt:
    if way == "up":
        return await place.up(tree)
    return await place.down("there", to=tree)


async def _check(place: PeerPlace, way: Way, tree: str) -> None:
    found = await (place.held(tree) if way == "up" else place.restored(tree))
    assert found == place.files
    assert await place.left() == []


async def _clean_run(
    place: PeerPlace, way: Way, monkeypatch: pytest.MonkeyPatch
) -> tuple[Receipt, list[Seen], dict[Direction, int]]:
    """A run without faults: its receipt, its requests, and how many bytes it takes."""
    if way == "down":
        await place.up("there")
    with monkeypatch.context() as patch:
        start = len(place.proxy.connections)
        before = place.proxy.passed_bytes
        recorder = Recorder(place, patch)
        receipt = await _run(place, way, "clean")
        assert len(place.proxy.connections) == start + 1, "all on one connection"
        after = place.proxy.passed_bytes
    shift = {way: before[way] for way in before}
    seen = [
        Seen(
            one.name,
            range(one.request.start - shift["request"], one.request.stop - shift["request"]),
            range(one.response.start - shift["response"], one.response.stop - shift["response"]),
        )
        for one in recorder.seen
    ]
    return receipt, seen, {way: after[way] - shift[way] for way in after}


def _stages(seen: list[Seen]) -> list[tuple[str, Direction, int]]:
    """Before a request, in its head, in its body, at its end; before its answer, in it, at its end.

    Some bytes before the end: how long manifests and answers are depends on the time they name.
    """
    found: list[tuple[str, Direction, int]] = []
    for one in seen:
        sent, answered = one.request, one.response
        begun = (sent.start, sent.start + 20, (sent.start + sent.stop) // 2, sent.stop - 16)
        heard = (answered.start, answered.start + 20, answered.stop - 16)
        found += [(one.name, "request", at) for at in begun]
        found += [(one.name, "response", at) for at in heard]
    return found


async def _each(
    place: PeerPlace,
    way: Way,
    faults: Sequence[NetworkFault],
    monkeypatch: pytest.MonkeyPatch,
    *,
    moved: int = 0,
) -> int:
    """Run once with every fault, each alone and once; how many acted.

    Args:
        moved: bytes that may move twice beyond those of one request.
    """
    receipt, _, bytes_ = await _clean_run(place, way, monkeypatch)
    acted, trees = 0, count()

    async def once(fault: NetworkFault) -> int:
        tree = f"x{next(trees):04}"  # as long as that of the clean run
        place.proxy.faults = [_at_connection(fault, len(place.proxy.connections) + 1)]
        place.proxy.acted.clear()
        before = place.proxy.passed_bytes
        found = await _run(place, way, tree)

        assert found.identity == receipt.identity, f"{fault}"
        await _check(place, way, tree)
        again = {way: n - before[way] - bytes_[way] for way, n in place.proxy.passed_bytes.items()}
        assert again["request" if way == "up" else "response"] <= _IN_VAIN + moved, f"{fault}"
        # Of an `open` whose answer was lost nobody knows the number; it ends when it is idle.
        assert place.open <= (0 if way == "up" else 1), f"{fault}"
        for those in place.sessions:
            await those.close()
        return len(place.proxy.acted)

    for fault in faults:
        # On a busy machine the first connection may be given up before the fault is reached.
        for _ in range(_TRIES):
            if found := await once(fault):
                acted += found
                break
    return acted


def _at_connection(fault: NetworkFault, number: int) -> NetworkFault:
    kind = type(fault)
    names = [name for name in kind.__dataclass_fields__ if name not in ("connection", "sticky")]
    return kind(connection=number, **{name: getattr(fault, name) for name in names})


async def _forget(place: PeerPlace) -> None:
    """As before the clean run."""
    for name in ("clean", "there"):
        await to_thread.run_sync(partial(rmtree, place.root / "exp" / name, ignore_errors=True))
        await to_thread.run_sync(partial(rmtree, place.tmp_path / name, ignore_errors=True))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", WAYS)
async def test_a_connection_reset_at_any_stage_of_any_request_costs_that_request(
    place: PeerPlace, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, seen, _ = await _clean_run(place, way, monkeypatch)
    faults = [Reset(on=on, at=at) for _, on, at in _stages(seen)]
    await _forget(place)

    acted = await _each(place, way, faults, monkeypatch)

    needed = {"begin", "write", "write_many", "commit"}
    assert {one.name for one in seen} >= (needed if way == "up" else {"open", "read", "close"})
    assert acted == len(faults)


# -- bytes that are not what was sent


def _bodies(seen: list[Seen], way: Way) -> list[tuple[Direction, int]]:
    """Somewhere in the bytes of files, of every request that carries any."""
    found: list[tuple[Direction, int]] = []
    for one in seen:
        span = one.request if way == "up" else one.response
        if one.name in ("write", "read") and len(span) > CHUNK // 4:
            found += [("request" if way == "up" else "response", span.stop - len(span) // 3)]
        if one.name in ("write_many", "read_many"):
            found += [("request" if way == "up" else "response", span.stop - 2)]
    return found


@pytest.mark.parametrize("kind", [Flip, Repeat, Drop])
@pytest.mark.parametrize("way", WAYS)
async def test_bytes_that_change_on_the_way_are_found_and_moved_again(
    place: PeerPlace, way: Way, kind: type[LineFault], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_short_stalls(monkeypatch, STALL_S)
    _, seen, _ = await _clean_run(place, way, monkeypatch)
    faults = [kind(on=on, at=at) for on, at in _bodies(seen, way)]
    await _forget(place)

    acted = await _each(place, way, faults, monkeypatch, moved=len(place.files["big"]))

    assert acted == len(faults) > 2


@pytest.mark.parametrize("way", WAYS)
async def test_a_body_that_ends_early_is_not_taken_for_whole(
    place: PeerPlace, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_short_stalls(monkeypatch, STALL_S)
    _, seen, _ = await _clean_run(place, way, monkeypatch)
    faults = [Finish(on=on, at=at) for on, at in _bodies(seen, way)]
    await _forget(place)

    assert await _each(place, way, faults, monkeypatch) == len(faults)


# -- nothing moves, or hardly anything


@pytest.mark.timeout(120)
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
async def test_a_stall_at_any_stage_of_any_request_ends_at_the_deadline(
    place: PeerPlace, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_short_stalls(monkeypatch, STALL_S)
    _, seen, _ = await _clean_run(place, way, monkeypatch)
    faults = [Stall(on=on, at=at) for _, on, at in _stages(seen)]
    await _forget(place)

    # On a busy machine more than one request may be too late.
    assert await _each(place, way, faults, monkeypatch, moved=3 * CHUNK) == len(faults)


@pytest.mark.parametrize("way", WAYS)
async def test_a_body_that_stands_still_or_trickles_ends_at_the_deadline(
    place: PeerPlace, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_short_stalls(monkeypatch, STALL_S)
    _, seen, _ = await _clean_run(place, way, monkeypatch)
    bodies = _bodies(seen, way)
    faults: list[LineFault] = [Stall(on=on, at=at) for on, at in bodies]
    faults += [Pace(on=on, at=at, size_bytes=1, every_s=0.01) for on, at in bodies[1:2]]
    await _forget(place)

    assert await _each(place, way, faults, monkeypatch, moved=3 * CHUNK) == len(faults)


@pytest.mark.parametrize("way", WAYS)
async def test_a_link_that_is_slow_and_far_away_is_enough(
    place: PeerPlace, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _clean_run(place, way, monkeypatch)
    place.proxy.faults = [
        Latency(on="request", delay_s=0.01),
        Latency(on="response", delay_s=0.01),
        Pace(on="request", size_bytes=32 * KIB, every_s=0.002),
        Pace(on="response", size_bytes=32 * KIB, every_s=0.002),
    ]
    await _run(place, way, "far")

    await _check(place, way, "far")


# -- heads that are not there, for a while or for good


class Before(Recorder):
    """Does something before the n-th request, once."""

    def __init__(
        self,
        place: PeerPlace,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        act: Callable[[], Awaitable[object]],
    ) -> None:
        super().__init__(place, monkeypatch)
        self._number, self._act = number, act
        self.acted = ""

    async def before(self, name: str) -> None:
        self._number -= 1
        if self._number == 0:
            self.acted = name
            await self._act()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", WAYS)
async def test_a_head_that_is_started_anew_before_any_request_goes_on_where_it_was(
    place: PeerPlace, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt, _, bytes_ = await _clean_run(place, way, monkeypatch)
    names = []
    for number in count(1):
        tree, before = f"x{number:04}", place.proxy.passed_bytes
        with monkeypatch.context() as patch:
            hook = Before(place, patch, number, place.restart)
            found = await _run(place, way, tree)
        if not hook.acted:
            break
        names.append(hook.acted)

        assert found.identity == receipt.identity, f"before {hook.acted}, request {number}"
        await _check(place, way, tree)
        on: Direction = "request" if way == "up" else "response"
        # What the head has flushed and forgotten is not sent again; what was in flight may be.
        assert place.proxy.passed_bytes[on] - before[on] - bytes_[on] <= _IN_VAIN, number
        assert place.open == 0, number
    assert set(names) >= ({"write", "commit"} if way == "up" else {"read", "close"})


@pytest.mark.parametrize("way", WAYS)
async def test_a_head_that_is_gone_for_a_moment_is_waited_for(place: PeerPlace, way: Way) -> None:
    if way == "down":
        await place.up("there")
    place.proxy.refuse()
    place.proxy.cut()
    waited = Events(place.proxy.accept, on=Retrying)
    async with place.syncer(observe=waited) as syncer:
        if way == "up":
            await syncer.sync_up(place.source, f"{place.location}/tree")
        else:
            await syncer.sync_down(f"{place.location}/there", place.tmp_path / "tree")

    assert len(waited.of(Retrying)) == 1
    await _check(place, way, "tree")


async def test_a_head_that_hangs_up_on_the_first_connections_is_asked_again(
    place: PeerPlace,
) -> None:
    place.proxy.faults = [HangUp(connection=1), HangUp(connection=2)]
    await place.up()

    await _check(place, "up", "tree")


async def test_a_partition_ends_at_the_deadline_and_when_it_heals_the_push_goes_on(
    place: PeerPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_short_stalls(monkeypatch, STALL_S)
    _, _, bytes_ = await _clean_run(place, "up", monkeypatch)
    before = place.proxy.passed_bytes["request"]

    healing = Events(place.proxy.heal, on=Retrying)
    dividing = Events(place.proxy.partition, on=Moved)

    def observe(event: Event) -> None:
        dividing(event)
        healing(event)

    await place.up(observe=observe)

    assert len(healing.of(Retrying)) == 1
    await _check(place, "up", "tree")
    assert place.proxy.passed_bytes["request"] - before - bytes_["request"] <= _IN_VAIN + CHUNK


@pytest.mark.parametrize("way", WAYS)
async def test_a_head_that_is_gone_for_good_is_named_and_nothing_is_left(
    place: PeerPlace, way: Way
) -> None:
    await place.up("there")
    await place.head.aclose()
    with pytest.raises(TransientError) as caught:
        await _run(place, way, "tree")

    said = str(caught.value)
    assert place.proxy.address in said
    assert "\n" not in said
    assert not (await place.restored("tree"))


async def test_a_head_that_has_moved_has_the_tree_at_its_new_address(
    place: PeerPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = await place.up()
    await place.head.aclose()
    place.port = 0
    await place.start()
    place.proxy.retarget("127.0.0.1", place.port)
    again = await place.up()

    assert again.identity == receipt.identity
    assert again.sent_bytes == 0


@pytest.mark.parametrize("on", ["request", "response"])
async def test_a_network_that_fails_for_good_in_the_middle_leaves_no_tree_and_the_next_goes_on(
    place: PeerPlace, on: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt, seen, bytes_ = await _clean_run(place, "up", monkeypatch)
    second = [one for one in seen if one.name == "write"][1]
    at = (second.request.start + 2000) if on == "request" else second.response.start
    first = len(place.proxy.connections) + 1
    dead = Reset(on=on, at=0, connection=first + 1, sticky=True)
    place.proxy.faults = [Reset(on=on, at=at, connection=first), dead]
    with pytest.raises(TransientError):
        await place.up()
    visible = await place.held()
    place.proxy.faults = []
    before = place.proxy.passed_bytes["request"]
    again = await place.up()

    assert visible == {}
    assert again.identity == receipt.identity
    await _check(place, "up", "tree")
    assert place.proxy.passed_bytes["request"] - before < bytes_["request"] - CHUNK + _IN_VAIN
