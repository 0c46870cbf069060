"""The rig's own machine: what it must have, the seed, a work directory, and an end that leaves nothing behind."""

import argparse
import atexit
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

SKIPPED = 77
"""Exit status of a rig that this machine cannot run (automake's convention)."""

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_REC_PRIVATE = 0x4000 | 0x40000


class Unfit(Exception):
    """This machine lacks something that the rig needs."""


def begin(description, needs=(), **arguments):
    """Parses the command line, checks `needs`, prints the seed. Returns (options, rng).

    `needs` holds commands ("mkfs.xfs") and "root", "loop", "mounts", "network" (of its own, with a loopback only). `arguments`
    maps further long options to their defaults: `cuts=200` gives `--cuts`, of the default's type; `suite=False` a flag.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="repeat an earlier run; its seed is its first line")
    for name, default in arguments.items():
        if default is False:
            parser.add_argument("--" + name.replace("_", "-"), action="store_true")
            continue
        kind = str if default is None else type(default)
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=default)
    options = parser.parse_args()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    sys.stdout.reconfigure(line_buffering=True)
    need(*needs)
    seed = int.from_bytes(os.urandom(4)) if options.seed is None else options.seed
    print(f"seed {seed}: {Path(sys.argv[0]).name} --seed {seed} repeats its choices")
    return options, random.Random(seed)


def need(*needs):
    """Ends the rig as skipped unless the machine has all of them."""
    try:
        for each in needs:
            _require(each)
    except Unfit as missing:
        skip(missing)


def skip(missing):
    """Ends a rig that this machine cannot run."""
    print(f"skipped: no {missing}")
    # A rig that is skipped unseen proves nothing: where all of them are expected to run, that is a failure.
    sys.exit(1 if os.environ.get("CI") == "true" else SKIPPED)


def _require(need):
    if need == "root":
        if os.geteuid() != 0:
            raise Unfit("root")
    elif need == "loop":
        if not os.path.exists("/dev/loop-control"):
            raise Unfit("loop devices (/dev/loop-control)")
    elif need == "mounts":
        own_mounts()
    elif need == "network":
        own_network()
    elif shutil.which(need) is None:
        raise Unfit(f"{need} (scripts/setup installs it)")


def own_mounts():
    """Moves this process into its own mount namespace. Once, before any thread: what is mounted later goes with it."""
    if own_mounts.done:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise Unfit(f"own mount namespace ({os.strerror(ctypes.get_errno())})")
    if libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) != 0:
        raise Unfit(f"private mounts ({os.strerror(ctypes.get_errno())})")
    own_mounts.done = True


own_mounts.done = False


def own_network():
    """Moves this process into its own network, where every port is free and nothing else can be reached. Once, before any thread."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
        raise Unfit(f"own network namespace ({os.strerror(ctypes.get_errno())})")
    run("ip", "link", "set", "lo", "up")


def work_directory():
    """A fresh directory that goes with the rig. Where the rig has its own mounts it is a tmpfs of them."""
    path = Path(tempfile.mkdtemp(prefix="preheat-rig-"))
    if own_mounts.done:
        run("mount", "-t", "tmpfs", "-o", "mode=0755", "preheat-rig", path)
    atexit.register(_remove, path)
    return path


def _remove(path):
    if own_mounts.done:
        # Lazily: a victim that is just dying may still hold a file, and the namespace ends with us anyway.
        subprocess.run(["umount", "--recursive", "--lazy", path], stderr=subprocess.DEVNULL)
    shutil.rmtree(path, ignore_errors=True)


def cache():
    """Where scripts/setup keeps what it fetches."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preheat"
    return Path(os.environ.get("PREHEAT_CACHE") or default)


def run(*command, **options):
    """Runs a command that must succeed; its output is shown when it does not."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stdout.strip()}")
    return done.stdout


def free_port():
    """A TCP port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
