"""Object stores that preheat's authors did not write, each with a place for bundles: what a node's configuration calls it, what its
processes need to use it, and who counts what is asked of it."""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import socket
import time
import urllib.request
from email.utils import formatdate

from . import host, s3, victim

BUCKET = "engines"
_COLOUR = re.compile(r"\x1b\[\d+m")


class Store:
    """One store: `origin`, `environment`, and `stop` for when it is to be gone."""

    def __init__(self, origin, environment, processes, asked=None):
        self.origin, self.environment, self._processes = origin, environment, processes
        self.asked = asked
        """Answers how often an object whose path has a text in it was read; `None` where the store does not tell."""

    def stop(self):
        victim.kill(self._processes)


@contextlib.contextmanager
def amazon(work):
    """moto's S3."""
    log = work / "moto.log"
    with s3.Server(log) as server:
        server.client.create_bucket(Bucket=BUCKET)

        def asked(text):
            return sum(text in path for path in re.findall(r"GET (\S+) HTTP\S* 2\d\d ", _COLOUR.sub("", log.read_text()).replace('"', "")))

        yield Store(f"s3://{BUCKET}/bundles", server.environment, [server._process], asked)


@contextlib.contextmanager
def google(work):
    """fake-gcs-server."""
    program, port = host.cache() / "fake-gcs-server", host.free_port()
    url = f"http://127.0.0.1:{port}"
    words = ["-scheme", "http", "-host", "127.0.0.1", "-port", port, "-public-host", f"127.0.0.1:{port}", "-backend", "filesystem"]
    with _serving([program, *words, "-filesystem-root", work / "gcs"], work / "gcs.log", port) as process:
        body = json.dumps({"name": BUCKET}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{url}/storage/v1/b", body, {"Content-Type": "application/json"})).close()
        yield Store(f"gs://{BUCKET}/bundles", {"STORAGE_EMULATOR_HOST": url}, [process])


@contextlib.contextmanager
def azure(work):
    """Azurite, with an account of its own."""
    script, port = host.cache() / "azurite/node_modules/azurite/dist/src/blob/main.js", host.free_port()
    account, key = "rigstorage", base64.b64encode(os.urandom(32)).decode()
    url = f"http://127.0.0.1:{port}/{account}"
    words = ["--blobHost", "127.0.0.1", "--blobPort", port, "--silent", "--disableTelemetry", "--location", work / "azure"]
    environment = os.environ | {"AZURITE_ACCOUNTS": f"{account}:{key}"}
    with _serving(["node", script, *words], work / "azure.log", port, env=environment) as process:
        now, version = formatdate(usegmt=True), "2021-08-06"
        text = f"PUT\n{chr(10) * 11}x-ms-date:{now}\nx-ms-version:{version}\n/{account}/{account}/{BUCKET}\nrestype:container"
        signature = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
        headers = {"x-ms-date": now, "x-ms-version": version, "Authorization": f"SharedKey {account}:{signature}", "Content-Length": "0"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}?restype=container", headers=headers, method="PUT")).close()
        known = {"AZURE_STORAGE_ENDPOINT": url, "AZURE_STORAGE_ACCOUNT_NAME": account, "AZURE_STORAGE_ACCOUNT_KEY": key}
        yield Store(f"az://{BUCKET}/bundles", known, [process])


@contextlib.contextmanager
def _serving(command, log, port, **more):
    """Runs a server until it listens, and to the end of the block."""
    with open(log, "ab") as out:
        process = victim.start(command, stdout=out, stderr=out, **more)
    try:
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{command[0]} does not listen: {log.read_text()}")
            time.sleep(0.05)
        yield process
    finally:
        victim.kill([process])
