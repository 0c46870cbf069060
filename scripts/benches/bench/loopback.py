"""How fast bytes go from a web server on this machine into verified files in memory: no network to wait for, so whoever spends
least processor time wins. Two cores, which the server has to share."""

import contextlib

from . import clients, report, rounds, web

NAME = "loopback"


def run(context):
    """(JSON, Markdown)"""
    shards, each = (4, 64 << 20) if context.quick else (4, 1 << 30)
    root = context.memory / "www"
    big = root / "models" / "big"
    large = context.model(big, shards, each)
    proved = root / "models" / "proved"
    proved.mkdir()
    for path in big.iterdir():
        (proved / path.name).hardlink_to(path)
    context.manifest(proved)
    model_bytes = sum(large.values())
    work = context.memory / "nginx"
    work.mkdir()
    locations = web.bucket_locations(work, root, "models", "big") + web.hub_locations(work, root, "org/big", "models/big")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(web.Web(work, root, locations=locations))
        files, urls = sorted(large), [f"{server.url}/models/big/{name}" for name in sorted(large)]
        contestants = [
            clients.preheat(context.preheat, f"{server.url}/models/big"),
            clients.preheat(context.preheat, f"{server.url}/models/proved", "preheat fetch, with a manifest", "BLAKE3, against the manifest"),
            clients.preheat(context.preheat, "s3://models/big", "preheat fetch s3://", **clients.s3_environment(server)),
            clients.floor(context.yardstick, server, "models/big", files),
            clients.curl(urls, keep=False),
            clients.curl(urls),
            clients.s5cmd(server, "models", "big", files),
            clients.awscrt(server, "models", "big", files),
            clients.boto3(server, "models", "big", files),
            clients.hf(server, "org/big"),
            clients.aria2(urls),
        ]
        contestants = context.chosen(contestants)
        taken = rounds.play(contestants, context.memory, server, model_bytes, context.rounds, large)
    lines = {one.name: {"checks": one.checks, "peer": one.peer} | rounds.medians(taken[one.name], model_bytes) for one in contestants}
    facts = {"shards": shards, "shard_bytes": each, "bytes": model_bytes, "rounds": context.rounds, "clients": lines}
    text = f"{shards} × {each >> 20} MiB of safetensors from nginx (sendfile) on tmpfs to tmpfs, two cores shared with the server; medians of {context.rounds} rounds.\n\n"
    return facts, text + report.clients_table(lines, contestants[0].name)
