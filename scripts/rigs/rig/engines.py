"""Starts of an engine by `preheat run`, as users of one machine make them: each with a view of its own, against a daemon's socket."""

import json
import os
import shutil
import subprocess
import sys
import time

from . import host, preheat

PYTHON = "/usr/bin/python3"
"""An interpreter that every user may run."""


def as_user(uid):
    """Words before a command that make it this user's, without another group and without privileges."""
    return ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--pdeathsig", "KILL", "--"]


def need_users(*uids):
    """Skips the rig where these users may not run Python, or have no mount namespace of their own."""
    probe = ["unshare", "--user", "--map-root-user", "--mount", PYTHON, "-c", "pass"]
    for uid in uids:
        words = [str(word) for word in [*as_user(uid), *probe]]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            host.skip(f"user {uid} with {PYTHON} in a namespace of its own ({done.stderr.strip()})")


class Broken(Exception):
    """Something does not hold."""


def check(holds, what, told=""):
    """Raises unless it holds; else says it. `told`: what somebody who looks for the cause wants to see."""
    if not holds:
        raise Broken(f"{what}\n{told}".rstrip())
    print(f"  {what}")


def judge(try_it, mutants, chosen):
    """Runs `try_it(None)`, which must hold, then `try_it(mutant)` for the chosen of them ("all", or names), which must not. Ends the rig."""
    try:
        try_it(None)
    except Broken as broken:
        sys.exit(f"FAILED: {broken}")
    survivors = []
    for mutant in mutants if chosen == "all" else filter(None, chosen.split(",")):
        try:
            try_it(mutant)
            survivors.append(mutant)
        except Broken as broken:
            print(f"{mutant}: caught: {str(broken).splitlines()[0]}")
    sys.exit(f"FAILED: not noticed: {', '.join(survivors)}" if survivors else 0)


class Told:
    """A start that is over: what the engine printed, and the report."""

    def __init__(self, report, code, out, error):
        self.code, self.out, self.error = code, out, error
        self.report = json.loads(report.read_text()) if report.exists() else {}

    def __str__(self):
        return f"exit {self.code}\n{self.out}{self.error}{json.dumps(self.report, indent=1)}"

    def is_hit(self):
        return self.code == 0 and self.report["outcome"] == "hit" and "made 0" in self.out

    def is_cold(self, *words):
        """Whether nothing was restored, the command ran well, and what is told has these words."""
        said = " ".join([self.report["reason"], self.report["capture"], *self.report["notes"]])
        nothing = self.report["restored_bytes"] == 0 and self.report["outcome"] == "cold" and "used 0" in self.out
        return self.code == 0 and nothing and all(word in said for word in words)


class Machine:
    """One machine. All its users say the same path for the cache and for their home, as containers of one image do."""

    def __init__(self, uids, mutant=None):
        self.mutant, self.work = mutant, host.work_directory()
        # Copies: not everybody may look where they were built.
        self.program, self.engine = self.work / "preheat", self.work / "engine.py"
        shutil.copy(preheat.binary(), self.program)
        shutil.copy(preheat.REPOSITORY / "tests/it/support/fake_engine.py", self.engine)
        self.cache, self.home, self.reports = self.work / "cache", self.work / "home", self.work / "reports"
        for place in (self.cache, self.home, self.reports):
            place.mkdir()
            place.chmod(0o1777)
        for uid in uids:
            self.views(uid).mkdir(mode=0o700)
            os.chown(self.views(uid), uid, uid)
        self.started = 0

    def views(self, uid):
        return self.work / f"views-{uid}"

    def environment(self):
        """What every process has; nothing of the caller's own shell."""
        return {"PATH": "/usr/bin:/bin", "HOME": str(self.home)} | ({"PREHEAT_MUTANT": self.mutant} if self.mutant else {})

    def start(self, node, uid, *flags, argv=None, options=(), view_dir=True, environment=None, before=(), **more):
        """Starts a command, by default the engine with these flags; answers (process, path of its report)."""
        self.started += 1
        report = self.reports / f"{self.started}.json"
        words = [*as_user(uid), *before, self.program, "run", "--engine", "generic-dir", "--settle", "200ms", "--report", report]
        words += ["--daemon", f"unix:{node.socket}"] + (["--view-dir", self.views(uid)] if view_dir is True else [])
        words += ["--view-dir", view_dir] if view_dir not in (True, None) else []
        words += ["--cache-dir", f"c={self.cache}", *options, "--", *(argv or [PYTHON, self.engine, "--cache", self.cache, *flags])]
        known = self.environment()
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": self.work} | more
        return subprocess.Popen([str(word) for word in words], env=known | (environment or {}), **streams), report

    def run(self, node, uid, *flags, seconds=60, **more):
        """The same, to its end."""
        process, report = self.start(node, uid, *flags, **more)
        try:
            out, error = process.communicate(timeout=seconds)
        finally:
            process.kill()
        return Told(report, process.returncode, out, error)

    def ask(self, node, uid, *words):
        """`preheat engine` of a user; the ended process."""
        command = [*as_user(uid), self.program, "engine", *words, "--daemon", f"unix:{node.socket}"]
        words, known = [str(word) for word in command], self.environment()
        return subprocess.run(words, env=known, capture_output=True, text=True, timeout=60, cwd=self.work)


class Node:
    """A daemon of root's, with a socket for everybody."""

    def __init__(self, machine, name, origin):
        self.machine, self.origin, self.daemon = machine, origin, None
        place = machine.work
        self.root, self.socket, self.revoked = place / f"{name}-store", place / f"{name}.sock", place / f"{name}-revoked"
        self._configuration, self._log = place / f"{name}.toml", place / f"{name}.log"
        self.revoked.write_text("")

    def start(self, settings="", environment=None):
        """Starts it, or starts it again with other settings for `[engines]`."""
        self.stop()
        engines = f'[engines]\norigin = "{self.origin}"\nrevocations_file = "{self.revoked}"\n{settings}'
        # 0666: everybody may come, and the kernel says who it is.
        self._configuration.write_text(f'[server]\nsocket_mode = 438\n[store]\nkeep_free = "1MiB"\n{engines}')
        arguments = ["--socket", self.socket, "--config", self._configuration]
        boot, mutant = preheat.Machine(), self.machine.mutant
        self.daemon = preheat.Daemon(self.machine.program, self.root, boot, self._log, arguments, mutant, environment).start()
        return self

    def stop(self):
        """Ends it in order."""
        if self.daemon and (code := self.daemon.stop()) != 0:
            raise Broken(f"the daemon ends with {code}:\n{self.daemon.tail()}")
        self.daemon = None

    def blob_with(self, text):
        """The file of the store that holds these bytes, sealed or not yet, and where in it they are."""
        for path in self.root.rglob("*"):
            if path.is_file() and (at := path.read_bytes().find(text)) >= 0:
                return path, at
        raise Broken(f"no blob holds {text}")


def publishes(key, *uids):
    """Settings of a node that signs and publishes what these users capture."""
    return f'signing_key_file = "{key}"\npublish = [{", ".join(f"{chr(34)}uid-{uid}{chr(34)}" for uid in uids)}]\n'


def trusts(signer):
    """Settings of a node that restores what this signer vouches for."""
    return f'[[engines.signers]]\nname = "ci"\nkey = "{signer}"\n'


def make_key(machine):
    """A key that signs: its file, and its public half."""
    path = machine.work / "signing.pem"
    said = host.run(machine.program, "engine", "keygen", path)
    return path, next(word for word in said.replace('"', " ").split() if len(word) == 64)


def until(holds, seconds=20):
    """Waits for something that nobody else waits for; answers whether it has come."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def spoil(path, change):
    """Changes bytes of a file in place, whatever its mode, as a bad disk would. `change` answers the new content."""
    content = bytearray(path.read_bytes())
    changed = change(content)
    with open(path, "r+b") as file:
        file.write(changed)
        file.truncate()
