"""What each stage of a verified fetch costs a processor: the floor with one stage more each time, so that differences are stages.
What the capacity model (`capacity.py`) is made of."""

import contextlib

from . import clients, far, rounds, web


def run(context):
    """What was found; `report.text` tells it."""
    shards, each = (4, 32 << 20) if context.quick else (4, 512 << 20)
    root = context.memory / "www"
    source = context.model(root / "models" / "big", shards, each)
    files = source.names
    with contextlib.ExitStack() as stack:
        fast = stack.enter_context(web.Web(context.memory / "nginx", root))
        plain = stack.enter_context(far.Far(context.yardstick, context.memory / "near", root))
        secure = stack.enter_context(far.Far(context.yardstick, context.memory / "far", root, tls=True))

        def floor(name, server, *words, keep=False):
            begin = [context.yardstick, "floor", server.url.split("://")[1], "/models/big/", *files, *words]
            more = ["--authority", server.authority] if server is secure else []
            return clients.Client(name, "", lambda out: begin + more + (["--out", out] if keep else []), keeps=keep, peer=False, server=server)

        contestants = [
            floor("receive", fast, "--unhashed"),
            floor("receive, BLAKE3", fast),
            floor("receive, BLAKE3, SHA-256", fast, "--sha256"),
            floor("receive, write", fast, "--unhashed", keep=True),
            floor("receive, BLAKE3, write", fast, keep=True),
            # From one server, which copies what it sends: nginx leaves the first copy to the receiver.
            floor("receive, of the yardstick", plain, "--unhashed"),
            floor("receive over TLS, of the yardstick", secure, "--unhashed"),
        ]
        taken = rounds.play(contestants, context.memory, fast, source, context.rounds)
    cost = {name: rounds.medians(runs, source.bytes)["client_cpu_per_gb"] for name, runs in taken.items()}
    facts = {
        "socket": cost["receive"],
        "tls": cost["receive over TLS, of the yardstick"] - cost["receive, of the yardstick"],
        "blake3": cost["receive, BLAKE3"] - cost["receive"],
        "sha256": cost["receive, BLAKE3, SHA-256"] - cost["receive, BLAKE3"],
        "write": cost["receive, write"] - cost["receive"],
        "floor": cost["receive, BLAKE3, write"],
        "bytes": source.bytes,
    }
    names = {"socket": "receive from a socket", "tls": "TLS on top", "blake3": "BLAKE3", "sha256": "SHA-256", "write": "write to memory (tmpfs)",
             "floor": "receive, BLAKE3 and write together"}
    rows = ["| stage | CPU-s/GB |", "|---|--:|", *(f"| {text} | {facts[name]:.2f} |" for name, text in names.items())]
    return facts | {"text": "\n".join(rows)}
