"""Power cuts under a working daemon, and what the next boot finds.

Each cut: boot, let the daemon recover, look at everything that can be seen, have it fetch (and now and then evict), and cut the
power at a random moment, often right after a promise. Shown: no tree has a wrong byte or lacks a file; whatever was called
durable is there after the next start, whole, and without a byte from the origin.

With --mutants each seeded defect must be caught. See README.md.
"""

import sys
import threading
import time
from pathlib import Path

from rig import disk, host, models, origin, preheat, shelf

MUTANTS = (
    "no_file_fsync",
    "no_directory_fsync",
    "rename_before_sync",
    "ack_before_directory_sync",
    "manifest_before_blobs",
    "received_kept_across_boot",
)
"""What each takes away is said where it is planted, `mutant("...")` in src/."""

CUTS_A_DISK = 25
"""Then the disk is made anew: an old store and a fresh one both take part."""


class Caught(Exception):
    """A promise was broken."""


class Campaign:
    """Cuts on one kind of disk, with or without a mutant."""

    def __init__(self, program, kind, work, sources, web, rng, mutant=None):
        self.program, self.kind, self.work, self.rng, self.mutant = program, kind, Path(work), rng, mutant
        self.sources, self.web = sources, web
        self.machine = preheat.Machine()
        self.promised, self.promises, self.recovered, self.evictions = {}, 0, 0, 0
        self.work.mkdir()

    def run(self, cuts):
        """Makes so many cuts; answers the number of the one that broke a promise, and how, or None."""
        done = 0
        while done < cuts:
            self.promised = {}
            with disk.disk(self.kind, self.work) as loop:
                for _ in range(min(CUTS_A_DISK, cuts - done)):
                    done += 1
                    try:
                        self.cut(loop)
                    except Caught as broken:
                        return done, str(broken)
        return None

    def cut(self, loop):
        self.machine.boot_again()
        arguments = ["--socket", self.work / "s.sock", "--config", self.configuration(), "--allow-origin", self.web.url]
        log = self.work / "daemon.log"
        daemon = preheat.Daemon(self.program, loop.path / "store", self.machine, log, arguments, mutant=self.mutant)
        try:
            try:
                daemon.start()
            except RuntimeError as error:
                raise Caught(f"it does not start: {error}") from None
            self.look(daemon)
            durable = shelf.Durable(daemon)
            self.work_for_a_while(daemon, durable)
            told = durable.stop()
            self.promises += len(told.keys() - self.promised.keys())
            self.promised |= told
            disk.power_cut(loop, [daemon.process], None, self.rng, writeback_chance=0.6)
        finally:
            daemon.kill()
            if not loop.mounted:
                loop.mount()

    def configuration(self):
        """Small parts and quick syncs, and a sealing that is at once or late: more moments at which something is half done."""
        path = self.work / "preheat.toml"
        path.write_text(
            f'[store]\nseal_delay = "{self.rng.choice((20, 20, 400))}ms"\n'
            '[transfer]\npart_bytes = "2MiB"\nconnections_start = 4\nsync_every = "100ms"\nsync_bytes = "4MiB"\n'
        )
        return path

    def look(self, daemon):
        """Everything that can be seen right after the start."""
        listed = {model["id"]: model for model in daemon.ask("GET", "/v1/models")}
        visible = shelf.trees(daemon.root)
        for identity, tree in visible.items():
            if identity not in listed:
                raise Caught(f"{tree} is a tree of no model")
            name = listed[identity]["reference"].rstrip("/").rsplit("/", 1)[1]
            if wrong := self.sources.wrong(name, tree):
                raise Caught(wrong)
        for identity in listed.keys() - visible.keys():
            raise Caught(f"{identity} is listed and has no tree")
        for identity, reference in self.promised.items():
            if identity not in listed:
                raise Caught(f"{reference} was durable and is gone")
        self.recovered += len(listed)

    def work_for_a_while(self, daemon, durable):
        """Fetches, evicts, and returns at a moment worth cutting at."""
        if self.rng.random() < 0.25:
            # Their presence is promised no more, nor that of anything fetched while the eviction may still run.
            self.promised.clear()
            durable.stop()
            durable.told.clear()
            self.evictions += 1
            self.evict_in_passing(daemon)
        names = self.rng.sample(self.sources.names, self.rng.randrange(1, len(self.sources.names)))
        for name in names:
            daemon.ask("POST", "/v1/prewarm", {"reference": f"{self.web.url}/{name}", "priority": "demand"})
        if self.rng.random() < 0.5 and durable.is_alive():
            durable.news.clear()
            durable.news.wait(timeout=1.5)
            time.sleep(self.rng.choice((0, 0, 0.002, 0.01)))
        else:
            time.sleep(self.rng.random() * 0.5)

    def evict_in_passing(self, daemon):
        """Starts an eviction and does not wait for it: the cut may come in its middle."""
        def evict():
            try:
                daemon.ask("POST", "/v1/gc", {"all": True})
            except (OSError, RuntimeError, ValueError):
                pass

        threading.Thread(target=evict, daemon=True).start()


def main():
    options, rng = host.begin(__doc__, needs=disk.NEEDS, cuts=200, kind="both", mutants="none", mutant_cuts=150, mib=9)
    work, program = host.work_directory(), preheat.binary()
    kinds = list(disk.KINDS) if options.kind == "both" else [options.kind]
    sources = shelf.Shelf(work / "source", rng, program, mib=options.mib)
    failed = False
    with origin.Origin(work / "source", rate=60 << 20) as web:
        for kind in kinds if options.cuts else []:
            campaign = Campaign(program, kind, work / kind, sources, web, rng)
            began = time.monotonic()
            caught = campaign.run(options.cuts)
            if caught:
                sys.exit(f"FAILED: {kind}, cut {caught[0]}: {caught[1]}")
            print(
                f"{kind}: {options.cuts} cuts in {time.monotonic() - began:.0f} s: {campaign.promises} models promised, none lost; "
                f"{campaign.recovered} seen after a cut, every byte right; {campaign.evictions} times everything was evicted"
            )
        chosen = {"none": (), "all": MUTANTS}.get(options.mutants, options.mutants.split(","))
        for mutant in chosen:
            found = None
            for kind in kinds:
                campaign = Campaign(program, kind, work / f"{mutant}-{kind}", sources, web, rng, mutant=mutant)
                if found := campaign.run(options.mutant_cuts):
                    print(f"{mutant}: caught on {kind} at cut {found[0]}: {found[1]}")
                    break
            if not found:
                print(f"{mutant}: SURVIVED {options.mutant_cuts} cuts on each of {', '.join(kinds)}")
                failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
