"""What a cold disk gives, and what preheat makes of it: warming (hashed, proved, in the page cache) beside every other way to
read the same files, in rounds, in one run.

The promise: at least 0.9 of the best of them, and at least 2.5 of a cold mapping that is read page by page. Before each reading
the pages are dropped, and `fincore` has to agree. A hypervisor's cache makes a virtual disk look faster than it is, for all alike.
"""

import concurrent.futures
import ctypes
import mmap
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rig import host, models, preheat
from memory_tier import drop, resident

MIB = 1 << 20
libc = ctypes.CDLL(None, use_errno=True)
CONFIGURATION = """
[origins]
allow = ["file://%s"]
[store]
keep_free = "256MiB"
scrub_rate = "1KiB/s"
[prewarm]
memory_free = "128MiB"
memory_reserve = "128MiB"
"""


def cpu_seconds(process):
    """Of a process and its threads, so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def buffered(files, ahead):
    """One thread, 1 MiB at a time; `ahead`: how much the kernel is told of before."""
    buffer = memoryview(bytearray(MIB))
    for path in files:
        file = os.open(path, os.O_RDONLY)
        size, told, at = os.fstat(file).st_size, 0, 0
        while at < size:
            if ahead and told < min(size, at + ahead):
                os.posix_fadvise(file, told, MIB, os.POSIX_FADV_WILLNEED)
                told += MIB
                continue
            at += os.preadv(file, [buffer], at)
        os.close(file)


def direct(files, depth, each):
    """`depth` threads, each with a read of `each` bytes under way, past the page cache."""
    opened = [(os.open(path, os.O_RDONLY | os.O_DIRECT), os.stat(path).st_size) for path in files]
    work = iter([(file, at) for file, size in opened for at in range(0, size, each)])

    def one():
        buffer = mmap.mmap(-1, each + 2 * MIB)
        buffer.madvise(mmap.MADV_HUGEPAGE)
        view = memoryview(buffer)
        start = -ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % (2 * MIB)
        for file, at in work_safely(work):
            os.preadv(file, [view[start : start + each]], at)

    with concurrent.futures.ThreadPoolExecutor(depth) as pool:
        for done in [pool.submit(one) for _ in range(depth)]:
            done.result()
    for file, _ in opened:
        os.close(file)


def work_safely(work):
    """Iterators over lists may be shared by threads while the interpreter has its lock."""
    while (one := next(work, None)) is not None:
        yield one


def mapped(files, advice):
    """A byte of each page, in order."""
    for path in files:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
            pages.madvise(advice)
            len(pages[:: mmap.PAGESIZE])


def main():
    options, rng = host.begin(__doc__, needs=["fincore"], mib=2048, rounds=3, bin=None, disk="auto", read_threads=0)
    work = host.work_directory()
    kind = subprocess.run(["stat", "-f", "-c", "%T", work], capture_output=True, text=True, check=True).stdout.strip()
    if kind in ("tmpfs", "overlayfs"):
        host.skip(f"disk behind {work}: its pages cannot be dropped; set TMPDIR")
    source = work / "source"
    models.write_model(source, rng.random(), shards=2, shard_bytes=options.mib * MIB // 2, small_files=2)
    configuration = work / "cold.toml"
    threads = f"read_threads = {options.read_threads}\n" if options.read_threads else ""
    configuration.write_text(CONFIGURATION % source + threads)
    program = Path(options.bin) if options.bin else preheat.binary(features=(), release=True)
    arguments = ["--socket", work / "cold.sock", "--config", configuration]
    environment = {"PREHEAT_STORE__DISK": options.disk}
    daemon = preheat.Daemon(program, work / "store", preheat.Machine(), work / "cold.log", arguments, environment=environment).start()
    try:
        ask = {"reference": f"file://{source}", "tier": "disk", "wait": True}
        job = daemon.ask("POST", "/v1/prewarm", ask, seconds=600)
        assert job["state"] == "ready", job
        tree, pinned = job["path"], f"file://{source}@{job['revision']}"
        for path in source.rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
        files = sorted(Path(tree).glob("*.safetensors"))
        total = sum(path.stat().st_size for path in files)

        def warmed():
            before = cpu_seconds(daemon.process.pid)
            ended = daemon.ask("POST", "/v1/prewarm", ask | {"reference": pinned, "tier": "memory"}, seconds=600)
            assert ended["state"] == "ready", ended
            seconds = next(stage["seconds"] for stage in ended["timeline"] if stage["stage"] == "warm")
            there, size = resident(tree)
            assert there == size, f"{there} of {size} bytes are in memory"
            return seconds, cpu_seconds(daemon.process.pid) - before

        def timed(read):
            def run():
                began, before = time.monotonic(), time.process_time()
                read()
                return time.monotonic() - began, time.process_time() - before

            return run

        ways = {"preheat: hashed, proved, in the page cache": warmed, "buffered, one after the other (cat)": timed(lambda: buffered(files, 0))}
        for ahead in (8, 64):
            ways[f"buffered, {ahead} MiB ahead"] = timed(lambda ahead=ahead: buffered(files, ahead * MIB))
        for depth, each in ((1, 1), (4, 1), (16, 1), (64, 1), (4, 4), (16, 4)):
            ways[f"O_DIRECT, {depth} x {each} MiB"] = timed(lambda depth=depth, each=each: direct(files, depth, each * MIB))
        ways["mmap, read in order"] = timed(lambda: mapped(files, mmap.MADV_NORMAL))
        ways["mmap, page by page"] = timed(lambda: mapped(files, mmap.MADV_RANDOM))
        found = {name: [] for name in ways}
        for turn in range(options.rounds):
            order = list(ways)
            # Whoever comes after another finds its memory: each comes after each.
            rng.shuffle(order)
            for name in order:
                # A page by page costs a minute; once is enough.
                if name == "mmap, page by page" and turn > 0:
                    continue
                drop(tree)
                seconds, cpu = ways[name]()
                found[name].append((total / seconds / 1e6, cpu / (total / 1e9)))
        print(f"{options.mib} MiB, {kind}, medians of {options.rounds}")
        print("| | MB/s | CPU s/GB |\n|---|---|---|")
        speed = {}
        for name, values in found.items():
            speed[name] = statistics.median(value[0] for value in values)
            print(f"| {name} | {speed[name]:.0f} ({min(values)[0]:.0f}-{max(values)[0]:.0f}) | {statistics.median(value[1] for value in values):.2f} |")
        own = speed.pop("preheat: hashed, proved, in the page cache")
        best = max(speed, key=speed.get)
        print(f"{own / speed[best]:.2f} of the best, which is {best}; {own / speed['mmap, page by page']:.1f} of a mapping page by page, "
              f"{own / speed['mmap, read in order']:.2f} of one in order")
        cached = max(value for name, value in speed.items() if name.startswith(("buffered", "mmap")))
        print(f"{own / cached:.2f} of the best that leaves the file in memory")
        sys.exit(0 if own >= 0.9 * cached and own >= 2.5 * speed["mmap, page by page"] else 1)
    finally:
        daemon.kill()


if __name__ == "__main__":
    main()
