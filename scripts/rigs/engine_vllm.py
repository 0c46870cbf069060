"""Real vLLM on a CPU: `preheat run` cold, then warm in a new process. Not part of the tests: 2.9 GB, minutes.

Warm, vLLM must write no file and initialise its engine in at most 0.4 of the cold time (copying the directory back gives 0.2). `vllm serve` does not start under this
distribution's name, so the module is run.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from rig import preheat

HERE = Path(__file__).resolve().parents[1] / "engines" / "vllm-cpu"
CACHE = Path(os.environ.get("PREHEAT_CACHE") or Path.home() / ".cache" / "preheat")
MOST = 0.4
TOOK = re.compile(r"init engine .* took ([0-9.]+) s")


def check(holds, what, *more):
    """Ends the rig with `what` unless it holds; else says it."""
    if not holds:
        sys.exit("FAILED: " + what + "".join(f"\n{one}" for one in more))
    print(f"  {what}", flush=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(program, venv, work, model, port):
    """One start, up to an answer and its end: the report, and seconds of the engine's initialisation."""
    environment = {
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "HOME": str(work / "home"),
        "TMPDIR": str(work / "tmp"),
        "USER": "rig",
        "VLLM_USE_AOT_COMPILE": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    for name in ("home", "tmp"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir()
    report, log = work / "report.json", work / "log"
    report.unlink(missing_ok=True)
    command = [program, "run", "--root", work / "store", "--report", report, "--", "python", "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", model, "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", port, "--max-model-len", 256, "--max-num-seqs", 4]
    with log.open("w") as out:
        process = subprocess.Popen([str(word) for word in command], env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 600
        while not report.exists():
            check_alive = process.poll() is None and time.monotonic() < until
            if not check_alive:
                sys.exit(f"FAILED: no report\n{log.read_text()[-5000:]}")
            time.sleep(0.5)
        body = json.dumps({"model": "tiny", "prompt": "the quick", "max_tokens": 4}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            check(answer.status == 200, "a completion comes back")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    took = TOOK.search(log.read_text())
    return json.loads(report.read_text()), float(took[1]) if took else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--venv", type=Path, default=CACHE / "vllm-cpu")
    venv = parser.parse_args().venv.absolute()
    program = preheat.binary(features=())
    if not (venv / "bin" / "python").exists() or subprocess.run([venv / "bin" / "python", "-c", "import vllm"], capture_output=True).returncode:
        print(f"making {venv} (2.9 GB)", flush=True)
        subprocess.run([HERE / "setup", venv], check=True)
    with tempfile.TemporaryDirectory(prefix="preheat-vllm-") as work:
        work, port = Path(work), free_port()
        model = work / "model"
        subprocess.run([venv / "bin" / "python", HERE / "tiny_model.py", model], check=True)
        cold, cold_init = start(program, venv, work, model, port)
        check(cold["outcome"] == "cold" and cold["captured"], "cold, and kept", json.dumps(cold, indent=1))
        warm, warm_init = start(program, venv, work, model, port)
        check(warm["outcome"] == "hit", "a hit in a new process", json.dumps(warm, indent=1))
        made = [warm["files"][name] for name in ("new", "changed")]
        check(made == [0, 0], f"no new file, {warm['files']['restored']} restored, {warm['files']['read']} read", json.dumps(warm, indent=1))
        check(cold_init and warm_init, "both tell how long their engine's initialisation took")
        ratio = warm_init / cold_init
        check(ratio <= MOST, f"the engine initialises in {warm_init} s instead of {cold_init} s: {ratio:.3f} of it; at most {MOST}")
        print(f"ready after {warm['ready_seconds']:.1f} s, not {cold['ready_seconds']:.1f} s; {warm['restored_files']} files, {warm['restored_bytes']} bytes")


main()
