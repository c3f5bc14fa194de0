"""Writes the test vectors of docs/formats/manifest.md.

Made from the text of that page alone: it uses json and blake3 and nothing of asyncsync. Run it
after a change of the format, and read the difference: `python tests/vectors/manifest/generate.py`.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from blake3 import blake3

CHUNK_BYTES = 16 * 1024 * 1024
ATTEMPT = "0123456789abcdef" * 2
WRITER = blake3(b"a machine\n/a/directory").hexdigest()

Wire = str | list[str]
Line = list[Any]


def compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def wire(name: bytes) -> Wire:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return [base64.b64encode(name).decode()]


def digest(data: bytes) -> str:
    return blake3(data).hexdigest()


def file(
    name: bytes, content: bytes = b"content", mode: int = 0o644, mtime_ns: int = 10**18
) -> Line:
    starts = range(0, max(1, len(content)), CHUNK_BYTES)
    chunks = [digest(content[start : start + CHUNK_BYTES]) for start in starts]
    if len(chunks) == 1:
        return ["f", wire(name), len(content), chunks[0], mode, mtime_ns]
    whole = digest(b"asyncsync chunk list v1\n" + b"".join(map(bytes.fromhex, chunks)))
    return ["f", wire(name), len(content), whole, mode, mtime_ns, chunks]


def identity(lines: list[Line]) -> str:
    """Of the lines without times and chunks, each with a line feed."""
    return digest(b"".join(compact(line[:5]) + b"\n" for line in lines))


def header(lines: list[Line], **changes: object) -> dict[str, object]:
    files = [line for line in lines if line[0] == "f"]
    fields = {
        "asyncsync": 1,
        "digest": "blake3",
        "chunk_bytes": CHUNK_BYTES,
        "kind": "sealed",
        "name": "checkpoint_000010",
        "step": 10,
        "epoch": 0,
        "sequence": 1,
        "attempt": ATTEMPT,
        "writer": WRITER,
        "tool": "asyncsync 0.1.0",
        "created": 1795219200.125,
        "parent": None,
        "part_of": None,
        "files": len(files),
        "size_bytes": sum(line[2] for line in files),
        "identity": identity(lines),
    }
    return fields | changes


def first_line(fields: dict[str, object]) -> bytes:
    return compact(fields)[:-1] + b',"entries":[\n'


def closed(body: bytes) -> bytes:
    """Add the last line, with the digest of everything before it."""
    return body + b'],"self":"' + digest(body).encode() + b'"}\n'


def document(lines: list[Line], **changes: object) -> bytes:
    texts = b",\n".join(map(compact, lines)) + (b"\n" if lines else b"")
    return closed(first_line(header(lines, **changes)) + texts)


def raw_document(entries: bytes, lines: list[Line] | None = None) -> bytes:
    """Entry lines as given under a header that fits `lines`, and the right last line."""
    return closed(first_line(header(lines or [file(b"a")])) + entries)


def valid() -> dict[str, bytes]:
    odd = [
        b"\tcontrol\x01\x7f\n and newline",
        b" leading and trailing . ",
        b'"quotes" \\ backslash / '.replace(b"/", b"'"),
        b"#?%+&;=~$HOME",
        b"-rf",
        b"latin-1 caf\xe9",
        b"line separator \xe2\x80\xa8",
        b"nfc caf\xc3\xa9",
        b"nfc cafe\xcc\x81",
        b"sub/a",
        b"sub-a",  # "-" is before "/"
        b"sub0a",  # "0" is behind it
        b"x" * 255,
        b"\xf0\x9f\x8c\xb1",
        b"\xff",
    ]
    named = [file(name, name) for name in sorted(odd)]
    large = bytes(CHUNK_BYTES) + b"asyncsync\n"
    exact = file(b"exactly one chunk", bytes(CHUNK_BYTES))
    nested = [
        file(b"README", b"a tree with commits inside\n"),
        ["d", "empty", 0o755],
        ["n", "inner/checkpoint_000001", identity([])],
    ]
    deep = [file(b"/".join([b"d"] * 64), b"64 levels")]
    return {
        "empty": document([]),
        "names": document(named),
        "chunks": document(sorted([exact, file(b"large", large, 0o755)], key=str)),
        "nested": document(nested, kind="rolling", name="trial_1", step=None, sequence=7),
        "replaced": document([file(b"w", b"")], parent=identity(nested), epoch=2, sequence=2),
        "partial": document([file(b"model/w", b"weights")], part_of=identity(named)),
        "raw-name": document([file(b"w", b"")], name=wire(b"run \xff")),
        "deep": document(deep),
        "unknown-field": document([file(b"a")], a_later_field={"of": ["version", 1]}),
    }


def invalid() -> dict[str, tuple[bytes, str, str]]:
    """Name -> text, class of the error, and what its message says."""
    damage, newer = "IntegrityError", "FormatError"
    a, b = file(b"a"), file(b"b", b"other")
    good = document([a, b])
    lines = good.splitlines(keepends=True)
    large = file(b"large", bytes(CHUNK_BYTES + 1))
    wrong_chunks = [*large[:6], large[6][::-1]]
    one = compact(a)

    def line(**at: object) -> bytes:
        """A document of one file whose line has other values at these places."""
        fields = list(a)
        for place, value in at.items():
            fields[int(place.removeprefix("at"))] = value
        return document([fields])

    def named(name: Wire) -> tuple[bytes, str, str]:
        return document([["f", name, *a[2:]]]), damage, "refused"

    return {
        "bad-self-digest": (good.replace(b'"self":"', b'"self":"0')[:-4] + b'"}\n', damage, "own"),
        "flipped-bit": (good.replace(b'"a"', b'"c"'), damage, "sorted"),
        "flipped-bit-in-time": (good.replace(b"1" + b"0" * 18, b"2" + b"0" * 18), damage, "own"),
        "nothing": (b"", damage, "first line"),
        "not-json": (b"a file of somebody else\n", damage, "first line"),
        "truncated-before-end": (b"".join(lines[:-1]), damage, "truncated"),
        "truncated-in-a-line": (good[: len(lines[0]) + 40], damage, "damaged"),
        "truncated-in-the-header": (good[:100], damage, "first line"),
        "truncated-line-end": (good[:-1], damage, "own"),
        "trailing-garbage": (good + b"x", damage, "own"),
        "trailing-line": (good + b"\n", damage, "own"),
        "newer-version": (document([a], asyncsync=2), newer, "format version 2"),
        "much-newer-version": (b'{"asyncsync":17}\nsomething else\n', newer, "format version 17"),
        "huge-version": (document([a], asyncsync=10**30), damage, "first line"),
        "version-0": (document([a], asyncsync=0), damage, "first line"),
        "version-is-text": (document([a], asyncsync="1"), damage, "first line"),
        "other-digest": (document([a], digest="sha256"), newer, "sha256"),
        "other-chunks": (document([a], chunk_bytes=1024), newer, "1024"),
        "duplicate": (document([a, a]), damage, "double"),
        "unsorted": (document([b, a]), damage, "sorted"),
        "sorted-as-text": (document([file(b"sub/a"), file(b"sub-a")]), damage, "sorted"),
        "parent": named("../x"),
        "parent-inside": named("a/../../x"),
        "dot": named("./x"),
        "absolute": named("/etc/passwd"),
        "double-slash": named("x//y"),
        "slash-at-end": named("x/"),
        "empty-name": named(""),
        "nul": named("a\0b"),
        "our-manifest": named("sub/.asyncsync.json"),
        "reserved": named(".asyncsync-anything"),
        "our-holder": named(f"sub/.victim.asyncsync-tmp-{ATTEMPT}/tree/x"),
        "component-of-256": named("x" * 256),
        "component-of-300": named("x" * 300),
        "path-of-4096": named("/".join(["x" * 240] * 17)[:4096]),
        "depth-65": named("/".join(["d"] * 65)),
        "file-and-directory": (
            document([a, file(b"a/b")]), damage, "a file and a directory"
        ),
        "file-inside-a-commit": (
            document([["n", "a", identity([])], file(b"a/b")]), damage, "commit of its own"
        ),
        "directory-twice": (document([["d", "a", 0o755], ["d", "a", 0o755]]), damage, "double"),
        "wrong-number-of-files": (document([a], files=2), damage, "totals"),
        "wrong-size": (document([a], size_bytes=8), damage, "totals"),
        "wrong-identity": (document([a], identity=identity([b])), damage, "totals"),
        "no-identity": (document([a], identity=""), damage, "digest is malformed"),
        "wrong-chunk-list": (document([wrong_chunks]), damage, "does not match its chunks"),
        "chunks-missing": (document([large[:6]]), damage, "number of chunks"),
        "chunks-unneeded": (document([[*a, [a[3]]]]), damage, "number of chunks"),
        "empty-chunk-list": (document([[*a, []]]), damage, "canonical"),
        "digest-too-short": (line(at3="ab"), damage, "digest is malformed"),
        "digest-in-capitals": (line(at3=digest(b"x").upper()), damage, "digest is malformed"),
        "digest-not-hexadecimal": (line(at3="g" * 64), damage, "digest is malformed"),
        "negative-size": (line(at2=-1), damage, "size"),
        "huge-size": (line(at2=10**30), damage, "size"),
        "larger-than-any-file": (line(at2=15 * 2**40 + 1), damage, "size"),
        "size-is-a-fraction": (line(at2=7.0), damage, "int"),
        "size-is-text": (
            raw_document(one.replace(b",7,", b',"7",') + b"\n"), damage, "int"
        ),
        "setuid": (line(at4=0o4755), damage, "mode"),
        "negative-mode": (line(at4=-1), damage, "mode"),
        "huge-time": (line(at5=10**30), damage, "time"),
        "huge-step": (document([a], step=2**63), damage, "step"),
        "negative-step": (document([a], step=-1), damage, "step"),
        "step-of-5000-digits": (
            document([a]).replace(b'"step":10', b'"step":1' + b"0" * 5000), damage, "damaged"
        ),
        "created-is-nan": (document([a], created=float("nan")), damage, "malformed"),
        "created-is-infinite": (
            document([a]).replace(b"1795219200.125", b"1e999"), damage, "out of range"
        ),
        "kind-unknown": (document([a], kind="frozen"), damage, "kind"),
        "field-twice": (
            document([a]).replace(b'"epoch":0', b'"epoch":0,"epoch":1'), damage, "canonical"
        ),
        "space-in-header": (document([a]).replace(b'"step":', b'"step": '), damage, "canonical"),
        "space-in-entry": (
            raw_document(one.replace(b",", b", ") + b"\n"), damage, "canonical"
        ),
        "escaped-needlessly": (
            raw_document(one.replace(b'"a"', b'"\\u0061"') + b"\n"), damage, "canonical"
        ),
        "text-as-base64": (raw_document(one.replace(b'"a"', b'["YQ=="]') + b"\n"), damage, "canon"),
        "base64-with-loose-bits": (
            document([["f", ["/x=="], *a[2:]]]), damage, "canonical"
        ),
        "not-base64": (document([["f", ["!"], *a[2:]]]), damage, "damaged"),
        "two-names": (document([["f", ["/w==", "/w=="], *a[2:]]]), damage, "damaged"),
        "one-value-more": (
            raw_document(one[:-1] + b",[],0]\n"), damage, "canonical"
        ),
        "unknown-entry": (document([["x", "a", 1]]), damage, "damaged"),
        "no-comma": (raw_document(one + b"\n" + compact(b) + b"\n", [a, b]), damage, "comma"),
        "comma-at-end": (raw_document(one + b",\n"), damage, "comma"),
        "carriage-return": (raw_document(one + b"\r\n"), damage, "canonical"),
        "lone-surrogate": (raw_document(one.replace(b'"a"', b'"\\udc80"') + b"\n"), damage, "dam"),
        "surrogate-bytes": (
            raw_document(one.replace(b'"a"', b'"\xed\xb2\x80"') + b"\n"), damage, "damaged"
        ),
        "not-utf-8": (raw_document(one.replace(b'"a"', b'"\xff"') + b"\n"), damage, "damaged"),
        "nesting-bomb": (
            document([a]).replace(b'"epoch":0', b'"epoch":0,"z":' + b"[" * 30_000),
            damage, "damaged",
        ),
        "closed-nesting-bomb": (
            document([a]).replace(
                b'"epoch":0', b'"epoch":0,"z":' + b"[" * 30_000 + b"]" * 30_000
            ),
            damage, "damaged",
        ),
        "nesting-bomb-in-entry": (raw_document(b"[" * 20_000 + b"\n"), damage, "damaged"),
        "header-of-70-kib": (document([a], tool="x" * 70_000), damage, "first line"),
    }  # fmt: skip


def main() -> None:
    folder = Path(__file__).parent
    for old in folder.glob("*.json"):
        old.unlink()
    index: dict[str, dict[str, dict[str, object]]] = {"valid": {}, "invalid": {}}
    for name, text in valid().items():
        (folder / f"valid-{name}.json").write_bytes(text)
        fields = json.loads(text)
        index["valid"][f"valid-{name}.json"] = {
            "identity": fields["identity"],
            "entries": len(fields["entries"]),
            "files": fields["files"],
            "size_bytes": fields["size_bytes"],
        }
    for name, (text, error, says) in invalid().items():
        (folder / f"invalid-{name}.json").write_bytes(text)
        index["invalid"][f"invalid-{name}.json"] = {"error": error, "says": says}
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
