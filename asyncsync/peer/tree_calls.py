"""Requests about whole trees."""

from __future__ import annotations

from contextlib import suppress

from ..errors import (
    ConflictError,
    FormatError,
    IntegrityError,
    NotCommittedError,
    NotFoundError,
    RefusedError,
    quote_some,
)
from ..wire import messages as m
from ..wire.tokens import ends_at
from .calls import Answer, Call, Head, answer, listed, message, text_of, texts, window
from .listings import FILE_BYTES
from .onward import level_of, queue

__all__ = [
    "authority",
    "clean",
    "confirm",
    "delete",
    "files",
    "find",
    "glance",
    "header",
    "hello",
    "manifest",
    "mark",
    "probe",
    "renew",
]

_MAX_AGE_S = 1e9
_FILE_BYTES = 2 * FILE_BYTES  # with its line in the text


async def hello(head: Head, call: Call) -> Answer:
    claims = call.claims
    return answer(
        m.Hello(
            run=head.run,
            readonly=head.readonly,
            scope=claims.scope,
            operations=sorted(claims.operations),
            expires_at=claims.expires_at,
            forwards=head.onward.forwards,
        )
    )


async def renew(head: Head, call: Call) -> Answer:
    token = head.renew(call.token)
    await head.quotas.prolong(call.claims.id, ends_at(token))
    return answer(m.Renewed(token=token.reveal()))


async def authority(head: Head, call: Call) -> Answer:
    del call
    return Answer(head.authority().encode())


async def manifest(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.Window)
    tree = call.tree(asked.tree)
    tag = (await head.store.glance(tree)).tag
    if (known := head.known.text(tree, tag)) is None:
        await call.hold(head, (await head.store.read_header(tree)).files * _FILE_BYTES)
        found = await head.store.read_manifest(tree)
        known = found.identity, await text_of(head, found)
        head.known.keep(tree, found.identity, tag, known[1])  # a tag that is old is not seen again
    identity, text = known
    answered = window(text, asked.start)
    if (level := head.known.level(tree, identity)) is not None:
        said = level_of(level, head.onward, tree, identity)
        return answered._replace(headers={**answered.headers, m.DURABILITY: said})
    return answered


async def header(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.TreeName)
    found = await head.store.read_header(call.tree(asked.tree))
    return Answer(m.encode(found))


async def find(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.TreeName)
    tree = call.tree(asked.tree)
    async with call.walk(head):
        found = [m.Sight(m.text_of(s.tree), s.tag) async for s in head.store.find(tree)]
    return answer(found)


async def glance(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.TreeName)
    found = await head.store.glance(call.tree(asked.tree))
    return answer(m.Seen(tag=found.tag, names=texts(sorted(found.names))))


async def files(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.TreeName)
    await call.hold(head, head.some_bytes)
    tree = call.tree(asked.tree)
    async with call.walk(head):
        found = await head.store.list_files(tree)
    return answer(listed(found))


async def confirm(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.TreeName)
    tree = call.tree(asked.tree)
    identity = (await head.store.read_header(tree)).identity
    if (level := head.known.level(tree, identity)) is None:
        async with call.walk(head):
            level = await head.store.confirm(tree)
        identity = (await head.store.read_header(tree)).identity
    onward = head.onward
    failure = onward.failure(tree, identity) if onward.forwards else None
    await queue(onward, tree, identity)  # what has failed is tried again because of it
    head.known.note(tree, identity, level)
    return answer(m.Level(durability=level_of(level, onward, tree, identity), onward=failure))


async def delete(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.Delete)
    tree = call.tree(asked.tree)
    async with call.walk(head):
        if asked.expect is None:
            await _refuse_commits(head, tree, uncommitted=asked.uncommitted)
        done = await head.store.delete(tree, expect=asked.expect, uncommitted=asked.uncommitted)
    return answer(m.Deletion(files=done.files, kept=texts(done.kept)))


async def _refuse_commits(head: Head, tree: str, *, uncommitted: bool) -> None:
    """Delete no commit that nobody has named by its identity.

    Raises:
        ConflictError: the tree is one, and that is which.
        RefusedError: there are some in it.
    """
    found = [sight.tree async for sight in head.store.find(tree)]
    below = [one for one in found if one != tree]
    if uncommitted and below:
        raise RefusedError(f"there are commits in it: {quote_some(below)}; delete those first")
    if tree in found:
        # What is damaged has no identity to name; what is being deleted now, the store waits for.
        with suppress(IntegrityError, FormatError, NotFoundError, NotCommittedError):
            identity = (await head.store.read_header(tree)).identity
            raise ConflictError("a commit is there; name it to delete it", winner=identity)


async def clean(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.Clean)
    if not 0 <= asked.older_than_s <= _MAX_AGE_S:
        raise FormatError("an age that makes no sense")
    tree = call.tree(asked.tree)
    async with call.walk(head):
        cleaned = await head.store.clean(tree, older_than_s=asked.older_than_s)
    return answer(m.Cleaned(trees=texts(cleaned)))


async def mark(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.Mark)
    return answer(m.Marked(marker=await head.store.mark_root(call.tree(asked.tree), asked.marker)))


async def probe(head: Head, call: Call) -> Answer:
    asked = await message(head, call, m.TreeName)
    found = await head.store.probe(call.tree(asked.tree))
    return answer(
        m.Probed(
            durability=level_of(found.durability, head.onward, asked.tree, ""),
            exclusive=found.exclusive,
            raw_names=found.raw_names,
            case_sensitive=found.case_sensitive,
            keeps_normalization=found.keeps_normalization,
            notes=list(found.notes),
        )
    )
