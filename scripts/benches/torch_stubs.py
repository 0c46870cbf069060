"""Lets torch's build for CUDA be imported where there is no GPU and none of CUDA's 2.7 GB of packages: for `scripts/bench --with-runai`,
whose peer imports torch and calls nothing of CUDA.

Run with the interpreter of the environment that holds torch; needs gcc, objdump and nm. For each library that torch's own name
as needed and that is nowhere, it makes one of that name in `torch/lib`, with one version node for each version that torch asks
of it and the symbols that it asks for: the loader checks these before anything is called. Every function answers 999, CUDA's
unknown error.
"""

import collections
import glob
import os
import re
import subprocess
import sysconfig
import tempfile

PACKAGES = sysconfig.get_paths()["purelib"]
TORCH = f"{PACKAGES}/torch/lib"
SYSTEM = ("libc.so", "libm.so", "libdl", "librt", "libpthread", "ld-linux", "libstdc++", "libgcc_s", "libgomp")
CUDA_SYMBOL = re.compile(r"^(cublas|cudnn|cufft|cuFile|cusolver|cusparse|nccl|pnccl|nvrtc|nvshmem)")


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def requirements(libraries):
    """Names needed, {version: library that must have it}, {version: symbols}; the version "" is none."""
    needed, home, wanted = set(), {}, collections.defaultdict(set)
    for library in libraries:
        dump = run("objdump", "-p", library)
        needed |= set(re.findall(r"NEEDED\s+(\S+)", dump))
        name = None
        for line in dump.partition("Version References:")[2].splitlines():
            if found := re.match(r"\s+required from (\S+):", line):
                name = found[1]
            elif name and (found := re.match(r"\s+0x\S+ 0x\S+ \d+ (\S+)", line)):
                home[found[1]] = name
        for line in run("nm", "-D", "--undefined-only", library).splitlines():
            symbol, _, tag = line.split()[-1].partition("@")
            wanted[tag.lstrip("@")].add(symbol)
    return needed, home, wanted


def build(name, versions, unversioned):
    """Compiles one library."""
    symbols = sorted({symbol for group in versions.values() for symbol in group} | set(unversioned))
    source = "".join(f"int {symbol}(void) {{ return 999; }}\n" for symbol in symbols) or "\n"
    with tempfile.TemporaryDirectory() as scratch:
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-o", f"{TORCH}/{name}", f"-Wl,-soname,{name}"]
        if versions:
            nodes = f"{scratch}/versions.map"
            with open(nodes, "w", encoding="ascii") as out:
                for tag, group in versions.items():
                    out.write(f"{tag} {{ global: {' '.join(symbol + ';' for symbol in sorted(group))} }};\n")
            command.append(f"-Wl,--version-script={nodes}")
        subprocess.run([*command, "-"], input=source, text=True, check=True)


def main():
    shipped = glob.glob(f"{PACKAGES}/nvidia/*/lib/*.so*")
    ours = [path for path in glob.glob(f"{TORCH}/*.so*") if os.path.basename(path).startswith(("libtorch", "libc10", "libshm"))]
    needed, home, wanted = requirements(ours)
    present = {os.path.basename(path) for path in shipped + glob.glob(f"{TORCH}/*.so*")}
    missing = sorted(name for name in needed if not name.startswith(SYSTEM) and name not in present)
    defined = set()
    for library in ours + shipped:
        defined |= {line.split()[-1].partition("@")[0] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    loose = sorted(symbol for symbol in wanted[""] - defined if CUDA_SYMBOL.match(symbol))
    # Symbols without a version may be in any library of the process: the first one takes them all.
    for number, name in enumerate(missing):
        build(name, {tag: wanted[tag] for tag, owner in home.items() if owner == name}, loose if number == 0 else [])


if __name__ == "__main__":
    main()
