"""Rounds in which clients take turns, so that what the machine does meanwhile falls on all of them alike."""

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


def play(contestants, work, server, model_bytes, rounds, large, environment=None, seconds=600):
    """Runs every client once a round, in turning order. Answers {name: [Taken]}.

    `model_bytes`: what the origin has to send at least 0.99 of in every run; `large`: {file name: size} that must be there after
    one. A run that somebody else disturbed is repeated; the last try counts, with a flag.
    """
    results = {client.name: [] for client in contestants}
    # Unrecorded: memory that this virtual machine has never touched is slower by several times, and binaries are cold.
    for client in contestants:
        _once(client, work, server, model_bytes, large, environment or {}, seconds)
        if client.keeps:
            break
    for number in range(rounds):
        turn = number % len(contestants)
        for client in contestants[turn:] + contestants[:turn]:
            taken = _undisturbed(client, work, server, model_bytes, large, environment or {}, seconds)
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
    try:
        taken = measure.run(command, log, clients.environment(**environment | client.environment), server, seconds)
        if client.keeps:
            _complete(client, out, large)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    if server and taken.origin_bytes < 0.99 * model_bytes:
        raise measure.Failed(f"{client.name}: the origin sent {taken.origin_bytes} of {model_bytes} bytes")
    return taken


def _complete(client, out, large):
    """Every large file is there, whole."""
    found = {path.name: path.stat().st_size for path in out.rglob("*.safetensors") if path.is_file()}
    for name, size in large.items():
        if found.get(name) != size:
            raise measure.Failed(f"{client.name}: {name} has {found.get(name)} of {size} bytes")


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
