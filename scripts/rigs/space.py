"""Eight models under a cap that holds four: what must stay stays, and the cap holds at every moment.

One model is pinned, one leased, one mapped by a process that sees the trees through a read-only bind mount in a mount
namespace of its own. statvfs is sampled throughout.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from rig import disk, host, models, origin, preheat, victim

MAP = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print("mapped", view[0], flush=True)
sys.stdin.read()
"""
BIND = 'mount --bind "$1" "$2" && mount -o remount,bind,ro "$2" && shift 2 && exec "$@"'


def check(holds, what):
    """Ends the rig with `what` unless it holds; else says it."""
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"  {what}")


class Watch:
    """The most that was ever allocated on a disk beyond what an empty file system has."""

    def __init__(self, path):
        self.path, self.most, self._stop = path, 0, threading.Event()
        self._empty = self._used()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _used(self):
        found = os.statvfs(self.path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _run(self):
        # A failing rig unmounts what is watched.
        while not self._stop.wait(0.002) and os.path.isdir(self.path):
            self.most = max(self.most, self._used() - self._empty)

    def end(self):
        self._stop.set()
        self._thread.join()
        return self.most


def main():
    options, rng = host.begin(__doc__, needs=disk.NEEDS, size_mib=256, kind="ext4")
    work, program, machine = host.work_directory(), preheat.binary(), preheat.Machine()
    size = options.size_mib << 20
    cap = 4 * size
    sources = work / "source"
    for number in range(8):
        models.write_model(sources / f"m{number}", rng.random(), shards=2, shard_bytes=(size - (2 << 20)) // 2, small_files=3)
    with disk.disk(options.kind, work, 2 * cap) as loop, origin.Origin(sources) as web, contextlib.ExitStack() as processes:
        configuration = work / "preheat.toml"
        configuration.write_text(f'[store]\ncapacity = "{cap}"\n')
        arguments = ["--socket", work / "s.sock", "--config", configuration, "--allow-origin", web.url]
        watch = Watch(loop.path)
        daemon = preheat.Daemon(program, loop.path / "store", machine, work / "log", arguments).start()
        processes.callback(daemon.kill)

        def warm(number, **more):
            request = {"reference": f"{web.url}/m{number}", "tier": "disk", "wait": True} | more
            job = daemon.ask("POST", "/v1/prewarm", request, seconds=120)
            if job["state"] != "ready":
                sys.exit(f"FAILED: m{number}: {job['error']}")
            return job

        first = {"pinned": warm(0), "leased": warm(1, lease_seconds=3600), "mapped": warm(2)}
        identity = Path(first["pinned"]["path"]).name
        daemon.ask("PUT", f"/v1/models/{identity}/pins/production", {"reason": "serves production"})
        view = work / "view"
        view.mkdir()
        shard = max(Path(first["mapped"]["path"]).glob("*.safetensors"))
        seen = view / shard.relative_to(loop.path)
        command = ["unshare", "-m", "bash", "-c", BIND, "bind", loop.path, view, sys.executable, "-c", MAP, seen]
        reader = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.callback(victim.kill, [reader])
        check(reader.stdout.readline().startswith("mapped"), "one model is mapped through a read-only bind mount")
        right = {name: models.digests(job["path"]) for name, job in first.items()}
        for number in range(3, 8):
            job = warm(number)
            theirs = models.digests(sources / f"m{number}").items()
            check(models.digests(job["path"]).items() <= theirs, f"m{number}: ready and equal")
        for name, job in first.items():
            check(models.digests(job["path"]) == right[name], f"the {name} one survives")
        here = {Path(model["path"]).name for model in daemon.ask("GET", "/v1/models")}
        check(len(here) <= 4, f"{len(here)} of 8 models are here")
        most = watch.most
        check(most <= cap, f"most ever allocated: {most / cap:.3f} of the cap of {cap >> 20} MiB")

        print("gc --all")
        told, _ = preheat.verb(program, "gc", "--all", "--daemon", daemon.url, "--json", machine=machine)
        here = {model["path"] for model in daemon.ask("GET", "/v1/models")}
        check(here == {job["path"] for job in first.values()}, "only the three are left")
        reader.communicate(input="")
        daemon.ask("DELETE", f"/v1/models/{identity}/pins/production")
        told, _ = preheat.verb(program, "gc", "--all", "--daemon", daemon.url, "--json", machine=machine)
        here = [model["path"] for model in daemon.ask("GET", "/v1/models")]
        check(here == [first["leased"]["path"]], f"unpinned and unmapped, two more go: {told['bytes'] >> 20} MiB")

        print("no room at all")
        for number in (3, 4, 5):
            warm(number, lease_seconds=3600)
        job = daemon.ask("POST", "/v1/prewarm", {"reference": f"{web.url}/m6", "wait": True}, seconds=120)
        check(job["state"] == "failed" and job["error"]["kind"] == "no_space", f"a fifth: {job['error']['detail']}")
        check(watch.end() <= cap, "and still within the cap")
        check(daemon.stop() == 0, "the daemon ends well")
    full_disk(work, program, machine, sources, size)


def full_disk(work, program, machine, sources, size):
    """Somebody else fills the disk while a model arrives; the daemon answers all the while, and goes on when there is room."""
    print("a disk that others fill")
    with disk.disk("ext4", work, max(4 * size, 128 << 20)) as loop, contextlib.ExitStack() as stack:
        web = stack.enter_context(origin.Origin(sources, rate=max(4 << 20, size // 8)))
        arguments = ["--socket", work / "f.sock", "--allow-origin", web.url]
        daemon = preheat.Daemon(program, loop.path / "store", machine, work / "full.log", arguments).start()
        stack.callback(daemon.kill)
        job = daemon.ask("POST", "/v1/prewarm", {"reference": f"{web.url}/m3", "priority": "demand"})
        while daemon.ask("GET", f"/v1/prewarm/{job['id']}")["bytes_done"] < size // 8:
            time.sleep(0.01)
        hog = loop.path / "hog"
        with open(hog, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 20)):
                pass
        slowest = 0.0
        while (job := daemon.ask("GET", f"/v1/prewarm/{job['id']}"))["state"] in ("queued", "running"):
            began = time.monotonic()
            daemon.ask("GET", "/v1/models")
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.01)
        other = daemon.ask("POST", "/v1/prewarm", {"reference": f"{web.url}/m4", "wait": True})
        check(
            other["state"] == "failed" and other["error"]["kind"] == "no_space",
            f"no room for another: {other['error']['detail'][:90]}...",
        )
        first = job["state"] if job["state"] == "ready" else f"failed, {job['error']['kind']}"
        check(job["state"] == "ready" or job["error"]["kind"] == "no_space", f"the one under way: {first}")
        check(slowest < 1, f"answers meanwhile took at most {slowest * 1e3:.0f} ms")
        hog.unlink()
        web.rate = None
        for name in ("m3", "m4"):
            job = daemon.ask("POST", "/v1/prewarm", {"reference": f"{web.url}/{name}", "wait": True}, seconds=120)
            right = models.digests(sources / name).items()
            check(job["state"] == "ready" and models.digests(job["path"]).items() <= right, f"with room again, {name}: ready and equal")
        _, done = preheat.verb(program, "verify", "--root", daemon.root, "--json", machine=machine)
        check(daemon.stop() == 0, "verify finds nothing wrong, and the daemon ends well")


if __name__ == "__main__":
    main()
