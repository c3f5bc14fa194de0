"""The servers of the benchmarks: rclone, which is an S3 server, and nginx, which looks like one.

Both keep what they keep on tmpfs. The nginx sink costs as little as a server can: a plain PUT
becomes a file, so that records, manifests and small objects can be read again; the parts of
multipart uploads are read and dropped. A checksum that comes with a body is sent back unseen.
It lists what a file next to the bucket says, and ignores signatures and conditions.
"""

from __future__ import annotations

import contextlib
import getpass
import grp
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.sax.saxutils import escape

from tests.servers import Server, free_port, program, s3_server, serving

__all__ = [
    "count_requests",
    "drop",
    "has_nginx",
    "nginx",
    "nginx_version",
    "rclone",
    "stalling",
    "write_listing",
]

ECHO = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")
_LISTS = "-/list"
_FLUSH_S = 0.5  # the log is written every 100 ms
_KEYS = "AKIATESTTESTTESTTEST,secret-key-for-tests-only"
_LIST = "<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>"

_CONFIG = """
load_module {echo};
user {user} {group};
worker_processes 2;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log {folder}/access.log combined buffer=64k flush=100ms;
    default_type application/xml;
    log_not_found off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_max_body_size 0;
    client_body_temp_path {folder}/body;
    client_body_buffer_size 64m;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map "$request_method $uri?$args" $route {{
        default "";
        "~^PUT .*[?&]partNumber=" /-/part;
        "~^POST .*[?&]uploads(=|&|$)" /-/create;
        "~^POST .*[?&]uploadId=" /-/complete;
        "~^DELETE .*[?&]uploadId=" /-/gone;
        "~^GET .*[?&]uploads(=|&|$)" /-/uploads;
        "~^GET .*[?&]location(=|&|$)" /-/location;
        "~^GET /(?<bucket>[^/?]+)/?\\?" /-/list/$bucket;
        "~^(PUT|HEAD) /[^/?]+/?\\?" /-/bucket;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {files};
        error_page 404 /-/missing;
        add_header x-amz-request-id 0 always;
        add_header ETag $put_tag always;
        add_header x-amz-checksum-crc32 $http_x_amz_checksum_crc32 always;
        add_header x-amz-checksum-algorithm $http_x_amz_checksum_algorithm always;
        add_header x-amz-checksum-type $http_x_amz_checksum_type always;
        if ($route) {{ rewrite ^ $route last; }}
        location / {{ dav_methods PUT DELETE; create_full_put_path on; }}
        location = /-/part {{ echo_read_request_body; echo_status 200; echo -n ""; }}
        location = /-/create {{ return 200 "<InitiateMultipartUploadResult><UploadId>1</UploadId>\
</InitiateMultipartUploadResult>"; }}
        location = /-/complete {{ return 200 "<CompleteMultipartUploadResult><ETag>&quot;sink-1\
&quot;</ETag></CompleteMultipartUploadResult>"; }}
        location = /-/uploads {{ return 200 "<ListMultipartUploadsResult/>"; }}
        location = /-/location {{ return 200 "<LocationConstraint/>"; }}
        location = /-/bucket {{ return 200; }}
        location = /-/gone {{ return 204; }}
        location = /-/missing {{ return 404 "<Error><Code>NoSuchKey</Code></Error>"; }}
        location /-/list/ {{ root {folder}; try_files $uri.xml /-/list/.none.xml =404; }}
    }}
    map $request_method $put_tag {{ default $sent_http_etag; PUT '"sink"'; }}
}}
"""


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[Server]:
    """`rclone serve s3` at its defaults, without a cache; checks signatures and MD5."""
    files, port = folder / "objects", free_port()
    files.mkdir(parents=True)
    command = [program("rclone"), "serve", "s3", str(files), "--addr", f"127.0.0.1:{port}"]
    command += ["--vfs-cache-mode", "off", "--auth-key", _KEYS, "--config", f"{folder}/none.conf"]
    with serving(command, port, folder):
        yield s3_server(f"http://127.0.0.1:{port}", files=files)


def has_nginx() -> bool:
    return ECHO.exists() and nginx_path() is not None


def nginx_path() -> str | None:
    return shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[Server]:
    """The sink, in two worker processes."""
    files, port = folder / "objects", free_port()
    for path in (files, folder / _LISTS):
        path.mkdir(parents=True)
    (folder / _LISTS / ".none.xml").write_text(_LIST.format(""))
    text = _CONFIG.format(
        echo=ECHO,
        user=getpass.getuser(),
        group=grp.getgrgid(os.getgid()).gr_name,
        folder=folder,
        files=files,
        port=port,
    )
    (folder / "nginx.conf").write_text(text)
    command = [nginx_path() or "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with serving(command, port, folder):
        yield s3_server(f"http://127.0.0.1:{port}", files=files)


def drop(server: Server, bucket: str) -> None:
    """Remove what a bucket holds behind the server's back; the name is not used again."""
    assert server.files is not None
    shutil.rmtree(server.files / bucket, ignore_errors=True)


def write_listing(server: Server, bucket: str) -> None:
    """Let the sink list what lies in a bucket as files, in one page."""
    assert server.files is not None
    root = server.files / bucket
    items = [
        _listed(path.relative_to(root).as_posix(), path.stat())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]
    listing = server.files.parent / _LISTS / f"{bucket}.xml"
    listing.write_text(_LIST.format("".join(items)))


def _listed(key: str, stat: os.stat_result) -> str:
    """An object as a listing has it; the tag is the one that nginx makes."""
    return (
        f"<Contents><Key>{escape(key)}</Key><Size>{stat.st_size}</Size><ETag>&quot;"
        f"{int(stat.st_mtime):x}-{stat.st_size:x}&quot;</ETag>"
        "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
    )


def count_requests(log: Path, since: int) -> dict[str, float]:
    """What the sink was asked for, from byte `since` of its log: requests, writes and lists."""
    time.sleep(_FLUSH_S)
    asked = [line.split('"')[1] for line in log.read_bytes()[since:].decode().splitlines()]
    lists = [text for text in asked if text.startswith("GET ") and "list-type=" in text]
    writes = [text for text in asked if not text.startswith(("GET ", "HEAD "))]
    return {"requests": len(asked), "writes": len(writes), "lists": len(lists)}


@contextlib.contextmanager
def stalling(server: Server, after_bytes: int) -> Iterator[Server]:
    """The same server behind a relay that reads nothing more once so many bytes have gone in."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=256))
        left, turn, stalled = [after_bytes], threading.Lock(), threading.Event()

        def pump(origin: socket.socket, target: socket.socket, *, upward: bool) -> None:
            with contextlib.suppress(OSError):
                while piece := origin.recv(65536):
                    target.sendall(piece)
                    with turn:
                        left[0] -= len(piece) if upward else 0
                    if left[0] <= 0:
                        stalled.wait()
                        return
                target.shutdown(socket.SHUT_WR)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    server_side = socket.create_connection(("127.0.0.1", server.port))
                    stack.callback(client.close)
                    stack.callback(server_side.close)
                    ways = ((client, server_side, True), (server_side, client, False))
                    for origin, target, upward in ways:
                        call = partial(pump, origin, target, upward=upward)
                        threading.Thread(target=call, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield s3_server(f"http://127.0.0.1:{listener.getsockname()[1]}", files=server.files)
        finally:
            stalled.set()
            listener.shutdown(socket.SHUT_RDWR)


def nginx_version() -> str:
    said = subprocess.run(
        [nginx_path() or "nginx", "-v"], capture_output=True, text=True, check=False
    )
    return said.stderr.strip().rpartition("/")[2]
