"""Seccomp profiles as container runtimes read them, put on a process: what a node's Localhost profile, or the runtime's own, does.

Run as a program it takes a profile and a command: `python seccomp.py PROFILE COMMAND...`.
"""

import ctypes
import json
import os
import platform
import re
import struct
import sys
from pathlib import Path

IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")

_ARCHITECTURES = {"x86_64": ("SCMP_ARCH_X86_64", 0xC000003E), "aarch64": ("SCMP_ARCH_AARCH64", 0xC00000B7)}
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2


def refusing(calls, errno=1):
    """A profile that allows everything but these."""
    refused = {"names": list(calls), "action": "SCMP_ACT_ERRNO", "errnoRet": errno}
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]}


def numbers():
    """{name: number} of this machine's system calls, from the kernel's header."""
    for header in ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h", "/usr/include/asm/unistd_64.h"):
        if Path(header).exists():
            found = re.findall(r"#define __NR_(\w+)\s+(\d+)", Path(header).read_text())
            return {name: int(number) for name, number in found}
    return {}


def program(profile, known):
    """The filter of a profile, as bytes of struct sock_filter. Names that this machine does not know are left out, as runtimes do."""
    _, architecture = _ARCHITECTURES[platform.machine()]
    verdict = lambda action, errno: {"SCMP_ACT_ALLOW": _ALLOW, "SCMP_ACT_ERRNO": _ERRNO | errno}[action]
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    for rule in profile["syscalls"]:
        told = (_RETURN, 0, 0, verdict(rule["action"], rule.get("errnoRet", profile.get("defaultErrnoRet", 1))))
        for name in rule["names"]:
            if name not in known:
                continue
            tests = [test for arg in rule.get("args", []) for test in _argument(arg)]
            body = [*tests, told]
            # Past the end of this rule; a test that fails goes there too.
            body = [(code, yes, len(body) - at - 1 if no == "past" else no, k) for at, (code, yes, no, k) in enumerate(body)]
            lines += [(_LOAD, 0, 0, 0), (_EQUAL, 0, len(body), known[name]), *body]
    lines.append((_RETURN, 0, 0, verdict(profile["defaultAction"], profile.get("defaultErrnoRet", 1))))
    return b"".join(struct.pack("=HBBI", *line) for line in lines), len(lines)


def _argument(arg):
    mask, value = {"SCMP_CMP_EQ": (2**64 - 1, arg["value"]), "SCMP_CMP_MASKED_EQ": (arg["value"], arg.get("valueTwo", 0))}[arg["op"]]
    for half in (0, 1):
        part = lambda number: number >> (32 * half) & 0xFFFFFFFF
        # struct seccomp_data: number, architecture, address, then six arguments of 64 bits, little-endian.
        yield (_LOAD, 0, 0, 16 + 8 * arg["index"] + 4 * half)
        yield (_AND, 0, 0, part(mask))
        yield (_EQUAL, 0, "past", part(value))


def confine(profile):
    """Puts the profile on this process, and on all that it starts."""
    text, length = program(profile, numbers())
    assert length <= 4096, "the kernel takes 4096 instructions"
    held = ctypes.create_string_buffer(text, len(text))
    filters = struct.pack("=H6xQ", length, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(filters), 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({call[0]})")


def wrapped(profile, work, name, executable):
    """A program that is `executable` under this profile from its first instruction on."""
    written, path = Path(work) / f"{name}.json", Path(work) / name
    written.write_text(json.dumps(profile))
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {written} {executable} "$@"\n')
    path.chmod(0o755)
    return path


if __name__ == "__main__":
    confine(json.loads(Path(sys.argv[1]).read_text()))
    os.execv(sys.argv[2], sys.argv[2:])
