"""The daemon under seccomp: where io_uring is refused, as the runtimes' default profiles do, it says so once, in log, API and
metrics, and does all of its work with a pool of threads; where it is demanded, it does not start, and says what to do; under the
profile of deploy/components/io-uring it has a ring, and nothing else is refused to it. Neither spins when there is nothing to do.
"""

import json
import os
import sys
import time
import urllib.request
from pathlib import Path

from memory_tier import resident, until
from rig import host, models, origin, preheat, seccomp

CONFIGURATION = """
[origins]
allow = ["%s,allow_private"]
[store]
keep_free = "256MiB"
scrub_rate = "1GiB/s"
scrub_every = "1s"
disk = "%s"
[prewarm]
memory_free = "64MiB"
memory_reserve = "64MiB"
"""
PROFILE = preheat.REPOSITORY / "deploy/components/io-uring/preheat-io-uring.json"


def check(holds, what):
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"  {what}")


class Case:
    def __init__(self, work, name, web, program, disk="auto"):
        self.work, self.name, self.web = work, name, web
        configuration = work / f"{name}.toml"
        configuration.write_text(CONFIGURATION % (web.url, disk))
        self.log = work / f"{name}.log"
        arguments = ["--socket", work / f"{name}.sock", "--config", configuration]
        self.daemon = preheat.Daemon(program, work / f"{name}-store", preheat.Machine(), self.log, arguments)

    def works(self, expected):
        """All that touches the disk, and who did it."""
        daemon = self.daemon.start()
        try:
            disk = daemon.ask("GET", "/v1/node")["disk"]
            check(disk["kind"] == expected, f"{self.name}: {disk['kind']}: {disk['ring_refused']}")
            check(f'preheat_disk{{which="{expected}"}} 1' in metrics(daemon), "the metric says the same")
            job = daemon.ask("POST", "/v1/prewarm", {"reference": f"{self.web.url}/model", "tier": "memory", "wait": True}, seconds=120)
            check(job["state"] == "ready", f"a model of {job['bytes_total'] >> 20} MiB is in memory: {job['error'] or 'ready'}")
            there, total = resident(job["path"])
            check(there == total, "fincore counts all of it")
            until(lambda: scrubbed(daemon) >= total // 2, "the scrub reads it", 30)
            print("  the scrub reads it")
            said = self.log.read_text(errors="replace").count("the kernel gives no ring")
            check(said == (expected == "pool"), f"the log says why there is no ring {said} times")
            return disk
        finally:
            code = daemon.stop()
            check(code == 0, "the daemon ends well")

    def refused(self):
        try:
            self.daemon.start()
        except Exception:
            pass
        else:
            self.daemon.kill()
            sys.exit(f"FAILED: {self.name}: it started")
        text = self.log.read_text(errors="replace")
        check("store.disk" in text and "seccomp" in text, f"{self.name}: it does not start: {text.strip().splitlines()[-1]}")

    def rests(self):
        """CPU seconds of 5 seconds without anything to do."""
        configuration = self.work / f"{self.name}.toml"
        configuration.write_text(configuration.read_text().replace('scrub_rate = "1GiB/s"', 'scrub_rate = "1B/s"'))
        daemon = self.daemon.start()
        try:
            time.sleep(2)
            before = cpu_seconds(daemon.process.pid)
            time.sleep(5)
            return cpu_seconds(daemon.process.pid) - before
        finally:
            daemon.stop()


def cpu_seconds(process):
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def scrubbed(daemon):
    found = [line.split()[1] for line in metrics(daemon).splitlines() if line.startswith("preheat_scrubbed_bytes_total ")]
    return float(found[0])


def metrics(daemon):
    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=10) as answer:
        return answer.read().decode()


def main():
    options, rng = host.begin(__doc__, needs=["fincore"], mib=64, bin=None)
    if not all(name in seccomp.numbers() for name in seccomp.IO_URING):
        host.skip("kernel headers (linux-libc-dev)")
    work = host.work_directory()
    program = Path(options.bin) if options.bin else preheat.binary()
    sources = work / "sources"
    models.write_model(sources / "model", rng.random(), shards=2, shard_bytes=options.mib << 19, small_files=3)
    with origin.Origin(sources) as web:
        free = Case(work, "unconfined", web, program)
        print("without a profile")
        ring = free.daemon.start().ask("GET", "/v1/node")["disk"]["kind"]
        free.daemon.kill()
        print(f"  {ring}")
        for errno, name in ((1, "EPERM"), (38, "ENOSYS")):
            print(f"io_uring answers {name}")
            confined = seccomp.wrapped(seccomp.refusing(seccomp.IO_URING, errno), work, f"refused-{name}", program)
            Case(work, f"pool-{name}", web, confined).works("pool")
        confined = seccomp.wrapped(seccomp.refusing(seccomp.IO_URING), work, "demanded", program)
        Case(work, "demanded-ring", web, confined, "io_uring").refused()
        print("deploy/components/io-uring")
        profile = json.loads(PROFILE.read_text())
        check(profile["defaultAction"] == "SCMP_ACT_ERRNO", "what it does not name is refused")
        confined = seccomp.wrapped(profile, work, "localhost", program)
        Case(work, "ring-localhost", web, confined).works(ring)
        print("nothing to do")
        for disk in ("pool", "auto"):
            spent = Case(work, f"idle-{disk}", web, program, disk).rests()
            check(spent <= 0.1, f"{disk}: {spent:.2f} s of CPU in 5 s")


if __name__ == "__main__":
    main()
