"""The deployment's containers, run by hand: exactly the commands, arguments, environments, users and mounts that `deploy/` renders
to, in file systems that have what the image has.

For each overlay: a pod that is there before the daemon gets its weights from the origin; the DaemonSet's first step hands over the directories with CAP_CHOWN alone, the daemon starts as its own user
without a capability on a read-only root, the workload's init container puts the weights in place, and the engine's container can read
them as its user and write to none. Then the daemon is gone: the same init container gets the same bytes from the origin.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

from rig import host, kubelet, manifests, models, origin, preheat

NODE = "192.0.2.10"


def check(holds, what):
    """Ends the rig with `what` unless it holds; else says it."""
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"  {what}")


class Overlay:
    """One overlay on a node of its own."""

    def __init__(self, what, work, program, files, web, right):
        self.what, self.web, self.right = what, web, right
        # As a person would: a copy of deploy/ with tokens of its own.
        deploy = work / "deploy"
        shutil.copytree(manifests.DEPLOY, deploy)
        host.run(deploy / "new-tokens")
        self.objects = manifests.render(what, deploy)
        model = next(each for each in self.objects.of("ConfigMap") if each["metadata"]["name"].startswith("model-"))
        model["data"]["reference"] = f"{web.url}/model"
        names = {"preheat.preheat.svc": NODE, "localhost": "127.0.0.1"}
        self.node = kubelet.Node(work / "node", files, {"status.hostIP": NODE}, names)
        self.log = work / "daemon.log"

    def daemon(self):
        """The DaemonSet's pod: its first step, then the daemon."""
        pod = self.node.pod(self.objects, self.objects.daemon)
        status, _, error = pod.run("own-directories")
        check(status == 0, f"own-directories: exit {status} {error}".strip())
        user = manifests.container(pod.spec, "preheat")["securityContext"]["runAsUser"]
        owners = {(self.node.root / path).stat().st_uid for path in ("var/lib/preheat", "run/preheat")}
        check(owners == {user}, f"the node's directories belong to user {user}")
        # The model's origin is on the loopback address here, and the disk is smaller than a node's.
        more = ["--allow-origin", f"{self.web.url},allow_private"]
        with open(self.log, "wb") as log:
            process = pod.start("preheat", more=more, environment={"PREHEAT_STORE__KEEP_FREE": "1MiB"}, stdout=log, stderr=log)
        probe = manifests.container(pod.spec, "preheat")["startupProbe"]["httpGet"]["path"]
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://{NODE}:7420{probe}", timeout=1):
                    break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"FAILED: the daemon is not ready: {self.log.read_text()}")
                time.sleep(0.01)
        status = dict(line.split(":", 1) for line in open(f"/proc/{process.pid}/status") if line.startswith(("Uid", "Cap")))
        users, effective, bounding = status["Uid"].split(), int(status["CapEff"], 16), int(status["CapBnd"], 16)
        check(users == [str(user)] * 4 and effective == bounding == 0, f"the daemon is ready: user {user}, no capability to be had")
        return process

    def start(self):
        """The workload's pod up to its engine: (pod, exit status, what the init container said, the files' path for the engine)."""
        pod = self.node.pod(self.objects, self.objects.engine)
        status, _, error = pod.run("preheat")
        if status != 0:
            return pod, status, error, None
        if self.what == "overlays/init-container":
            return pod, status, error, manifests.container(pod.spec, "engine")["command"][2]
        status, path, missing = pod.run("engine", ["/bin/cat", "/run/model/path"])
        return pod, status, error + missing, path.decode().strip()

    def readable(self, pod, path):
        """The engine's user reads every byte, at that path, and can write to none of them."""
        found = {}
        for name in self.right:
            status, content, error = pod.run("engine", ["/bin/cat", f"{path}/{name}"])
            if status != 0:
                return f"{name}: {error}" and False
            found[name] = hashlib.sha256(content).hexdigest()
        status, _, _ = pod.run("engine", ["/bin/sh", "-c", f": >>{path}/config.json"])
        # Not only by the files' modes: another user would have other rights.
        mounted = os.statvfs(pod.directory / "containers" / "engine" / path.lstrip("/")).f_flag
        return found == self.right and status != 0 and mounted & os.ST_RDONLY

    def inode(self, path):
        return (self.node.root / path.lstrip("/") / "config.json").stat().st_ino


def bytes_sent(web):
    """What the origin has sent of weights; small files are asked for again where the reference names no revision."""
    return sum(count for path, count in web.by_path.items() if path.endswith(".safetensors"))


def main():
    _, rng = host.begin(__doc__, needs=("root", "mounts", "ip", "ldd"))
    # Cargo may have to fetch; what follows has no way out.
    program = preheat.binary()
    host.need("network")
    host.run("ip", "address", "add", f"{NODE}/32", "dev", "lo")
    work = host.work_directory()
    models.write_model(work / "source" / "model", rng.random(), shards=2, shard_bytes=8 << 20, small_files=3)
    right = models.digests(work / "source" / "model")
    published = subprocess.run([program, "manifest", work / "source" / "model"], capture_output=True, check=True).stdout
    (work / "source" / "model" / "preheat-manifest.json").write_bytes(published)
    weights = sum(path.stat().st_size for path in (work / "source" / "model").glob("*.safetensors"))
    files = kubelet.image(work / "image", program)
    with origin.Origin(work / "source") as web:
        for what in manifests.BASES[1:]:
            print(what)
            web.reset_counters()
            overlay = Overlay(what, work / what, program, files, web, right)
            # Kubelet has made the node's directories for it; the daemon that comes later must be able to use them.
            pod, status, error, path = overlay.start()
            check(status == 0 and overlay.readable(pod, path), f"a pod that comes before the daemon: the origin's bytes at {path} {error if status else ''}".strip())
            web.reset_counters()
            process = overlay.daemon()
            pod, status, error, path = overlay.start()
            check(status == 0, f"the init container ends with {status} {error.strip().splitlines()[-1] if status else ''}".strip())
            check(overlay.readable(pod, path), f"the engine's user reads every file at {path}, byte for byte, and writes to none")
            if what == "overlays/init-container":
                check(bytes_sent(web) == weights, "streamed from the daemon: the origin sent the weights once")
            else:
                check(path.startswith("/var/lib/preheat/trees/"), "that is the daemon's path")
                seen = pod.directory / "containers" / "engine" / path.lstrip("/") / "config.json"
                check(seen.stat().st_ino == overlay.inode(path), "and the daemon's very files: nothing was copied")
            _, status, error, again = overlay.start()
            check((status, again) == (0, path) and bytes_sent(web) == weights, "a second pod: the same path, nothing from the origin")
            if what == "overlays/init-container":
                wrong_token(overlay)
            process.terminate()
            grace = manifests.pod(overlay.objects.daemon)["terminationGracePeriodSeconds"]
            check(process.wait(timeout=grace) == 0, "the daemon ends well, within its grace period")
            began = time.monotonic()
            pod, status, error, path = overlay.start()
            check(status == 0, f"without a daemon: exit {status} after {time.monotonic() - began:.1f} s {error if status else ''}".strip())
            check(overlay.readable(pod, path) and bytes_sent(web) == 2 * weights, f"the origin's bytes at {path}, readable as before")


def wrong_token(overlay):
    """Not a reason to go to the origin: somebody has to be told."""
    secret = next(each for each in overlay.objects.of("Secret") if each["metadata"]["namespace"] == "models")
    kept, secret["data"]["token"] = secret["data"]["token"], "bm90LXRoZS10b2tlbi1hdC1hbGw="
    _, status, error, _ = overlay.start()
    secret["data"]["token"] = kept
    check(status == 77 and "token" in error, f"with another token: exit {status}")


if __name__ == "__main__":
    main()
