"""What a scenario is given: programs, a place in memory, a place on disk, and how much of everything."""

import atexit
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from rig import host, preheat

from . import clients, source

REPOSITORY = Path(__file__).resolve().parents[3]
GIB, MIB = 1 << 30, 1 << 20
ROUNDS = 5


class Context:
    """One run of the benches. `memory` is a directory on tmpfs, `disk` one on a disk; both go with this program."""

    def __init__(self, quick, rounds, only, with_runai):
        self.quick, self.only, self.with_runai = quick, only, with_runai
        self.rounds = rounds or (1 if quick else ROUNDS)
        self.preheat = preheat.binary(features=(), release=True)
        self.yardstick = _yardstick()
        self.memory = _memory()
        # Not the temporary directory, which may lie in memory.
        host.cache().mkdir(parents=True, exist_ok=True)
        self.disk = Path(tempfile.mkdtemp(prefix="bench-work-", dir=host.cache()))
        atexit.register(shutil.rmtree, self.disk, ignore_errors=True)

    def chosen(self, contestants):
        """Those that `--client` names, or all."""
        if not self.only:
            return contestants
        return [one for one in contestants if any(word in one.name for word in self.only)] or contestants

    def model(self, directory, shards, shard_bytes, seed=1):
        """Writes a model of random bytes; a `source.Source`."""
        self.tool("model", directory, "--shards", shards, "--shard-bytes", shard_bytes, "--seed", seed)
        return source.Source(Path(directory), {path.name: path.stat().st_size for path in Path(directory).glob("*.safetensors")})

    def manifest(self, directory):
        """Lets preheat write the manifest of a directory, as its owner would."""
        text = subprocess.run([self.preheat, "manifest", directory], stdout=subprocess.PIPE, check=True).stdout
        (Path(directory) / "preheat-manifest.json").write_bytes(text)
        return json.loads(text)

    def fetch(self, reference, root):
        """Lets preheat fetch without a daemon; what it answers."""
        words = [self.preheat, "fetch", reference, "--direct", "--root", root, "--json"]
        done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, check=True, env=clients.environment())
        return json.loads(done.stdout.splitlines()[-1])

    def daemon(self, root, work, *allow, capacity=None):
        """A daemon on `root` that may ask the origins `allow`; not started."""
        words = ["--socket", Path(work) / "preheat.sock"]
        for url in allow:
            words += ["--allow-origin", f"{url},allow_private"]
        return preheat.Daemon(self.preheat, root, preheat.Machine(), Path(work) / "serve.log", words)

    def tool(self, *words):
        """Runs the yardstick; the JSON that it answers."""
        return json.loads(host.run(self.yardstick, *words))


def _yardstick():
    """Builds it (nothing happens when it is built); the executable."""
    words = ["cargo", "build", "--release", "--quiet", "--locked", "--message-format=json", "--manifest-path", "benches/yardstick/Cargo.toml"]
    environment = os.environ | {"CARGO_TARGET_DIR": os.environ.get("CARGO_TARGET_DIR") or str(REPOSITORY / "target")}
    done = subprocess.run(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}")
    messages = map(json.loads, done.stdout.splitlines())
    return Path(next(found for found in (message.get("executable") for message in messages) if found))


def _memory():
    """A directory on tmpfs: of our own where we may mount, else below /dev/shm."""
    if os.geteuid() == 0:
        try:
            host.own_mounts()
            return host.work_directory()
        except host.Unfit:
            pass
    tempfile.tempdir = "/dev/shm"
    try:
        return host.work_directory()
    finally:
        tempfile.tempdir = None
