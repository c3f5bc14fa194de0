"""The manifest: the vectors of docs/formats/manifest.md, round trips, and garbage."""

from __future__ import annotations

import io
import json
import os
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asyncsync import manifest as manifest_module
from asyncsync.digest import CHUNK_BYTES, chunk_count, digest, tree_digest
from asyncsync.errors import FormatError, IntegrityError, RefusedError
from asyncsync.manifest import (
    MAX_FILE_BYTES,
    MAX_HEADER_BYTES,
    DirectoryEntry,
    Entry,
    FileEntry,
    Header,
    Manifest,
    NestedEntry,
    decode,
    encode,
    read_header,
)
from asyncsync.names import check_path, check_set, sort_key

VECTORS = Path(__file__).parents[1] / "vectors" / "manifest"
PAGE = Path(__file__).parents[2] / "docs" / "formats" / "manifest.md"
INDEX: dict[str, dict[str, dict[str, Any]]] = json.loads((VECTORS / "index.json").read_text())
UNKNOWN_FIELD = "valid-unknown-field.json"


def read(text: bytes) -> Manifest:
    return decode(io.BytesIO(text))


def text_of(manifest: Manifest) -> bytes:
    return b"".join(encode(manifest))


def file(path: str, content: bytes = b"content") -> FileEntry:
    return FileEntry(path, len(content), digest(content), 0o644, 10**18)


def closed(body: bytes) -> bytes:
    """`body` with the last line that belongs to it."""
    return body + b'],"self":"' + digest(body).encode() + b'"}\n'


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("name", INDEX["valid"])
def test_a_valid_vector_is_read_with_its_identity_and_totals(name: str) -> None:
    expected = INDEX["valid"][name]

    found = read((VECTORS / name).read_bytes())

    assert found.identity == expected["identity"]
    assert len(found.entries) == expected["entries"]
    assert (found.header.files, found.header.size_bytes) == (
        len(found.files),
        expected["size_bytes"],
    )


@pytest.mark.parametrize("name", sorted(INDEX["valid"].keys() - {UNKNOWN_FIELD}))
def test_a_valid_vector_is_written_again_byte_for_byte(name: str) -> None:
    text = (VECTORS / name).read_bytes()

    assert text_of(read(text)) == text


@pytest.mark.parametrize("name", INDEX["valid"])
def test_identity_and_self_digest_follow_from_the_page_alone(name: str) -> None:
    """A second implementation: the words of the page, json and blake3, and nothing of ours."""
    text = (VECTORS / name).read_bytes()
    fields = json.loads(text)
    kept = {"f": 5, "d": 3, "n": 3}  # without time and chunks
    lines = [
        json.dumps(entry[: kept[entry[0]]], ensure_ascii=False, separators=(",", ":")) + "\n"
        for entry in fields["entries"]
    ]

    assert blake3("".join(lines).encode()).hexdigest() == fields["identity"]
    assert blake3(text[: text.rindex(b'],"self"')]).hexdigest() == fields["self"]


@pytest.mark.parametrize("name", INDEX["invalid"])
def test_an_invalid_vector_is_refused_with_its_error(name: str) -> None:
    expected = INDEX["invalid"][name]

    with pytest.raises(IntegrityError) as caught:
        read((VECTORS / name).read_bytes())

    assert type(caught.value).__name__ == expected["error"]
    assert expected["says"] in str(caught.value)


def test_the_index_names_every_vector() -> None:
    there = {path.name for path in VECTORS.glob("*.json")} - {"index.json"}

    assert there == INDEX["valid"].keys() | INDEX["invalid"].keys()


def test_the_page_has_the_identity_of_every_valid_vector() -> None:
    page = PAGE.read_text()

    missing = [n for n, v in INDEX["valid"].items() if f"`{n}`" not in page]
    assert missing == []
    assert all(v["identity"] in page for v in INDEX["valid"].values())


def test_the_multi_chunk_vector_has_the_digests_of_its_content() -> None:
    content = bytes(CHUNK_BYTES) + b"asyncsync\n"
    chunks = (digest(content[:CHUNK_BYTES]), digest(content[CHUNK_BYTES:]))

    found = read((VECTORS / "valid-chunks.json").read_bytes()).files

    assert found["large"].chunks == chunks
    assert found["large"].digest == tree_digest(chunks)
    assert found["exactly one chunk"].digest == chunks[0]
    assert found["exactly one chunk"].chunks == ()


def test_a_field_of_a_later_release_is_ignored() -> None:
    assert read((VECTORS / UNKNOWN_FIELD).read_bytes()).header.step == 10


# ---------------------------------------------------------------- round trip

BYTES = st.binary(min_size=1, max_size=20).filter(lambda raw: b"/" not in raw and b"\0" not in raw)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
COMPONENTS = st.one_of(
    st.sampled_from(["a", "b", "a-", "a.b", "-rf", "é", "e\u0301", "\n", '"', "\\", "\udcff"]),
    BYTES.map(os.fsdecode),
    TEXTS,
)
PATHS = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join)
DIGESTS = st.integers(0, 2**64).map(lambda number: digest(str(number).encode()))
SIZES = st.one_of(st.integers(0, 10), st.integers(CHUNK_BYTES - 1, 4 * CHUNK_BYTES))
MODES = st.integers(0, 0o777)
TIMES = st.integers(-(2**63) + 1, 2**63 - 1)


@st.composite
def file_entries(draw: st.DrawFn, path: str) -> FileEntry:
    size = draw(SIZES)
    chunks = tuple(draw(DIGESTS) for _ in range(chunk_count(size)))
    listed = chunks if len(chunks) > 1 else ()
    return FileEntry(path, size, tree_digest(chunks), draw(MODES), draw(TIMES), listed)


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    """Entries that a tree may hold, in any order."""
    found: list[Entry] = []
    for path in draw(st.lists(PATHS, max_size=6, unique_by=sort_key)):
        kind = draw(st.sampled_from("ffdn"))
        if kind == "f":
            found.append(draw(file_entries(path)))
        elif kind == "d":
            found.append(DirectoryEntry(path, draw(MODES)))
        else:
            found.append(NestedEntry(path, draw(DIGESTS)))
    try:
        for entry in found:
            check_path(entry.path)
        check_set(*([e.path for e in found if isinstance(e, kind)] for kind in Entry.__args__))
    except RefusedError:
        assume(False)
    return found


HEADERS = st.builds(
    Header,
    kind=st.sampled_from(["sealed", "rolling"]),
    name=COMPONENTS,
    step=st.none() | st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**63 - 1),
    sequence=st.integers(0, 2**63 - 1),
    attempt=st.just("0" * 32),
    created=st.integers(0, 2**45).map(lambda milliseconds: milliseconds / 1000),
    parent=st.none() | DIGESTS,
    part_of=st.none() | DIGESTS,
)


def has_one_spelling(name: str) -> bool:
    return os.fsdecode(os.fsencode(name)) == name


@given(header=HEADERS.filter(lambda header: has_one_spelling(header.name)), found=entries())
def test_what_is_written_is_read_again(header: Header, found: list[Entry]) -> None:
    manifest = Manifest.of(header, found)

    assert read(text_of(manifest)) == manifest


@given(found=entries())
def test_the_text_is_json_whose_entries_are_sorted_by_bytes(found: list[Entry]) -> None:
    fields = json.loads(text_of(Manifest.of(Header(), found)))

    assert len(fields["entries"]) == len(found)
    paths = [os.fsencode(e.path) for e in Manifest.of(Header(), found).entries]
    assert paths == sorted(os.fsencode(e.path) for e in found)


@given(found=entries(), order=st.randoms(use_true_random=False))
def test_equal_content_has_equal_identity_whatever_the_order_time_and_header(
    found: list[Entry], order: Any
) -> None:
    other = [
        msgspec.structs.replace(e, mtime_ns=1) if isinstance(e, FileEntry) else e for e in found
    ]
    order.shuffle(other)

    one = Manifest.of(Header(name="one"), found)
    two = Manifest.of(Header(name="two", step=3, kind="rolling"), other)

    assert one.identity == two.identity


@pytest.mark.parametrize(
    "other",
    [
        FileEntry("b", 7, digest(b"content"), 0o644),
        FileEntry("a", 8, digest(b"content"), 0o644),
        FileEntry("a", 7, digest(b"other"), 0o644),
        FileEntry("a", 7, digest(b"content"), 0o755),
        DirectoryEntry("a", 0o644),
        NestedEntry("a", digest(b"content")),
    ],
)
def test_other_content_has_another_identity(other: Entry) -> None:
    one = Manifest.of(Header(), [FileEntry("a", 7, digest(b"content"), 0o644)])

    assert Manifest.of(Header(), [other]).identity != one.identity


# ---------------------------------------------------------------- garbage

SAMPLE = (VECTORS / "valid-nested.json").read_bytes()


def assert_refused_or_the_same(text: bytes, original: bytes) -> None:
    try:
        found = read(text)
    except IntegrityError:
        return
    assert text == original, f"accepted as {found}"


@given(st.data())
@settings(max_examples=300)
def test_a_changed_byte_anywhere_is_refused_with_integrity_error_and_nothing_else(
    data: st.DataObject,
) -> None:
    place = data.draw(st.integers(0, len(SAMPLE)))
    cut = data.draw(st.integers(0, 8))
    new = data.draw(st.binary(max_size=8))

    assert_refused_or_the_same(SAMPLE[:place] + new + SAMPLE[place + cut :], SAMPLE)


@given(st.data())
@settings(max_examples=300)
def test_forged_entries_under_a_fitting_last_line_lead_to_integrity_error_and_nothing_else(
    data: st.DataObject,
) -> None:
    body = SAMPLE[: SAMPLE.rindex(b"]")]
    place = data.draw(st.integers(0, len(body)))
    cut = data.draw(st.integers(0, 8))
    new = data.draw(st.binary(max_size=8) | st.sampled_from([b"[" * 5000, b"9" * 5000, b"\n"]))

    try:
        found = read(closed(body[:place] + new + body[place + cut :]))
    except IntegrityError:
        return
    fields = json.loads(text_of(found))
    assert fields["entries"] == json.loads(SAMPLE)["entries"]  # only a header field can differ


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_arbitrary_bytes_lead_to_integrity_error_and_nothing_else(lines: list[bytes]) -> None:
    with pytest.raises(IntegrityError):
        decode(lines)


@pytest.mark.parametrize("length", range(0, len(SAMPLE), 7))
def test_a_manifest_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(IntegrityError):
        read(SAMPLE[:length])


def test_every_flipped_bit_is_refused() -> None:
    text = text_of(Manifest.of(Header(name="n", step=1), [file("a")]))
    for bit in range(len(text) * 8):
        broken = bytearray(text)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            read(bytes(broken))


# ---------------------------------------------------------------- limits


def test_more_entries_than_allowed_are_neither_written_nor_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [file(str(number)) for number in range(4)]
    text = text_of(Manifest.of(Header(), found))
    monkeypatch.setattr(manifest_module, "MAX_ENTRIES", 3)

    with pytest.raises(RefusedError, match="4 files is refused: 3 is the limit"):
        Manifest.of(Header(), found)
    with pytest.raises(IntegrityError, match="more than 3 entries"):
        read(text)


def test_the_most_entries_allowed_are_written_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "MAX_ENTRIES", 3)
    manifest = Manifest.of(Header(), [file(str(number)) for number in range(3)])

    assert read(text_of(manifest)) == manifest


def test_a_text_that_no_reader_would_accept_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = Manifest.of(Header(name="run"), [file("x" * 200 + str(n)) for n in range(20)])
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", 4096)

    with pytest.raises(RefusedError, match="the manifest of run would have more than 4096 bytes"):
        text_of(manifest)


def test_a_file_too_large_for_one_line_is_refused_by_name() -> None:
    huge = FileEntry("model.bin", MAX_FILE_BYTES + 1, digest(b""))

    with pytest.raises(RefusedError, match=r"model\.bin refused: it has 16492674416641 bytes"):
        Manifest.of(Header(), [huge])


def test_the_line_of_the_largest_file_fits_the_limit_of_a_line() -> None:
    longest_path = 6 * 4095  # every character escaped
    numbers = 200

    assert chunk_count(MAX_FILE_BYTES) * 67 + longest_path + numbers < 64 * 1024**2


@pytest.mark.parametrize("step", [-1, 2**63])
def test_a_step_that_cannot_be_read_again_is_refused(step: int) -> None:
    with pytest.raises(RefusedError, match="step"):
        Manifest.of(Header(step=step), [])


def test_a_header_is_read_from_the_first_line_with_or_without_its_end() -> None:
    line = SAMPLE.splitlines(keepends=True)[0]

    assert read_header(line) == read_header(line.rstrip(b"\n")) == read(SAMPLE).header


def test_a_header_of_the_largest_size_is_read_and_one_byte_more_is_refused() -> None:
    def text(length: int) -> bytes:
        return text_of(Manifest.of(Header(tool="x" * length), []))

    spare = MAX_HEADER_BYTES - len(text(0).splitlines(keepends=True)[0])

    assert read(text(spare)).header.tool == "x" * spare
    with pytest.raises(IntegrityError):
        read(text(spare + 1))


def test_a_newer_version_says_to_upgrade_and_to_delete_nothing() -> None:
    with pytest.raises(FormatError, match="upgrade asyncsync, and delete nothing"):
        read_header(b'{"asyncsync":2,"anything":"else"}\n')


def test_reading_is_lazy_so_that_a_wrong_start_costs_nothing() -> None:
    lines = accumulate(iter(int, 1), lambda line, _: line, initial=b"no manifest\n")

    with pytest.raises(IntegrityError):
        decode(lines)


# ---------------------------------------------------------------- values


def test_lookups_by_kind() -> None:
    manifest = Manifest.of(
        Header(), [NestedEntry("n", digest(b"")), file("b"), DirectoryEntry("d"), file("a")]
    )

    assert list(manifest.files) == ["a", "b"]
    assert [entry.path for entry in manifest.directories] == ["d"]
    assert [entry.path for entry in manifest.nested] == ["n"]
    assert (manifest.header.files, manifest.header.size_bytes) == (2, 14)


def test_the_digest_of_a_chunk_is_the_files_own_when_there_is_one() -> None:
    large = FileEntry("l", CHUNK_BYTES + 1, "", chunks=("one", "two"))

    assert file("a").chunk_digest(0) == digest(b"content")
    assert [large.chunk_digest(0), large.chunk_digest(1)] == ["one", "two"]


def test_a_file_below_a_nested_commit_is_refused() -> None:
    with pytest.raises(RefusedError, match="ckpt refused: it is a commit of its own"):
        Manifest.of(Header(), [NestedEntry("ckpt", digest(b"")), file("ckpt/w")])
