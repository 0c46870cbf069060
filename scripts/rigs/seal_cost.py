#!/usr/bin/env python3
"""What it costs to make files durable, by strategy: the measurement behind section 5 of cache-layout/README.md.

Needs root (loop device). Prints medians of interleaved rounds. Usage: seal_cost.py [ext4|xfs] [rounds]
"""
import concurrent.futures
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

FILES, FILE_BYTES = 4000, 16 << 10
LARGE_BYTES = 1 << 30
libc = ctypes.CDLL(None, use_errno=True)
libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
libc.syncfs.argtypes = [ctypes.c_int]


def fsync_directory(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def write_small(stage):
    for number in range(FILES):
        with open(f"{stage}/{number}", "wb", buffering=0) as file:
            file.write(os.urandom(FILE_BYTES))


def target(root, number, fan_out):
    return f"{root}/{number % 256:02x}/{number}" if fan_out else f"{root}/{number}"


def sync_one(path):
    fd = os.open(path, os.O_RDWR)
    os.fdatasync(fd)
    os.close(fd)


def seal_each(stage, root, fan_out):
    for number in range(FILES):
        sync_one(f"{stage}/{number}")
        place = target(root, number, fan_out)
        os.rename(f"{stage}/{number}", place)
        fsync_directory(os.path.dirname(place))


def seal_batch(stage, root, fan_out, threads):
    for number in range(FILES):
        fd = os.open(f"{stage}/{number}", os.O_RDWR)
        libc.sync_file_range(fd, 0, 0, 2)
        os.close(fd)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda number: sync_one(f"{stage}/{number}"), range(FILES)))
    rename_and_sync(stage, root, fan_out)


def seal_syncfs(stage, root, fan_out):
    fd = os.open(root, os.O_RDONLY)
    libc.syncfs(fd)
    os.close(fd)
    rename_and_sync(stage, root, fan_out)


def rename_and_sync(stage, root, fan_out):
    touched = set()
    for number in range(FILES):
        place = target(root, number, fan_out)
        os.rename(f"{stage}/{number}", place)
        touched.add(os.path.dirname(place))
    for directory in touched:
        fsync_directory(directory)


STRATEGIES = {
    "fsync + rename + fsync(dir) each": lambda s, r, f: seal_each(s, r, f),
    "writeback all, fdatasync each, 1 thread": lambda s, r, f: seal_batch(s, r, f, 1),
    "writeback all, fdatasync each, 8 threads": lambda s, r, f: seal_batch(s, r, f, 8),
    "syncfs once": lambda s, r, f: seal_syncfs(s, r, f),
}


def large(path, part):
    """Seconds to write 1 GiB with an fdatasync each `part` bytes (0: once at the end)."""
    block = os.urandom(1 << 20)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.posix_fallocate(fd, 0, LARGE_BYTES)
    started = time.monotonic()
    for offset in range(0, LARGE_BYTES, len(block)):
        os.pwrite(fd, block, offset)
        if part and (offset + len(block)) % part == 0:
            os.fdatasync(fd)
    os.fdatasync(fd)
    seconds = time.monotonic() - started
    os.close(fd)
    os.unlink(path)
    return seconds


def main():
    kind = sys.argv[1] if len(sys.argv) > 1 else "ext4"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    work = tempfile.mkdtemp(prefix="seal-cost-")
    image, mount = f"{work}/image", f"{work}/mount"
    os.mkdir(mount)
    subprocess.run(["truncate", "-s", "4G", image], check=True)
    device = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run([f"mkfs.{kind}", "-q", device], check=True)
        subprocess.run(["mount", device, mount], check=True)
        small, big = {}, {}
        for _ in range(rounds):
            for name, seal in STRATEGIES.items():
                for fan_out in (False, True):
                    stage, root = f"{mount}/stage", f"{mount}/root"
                    os.mkdir(stage)
                    os.mkdir(root)
                    for directory in range(256 if fan_out else 0):
                        os.mkdir(f"{root}/{directory:02x}")
                    os.sync()
                    write_small(stage)
                    started = time.monotonic()
                    seal(stage, root, fan_out)
                    small.setdefault((name, fan_out), []).append(time.monotonic() - started)
                    shutil.rmtree(stage)
                    shutil.rmtree(root)
            for part in (0, 8, 16, 32, 64):
                os.sync()
                big.setdefault(part, []).append(large(f"{mount}/big", part << 20))
        print(f"{kind}, loop device, {FILES} files of {FILE_BYTES >> 10} KiB made durable, median of {rounds}:")
        for (name, fan_out), seconds in small.items():
            where = "256 directories" if fan_out else "one directory"
            print(f"  {name:42} {where:16} {statistics.median(seconds):7.2f} s")
        print(f"{kind}, 1 GiB, fdatasync every:")
        for part, seconds in big.items():
            print(f"  {'end only' if not part else f'{part} MiB':12} {statistics.median(seconds):6.2f} s")
    finally:
        subprocess.run(["umount", mount], check=False)
        subprocess.run(["losetup", "-d", device], check=False)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
