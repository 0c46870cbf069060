"""An upstream that says back whatever it was sent, in every way that servers do; and a hub that wants a token and signs its redirects."""

import base64
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Clients leave when they have seen enough."""


class _Upstream:
    """A server on the loopback address until closed; a context manager. `seen`: every request line and header, as bytes."""

    def __init__(self, handler):
        self.seen, self.requests, self._lock = bytearray(), 0, threading.Lock()
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.upstream = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def note(self, text):
        with self._lock:
            self.requests += 1
            self.seen += text.encode() + b"\n"


class Echo(_Upstream):
    """Answers everything as `mode` says: a status ("401", "500"), "garbage" (200 that is not what was asked for), "redirect" (to
    a signed URL here, which is then refused), or "leave" (the connection ends)."""

    MODES = ("401", "403", "404", "400", "500", "garbage", "redirect", "leave")

    def __init__(self, signature):
        self.mode, self.signature = "401", signature
        super().__init__(_Echoes)


class _Echoes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def _answer(self):
        upstream = self.server.upstream
        length = int(self.headers.get("Content-Length") or 0)
        sent = f"{self.requestline}\n{self.headers}\n{self.rfile.read(length).decode(errors='replace')}"
        upstream.note(sent)
        mode = upstream.mode
        if self.command == "CONNECT":
            mode = "407"
        if mode == "leave":
            self.close_connection = True
            return
        status = {"garbage": 200, "redirect": 302}.get(mode) or int(mode)
        headers = {"Content-Type": "text/plain"}
        if mode == "redirect":
            if "/sink" in self.path:
                status = 403
            else:
                headers["Location"] = f"/sink{self.path.split('?')[0]}?X-Amz-Signature={upstream.signature}&X-Amz-Security-Token={upstream.signature}"
        said = {name.lower(): value for name, value in self.headers.items()}
        for name in ("authorization", "proxy-authorization", "x-amz-security-token"):
            if name in said:
                # Where clients look for the reason.
                headers["X-Error-Message"] = headers["WWW-Authenticate"] = f"bad {said[name]}"
        lines = " ".join(said.values())
        body = {
            "error": f"you sent {lines} for {upstream.url}{self.path}",
            "echo": base64.b64encode(sent.encode()).decode(),
            "hex": lines.encode().hex(),
            **said,
        }
        if mode == "garbage":
            # A string where parsers expect an object: their word quotes it.
            first = said.get("authorization") or said.get("x-amz-security-token") or sent
            body = first if upstream.requests % 2 else {"sha": first, "files": [first], "manifest": first}
        text = json.dumps(body).encode()
        self.send_response(status, f"refused {said.get('authorization', '')}"[:200])
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = do_CONNECT = do_DELETE = _answer


class Hub(_Upstream):
    """Any repository is the files below `directory`, for whoever shows one of `tokens`. Large files are at `storage` (a URL whose
    server has the same directory), behind a signature."""

    LARGE = 1 << 20

    def __init__(self, directory, tokens, storage, signature):
        self.directory, self.tokens, self.storage, self.signature = Path(directory), tokens, storage, signature
        super().__init__(_Hub)

    def tree(self):
        entries = []
        for path in sorted(self.directory.rglob("*")):
            if not path.is_file():
                continue
            data = path.read_bytes()
            entry = {"type": "file", "path": str(path.relative_to(self.directory)), "size": len(data)}
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if len(data) >= self.LARGE:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
            entries.append(entry)
        return entries


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def _send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _answer(self):
        hub = self.server.upstream
        hub.note(f"{self.requestline}\n{self.headers}")
        if (self.headers.get("Authorization") or "").removeprefix("Bearer ") not in hub.tokens:
            return self._send(401, X_Error_Code="RepoNotFound")
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if "/revision/" in path:
            return self._send(200, json.dumps({"sha": "c" * 40}).encode())
        if "/tree/" in path:
            return self._send(200, json.dumps(hub.tree()).encode())
        name = path.split(f"/resolve/{'c' * 40}/")[-1]
        data = (hub.directory / name).read_bytes()
        if len(data) >= hub.LARGE:
            query = f"X-Amz-Signature={hub.signature}&X-Amz-Security-Token={hub.signature}"
            return self._send(302, Location=f"{hub.storage}/{name}?{query}")
        wanted = self.headers.get("Range", "")
        if not wanted.startswith("bytes="):
            return self._send(200, data)
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        return self._send(206, part, Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(data)}")

    do_GET = do_HEAD = _answer
