"""nginx as an origin: files of a tmpfs by sendfile, with what it sent and spent counted.

One server answers as a plain web server, as an S3 endpoint that lists one bucket, and as a hub whose large files lie behind a
redirect, because all three are static: the bytes travel the same way, and what differs is what a client makes of it.
"""

import hashlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
import xml.sax.saxutils
from pathlib import Path

from rig import host, victim

from . import measure

COMMIT = "c0ffee" + "0" * 34

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
    """Serves the directory `root` on the loopback address until closed; a context manager."""

    def __init__(self, work, root, workers=2, sendfile=True, locations=""):
        self.work, self.root, self.port = Path(work), Path(root), host.free_port()
        # The same files under another address, as a hub's storage is another host than the hub.
        self.storage_port = host.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.work.mkdir(parents=True, exist_ok=True)
        self._options = {"workers": workers, "sendfile": "on" if sendfile else "off"}
        self._locations = locations
        self._read = self._bytes = self._requests = 0

    def __enter__(self):
        configuration = _CONFIGURATION.format(
            work=self.work,
            root=self.root,
            port=self.port,
            storage_port=self.storage_port,
            locations=self._locations.replace("STORAGE_PORT", str(self.storage_port)),
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
        """(processor seconds, body bytes, requests) so far."""
        with open(self.work / "access.log", "rb") as log:
            log.seek(self._read)
            text = log.read()
        whole = text.rfind(b"\n") + 1
        self._read += whole
        for line in text[:whole].splitlines():
            self._bytes += int(line.split(b" ", 2)[1])
            self._requests += 1
        return sum(map(measure.process_cpu, self.processes)), self._bytes, self._requests


# --- As a bucket -------------------------------------------------------------------------------------------------------


def bucket_locations(work, root, bucket, prefix):
    """Locations that make `root/bucket` a bucket whose listing of `prefix` is a file. Clients name keys in the path."""
    entries = []
    for path in _files(root / bucket / prefix):
        stat = path.stat()
        # As nginx makes them of a file.
        tag = f'"{int(stat.st_mtime):x}-{stat.st_size:x}"'
        when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stat.st_mtime))
        key = str(path.relative_to(root / bucket))
        entries.append(
            f"<Contents><Key>{key}</Key><LastModified>{when}</LastModified><ETag>{xml.sax.saxutils.escape(tag)}</ETag>"
            f"<Size>{stat.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    listing = Path(work) / f"{prefix}.xml"
    listing.write_text(
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{prefix}/</Prefix><KeyCount>{len(entries)}</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"
    )
    return (
        f"        location = /{bucket} {{ default_type application/xml; alias {listing}; }}\n"
        f"        location = /{bucket}/ {{ default_type application/xml; alias {listing}; }}\n"
    )


# --- As a hub ----------------------------------------------------------------------------------------------------------

LARGE = 100_000


def hub_locations(work, root, repository, directory):
    """Locations that make `root/directory` the repository of that name on a hub: a commit, a tree, large files elsewhere."""
    work, tree, locations = Path(work), [], []
    name = repository.replace("/", "-")
    base = f"/{repository}/resolve"
    for path in _files(root / directory):
        size, relative = path.stat().st_size, str(path.relative_to(root / directory))
        git = hashlib.sha1(b"blob %d\0" % size)
        with open(path, "rb") as file:
            if size >= LARGE:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                tree.append({"type": "file", "path": relative, "size": size, "oid": "f" * 40,
                             "lfs": {"oid": digest, "size": size, "pointerSize": 134}})
                answer = f"add_header X-Linked-Size {size} always; add_header X-Linked-Etag '\"{digest}\"' always;"
                answer += f" return 302 http://127.0.0.1:STORAGE_PORT/{directory}/{relative}?Signature=bench;"
            else:
                git.update(file.read())
                tree.append({"type": "file", "path": relative, "size": size, "oid": git.hexdigest()})
                answer = f"etag off; add_header ETag '\"{git.hexdigest()}\"' always; alias {path};"
        for revision in ("main", COMMIT):
            locations.append(f"        location = {base}/{revision}/{relative} {{ add_header X-Repo-Commit {COMMIT} always; {answer} }}\n")
    siblings = [{"rfilename": entry["path"]} for entry in tree]
    info = {"_id": "0" * 24, "id": repository, "modelId": repository, "sha": COMMIT, "gated": False, "private": False, "disabled": False,
            "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
    (work / f"{name}-tree.json").write_text(json.dumps(tree))
    (work / f"{name}-info.json").write_text(json.dumps(info))
    api = f"/api/models/{repository}"
    for revision in ("main", COMMIT):
        for path, file in ((f"{api}/revision/{revision}", "info"), (f"{api}/tree/{revision}", "tree")):
            locations.append(f"        location = {path} {{ default_type application/json; alias {work}/{name}-{file}.json; }}\n")
    locations.append(f"        location = {api} {{ default_type application/json; alias {work}/{name}-info.json; }}\n")
    return "".join(locations)


def _files(directory):
    return sorted(path for path in Path(directory).rglob("*") if path.is_file())
