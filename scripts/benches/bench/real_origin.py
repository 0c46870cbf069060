"""An origin as they are: TLS, 5 ms there and back (two of them before a connection's first request, as TCP and TLS 1.3 have it), 30 ms
from a request to its first byte (the way included), 85 MB/s a connection, and a link.

What counts is how much of the link a client fills; what a link has beyond what two cores can receive, decrypt, hash and write, with
the server that encrypts on the same two, is nobody's to fill. That limit is cores ÷ (client + server CPU-s/GB) of the floor over TLS
from the same server at no pace, which takes its turn in the same rounds; with SHA-256 where a client computes it."""

import contextlib

from . import clients, far, measure, rounds, sites

ROUND_TRIP_MS, FIRST_BYTE_MS, CONNECTION = 5, 30, 85e6
_STALLED_SECONDS = 60


def run(context):
    """What was found; `report.text` tells it."""
    facts, texts = {}, []
    for name, link, size in (("1 Gbit/s", 125e6, 128 << 20), ("10 Gbit/s", 1250e6, 1 << 30)):
        facts[name], text = on_link(context, name, link, 4, size >> 3 if context.quick else size)
        texts.append(text)
    return {"links": facts, "text": "\n\n".join(texts)}


def on_link(context, name, link, shards, each, stall_one_in=None):
    """One link. With `stall_one_in` one connection in so many stops for good."""
    rounds.say(f" {name}")
    # A place of its own for every link: origins number their connections.
    work = context.memory / name.replace("/", "").replace(" ", "-").replace(",", "")
    root, faults = work / "www", stall_one_in is not None
    source = context.model(root / "models" / "big", shards, each)
    files = source.names
    hub, bucket = sites.Hub(work, root, "org/big", "models/big"), sites.bucket(work, root, "models", "big")
    pace = {"round_trip_ms": ROUND_TRIP_MS, "first_byte_ms": FIRST_BYTE_MS, "connection_rate": CONNECTION, "total_rate": link}
    if faults:
        pace["stall_one_in"] = stall_one_in
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(far.Far(context.yardstick, work / "far", root, lambda storage: hub.table(storage) | bucket, tls=True, **pace))
        near = stack.enter_context(far.Far(context.yardstick, work / "near", root, tls=True))
        urls = [f"{server.url}/models/big/{name}" for name in files]
        floors = [_floor(context, near, files, sha256) for sha256 in (False, True)]
        contestants = context.chosen([
            clients.preheat(context.preheat, f"{server.url}/models/big", **server.trust),
            clients.preheat(context.preheat, "hf://org/big", "preheat fetch hf://", "SHA-256, BLAKE3", HF_ENDPOINT=server.hub_url, **server.trust),
            clients.with_environment(clients.s5cmd(server, "models", "big", files), server.trust),
            clients.slow(clients.hf(server, "org/big", **server.trust)),
            clients.slow(clients.aria2(urls, connections=16 if link < 200e6 else 64, authority=server.authority)),
        ])
        taken = rounds.play(contestants + floors, context.memory, server, source, context.rounds,
                            seconds=_STALLED_SECONDS if faults else 600, faults=faults)
    plain, hashed = (_limit(rounds.medians(taken[one.name], source.bytes)) for one in floors)
    lines = {}
    for one in contestants:
        limit = hashed if "SHA-256" in one.checks else plain
        line = {"checks": one.checks, "peer": one.peer, "cpu_limit": limit}
        if taken[one.name]:
            line |= rounds.medians(taken[one.name], source.bytes)
            line["of_the_best"] = line["gb_per_second"] * 1e9 / min(link, limit)
        else:
            line["failed"] = f"not done after {_STALLED_SECONDS} s, or an error"
        lines[one.name] = line
    facts = {"link": link, "cpu_limit": plain, "cpu_limit_sha256": hashed, "bytes": source.bytes, "rounds": context.rounds, "clients": lines}
    return facts, _text(name, facts, faults)


def _floor(context, near, files, sha256):
    name = "floor over TLS, at no pace" + (", with SHA-256" if sha256 else "")
    # What it takes of the processors is what counts, and that varies little.
    client = clients.floor(context.yardstick, near, "models/big", files, connections=8, sha256=sha256, name=name, authority=near.authority)
    client.server = near
    return clients.slow(client)


def _limit(floor):
    """Bytes a second at which both cores are busy."""
    return len(measure.cores()) / (floor["client_cpu_per_gb"] + floor["server_cpu_per_gb"]) * 1e9


def _text(name, facts, faults):
    link = facts["link"]
    rows = [
        f"**{name}**: the link has {link / 1e6:.0f} MB/s; the processors' limit is {facts['cpu_limit'] / 1e6:.0f} MB/s, and "
        f"{facts['cpu_limit_sha256'] / 1e6:.0f} MB/s with SHA-256 (cores ÷ CPU-s/GB of the floor over TLS and its server). "
        f"{facts['bytes'] >> 20} MiB, medians of {facts['rounds']}:",
        "",
        "| client | checks | MB/s | min(link, processors) | of it | client CPU-s/GB | server CPU-s/GB | requests |" + (" fell silent, by round |" if faults else ""),
        "|---|---|--:|--:|--:|--:|--:|--:|" + ("---|" if faults else ""),
    ]
    for client, line in facts["clients"].items():
        best = f"{min(link, line['cpu_limit']) / 1e6:.0f}"
        if "failed" in line:
            rows.append(f"| {client} | {line['checks']} | {line['failed']} | {best} | | | | |" + (" |" if faults else ""))
            continue
        marks = line["flags"] + ([f"{line['rounds']} rounds"] if line["rounds"] < facts["rounds"] else [])
        mark = f" ({', '.join(marks)})" if marks else ""
        rows.append(f"| {client}{mark} | {line['checks']} | {line['gb_per_second'] * 1e3:.0f} | {best} | {line['of_the_best']:.2f} "
                    f"| {line['client_cpu_per_gb']:.2f} | {line['server_cpu_per_gb']:.2f} | {line['origin_requests']:.0f} |"
                    + (f" {', '.join(map(str, line['stalls']))} |" if faults else ""))
    return "\n".join(rows)
