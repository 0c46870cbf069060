"""A daemon as the one that serves: ranges of blobs over loopback to four clients, each group proved before a byte of it leaves,
beside nginx with sendfile and without, which prove nothing."""

import contextlib

from . import clients, node, rounds, web


def run(context):
    """What was found; `report.text` tells it."""
    shards, each = (4, 32 << 20) if context.quick else (4, 512 << 20)
    root = context.memory / "www"
    large = context.model(root / "models" / "big", shards, each)
    model_bytes, files = sum(large.values()), sorted(large)
    manifest = context.manifest(root / "models" / "big")
    blobs = [entry["blake3"] for entry in manifest["files"] if entry["path"] in large]
    work = context.memory / "serve"
    work.mkdir()
    with contextlib.ExitStack() as stack:
        fast = stack.enter_context(web.Web(work / "on", root))
        slow = stack.enter_context(web.Web(work / "off", root, sendfile=False))
        daemon = context.daemon(work / "root", work, fast.url).start()
        stack.callback(daemon.kill)
        daemon.ask("POST", "/v1/prewarm", {"reference": f"{fast.url}/models/big", "wait": True}, seconds=300)

        def reads(url, prefix, names):
            words = [context.yardstick, "floor", url.removeprefix("http://"), prefix, *names, "--unhashed", "--connections", 4]
            return lambda out: words

        contestants = context.chosen([
            clients.Client("preheat serve", "BLAKE3 of each group", reads(daemon.url, "/v1/blobs/", blobs), keeps=False, peer=False, server=node.Node(daemon)),
            clients.Client("nginx, sendfile on", "nothing", reads(fast.url, "/models/big/", files), keeps=False, server=fast),
            clients.Client("nginx, sendfile off", "nothing", reads(slow.url, "/models/big/", files), keeps=False, server=slow),
        ])
        taken = rounds.play(contestants, context.memory, None, model_bytes, context.rounds, large)
    intro = f"{shards} × {each >> 20} MiB in memory, ranges of 64 MiB over four connections to one client that throws them away: the server's time is what counts"
    return rounds.table(contestants, taken, model_bytes, intro, both=True)
