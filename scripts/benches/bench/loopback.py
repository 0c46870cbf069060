"""How fast bytes go from a web server on this machine into verified files in memory: no network to wait for, so whoever spends
least processor time wins. Two cores, which the server has to share."""

import contextlib

from . import clients, rounds, sites, web


def run(context):
    """What was found; `report.text` tells it."""
    shards, each = (4, 64 << 20) if context.quick else (4, 1 << 30)
    root = context.memory / "www"
    big = root / "models" / "big"
    source = context.model(big, shards, each)
    proved = root / "models" / "proved"
    proved.mkdir()
    for path in big.iterdir():
        (proved / path.name).hardlink_to(path)
    context.manifest(proved)
    work = context.memory / "nginx"
    work.mkdir()
    bucket, hub = sites.bucket(work, root, "models", "big"), sites.Hub(work, root, "org/big", "models/big")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(web.Web(work, root, table=lambda storage: bucket | hub.table(storage)))
        files, urls = source.names, [f"{server.url}/models/big/{name}" for name in source.names]
        contestants = [
            clients.preheat(context.preheat, f"{server.url}/models/big"),
            clients.preheat(context.preheat, f"{server.url}/models/proved", "preheat fetch, with a manifest", "BLAKE3, against the manifest"),
            clients.preheat(context.preheat, "s3://models/big", "preheat fetch s3://", **clients.s3_environment(server)),
            clients.floor(context.yardstick, server, "models/big", files),
            clients.curl(urls, keep=False),
            clients.curl(urls),
            clients.s5cmd(server, "models", "big", files),
            clients.awscrt(server, "models", "big", files),
            clients.slow(clients.boto3(server, "models", "big", files)),
            clients.slow(clients.hf(server, "org/big")),
            clients.slow(clients.aria2(urls)),
        ]
        if context.with_runai:
            contestants += [clients.slow(clients.runai(server, "models", "big", files, number)) for number in (2, 8)]
        contestants = context.chosen(contestants)
        taken = rounds.play(contestants, context.memory, server, source, context.rounds)
    intro = f"{shards} × {each >> 20} MiB of safetensors from nginx (sendfile) on tmpfs to tmpfs, two cores shared with the server"
    return rounds.table(contestants, taken, source, intro, shards=shards, shard_bytes=each)
