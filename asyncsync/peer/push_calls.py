"""Requests that write a tree."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

from aiohttp import web

from ..digest import CHUNK_BYTES, Hasher, chunk_count, digest
from ..errors import (
    AsyncSyncError,
    FormatError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    SlowDownError,
    TransientError,
)
from ..manifest import Header, decode
from ..storage import Block, Intent, NewFile, Stored
from ..units import KIB, MIB
from ..wire import messages as m
from ..wire.failures import WorkingError
from ..wire.framing import extents_of, split_batch
from ..wire.limits import Limits
from ..wire.tokens import ends_at
from .bodies import length_of, split_lines
from .calls import Answer, Call, Head, answer, group_of, message, new_file, text_of, window
from .listings import Loan
from .onward import level_of, queue
from .pushes import Push

__all__ = [
    "begin",
    "commit",
    "discard",
    "gather",
    "leave",
    "part",
    "plan",
    "recall",
    "write",
    "write_many",
]

_OFFSET = re.compile(r"0|[1-9][0-9]{0,18}")
_MAX_LINE_BYTES = 4 * MIB
_OBJECTS = 4  # how much more memory lists take than their text
_BATCH_BYTES = CHUNK_BYTES + 64 * KIB


async def begin(head: Head, call: Call) -> Answer:
    length = length_of(call.request, head.limits.max_manifest_bytes)
    with head.ledger.lend(call.claims.id) as loan:
        async with call.memory(head, length):
            tree, intent, planned = await _plan(head, call, length, loan)
        push = Push(tree, call.claims.id, head.clock, replace(intent, files=planned), planned)
        push.loan = loan
        # Also who began meanwhile: the same attempt, whose answer was lost before it was given.
        await _reserve(head, call, planned, before=lambda: _take_over(head, call, tree, intent))
        try:
            await head.pushes.begin(push)
        except SlowDownError:  # it was never open
            await head.quotas.give_back(push.owner, len(planned), push.size_bytes)
            raise
    return answer(m.Begun(session=push.number, resumes=push.resumes))


async def _nothing() -> None:
    """There is nothing to wait for."""


async def _reserve(
    head: Head,
    call: Call,
    more: Sequence[NewFile],
    push: Push | None = None,
    before: Callable[[], Awaitable[None]] = _nothing,
) -> None:
    """Refuse what is announced, unless there is room for it beside everything else.

    Args:
        push: what it is added to.
        before: is awaited before it is compared with what others have announced.
    """
    size_bytes = sum(file.size_bytes for file in more)
    room = await head.space.room()
    await head.quotas.take(call.claims, ends_at(call.token), len(more), size_bytes)
    try:
        await before()
        # From here on nobody else has a turn before it counts.
        _refuse_size(head, size_bytes + (push.size_bytes if push else 0))
        _refuse_files(head, call.claims.id, len(more))
        room.refuse(size_bytes, head.announced_bytes)
    except AsyncSyncError:
        await head.quotas.give_back(call.claims.id, len(more), size_bytes)
        raise


def _refuse_size(head: Head, size_bytes: int) -> None:
    most = head.limits.max_push_bytes
    if most is not None and size_bytes > most:
        raise RefusedError(f"a push of {size_bytes} bytes; {most} is the limit here")


def _refuse_files(head: Head, owner: str, more: int) -> None:
    """SlowDownError: plans are held in memory, and one token has enough of them."""
    planned = sum(len(one.files) for one in head.pushes.all if one.owner == owner)
    if planned and planned + more > head.limits.max_files:
        raise SlowDownError("too many files in all pushes of this token", retry_after_s=1.0)


async def _take_over(head: Head, call: Call, tree: str, to: Intent) -> None:
    """End the attempts that are over because this one begins.

    Raises:
        TransientError: whoever asked for it has hung up; it may have begun again since.
    """
    owner, limits = call.claims.id, head.limits

    def over(other: Push) -> bool:
        _refuse_gone(call)
        return _gives_way(other, tree, owner, to, limits)

    await head.pushes.fence(over)
    _refuse_gone(call)


def _refuse_gone(call: Call) -> None:
    if call.request.transport is None:
        raise TransientError("whoever asked for this has hung up")


def _gives_way(other: Push, tree: str, owner: str, to: Intent, limits: Limits) -> bool:
    """Whether an attempt is over because another begins."""
    if other.tree != tree:
        return False
    mine, theirs = to.group, other.intent.group
    if mine and theirs and mine.attempt == theirs.attempt and mine.rank != theirs.rank:
        return False  # they write one tree together
    if other.intent.attempt == to.attempt:
        return True  # it begins again: an answer was lost, or its token has been renewed
    if other.requests:
        return False
    same = other.owner == owner and other.intent.writer == to.writer != ""
    return same or other.idle_s() >= limits.body_idle_s


async def _plan(
    head: Head, call: Call, length: int, loan: Loan
) -> tuple[str, Intent, list[NewFile]]:
    """A plan, line by line as it arrives: its text is never there as a whole.

    Who gives way does so before there are two lists of files.
    """
    tree, intent = "", None
    planned, rest = list[NewFile](), b""
    async for data in head.bodies.pieces(call.request, length):
        lines, rest = split_lines(rest, data, _MAX_LINE_BYTES)
        if lines and intent is None:
            first = m.decode(lines.pop(0), m.Begin)
            tree, intent = call.tree(first.tree), _intent(first)
            await _take_over(head, call, tree, intent)
        if len(planned) + len(lines) > head.limits.max_files:
            raise RefusedError(f"a plan of more than {head.limits.max_files} files")
        loan.grow(len(lines), sum(map(len, lines)))
        planned += await head.threads.run(_new_files, lines, head.limits)
    if intent is None or rest:
        raise FormatError("a plan that is not whole")
    return tree, intent, planned


def _new_files(lines: Sequence[bytes], limits: Limits) -> list[NewFile]:
    return [new_file(m.decode(line, m.FileLine), limits) for line in lines]


def _intent(first: m.Begin) -> Intent:
    return Intent(
        attempt=first.attempt,
        expect=first.expect,
        in_place=first.in_place,
        writer=first.writer,
        keep=first.keep,
        group=None if first.group is None else group_of(first.group),
    )


async def plan(head: Head, call: Call) -> Answer:
    push = call.session(head.pushes)
    with push:
        asked = await message(head, call, list[m.FileLine])
        more = [new_file(line, head.limits) for line in asked]
        with push.using():  # what is over has given back all that it had
            return await _planned(head, call, push, more)


async def _planned(head: Head, call: Call, push: Push, more: Sequence[NewFile]) -> Answer:
    if len(push.files) + len(more) > head.limits.max_files:
        raise RefusedError(f"a plan of more than {head.limits.max_files} files")
    assert push.loan is not None, "every push has one"
    with push.loan.growing(len(more), sum(len(file.path) for file in more)):
        await _reserve(head, call, more, push)
        return answer(m.Planned(first=push.extend(more)))


async def recall(head: Head, call: Call) -> Answer:
    push = call.session(head.pushes)
    with push:
        said, asked = dict[int, dict[int, Stored]](), Hasher()
        length, rest = length_of(call.request, head.limits.max_manifest_bytes), b""
        await call.hold(head, _OBJECTS * length)
        async for data in head.bodies.pieces(call.request, length):
            asked.update(data)
            lines, rest = split_lines(rest, data, _MAX_LINE_BYTES)
            for line in lines:
                _note_said(said, push, m.decode(line, m.HeldLine))
        await _refuse_busy(head, push)
        blobs = list(said)
        wanted = [(push.file(blob), said[blob]) for blob in blobs]
        there = await head.pushes.in_time(lambda: push.recall(wanted, asked.hexdigest()))
        held_now = zip(blobs, there, strict=True)
        return answer(m.Held(held=[(blob, sorted(found)) for blob, found in held_now if found]))


def _note_said(said: dict[int, dict[int, Stored]], push: Push, held: m.HeldLine) -> None:
    """Note what a line says, without chunks that its file does not have: there is no end to them.

    FormatError: there is no such file.
    """
    count = chunk_count(push.file(held.blob).size_bytes)
    chunks = said.setdefault(held.blob, {})
    for number, found in zip(held.numbers, held.digests, strict=False):
        if 0 <= number < count:
            chunks[number] = Stored(found)


async def _refuse_busy(head: Head, push: Push) -> None:
    """Wait for a commit or a recall that is under way: what is asked for is held in memory once.

    Raises:
        WorkingError: there was one, and its answer is there for whoever asks again.
    """
    if push.busy:
        await head.pushes.in_time(push.idle)
        raise WorkingError("the head was still at it; ask again")


async def write(head: Head, call: Call) -> Answer:
    push = call.session(head.pushes)
    with push:
        file, offset = push.file(call.blob), _offset(call.request)
        size = min(CHUNK_BYTES, file.size_bytes - offset)
        if offset % CHUNK_BYTES or size < min(1, file.size_bytes):
            raise FormatError("a part that is none of its file")
        extents = _extents(call.request, size)
        length = length_of(call.request, size)
        if length != (size if extents is None else sum(end - at for at, end in extents)):
            raise FormatError("a part of another length than it has in the plan")
        async with call.queue.memory.borrow(size), head.memory.buffer(size) as buffer:
            await head.bodies.fill(call.request, buffer[size - length :])
            if extents is not None:
                await head.threads.run(_spread, buffer, length, extents)
            async with head.hashing.borrow():
                found = await head.threads.run(digest, buffer)
            found = await push.write(call.blob, offset, Block(buffer, extents), found)
    return Answer(m.encode([found]), headers={m.OFFSET: str(offset + size)})


def _spread(buffer: memoryview, length: int, extents: Iterable[tuple[int, int]]) -> None:
    """Put what was sent, at the end of `buffer`, in its place, and zeros around it."""
    at, filled = len(buffer) - length, 0
    for start, end in extents:  # whose place is never behind where they are
        buffer[start:end] = buffer[at : at + end - start]
        buffer[filled:start] = bytes(start - filled)
        at, filled = at + end - start, end
    buffer[filled:] = bytes(len(buffer) - filled)


async def write_many(head: Head, call: Call) -> Answer:
    push = call.session(head.pushes)
    with push:
        length = length_of(call.request, _BATCH_BYTES)
        async with call.queue.memory.borrow(length), head.memory.buffer(length) as body:
            await head.bodies.fill(call.request, body)
            batch = split_batch(body, push.sizes)
            async with head.hashing.borrow():
                found = await head.threads.run(lambda: [digest(one) for one in batch.data])
            wanted = [push.file(blob) for blob in batch.blobs]
            found = await push.write_many(list(zip(wanted, batch.data, found, strict=True)))
    return answer(found)


async def discard(head: Head, call: Call) -> Answer:
    push = call.session(head.pushes)
    with push:
        asked = await message(head, call, m.Blobs)
        for path in {push.file(blob).path for blob in asked.blobs}:
            await push.discard(path)
    return Answer()


async def commit(head: Head, call: Call) -> Answer:
    push = call.session(head.pushes)
    with push:
        length = length_of(call.request, head.limits.max_manifest_bytes)
        async with call.memory(head, _OBJECTS * length):
            text = await head.bodies.whole(call.request, length)
            await _refuse_busy(head, push)
            whole = await head.threads.run(lambda: decode(text.splitlines(keepends=True)))
        await head.space.room()  # only to see that the root is where it was
        durability = await head.pushes.in_time(lambda: push.commit(whole))
    if push.intent.group is None:  # else it is a part, which nobody sees yet
        await queue(head.onward, push.tree, whole.identity)
        head.known.note(push.tree, whole.identity, durability)
        await _keep(head, push.tree, whole.header, text)
    level = level_of(durability, head.onward, push.tree, whole.identity)
    return answer(m.Receipt(identity=whole.identity, durability=level))


async def _keep(head: Head, tree: str, header: Header, text: bytes) -> None:
    """Keep the text of a manifest that was just committed, unless another has come since."""
    tag = (await head.store.glance(tree)).tag
    try:
        there = await head.store.read_header(tree)
    except (NotFoundError, IntegrityError):  # deleted since; the commit was made all the same
        return
    if there.attempt == header.attempt and (await head.store.glance(tree)).tag == tag:
        head.known.keep(tree, header.identity, tag, text)


async def part(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.PartWindow)
    await call.hold(head, head.some_bytes)
    left = await head.store.read_part(call.tree(asked.tree), group_of(asked.group))
    return window(await text_of(head, left), asked.start)


async def gather(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.Gather)
    tree = call.tree(asked.tree)
    intent = Intent(
        attempt=asked.attempt,
        expect=asked.expect,
        writer=asked.writer,
        group=group_of(asked.group),
    )
    async with call.walk(head):
        found = await head.store.gather(tree, intent)
    if found.durability is None:
        return answer(m.Gathered(missing=list(found.missing)))
    try:
        identity = (await head.store.read_header(tree)).identity
    except NotFoundError:  # deleted since: there is nothing to carry on, but a commit was made
        level = level_of(found.durability, head.onward, tree, "")
        return answer(m.Gathered(missing=[], durability=level))
    await queue(head.onward, tree, identity)
    head.known.note(tree, identity, found.durability)
    level = level_of(found.durability, head.onward, tree, identity)
    return answer(m.Gathered(missing=[], durability=level))


async def leave(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.Leave)
    await call.session(head.pushes).end(keep=asked.keep)
    return Answer()


def _offset(request: web.BaseRequest) -> int:
    text = request.headers.get(m.OFFSET, "")
    if _OFFSET.fullmatch(text) is None:
        raise FormatError(f"a part without its {m.OFFSET}")
    return int(text)


def _extents(request: web.BaseRequest, size: int) -> tuple[tuple[int, int], ...] | None:
    text = request.headers.get(m.EXTENTS)
    return None if text is None else extents_of(text, size)
