"""The floor for moving a tree to another process: read, hash, send; receive, hash, write.

Nothing else: no request, no plan, no manifest, no flush. Pieces are small enough to stay in the
processor's cache, and both ends are plain loops.
"""

from __future__ import annotations

import socket
import ssl
import sys
from pathlib import Path

from blake3 import blake3

from asyncsync.peer.certificates import server_context

from .work import KIB, MIB

__all__ = ["receive", "send"]

_PIECE_BYTES = 256 * KIB
_CHUNK_BYTES = 16 * MIB


def send(folder: Path, port: int, tls: ssl.SSLContext | None = None) -> None:
    """Send all files below a folder, each by its name's length, name, size and bytes."""
    piece, host = memoryview(bytearray(_PIECE_BYTES)), "127.0.0.1"
    with socket.create_connection((host, port)) as plain:
        line = plain if tls is None else tls.wrap_socket(plain, server_hostname=host)
        for path in sorted(folder.rglob("*.bin")):
            name, left = path.name.encode(), path.stat().st_size
            line.sendall(len(name).to_bytes(4) + name + left.to_bytes(8))
            with path.open("rb", buffering=0) as file:
                hasher = blake3()
                while left:
                    count = file.readinto(piece[: min(left, _PIECE_BYTES)])
                    hasher.update(piece[:count])
                    line.sendall(piece[:count])
                    left -= count
                    if not left % _CHUNK_BYTES:
                        hasher.hexdigest()
                        hasher = blake3()
        line.sendall(bytes(4))
        line.recv(1)
        line.close()


def receive(folder: Path, tls: ssl.SSLContext | None = None) -> None:
    """Say on which port, and write what is sent there."""
    piece = memoryview(bytearray(_PIECE_BYTES))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        plain, _ = listener.accept()
    with plain if tls is None else tls.wrap_socket(plain, server_side=True) as line:
        while length := int.from_bytes(_exactly(line, 4)):
            name = _exactly(line, length).decode()
            left = int.from_bytes(_exactly(line, 8))
            with (folder / name).open("wb", buffering=0) as file:
                hasher = blake3()
                while left:
                    count = line.recv_into(piece[: min(left, _PIECE_BYTES)])
                    if not count:
                        raise EOFError("the sender has gone")
                    hasher.update(piece[:count])
                    file.write(piece[:count])
                    left -= count
                    if not left % _CHUNK_BYTES:
                        hasher.hexdigest()
                        hasher = blake3()
        line.sendall(b".")


def _exactly(line: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        data += line.recv(count - len(data))
    return bytes(data)


if __name__ == "__main__":
    receive(Path(sys.argv[1]), *(server_context(Path(file)) for file in sys.argv[2:]))
