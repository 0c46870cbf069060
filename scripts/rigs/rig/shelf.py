"""A shelf of models at an origin, and what may be seen of them in a store: all of a model or nothing, and no wrong byte."""

import hashlib
import shutil
import subprocess
import threading
from pathlib import Path

from . import models


class Shelf:
    """Models of several shapes below `directory`: large shards, many small files, and two that share a shard.

    Every second one publishes its manifest, so that both ways of listing a web server, and both of learning a blob's name,
    take part.
    """

    def __init__(self, directory, rng, program, count=6, mib=9, small_files=40):
        self.directory = Path(directory)
        self.names = [f"m{number}" for number in range(count)]
        self.bytes = {}
        self._files = {}
        for number, name in enumerate(self.names):
            place = self.directory / name
            shards, size = (1 + number % 2, (mib << 20) + rng.randrange(1 << 20))
            models.write_model(place, rng.random(), shards=shards, shard_bytes=size, small_files=3 if number % 3 else small_files)
            if number == count - 1:
                # The base model under another name: its shard is the same content.
                shutil.copy(self.directory / "m0" / "model-00001-of-00001.safetensors", place / "extra.safetensors")
            if number % 2 == 0:
                self._publish(program, place)
            self._files[name] = {
                path: digest for path, digest in models.digests(place).items() if path != "preheat-manifest.json"
            }
        self._known = {frozenset(files.items()): name for name, files in self._files.items()}

    def _publish(self, program, place):
        done = subprocess.run([program, "manifest", place], capture_output=True, check=True)
        (place / "preheat-manifest.json").write_bytes(done.stdout)

    def files(self, name):
        """{path: sha256} of a model."""
        return self._files[name]

    def wrong(self, name, tree):
        """What is wrong with a tree of the model `name`; None if nothing is.

        A web server without a manifest gives what the index names, so a tree may have fewer files than the directory; that it
        has all that it had before is the caller's to compare.
        """
        found = models.digests(tree)
        right = self._files[name]
        bad = [path for path, digest in found.items() if right.get(path) != digest]
        if bad:
            return f"{tree}: {bad[0]} is not the original's ({len(bad)} such files)"
        # What the index names is always there; with a manifest, everything is.
        whole = (self.directory / name / "preheat-manifest.json").exists()
        wanted = [path for path in right if whole or (path.endswith(".safetensors") and path != "extra.safetensors")]
        absent = [path for path in wanted if path not in found]
        return f"{tree}: {absent[0]} is absent" if absent else None


class Durable(threading.Thread):
    """Asks a daemon again and again which models are durable. What it was told is a promise.

    `told` grows: {model id: reference}. `news` is set whenever it has grown. Ends with `stop`, or with the daemon.
    """

    def __init__(self, daemon):
        super().__init__(daemon=True)
        self.daemon_process, self.told, self.news, self._over = daemon, {}, threading.Event(), threading.Event()
        self.start()

    def run(self):
        while not self._over.wait(0.001):
            try:
                listed = self.daemon_process.ask("GET", "/v1/models", seconds=5)
            except (OSError, RuntimeError, ValueError):
                return
            if self._over.is_set():
                return
            fresh = {model["id"]: model["reference"] for model in listed if model["durable"]}
            if fresh.keys() - self.told.keys():
                self.told |= fresh
                self.news.set()

    def stop(self):
        """No promise is taken after this returns."""
        self._over.set()
        self.join(timeout=10)
        return self.told


def blob_files(root):
    """Names and paths of the sealed blobs of a store."""
    return {path.name: path for path in (Path(root) / "blobs").iterdir() if path.is_file()}


def trees(root):
    """{model id: path} of every tree that a process could open."""
    found = Path(root) / "trees" / "default"
    return {path.name: path for path in found.iterdir()} if found.is_dir() else {}


def sha256(path):
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
