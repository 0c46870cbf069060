"""What was measured, as a table for people and JSON for programs."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path


def machine():
    """Facts that a figure means nothing without."""
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name")), "unknown")
    memory = next(int(line.split()[1]) * 1024 for line in open("/proc/meminfo", encoding="ascii") if line.startswith("MemTotal"))
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def revision(repository):
    """The commit that was measured, with a mark when the tree was changed."""
    words = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() or None


def text(facts):
    """Markdown of what a scenario found."""
    if "texts" in facts:
        return "\n\n".join(facts["texts"].values())
    return facts["text"] if "text" in facts else table(facts)


def rounds(facts):
    """How often it was measured, in words."""
    return f"medians of {facts['rounds']} rounds" if facts["rounds"] > 1 else "one round"


def table(facts):
    """Markdown: one line a client; ratios are to the first, which is preheat."""
    lines = facts["clients"]
    first = next(iter(lines.values()))
    # Where the server is what is measured, or works for the client, both count.
    both = facts.get("both", False)

    def cpu(line):
        return line["client_cpu_per_gb"] + (line["server_cpu_per_gb"] if both else 0)

    # Of the server only what is its own: the pages of files that it maps are the files'.
    watched = any(line.get("server_anonymous") for line in lines.values())
    own = " server's anonymous memory |" if watched else ""
    rows = [
        f"{facts['intro']}; {rounds(facts)}.",
        "",
        f"| client | checks | GB/s | client CPU-s/GB | server CPU-s/GB | client's peak RSS |{own} speed ÷ preheat | {'all' if both else 'client'} CPU ÷ preheat |",
        "|---|---|--:|--:|--:|--:|--:|--:|" + ("--:|" if watched else ""),
    ]
    for name, line in lines.items():
        mark = (" ¹" if line["flags"] else "") + (" ²" if line["rounds"] < facts["rounds"] else "")
        anonymous = f" {line['server_anonymous'] / 2**20:.0f} MiB |" if line.get("server_anonymous") else " |"
        rows.append(
            f"| {name}{mark} | {line['checks']} | {line['gb_per_second']:.2f} | {line['client_cpu_per_gb']:.2f} | {line['server_cpu_per_gb']:.2f} "
            f"| {line['peak_rss'] / 2**20:.0f} MiB |{anonymous if watched else ''} {line['gb_per_second'] / first['gb_per_second']:.2f} "
            f"| {cpu(line) / cpu(first):.2f} |"
        )
    if any(line["flags"] for line in lines.values()):
        flags = sorted({flag for line in lines.values() for flag in line["flags"]})
        rows += ["", "¹ " + "; ".join(flags)]
    if few := sorted({line["rounds"] for line in lines.values() if line["rounds"] < facts["rounds"]}):
        rows += ["", f"² Takes long: medians of {' or '.join(map(str, few))} rounds."]
    return "\n".join(rows)


def limits_table(limits):
    """Markdown: the machine's own limits."""
    names = {
        "memcpy_core": "memcpy, one core", "memcpy_all": "memcpy, all cores", "loopback": "TCP over loopback",
        "blake3_core": "BLAKE3, one core", "sha256_core": "SHA-256, one core",
        "disk_write_1": "disk write, O_DIRECT, depth 1", "disk_write_8": "depth 8", "disk_write_32": "depth 32",
        "disk_read_1": "disk read, O_DIRECT, depth 1", "disk_read_8": "depth 8", "disk_read_32": "depth 32",
    }
    rows = ["| limit of the machine | GB/s |", "|---|--:|"]
    rows += [f"| {text} | {limits[name]:.2f} |" for name, text in names.items() if name in limits]
    return "\n".join(rows)


def write_json(path, facts):
    """Whole or not at all."""
    part = Path(f"{path}.part")
    part.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    part.rename(path)
