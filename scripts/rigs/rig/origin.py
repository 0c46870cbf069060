"""An HTTP origin that counts: a directory, with ranges, strong entity tags, conditions, and faults to order.

It is deliberately another program than preheat's own test origins: what both misread alike would stay unseen.
"""

import dataclasses
import hashlib
import os
import socket
import struct
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_CHUNK = 256 << 10


@dataclasses.dataclass
class Request:
    """What a fault can look at."""

    number: int
    method: str
    path: str
    start: int
    end: int
    """First byte, and the one past the last, of what is asked for."""


@dataclasses.dataclass
class Fault:
    """What goes wrong with one answer. Unset fields leave their part of it alone."""

    status: int | None = None
    """Answers with this status and no body instead."""
    headers: dict = dataclasses.field(default_factory=dict)
    """Further header fields, such as Retry-After; they replace those of the same name."""
    delay: float = 0.0
    """Seconds before the answer."""
    body_bytes: int | None = None
    """Ends the connection after so many bytes of the body."""
    reset: bool = False
    """Ends it with a TCP reset instead of an orderly end."""
    flip_at: int | None = None
    """Inverts the byte at this offset of the file."""
    ignore_range: bool = False
    """Answers 200 with the whole file to a range request."""


class Origin:
    """Serves the files below `directory` on the loopback address until closed; a context manager.

    `rate`: body bytes a second for each connection. `total_rate`: of all connections together, in equal turns. `fault`: called
    with every `Request`, answers a `Fault` or None. `tls`: a server's context, for HTTPS.
    Counters: `body_bytes`, `requests` (of all methods), `by_path` (body bytes), `connections`, `most_at_once` (answers),
    `at_once` (answers now).
    """

    def __init__(self, directory, rate=None, fault=None, port=0, total_rate=None, tls=None):
        self.directory = Path(directory).resolve()
        self.rate, self.fault, self.total_rate = rate, fault, total_rate
        self._turn = threading.Lock()
        self._next = 0.0
        self._lock = threading.Lock()
        self._tags = {}
        self.reset_counters()
        self._server = _Server(("127.0.0.1", port), _Answer)
        self._server.origin = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        if tls:
            self.url = f"https://127.0.0.1:{self.port}"
            # The handshake belongs to the answering thread: in the accepting one a silent client would stop all others.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Stops listening; answers in flight run out with the process."""
        self._server.shutdown()
        self._server.server_close()

    def reset_counters(self):
        """Sets every counter to zero."""
        with self._lock:
            self.body_bytes = self.requests = self.connections = self.most_at_once = 0
            self.by_path = {}
            self.at_once = 0

    # What the handler needs of the origin.

    def _file(self, url_path):
        path = (self.directory / urllib.parse.unquote(urllib.parse.urlsplit(url_path).path).lstrip("/")).resolve()
        return path if path.is_relative_to(self.directory) and path.is_file() else None

    def _tag(self, path):
        """Strong: from the content, hashed once per size and modification time."""
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._tags:
            with open(path, "rb") as file:
                self._tags[key] = f'"{hashlib.file_digest(file, "sha256").hexdigest()[:32]}"'
        return self._tags[key]

    def _begin(self):
        with self._lock:
            self.requests += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            return self.requests

    def _end(self):
        with self._lock:
            self.at_once -= 1

    def _pace(self, count):
        """Waits for this connection's turn of the shared rate. A turn that comes late is not made up for: links do not either."""
        if self.total_rate:
            with self._turn:
                now = time.monotonic()
                self._next = max(self._next, now - 0.02) + count / self.total_rate
                wait = self._next - now
            if wait > 0:
                time.sleep(wait)

    def _sent(self, path, count):
        with self._lock:
            self.body_bytes += count
            self.by_path[path] = self.by_path.get(path, 0) + count


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A client that was killed is what rigs are about, and no news."""

    def process_request(self, request, client_address):
        with self.origin._lock:
            self.origin.connections += 1
        super().process_request(request, client_address)


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        origin = self.server.origin
        number = origin._begin()
        try:
            self._answer_file(origin, number, body)
        finally:
            origin._end()

    def _answer_file(self, origin, number, body):
        path = origin._file(self.path)
        size = path.stat().st_size if path else 0
        wanted = _range(self.headers.get("Range"), size)
        start, end = wanted or (0, size)
        fault = (origin.fault and origin.fault(Request(number, self.command, self.path, start, end))) or Fault()
        time.sleep(fault.delay)
        if fault.status is not None:
            return self._head(fault.status, {"Content-Length": "0"} | fault.headers)
        if path is None:
            return self._head(404, {"Content-Length": "0"})
        if fault.ignore_range:
            wanted, start, end = None, 0, size
        tag = origin._tag(path)
        headers = {"ETag": tag, "Accept-Ranges": "bytes"}
        condition = self.headers.get("If-Match")
        if condition not in (None, "*") and tag not in [part.strip() for part in condition.split(",")]:
            return self._head(412, headers | {"Content-Length": "0"})
        if wanted and start >= end:
            return self._head(416, headers | {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers |= {"Content-Length": str(end - start), "Content-Type": "application/octet-stream"}
        self._head(206 if wanted else 200, headers | fault.headers)
        if body:
            self._send(origin, path, start, end, fault)

    def _head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, origin, path, start, end, fault):
        stop = end if fault.body_bytes is None else min(end, start + fault.body_bytes)
        began, at = time.monotonic(), start
        with open(path, "rb") as file:
            while at < stop:
                chunk = bytearray(os.pread(file.fileno(), min(_CHUNK, stop - at), at))
                if not chunk:
                    # The file shrank since it was measured: the length announced can no longer be kept.
                    self.close_connection = True
                    return
                if fault.flip_at is not None and at <= fault.flip_at < at + len(chunk):
                    chunk[fault.flip_at - at] ^= 0xFF
                # Counted before it is sent: a killed client's last chunk counts as read, which errs on the strict side.
                origin._sent(self.path, len(chunk))
                origin._pace(len(chunk))
                self.connection.sendall(chunk)
                at += len(chunk)
                if origin.rate:
                    time.sleep(max(0.0, (at - start) / origin.rate - (time.monotonic() - began)))
        if stop < end:
            self.close_connection = True
            if fault.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()


def _range(header, size):
    """The half-open range of a single-range header; None when there is none, or one that may be ignored."""
    if not header or not header.startswith("bytes=") or "," in header:
        return None
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not (first or last) or not (first + last).isdigit():
        return None
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size
