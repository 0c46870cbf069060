"""A daemon as the one that serves: ranges of blobs over loopback to four clients, each group proved before a byte of it leaves,
beside nginx with sendfile and without, which prove nothing."""

import contextlib

from . import clients, node, rounds, web


def run(context):
    """What was found; `report.text` tells it."""
    shards, each = (4, 32 << 20) if context.quick else (4, 512 << 20)
    root = context.memory / "www"
    source = context.model(root / "models" / "big", shards, each)
    files = source.names
    manifest = context.manifest(root / "models" / "big")
    blobs = {entry["blake3"]: entry["path"] for entry in manifest["files"] if entry["path"] in source.large}
    work = context.memory / "serve"
    work.mkdir()
    with contextlib.ExitStack() as stack:
        fast = stack.enter_context(web.Web(work / "on", root))
        slow = stack.enter_context(web.Web(work / "off", root, sendfile=False))
        daemon = context.daemon(work / "root", work, fast.url).start()
        stack.callback(daemon.kill)
        daemon.ask("POST", "/v1/prewarm", {"reference": f"{fast.url}/models/big", "wait": True}, seconds=300)

        def served(name, checks, server, url, prefix, called, **more):
            words = [context.yardstick, "floor", url.removeprefix("http://"), prefix, *called, "--unhashed", "--connections", 4]
            # What was served is kept once, and compared.
            return clients.Client(name, checks, lambda out: words, keeps=False, proof=lambda out: [*words, "--out", out], server=server, **more)

        contestants = context.chosen([
            served("preheat serve", "BLAKE3 of each group", node.Node(daemon), daemon.url, "/v1/blobs/", blobs, names=blobs, peer=False),
            served("nginx, sendfile on", "nothing", fast, fast.url, "/models/big/", files),
            served("nginx, sendfile off", "nothing", slow, slow.url, "/models/big/", files),
        ])
        taken = rounds.play(contestants, context.memory, None, source, context.rounds, watched=True)
    intro = f"{shards} × {each >> 20} MiB in memory, ranges of 64 MiB over four connections to one client that throws them away: the server's time is what counts"
    return rounds.table(contestants, taken, source, intro, both=True)
