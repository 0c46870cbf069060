"""What a hub's own digest costs: it is SHA-256, which has to be computed from a file's first byte to its last, four times as dear
as BLAKE3. preheat checks it while the bytes arrive; the peers check sizes or nothing."""

import contextlib

from . import clients, rounds, sites, web


def run(context):
    """What was found; `report.text` tells it."""
    shards, each = (8, 16 << 20) if context.quick else (8, 512 << 20)
    root = context.memory / "www"
    source = context.model(root / "models" / "big", shards, each)
    files = source.names
    work = context.memory / "nginx"
    work.mkdir()
    hub = sites.Hub(work, root, "org/big", "models/big")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(web.Web(work, root, table=hub.table))
        contestants = context.chosen([
            clients.preheat(context.preheat, "hf://org/big", "preheat fetch hf://", "SHA-256, BLAKE3", HF_ENDPOINT=server.url),
            clients.preheat(context.preheat, f"{server.url}/models/big", "preheat fetch http://, no SHA-256"),
            clients.floor(context.yardstick, server, "models/big", files, sha256=True, name="floor with SHA-256"),
            clients.s5cmd(server, "models", "big", files),
            clients.slow(clients.hf(server, "org/big")),
        ])
        taken = rounds.play(contestants, context.memory, server, source, context.rounds)
    return rounds.table(contestants, taken, source, f"{shards} × {each >> 20} MiB from a hub (nginx) whose large files lie behind redirects")
