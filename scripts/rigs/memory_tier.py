"""The tier `memory`: resident is what `fincore` finds, what was dropped comes back while it is leased, and where there is no room it
is said instead of claimed.

Pages are dropped by another process (`posix_fadvise`), counted by another program (`fincore`), and taken away by a cgroup whose
limit is lowered. The store lies on the disk behind the temporary directory: the pages of a tmpfs never leave.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from rig import cgroup, host, models, origin, preheat

MUTANTS = ("residency_assumed", "budget_ignored")
CHECK_SECONDS = 2.0
CONFIGURATION = f"""
[origins]
allow = ["%s,allow_private"]
[store]
keep_free = "256MiB"
[prewarm]
memory_check = "{CHECK_SECONDS:g}s"
memory_free = "128MiB"
memory_reserve = "128MiB"
"""


class Broken(Exception):
    """A promise is not kept."""


def check(holds, what):
    """Raises `Broken` unless it holds; else says it."""
    if not holds:
        raise Broken(what)
    print(f"  {what}")


def resident(tree):
    """(bytes in memory, bytes) of all files of a tree, as fincore counts."""
    paths = [path for path in Path(tree).rglob("*") if path.is_file()]
    told = subprocess.run(["fincore", "--bytes", "--noheadings", "--output", "RES,SIZE", *paths], capture_output=True, text=True, check=True)
    rows = [list(map(int, line.split())) for line in told.stdout.splitlines()]
    # fincore counts whole pages.
    return sum(min(row[0], row[1]) for row in rows), sum(row[1] for row in rows)


def drop(tree, seconds=60):
    """Drops a tree's pages, from outside of the daemon. Pages that are not on disk yet cannot be, so it is tried for a while."""
    deadline = time.monotonic() + seconds
    while True:
        for path in Path(tree).rglob("*"):
            if path.is_file():
                file = os.open(path, os.O_RDONLY)
                os.fsync(file)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)
        left, total = resident(tree)
        if left <= total // 100:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{left} of {total} bytes of {tree} stay in memory")
        time.sleep(0.05)


def until(holds, what, seconds):
    """Waits until it holds; returns the seconds that took."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            raise Broken(f"{what}: not within {seconds:.1f} s")
        time.sleep(0.05)
    return time.monotonic() - began


class Tier:
    def __init__(self, rng, work, program, mib, mutant=None):
        self.work, self.program, self.mutant, self.mib = work, program, mutant, mib
        self.machine, self.size = preheat.Machine(), mib << 20
        self.sources = work / "sources"
        if not self.sources.exists():
            models.write_model(self.sources / "model", rng.random(), shards=4, shard_bytes=self.size // 4, small_files=3)

    @contextlib.contextmanager
    def daemon(self, name, web, group=None):
        program = group.program(self.work, self.program) if group else self.program
        configuration = self.work / f"{name}.toml"
        configuration.write_text(CONFIGURATION % web.url)
        arguments = ["--socket", self.work / f"{name}.sock", "--config", configuration]
        daemon = preheat.Daemon(program, self.work / name, self.machine, self.work / f"{name}.log", arguments, mutant=self.mutant).start()
        try:
            yield daemon
        finally:
            daemon.kill()

    def job(self, daemon, reference, tier="memory", wait=True, **more):
        return daemon.ask("POST", "/v1/prewarm", {"reference": reference, "tier": tier, "wait": wait} | more, seconds=600)

    def look(self, daemon, job):
        return daemon.ask("GET", f"/v1/prewarm/{job['id']}")

    def warmed_seconds(self, job):
        return next(stage["seconds"] for stage in job["timeline"] if stage["stage"] == "warm")

    def resident_as_told(self, web):
        print("on a node with room")
        with self.daemon("wide", web) as daemon:
            job = self.job(daemon, f"{web.url}/model")
            check(job["state"] == "ready", f"{self.mib} MiB for memory: {job['state']}")
            tree, pinned = job["path"], f"{web.url}/model@{job['revision']}"
            there, total = resident(tree)
            check(there == total == job["resident_bytes"], f"fincore: {100 * there / total:.2f} % right after the job")
            drop(tree)
            time.sleep(1.2)
            told, (there, _) = self.look(daemon, job)["resident_bytes"], resident(tree)
            # The scrub may have a shard in its hands.
            check(told < total // 2, f"pages dropped from outside, no lease: the job says {told >> 20} MiB, fincore {there >> 20}")

            began = time.monotonic()
            subprocess.run(["cat", *sorted(Path(tree).glob("*.safetensors"))], stdout=subprocess.DEVNULL, check=True)
            cat = time.monotonic() - began
            drop(tree)
            job = self.job(daemon, pinned)
            there, total = resident(tree)
            check(job["state"] == "ready" and there == total, f"read from disk: fincore: {100 * there / total:.2f} %")
            cold = self.warmed_seconds(job)
            print(f"  {total / cold / 1e6:.0f} MB/s with hashing and proof; cat of the same files, cold: {total / cat / 1e6:.0f} MB/s")

            drop(tree)
            running = self.job(daemon, pinned, wait=False)
            until(lambda: resident(tree)[0] > total // 20, "it is being read", 30)
            began = time.monotonic()
            daemon.ask("DELETE", f"/v1/prewarm/{running['id']}")
            until(lambda: self.look(daemon, running)["state"] not in ("queued", "running"), "a job that was called off ends", 1)
            time.sleep(max(0.0, began + 1 - time.monotonic()))
            ended, (first, _) = self.look(daemon, running)["state"], resident(tree)
            time.sleep(0.7)
            second, _ = resident(tree)
            if ended == "ready" or (ended == "cancelled" and first == total and cold < 1):
                # A model that is read whole within the second that the promise allows says nothing of it.
                print("  all was read within a second: nothing is shown")
            else:
                check(ended == "cancelled" and second <= first < total, f"called off: nothing is read 1 s later, at {100 * first // total} %")

            job = self.job(daemon, pinned, lease_seconds=600)
            check(job["state"] == "ready", "leased")
            for _ in range(2):
                drop(tree)
                # The look, the reading at the pace of before, a second one 2 s later where the drop met the first, and room for a
                # busy machine.
                allowed = CHECK_SECONDS + 3 * cold + 5
                took = until(lambda: resident(tree)[0] == total, "what is leased and was dropped is there again", allowed)
                print(f"  dropped: all there again after {took:.1f} s, of {allowed:.1f} allowed")
            check(daemon.process.poll() is None, "the daemon lives")

    def no_room(self, web, group):
        print(f"in a cgroup (version {group.version}) smaller than the model")
        group.limit(self.size // 2 + (128 << 20))
        with self.daemon("tight", web, group) as daemon:
            web.reset_counters()
            job = self.job(daemon, f"{web.url}/model")
            problem = job["error"] or {}
            check(job["state"] == "failed" and problem.get("kind") == "no_space", f"refused: {problem.get('detail')}")
            check("cgroup" in problem["detail"], "by the name of what is lacking")
            check(web.body_bytes < 1 << 20, f"at once: the origin sent {web.body_bytes >> 10} KiB")
            job = self.job(daemon, f"{web.url}/model", tier="disk")
            check(job["state"] == "ready", "on disk it is ready")
            tree, pinned = job["path"], f"{web.url}/model@{job['revision']}"
            job = self.job(daemon, pinned)
            there, total = resident(tree)
            check(job["state"] == "failed", f"in memory it is not, and not said to be: fincore has {100 * there // total} %")
            check(group.kills() == 0 and daemon.process.poll() is None, "nobody was killed")

            print("the limit is raised, and lowered under a leased model")
            group.limit(self.size + (768 << 20))
            job = self.job(daemon, pinned, lease_seconds=3600)
            there, total = resident(tree)
            check(job["state"] == "ready" and there == total, f"with room: {job['error'] or 'ready'}: fincore: {100 * there / total:.2f} %")
            group.limit(self.size // 2 + (16 << 20))
            there, _ = resident(tree)
            check(there < total, f"the kernel takes back what is too much: fincore: {100 * there // total} %")
            time.sleep(1.2)
            told, (there, _) = self.look(daemon, job)["resident_bytes"], resident(tree)
            check(abs(told - there) <= total // 20, f"the job says {100 * told // total} %")
            time.sleep(2 * CHECK_SECONDS + 1)
            log = daemon.log.read_text(errors="replace")
            check(log.count("a model that is to be in memory is not") == 1 and "raise the daemon's memory limit" in log, "the log says why, once")
            check(group.kills() == 0 and daemon.process.poll() is None, "nobody was killed")
            group.limit(self.size + (768 << 20))
            took = until(lambda: resident(tree)[0] == total, "it is there again once there is room", 90)
            print(f"  raised again: all there after {took:.0f} s")
            check(daemon.stop() == 0, "the daemon ends well")


def main():
    options, rng = host.begin(__doc__, needs=["root", "fincore"], mib=1024, mutants="none", bin=None)
    work = host.work_directory()
    if subprocess.run(["stat", "-f", "-c", "%T", work], capture_output=True, text=True, check=True).stdout.strip() in ("tmpfs", "overlayfs"):
        host.skip(f"disk behind {work}: its pages cannot be dropped; set TMPDIR")
    program = options.bin or preheat.binary()
    chosen = {"none": (), "all": MUTANTS}.get(options.mutants, options.mutants.split(","))
    survived = False
    for mutant in (None, *chosen):
        home = work / (mutant or "whole")
        home.mkdir()
        tier = Tier(rng, home, program, options.mib, mutant)
        try:
            group = cgroup.Memory(f"preheat-{mutant or 'whole'}")
        except host.Unfit as missing:
            host.skip(missing)
        try:
            with group, origin.Origin(tier.sources) as web:
                tier.resident_as_told(web)
                tier.no_room(web, group)
            if mutant:
                print(f"{mutant}: SURVIVED")
                survived = True
        except Broken as broken:
            if not mutant:
                sys.exit(f"FAILED: {broken}")
            print(f"{mutant}: caught: {broken}")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
