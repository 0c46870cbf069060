"""`fetch` where the store cannot be seen, and where the daemon hangs.

In a second mount namespace the daemon's tree does not exist: without --to that is an error with a remedy; with --to the files
are streamed from the daemon and verified. A stopped daemon (SIGSTOP) is given up within the deadline, and the origin is asked.
"""

import signal
import subprocess
import sys
import time

from rig import host, models, origin, preheat, victim

HIDE = 'mount -t tmpfs none "$1" && shift && exec "$@"'
"""Covers the store with nothing, then becomes the command."""


def check(holds, what):
    """Ends the rig with `what` unless it holds; else says it."""
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"  {what}")


def main():
    _, rng = host.begin(__doc__, needs=("root", "mounts", "unshare"))
    work, program, machine = host.work_directory(), preheat.binary(), preheat.Machine()
    models.write_model(work / "source" / "model", rng.random(), shards=2, shard_bytes=24 << 20)
    right = models.digests(work / "source" / "model")
    with origin.Origin(work / "source") as web:
        published = subprocess.run([program, "manifest", work / "source" / "model"], capture_output=True, check=True).stdout
        (work / "source" / "model" / "preheat-manifest.json").write_bytes(published)
        socket = work / "socket" / "preheat.sock"
        daemon = preheat.Daemon(program, work / "store", machine, work / "log", ["--socket", socket, "--allow-origin", web.url]).start()
        reference, named = f"{web.url}/model", ["--daemon", f"unix:{socket}", "--json"]

        print("a mount namespace without the store")
        command = ["unshare", "-m", "bash", "-c", HIDE, "hide", daemon.root, program, "fetch", reference, *named]
        refused = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=machine.environment())
        check(refused.returncode == 66 and "--to DIR" in refused.stderr, f"without --to: exit {refused.returncode}, and a remedy")
        # The reference names no revision, so the manifest is asked for again; files are not.
        def sent():
            return sum(count for path, count in web.by_path.items() if not path.endswith(".json"))

        before = sent()
        to = work / "to"
        streamed = subprocess.run(list(map(str, [*command, "--to", to])), capture_output=True, text=True, env=machine.environment())
        check(streamed.returncode == 0, f"with --to: exit {streamed.returncode} {streamed.stderr.strip()}")
        check('"source":"daemon-stream"' in streamed.stdout, "source: daemon-stream")
        check(models.digests(to) == right and sent() == before, "equal to the original, nothing more from the origin")

        print("a daemon that does not answer")
        victim.stop([daemon.process])
        for deadline in (1, 3):
            to = work / f"stopped-{deadline}"
            began = time.monotonic()
            answer, done = preheat.verb(program, "fetch", reference, *named, "--daemon-timeout", f"{deadline}s", "--to", to, machine=machine)
            took = time.monotonic() - began
            check(answer["source"] == "origin" and models.digests(to) == right, f"given up after {deadline} s, whole after {took:.1f} s")
            check("not used" in done.stderr, done.stderr.strip().splitlines()[0])
        victim.resume([daemon.process])

        print("a daemon that stops in the middle")
        web.rate = 4 << 20
        to, other = work / "middle", models.write_model(work / "source" / "other", rng.random(), shards=2, shard_bytes=24 << 20)
        command = [program, "fetch", f"{web.url}/other", *named, "--daemon-timeout", "1s", "--to", to]
        fetch = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=machine.environment())
        while web.by_path.get("/other/model-00001-of-00002.safetensors", 0) < 1 << 20:
            time.sleep(0.01)
        victim.stop([daemon.process])
        web.rate = None
        out, error = fetch.communicate(timeout=120)
        whole = {path: digest for path, digest in models.digests(work / "source" / "other").items() if path.endswith(".safetensors")}
        check(fetch.returncode == 0 and '"source":"origin"' in out, f"the origin is asked: {error.strip().splitlines()[-1]}")
        check(whole.items() <= models.digests(to).items(), "equal to the original")
        victim.resume([daemon.process])
        check(daemon.stop() == 0, "the daemon goes on, and ends well")


if __name__ == "__main__":
    main()
