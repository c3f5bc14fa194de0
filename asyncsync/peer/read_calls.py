"""Requests that read the files of a tree."""

from __future__ import annotations

import re

from aiohttp import web

from ..digest import CHUNK_BYTES
from ..errors import ConfigError, FormatError, IntegrityError, RefusedError
from ..secrets import Secret
from ..storage import NewFile
from ..units import KIB
from ..wire import messages as m
from ..wire.framing import extents_text
from ..wire.joining import Join
from ..wire.names import check_tree_name
from .calls import Answer, Call, Head, answer, listed, message
from .listings import FILE_BYTES, Listing, Loan, listing_of
from .sessions import Read
from .turns import ORIGIN, Holder

__all__ = ["close", "open_", "read", "read_many", "turn"]

_RANGE = re.compile(r"bytes=(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,18})")
_BATCH_BYTES = CHUNK_BYTES + 64 * KIB
_BATCH_FILES = 4096


async def open_(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.Open)
    tree, owner = call.tree(asked.tree), call.claims.id
    if asked.identity is None:
        await call.hold(head, head.some_bytes)
        async with call.walk(head):
            found = Listing(await head.store.list_files(tree))
        with head.ledger.lend(owner) as loan:
            loan.grow(len(found.files), sum(len(file.path) for file in found.files))
            read = await _begun(head, Read(tree, owner, head.clock, found), loan)
        return answer(m.Opened(session=read.number, files=listed(found.files)))
    header = await head.store.read_header(tree)
    _check_identity(header.identity, asked.identity)
    for other in head.reads.all:  # many may read one commit, and its list is there once
        if other.tree == tree and other.loan is not None and _is(other.listing, asked.identity):
            with other.loan.share() as loan:
                read = await _begun(head, Read(tree, owner, head.clock, other.listing), loan)
            return answer(m.Opened(session=read.number, files=[]))
    with head.ledger.lend(owner) as loan:
        loan.grow(header.files)
        await call.hold(head, header.files * FILE_BYTES)
        whole = await head.store.read_manifest(tree)
        _check_identity(whole.identity, asked.identity)
        listing = await head.threads.run(listing_of, whole)
        read = await _begun(head, Read(tree, owner, head.clock, listing), loan)
    return answer(m.Opened(session=read.number, files=[]))


def _check_identity(found: str, asked: str) -> None:
    if found != asked:
        raise IntegrityError("another commit is there by now; read it again", side="source")


def _is(listing: Listing, identity: str) -> bool:
    return listing.manifest is not None and listing.manifest.identity == identity


async def _begun(head: Head, read: Read, loan: Loan) -> Read:
    read.loan = loan
    return await head.reads.begin(read)


async def read(head: Head, call: Call) -> Answer | web.StreamResponse:
    session = call.session(head.reads)
    with session:
        file = session.file(call.blob)
        start, end = _range(call.request, file)
        async with call.queue.memory.borrow(end - start), head.memory.buffer(end - start) as buffer:
            with session.using():
                block = await session.reader.read(file, start, end, buffer)
            headers = {"Content-Range": f"bytes {start}-{end - 1}/{file.size_bytes}"}
            parts = [memoryview(block.data)]
            if block.extents is not None:
                headers[m.EXTENTS] = extents_text(block.extents)
                parts = [parts[0][low:high] for low, high in block.extents]
            return await head.bodies.send(call.request, parts, 206, headers)


async def read_many(head: Head, call: Call) -> Answer | web.StreamResponse:
    session = call.session(head.reads)
    with session:
        asked = await message(head, call, m.Blobs)
        wanted = [session.file(blob) for blob in asked.blobs]
        size_bytes = sum(file.size_bytes for file in wanted)
        if size_bytes > _BATCH_BYTES or len(wanted) > _BATCH_FILES:
            raise RefusedError(
                f"{len(wanted)} files of {size_bytes} bytes; a batch has at most {_BATCH_FILES} "
                f"and {_BATCH_BYTES} bytes"
            )
        async with call.memory(head, size_bytes):
            with session.using():
                data = await session.reader.read_many(wanted)
            return await head.bodies.send(call.request, [memoryview(one) for one in data])


async def close(head: Head, call: Call) -> Answer:
    await call.session(head.reads).end()
    return Answer()


def _range(request: web.BaseRequest, file: NewFile) -> tuple[int, int]:
    found = _RANGE.fullmatch(request.headers.get("Range", ""))
    if found is None:
        raise FormatError("a read without a range")
    start, end = int(found[1]), int(found[2]) + 1
    if not start < end <= file.size_bytes or end - start > CHUNK_BYTES:
        raise FormatError("a range that is not in its file, or longer than a chunk")
    return start, end


async def turn(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.Turn)
    commit, now = f"{call.tree(asked.tree)}\n{asked.identity}", head.clock.monotonic()
    if asked.became == "done":
        head.turns.done(commit, asked.reader, _holder(asked), now)
    elif asked.became == "failed":
        head.turns.failed(commit, asked.reader, now)
    else:
        source = head.turns.ask(commit, asked.reader, now).source
        line, held = source or ORIGIN
        return answer(m.Sent(go=source is not None, line=line, held=held))
    return answer(m.Sent(go=False))


def _holder(asked: m.Turn) -> Holder:
    if not asked.line:
        return ORIGIN
    check_tree_name(asked.held)
    try:
        Join.parse(Secret(asked.line))
    except ConfigError as exc:
        raise FormatError(str(exc)) from None
    return Holder(asked.line, asked.held)
