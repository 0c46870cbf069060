"""A daemon, and a fetch without one, killed again and again at any moment (SIGKILL), on one root and one boot.

Shown: no tree ever has a wrong byte or lacks a file; whatever was ready before is there after; and what has to be fetched again
is at most what was in flight: kills x connections x part.

With --mutants each seeded defect must be caught. See README.md.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from rig import host, models, origin, preheat, shelf, victim

MUTANTS = (
    "journal_ignored",
    "temporaries_not_swept",
    "tree_built_in_place",
)
"""What each takes away is said where it is planted, `mutant("...")` in src/."""

CONNECTIONS = 2
PART = 16 << 20
"""The first parts asked for."""

UNNOTED = 11 << 20
"""What a connection has received and not noted at most: eight groups (MARK_GROUPS in the transfer), two under way to the disk,
one arriving. Less than a part."""


class Caught(Exception):
    """A promise was broken."""


class Campaign:
    def __init__(self, program, work, sources, web, rng, mutant=None):
        self.program, self.work, self.sources, self.web, self.rng, self.mutant = program, Path(work), sources, web, rng, mutant
        self.machine = preheat.Machine()
        self.work.mkdir()
        self.configuration = self.work / "preheat.toml"
        self.configuration.write_text(
            f'[store]\nseal_delay = "20ms"\n[transfer]\npart_bytes = "{PART}"\nconnections_max = {CONNECTIONS}\n'
            f"connections_start = {CONNECTIONS}\n"
        )
        self.kills = self.useful = self.seen = 0

    # The daemon.

    def daemon_rounds(self, kills):
        """One root, killed until the shelf is whole; then another root."""
        while self.kills < kills:
            root = self.work / f"store-{self.kills}"
            self.web.reset_counters()
            began, ready, cuts = self.kills, set(), 0
            while True:
                daemon = self.daemon(root)
                self.look(daemon, ready)
                for name in self.sources.names:
                    daemon.ask("POST", "/v1/prewarm", self.request(name))
                if self.kills >= kills or cuts > 40:
                    for name in self.sources.names:
                        daemon.ask("POST", "/v1/prewarm", self.request(name) | {"wait": True}, seconds=120)
                    break
                if self.rng.random() < 0.4:
                    self.until_publishing(root)
                else:
                    time.sleep(self.moment())
                if len(daemon.ask("GET", "/v1/models")) == len(self.sources.names) and self.rng.random() < 0.7:
                    break
                ready |= {model["id"] for model in daemon.ask("GET", "/v1/models")}
                daemon.kill()
                self.look_at_the_dead(root)
                self.kills, cuts = self.kills + 1, cuts + 1
            self.look(daemon, ready)
            self.check_bytes(self.kills - began)
            told, done = preheat.verb(self.program, "verify", "--root", root, "--json", machine=self.machine, expect=None)
            if done.returncode != 0:
                raise Caught(f"verify: {told['faults'][:3]}")
            if leftovers := list((root / "tmp").iterdir()):
                raise Caught(f"left behind in tmp: {leftovers[:3]}")
            if daemon.stop() != 0:
                raise Caught(f"does not end well: {daemon.tail()}")
            subprocess.run(["rm", "-rf", root], check=True)

    def daemon(self, root):
        arguments = ["--socket", self.work / "s.sock", "--config", self.configuration, "--allow-origin", self.web.url]
        daemon = preheat.Daemon(self.program, root, self.machine, self.work / "daemon.log", arguments, mutant=self.mutant)
        try:
            return daemon.start()
        except RuntimeError as error:
            raise Caught(f"it does not start: {error}") from None

    def request(self, name):
        return {"reference": f"{self.web.url}/{name}", "priority": "demand"}

    def moment(self):
        """From at once to half a second: the start, the transfer, the sealing."""
        if self.mutant == "journal_ignored":
            # Long enough to have received more than may be lost.
            return 0.4 + self.rng.random()
        return self.rng.choice((0.0, 0.05, 0.2, 0.8, 0.8)) * self.rng.random()

    def until_publishing(self, root):
        """Returns while a model is being published, or was a moment ago: its pending file is written before its tree."""
        pending, deadline = root / "pending" / "default", time.monotonic() + 3
        before = set(os.listdir(pending)) if pending.is_dir() else set()
        while time.monotonic() < deadline:
            if pending.is_dir() and set(os.listdir(pending)) - before:
                time.sleep(self.rng.random() * 0.01)
                return
            time.sleep(0.0005)

    def look(self, daemon, ready):
        listed = {model["id"]: model for model in daemon.ask("GET", "/v1/models")}
        for identity, tree in shelf.trees(daemon.root).items():
            if identity not in listed:
                # Published since the list was asked for.
                listed = {model["id"]: model for model in daemon.ask("GET", "/v1/models")}
            if identity not in listed:
                raise Caught(f"{tree} is a tree of no model")
            if wrong := self.sources.wrong(listed[identity]["reference"].rsplit("/", 1)[1], tree):
                raise Caught(wrong)
            self.seen += 1
        if lost := ready - listed.keys():
            raise Caught(f"{lost} was ready and is gone")

    def look_at_the_dead(self, root):
        """What others see while no daemon runs: trees are whole then too."""
        for identity, tree in shelf.trees(root).items():
            if wrong := self.sources.wrong(identity.rsplit("-", 1)[0], tree):
                raise Caught(f"no daemon runs; {wrong}")

    def check_bytes(self, kills):
        """Compares what shards cost with what there is: other files are smaller than a part, and fetched whole."""
        shards = {path: count for path, count in self.web.by_path.items() if path.endswith(".safetensors")}
        size = sum((self.sources.directory / path.lstrip("/")).stat().st_size for path in shards)
        extra = max(0, sum(shards.values()) - size)
        allowed = kills * CONNECTIONS * UNNOTED
        self.useful += size
        if extra > allowed:
            raise Caught(f"{extra} bytes fetched again after {kills} kills, {allowed} allowed")
        print(f"  {kills} kills: {extra / (1 << 20):.1f} MiB of {size >> 20} fetched again, {extra / max(1, kills) / (1 << 20):.2f} a kill")

    # Without a daemon.

    def direct_rounds(self, kills):
        """`fetch --to`, killed until it is done, model after model."""
        begun = self.kills
        while self.kills - begun < kills:
            name = self.rng.choice(self.sources.names)
            to = self.work / f"to-{self.kills}"
            self.web.reset_counters()
            before = self.kills
            command = [self.program, "fetch", f"{self.web.url}/{name}", "--direct", "--to", to]
            while True:
                process = victim.start(
                    command, env=self.machine.environment(self.mutant), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                try:
                    if process.wait(timeout=None if self.kills - begun >= kills else self.moment()) != 0:
                        raise Caught(f"{name}: exit {process.returncode}")
                    break
                except subprocess.TimeoutExpired:
                    victim.kill([process])
                    self.kills += 1
                    self.look_directly(name, to)
            if wrong := self.sources.wrong(name, to):
                raise Caught(wrong)
            if (to / ".preheat").exists():
                raise Caught(f"{to}/.preheat is left behind")
            print(f"  {name} whole after {self.kills - before} kills, {sum(self.web.by_path.values()) >> 20} MiB received")
            subprocess.run(["rm", "-rf", to], check=True)

    def look_directly(self, name, to):
        """A file that has its name is whole, at any moment."""
        if not to.exists():
            return
        right = self.sources.files(name)
        for path, digest in models.digests(to).items():
            if not path.startswith(".preheat") and right.get(path) != digest:
                raise Caught(f"{to}/{path} is half a file")


def main():
    options, rng = host.begin(__doc__, kills=200, mutants="none", mutant_kills=160, mib=48)
    work, program = host.work_directory(), preheat.binary()
    sources = shelf.Shelf(work / "source", rng, program, count=4, mib=options.mib, small_files=1200)
    survived = False
    with origin.Origin(work / "source", rate=50 << 20) as web:
        if options.kills:
            campaign = Campaign(program, work / "whole", sources, web, rng)
            try:
                print("a daemon")
                campaign.daemon_rounds(options.kills * 3 // 4)
                print("without a daemon")
                campaign.direct_rounds(options.kills - options.kills * 3 // 4)
            except Caught as broken:
                sys.exit(f"FAILED at kill {campaign.kills}: {broken}")
            print(f"{campaign.kills} kills: {campaign.seen} trees seen, every byte right, nothing that was ready lost")
        for mutant in {"none": (), "all": MUTANTS}.get(options.mutants, options.mutants.split(",")):
            campaign = Campaign(program, work / mutant, sources, web, rng, mutant=mutant)
            try:
                campaign.daemon_rounds(options.mutant_kills)
                print(f"{mutant}: SURVIVED {campaign.kills} kills")
                survived = True
            except Caught as broken:
                print(f"{mutant}: caught at kill {campaign.kills}: {broken}")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
