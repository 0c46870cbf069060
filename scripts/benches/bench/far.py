"""The yardstick's origin: as far away as it is told to be, with TLS; for what a loopback cannot show."""

import json
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from rig import authority, host, victim

from . import measure


class Far:
    """Serves files below `root`, a table (see `sites`) and models that it makes while they are read; a context manager.

    `pace` holds its options: round_trip_ms, first_byte_ms, connection_rate, total_rate, stall_one_in. With `tls` a private authority vouches for it,
    whose certificate lies at `authority`.
    """

    counts = True

    def __init__(self, program, work, root=None, table=None, made=(), tls=False, **pace):
        self._program, self._work, self._root = program, Path(work), root
        self._table, self._made, self._pace = table, made, pace
        self.port, self.authority = host.free_port(), None
        scheme = "https" if tls else "http"
        # Two names of one server, as a hub's storage is another host than the hub.
        self.url, self.hub_url = f"{scheme}://127.0.0.1:{self.port}", f"{scheme}://localhost:{self.port}"
        self._trust = None
        self._work.mkdir(parents=True, exist_ok=True)
        if tls:
            vouching = authority.Authority("preheat bench")
            vouching.server(self._work, "localhost", "127.0.0.1")
            self.authority = self._work / "authority.pem"
            self.authority.write_bytes(vouching.pem)
            self._trust = ssl.create_default_context(cafile=str(self.authority))

    def __enter__(self):
        words = [self._program, "origin", f"127.0.0.1:{self.port}"]
        words += ["--root", self._root] if self._root else []
        words += ["--tls", self._work / "server.pem"] if self.authority else []
        for one in self._made:
            words += ["--made", one]
        if self._table:
            (self._work / "table.json").write_text(json.dumps(self._table(self.url)))
            words += ["--routes", self._work / "table.json"]
        for name, value in self._pace.items():
            words += ["--" + name.replace("_", "-"), value]
        log = open(self._work / "origin.log", "ab")
        self._process = victim.start(words, stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                self._ask()
                return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the origin does not start:\n{(self._work / 'origin.log').read_text()}") from None
                time.sleep(0.01)

    def __exit__(self, *_):
        victim.kill([self._process])

    def _ask(self, what="counters"):
        with urllib.request.urlopen(f"{self.url}/-/{what}", timeout=5, context=self._trust) as answer:
            return json.load(answer)

    def run(self, faults):
        """A run begins: connections that fall silent are counted anew, or none does."""
        self._ask("run" if faults else "run?faults=none")

    def counters(self):
        """What it has done so far."""
        found = self._ask()
        return measure.Counters(measure.process_cpu(self._process.pid), found["bytes"], found["requests"], found["stalls"])

    @property
    def processes(self):
        """Process ids."""
        return [self._process.pid]

    @property
    def trust(self):
        """Environment that makes clients believe its authority."""
        return {"SSL_CERT_FILE": str(self.authority), "REQUESTS_CA_BUNDLE": str(self.authority)} if self.authority else {}
