"""Memory of a daemon and of a fetch without one, while a model of some GiB passes through.

RssAnon of the process is sampled every 5 ms: buffers, not the page cache, which belongs to the files. Limits: 300 MiB for the
daemon, 60 MiB for `fetch`.
"""

import subprocess
import sys
import time

from rig import host, models, origin, preheat, watch


def check(holds, what):
    """Ends the rig with `what` unless it holds; else says it."""
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"  {what}")


def _watch(pid):
    return watch.Watch(pid, every=0.005)


def _mib(seen):
    return round(seen.end() / (1 << 20), 1)


def main():
    options, rng = host.begin(__doc__, gib=4.0, bin=None)
    work, machine = host.work_directory(), preheat.Machine()
    program = options.bin or preheat.binary(features=(), release=True)
    source = work / "source" / "model"
    models.write_model(source, rng.random(), shards=4, shard_bytes=int(options.gib * (1 << 30)) // 4)
    published = subprocess.run([program, "manifest", source], capture_output=True, check=True).stdout
    (source / "preheat-manifest.json").write_bytes(published)
    with origin.Origin(work / "source") as web:
        reference = f"{web.url}/model"
        daemon = preheat.Daemon(program, work / "store", machine, work / "log", ["--socket", work / "s.sock", "--allow-origin", web.url]).start()
        node, began = _watch(daemon.process.pid), time.monotonic()
        command = [program, "fetch", reference, "--daemon", daemon.url]
        fetch = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=machine.environment())
        client = _watch(fetch.pid)
        check(fetch.wait() == 0, f"{options.gib:g} GiB through the daemon in {time.monotonic() - began:.1f} s")
        most = _mib(client)
        check(most <= 60, f"fetch beside a daemon: {most} MiB at most, of 60")
        daemon.ask("POST", "/v1/prewarm", {"reference": reference, "tier": "memory", "wait": True}, seconds=300)
        daemon.stop()
        most = _mib(node)
        check(most <= 300, f"daemon, fetching, sealing and warming: {most} MiB at most, of 300")
        for name, words in (("--root", ["--root", work / "own"]), ("--to", ["--to", work / "to"])):
            command = [program, "fetch", reference, "--direct", *words]
            began = time.monotonic()
            fetch = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=machine.environment())
            own = _watch(fetch.pid)
            error = fetch.communicate()[1].decode()
            if fetch.returncode:
                sys.exit(f"FAILED: exit {fetch.returncode}: {error}")
            check(fetch.returncode == 0, f"{options.gib:g} GiB without a daemon, {name}, in {time.monotonic() - began:.1f} s")
            most = _mib(own)
            check(most <= 60, f"fetch {name}: {most} MiB at most, of 60")


if __name__ == "__main__":
    main()
