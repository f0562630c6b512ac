"""A real HTTP server on this machine that serves files, and misbehaves on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Files:
    """What is served, how, and what was asked for."""

    contents: dict[str, bytes] = field(default_factory=dict)  # path → content
    cut_after: list[int] = field(default_factory=list)  # bytes sent of each answer, then cut
    statuses: list[int] = field(default_factory=list)  # of the next answers, instead of a file
    ranges: str = "honoured"  # or "ignored", "wrong", "unknown total"
    length: bool = True  # tell Content-Length
    redirect: str | None = None
    silent_seconds: float = 0.0  # before each answer
    block_bytes: int = 65536
    pause_seconds: float = 0.0  # after each block
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, range
    sent_bytes: int = 0
    address: str = ""


@contextmanager
def serve(files: Files) -> Iterator[str]:
    """Serve until the end; the address, with a slash."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, files)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that left is part of the tests

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        files.address = f"http://127.0.0.1:{server.server_address[1]}/"
        try:
            yield files.address
        finally:
            server.shutdown()
            thread.join()


def answer(request: BaseHTTPRequestHandler, files: Files) -> None:
    wanted = request.headers.get("Range")
    files.asked.append((request.path, wanted))
    time.sleep(files.silent_seconds)
    if files.redirect is not None:
        request.send_response(302)
        request.send_header("Location", files.redirect)
        request.end_headers()
        return
    if files.statuses:
        request.send_error(files.statuses.pop(0))
        return
    if request.path not in files.contents:
        request.send_error(404)
        return
    content = files.contents[request.path]
    start, status = 0, 200
    if wanted is not None and files.ranges != "ignored":
        start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
        if start >= len(content):
            request.send_error(416)
            return
        if files.ranges == "wrong":
            start = 0
    request.send_response(status)
    if status == 206:
        total = "*" if files.ranges == "unknown total" else len(content)
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{total}")
    if files.length:
        request.send_header("Content-Length", str(len(content) - start))
    request.end_headers()
    end = len(content)
    if files.cut_after:
        end = min(end, start + files.cut_after.pop(0))
    for position in range(start, end, files.block_bytes):
        block = content[position : min(position + files.block_bytes, end)]
        request.wfile.write(block)
        files.sent_bytes += len(block)
        time.sleep(files.pause_seconds)
    request.close_connection = True
