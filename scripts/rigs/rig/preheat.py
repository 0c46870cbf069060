"""Building and running preheat itself: the daemon as a victim, and verbs that must answer."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from . import host, victim

REPOSITORY = Path(__file__).resolve().parents[3]


def binary(features=("mutants",), release=False):
    """Builds preheat (nothing happens when it is built) and returns the executable. `PREHEAT_BIN` overrides it."""
    if given := os.environ.get("PREHEAT_BIN"):
        return Path(given)
    command = ["cargo", "build", "--quiet", "--locked", "--message-format=json", "--bin", "preheat"]
    command += ["--features", ",".join(features)] if features else []
    command += ["--release"] if release else []
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}")
    built = [message.get("executable") for message in map(json.loads, done.stdout.splitlines())]
    return Path(next(path for path in reversed(built) if path))


class Machine:
    """One pretended boot: processes started on it see its boot id. After a power cut the machine has booted anew."""

    def __init__(self):
        self.boot_again()

    def boot_again(self):
        """What follows is after a reboot: the page cache of before counts as gone."""
        self.boot_id = str(uuid.uuid4())

    def environment(self, mutant=None, **more):
        """The environment of a process on this boot, without what the caller's own shell may have set for preheat."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREHEAT_")}
        clean["PREHEAT_BOOT_ID"] = self.boot_id
        if mutant:
            clean["PREHEAT_MUTANT"] = mutant
        return clean | more


class Daemon:
    """`preheat serve` on a root, with its log in a file. Not started by making one."""

    def __init__(self, program, root, machine, log, arguments=(), mutant=None, environment=None):
        self.program, self.root, self.machine, self.mutant = program, Path(root), machine, mutant
        self.arguments, self.log = list(arguments), Path(log)
        self.environment = environment or {}
        self.port = host.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self, ready_seconds=30):
        """Starts it and waits until it is ready to serve."""
        command = [self.program, "serve", "--root", self.root, "--listen", f"127.0.0.1:{self.port}", *self.arguments]
        with open(self.log, "ab") as log:
            self.process = victim.start(command, env=self.machine.environment(self.mutant, **self.environment), stdout=log, stderr=log)
        deadline = time.monotonic() + ready_seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=1):
                    return self
            except (urllib.error.URLError, ConnectionError, TimeoutError) as not_yet:
                if self.process.poll() is not None:
                    raise RuntimeError(f"serve ended with {self.process.returncode}:\n{self.tail()}") from None
                if time.monotonic() > deadline:
                    raise RuntimeError(f"serve is not ready after {ready_seconds} s ({not_yet}):\n{self.tail()}") from None
                time.sleep(0.005)

    def ask(self, method, path, body=None, seconds=60):
        """One request of the API; the answer's JSON. An error status raises with the problem document in it."""
        payload = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, payload, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                text = answer.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from None

    def stop(self, seconds=30):
        """SIGTERM, and its exit status: an orderly stop."""
        self.process.terminate()
        return self.process.wait(timeout=seconds)

    def kill(self):
        """SIGKILL."""
        victim.kill([self.process])

    def tail(self, lines=40):
        """The end of its log, for a message about a failure."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def verb(program, *words, machine=None, seconds=120, expect=0, **more):
    """Runs a verb to its end; answers (last JSON object of standard output or None, whole process). `expect=None` takes any exit."""
    environment = (machine or Machine()).environment(**more)
    command = [str(word) for word in (program, *words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    if expect is not None and done.returncode != expect:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}, not {expect}\n{done.stdout}{done.stderr}")
    objects = [line for line in done.stdout.splitlines() if line.startswith("{")]
    try:
        return (json.loads(objects[-1]) if objects else None), done
    except json.JSONDecodeError:
        return None, done
