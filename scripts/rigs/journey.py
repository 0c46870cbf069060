"""One model from three origins (a directory, a web server, an S3 server) through a daemon into a process that loads it.

Shown: one manifest for all origins and files equal to the original; sixteen fetches at once cost the origin the bytes once; a
second fetch of a pinned revision costs none; a byte flipped on disk is caught by every reader and fetched again; a real
model loads in a real Python process.
"""

import json
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from rig import host, models, origin, preheat, s3, victim

LOAD = """
import sys, safetensors.numpy, tokenizers
from pathlib import Path
tree, source = map(Path, sys.argv[1:])
ours, theirs = (safetensors.numpy.load_file(path / "model.safetensors") for path in (tree, source))
assert ours.keys() == theirs.keys() and ours, "other tensors"
assert all((ours[name] == theirs[name]).all() for name in ours), "other numbers"
text = "The quick brown fox jumps over the lazy dog."
ids = [tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")).encode(text).ids for path in (tree, source)]
assert ids[0] == ids[1] and len(ids[0]) > 5, ids
print(len(ours), "tensors,", len(ids[0]), "tokens: equal to the original")
"""


def check(holds, what):
    """Ends the rig with `what` unless it holds; else says it."""
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"  {what}")


def selected(directory):
    """Digests of what an engine needs of a directory: here, all that is not a document."""
    return {path: digest for path, digest in models.digests(directory).items() if Path(path).suffix not in (".md",)}


class Journey:
    def __init__(self, rng, shards, shard_mib):
        self.rng, self.work = rng, host.work_directory()
        self.program, self.machine = preheat.binary(), preheat.Machine()
        self.source = self.work / "source" / "model"
        models.write_model(self.source, rng.random(), shards=shards, shard_bytes=shard_mib << 20)
        self.digests = models.digests(self.source)
        self.bytes = sum(path.stat().st_size for path in self.source.rglob("*") if path.is_file())

    def daemon(self, name, *origins, environment=None):
        socket = self.work / f"{name}.sock"
        arguments = ["--socket", socket]
        for allowed in (f"file://{self.work}", *origins):
            arguments += ["--allow-origin", allowed]
        daemon = preheat.Daemon(
            self.program, self.work / name, self.machine, self.work / f"{name}.log", arguments, environment=environment
        )
        return daemon.start()

    def fetch(self, daemon, reference, *words):
        answer, _ = preheat.verb(self.program, "fetch", reference, "--daemon", daemon.url, "--json", *words, machine=self.machine)
        return answer

    def three_origins(self, server):
        print("one model, three origins")
        found = {}
        server.upload(self.source, "models", "team/model/", ChecksumAlgorithm="SHA256")
        published = subprocess.run([self.program, "manifest", self.source], capture_output=True, check=True).stdout
        (self.source / "preheat-manifest.json").write_bytes(published)
        with origin.Origin(self.source.parent) as web:
            daemon = self.daemon("three", web.url, "s3://models,credentials", environment=server.environment)
            for reference in (f"file://{self.source}", f"{web.url}/model", "s3://models/team/model"):
                answer = self.fetch(daemon, reference)
                found[reference] = answer["manifest"]
                check(models.digests(answer["path"]) == self.digests, f"{reference.split(':')[0]}: {answer['files']} files equal")
                check(answer["bytes"] == self.bytes, f"{reference.split(':')[0]}: {answer['bytes']} bytes")
            daemon.stop()
        (self.source / "preheat-manifest.json").unlink()
        check(len(set(found.values())) == 1, f"one manifest for all: {next(iter(found.values()))[:16]}")

    def crowd(self):
        print("sixteen fetches at once")
        with origin.Origin(self.source.parent) as web:
            daemon = self.daemon("crowd", web.url)
            reference = f"{web.url}/model"
            command = [str(word) for word in (self.program, "fetch", reference, "--daemon", daemon.url, "--json")]
            crowd = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(16)]
            answers = [json.loads(process.communicate()[0].splitlines()[-1]) for process in crowd]
            size = answers[0]["bytes"]
            check(len({answer["path"] for answer in answers}) == 1, "all have one path")
            shards = {path: sent for path, sent in web.by_path.items() if path.endswith(".safetensors")}
            exact = all(sent == (self.source.parent / path.lstrip("/")).stat().st_size for path, sent in shards.items())
            check(exact and len(shards) == len(list(self.source.glob("*.safetensors"))), "every shard was sent once, to the byte")
            # A web server has no listing: the index was read to name the shards, then fetched as a file.
            index = (self.source / "model.safetensors.index.json").stat().st_size
            check(web.body_bytes <= size + index, f"origin sent {web.body_bytes} of {size} bytes: {web.body_bytes / size:.4f}x")
            check(sum(answer["origin_bytes"] for answer in answers[:1]) == size, "and the answers say so")
            pinned = f"{reference}@{answers[0]['revision']}"
            web.reset_counters()
            times = []
            for _ in range(20):
                began = time.monotonic()
                answer = self.fetch(daemon, pinned)
                times.append(time.monotonic() - began)
                check(answer["path"] == answers[0]["path"] and answer["origin_bytes"] == 0, "again, pinned") if len(times) == 1 else None
            check(web.requests == 0, "the origin was not asked at all")
            print(f"  median of 20: {statistics.median(times) * 1e3:.1f} ms, process start included")
            daemon.stop()

    def rot(self):
        print("a byte flipped on disk")
        with origin.Origin(self.source.parent) as web:
            daemon = self.daemon("rot", web.url)
            reference = f"{web.url}/model"
            right = models.digests(self.fetch(daemon, reference)["path"])
            check(right.items() <= self.digests.items() and len(right) > 4, "fetched")
            for reader in ("verify", "range", "memory"):
                answer = self.fetch(daemon, reference)
                self.sealed(daemon, answer)
                shard = max(Path(answer["path"]).rglob("*.safetensors"))
                blob = self.flip(daemon, shard)
                if reader == "verify":
                    told, done = preheat.verb(self.program, "verify", "--root", daemon.root, "--json", machine=self.machine, expect=65)
                    check(any(blob in str(fault) for fault in told["faults"]), f"verify names {blob[:12]} and exits with 65")
                if reader != "memory":
                    check(self.ranges_refuse(daemon, blob, shard), "blob ranges: the wrong group is refused, no byte of it is sent")
                if reader == "memory":
                    daemon.ask("POST", "/v1/prewarm", {"reference": reference, "tier": "memory", "wait": True})
                again = self.fetch(daemon, reference)
                check(models.digests(again["path"]) == right, f"{reader}: quarantined, fetched again, equal")
                kept = [path.name for path in (daemon.root / "quarantine").iterdir() if path.suffix != ".json"]
                check(any(name.startswith(blob) for name in kept), "the wrong bytes lie in quarantine")
            daemon.stop()

    def sealed(self, daemon, answer):
        """Waits until a model is durable: its files then lie under their blobs' names."""
        for _ in range(600):
            listed = daemon.ask("GET", "/v1/models")
            if all(model["durable"] for model in listed):
                return
            time.sleep(0.05)
        sys.exit("FAILED: not sealed within 30 s")

    def flip(self, daemon, shard):
        """Inverts one byte in the middle of a shard, as a bad disk would, and answers its blob's name."""
        inode = shard.stat().st_ino
        blob = next(path for path in (daemon.root / "blobs").rglob("*") if path.is_file() and path.stat().st_ino == inode)
        at = self.rng.randrange(shard.stat().st_size)
        blob.chmod(0o644)
        with open(blob, "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x40]))
        blob.chmod(0o444)
        self.at = at
        return blob.name

    def ranges_refuse(self, daemon, blob, shard):
        start = self.at >> 20 << 20
        request = urllib.request.Request(f"{daemon.url}/v1/blobs/{blob}", headers={"Range": f"bytes={start}-{start + 99}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                got = answer.read()
            return f"sent {len(got)} bytes" and False
        except urllib.error.HTTPError as error:
            return error.code in (404, 500, 502, 503)
        except (ConnectionError, urllib.error.URLError, OSError):
            return True

    def real(self, server, model):
        print("a real model, loaded")
        server.upload(model, "real", "models/sentence/all-MiniLM-L6-v2/")
        daemon = self.daemon("real", "s3://real,credentials", environment=server.environment)
        answer = self.fetch(daemon, "s3://real/models/sentence/all-MiniLM-L6-v2")
        theirs = models.digests(model)
        ours = models.digests(answer["path"])
        check(all(theirs[path] == digest for path, digest in ours.items()) and "1_Pooling/config.json" in ours, f"{len(ours)} files equal")
        done = subprocess.run([sys.executable, "-c", LOAD, answer["path"], str(model)], capture_output=True, text=True)
        check(done.returncode == 0, (done.stdout or done.stderr).strip())
        daemon.stop()


def main():
    options, rng = host.begin(__doc__, shards=3, shard_mib=40)
    journey = Journey(rng, options.shards, options.shard_mib)
    with s3.Server(journey.work / "moto.log") as server:
        journey.three_origins(server)
        model = host.cache() / "minilm"
        if model.is_dir():
            journey.real(server, model)
        else:
            print("a real model: not here (scripts/setup fetches it)")
    journey.crowd()
    journey.rot()


if __name__ == "__main__":
    main()
