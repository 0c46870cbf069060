"""An origin as they are: TLS, 30 ms to the first byte, 85 MB/s a connection, and a link. What counts is how much of the link a
client fills; what a link has beyond what two cores can decrypt, hash and write (the floor over TLS, from the same server at no
pace) is nobody's to fill."""

import contextlib

from . import clients, far, rounds, sites

_STALLED_SECONDS = 60


def run(context):
    """What was found; `report.text` tells it."""
    facts, texts = {}, []
    for name, link, size in (("1 Gbit/s", 125e6, 128 << 20), ("10 Gbit/s", 1250e6, 512 << 20)):
        facts[name], text = on_link(context, name, link, 4, size >> 3 if context.quick else size)
        texts.append(text)
    return {"links": facts, "text": "\n\n".join(texts)}


def on_link(context, name, link, shards, each, **faults):
    rounds.say(f" {name}")
    # A place of its own for every link: origins number their connections.
    work = context.memory / name.replace("/", "").replace(" ", "-").replace(",", "")
    root = work / "www"
    large = context.model(root / "models" / "big", shards, each)
    model_bytes, files = sum(large.values()), sorted(large)
    hub, bucket = sites.Hub(work, root, "org/big", "models/big"), sites.bucket(work, root, "models", "big")
    pace = {"first_byte_ms": 30, "connection_rate": 85e6, "total_rate": link}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(far.Far(context.yardstick, work / "far", root, lambda storage: hub.table(storage) | bucket, tls=True, **pace, **faults))
        near = stack.enter_context(far.Far(context.yardstick, work / "near", root, tls=True))
        urls = [f"{server.url}/models/big/{name}" for name in files]
        limit = clients.floor(context.yardstick, near, "models/big", files, connections=8, name="floor over TLS, at no pace", authority=near.authority)
        contestants = context.chosen([
            clients.preheat(context.preheat, f"{server.url}/models/big", **server.trust),
            clients.preheat(context.preheat, "hf://org/big", "preheat fetch hf://", "SHA-256, BLAKE3", HF_ENDPOINT=server.hub_url, **server.trust),
            clients.with_environment(clients.s5cmd(server, "models", "big", files), server.trust),
            clients.hf(server, "org/big", **server.trust),
            clients.aria2(urls, connections=16 if link < 200e6 else 64, authority=server.authority),
        ])
        taken = rounds.play([limit], context.memory, near, model_bytes, max(1, context.rounds // 2), large)
        cpu_limit = rounds.medians(taken[limit.name], model_bytes)["gb_per_second"] * 1e9
        best = min(link, cpu_limit)
        count = 1 if faults else context.rounds
        taken = rounds.play(contestants, context.memory, server, model_bytes, count, large,
                            seconds=_STALLED_SECONDS if faults else 600, may_fail=bool(faults))
    lines = {}
    for one in contestants:
        if not taken[one.name]:
            lines[one.name] = {"checks": one.checks, "peer": one.peer, "failed": f"not done after {_STALLED_SECONDS} s, or an error"}
            continue
        line = {"checks": one.checks, "peer": one.peer} | rounds.medians(taken[one.name], model_bytes)
        lines[one.name] = line | {"of_the_best": line["gb_per_second"] * 1e9 / best}
    facts = {"link": link, "cpu_limit": cpu_limit, "bytes": model_bytes, "rounds": count, "clients": lines}
    rows = [
        f"**{name}** ({link / 1e6:.0f} MB/s; two cores manage {cpu_limit / 1e6:.0f} MB/s), {model_bytes >> 20} MiB, medians of {count}:",
        "",
        "| client | checks | MB/s | of min(link, CPU) | client CPU-s/GB | requests |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for client, line in lines.items():
        if "failed" in line:
            rows.append(f"| {client} | {line['checks']} | {line['failed']} | | | |")
        else:
            mark = f" ({', '.join(line['flags'])})" if line["flags"] else ""
            rows.append(f"| {client}{mark} | {line['checks']} | {line['gb_per_second'] * 1e3:.0f} | {line['of_the_best']:.2f} "
                        f"| {line['client_cpu_per_gb']:.2f} | {line['origin_requests']:.0f} |")
    return facts, "\n".join(rows)
