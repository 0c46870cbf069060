"""An engine that compiles nothing: it writes the files that one would write, and takes its time for it.

What is there of its cache is read and used; what is not is "compiled": slept for, then written to a temporary file and renamed.
Afterwards it says so, serves /health if it is given a port, and otherwise ends. Flags make it behave badly.
"""

import argparse
import os
import signal
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--cache", required=True)
parser.add_argument("--files", type=int, default=4)
parser.add_argument("--sleep", type=float, default=0.05, help="seconds a file")
parser.add_argument("--port", type=int)
parser.add_argument("--own-key", default="k", help="what it hashes into the name of its directory")
parser.add_argument("--own-key-variable", help="... and a variable")
parser.add_argument("--more", type=int, default=0, help="files that are written anew at every start")
parser.add_argument("--later", type=float, help="seconds after which a file more is compiled, unless it is there")
parser.add_argument("--die-if-warm", action="store_true")
parser.add_argument("--hang-if-warm", action="store_true")
parser.add_argument("--exit", type=int, default=0)
parser.add_argument("--model", help="something that it is started with")
parser.add_argument("--deaf", action="store_true", help="take no notice of SIGTERM")
parser.add_argument("--serve", type=float, default=3600, help="seconds")
parser.add_argument("--print-signal", action="store_true")
parser.add_argument("--secret-file", action="store_true", help="write a secret of the environment into the cache")
options = parser.parse_args()

# What is counted is no argument: a file that is named there is in the key by its content.
if "FAKE_STARTS" in os.environ:
    with open(os.environ["FAKE_STARTS"], "a") as out:
        out.write("start\n")
if options.deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if options.print_signal:

    def told(number, _frame):
        print(f"told {number}", flush=True)
        sys.exit(7)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, told)

key = options.own_key + (os.environ.get(options.own_key_variable, "") if options.own_key_variable else "")
directory = os.path.join(options.cache, key)
warm = os.path.isdir(directory) and bool(os.listdir(directory))
if warm and options.die_if_warm:
    print("fake engine: what was restored is broken", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if warm and options.hang_if_warm:
    time.sleep(3600)


def write(name, text):
    os.makedirs(os.path.dirname(name), exist_ok=True)
    temporary = f"{name}.tmp"
    with open(temporary, "w") as out:
        out.write(text)
    os.rename(temporary, name)


used = made = 0
for number in range(options.files):
    name = os.path.join(directory, f"{number % 16:x}", f"{number}.so")
    try:
        with open(name) as file:
            if file.read() != f"compiled {number}":
                print("fake engine: corrupted compilation artifact", flush=True)
                sys.exit(9)
        used += 1
    except FileNotFoundError:
        time.sleep(options.sleep)
        write(name, f"compiled {number}")
        made += 1
for number in range(options.more):
    write(os.path.join(directory, "more", f"{number}.{os.getpid()}.{time.time_ns()}"), "more")
if options.secret_file:
    write(os.path.join(directory, "factors.json"), os.environ["FAKE_API_TOKEN"])
print(f"fake engine: used {used}, made {made}", flush=True)
options.exit = int(os.environ.get("FAKE_EXIT", options.exit))
if options.exit:
    sys.exit(options.exit)
if options.port is None:
    sys.exit(0)

import http.server


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Health)
server.timeout = 0.1
until = time.monotonic() + options.serve
later = time.monotonic() + options.later if options.later else None
while time.monotonic() < until:
    server.handle_request()
    if later and time.monotonic() > later:
        later = None
        name = os.path.join(directory, "later.so")
        if not os.path.exists(name):
            write(name, "compiled later")
