"""Stopping, reading and killing the processes that a rig torments."""

import atexit
import os
import signal
import subprocess
import time

# A thread in the middle of a sync stops when the sync returns; on a slow disk that takes seconds.
_STOP_SECONDS = 30


_started = []


def start(command, **options):
    """Starts a victim, its standard output on a pipe that is read without blocking unless `stdout` says otherwise.

    It dies with the rig, however that ends; for that the kernel watches the starting *thread*, so start victims from the
    main one.
    """
    if not _started:
        atexit.register(lambda: kill(_started))
    options.setdefault("stdout", subprocess.PIPE)
    command = ["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)]
    process = subprocess.Popen(command, bufsize=0, **options)
    _started.append(process)
    if process.stdout is not None:
        os.set_blocking(process.stdout.fileno(), False)
    return process


def stop(processes):
    """Sends SIGSTOP and returns once every thread of every process is stopped (or gone)."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + _STOP_SECONDS
    for process in processes:
        while not _all_stopped(process.pid):
            if time.monotonic() > deadline:
                raise RuntimeError(f"process {process.pid} does not stop: threads {_states(process.pid)}")
            time.sleep(0.0002)


def resume(processes):
    """Lets stopped processes run on."""
    for process in processes:
        process.send_signal(signal.SIGCONT)


def kill(processes):
    """SIGKILL, and waits for the end of each."""
    processes = list(processes)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()
        if process in _started:
            _started.remove(process)


def read_available(pipe):
    """All bytes in the pipe now; does not wait for more."""
    if pipe is None:
        return b""
    chunks = []
    while True:
        try:
            chunk = os.read(pipe.fileno(), 1 << 16)
        except BlockingIOError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks)


def read_line(process, seconds=30):
    """The next line of the victim's standard output, waiting for it: for a victim that says when it is ready."""
    line, deadline = bytearray(), time.monotonic() + seconds
    while not line.endswith(b"\n"):
        try:
            byte = os.read(process.stdout.fileno(), 1)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing from {process.args} in {seconds} s") from None
            time.sleep(0.0005)
            continue
        if not byte:
            raise RuntimeError(f"{process.args} ended (exit {process.wait()}) without a word")
        line += byte
    return line.decode()


def anonymous_bytes(pid):
    """RssAnon of a process: what it holds of its own, without the page cache that it maps."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no RssAnon")


def _states(pid):
    states = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            try:
                with open(f"/proc/{pid}/task/{thread}/stat") as stat:
                    # The name before it may hold spaces and brackets; the state follows the last bracket.
                    states.append(stat.read().rpartition(")")[2].split()[0])
            except (FileNotFoundError, ProcessLookupError):
                pass
    except FileNotFoundError:
        pass
    return states


def _all_stopped(pid):
    return all(state in "TtZX" for state in _states(pid))
