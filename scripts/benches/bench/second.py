"""The second replica at a revision that is on the node: how long until it knows the path, what that costs the origin (nothing)
and the disk (nothing)."""

import contextlib
import json
import statistics
import subprocess
from pathlib import Path

from . import clients, measure, rounds, web


def run(context):
    """What was found; `report.text` tells it."""
    lines, times = {}, 5 if context.quick else 21
    for name, shards, each in (("4 shards", 4, 64 << 20), ("400 files", 398, 256 << 10)):
        directory = context.memory / "www" / name.replace(" ", "-")
        source = context.model(directory, shards, each)
        context.manifest(directory)
        with contextlib.ExitStack() as stack:
            work = context.memory / f"work-{name.replace(' ', '-')}"
            work.mkdir()
            server = stack.enter_context(web.Web(work / "nginx", context.memory / "www"))
            reference = f"{server.url}/{directory.name}"
            first = context.fetch(reference, work / "own")
            pinned = f"{reference}@{first['revision']}"
            source.same("preheat fetch", context.fetch(pinned, work / "own")["path"])
            lines[f"{name}, direct"] = _repeat(context, times, server, work / "own", [pinned, "--direct", "--root", work / "own"], work)
            daemon = context.daemon(work / "root", work, server.url).start()
            stack.callback(daemon.kill)
            daemon.ask("POST", "/v1/prewarm", {"reference": pinned, "wait": True}, seconds=300)
            lines[f"{name}, beside a daemon"] = _repeat(context, times, server, work / "root", [pinned, "--daemon", daemon.url], work)
            copy = [measure.run(["cp", "-r", directory, work / f"copy-{number}"], work / "cp.log").wall for number in range(3)]
            lines[f"{name}, cp -r"] = {"milliseconds": statistics.median(copy) * 1e3, "peer": True}
    rows = ["| second fetch of | ready after | slowest | CPU | origin requests | bytes placed |", "|---|--:|--:|--:|--:|--:|"]
    for name, line in lines.items():
        if line.get("peer"):
            rows.append(f"| {name}, for comparison | {line['milliseconds']:.1f} ms | | | | all |")
        else:
            rows.append(f"| {name} | {line['milliseconds']:.1f} ms | {line['slowest']:.1f} ms | {line['cpu_milliseconds']:.1f} ms "
                        f"| {line['origin_requests']} | {line['bytes_placed']} |")
    return {"clients": lines, "rounds": times, "text": "\n".join(rows)}


def _repeat(context, times, server, store, words, work):
    """The same fetch again and again, as processes."""
    before, used = server.counters().requests, _allocated(store)
    taken = [measure.run([context.preheat, "fetch", *words], work / "again.log", clients.environment(), server) for _ in range(times)]
    done = subprocess.run([context.preheat, "fetch", *map(str, words), "--json"], stdout=subprocess.PIPE, check=True, env=clients.environment())
    told = json.loads(done.stdout.splitlines()[-1])
    if not Path(told["path"]).is_dir():
        raise measure.Failed(f"{told['path']} is no directory")
    wall = [one.wall * 1e3 for one in taken]
    rounds.say(f"  {words[0].rsplit('/', 1)[1][:40]}: {statistics.median(wall):.1f} ms")
    return {
        "milliseconds": statistics.median(wall),
        "slowest": max(wall),
        "cpu_milliseconds": statistics.mean(one.client_cpu for one in taken) * 1e3,
        "origin_requests": server.counters().requests - before,
        "bytes_placed": max(0, _allocated(store) - used) if told["placed"] is None else -1,
    }


def _allocated(store):
    """Bytes of blobs in a store. Journals and records of use are none."""
    return sum(path.stat().st_blocks * 512 for path in Path(store).rglob("*") if path.is_file() and path.stat().st_size > 128 << 10)
