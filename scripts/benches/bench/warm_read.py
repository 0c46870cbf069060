"""What a consumer reads from a published tree, beside the same files put there by `cp`: a tree is plain files, so there should be
no difference."""

import contextlib
import shutil

from . import clients, node, rounds, web


def run(context):
    """What was found; `report.text` tells it."""
    shards, each = (4, 32 << 20) if context.quick else (4, 512 << 20)
    source = context.model(context.disk / "www" / "models" / "big", shards, each)
    work = context.disk / "work"
    work.mkdir()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(web.Web(work / "nginx", context.disk / "www"))
        facts = context.fetch(f"{server.url}/models/big", work / "root")
    copied = work / "copied"
    shutil.copytree(source.directory, copied)
    for name, tree in (("preheat's tree", facts["path"]), ("the copy", copied)):
        source.same(name, tree)
    program = clients.PROGRAMS / "touch.py"

    def reads(way, directory):
        words = [clients.VENV / "python3", program, way, *node.shards(directory)]
        return lambda out: words

    contestants = context.chosen([
        clients.Client("safetensors, preheat's tree", "–", reads("safetensors", facts["path"]), keeps=False, peer=False),
        clients.Client("safetensors, placed by cp", "–", reads("safetensors", copied), keeps=False),
        clients.Client("mmap, preheat's tree", "–", reads("mmap", facts["path"]), keeps=False, peer=False),
        clients.Client("mmap, placed by cp", "–", reads("mmap", copied), keeps=False),
    ])
    taken = rounds.play(contestants, context.memory, None, source, context.rounds)
    return rounds.table(contestants, taken, source, f"{shards} × {each >> 20} MiB in the page cache, one byte of each page looked at, Python's start included")
