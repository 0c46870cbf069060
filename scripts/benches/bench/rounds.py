"""Rounds in which clients take turns, so that what the machine does meanwhile falls on all of them alike."""

import dataclasses
import mmap
import shutil
import statistics
import sys
from pathlib import Path

from . import clients, measure

FOREIGN = 0.05
"""Share of the machine that somebody else may use before a run counts as disturbed."""
TRIES = 2
"""How often a run is tried that somebody disturbs: where somebody always does, all takes twice the time."""


def say(text):
    """To a person who waits."""
    print(text, file=sys.stderr, flush=True)


def fewer(rounds):
    """Three fifths of the rounds, but three at least: for what takes so long that all of them would be most of the time."""
    return min(rounds, max(3, -(-rounds * 3 // 5)))


def play(contestants, work, server, source, rounds, seconds=600, faults=False, watched=False):
    """Runs every client once a round, in turning order, after a run of each that is not recorded. Answers {name: [Taken]}.

    That first run is where contents are compared with `source` (a `source.Source`), byte by byte; after every run the sizes are,
    and what the origin sent: at least 0.99 of the model. A run that somebody else disturbed is repeated; the least disturbed
    counts, with a flag. A client that is `slow` runs in `fewer` rounds, spread over all of them.

    With `faults` connections of the server fall silent, except when clients are warmed up; contents are then compared after every
    run, and a client that fails, or is not done after `seconds`, is out of the game, and what it did is not counted. `watched`: the
    servers' memory is sampled.
    """
    results = {client.name: [] for client in contestants}
    game = _Game(work, server, source, seconds, faults, watched)
    # Memory that this virtual machine has never touched is slower by several times, and binaries and interpreters are cold.
    for client in contestants:
        say(f"  unrecorded: {client.name:29} {game.once(client, warming=True).wall:7.3f} s")
    out, few = set(), fewer(rounds)
    for number in range(rounds):
        turn = number % len(contestants)
        for client in contestants[turn:] + contestants[:turn]:
            if client.name in out or (client.slow and number and number * few // rounds == (number - 1) * few // rounds):
                continue
            try:
                taken = _undisturbed(game, client)
            except measure.Failed as failure:
                if not faults:
                    raise
                say(f"  round {number + 1}: {client.name}: {failure}")
                out.add(client.name)
                results[client.name] = []
                continue
            results[client.name].append(taken)
            marks = [f"{taken.stalls} connections fell silent"] * faults + taken.flags
            rate = source.bytes / taken.wall / 1e9
            say(f"  round {number + 1}: {client.name:32} {taken.wall:7.3f} s {rate:6.3f} GB/s {taken.client_cpu:7.2f} cpu-s  {', '.join(marks)}".rstrip())
    return results


def _undisturbed(game, client):
    tries = []
    for attempt in range(TRIES):
        tries.append(game.once(client))
        taken = tries[-1]
        if taken.foreign <= FOREIGN:
            return taken
        say(f"  {client.name}: others used {taken.foreign:.0%} of the machine" + ("; again" if attempt + 1 < TRIES else ""))
    taken = min(tries, key=lambda one: one.foreign)
    taken.flags.append(f"disturbed ({taken.foreign:.0%})")
    return taken


@dataclasses.dataclass
class _Game:
    """What the clients of one `play` have in common."""

    work: Path
    server: object
    source: object
    seconds: float
    faults: bool
    watched: bool

    def once(self, client, warming=False):
        """One run of one client."""
        out = self.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        log = self.work / "client.log"
        log.unlink(missing_ok=True)
        proving = warming and client.proof
        command = (client.proof if proving else client.command)(out)
        server = client.server or self.server
        if self.faults:
            server.run(faults=not warming)
        _touch_memory(self.source.bytes + (256 << 20))
        if client.before:
            client.before()
        try:
            taken = measure.run(command, log, clients.environment(**client.environment), server, self.seconds, self.watched)
            if client.keeps or proving:
                check = self.source.same if warming or self.faults else self.source.complete
                check(client.name, out, client.names)
        finally:
            shutil.rmtree(out, ignore_errors=True)
        if getattr(server, "counts", False) and taken.origin_bytes < 0.99 * self.source.bytes:
            raise measure.Failed(f"{client.name}: the origin sent {taken.origin_bytes} of {self.source.bytes} bytes")
        return taken


def _touch_memory(size):
    """Takes so much memory, and gives it back: what a virtual machine has not used for a while, or never, has to be found by its
    host first, which may cost a run as much as all else that it does."""
    with mmap.mmap(-1, size) as memory:
        memory[::4096] = bytes(len(range(0, size, 4096)))


def table(contestants, taken, source, intro, **more):
    """What a scenario found whose clients all do the same: told by `report.table`. Runs are kept, so that further rounds can join."""
    lines = {one.name: {"checks": one.checks, "peer": one.peer, "runs": [dataclasses.asdict(run) for run in taken[one.name]]} for one in contestants}
    return settle({"intro": intro, "bytes": source.bytes, "clients": lines} | more)


def settle(facts):
    """Computes the medians of a table anew from its runs."""
    for line in facts["clients"].values():
        line |= medians([measure.Taken(**run) for run in line["runs"]], facts["bytes"])
    facts["rounds"] = max(len(line["runs"]) for line in facts["clients"].values())
    return facts


def joined(one, other):
    """Rounds, or parts, of two runs of a scenario as one; the later alone where they are not of the same kind."""
    if "texts" in one and "texts" in other:
        return one | other | {"texts": one["texts"] | other["texts"]}
    if "intro" not in other or one.get("bytes") != other["bytes"]:
        return other
    for name, line in other["clients"].items():
        line["runs"] = one["clients"].get(name, {"runs": []})["runs"] + line["runs"]
    return settle(one | other | {"clients": one["clients"] | other["clients"]})


def medians(taken, model_bytes):
    """One line of a table out of the runs of one client."""
    def median(value):
        return statistics.median(value(one) for one in taken)

    gigabytes = model_bytes / 1e9
    return {
        "rounds": len(taken),
        "seconds": median(lambda one: one.wall),
        "seconds_all": [round(one.wall, 4) for one in taken],
        "gb_per_second": median(lambda one: gigabytes / one.wall),
        "client_cpu_per_gb": median(lambda one: one.client_cpu / gigabytes),
        "server_cpu_per_gb": median(lambda one: one.server_cpu / gigabytes),
        "peak_rss": max(one.rss for one in taken),
        "server_anonymous": max(one.server_anonymous for one in taken),
        "stalls": [one.stalls for one in taken],
        "origin_bytes_ratio": [round(one.origin_bytes / model_bytes, 4) for one in taken],
        "origin_requests": median(lambda one: one.origin_requests),
        "foreign": [round(one.foreign, 3) for one in taken],
        "flags": sorted({flag for one in taken for flag in one.flags}),
    }
