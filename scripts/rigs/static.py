"""The static binary in a file system that has nothing but certificate authorities: no loader, no library, no shell, no /proc, no
/etc/hosts, no /tmp.

There it serves and fetches from an HTTPS server with a certificate of a private authority, verifies, and ends with the exit codes
of the README. Names are resolved without any help of the system: by /etc/hosts and by the servers in /etc/resolv.conf, where
they are there.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from rig import authority, host, kubelet, models, names, origin, preheat

PORT = 7420
_libc = ctypes.CDLL(None)


def check(holds, what):
    """Ends the rig with `what` unless it holds; else says it."""
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"  {what}")


class Empty:
    """The file system, and programs run in it."""

    def __init__(self, work, program):
        self.root = kubelet.image(work / "image", program, programs=())
        (self.root / "store").mkdir()
        self.boot = preheat.Machine().boot_id

    def start(self, *words, environment=None, **options):
        # Without /proc the kernel's boot id is out of reach.
        values = {"PREHEAT_BOOT_ID": self.boot} | (environment or {})

        def enter():
            os.chroot(self.root)
            os.chdir("/")
            _libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL

        return subprocess.Popen(["/usr/local/bin/preheat", *map(str, words)], env=values, preexec_fn=enter, text=True, **options)

    def run(self, *words, **more):
        """(exit status, standard output, error)"""
        process = self.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        out, error = process.communicate(timeout=120)
        return process.returncode, out, error


def is_static(program):
    headers = host.run("readelf", "--program-headers", "--dynamic", "--wide", program)
    loaded = subprocess.run(["ldd", program], capture_output=True, text=True)
    check("INTERP" not in headers and "(NEEDED)" not in headers, "no interpreter and no needed library (readelf)")
    said = (loaded.stdout + loaded.stderr).strip()
    check("statically linked" in said or "not a dynamic" in said, f"ldd: {said}")
    sections = host.run("size", "--format=sysv", program)
    total = sum(int(line.split()[1]) for line in sections.splitlines() if line.startswith((".text", ".rodata", ".data", ".eh_frame", ".bss")))
    print(f"  {program.stat().st_size / 2**20:.1f} MiB on disk, {total / 2**20:.1f} MiB of it code and data")


def ready(process, log):
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=1):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"FAILED: not ready: {log.read_text()}")
            time.sleep(0.01)


def through_a_daemon(empty, web, right, work):
    """Serves, fetches, verifies."""
    (empty.root / "config.toml").write_text(f'[origins]\nca_bundle = "/ca.pem"\nallow = ["{web.url},allow_private"]\n')
    log = work / "log"
    with open(log, "w") as said:
        daemon = empty.start("serve", "--root", "/store/node", "--config", "/config.toml", "--listen", f"127.0.0.1:{PORT}", "--socket", "/store/socket", stdout=said, stderr=said)
    ready(daemon, log)
    reference, named = f"{web.url}/model", ("--daemon", f"http://127.0.0.1:{PORT}")
    status, out, error = empty.run("fetch", reference, *named, "--json")
    check(status == 0, f"served, fetched over HTTPS from a server of a private authority: exit {status} {error if status else ''}".strip())
    path = json.loads(out.splitlines()[-1])["path"]
    check(models.digests(empty.root / path.lstrip("/")) == right, "equal to the original")
    status, out, _ = empty.run("fetch", reference, "--daemon", "unix:/store/socket", "--to", "/store/copy")
    check(status == 0 and models.digests(empty.root / "store/copy") == right, "over the socket, into a directory")
    for _ in range(200):
        if all(model["durable"] for model in json.loads(empty.run("models", *named, "--json")[1])):
            break
        time.sleep(0.05)
    daemon.terminate()
    check(daemon.wait(timeout=30) == 0, "the daemon ends with 0")
    status, _, error = empty.run("verify", "--root", "/store/node")
    check(status == 0, f"verify: exit {status}")
    blob = max((empty.root / "store/node/blobs").iterdir(), key=lambda path: path.stat().st_size)
    blob.chmod(0o600)
    with open(blob, "r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    status, _, error = empty.run("verify", "--root", "/store/node")
    check(status == 65, f"verify, a byte flipped: exit {status}")


def alone(empty, web, right):
    """Without a daemon, and what goes wrong."""
    trusted = {"SSL_CERT_FILE": "/ca.pem"}
    status, _, error = empty.run("fetch", f"{web.url}/model", "--direct", "--to", "/store/direct", environment=trusted)
    check(status == 0 and models.digests(empty.root / "store/direct") == right, f"fetch without a daemon: exit {status} {error if status else ''}".strip())
    for what, wanted, words, environment in (
        ("an authority that is not trusted", 69, ("fetch", f"{web.url}/model", "--direct", "--to", "/store/a"), {}),
        ("a model that is not there", 66, ("fetch", f"{web.url}/absent", "--direct", "--to", "/store/b"), trusted),
        ("a reference that is none", 64, ("fetch", "model", "--direct", "--to", "/store/c"), trusted),
        ("nowhere to put it", 64, ("fetch", f"{web.url}/model"), trusted),
        ("no daemon", 69, ("prewarm", f"{web.url}/model"), trusted),
        ("no store", 66, ("verify", "--root", "/store/none"), {}),
    ):
        status, _, error = empty.run(*words, environment=environment)
        said = (error.strip().splitlines() or [""])[-1]
        check(status == wanted and said.startswith("preheat: "), f"{what}: exit {status}: {said[:160]}")


def resolution(empty, web, right):
    """A static binary has to look names up by itself."""
    trusted = {"SSL_CERT_FILE": "/ca.pem"}

    def fetch(name, to):
        reference = f"https://{name}:{web.port}/model"
        status, _, error = empty.run("fetch", reference, "--direct", "--to", f"/store/{to}", environment=trusted)
        return status, error, status == 0 and models.digests(empty.root / "store" / to) == right

    status, error, _ = fetch("localhost", "none")
    check(status == 69 and "localhost" in error, f"localhost, without /etc/hosts and a name server: exit {status}, and it is told")
    (empty.root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    check(fetch("localhost", "hosts")[2], "localhost, by /etc/hosts")
    server = names.NameServer({"models.test": "127.0.0.1"})
    (empty.root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
    check(fetch("models.test", "dns")[2] and ("models.test", "A") in server.asked, "models.test, by the name server in /etc/resolv.conf")
    status, error, _ = fetch("absent.test", "absent")
    check(status == 69 and "absent.test" in error, f"absent.test: exit {status}")


def main():
    options, rng = host.begin(__doc__, needs=("root", "mounts", "ip", "readelf", "ldd"), binary=None, profile="release")
    if options.binary:
        program = Path(options.binary)
    else:
        command = [preheat.REPOSITORY / "scripts/build-static", *(["--debug"] if options.profile == "debug" else [])]
        built = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if built.returncode != 0:
            sys.exit(f"FAILED: {command[0]}: exit {built.returncode}")
        program = preheat.REPOSITORY / built.stdout.strip()
    print(f"the binary: {program}")
    is_static(program)
    host.need("network")
    work = host.work_directory()
    models.write_model(work / "source" / "model", rng.random(), shards=2, shard_bytes=8 << 20, small_files=3)
    right = models.digests(work / "source" / "model")
    published = subprocess.run([program, "manifest", work / "source" / "model"], capture_output=True, check=True).stdout
    (work / "source" / "model" / "preheat-manifest.json").write_bytes(published)
    empty, ca = Empty(work, program), authority.Authority()
    (empty.root / "ca.pem").write_bytes(ca.pem)
    inside = sorted(str(path.relative_to(empty.root)) for path in empty.root.rglob("*") if path.is_file())
    print(f"all files of its root: {', '.join(inside)}")
    with origin.Origin(work / "source", tls=ca.server(work, "127.0.0.1", "localhost", "models.test")) as web:
        print("through a daemon")
        through_a_daemon(empty, web, right, work)
        print("alone")
        alone(empty, web, right)
        print("names")
        resolution(empty, web, right)


if __name__ == "__main__":
    main()
