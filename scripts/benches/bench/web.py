"""nginx as an origin: files of a tmpfs by sendfile, with what it sent and spent counted."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from rig import host, victim

from . import measure

_CONFIGURATION = """\
daemon off;
master_process on;
worker_processes {workers};
pid {work}/nginx.pid;
error_log {work}/error.log warn;
events {{ worker_connections 2048; }}
http {{
    log_format count '$status $body_bytes_sent $request_method $request_uri';
    access_log {work}/access.log count;
    sendfile {sendfile};
    tcp_nopush on;
    tcp_nodelay on;
    sendfile_max_chunk 2m;
    keepalive_requests 100000;
    default_type application/octet-stream;
    open_file_cache max=10000 inactive=600s;
    client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        listen 127.0.0.1:{storage_port} backlog=4096;
        root {root};
{locations}    }}
}}
"""


class Web:
    """Serves the directory `root` on the loopback address until closed; a context manager. `table`: see `sites`."""

    counts = True

    def __init__(self, work, root, workers=2, sendfile=True, table=None):
        self.work, self.root, self.port = Path(work), Path(root), host.free_port()
        # The same files under another address, as a hub's storage is another host than the hub.
        self.storage_port = host.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.work.mkdir(parents=True, exist_ok=True)
        self._options = {"workers": workers, "sendfile": "on" if sendfile else "off"}
        self._table = table or (lambda storage: {})
        self._read = self._bytes = self._requests = 0

    def __enter__(self):
        configuration = _CONFIGURATION.format(
            work=self.work,
            root=self.root,
            port=self.port,
            storage_port=self.storage_port,
            locations="".join(_location(path, answer) for path, answer in self._table(f"http://127.0.0.1:{self.storage_port}").items()),
            **self._options,
        )
        (self.work / "nginx.conf").write_text(configuration)
        command = ["nginx", "-c", self.work / "nginx.conf", "-p", self.work, "-e", self.work / "error.log"]
        # Workers must be able to read what only this user can.
        if os.geteuid() == 0:
            command += ["-g", "user root;"]
        self._process = victim.start(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                urllib.request.urlopen(self.url + "/", timeout=1).close()
            except urllib.error.HTTPError:
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"nginx does not start:\n{(self.work / 'error.log').read_text()}") from None
                time.sleep(0.01)
            else:
                break
        while len(children := self._children()) < self._options["workers"]:
            time.sleep(0.01)
        self.processes = [self._process.pid, *children]
        return self

    def _children(self):
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return list(map(int, path.read_text().split()))

    def __exit__(self, *_):
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        finally:
            victim.kill([self._process])

    def counters(self):
        """What it has done so far."""
        with open(self.work / "access.log", "rb") as log:
            log.seek(self._read)
            text = log.read()
        whole = text.rfind(b"\n") + 1
        self._read += whole
        for line in text[:whole].splitlines():
            self._bytes += int(line.split(b" ", 2)[1])
            self._requests += 1
        return measure.Counters(sum(map(measure.process_cpu, self.processes)), self._bytes, self._requests)


def _location(path, answer):
    """One answer of a table, as nginx is told of it."""
    words = [f"add_header {name} '{value}' always;" for name, value in answer.get("headers", {}).items() if name not in ("Location", "Content-Type")]
    if "Location" in answer.get("headers", {}):
        words.append(f"return {answer['status']} {answer['headers']['Location']};")
    else:
        # Its own tag and type of a file give way to those of the table.
        kind = answer.get("headers", {}).get("Content-Type", "application/octet-stream")
        words.append(f"etag {'off' if 'ETag' in answer.get('headers', {}) else 'on'}; default_type {kind}; alias {answer['file']};")
    return f"        location = {path} {{ {' '.join(words)} }}\n"
