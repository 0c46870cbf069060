"""The link of `real-origin` with 1 Gbit/s, on which one connection in eight stops for good in its second MiB: who notices, and when?"""

from . import real_origin


def run(context):
    """What was found; `report.text` tells it."""
    name = "1 Gbit/s, one connection in eight falls silent"
    facts, text = real_origin.on_link(context, name, 125e6, 4, (128 << 20) >> (3 if context.quick else 0), stall_one_in=8)
    return {"links": {name: facts}, "text": text}
