"""The link of `real-origin` with 1 Gbit/s, on which one connection in eight that brings weights stops for good after 1.5 MiB: who
notices, and when?

Every run of every client begins the count anew, and the connection in the middle of each eight is the one: a client of 4 connections
meets one, of 16 two, in every round. How many each met is in the table."""

from . import real_origin


def run(context):
    """What was found; `report.text` tells it."""
    name = "1 Gbit/s, one connection in eight falls silent"
    facts, text = real_origin.on_link(context, name, 125e6, 4, (128 << 20) >> (3 if context.quick else 0), stall_one_in=8)
    return {"links": {name: facts}, "text": text}
