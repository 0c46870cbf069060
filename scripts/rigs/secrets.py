"""A canary in every credential that preheat can be given, at the log level TRACE, against upstreams that say back what they are sent.

Then everything that preheat has said or left is searched: standard output and error, logs, answers of the API, metrics, the
store with all that is in it, process arguments, a core dump. Each canary is looked for as it is, percent-encoded, in hex and in
base64 at every offset. That the upstreams have seen the canaries is checked too: what is not used cannot leak.

`--suite` runs the integration tests themselves at TRACE, with a canary in place of each of their credentials, and searches what
they print and what they leave.
"""

import base64
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from rig import echo, host, models, origin, preheat, s3, victim

MUTANTS = ("token_logged", "echoes_shown")
HEADER = "preheat-credential"


def check(holds, what):
    """Ends the rig with `what` unless it holds; else says it."""
    if not holds:
        sys.exit(f"FAILED: {what}")
    print(f"  {what}")


class Canaries:
    """Secrets that are found again. `canaries["name"]` makes one."""

    def __init__(self, rng):
        self._rng, self.named = rng, {}

    def __getitem__(self, name):
        if name not in self.named:
            self.named[name] = f"cnry-{name}+{self._rng.randbytes(12).hex()}/{self._rng.randbytes(6).hex()}"
        return self.named[name]

    def add(self, name, text):
        self.named[name] = text
        return text

    def needles(self):
        """{form: name} of everything to look for."""
        found = {}
        for name, text in self.named.items():
            for line in text.splitlines():
                if len(line) >= 16 and not line.startswith("-----"):
                    found |= dict.fromkeys(forms(line.encode()), name)
        return found


def forms(secret):
    """A secret as it may have been encoded on its way out."""
    text = secret.decode()
    yield text
    yield urllib.parse.quote(text, safe="")
    yield urllib.parse.quote(text)
    yield secret.hex()
    yield secret.hex().upper()
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + secret).decode().rstrip("=")
        # Without the characters that neighbours share.
        end = len(whole) - (1 if (shift + len(secret)) % 3 else 0)
        inner = whole[(shift * 8 + 5) // 6 : end]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def search(places, needles, work):
    """{(name, file)} of every needle in the files below `places`, in names of files too; and how many bytes were searched."""
    patterns = work / "needles"
    patterns.write_text("\n".join(needles) + "\n")
    command = ["grep", "-raoFH", "--binary-files=text", "-f", patterns, *places]
    done = subprocess.run([str(word) for word in command], capture_output=True, env=os.environ | {"LC_ALL": "C"})
    if done.returncode > 1:
        raise RuntimeError(done.stderr.decode())
    found = set()
    for line in done.stdout.decode(errors="replace").splitlines():
        form = next(form for form in needles if line.endswith(":" + form))
        found.add((needles[form], line.removesuffix(":" + form)))
    size = 0
    for place in places:
        for path in Path(place).rglob("*"):
            found |= {(name, f"the name {path}") for form, name in needles.items() if form in str(path)}
            size += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    return found, size


class Rig:
    def __init__(self, rng):
        self.canaries, self.work = Canaries(rng), host.work_directory()
        self.program, self.machine, self.rng = preheat.binary(), preheat.Machine(), rng
        self.said, self.roots, self.inputs = (self.work / name for name in ("said", "roots", "inputs"))
        for place in (self.said, self.roots, self.inputs):
            place.mkdir()
        self.source = self.work / "source" / "model"
        models.write_model(self.source, rng.random(), shards=2, shard_bytes=3 << 20)
        self.number = 0
        self.keys = self.schemes()
        self.signature = self.canaries["signature"]
        self.own = self.environment()

    def schemes(self):
        """Which of the schemes that came later this preheat knows."""
        known = []
        for scheme in ("gs", "az"):
            _, done = preheat.verb(self.program, "fetch", f"{scheme}://bucket-a/x", "--direct", machine=self.machine, expect=None)
            if "unknown scheme" not in done.stderr:
                known.append(scheme)
        return known

    def file(self, name, text):
        path = self.inputs / name
        path.write_text(text)
        path.chmod(0o600)
        return str(path)

    def google_key(self, name, token_url):
        """The JSON of a service account's key; its private key is the canary."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
        self.canaries.add(name, pem)
        return json.dumps({
            "type": "service_account", "project_id": "p", "private_key_id": self.canaries[f"{name}-id"], "private_key": pem,
            "client_email": "rig@example.com", "client_id": "1", "token_uri": token_url, "gcs_base_url": token_url, "disable_oauth": False,
        })  # fmt: skip

    def azure_key(self, name):
        return self.canaries.add(f"{name}-base64", base64.b64encode(self.canaries[name].encode()).decode())

    def environment(self):
        """Every credential that a process can have of its own."""
        return {
            "HF_TOKEN": self.canaries["hf-token"],
            "AWS_ACCESS_KEY_ID": self.canaries["aws-key-id"],
            "AWS_SECRET_ACCESS_KEY": self.canaries["aws-secret"],
            "AWS_SESSION_TOKEN": self.canaries["aws-session"],
            "AWS_REGION": "us-east-1",
            "AZURE_STORAGE_ACCOUNT_NAME": "account",
            "AZURE_STORAGE_ACCOUNT_KEY": self.azure_key("azure-key"),
            "HOME": str(self.inputs),
            "PREHEAT_LOG": "trace",
            "PREHEAT_TRANSFER__RETRY_ATTEMPTS": "2",
            "PREHEAT_TRANSFER__RETRY_FIRST": "10ms",
        }

    def tell(self, name, *parts):
        """Keeps what preheat has said, to be searched."""
        self.number += 1
        (self.said / f"{self.number:04}-{name}").write_bytes(b"\n".join(part if isinstance(part, bytes) else str(part).encode() for part in parts))

    @contextlib.contextmanager
    def daemon(self, name, environment, allow, mutant=None):
        token = self.file(f"{name}-daemon-token", self.canaries["daemon-token"])
        arguments = ["--token-file", token, "--socket", self.work / f"{name}.sock"]
        for prefix in allow:
            arguments += ["--allow-origin", prefix]
        daemon = preheat.Daemon(
            self.program, self.roots / name, self.machine, self.said / f"{name}.log", arguments, mutant, self.own | environment
        )
        daemon.start()
        try:
            self.tell("arguments", Path(f"/proc/{daemon.process.pid}/cmdline").read_bytes())
            yield daemon
            for path in ("/v1/prewarm", "/v1/models", "/v1/node", "/metrics", "/v1/unknown"):
                self.ask(daemon, "GET", path)
            check(daemon.stop() == 0, f"{name}: {daemon.log.stat().st_size} bytes of log")
        finally:
            daemon.kill()

    def ask(self, daemon, method, path, body=None, token="daemon-token", headers=()):
        """One request; its answer is kept, and returned as far as it is JSON."""
        payload = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
        fields = {"Content-Type": "application/json", "Authorization": f"Bearer {self.canaries[token]}"} | dict(headers)
        request = urllib.request.Request(daemon.url + path, payload, fields, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text, status, head = answer.read(), answer.status, answer.headers
        except urllib.error.HTTPError as error:
            text, status, head = error.read(), error.code, error.headers
        self.tell("answer", status, head, text)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, None

    def prewarm(self, daemon, reference, credential=None, **more):
        body = {"reference": reference, "wait": True} | more
        if credential is not None:
            body["credential"] = credential
        status, job = self.ask(daemon, "POST", "/v1/prewarm", body)
        if status in (200, 202):
            self.ask(daemon, "GET", f"/v1/prewarm/{job['id']}")
            self.ask(daemon, "GET", f"/v1/prewarm/{job['id']}/events")
        return job

    def verb(self, *words, environment=None, **more):
        """A verb with every credential of the environment; any exit will do."""
        command = [str(word) for word in (self.program, *words)]
        env = self.machine.environment(**(self.own | (environment or {}) | more))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        out, err = process.communicate(timeout=90)
        self.tell(f"verb-{words[0]}", out, err)
        return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")

    def caller(self, kind, upstream):
        """A credential as a request brings it."""
        return {
            "bearer": lambda: {"bearer": self.canaries["caller-bearer"]},
            "aws": lambda: {"aws": {
                "access_key_id": self.canaries["caller-aws-id"],
                "secret_access_key": self.canaries["caller-aws-secret"],
                "session_token": self.canaries["caller-aws-session"],
            }},
            "azure_key": lambda: {"azure_key": self.azure_key("caller-azure-key")},
            "azure_sas": lambda: {"azure_sas": f"sv=2024-01-01&sig={urllib.parse.quote(self.canaries['caller-azure-sas'], safe='')}"},
            "google_service_account": lambda: {"google_service_account": self.google_key("caller-google", upstream.url)},
        }[kind]()  # fmt: skip

    # --- What is tried ---------------------------------------------------------------------------------------------------

    def truthful(self):
        """Upstreams that let the canaries in."""
        print("upstreams that let us in")
        tokens = [self.canaries[name] for name in ("hf-token", "hf-file", "caller-bearer")]
        with contextlib.ExitStack() as stack:
            storage = stack.enter_context(origin.Origin(self.source))
            hub = stack.enter_context(echo.Hub(self.source, tokens, storage.url, self.signature))
            server = stack.enter_context(s3.Server(self.inputs / "moto.log"))
            server.upload(self.source, "models", "own/model/", ChecksumAlgorithm="SHA256")
            server.upload(self.source, "models", "their/model/")
            where = {"HF_ENDPOINT": hub.url, "AWS_ENDPOINT_URL": server.url}
            allow = ("hf://own,credentials,allow_private", "hf://,allow_private", "s3://models/own,credentials,allow_private", "s3://,allow_private")
            daemon = stack.enter_context(self.daemon("truthful", where, allow))
            for reference, credential in (
                ("hf://own/model", None),
                ("hf://their/model", self.caller("bearer", None)),
                ("s3://models/own/model", None),
                ("s3://models/their/model", self.caller("aws", None)),
            ):
                job = self.prewarm(daemon, reference, credential)
                check(job["state"] == "ready", f"{reference}: {job['files']} files")
            check(self.canaries["hf-token"].encode() in hub.seen, "the hub saw the daemon's token")
            check(self.canaries["caller-bearer"].encode() in hub.seen, "and the caller's")
            for route in ("/v1/models", "/v1/prewarm"):
                for credential in (self.caller("bearer", None), {"bearer": 5, "more": self.canaries["misplaced"]}, self.canaries["misplaced"]):
                    self.ask(daemon, "GET", route, headers={HEADER: json.dumps(credential)})
            for body in (
                {"reference": "hf://a/b", "credential": {"bearer": [self.canaries["misplaced"]]}},
                {"reference": "hf://a/b", "credential": self.canaries["misplaced"]},
                {"reference": "hf://a/b", "credential": {"bearer": self.canaries["misplaced"] + "\n"}},
                {"reference": "hf://a/b", "credential": {self.canaries["misplaced"]: 1}},
                {"reference": f"https://user:{self.canaries['misplaced']}@127.0.0.1/m"},
                {"reference": f"https://127.0.0.1/m?X-Amz-Signature={self.canaries['misplaced']}"},
                {"reference": {"token": self.canaries["misplaced"]}},
                json.dumps({"reference": "hf://a/b", "credential": {"bearer": self.canaries["misplaced"]}}).encode()[:-3],
            ):
                self.ask(daemon, "POST", "/v1/prewarm", body)
            status, _ = self.ask(daemon, "GET", "/v1/models", token="wrong-daemon-token")
            check(status == 401, "a wrong token of the daemon is refused")
            token = self.file("daemon-token", self.canaries["daemon-token"])
            wrong = self.file("wrong-daemon-token", self.canaries["wrong-daemon-token"])
            for number, words in enumerate((["--daemon", daemon.url, "--token-file", token], ["--daemon", f"unix:{self.work / 'truthful.sock'}"], ["--direct"])):
                code, _, _ = self.verb("fetch", "hf://third/model", "--to", self.roots / f"to-{number}", *words, environment=where)
                check(code == 0 or "--direct" in words, f"fetch {words[0]} {words[1].split(':')[0] if len(words) > 1 else ''}: exit {code}")
            self.verb("fetch", "hf://own/model", "--daemon", daemon.url, "--token-file", wrong, environment=where)
            self.verb("prewarm", "hf://own/model", "--daemon", daemon.url, "--token-file", token, "--wait", environment=where)
            self.verb("models", "--daemon", daemon.url, "--token-file", token)
            from_file = where | {"HF_TOKEN": "", "HF_TOKEN_PATH": self.file("hf-token", self.canaries["hf-file"])}
            self.verb("fetch", "hf://fourth/model", "--daemon", daemon.url, "--token-file", token, "--to", self.roots / "to-file", environment=from_file)
            check(self.canaries["hf-file"].encode() in hub.seen, "and the one in the token file")

    def killed(self):
        """A daemon that is killed while a job with a credential is under way, and what its store then has."""
        print("killed in the middle")
        with origin.Origin(self.source, rate=200_000) as storage, \
                echo.Hub(self.source, [self.canaries["caller-bearer"]], storage.url, self.signature) as hub:  # fmt: skip
            environment, allow = {"HF_ENDPOINT": hub.url}, ("hf://,allow_private",)
            with self.daemon("killed", environment, allow) as daemon:
                job = self.prewarm_at_once(daemon)
                deadline = time.monotonic() + 20
                while not storage.body_bytes and time.monotonic() < deadline:
                    time.sleep(0.01)
                check(storage.body_bytes > 0, "bytes are on their way")
                daemon.kill()
                shutil.copytree(daemon.root, self.roots / "killed-as-it-was", symlinks=True)
                daemon.start()
                _, after = self.ask(daemon, "GET", f"/v1/prewarm/{job['id']}")
                check(after["state"] == "needs_credentials", f"after the restart the job is {after['state']}")

    def prewarm_at_once(self, daemon):
        body = {"reference": "hf://their/model", "credential": self.caller("bearer", None)}
        return self.ask(daemon, "POST", "/v1/prewarm", body)[1]

    def echoes(self, mutant=None):
        """Upstreams that refuse, and say back what they were sent."""
        print(f"upstreams that echo{f', mutant {mutant}' if mutant else ''}")
        name = f"echo-{mutant or 'all'}"
        with echo.Echo(self.signature) as upstream:
            url, port = upstream.url, upstream.port
            environment = {
                "HF_ENDPOINT": url, "AWS_ENDPOINT_URL": url, "AZURE_ENDPOINT": url, "AZURE_STORAGE_ENDPOINT": url,
                "GOOGLE_ENDPOINT_URL": url, "STORAGE_EMULATOR_HOST": url, "GOOGLE_BASE_URL": url,
                "AZURE_STORAGE_SAS_TOKEN": f"sv=1&sig={urllib.parse.quote(self.canaries['azure-sas'], safe='')}",
                "GOOGLE_SERVICE_ACCOUNT": self.file(f"{name}-google", self.google_key("google", url)),
                "GOOGLE_APPLICATION_CREDENTIALS": str(self.inputs / f"{name}-google"),
            }  # fmt: skip
            schemes = ["hf", "s3", *self.keys]
            allow = [f"{scheme}://own-bucket/own,credentials,allow_private" for scheme in schemes]
            allow += [f"{scheme}://,allow_private" for scheme in schemes]
            allow += [f"http://127.0.0.1:{port},allow_private"]
            kinds = {"hf": ["bearer"], "s3": ["aws"], "gs": ["bearer", "google_service_account"], "az": ["bearer", "azure_key", "azure_sas"], "http": ["bearer"]}
            with self.daemon(name, environment, allow, mutant) as daemon:
                for upstream.mode in ("401", "500", "garbage") if mutant else echo.Echo.MODES:
                    for scheme in schemes:
                        self.prewarm(daemon, f"{scheme}://own-bucket/own")
                        for kind in kinds[scheme]:
                            self.prewarm(daemon, f"{scheme}://their-bucket/their", self.caller(kind, upstream))
                    self.prewarm(daemon, f"{url}/model", self.caller("bearer", upstream))
                    self.prewarm(daemon, f"{url}/model.safetensors", self.caller("bearer", upstream))
                    self.prewarm(daemon, "hf://their-bucket/their", self.caller("azure_key", upstream))
                if mutant:
                    return
                for upstream.mode in ("401", "redirect"):
                    there = [f"{scheme}://their-bucket/their" for scheme in schemes]
                    direct = [(environment, "fetch", what, "--direct", "--to", self.roots / f"never-{n}") for n, what in enumerate(there)]
                    asked = [(environment, "fetch", what, "--daemon", f"unix:{self.work / f'{name}.sock'}") for what in there]
                    self.at_once(direct + asked)
            seen = bytes(upstream.seen)
            names = ["hf-token", "caller-bearer", "aws-session", "caller-aws-session"]
            names += ["caller-azure-sas"] if "az" in self.keys else []
            for name in names:
                check(any(form.encode() in seen for form in forms(self.canaries[name].encode())), f"the upstreams saw {name}")
            # What a service account signs is a credential too.
            for word in seen.replace(b"&", b" ").replace(b"=", b" ").split():
                if word.startswith(b"eyJ") and word.count(b".") == 2:
                    self.canaries.add("assertion", word.decode())

    def misplaced(self):
        """Secrets where they do not belong, and proxies that want some."""
        print("proxies, and secrets in the wrong place")
        secret = urllib.parse.quote(self.canaries["proxy"], safe="")
        references = ("http://origin.invalid/model", "https://origin.invalid/model", "hf://org/model", "s3://bucket/model")
        with contextlib.ExitStack() as stack:
            proxies = [stack.enter_context(echo.Echo(self.signature)) for _ in range(3)]
            runs = []
            for proxy, proxy.mode in zip(proxies, ("401", "500", "leave")):
                through = f"http://user:{secret}@127.0.0.1:{proxy.port}"
                variables = {"http_proxy": through, "https_proxy": through, "no_proxy": ""}
                runs += [(variables, "fetch", reference, "--direct", "--to", self.roots / "proxied") for reference in references]
            self.at_once(runs)
            basic, requests = base64.b64encode(f"user:{self.canaries['proxy']}".encode()), sum(proxy.requests for proxy in proxies)
            if requests:
                check(any(basic in proxy.seen for proxy in proxies), f"the proxies saw the password ({requests} requests)")
            else:
                print("  no request went through a proxy")
        bad, broken = f"http://user:{secret}@127.0.0.1:9", self.canaries["broken"]
        runs = []
        for variables in (
            {"HF_ENDPOINT": bad},
            {"HF_ENDPOINT": f"ftp://u:{secret}@h"},
            {"AWS_ENDPOINT_URL": bad},
            {"AWS_ENDPOINT_URL": f"http://h:x/?k={secret}"},
            {"PREHEAT_ADDR": bad},
            {"PREHEAT_ADDR": f"https://u:{secret}@h"},
            {"HF_TOKEN": broken + "\n\x01"},
            {"HF_TOKEN": "", "HF_TOKEN_PATH": self.file("broken", f"{broken}\n{broken}")},
        ):
            for reference in ("hf://org/model", "s3://bucket/model"):
                runs.append((variables, "fetch", reference, "--to", self.roots / "bad"))
            runs.append((variables, "models"))
        self.at_once(runs)

    def at_once(self, runs):
        """Verbs, each with its variables; those that go on trying are interrupted: the first refusal tells as much as the eighth."""
        processes = []
        for variables, *words in runs:
            command = [str(word) for word in (self.program, *words)]
            env = self.machine.environment(**(self.own | variables))
            processes.append((words[0], subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)))
        deadline = time.monotonic() + 1.5
        for name, process in processes:
            try:
                out, err = process.communicate(timeout=max(0.01, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=20)
            self.tell(f"verb-{name}", out, err)

    def core(self):
        """A daemon that aborts leaves no core."""
        print("a core dump")
        limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

        def start(command, **options):
            return subprocess.Popen(
                list(map(str, command)), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, limits), cwd=self.said, **options
            )

        control = start([sys.executable, "-c", "import os; os.abort()"])
        _, status = os.waitpid(control.pid, 0)
        control.returncode = -signal.SIGABRT
        if not os.WCOREDUMP(status):
            print("  this machine dumps no cores at all")
        for path in self.said.glob("core*"):
            path.unlink()
        socket = self.work / "core.sock"
        command = [self.program, "serve", "--root", self.roots / "core", "--listen", "127.0.0.1:0", "--socket", socket]
        environment = self.machine.environment(**self.own)
        process = start(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        process.stdout.readline()
        process.stdout.close()
        mode = os.stat(f"/proc/{process.pid}/mem")
        process.send_signal(signal.SIGABRT)
        _, status = os.waitpid(process.pid, 0)
        process.returncode = -signal.SIGABRT
        check(os.WTERMSIG(status) == signal.SIGABRT and not os.WCOREDUMP(status), "aborted, and no core was written")
        check(mode.st_uid == 0, "its memory belongs to root")

    def searched(self):
        """What was found of the canaries, and in how many bytes."""
        return search([self.said, self.roots], self.canaries.needles(), self.work)


def show(found):
    for name, place in sorted(found)[:20]:
        print(f"  {name} in {place}")


def suite(rng):
    """The integration tests with canaries for credentials, at TRACE; and those of hubs once more with a defect that tells one."""
    canary, work = f"cnry{rng.randbytes(16).hex()}", host.work_directory()
    needles = dict.fromkeys(forms(canary.encode()), "canary")
    for mutant, which in (None, "binary(it)"), ("token_logged", "binary(it) and test(hub)"):
        left = work / (mutant or "left")
        left.mkdir()
        # Other users take part in some tests.
        for place in (work, left):
            place.chmod(0o755)
        environment = os.environ | {"PREHEAT_TEST_CANARY": canary, "PREHEAT_LOG": "trace", "TMPDIR": str(left), "RUST_BACKTRACE": "0"}
        environment |= {"PREHEAT_MUTANT": mutant} if mutant else {}
        command = ["cargo", "nextest", "run", "--locked", "--all-features", "-E", which, "--success-output", "final", "--failure-output", "final"]
        with open(left / "said", "wb") as out:
            done = subprocess.run(command, cwd=preheat.REPOSITORY, env=environment, stdout=out, stderr=out)
        lines = (left / "said").read_text(errors="replace").splitlines()
        failed = sorted({line.split()[-1] for line in lines if line.lstrip().startswith("FAIL [")})
        check(done.returncode == 0, f"the tests pass with canaries{': not ' + ', '.join(failed) if done.returncode else ''}")
        found, size = search([left], needles, work)
        if mutant:
            check(found, f"mutant {mutant}: found")
            continue
        check(any(" DEBUG " in line for line in lines), f"they print {len(lines)} lines")
        show(found)
        check(not found, f"no hit in {size / 1e9:.2f} GB of output and of what they left")


def main():
    options, rng = host.begin(__doc__, needs=("setpriv",), mutants="all", suite=False)
    if options.suite:
        return suite(rng)
    rig = Rig(rng)
    for part in (rig.truthful, rig.killed, rig.echoes, rig.misplaced, rig.core):
        began = time.monotonic()
        part()
        print(f"  {time.monotonic() - began:.1f} s")
    found, size = rig.searched()
    show(found)
    count = len(rig.canaries.named)
    check(not found, f"{count} canaries in {len(rig.canaries.needles())} forms: 0 hits in {size >> 10} KiB of {rig.number} outputs, logs and state")
    for mutant in MUTANTS if options.mutants == "all" else filter(None, options.mutants.split(",")):
        for place in (rig.said, rig.roots):
            shutil.rmtree(place)
            place.mkdir()
        rig.echoes(mutant)
        found, _ = rig.searched()
        check(found, f"mutant {mutant}: found ({len(found)} places, first {next(iter(sorted(found)), ('', ''))[0]})")


if __name__ == "__main__":
    main()
