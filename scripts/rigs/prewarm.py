"""What schedulers plan on: estimates that turn out true, deadlines that are flagged at once, demand before prefetch, cancelling
that frees everything, jobs that outlive a kill, and answers that stay quick when thousands ask.

`--full` uses the sizes of the figures in README.md; without it everything is a quarter of that.
"""

import asyncio
import contextlib
import json
import re
import sys
import time
import urllib.request

from rig import host, models, origin, preheat

MIB = 1 << 20


def check(holds, what):
    """Ends the rig with `what` unless it holds; else says it."""
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"  {what}")


def wait_for(holds, seconds, what):
    """Waits until `holds` answers something true, which it returns."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            sys.exit(f"FAILED: {what}: not within {seconds} s")
        time.sleep(0.01)
    return found


def metric(daemon, name):
    """The value of a metric that has no labels."""
    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=5) as answer:
        found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found.group(1))


def partials(daemon):
    """Bytes that transfers hold on disk or have promised to them, and in memory."""
    usage = daemon.ask("GET", "/v1/node")["usage"]
    return usage["partials"] + usage["reserved"], metric(daemon, "preheat_buffer_bytes")


class Bench:
    """A daemon, and origins that it may ask."""

    def __init__(self, work, stack, scale):
        self.work, self.stack, self.scale = work, stack, scale
        self.program, self.machine, self.count = preheat.binary(), preheat.Machine(), 0

    def serve(self, name, sizes, **pace):
        """An origin with a model for each of `sizes` (MiB)."""
        for number, size in enumerate(sizes):
            shards = max(2, int(size * self.scale) // 64)
            models.write_model(self.work / name / f"m{number}", f"{name}{number}", shards, int(size * self.scale * MIB) // shards, 2)
        return self.stack.enter_context(origin.Origin(self.work / name, **pace))

    def daemon(self, origins, **more):
        """A daemon on a store of its own."""
        self.count += 1
        allow = [word for one in origins for word in ("--allow-origin", f"{one.url},allow_private")]
        arguments = ["--socket", self.work / f"{self.count}.sock", *allow]
        root = more.pop("root", self.work / f"store{self.count}")
        daemon = preheat.Daemon(self.program, root, self.machine, self.work / f"log{self.count}", arguments, **more).start()
        self.stack.callback(daemon.kill)
        return daemon


def estimates(bench):
    print("estimates")
    slow = bench.serve("slow", (600, 1000, 240), total_rate=40e6)
    fast = bench.serve("fast", (1200, 2000, 600), total_rate=200e6)
    unseen = bench.serve("unseen", (100,))
    daemon = bench.daemon((slow, fast, unseen))

    def estimate(url, **more):
        return daemon.ask("POST", "/v1/estimate", {"reference": url, "priority": "demand"} | more)

    before = estimate(f"{unseen.url}/m0")
    check(before["basis"] == "none" and before["seconds"] is None, "before anything was fetched nothing is promised")
    for name, web in (("40 MB/s", slow), ("200 MB/s", fast)):
        daemon.ask("POST", "/v1/prewarm", {"reference": f"{web.url}/m0", "wait": True}, seconds=120)
        for number in (1, 2):
            asked = web.requests
            guess = estimate(f"{web.url}/m{number}")
            check(guess["basis"] == "measured" and guess["bytes_missing"]["disk"] == guess["bytes_total"], f"{name}, m{number}: measured")
            check(web.requests - asked < 60 and web.by_path.get(f"/m{number}/model-00001-of-00002.safetensors", 0) == 0, "and nothing was started")
            job = daemon.ask("POST", "/v1/prewarm", {"reference": f"{web.url}/m{number}", "wait": True, "priority": "demand"}, seconds=240)
            ratio = guess["seconds"]["p50"] / job["seconds"]
            check(abs(ratio - 1) <= 0.15, f"{guess['seconds']['p50']:.2f} s (p90 {guess['seconds']['p90']:.2f}) estimated, {job['seconds']:.2f} s taken: {ratio:.2f}")
            after = estimate(f"{web.url}/m{number}")
            check(after["bytes_missing"]["disk"] == 0 and after["seconds"]["p90"] < 0.1, "and now nothing is missing")
    check(estimate(f"{unseen.url}/m0")["basis"] == "prior", "an unseen origin is not called measured")
    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=5) as answer:
        scored = [line for line in answer.read().decode().splitlines() if line.startswith("preheat_estimates_total")]
    check(len(scored) > 0, f"jobs score their estimates: {scored}")
    daemon.ask("POST", "/v1/gc", {"all": True})
    late = estimate(f"{slow.url}/m1", deadline_seconds=1)
    check(late["deadline"] == "missed", "an estimate says that a deadline of 1 s is missed")
    began = time.monotonic()
    job = daemon.ask("POST", "/v1/prewarm", {"reference": f"{slow.url}/m1", "deadline_seconds": 1})
    check(job["deadline_met"] is False, f"and a job is flagged in its first answer, after {time.monotonic() - began:.2f} s")
    daemon.ask("DELETE", f"/v1/prewarm/{job['id']}")


def priorities(bench):
    print("demand before prefetch, and cancelling")
    bulk = bench.serve("bulk", (4000, 400), total_rate=100e6)
    daemon = bench.daemon((bulk,))
    prefetch = daemon.ask("POST", "/v1/prewarm", {"reference": f"{bulk.url}/m0"})
    wait_for(lambda: bulk.body_bytes > 100e6 * bench.scale, 60, "the prefetch runs")
    demand = daemon.ask("POST", "/v1/prewarm", {"reference": f"{bulk.url}/m1", "priority": "demand"})

    def sent(model):
        with bulk._lock:
            return sum(count for path, count in bulk.by_path.items() if path.startswith(f"/{model}/"))

    wait_for(lambda: sent("m1") > 0, 5, "the demand begins")
    time.sleep(1)
    before = sent("m0"), sent("m1")
    time.sleep(min(2.0, 2.5 * bench.scale))
    theirs, ours = sent("m0") - before[0], sent("m1") - before[1]
    check(ours / (ours + theirs) >= 0.8, f"1 s later the demand has {ours / (ours + theirs):.0%} of the rate")
    wait_for(lambda: daemon.ask("GET", f"/v1/prewarm/{demand['id']}")["state"] == "ready", 60, "the demand is ready")
    check(daemon.ask("GET", f"/v1/prewarm/{prefetch['id']}")["state"] == "running", "the prefetch is not: it goes on")
    wait_for(lambda: partials(daemon)[0] > 0, 5, "it holds room")
    began = time.monotonic()
    daemon.ask("DELETE", f"/v1/prewarm/{prefetch['id']}")
    wait_for(lambda: bulk.at_once == 0 and partials(daemon) == (0, 0.0), 5, "cancelling frees everything")
    took = time.monotonic() - began
    check(took <= 1, f"cancelled: connections, room and memory are free after {took:.2f} s")


def kill(bench):
    print("kill -9 in the middle")
    web = bench.serve("killed", (800,), total_rate=100e6)
    daemon = bench.daemon((web,))
    job = daemon.ask("POST", "/v1/prewarm", {"reference": f"{web.url}/m0", "priority": "demand"})
    total = wait_for(lambda: daemon.ask("GET", f"/v1/prewarm/{job['id']}")["bytes_total"], 10, "it is known how much")
    wait_for(lambda: web.body_bytes > total // 2, 60, "half has come")
    daemon.kill()
    daemon.start()
    found = daemon.ask("GET", f"/v1/prewarm/{job['id']}")
    check(found["state"] in ("queued", "running", "ready"), "the job is there under its name")
    wait_for(lambda: daemon.ask("GET", f"/v1/prewarm/{job['id']}")["state"] == "ready", 60, "it ends by itself")
    again = web.body_bytes - total
    check(again < 300 * MIB * bench.scale + 64 * MIB, f"{again / MIB:.0f} MiB of {total / MIB:.0f} came twice")


async def call(port, body, results, times):
    """Sends a request on one connection, `times` times, one after the other, evenly spread over the time given."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/prewarm HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for at in times:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        began = time.monotonic()
        writer.write(head + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", answer, re.IGNORECASE).group(1))
        text = await reader.readexactly(length)
        results.append((time.monotonic() - began, answer.split(b" ", 2)[1], json.loads(text)["id"]))
    writer.close()


def many(bench):
    print("many callers")
    web = bench.serve("many", (400, 1600), total_rate=100e6)
    daemon = bench.daemon((web,))

    def ask(model, count, seconds, connections):
        body = json.dumps({"reference": f"{web.url}/{model}"}).encode()
        results, start = [], time.monotonic() + 0.1
        times = [start + seconds * number / count for number in range(count)]

        async def all_of_them():
            await asyncio.gather(*(call(daemon.port, body, results, times[one::connections]) for one in range(connections)))

        asyncio.run(all_of_them())
        return results

    results = ask("m0", 1000, 1, 32)
    check(len(results) == 1000 and len({result[2] for result in results}) == 1, "1,000 calls for one model are one job")
    job = daemon.ask("POST", "/v1/prewarm", {"reference": f"{web.url}/m0", "wait": True}, seconds=120)
    sizes = sum(path.stat().st_size for path in (bench.work / "many/m0").rglob("*") if path.is_file())
    check(web.body_bytes < 1.02 * sizes and job["state"] == "ready", f"and one transfer: {web.body_bytes / sizes:.3f} of its bytes")
    before = metric_rss(daemon)
    count = int(10_000 * bench.scale)
    running = daemon.ask("POST", "/v1/prewarm", {"reference": f"{web.url}/m1"})
    results = ask("m1", count, 10 * bench.scale, 32)
    slowest = sorted(result[0] for result in results)[int(0.99 * len(results))]
    still = daemon.ask("GET", f"/v1/prewarm/{running['id']}")["state"]
    check(still == "running", "the transfer still runs")
    check(slowest <= 0.05, f"{count} calls in {10 * bench.scale:.1f} s: p99 {slowest * 1e3:.1f} ms")
    grown = metric_rss(daemon) - before
    check(grown < 200 * MIB, f"anonymous memory grew by {grown / MIB:.0f} MiB, transfer buffers included")


def metric_rss(daemon):
    """Anonymous memory of the daemon."""
    with open(f"/proc/{daemon.process.pid}/status", encoding="ascii") as status:
        return int(re.search(r"RssAnon:\s+(\d+)", status.read()).group(1)) * 1024


def main():
    options, _ = host.begin(__doc__, full=0, only="")
    with contextlib.ExitStack() as stack:
        bench = Bench(host.work_directory(), stack, 1.0 if options.full else 0.25)
        for part in (estimates, priorities, kill, many):
            if options.only in ("", part.__name__):
                part(bench)


if __name__ == "__main__":
    main()
