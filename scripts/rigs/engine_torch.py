"""torch.compile on a CPU, for real: `preheat run` cold, then warm in a new process with emptied caches, then with one thing changed.

Warm must be a hit that makes no new file and takes at most 0.15 of the cold compilation. With another torch, a variable that
matters, other flags of the program or fewer threads nothing is restored, and `preheat engine explain` names what was changed
first. Needs PyPI and 1.5 GB for the environment (`--venv`, kept for the next time).
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rig import preheat

HERE = Path(__file__).resolve().parents[1] / "engines" / "torch-cpu"
CACHE = Path(os.environ.get("PREHEAT_CACHE") or Path.home() / ".cache" / "preheat")
MOST = 0.15


def check(holds, what, *more):
    """Ends the rig with `what` unless it holds; else says it."""
    if not holds:
        sys.exit("FAILED: " + what + "".join(f"\n{one}" for one in more))
    print(f"  {what}", flush=True)


class Start:
    """One `preheat run` of the program: what it printed, and the report."""

    def __init__(self, machine, *flags, environment=None, before=(), more=()):
        report = machine.work / "report.json"
        report.unlink(missing_ok=True)
        command = [*before, machine.program, "run", "--root", machine.work / "store", "--report", report, *more, "--"]
        command += [machine.python, HERE / "compile_tiny.py", *flags]
        done = subprocess.run(
            [str(word) for word in command], env=machine.environment | (environment or {}), capture_output=True, text=True, timeout=600
        )
        check(done.returncode == 0, "the program ends well", done.stdout, done.stderr)
        self.told = json.loads(done.stdout.splitlines()[-1])
        self.report = json.loads(report.read_text())


class Machine:
    def __init__(self, work, venv):
        self.work, self.python = work, venv / "bin" / "python"
        self.program = preheat.binary(features=())
        home = work / "home"
        home.mkdir()
        known = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG")}
        self.environment = known | {"HOME": str(home), "TMPDIR": str(work / "tmp"), "USER": "rig"}
        (work / "tmp").mkdir()

    def empty_caches(self):
        """What a fresh container would not have: the engine's own directory, and the views of starts before."""
        for name in ("tmp", "home"):
            shutil.rmtree(self.work / name)
            (self.work / name).mkdir()

    def explain(self, *flags, environment=None, before=()):
        command = [*before, self.program, "engine", "explain", "--json", "--root", self.work / "store", "--"]
        command += [self.python, HERE / "compile_tiny.py", *flags]
        done = subprocess.run([str(word) for word in command], env=self.environment | (environment or {}), capture_output=True, text=True)
        check(done.returncode == 0, "explain answers", done.stderr)
        return json.loads(done.stdout)["kinds"][0]


@contextlib.contextmanager
def patched_torch(venv):
    """torch with one file more in its RECORD: what a patch in an image looks like."""
    (record,) = venv.glob("lib/python3*/site-packages/torch-*.dist-info/RECORD")
    text = record.read_bytes()
    record.write_bytes(text + b"torch/patched.py,sha256=x,1\n")
    try:
        yield
    finally:
        record.write_bytes(text)


@contextlib.contextmanager
def other_torch(venv, version, back):
    """Another torch in the same place, as another image has it."""
    subprocess.run([HERE / "setup", venv, version], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run([HERE / "setup", venv, back], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--venv", type=Path, default=CACHE / "torch-cpu")
    parser.add_argument("--swap-torch", action="store_true", help="install another torch for a while, instead of patching this one")
    options = parser.parse_args()
    venv = options.venv.absolute()
    if not (venv / "bin" / "python").exists() or subprocess.run([venv / "bin" / "python", "-c", "import torch"], capture_output=True).returncode:
        print(f"making {venv} (1.5 GB)", flush=True)
        subprocess.run([HERE / "setup", venv], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory(prefix="preheat-torch-") as work:
        machine = Machine(Path(work), venv)
        cold = Start(machine)
        check(cold.report["outcome"] == "cold" and cold.report["captured"], "cold, and kept", cold.report)
        machine.empty_caches()
        warm = Start(machine)
        check(warm.report["outcome"] == "hit", "a hit in a new process with emptied caches", warm.report)
        made = [warm.report["files"][name] for name in ("new", "changed")]
        check(made == [0, 0], f"no new file, {warm.report['files']['restored']} restored, {warm.report['files']['read']} read", warm.report)
        check(warm.told["cache"].get("fxgraph_cache_hit") == 1 and "fxgraph_cache_miss" not in warm.told["cache"], "torch's counters agree", warm.told)
        ratio = warm.told["compile_seconds"] / cold.told["compile_seconds"]
        figures = f"compiled in {warm.told['compile_seconds']} s instead of {cold.told['compile_seconds']} s: {ratio:.3f} of it"
        check(ratio <= MOST, f"{figures}; at most {MOST}")

        nothing = contextlib.nullcontext
        torch = (lambda: other_torch(venv, "2.13.0", "2.15.0")) if options.swap_torch else (lambda: patched_torch(venv))
        changes = [
            ("another torch", "package.torch", torch, {}),
            ("a variable that matters", "env.TORCHINDUCTOR_FREEZING", nothing, {"environment": {"TORCHINDUCTOR_FREEZING": "1"}}),
            ("threads by a variable", "env.OMP_NUM_THREADS", nothing, {"environment": {"OMP_NUM_THREADS": "1"}}),
            ("the program's flags", "argv.--layers", nothing, {"flags": ("--layers", "3")}),
        ]
        if len(os.sched_getaffinity(0)) > 1:
            changes.append(("fewer CPUs", "cpu.threads", nothing, {"before": ("taskset", "-c", "0")}))
        for what, field, context, how in changes:
            flags = how.pop("flags", ())
            with context():
                machine.empty_caches()
                told = machine.explain(*flags, **how)
                first = told["differences"][0]
                folded = [one["field"] for one in first.get("derived", [])]
                rest = [one["field"] for one in told["differences"][1:] if one["role"] == "hard"]
                check(told["exact"] is None and first["field"] == field and not rest, f"{what}: explain names {field}, and {folded} with it", told)
                start = Start(machine, *flags, more=("--no-capture",), **how)
                check(start.report["outcome"] == "cold" and start.report["restored_bytes"] == 0, f"{what}: nothing is restored", start.report)
        machine.empty_caches()
        again = Start(machine)
        check(again.report["outcome"] == "hit", "as it was: a hit again", again.report)
        restored = f"{warm.report['restored_bytes']} bytes in {warm.report['restore_seconds']:.3f} s"
        print(f"{figures}; restored {restored}; ready after {warm.report['ready_seconds']:.1f} s, not {cold.report['ready_seconds']:.1f} s")


main()
