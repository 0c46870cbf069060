"""What grows with what: wall time, processor time and memory against the size of a model, its files, the fetchers at once and the
blobs in a store. Nothing may grow faster than what it is measured against, and memory with none of them."""

import contextlib
import os
import shutil
import subprocess
import time

from rig import victim, watch

from . import clients, far, measure, rounds, web

GIB, MIB = 1 << 30, 1 << 20
IDLE_SECONDS = 10


def run(context):
    """What was found; `report.text` tells it."""
    parts = {"size": _size, "files": _files, "fetchers": _fetchers, "store": _store}
    facts = {"texts": {}}
    for name in [name for name in parts if name in context.only] if context.only else parts:
        rounds.say(f" {name}")
        facts[name], facts["texts"][name] = parts[name](context)
        _empty(context)
    return facts


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


def _size(context):
    """A model that is made while it is sent, into a store on disk, through a daemon and without one."""
    sizes = (1, 2) if context.quick else (1, 2, 4, 8, 16)
    made = [f"m{size}={4}x{size * (GIB // 4 if not context.quick else 16 * MIB)}" for size in sizes]
    points, left_out = [], []
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(far.Far(context.yardstick, context.memory / "far", made=made))
        for size in sizes:
            room = shutil.disk_usage(context.disk)
            # preheat leaves a twentieth of a file system to others.
            if room.free - room.total / 20 < 1.2 * size * GIB and not context.quick:
                rounds.say(f"  {size} GiB: left out, the disk has no room for it")
                left_out.append(f"{size} GiB")
                continue
            gib = size * (1.0 if not context.quick else 1 / 16)
            for way in ("direct", "daemon"):
                store = context.disk / "store"
                if way == "direct":
                    wall, cpu, most = _watched([context.preheat, "fetch", f"{source.url}/m{size}", "--direct", "--root", store])
                else:
                    daemon = context.daemon(store, context.memory, source.url).start()
                    seen, before = watch.Watch(daemon.process.pid), measure.process_cpu(daemon.process.pid)
                    wall, cpu, _ = _watched([context.preheat, "fetch", f"{source.url}/m{size}", "--daemon", daemon.url])
                    cpu += measure.process_cpu(daemon.process.pid) - before
                    most = seen.end()
                    daemon.stop(120)
                points.append({"gib": gib, "way": way, "seconds": wall, "cpu": cpu, "anonymous": most})
                rounds.say(f"  {gib:g} GiB, {way}: {wall:.2f} s, {cpu:.2f} cpu-s, {most / MIB:.0f} MiB")
                shutil.rmtree(store)
    rows = ["**Size of the model**, made while it is sent, into a store on disk:", "",
            "| GiB | way | seconds | GB/s | CPU-s/GB | anonymous memory |", "|--:|---|--:|--:|--:|--:|"]
    for one in points:
        gigabytes = one["gib"] * GIB / 1e9
        rows.append(f"| {one['gib']:g} | {one['way']} | {one['seconds']:.2f} | {gigabytes / one['seconds']:.2f} | {one['cpu'] / gigabytes:.2f} "
                    f"| {one['anonymous'] / MIB:.0f} MiB |")
    if left_out:
        rows += ["", f"Left out, because the disk had no room: {', '.join(left_out)}."]
    return points, "\n".join(rows)


def _files(context):
    """Files of 16 KiB, from a web server with a manifest, beside `cp -r`."""
    counts, points = ((4, 40) if context.quick else (4, 40, 400, 4000)), []
    for count in counts:
        directory = context.memory / "www" / f"f{count}"
        directory.mkdir(parents=True)
        for number in range(count):
            folder = directory / f"{number // 500}"
            folder.mkdir(exist_ok=True)
            (folder / f"{number:05}.json").write_bytes(os.urandom(16 << 10))
        context.manifest(directory)
        with web.Web(context.memory / f"nginx{count}", context.memory / "www") as server:
            wall, cpu, most = _watched([context.preheat, "fetch", f"{server.url}/f{count}", "--direct", "--root", context.disk / f"root{count}"])
        copied, _, _ = _watched(["cp", "-r", directory, context.disk / f"copy{count}"])
        points.append({"files": count, "seconds": wall, "cpu": cpu, "anonymous": most, "cp_seconds": copied})
        rounds.say(f"  {count} files: {wall:.3f} s, cp {copied:.3f} s")
    rows = ["**Files of a model** (16 KiB each), `fetch --root` on disk:", "",
            "| files | seconds | ms a file | CPU ms a file | `cp -r` | anonymous memory |", "|--:|--:|--:|--:|--:|--:|"]
    rows += [f"| {one['files']} | {one['seconds']:.3f} | {one['seconds'] / one['files'] * 1e3:.2f} | {one['cpu'] / one['files'] * 1e3:.2f} "
             f"| {one['cp_seconds']:.3f} s | {one['anonymous'] / MIB:.0f} MiB |" for one in points]
    return points, "\n".join(rows)


def _fetchers(context):
    """Many at once: for one model through one daemon, for a model each through one daemon, and for a model each without one."""
    counts = (1, 4) if context.quick else (1, 4, 16, 64)
    each = (32 if context.quick else 64) * MIB
    one_size = (64 if context.quick else 1024) * MIB
    made = [f"one{count}=4x{one_size // 4}" for count in counts]
    made += [f"own{count}-{number}=1x{each}" for count in counts for number in range(count)]
    points = []
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(far.Far(context.yardstick, context.memory / "far", made=made))
        for count in counts:
            daemon = context.daemon(context.disk / "store", context.memory, source.url).start()
            for way, names in (("one model, one daemon", [f"one{count}"] * count), ("a model each, one daemon", [f"own{count}-{n}" for n in range(count)])):
                seen, before, sent = watch.Watch(daemon.process.pid), measure.process_cpu(daemon.process.pid), source.counters()[1]
                wall, cpu = _at_once([[context.preheat, "fetch", f"{source.url}/{name}", "--daemon", daemon.url] for name in names])
                cpu += measure.process_cpu(daemon.process.pid) - before
                wanted = len(set(names)) * (one_size if way.startswith("one") else each)
                points.append({"fetchers": count, "way": way, "seconds": wall, "cpu": cpu, "bytes": wanted, "anonymous": seen.end(),
                               "origin_ratio": (source.counters()[1] - sent) / wanted})
            daemon.stop(120)
            shutil.rmtree(context.disk / "store")
            sent = source.counters()[1]
            wall, cpu = _at_once([[context.preheat, "fetch", f"{source.url}/own{count}-{n}", "--direct", "--root", context.disk / f"own{n}"] for n in range(count)])
            points.append({"fetchers": count, "way": "a model each, direct", "seconds": wall, "cpu": cpu, "bytes": count * each, "anonymous": 0,
                           "origin_ratio": (source.counters()[1] - sent) / (count * each)})
            for one in context.disk.glob("own*"):
                shutil.rmtree(one)
            rounds.say(f"  {count} at once: " + ", ".join(f"{one['seconds']:.2f} s {one['way']}" for one in points[-3:]))
    rows = [f"**Fetchers at once** (one model of {one_size // MIB} MiB; or {each // MIB} MiB each), onto disk:", "",
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


def _store(context):
    """A store of so many blobs, all of them models of 1,000 small files: what its daemon takes to start, to list, to fetch one more
    and to collect; and what it does when nothing is asked of it."""
    counts, points = ((10, 1000) if context.quick else (10, 1000, 10_000, 100_000)), []
    one_more = context.memory / "www" / "more"
    context.model(one_more, 1, 16 * MIB)
    context.manifest(one_more)
    root, have = context.disk / "root", 0
    with web.Web(context.memory / "nginx", context.memory / "www") as server:
        for count in counts:
            began = time.monotonic()
            while have < count:
                have += _import(context, root, min(count - have, 1000), have)
            filled = time.monotonic() - began
            began = time.monotonic()
            daemon = context.daemon(root, context.memory, server.url).start(ready_seconds=120)
            start = time.monotonic() - began
            listing, _, _ = _watched([context.preheat, "models", "--daemon", daemon.url])
            fetch, _, _ = _watched([context.preheat, "fetch", f"{server.url}/more", "--daemon", daemon.url])
            collect, _, _ = _watched([context.preheat, "gc", "--daemon", daemon.url])
            before = _scheduled(daemon.process.pid)
            time.sleep(2 if context.quick else IDLE_SECONDS)
            idle = (_scheduled(daemon.process.pid) - before) / (2 if context.quick else IDLE_SECONDS)
            anonymous = victim.anonymous_bytes(daemon.process.pid)
            daemon.stop(120)
            points.append({"blobs": count, "fill_seconds": filled, "start": start, "list": listing, "fetch": fetch, "gc": collect,
                           "idle_cores": idle, "anonymous": anonymous})
            rounds.say(f"  {count} blobs: filled in {filled:.1f} s, start {start:.3f} s, list {listing:.3f} s, fetch {fetch:.3f} s, gc {collect:.3f} s, idle {idle:.3%}")
    rows = ["**Blobs in a store** (files of 1 KiB, 1,000 a model), on disk:", "",
            "| blobs | start to ready | `models` | fetch of 16 MiB more | `gc` | idle, of a core | anonymous memory |", "|--:|--:|--:|--:|--:|--:|--:|"]
    rows += [f"| {one['blobs']:,} | {one['start']:.3f} s | {one['list']:.3f} s | {one['fetch']:.3f} s | {one['gc']:.3f} s | {one['idle_cores']:.2%} "
             f"| {one['anonymous'] / MIB:.0f} MiB |" for one in points]
    return points, "\n".join(rows)


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
