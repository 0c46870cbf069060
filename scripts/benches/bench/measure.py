"""One run of one client: wall time, processor time of client and server, memory, and whether anybody else was at work."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from rig import watch

_LAUNCH = Path(__file__).with_name("launch.py")
_TICK = os.sysconf("SC_CLK_TCK")


class Counters(NamedTuple):
    """What a server has done so far."""

    cpu: float
    """Processor seconds."""
    bytes: int = 0
    """Of bodies."""
    requests: int = 0
    stalls: int = 0
    """Connections that it let fall silent in this run."""


@dataclasses.dataclass
class Taken:
    """What one run took. Seconds and bytes."""

    wall: float
    client_cpu: float
    server_cpu: float
    rss: int
    origin_bytes: int
    origin_requests: int
    foreign: float
    """Share of the machine that neither client nor server nor this program used."""
    flags: list = dataclasses.field(default_factory=list)
    server_anonymous: int = 0
    """The most anonymous memory of the server's processes, each at its own peak; 0 where nobody watched."""
    stalls: int = 0
    """Connections that the server let fall silent."""


class Failed(Exception):
    """A client that did not do what it was asked to."""


def cores():
    """The processors that clients and server share."""
    return sorted(os.sched_getaffinity(0))


def share_two_cores():
    """Confines this process, and all that it starts, to two cores: what the figures are about, whatever the machine has."""
    os.sched_setaffinity(0, cores()[:2])


def run(command, log, environment=None, server=None, seconds=600, watched=False):
    """Runs `command` (a list) to its end under `launch.py`; `server` counts what it sent (see `web.Web`). `watched`: its memory is
    sampled too, which costs a little of the processors."""
    before = server.counters() if server else Counters(0.0)
    busy_before, own_before = _busy(), _own()
    watches = [watch.Watch(pid, every=0.02) for pid in server.processes] if watched and server else []
    words = [sys.executable, "-I", "-S", str(_LAUNCH), str(log), *map(str, command)]
    # In a group of its own, so that all of it can be ended.
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as launcher:
        try:
            output, _ = launcher.communicate(timeout=seconds)
        except BaseException as ended:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.communicate()
            if isinstance(ended, subprocess.TimeoutExpired):
                raise Failed(f"{Path(command[0]).name} is not done after {seconds} s") from None
            raise
        finally:
            anonymous = sum(one.end() for one in watches)
    if launcher.returncode != 0 or not output:
        raise Failed(f"{command[0]}: the launcher ended with {launcher.returncode}")
    facts = json.loads(output)
    busy, own = _busy() - busy_before, _own() - own_before
    after = server.counters() if server else before
    if facts["exit"] != 0:
        tail = Path(log).read_text(errors="replace").strip().splitlines()[-12:]
        raise Failed(f"{' '.join(map(str, command))}: exit {facts['exit']}\n" + "\n".join(tail))
    cpu, server_cpu = facts["user"] + facts["system"], after.cpu - before.cpu
    # Clocks tick in hundredths, one for each process and processor that is asked: a short run has no exact share.
    foreign = max(0.0, busy - cpu - server_cpu - own - 5 / _TICK) / (facts["wall"] * len(cores()))
    return Taken(facts["wall"], cpu, server_cpu, facts["rss"], after.bytes - before.bytes, after.requests - before.requests, foreign,
                 server_anonymous=anonymous, stalls=after.stalls)


def process_cpu(pid):
    """Processor seconds of a process and the children that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICK


def _busy():
    """Seconds that the shared cores were not idle, those stolen by the hypervisor included."""
    wanted, total = {f"cpu{number}" for number in cores()}, 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[:8])
            total += user + nice + system + irq + softirq + steal
    return total / _TICK


def _own():
    """Seconds of this program: without those of its children, for which clients are asked themselves."""
    times = os.times()
    return times.user + times.system
