"""The API's own description, tried: whatever it allows is sent, and nothing may come back that it does not tell of.

schemathesis makes the requests. No answer may be a 5xx but those that the description names, no status, content type, header or
body may be another than described.
"""

import contextlib
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from rig import host, models, preheat

CHECKS = "status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,not_a_server_error"


def main():
    options, rng = host.begin(__doc__, seconds=60)
    work, program, machine = host.work_directory(), preheat.binary(), preheat.Machine()
    models.write_model(work / "source/m", 1, shards=2, shard_bytes=1 << 20)
    with contextlib.ExitStack() as stack:
        arguments = ["--socket", work / "s.sock", "--allow-origin", f"file://{work}/source"]
        daemon = preheat.Daemon(program, work / "store", machine, work / "log", arguments).start()
        stack.callback(daemon.kill)
        job = daemon.ask("POST", "/v1/prewarm", {"reference": f"file://{work}/source/m", "wait": True})
        if job["state"] != "ready":
            sys.exit(f"FAILED: {job['error']}")
        with urllib.request.urlopen(f"{daemon.url}/v1/openapi.json") as answer:
            document = json.load(answer)
        operations = sum(len(path) for path in document["paths"].values())
        command = [Path(sys.executable).parent / "schemathesis", "run", f"{daemon.url}/v1/openapi.json", "--checks", CHECKS]
        command += ["--max-time", options.seconds, "--continue-on-failure", "--generation-database", "none", "--no-color"]
        command += ["--seed", rng.randrange(1 << 32)]
        done = subprocess.run([str(word) for word in command], cwd=work, capture_output=True, text=True, timeout=600)
        if done.returncode != 0 or "Test cases:" not in done.stdout:
            sys.exit(f"FAILED:\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
        cases = re.search(r"\d+ generated", done.stdout).group()
        print(f"  {operations} operations, {cases} cases, none of them answered otherwise than described")
        if daemon.process.poll() is not None:
            sys.exit("FAILED: the daemon is gone")
        errors = [line for line in daemon.log.read_text().splitlines() if '"ERROR"' in line or " ERROR " in line]
        if errors:
            sys.exit("FAILED: it logged errors:\n" + "\n".join(errors[:20]))
        if daemon.stop() != 0:
            sys.exit("FAILED: the daemon did not end well")
        print("  and the daemon has logged no error and ends well")


if __name__ == "__main__":
    main()
