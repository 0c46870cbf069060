"""A capacity model out of what was measured: GB/s of a node by cores and link, what gives out first, and what to set then."""

CORES = (16, 32, 64)
LINKS = (25, 100, 400)
CONNECTION = 85e6
"""Bytes a second of one connection to an object store: what the models of real origins in `real_origin.py` have."""
THREADS = 8
"""What `write_threads` and `digest_threads` are at most unless they are set."""


def document(facts):
    """Markdown."""
    stages = facts["scenarios"]["stages"]
    loopback = facts["scenarios"]["loopback"]["clients"]
    # What a whole fetch cost beyond its stages: the sum is what was measured, whatever stages cost each other.
    known = stages["socket"] + stages["blake3"] + stages["write"]
    rest = max(0.0, loopback["preheat fetch"]["client_cpu_per_gb"] - known)
    kinds = {
        "bucket (TLS, BLAKE3)": known + rest + stages["tls"],
        "hub (TLS, BLAKE3, SHA-256)": known + rest + stages["tls"] + stages["sha256"],
        "a server in the cluster (no TLS)": known + rest,
    }
    machine = facts["machine"]
    lines = [
        "# Capacity",
        "",
        "Written by `scripts/bench --from FILE --docs benches`; the figures are those of RESULTS.md, measured on",
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel'].split('-')[0]}. Measure your own node and write it anew.",
        "",
        "## What a byte costs",
        "",
        "| stage | CPU-s/GB | GB/s a core |",
        "|---|--:|--:|",
    ]
    costs = (("receive from a socket", stages["socket"]), ("TLS", stages["tls"]), ("BLAKE3", stages["blake3"]), ("SHA-256, where a hub declares it", stages["sha256"]),
             ("write into the page cache", stages["write"]), ("the rest of a fetch (plan, parts, journal, seal)", rest))
    for name, cost in costs:
        lines.append(f"| {name} | {cost:.2f} | {f'{1 / cost:.1f}' if cost > 0.005 else '–'} |")
    lines += [
        "",
        "## What a node can bring",
        "",
        "GB/s = min(cores ÷ sum of the stages, link). Behind it: what gives out first. This assumes that cores add up, which was measured on",
        "two only; memory bandwidth (each byte crosses it about four times) and a disk's write rate are further limits of a node's own.",
        "",
        "| cores | origin | " + " | ".join(f"{link} Gbit/s" for link in LINKS) + " |",
        "|--:|---|" + "---|" * len(LINKS),
    ]
    for cores in CORES:
        for kind, cost in kinds.items():
            cells = []
            for link in LINKS:
                by_cores, by_link = cores / cost, link / 8
                cells.append(f"{min(by_cores, by_link):.1f}: " + ("link" if by_link <= by_cores else "processor"))
            lines.append(f"| {cores} | {kind} | {' | '.join(cells)} |")
    disk = facts["limits"].get("disk_write_8")
    lines += ["", "## What to set then", "", "| to fill | connections ¹ | `transfer.connections_max`, `connections_total` | `transfer.memory` ² | `write_threads` ³ | `digest_threads` ³ |",
              "|---|--:|---|---|---|---|"]
    for link in LINKS:
        rate = link * 1e9 / 8
        connections = -(-rate // CONNECTION)
        writers, hashers = rate / 1e9 * stages["write"], rate / 1e9 * (stages["blake3"] + stages["sha256"])
        threads = [f"{max(THREADS, -(-need // 0.8)):.0f}" if need > THREADS * 0.8 else "as it is" for need in (writers, hashers)]
        lines.append(f"| {link} Gbit/s | {connections:.0f} | {f'`{max(connections, 16):.0f}`, `{max(connections, 64):.0f}`'} | `{max(128, int(connections * 3))}MiB` | {threads[0]} | {threads[1]} |")
    lines += [
        "",
        f"¹ At {CONNECTION / 1e6:.0f} MB/s each, as object stores give; less where a connection gives more. ² Three groups of 1 MiB a connection: one",
        "arriving, two being written. ³ One a CPU, at most 8, unless set; busy for at most 0.8 of the time.",
        "",
        f"SHA-256 goes through a file in order: one file comes at {1 / stages['sha256']:.1f} GB/s at most, so a hub's model of few files is slower than the table.",
    ]
    if disk:
        lines += ["", f"This machine's disk took {disk:.1f} GB/s past the page cache: a store on it is filled at that rate once dirty pages have reached the kernel's limit."]
    return "\n".join(lines) + "\n"
