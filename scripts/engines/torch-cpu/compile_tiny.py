"""Compiles a tiny module with torch.compile on the CPU and prints one JSON line: seconds, and the caches' own counters.

--layers N makes another graph. Exit code 1 if the compiled result is wrong.
"""

import argparse
import json
import time

begin = time.perf_counter()
import torch
from torch import nn
from torch._dynamo.utils import counters

imported = time.perf_counter() - begin


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.silu(self.up(self.norm(x))))


def timed(function, *arguments):
    begin = time.perf_counter()
    result = function(*arguments)
    return result, round(time.perf_counter() - begin, 3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=2)
    layers = parser.parse_args().layers
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(64) for _ in range(layers))).eval()
    x = torch.randn(8, 64)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model)
        result, first = timed(compiled, x)
        _, second = timed(compiled, x)
    right = torch.allclose(expected, result, atol=1e-4)
    cache = {name: count for part in ("inductor", "aot_autograd") for name, count in counters[part].items() if "cache" in name}
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "import_seconds": round(imported, 3),
                "compile_seconds": first,
                "second_call_seconds": second,
                "cache": cache,
                "right": right,
            }
        )
    )
    raise SystemExit(0 if right else 1)


main()
