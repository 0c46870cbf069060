"""Servers that somebody hostile runs: a web server, a hub and a store that lead wherever they are told to, and a proxy.

One handler does it all, on every port that it is given and at every address: `Lure.answers` says what a path answers.
"""

import hashlib
import json
import socket
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILE = b'{"a": "model"}'
COMMIT = "c" * 40


class Lure:
    """`answers`: {path prefix: (status, [(header, value), ...])} for what is to be led away; a path ending in .json is else the
    one file. `honest`: repositories of the hub whose digests are true. `heads` and `proxied` remember what was asked for: (path,
    headers), and targets of proxy requests."""

    def __init__(self, work, ports=(80,), tls_ports=(443,), proxy_ports=()):
        self.answers, self.heads, self.proxied, self.honest = {}, [], [], set()
        # Imported late: only this needs the package behind it.
        from . import authority

        signer, self.authority = authority.Authority(), Path(work) / "authority.pem"
        self.authority.write_bytes(signer.pem)
        context = signer.server(work, "lure.example", "two.example", "hub.example", "cdn.hf.co")
        for port in (*ports, *tls_ports, *proxy_ports):
            server = _Server(("::", port), _Answer)
            server.lure, server.proxy = self, port in proxy_ports
            if port in tls_ports:
                # With the handshake in the accepting thread, a client that hangs would hang all.
                server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 256

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request, client_address):
        """Clients that go away are what a guard is about."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 10

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        self.server.lure.proxied.append(self.path)
        self._send(403, [], b"")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        lure = self.server.lure
        if self.server.proxy:
            lure.proxied.append(self.path)
        url = urllib.parse.urlsplit(self.path)
        lure.heads.append((url.path, dict(self.headers)))
        prefix = next((prefix for prefix in _prefixes(url.path) if prefix in lure.answers), None)
        if prefix is not None:
            status, headers = lure.answers[prefix]
            body = self._tree(url.path) if status == 200 else b""
            return self._send(status, headers, body)
        if "/revision/" in url.path:
            return self._send(200, [], json.dumps({"sha": COMMIT}).encode())
        if "/tree/" in url.path:
            return self._send(200, [], self._tree(url.path))
        if url.path.endswith(".json") and not url.path.endswith(("manifest.json", "index.json")):
            return self._send(200, [("ETag", '"tag"')], FILE)
        return self._send(404, [], b"")

    def _tree(self, path):
        """A repository's one file. Of a hostile one the digest is of nothing: what is known already is not fetched."""
        repository = path.split("/")[4]
        content = FILE if repository in self.server.lure.honest else repository.encode()
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(FILE)}
        return json.dumps([{"type": "file", "path": "config.json", "size": len(FILE), "oid": "f" * 40, "lfs": lfs}]).encode()

    def _send(self, status, headers, body):
        wanted = self.headers.get("Range", "")
        if status == 200 and body == FILE and wanted.startswith("bytes="):
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            status, body = 206, FILE[first : last + 1]
            headers = [*headers, ("Content-Range", f"bytes {first}-{min(last, len(FILE) - 1)}/{len(FILE)}")]
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        # Each request then resolves its name anew, which is when it can change.
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _prefixes(path):
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 1, -1)]
