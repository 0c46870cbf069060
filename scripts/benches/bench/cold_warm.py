"""From a cold disk into memory: preheat's tier `memory`, which also proves that every page is there, beside each way to read a
file that the kernel has, and beside what an engine does by itself: page faults of a mapping.

Before every run the pages are dropped and fincore finds none of them. A hypervisor may still have them: that makes every line
faster, not one of them.
"""

import contextlib

from . import clients, node, rounds, web


def run(context):
    """What was found; `report.text` tells it."""
    shards, each = (4, 32 << 20) if context.quick else (4, 512 << 20)
    source = context.model(context.disk / "www" / "models" / "big", shards, each)
    context.manifest(context.disk / "www" / "models" / "big")
    work = context.disk / "work"
    work.mkdir()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(web.Web(work / "nginx", context.disk / "www"))
        reference = f"{server.url}/models/big"
        daemon = context.daemon(work / "root", work, server.url).start()
        stack.callback(daemon.kill)
        job = daemon.ask("POST", "/v1/prewarm", {"reference": reference, "wait": True}, seconds=600)
        files = node.shards(job["path"])
        source.same("preheat prewarm", job["path"])

        def cold():
            node.drop(files)

        def client(name, words, **more):
            return clients.Client(name, more.pop("checks", "–"), lambda out: words, keeps=False, before=cold, **more)

        def reads(way, depth):
            return [context.yardstick, "read", *files, "--way", way, "--depth", depth]

        warm = [context.preheat, "prewarm", reference, "--tier", "memory", "--priority", "demand", "--wait", "--daemon", daemon.url]
        contestants = context.chosen([
            client("preheat prewarm --tier memory", warm, peer=False, server=node.Node(daemon), checks="every page is resident"),
            client("cat → /dev/null", ["cat", *files]),
            client("buffered, 4 readers", reads("buffered", 4)),
            client("buffered, read ahead", reads("ahead", 4)),
            *(client(f"O_DIRECT, depth {depth}", reads("direct", depth)) for depth in (1, 4, 16, 64)),
            client("mmap, page faults", [clients.VENV / "python3", clients.PROGRAMS / "touch.py", "mmap", *files]),
        ])
        taken = rounds.play(contestants, context.memory, None, source, context.rounds, watched=True)
    return rounds.table(contestants, taken, source, f"{shards} × {each >> 20} MiB, cold on disk; preheat's daemon is the server", both=True)
