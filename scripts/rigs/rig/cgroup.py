"""A cgroup with a memory limit, of version 1 or 2, whichever has this machine's memory controller."""

import contextlib
import os
from pathlib import Path

from . import host

TOP = Path("/sys/fs/cgroup")


class Memory:
    """Made below the cgroup of this process (version 1) or below the top (version 2); goes with `close`."""

    def __init__(self, name):
        self.version = 1 if (TOP / "memory" / "memory.limit_in_bytes").exists() else 2
        if self.version == 1:
            lines = Path("/proc/self/cgroup").read_text().splitlines()
            own = next((line.split(":", 2)[2] for line in lines if "memory" in line.split(":")[1].split(",")), "/")
            above = TOP / "memory" / own.lstrip("/")
            above = above if above.is_dir() else TOP / "memory"
        else:
            above = TOP
        self.path = above / f"{name}-{os.getpid()}"
        try:
            if self.version == 2 and "memory" not in (above / "cgroup.subtree_control").read_text().split():
                (above / "cgroup.subtree_control").write_text("+memory")
            self.path.mkdir()
            self._limit.read_text()
        except OSError as refused:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            raise host.Unfit(f"memory cgroup ({refused})") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Removes it; its processes have to be gone."""
        with contextlib.suppress(OSError):
            self.path.rmdir()

    @property
    def _limit(self):
        return self.path / ("memory.limit_in_bytes" if self.version == 1 else "memory.max")

    def limit(self, size):
        """Sets the limit. Pages beyond it are reclaimed before this returns."""
        for attempt in range(20):
            try:
                self._limit.write_text(str(size))
                return
            except OSError:
                # Version 1 refuses while too much cannot be reclaimed at once: pages on their way to disk.
                if attempt == 19:
                    raise
                os.sync()

    def usage(self):
        """Bytes charged."""
        return int((self.path / ("memory.usage_in_bytes" if self.version == 1 else "memory.current")).read_text())

    def kills(self):
        """How many processes its limit has killed."""
        file = "memory.oom_control" if self.version == 1 else "memory.events"
        fields = dict(line.split() for line in (self.path / file).read_text().splitlines())
        return int(fields.get("oom_kill", 0))

    def program(self, work, program):
        """A program that is `program` in this cgroup from its first instruction on."""
        path = Path(work) / f"in-{self.path.name}"
        path.write_text(f'#!/bin/sh\necho $$ > {self.path}/cgroup.procs && exec {program} "$@"\n')
        path.chmod(0o755)
        return path
