"""Writing a tree that a head keeps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

import anyio

from ...digest import CHUNK_BYTES
from ...errors import ConflictError, IntegrityError, PermanentError, quote
from ...manifest import Manifest, encode
from ...wire import messages as m
from ...wire.failures import GoneError, WorkingError
from ...wire.framing import extents_text, join_batch
from ..http import Answer
from ..objects import Data
from ..trees import Block, Durability, File, Intent, NewFile, Stored
from .link import Link
from .values import batches, digest_of, durability_of, line_of, member_of

__all__ = ["Writer"]

T = TypeVar("T")

_CHUNKS_PER_LINE = 1000
_LOST_ANSWERS = 100
_ASKED = 1000  # times, each of which takes half a minute


class Writer:
    """Pushes a tree. When the head has started anew, it goes on there with what has arrived.

    Files go by their numbers in the plan.
    """

    def __init__(self, link: Link, tree: str, intent: Intent, where: str) -> None:
        self._link, self._tree, self._intent, self._where = link, tree, intent, where
        self._files: list[File] = list(intent.files)
        self._numbers = {_key(file): number for number, file in enumerate(self._files)}
        self._stored: dict[int, dict[int, Stored]] = {}
        self._turn = anyio.Lock()
        self._session, self._over, self._stale = "", False, False
        self.resumes = False

    # -- life

    async def begin(self) -> None:
        """Announce the plan. Raises what `TreeStore.begin` raises."""
        intent = self._intent
        first = m.Begin(
            tree=self._tree,
            attempt=intent.attempt,
            expect=intent.expect,
            in_place=intent.in_place,
            writer=intent.writer,
            keep=intent.keep,
            group=None if intent.group is None else member_of(intent.group),
        )
        plan = b"".join(m.lines_of([first, *map(line_of, self._files)]))
        what = f"begin to write {self._where}"
        answer = await self._link.send("begin", plan, what=what)
        begun = self._link.read(m.Begun, answer, what)
        self._session = self._link.session_of(begun.session, what)
        self.resumes = begun.resumes

    async def end(self, *, keep: bool) -> None:
        """Leave it, if it was not committed."""
        if self._session and not self._over:
            what = f"leave {self._where}"
            await self._link.end("leave", m.Leave(keep=keep), what=what, session=self._session)

    async def _again(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask; if the head knows nothing of this push any more, begin again and ask once more."""
        if self._stale:
            await self._renewed("")
        session = self._session
        try:
            return await ask()
        except GoneError:
            await self._renewed(session)
        return await ask()

    @staticmethod
    async def _until_done(ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again as long as the head says that it is at it: a large disk takes its time."""
        for _ in range(_ASKED):
            with suppress(WorkingError):
                return await ask()
        return await ask()

    async def _renewed(self, session: str) -> None:
        """Begin again, unless another task has done that since `session` was used."""
        async with self._turn:
            if self._stale or self._session == session:
                await self._go_on()

    async def _go_on(self) -> None:
        self._stale = True  # until all of this is done, if need be by somebody else
        await self.begin()
        if self.resumes:  # also when there is nothing to say: what is not asked for is in the way
            await self._recall(self._stored)
        else:
            self._stored = {}  # a commit says what is missing, and it is sent again
        self._stale = False

    # -- what an interrupted attempt has sent

    async def recall(
        self, files: Sequence[tuple[NewFile, Mapping[int, Stored]]]
    ) -> list[frozenset[int]]:
        said = {await self._number(file): dict(chunks) for file, chunks in files}
        self._stored = {number: dict(chunks) for number, chunks in said.items()}
        held = await self._again(lambda: self._recall(said))
        return [held.get(await self._number(file), frozenset()) for file, _ in files]

    async def _recall(self, said: Mapping[int, Mapping[int, Stored]]) -> dict[int, frozenset[int]]:
        what = f"ask what has arrived at {self._where}"
        lines = b"".join(m.lines_of(_held_lines(said)))
        answer = await self._until_done(
            lambda: self._link.send("recall", lines, what=what, session=self._session)
        )
        held = {n: frozenset(found) for n, found in self._link.read(m.Held, answer, what).held}
        if any(not found <= said.get(number, {}).keys() for number, found in held.items()):
            raise PermanentError(f"{what}: the head has what nobody sent")
        self._stored = {
            number: {n: said[number][n] for n in found} for number, found in held.items()
        }
        return held

    # -- writing

    async def write(self, file: NewFile, offset: int, block: Block) -> str:
        number, data, extents = await self._number(file), block.data, block.extents
        headers = {m.OFFSET: str(offset)}
        if extents is not None:
            headers[m.EXTENTS] = extents_text(extents)
            data = b"".join(memoryview(data)[start:end] for start, end in extents)
        what = f"write {quote(file.path)} of {self._where}"
        answer = await self._again(
            lambda: self._link.send(
                "write", data, what=what, session=self._session, blob=number, headers=headers
            )
        )
        (digest,) = self._digests(answer, 1, what)
        end = offset + len(block.data)
        if answer.headers.get(m.OFFSET) != str(end):
            raise IntegrityError(f"{what}: the head has not taken all of it", side="target")
        self._stored.setdefault(number, {})[offset // CHUNK_BYTES] = Stored(digest)
        return ""  # the bytes tell, by their digest

    async def write_many(self, files: Sequence[tuple[NewFile, Data]]) -> list[str]:
        for some in batches(files, lambda one: one[0].size_bytes):
            await self._write_batch(some)
        return [""] * len(files)

    async def _write_batch(self, files: Sequence[tuple[NewFile, Data]]) -> None:
        numbers = [await self._number(file) for file, _ in files]
        body = b"".join([join_batch(numbers), *(data for _, data in files)])
        what = f"write {len(files)} files of {self._where}"
        answer = await self._again(
            lambda: self._link.send("write_many", body, what=what, session=self._session)
        )
        digests = self._digests(answer, len(files), what)
        for number, digest in zip(numbers, digests, strict=True):
            self._stored.setdefault(number, {})[0] = Stored(digest)

    def _digests(self, answer: Answer, count: int, what: str) -> list[str]:
        found = self._link.read(list[str], answer, what)
        if len(found) != count:
            raise PermanentError(f"{what}: the head answers for {len(found)} files, not {count}")
        return [digest_of(text, what) for text in found]

    async def finish(self, file: NewFile) -> str:
        del file  # its last part has done that
        return ""

    async def discard(self, path: str) -> None:
        numbers = [n for (known, *_), n in self._numbers.items() if known == path]
        if not numbers:
            return
        what = f"discard {quote(path)} of {self._where}"
        for number in numbers:
            self._stored.pop(number, None)
        asked = m.Blobs(blobs=numbers)
        await self._again(
            lambda: self._link.ask("discard", asked, what=what, session=self._session)
        )

    async def commit(self, manifest: Manifest) -> Durability:
        what = f"commit {self._where}"
        text = b"".join(encode(manifest))
        try:
            answer = await self._until_done(
                lambda: self._again(
                    lambda: self._link.send("commit", text, what=what, session=self._session)
                )
            )
        except ConflictError as exc:
            # The head was started anew after it had committed this very tree.
            if exc.winner != manifest.identity or manifest.identity == self._intent.expect:
                raise
            if self._intent.group is not None:  # what all of it will survive, `gather` says
                return "received"
            level = await self._link.told(
                m.Level, "confirm", m.TreeName(tree=self._tree), what=what
            )
            return durability_of(level.durability, what)
        receipt = self._link.read(m.Receipt, answer, what)
        if receipt.identity != manifest.identity:
            raise PermanentError(f"{what}: the head has committed something else")
        self._over = True
        return durability_of(receipt.durability, what)

    async def _number(self, file: NewFile) -> int:
        """The number of a file in the plan, which takes it in if it does not know it."""
        if (number := self._numbers.get(_key(file))) is not None:
            return number
        async with self._turn:
            if (number := self._numbers.get(_key(file))) is not None:
                return number
            what = f"add {quote(file.path)} to the plan of {self._where}"
            lines = [line_of(file)]
            if self._stale:
                await self._go_on()
            try:
                answer = await self._link.ask("plan", lines, what=what, session=self._session)
            except GoneError:
                await self._go_on()
                answer = await self._link.ask("plan", lines, what=what, session=self._session)
            number = self._link.read(m.Planned, answer, what).first
            # The answer to an earlier question may have been lost: then the head has it twice.
            if not 0 <= number - len(self._files) < _LOST_ANSWERS:
                raise PermanentError(f"{what}: the head counts in another way; upgrade it")
            self._files += [file] * (number + 1 - len(self._files))
            self._numbers[_key(file)] = number
            return number


def _key(file: File) -> tuple[str, int, int, int]:
    return file.path, file.size_bytes, file.mode & 0o777, file.mtime_ns


def _held_lines(said: Mapping[int, Mapping[int, Stored]]) -> list[m.HeldLine]:
    lines = []
    for number, chunks in said.items():
        pairs = list(chunks.items())
        for at in range(0, max(1, len(pairs)), _CHUNKS_PER_LINE):
            some = pairs[at : at + _CHUNKS_PER_LINE]
            lines.append(m.HeldLine(number, [n for n, _ in some], [s.digest for _, s in some]))
    return lines
