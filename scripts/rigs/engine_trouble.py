"""A machine on which something is wrong when an engine starts.

A disk that is full, at once or in the middle of a restore; a full store; a home that cannot be written to; a command that takes no
notice of SIGTERM, or hangs with what was restored; a probe that is never answered; eight starts at once; clocks that are wrong by
more than a year, and files from the future. Each time the command must run as it would alone, nothing half-restored may be there,
and the report must say why. The engine is one that compiles nothing (`tests/it/support/fake_engine.py`).
"""

import json
import os
import signal
import socket
import time

from rig import clock, engines, host
from rig.engines import PYTHON, check

USER = 1001
MUTANTS = {"view_on_full_disk": "full", "captured_by_all": "crowd", "clock_trusted": "clocks"}
"""By the part that must notice."""

LISTS_FILES = """
import json, os, sys, time
found = []
for directory, _, names in os.walk(sys.argv[1]):
    for name in names:
        facts = os.stat(os.path.join(directory, name))
        found.append([facts.st_dev, facts.st_ino, facts.st_nlink])
with open(os.environ["LISTED"], "w") as out:
    json.dump(found, out)
time.sleep(2)
"""
"""Notes which files the cache consists of, while the view is there."""

DATES = """
import os, sys, time
for directory, _, names in os.walk(sys.argv[1]):
    for name in names:
        path = os.path.join(directory, name)
        moment = int(sys.argv[2])
        if "SET" in os.environ:
            os.utime(path, ns=(moment, moment))
        elif os.stat(path).st_mtime_ns != moment:
            sys.exit(f"{path} is of {os.stat(path).st_mtime_ns}")
"""
"""Gives the files of a cache a time, or looks whether they have it."""


class Trouble:
    def __init__(self, mutant=None):
        self.machine = engines.Machine((0, USER), mutant)
        self.work = self.machine.work
        self.shared = self.work / "shared"
        self.shared.mkdir()
        self.key, self.signer = engines.make_key(self.machine)
        self.node = engines.Node(self.machine, "node", f"file://{self.shared}").start(engines.publishes(self.key, USER))

    def run(self, *flags, **more):
        return self.machine.run(self.node, USER, *flags, **more)

    def kept(self, *flags, **more):
        told = self.run(*flags, **more)
        check(told.is_cold() and told.report["captured"], "cold, and kept", told)
        return told

    def disk(self, name, option):
        """A small disk of the user's."""
        place = self.work / name
        place.mkdir(exist_ok=True)
        host.run("mount", "-t", "tmpfs", "-o", f"{option},mode=0700,uid={USER}", "small", place)
        return place

    def full(self):
        print("a full disk")
        flags = ("--files", 40)
        self.kept(*flags)
        for what, option in (("too small for a restore", "size=100k"), ("full in the middle of a restore", "nr_inodes=40")):
            small = self.disk("small", option)
            told = self.run(*flags, view_dir=small)
            left = [path for path in small.rglob("*") if path.is_file()]
            check(told.is_cold("space") and "made 40" in told.out and not left, f"{what}: {told.report['reason']}", f"{told} {left}")
            made = list(self.machine.cache.rglob("*.so"))
            check(len(made) == 40, "the command has used its own directory, which has room", told)
            host.run("rm", "-rf", self.machine.cache / "k")
            host.run("umount", small)
        check(self.run(*flags).is_hit(), "on another disk it is a hit")
        place = self.work / "tiny-store"
        place.mkdir()
        host.run("mount", "-t", "tmpfs", "-o", "size=24m", "tiny", place)
        node = engines.Node(self.machine, "tiny", f"file://{self.shared}").start()
        (place / "ballast").write_bytes(bytes(os.statvfs(place).f_bavail * 4096 - (1 << 20)))
        told = self.machine.run(node, USER, "--files", 41)
        check(told.is_cold() and not told.report["captured"], f"the store has no room: {told.report['capture']}", told)
        node.stop()
        host.run("umount", "--lazy", place)

    def home(self):
        print("a home that cannot be written to")
        home = self.work / "home-ro"
        cache = home / "cache"
        cache.mkdir(parents=True)
        host.run("mount", "--bind", home, home)
        host.run("mount", "-o", "remount,bind,ro", home)
        # Where views go when the home is not to be had.
        host.run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmp", "/var/tmp")
        how = {"view_dir": None, "environment": {"HOME": str(home)}}
        argv = [PYTHON, self.machine.engine, "--cache", cache]
        self.kept(argv=argv, options=["--cache-dir", f"d={cache}"], **how)
        told = self.run(argv=argv, options=["--cache-dir", f"d={cache}"], **how)
        check(told.is_hit() and not list(cache.iterdir()), "its cache directory is in it: a hit, in a view that is elsewhere", told)
        argv = [PYTHON, self.machine.engine, "--cache", self.work / "reports" / "own"]
        told = self.run(argv=argv, options=["--cache-dir", f"d={home}/none"], **how)
        check(told.is_cold("cannot be made"), f"its cache directory cannot be made: {told.report['notes'][0]}", told)
        host.run("umount", home)

    def deaf(self):
        print("commands that do not end, and probes that nobody answers")
        flags = ("--deaf", "--serve", 4, "--port", host.free_port())
        probe = ["--ready", f"http:{flags[-1]}/health"]
        process, report = self.machine.start(self.node, USER, *flags, options=probe)
        check(engines.until(report.exists), "it serves")
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        check(process.poll() is None, "told to end, it takes no notice, and is waited for")
        out, error = process.communicate(timeout=30)
        told = engines.Told(report, process.returncode, out, error)
        check(told.code == 0 and told.report["exit_code"] == 0, "it ends in its own time, with its own code", told)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for what, probe in (("never answers", f"http:{listener.getsockname()[1]}/health"), ("is nowhere", f"http:{host.free_port()}/health")):
                options = ["--ready", probe, "--ready-timeout", "1s"]
                began = time.monotonic()
                argv = ["sh", "-c", f"{PYTHON} {self.machine.engine} --cache {self.machine.cache} --files 11; sleep 2; exit 9"]
                told = self.run(argv=argv, options=options)
                took = time.monotonic() - began
                right = told.code == 9 and told.report["outcome"] == "cold" and not told.report["captured"] and took < 10
                check(right and "used 0, made 11" in told.out, f"a probe that {what}: it runs on, and nothing is kept: {told.report['reason']}", told)
                check("not ready after 1 s" in str(told.report["notes"]), "which is told", told)
        port = host.free_port()
        flags = ("--hang-if-warm", "--deaf", "--serve", 1, "--port", port)
        options = ["--ready", f"http:{port}/health", "--ready-timeout", "2s", "--retry-cold"]
        self.kept(*flags, options=options)
        told = self.run(*flags, options=options)
        right = told.code == 0 and told.report["outcome"] == "quarantined" and told.report["retried"]
        check(right and "used 0" in told.out, f"one that hangs with a bundle and cannot be told to end: {told.report['reason']}", told)

    def crowd(self):
        print("eight at once")
        (self.work / "lists.py").write_text(LISTS_FILES)
        cache = self.machine.cache
        argv = ["sh", "-c", f"{PYTHON} {self.machine.engine} --cache {cache} --files 20 && {PYTHON} {self.work}/lists.py {cache}"]
        for expected in ("cold", "hit"):
            listed = [self.machine.reports / f"listed-{expected}-{number}" for number in range(8)]
            started = [self.machine.start(self.node, USER, argv=argv, environment={"LISTED": str(path)}) for path in listed]
            done = []
            for process, report in started:
                out, error = process.communicate(timeout=60)
                done.append(engines.Told(report, process.returncode, out, error))
            outcomes = [told.report["outcome"] for told in done]
            check(outcomes == [expected] * 8, f"eight times {expected}", "\n".join(map(str, done)))
            captured = [told.report["captured"] for told in done]
            check(sum(captured) == (expected == "cold"), f"captured {sum(captured)} times", captured)
            files = [tuple(facts[:2]) for path in listed for facts in json.loads(path.read_text())]
            links = {facts[2] for path in listed for facts in json.loads(path.read_text())}
            check(len(files) == len(set(files)) == 160 and links == {1}, "160 files, none of them shared, none with a second name")
            store = {(path.stat().st_dev, path.stat().st_ino) for path in self.node.root.rglob("*") if path.is_file()}
            check(not store & set(files), "and none of them is the store's")
        keys = [json.loads(path.read_text())["bundle"] for path in self.shared.glob("keys/*")]
        twice = self.run(argv=argv, environment={"LISTED": "/dev/null"}).report["bundle"]
        check(engines.until(lambda: keys.count(twice) == 1), "one is published", keys)

    def clocks(self):
        print("clocks that are wrong")
        (self.work / "dates.py").write_text(DATES)
        wrong = clock.Clock(self.work)
        cache, moment = self.machine.cache, time.time_ns() + 2 * 365 * 86400 * 10**9
        for files, (what, date) in enumerate((("in two years", moment), ("of 1970", 1), ("of 2200", 7258118400 * 10**9 + 7)), 12):
            command = f"{PYTHON} {self.machine.engine} --cache {cache} --files {files} && {PYTHON} {self.work}/dates.py {cache} {date}"
            argv = ["sh", "-c", command]
            self.kept(argv=argv, environment={"SET": "1"})
            told = self.run(argv=argv)
            check(told.is_hit(), f"files {what}: a hit, and to the nanosecond as they were", told)
        settings = engines.publishes(self.key, USER)
        flags = ("--files", 16)
        first = self.kept(*flags)
        seen = []
        for days in (-400, 400, 0):
            self.node.start(settings, environment=wrong.moved(days))
            told = self.run(*flags)
            check(told.is_hit(), f"a daemon {days:+} days off: a hit", told)
            told = self.run(*flags, options=["--refresh"])
            check(told.report["captured"], "captured anew", told)
            now = self.run(*flags)
            check(now.is_hit() and now.report["bundle"] == told.report["bundles"][0]["captured"], "which is what is restored from then on", now)
            seen.append(now.report["bundle"])
        check(len({*seen, first.report["bundles"][0]["captured"]}) == 4, "four bundles, one after the other")
        newest = max(one["bundle"]["captured_at"] for one in json.loads(self.machine.ask(self.node, USER, "list", "--json").stdout))
        check(newest > time.time() + 399 * 86400, "and the daemon did have the wrong time", newest)
        for days in (-400, 400):
            told = self.run(*flags, environment=wrong.moved(days))
            check(told.is_hit(), f"a command {days:+} days off: a hit", told)

    def all(self, parts=("full", "home", "deaf", "crowd", "clocks")):
        for part in parts:
            began = time.monotonic()
            getattr(self, part)()
            print(f"  {time.monotonic() - began:.1f} s")
        self.node.stop()


def main():
    options, _ = host.begin(__doc__, needs=("root", "mounts", "setpriv", "unshare", "cc"), mutants="all")
    os.umask(0o022)
    engines.need_users(USER)

    def try_it(mutant):
        Trouble(mutant).all(**({"parts": [MUTANTS[mutant]]} if mutant else {}))

    engines.judge(try_it, MUTANTS, options.mutants)


if __name__ == "__main__":
    main()
