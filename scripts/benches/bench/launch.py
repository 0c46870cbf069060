"""Starts one client and says what it took; a program of its own, run as `python3 -I -S launch.py LOG COMMAND...`.

What a client says on standard output goes nowhere (for `cat` that is all that it reads, which no client should have to write
into memory), and on standard error into LOG.

A process's peak memory begins with that of the process it was forked from, so the one that forks must be small: this one imports
next to nothing. Prints JSON: wall, user and system seconds, peak resident bytes of the largest process, exit status.
"""

import os
import sys
import time


def main():
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(nowhere, 1)
            os.dup2(log, 2)
            os.execvp(sys.argv[2], sys.argv[2:])
        finally:
            os._exit(127)
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic() - began
    code = os.waitstatus_to_exitcode(status)
    print(f'{{"wall": {wall:.6f}, "user": {usage.ru_utime:.6f}, "system": {usage.ru_stime:.6f}, "rss": {usage.ru_maxrss * 1024}, "exit": {code}}}')


main()
