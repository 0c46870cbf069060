"""Processes whose clock is wrong: what they ask the C library for the time of day is moved by so many seconds."""

from . import host

_SOURCE = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t offset(void) {
    const char *text = getenv("RIG_CLOCK");
    return text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *into) {
    int code = syscall(SYS_clock_gettime, clock, into);
    if (code == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) into->tv_sec += offset();
    return code;
}

int gettimeofday(struct timeval *restrict into, void *restrict zone) {
    struct timespec now;
    (void)zone;
    int code = clock_gettime(CLOCK_REALTIME, &now);
    into->tv_sec = now.tv_sec;
    into->tv_usec = now.tv_nsec / 1000;
    return code;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """A library that is put before the C library. Files are still given the true time: that is the kernel's."""

    def __init__(self, work):
        self._library = work / "clock.so"
        source = work / "clock.c"
        source.write_text(_SOURCE)
        host.run("cc", "-shared", "-fPIC", "-O1", "-o", self._library, source)

    def moved(self, days):
        """The environment of a process that is so many days ahead (behind, if negative)."""
        return {"LD_PRELOAD": str(self._library), "RIG_CLOCK": str(round(days * 86400))}
