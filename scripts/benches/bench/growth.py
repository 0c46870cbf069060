"""What grows with what: wall time, processor time and memory against the size of a model, its files, the fetchers at once and the
blobs in a store. Nothing may grow faster than what it is measured against, and memory with none of them.

Each part goes through all its points in turn, and then again, in `rounds.fewer` rounds: medians, of memory the most. A store on disk
is freed before the next one is begun, so the largest model needs room for itself alone."""

import contextlib
import os
import shutil
import statistics
import subprocess
import time

from rig import victim, watch

from . import clients, far, measure, rounds, source, web

GIB, MIB = 1 << 30, 1 << 20
IDLE_SECONDS = 10
FILL_SECONDS = 150
"""What filling a store to its most blobs may take; past it, it is filled to a third of them."""


def run(context):
    """What was found; `report.text` tells it."""
    parts = {"size": _size, "files": _files, "fetchers": _fetchers, "store": _store}
    facts = {"texts": {}, "rounds": rounds.fewer(context.rounds)}
    for name in [name for name in parts if name in context.only] if context.only else parts:
        rounds.say(f" {name}")
        facts[name], facts["texts"][name] = parts[name](context, facts["rounds"])
        _empty(context)
    return facts


def _turned(values, number):
    """The same, beginning with another one each round."""
    turn = number % len(values)
    return [*values[turn:], *values[:turn]]


def _medians(runs):
    """Points out of {what tells a point from others: its runs, each a dict of figures}; of memory the most."""
    points = []
    for names, taken in runs.items():
        point = dict(names)
        for key in taken[0]:
            values = [one[key] for one in taken]
            point[key] = max(values) if key == "anonymous" else statistics.median(values)
        points.append(point | {"seconds_all": [round(one["seconds"], 4) for one in taken if "seconds" in one]})
    return points


def _in_rounds(number):
    return f"medians of {number} rounds" if number > 1 else "one round"


def _note(runs, figures, **names):
    """Keeps what a run took."""
    runs.setdefault(tuple(names.items()), []).append(figures)


def _empty(context):
    for place in (context.memory, context.disk):
        for each in place.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()


def _watched(words, environment=None):
    """Runs one process: (seconds, processor seconds, most anonymous bytes)."""
    began = time.monotonic()
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment or clients.environment())
    seen = watch.Watch(process.pid)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    most = seen.end()
    if process.returncode != 0:
        raise measure.Failed(f"{' '.join(map(str, words))}: exit {process.returncode}\n{error.decode(errors='replace')[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime, most


def _size(context, count):
    """A model that is made while it is sent, into a store on disk, through a daemon and without one."""
    sizes = (1, 2) if context.quick else (1, 2, 4, 8, 16)
    each = {size: 16 * MIB * size if context.quick else size * GIB // 4 for size in sizes}
    runs, left_out, store = {}, [], context.disk / "store"
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(far.Far(context.yardstick, context.memory / "far", made=[f"m{size}=4x{each[size]}" for size in sizes]))
        for number in range(count):
            for size in sizes:
                room = shutil.disk_usage(context.disk)
                # preheat leaves a twentieth of a file system to others.
                if room.free - room.total / 20 < 4 * each[size] + GIB:
                    rounds.say(f"  {size} GiB: left out, the disk has no room for it")
                    left_out.append(f"{size} GiB")
                    continue
                gib = 4 * each[size] / GIB
                for way in _turned(("direct", "daemon"), number):
                    os.sync()
                    if way == "direct":
                        wall, cpu, most = _watched([context.preheat, "fetch", f"{origin.url}/m{size}", "--direct", "--root", store])
                    else:
                        daemon = context.daemon(store, context.memory, origin.url).start()
                        seen, before = watch.Watch(daemon.process.pid), measure.process_cpu(daemon.process.pid)
                        wall, cpu, _ = _watched([context.preheat, "fetch", f"{origin.url}/m{size}", "--daemon", daemon.url])
                        cpu += measure.process_cpu(daemon.process.pid) - before
                        most = seen.end()
                        daemon.stop(120)
                    _note(runs, {"seconds": wall, "cpu": cpu, "anonymous": most}, gib=gib, way=way)
                    rounds.say(f"  round {number + 1}: {gib:g} GiB, {way}: {wall:.2f} s, {cpu:.2f} cpu-s, {most / MIB:.0f} MiB")
                    if size == sizes[0] and number == 0:
                        _same_as_floor(context, origin, f"m{size}", store)
                    shutil.rmtree(store)
    points = _medians(runs)
    rows = [f"**Size of the model**, made while it is sent, into a store on disk; {_in_rounds(count)}:", "",
            "| GiB | way | seconds | GB/s | CPU-s/GB | anonymous memory |", "|--:|---|--:|--:|--:|--:|"]
    for one in points:
        gigabytes = one["gib"] * GIB / 1e9
        rows.append(f"| {one['gib']:g} | {one['way']} | {one['seconds']:.2f} | {gigabytes / one['seconds']:.2f} | {one['cpu'] / gigabytes:.2f} "
                    f"| {one['anonymous'] / MIB:.0f} MiB |")
    if left_out:
        rows += ["", f"Left out, because the disk had no room: {', '.join(dict.fromkeys(left_out))}."]
    return points, "\n".join(rows)


def _same_as_floor(context, origin, model, store):
    """Compares what a store has of a model with what the floor received of it: the source is nowhere."""
    received = context.disk / "received"
    received.mkdir()
    names = [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
    context.tool("floor", origin.url.split("://")[1], f"/{model}/", *names, "--out", received)
    whole = source.Source(received, {name: (received / name).stat().st_size for name in names})
    whole.same("preheat fetch", context.fetch(f"{origin.url}/{model}", store)["path"])
    shutil.rmtree(received)


def _files(context, count):
    """Files of 16 KiB, from a web server with a manifest, beside `cp -r`, which leaves them in memory only, and `cp -r` with what it
    wrote made durable, as preheat's are."""
    numbers, runs = ((4, 40) if context.quick else (4, 40, 400, 4000)), {}
    for files in numbers:
        directory = context.memory / "www" / f"f{files}"
        for number in range(files):
            folder = directory / f"{number // 500}"
            folder.mkdir(exist_ok=True, parents=True)
            (folder / f"{number:05}.json").write_bytes(os.urandom(16 << 10))
        context.manifest(directory)
    with web.Web(context.memory / "nginx", context.memory / "www") as server:
        for number in range(count):
            for files in numbers:
                directory, root, copy = context.memory / "www" / f"f{files}", context.disk / "root", context.disk / "copy"
                ways = {
                    "preheat": [context.preheat, "fetch", f"{server.url}/f{files}", "--direct", "--root", root],
                    "cp": ["cp", "-r", directory, copy],
                    "cp_sync": ["sh", "-c", 'cp -r "$1" "$2" && sync -f "$2"', "sh", directory, copy],
                }
                took = {}
                for way in _turned(list(ways), number):
                    # What others left to be written is none of this one's.
                    os.sync()
                    took[way] = _watched(ways[way])
                    if way == "preheat" and number == 0:
                        tree = context.fetch(f"{server.url}/f{files}", root)["path"]
                        source.Source(directory, {path.name: path.stat().st_size for path in directory.rglob("*.json") if path.stem.isdigit()}).same("preheat fetch", tree)
                    for place in (root, copy):
                        shutil.rmtree(place, ignore_errors=True)
                wall, cpu, most = took["preheat"]
                _note(runs, {"seconds": wall, "cpu": cpu, "anonymous": most, "cp_seconds": took["cp"][0], "cp_sync_seconds": took["cp_sync"][0]}, files=files)
                rounds.say(f"  round {number + 1}: {files} files: {wall:.3f} s, cp {took['cp'][0]:.3f} s, with sync {took['cp_sync'][0]:.3f} s")
    points = _medians(runs)
    rows = [f"**Files of a model** (16 KiB each), `fetch --root` on disk; {_in_rounds(count)}:", "",
            "| files | seconds | ms a file | CPU ms a file | `cp -r` | `cp -r`, `sync -f` | rate ÷ `cp -r` | ÷ with sync | anonymous memory |",
            "|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    rows += [f"| {one['files']} | {one['seconds']:.3f} | {one['seconds'] / one['files'] * 1e3:.2f} | {one['cpu'] / one['files'] * 1e3:.2f} "
             f"| {one['cp_seconds']:.3f} s | {one['cp_sync_seconds']:.3f} s | {one['cp_seconds'] / one['seconds']:.2f} "
             f"| {one['cp_sync_seconds'] / one['seconds']:.2f} | {one['anonymous'] / MIB:.0f} MiB |" for one in points]
    return points, "\n".join(rows)


def _fetchers(context, count):
    """Many at once: for one model through one daemon, for a model each through one daemon, and for a model each without one."""
    numbers = (1, 4) if context.quick else (1, 4, 16, 64)
    each = (32 if context.quick else 64) * MIB
    one_size = (64 if context.quick else 1024) * MIB
    made = [f"one=4x{one_size // 4}"] + [f"own{number}=1x{each}" for number in range(numbers[-1])]
    runs = {}
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(far.Far(context.yardstick, context.memory / "far", made=made))
        ways = ("one model, one daemon", "a model each, one daemon", "a model each, direct")
        for number in range(count):
            for fetchers in numbers:
                for way in _turned(ways, number):
                    os.sync()
                    names = ["one"] if way == ways[0] else [f"own{one}" for one in range(fetchers)]
                    wanted = one_size if way == ways[0] else fetchers * each
                    sent, figures = origin.counters().bytes, {}
                    if way == ways[2]:
                        wall, cpu = _at_once([[context.preheat, "fetch", f"{origin.url}/{name}", "--direct", "--root", context.disk / name] for name in names])
                        stores = [context.disk / name for name in names]
                    else:
                        stores = [context.disk / "store"]
                        daemon = context.daemon(stores[0], context.memory, origin.url).start()
                        seen, before = watch.Watch(daemon.process.pid), measure.process_cpu(daemon.process.pid)
                        wall, cpu = _at_once([[context.preheat, "fetch", f"{origin.url}/{names[one % len(names)]}", "--daemon", daemon.url] for one in range(fetchers)])
                        cpu += measure.process_cpu(daemon.process.pid) - before
                        figures = {"anonymous": seen.end()}
                        daemon.stop(120)
                    figures |= {"seconds": wall, "cpu": cpu, "origin_ratio": (origin.counters().bytes - sent) / wanted}
                    _note(runs, {"anonymous": 0} | figures, fetchers=fetchers, way=way, bytes=wanted)
                    for store in stores:
                        shutil.rmtree(store)
                    rounds.say(f"  round {number + 1}: {fetchers} at once, {way}: {wall:.2f} s")
    points = sorted(_medians(runs), key=lambda one: (one["fetchers"], ways.index(one["way"])))
    rows = [f"**Fetchers at once** (one model of {one_size // MIB} MiB; or {each // MIB} MiB each), onto disk, each time a fresh store; {_in_rounds(count)}:", "",
            "| fetchers | | seconds | GB/s | CPU-s/GB | origin sent | daemon's anonymous memory |", "|--:|---|--:|--:|--:|--:|--:|"]
    for one in points:
        gigabytes = one["bytes"] / 1e9
        memory = f"{one['anonymous'] / MIB:.0f} MiB" if one["anonymous"] else ""
        rows.append(f"| {one['fetchers']} | {one['way']} | {one['seconds']:.2f} | {gigabytes / one['seconds']:.2f} | {one['cpu'] / gigabytes:.2f} "
                    f"| {one['origin_ratio']:.3f} | {memory} |")
    return points, "\n".join(rows)


def _at_once(commands):
    """Starts all, waits for all: (seconds to the last, processor seconds of all)."""
    before, began = os.times(), time.monotonic()
    running = [subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=clients.environment()) for words in commands]
    errors = [one.communicate(timeout=600)[1] for one in running]
    wall, after = time.monotonic() - began, os.times()
    for one, error in zip(running, errors):
        if one.returncode != 0:
            raise measure.Failed(f"{' '.join(one.args)}: exit {one.returncode}\n{error.decode(errors='replace')[-2000:]}")
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def _store(context, count):
    """A store of so many blobs, all of them models of 1,000 small files: what its daemon takes to start, to list, to fetch one more
    and to collect; and what it does when nothing is asked of it. A store only grows, so its rounds follow one another at each size."""
    numbers, points = ([10, 1000] if context.quick else [10, 1000, 10_000, 100_000]), []
    idle_seconds, root, have, note = 2 if context.quick else IDLE_SECONDS, context.disk / "root", 0, ""
    for number in range(len(numbers) * count):
        one_more = context.memory / "www" / f"more{number}"
        context.model(one_more, 1, 16 * MIB, seed=1 + number)
        context.manifest(one_more)
    more = (f"{{}}/more{number}" for number in range(len(numbers) * count))
    with web.Web(context.memory / "nginx", context.memory / "www") as server:
        while numbers:
            blobs = numbers.pop(0)
            began, first = time.monotonic(), have
            while have < blobs:
                have += _import(context, root, min(blobs - have, 1000), have)
                rest = (time.monotonic() - began) / (have - first) * (blobs - first)
                if rest > FILL_SECONDS and have >= blobs // 10 + 5000 and not note and not numbers:
                    note = f"Filled to {max(have, blobs * 3 // 10):,} blobs: {blobs:,} would have taken {rest:.0f} s."
                    blobs = max(have, blobs * 3 // 10)
            filled, runs = time.monotonic() - began, {}
            for number in range(count):
                began = time.monotonic()
                daemon = context.daemon(root, context.memory, server.url).start(ready_seconds=120)
                start = time.monotonic() - began
                listing, _, _ = _watched([context.preheat, "models", "--daemon", daemon.url])
                fetch, _, _ = _watched([context.preheat, "fetch", next(more).format(server.url), "--daemon", daemon.url])
                collect, _, _ = _watched([context.preheat, "gc", "--daemon", daemon.url])
                figures = {"start": start, "list": listing, "fetch": fetch, "gc": collect}
                if number + 1 == count:
                    before = _scheduled(daemon.process.pid)
                    time.sleep(idle_seconds)
                    idle = (_scheduled(daemon.process.pid) - before) / idle_seconds
                anonymous = victim.anonymous_bytes(daemon.process.pid)
                daemon.stop(120)
                _note(runs, figures | {"anonymous": anonymous}, blobs=blobs)
            points += [one | {"fill_seconds": filled, "idle_cores": idle} for one in _medians(runs)]
            told = points[-1]
            rounds.say(f"  {blobs} blobs: filled in {filled:.1f} s, start {told['start']:.3f} s, list {told['list']:.3f} s, fetch {told['fetch']:.3f} s, "
                       f"gc {told['gc']:.3f} s, idle {idle:.3%}, {told['anonymous'] / MIB:.0f} MiB")
    rows = [f"**Blobs in a store** (files of 1 KiB, 1,000 a model), on disk; {_in_rounds(count)}:", "",
            "| blobs | start to ready | `models` | fetch of 16 MiB more | `gc` | idle, of a core | anonymous memory |", "|--:|--:|--:|--:|--:|--:|--:|"]
    rows += [f"| {one['blobs']:,} | {one['start']:.3f} s | {one['list']:.3f} s | {one['fetch']:.3f} s | {one['gc']:.3f} s | {one['idle_cores']:.2%} "
             f"| {one['anonymous'] / MIB:.0f} MiB |" for one in points]
    return points, "\n".join(rows + (["", note] if note else []))


def _import(context, root, count, first):
    """Puts a model of `count` blobs into a store; how many."""
    directory = context.memory / "import"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for number in range(count):
        (directory / f"{first + number:07}.json").write_text(f'{{"number": {first + number}, "filler": "{"x" * 1000}"}}')
    words = [context.preheat, "import", directory, "--as", f"https://models.example/m{first}", "--root", root]
    _watched(words)
    return count


def _scheduled(pid):
    """Seconds on a processor, of all threads, to the nanosecond."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total / 1e9
