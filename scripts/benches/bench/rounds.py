"""Rounds in which clients take turns, so that what the machine does meanwhile falls on all of them alike."""

import dataclasses
import mmap
import shutil
import statistics
import sys

from . import clients, measure

FOREIGN = 0.05
"""Share of the machine that somebody else may use before a run counts as disturbed."""
TRIES = 3


def say(text):
    """To a person who waits."""
    print(text, file=sys.stderr, flush=True)


def play(contestants, work, server, model_bytes, rounds, large, environment=None, seconds=600, may_fail=False):
    """Runs every client once a round, in turning order. Answers {name: [Taken]}.

    With `may_fail` a client that fails, or is not done after `seconds`, is out of the game, and what it did is not counted.

    `model_bytes`: what the origin has to send at least 0.99 of in every run; `large`: {file name: size} that must be there after
    one. A run that somebody else disturbed is repeated; the last try counts, with a flag.
    """
    results = {client.name: [] for client in contestants}
    # Unrecorded: memory that this virtual machine has never touched is slower by several times, and binaries are cold.
    if not may_fail:
        for client in [one for one in contestants if one.keeps][:1] or contestants:
            _once(client, work, server, model_bytes, large, environment or {}, seconds)
    out = set()
    for number in range(rounds):
        turn = number % len(contestants)
        for client in contestants[turn:] + contestants[:turn]:
            if client.name in out:
                continue
            try:
                taken = _undisturbed(client, work, server, model_bytes, large, environment or {}, seconds)
            except measure.Failed as failure:
                if not may_fail:
                    raise
                say(f"  {client.name}: {failure}")
                out.add(client.name)
                results[client.name] = []
                continue
            results[client.name].append(taken)
            flags = f"  {', '.join(taken.flags)}" if taken.flags else ""
            rate = model_bytes / taken.wall / 1e9
            say(f"  round {number + 1}: {client.name:32} {taken.wall:7.3f} s {rate:6.3f} GB/s {taken.client_cpu:7.2f} cpu-s{flags}")
    return results


def _undisturbed(client, work, server, model_bytes, large, environment, seconds):
    for attempt in range(TRIES):
        taken = _once(client, work, server, model_bytes, large, environment, seconds)
        if taken.foreign <= FOREIGN:
            return taken
        say(f"  {client.name}: others used {taken.foreign:.0%} of the machine" + ("; again" if attempt + 1 < TRIES else ""))
    taken.flags.append(f"disturbed ({taken.foreign:.0%})")
    return taken


def _once(client, work, server, model_bytes, large, environment, seconds):
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = work / "client.log"
    log.unlink(missing_ok=True)
    command = client.command(out)
    server = client.server or server
    _touch_memory(model_bytes + (256 << 20))
    if client.before:
        client.before()
    try:
        taken = measure.run(command, log, clients.environment(**environment | client.environment), server, seconds)
        if client.keeps:
            _complete(client, out, large)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    if getattr(server, "counts", False) and taken.origin_bytes < 0.99 * model_bytes:
        raise measure.Failed(f"{client.name}: the origin sent {taken.origin_bytes} of {model_bytes} bytes")
    return taken


def _touch_memory(size):
    """Takes so much memory, and gives it back: what a virtual machine has not used for a while, or never, has to be found by its
    host first, which may cost a run as much as all else that it does."""
    with mmap.mmap(-1, size) as memory:
        memory[::4096] = bytes(len(range(0, size, 4096)))


def _complete(client, out, large):
    """Every large file is there, whole."""
    found = {path.name: path.stat().st_size for path in out.rglob("*.safetensors") if path.is_file()}
    for name, size in large.items():
        if found.get(name) != size:
            raise measure.Failed(f"{client.name}: {name} has {found.get(name)} of {size} bytes")


def table(contestants, taken, model_bytes, intro, **more):
    """What a scenario found whose clients all do the same: told by `report.table`. Runs are kept, so that further rounds can join."""
    lines = {one.name: {"checks": one.checks, "peer": one.peer, "runs": [dataclasses.asdict(run) for run in taken[one.name]]} for one in contestants}
    return settle({"intro": intro, "bytes": model_bytes, "clients": lines} | more)


def settle(facts):
    """Computes the medians of a table anew from its runs."""
    for line in facts["clients"].values():
        line |= medians([measure.Taken(**run) for run in line["runs"]], facts["bytes"])
    facts["rounds"] = min(len(line["runs"]) for line in facts["clients"].values())
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
        "seconds": median(lambda one: one.wall),
        "seconds_all": [round(one.wall, 4) for one in taken],
        "gb_per_second": median(lambda one: gigabytes / one.wall),
        "client_cpu_per_gb": median(lambda one: one.client_cpu / gigabytes),
        "server_cpu_per_gb": median(lambda one: one.server_cpu / gigabytes),
        "peak_rss": max(one.rss for one in taken),
        "origin_bytes_ratio": [round(one.origin_bytes / model_bytes, 4) for one in taken],
        "origin_requests": median(lambda one: one.origin_requests),
        "foreign": [round(one.foreign, 3) for one in taken],
        "flags": sorted({flag for one in taken for flag in one.flags}),
    }
