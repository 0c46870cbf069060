"""A daemon as a server whose time is counted, and files whose pages are dropped and counted by other programs."""

import os
import subprocess
import time
from pathlib import Path

from . import measure


class Node:
    """Counts the processor time of a running daemon (`rig.preheat.Daemon`). It cannot be asked what it sent: its clients know."""

    counts = False

    def __init__(self, daemon):
        self.daemon = daemon

    def counters(self):
        """Processor seconds, and nothing else."""
        return measure.Counters(measure.process_cpu(self.daemon.process.pid))

    @property
    def processes(self):
        """Process ids."""
        return [self.daemon.process.pid]


def shards(tree):
    """The large files of a tree."""
    return sorted(path for path in Path(tree).rglob("*.safetensors") if path.is_file())


def resident(paths):
    """(bytes in memory, bytes), as fincore counts."""
    told = subprocess.run(["fincore", "--bytes", "--noheadings", "--output", "RES,SIZE", *map(str, paths)], capture_output=True, text=True, check=True)
    rows = [list(map(int, line.split())) for line in told.stdout.splitlines()]
    return sum(min(row[0], row[1]) for row in rows), sum(row[1] for row in rows)


def drop(paths, seconds=60):
    """Drops the files' pages, and returns when fincore finds none. Pages that are not on disk yet cannot be dropped."""
    deadline = time.monotonic() + seconds
    while True:
        for path in paths:
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
        left, total = resident(paths)
        if left <= total // 1000:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{left} of {total} bytes stay in memory")
        time.sleep(0.05)
