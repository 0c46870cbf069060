"""Reads safetensors files as a consumer does: touch.py safetensors|mmap FILE...

`safetensors`: every tensor through the package, one byte of each page looked at. `mmap`: the same pages of a plain mapping.
"""

import sys

import numpy
from safetensors import safe_open


def main():
    way, *paths = sys.argv[1:]
    seen = 0
    for path in paths:
        if way == "mmap":
            seen += int(numpy.memmap(path, dtype=numpy.uint8, mode="r")[::4096].sum(dtype=numpy.uint64))
            continue
        with safe_open(path, framework="np") as file:
            for name in file.keys():
                seen += int(file.get_tensor(name).view(numpy.uint8)[::4096].sum(dtype=numpy.uint64))
    print(seen)


main()
