"""Stand-ins for the CUDA libraries that torch names and an environment lacks, so that torch imports and runs on a CPU.

Run it with the environment's own Python; gcc, objdump and nm must be there. Again and again is fine.

Before any code runs, the loader asks three things of a library that is NEEDED: its SONAME, every symbol version that somebody
requires of it, and (at the latest when bound) the symbols. It does not ask what the functions do. So each stand-in has the exact
SONAME, one version node for each version required of it with the symbols wanted at that version, and functions that answer 999,
which is CUDA's "unknown error": what really calls CUDA fails, and says so. Symbols without a version may be in any library of the
process; the first stand-in has all of them. Never ship these.
"""

import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from pathlib import Path

SITE = Path(sysconfig.get_paths()["purelib"])
LIB = SITE / "torch" / "lib"
LIST = LIB / "stand-ins.txt"

# What the system has, whatever its version.
SYSTEM = re.compile(r"^(lib(c|m|dl|rt|pthread|util)\.so|ld-linux|libstdc\+\+|libgcc_s|libgomp)")
# Functions without a version that are CUDA's and nobody else's.
CUDA = re.compile(r"^(cublas|cudnn|cufft|cuFile|cusolver|cusparse|p?nccl|nvrtc|nvshmem|nvJitLink)")


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def wanted_by(library):
    """(libraries needed, {version: library that must have it}, [(symbol, version or "")])"""
    headers = output("objdump", "-p", str(library))
    needed = re.findall(r"^\s+NEEDED\s+(\S+)", headers, re.M)
    owners, owner = {}, None
    for line in headers.partition("Version References:")[2].splitlines():
        if match := re.match(r"\s+required from (\S+):", line):
            owner = match[1]
        elif owner and (match := re.match(r"\s+0x[0-9a-f]+ 0x[0-9a-f]+ \d+ (\S+)", line)):
            owners[match[1]] = owner
    symbols = []
    for line in output("nm", "-D", "--undefined-only", str(library)).splitlines():
        name, _, version = line.split()[-1].partition("@")
        symbols.append((name, version.lstrip("@")))
    return needed, owners, symbols


def defined_by(library):
    lines = output("nm", "-D", "--defined-only", str(library)).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines}


def compile_stand_in(soname, nodes, plain):
    """One shared library: `nodes` is {version: symbols}, `plain` the symbols without a version."""
    symbols = sorted(set(plain).union(*nodes.values()) if nodes else set(plain))
    source = "\n".join(f"int {name}(void) {{ return 999; }}" for name in symbols) + "\n"
    with tempfile.TemporaryDirectory() as scratch:
        code, script = Path(scratch, "stand_in.c"), Path(scratch, "versions")
        code.write_text(source)
        command = ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}", "-o", str(LIB / soname), str(code)]
        if nodes:
            body = (f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};" for version, names in nodes.items())
            script.write_text("\n".join(body) + "\n")
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)
    return len(symbols)


def main():
    if not LIB.is_dir():
        sys.exit(f"{LIB} does not exist: run this with the Python of an environment that has torch")
    for name in LIST.read_text().split() if LIST.exists() else []:
        (LIB / name).unlink(missing_ok=True)

    torch = [path for path in LIB.glob("*.so*") if path.name.startswith(("libtorch", "libc10", "libshm"))]
    shipped = list(SITE.glob("nvidia/**/*.so*"))
    here = {path.name for path in [*LIB.glob("*.so*"), *shipped]}
    needed, owners, wanted = set(), {}, defaultdict(set)
    for library in torch:
        names, versions, symbols = wanted_by(library)
        needed.update(names)
        owners.update(versions)
        for name, version in symbols:
            wanted[version].add(name)

    missing = sorted(name for name in needed if not SYSTEM.match(name) and name not in here)
    known = set().union(*(defined_by(path) for path in [*torch, *shipped]))
    plain = {name for name in wanted[""] - known if CUDA.match(name)}
    for number, soname in enumerate(missing):
        nodes = {version: wanted[version] for version, owner in owners.items() if owner == soname}
        count = compile_stand_in(soname, nodes, plain if number == 0 else ())
        print(f"{soname}: {count} functions, {len(nodes)} versions")
    LIST.write_text("\n".join(missing) + "\n")


main()
