"""A daemon that is asked, over its socket and over TCP, to fetch from where it must not: numbers in every notation, redirects of
every kind, names that answer with private addresses or change their answer, hubs and stores that lead elsewhere, proxies.

Shown: not one packet leaves for an address that the operator has not allowed, as a packet socket in the daemon's own network
namespace sees it, and what is allowed goes on working. Then the same attempts against a daemon that is allowed all of it: each of
them is seen by the same canary at the address that was meant, so what was not seen before was not sent. Then the defects of
--mutants, each of which must be caught.
"""

import collections
import concurrent.futures
import http.client
import ipaddress
import json
import socket
import sys
import time

from rig import host, lure, names, network, preheat, vectors

MUTANTS = ("addresses_unchecked", "redirects_unchecked", "second_lookup_at_connect")
"""What each takes away is said where it is planted, `mutant("...")` in src/."""

PROXY, STORE = ("10.9.9.9", 3128), ("10.7.7.7", 9000)
"""Where a proxy and a store are that the operator names in the daemon's environment."""


class Caught(Exception):
    """A packet left that must not, or one did not that may."""


class Rig:
    def __init__(self, work, program):
        self.work, self.program, self.machine = work, program, preheat.Machine()
        self.vectors = vectors.Vectors()
        self.lure = lure.Lure(work, ports=(80, STORE[1]), proxy_ports=(PROXY[1],))
        self.lure.answers, self.lure.honest = self.vectors.answers, self.vectors.honest
        self.names = names.NameServer(self.vectors.records, network.NAME_SERVER)
        self.canary = network.Canary()
        self.daemons = 0

    def daemon(self, listings=(), mutant=None, **environment):
        self.daemons += 1
        place = self.work / f"d{self.daemons}"
        place.mkdir()
        configuration = place / "preheat.toml"
        listed = "".join(f'"{listing}",\n' for listing in listings)
        configuration.write_text(
            f'[origins]\nca_bundle = "{self.lure.authority}"\nallow = [{listed}]\nconnect_timeout = "2s"\n'
            '[transfer]\nretry_attempts = 1\nretry_first = "1ms"\nretry_longest = "1ms"\n'
        )
        arguments = ["--socket", place / "s.sock", "--config", configuration]
        environment = {"HF_ENDPOINT": "http://hub.example", "HF_TOKEN": "rig-token", "NO_PROXY": ""} | environment
        daemon = preheat.Daemon(
            self.program, place / "store", self.machine, place / "log", arguments, mutant=mutant, environment=environment
        )
        self.names.forget()
        daemon.socket = str(place / "s.sock")
        daemon.start()
        self.canary.take()
        return daemon

    def fire(self, daemon, attempts, over):
        """Asks for all of them, sixteen at a time. {vector name: outcome}."""
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            return dict(zip((attempt.name for attempt in attempts), pool.map(lambda attempt: outcome(daemon, attempt, over), attempts)))

    def seen(self, daemon, also=()):
        """Packets to denied addresses since the last look, but for those between the rig and the daemon itself."""
        own = {(ipaddress.ip_address("127.0.0.1"), daemon.port), *((ipaddress.ip_address(address), port) for address, port in also)}
        return {place: count for place, count in self.canary.take().items() if vectors.denied(place[0]) and place not in own}

    def end(self, daemon):
        if daemon.stop() != 0:
            raise Caught(f"does not end well: {daemon.tail()}")
        if "panicked" in (log := daemon.log.read_text(errors="replace")):
            raise Caught(f"a panic: {log[log.index('panicked') - 300 :][:900]}")

    # The three parts.

    def guarded(self, attempts, mutant=None, also=(), **environment):
        """No packet, no model from where it must not come. Answers the outcomes."""
        daemon = self.daemon(mutant=mutant, **environment)
        for over in ("tcp", "socket"):
            outcomes = self.fire(daemon, attempts, over)
            if seen := self.seen(daemon, also):
                raise Caught(f"over {over}, packets left for {describe(seen, attempts)}")
            self.judge(outcomes, attempts)
        self.end(daemon)
        return outcomes

    def allowed(self, attempts):
        """Each attempt that a listing can allow is seen, where it is allowed, at the address that was meant."""
        listings = ["http://,allow_private", "https://,allow_private", "hf://,allow_private", "s3://,allow_private"]
        daemon = self.daemon([*listings, *(attempt.listing for attempt in attempts if attempt.listing)])
        expected = [attempt for attempt in attempts if attempt.counted]
        self.fire(daemon, expected, "tcp")
        seen = self.seen(daemon)
        if unseen := [attempt for attempt in expected if not any(place in seen for place in attempt.counted)]:
            raise Caught(f"{len(unseen)} attempts were allowed and not seen, first {[(one.name, one.detail) for one in unseen[:3]]}")
        self.end(daemon)
        return len(expected), sum(seen.values())


    def listed(self):
        """With a list of origins, nothing leaves for a public server that is not on it, though without one it would."""
        attempts, places = self.vectors.listed, {place for attempt in self.vectors.listed for place in attempt.counted}
        for listings in (self.vectors.list, []):
            daemon = self.daemon(listings)
            outcomes = self.fire(daemon, attempts, "socket")
            seen = places & self.canary.take().keys()
            if not listings:
                if seen != places:
                    raise Caught(f"without a list, no packet left for {describe(places - seen, attempts)}")
            elif seen:
                raise Caught(f"packets left for unlisted {describe(seen, attempts)}")
            else:
                self.judge(outcomes, attempts)
            self.end(daemon)
        return len(attempts)

    def judge(self, outcomes, attempts):
        """Whether each was told what it must be."""
        for attempt in attempts:
            said = outcomes[attempt.name]
            if said == "ready" and attempt.expect == "refused" or attempt.expect == "ready" != said:
                raise Caught(f"{attempt.name} ({attempt.reference}): {said}, expected {attempt.expect}: {attempt.detail}")


def outcome(daemon, attempt, over):
    """What a daemon says to an attempt: "ready", or the kind of its refusal."""
    if over == "tcp":
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    else:
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(daemon.socket)
    try:
        body = json.dumps({"reference": attempt.reference, "wait": True})
        connection.request("POST", "/v1/prewarm", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
    finally:
        connection.close()
    attempt.detail = told.get("detail") or (told.get("error") or {}).get("detail") or str(told.get("error"))
    if answer.status >= 400:
        return told["kind"]
    return "ready" if told["state"] == "ready" else told["error"]["kind"]


def describe(seen, attempts):
    """The places, and whose they are."""
    places = {place: attempt.name for attempt in attempts for place in attempt.counted}
    ports = {place[1]: name for place, name in places.items()}
    told = [f"{address} port {port} ({places.get((address, port)) or ports.get(port, 'nobody known')})" for address, port in sorted(seen, key=str)]
    return f"{len(told)} places: {'; '.join(told[:5])}"


def groups(outcomes, attempts):
    """How many of each group were told what."""
    counts = collections.defaultdict(collections.Counter)
    for attempt in attempts:
        counts[attempt.group][outcomes[attempt.name]] += 1
    return "; ".join(f"{group}: " + ", ".join(f"{count} {said}" for said, count in told.most_common()) for group, told in counts.items())


def proxied(rig, attempts):
    """Behind a proxy: numbers are refused as ever, names are the proxy's to resolve, and what needs no proxy is judged."""
    rig.names.names["proxy.example"] = [("A", PROXY[0])]
    url = f"http://proxy.example:{PROXY[1]}"
    direct = [attempt for attempt in attempts if attempt.group in ("direct", "redirect")]
    rig.lure.proxied.clear()
    # Redirects to plain names may end anywhere: the proxy resolves, and its answers are the lure's.
    rig.guarded(direct, also=[PROXY], HTTP_PROXY=url, HTTPS_PROXY=url)
    asked = {host_of(target) for target in rig.lure.proxied}
    if wrong := asked - {"lure.example", "two.example", "hub.example"}:
        raise Caught(f"the proxy was asked for {sorted(wrong)[:5]}")
    requests = len(rig.lure.proxied)
    # NO_PROXY knows no name that ends with a dot: those are the proxy's.
    exempt = [attempt for attempt in attempts if attempt.group == "name" and ".example.:" not in attempt.reference]
    rig.guarded(exempt, also=[PROXY], HTTP_PROXY=url, HTTPS_PROXY=url, NO_PROXY=".example,localhost,.internal,.svc,metadata,instance-data")
    port = rig.vectors._next()
    own = [vectors.Vector("the proxy's own name", "proxy", f"http://proxy.example:{port}/m.json")]
    rig.guarded(own, HTTP_PROXY=url, NO_PROXY="proxy.example")
    well = [vectors.Vector("through the proxy", "proxy", "http://lure.example/proxied.json", expect="ready")]
    rig.guarded(well, also=[PROXY], HTTP_PROXY=url)
    return len(direct) + len(exempt), requests


def host_of(target):
    """Of a proxy request's target: an absolute URL, or what CONNECT names."""
    authority = target.split("://", 1)[-1].split("/", 1)[0]
    return authority.rsplit(":", 1)[0] if authority.rsplit(":", 1)[-1].isdigit() else authority


def stores(rig):
    """An endpoint at a private address is the operator's word for itself alone; without one, the store's name is judged."""
    rig.names.names |= {"s3.example": [("A", STORE[0])], "s3.us-east-1.amazonaws.com": [("A", "10.8.8.8")]}
    attempts = []
    for number, status in enumerate((301, 302, 307, 308)):
        bucket = f"led-{number}"
        rig.lure.answers[f"/{bucket}"] = (status, [("Location", f"http://10.0.0.5:{rig.vectors._next()}/x")])
        attempts += [vectors.Vector(f"store, {status}", "store", f"s3://{bucket}/model")]
    endpoint = f"http://s3.example:{STORE[1]}"
    for reference in (f"{endpoint}/models/m.json", f"http://{STORE[0]}:{STORE[1]}/m.json", "http://s3.example/m.json"):
        attempts.append(vectors.Vector(reference, "store", reference))
    keys = {"AWS_ACCESS_KEY_ID": "rig", "AWS_SECRET_ACCESS_KEY": "rig-secret", "AWS_REGION": "us-east-1"}
    rig.lure.heads.clear()
    rig.guarded(attempts, also=[STORE], AWS_ENDPOINT_URL=endpoint, **keys)
    if not any(path.startswith("/led-") for path, _ in rig.lure.heads):
        raise Caught("the operator's own store was not asked")
    plain = [vectors.Vector(name, "store", f"s3://{name}/latest") for name in ("10.0.0.5", "169.254.169.254", "bucket")]
    for name in ("huggingface.co", "storage.googleapis.com", "rig.blob.core.windows.net"):
        rig.names.names[name] = [("A", "10.8.8.9")]
    for reference in ("hf://org/model", "gs://bucket/latest", "az://container/latest"):
        plain.append(vectors.Vector(reference, "store", reference))
    # An account's name is no endpoint.
    rig.guarded(plain, HF_ENDPOINT="", AZURE_STORAGE_ACCOUNT_NAME="rig", **keys)
    for attempt in plain:
        listing = "/".join(attempt.reference.split("/")[:3])
        if f"--allow-origin '{listing},allow_private'" not in attempt.detail or "credential" in attempt.detail:
            raise Caught(f"{attempt.reference} is refused without a remedy: {attempt.detail}")
    daemon = rig.daemon(["s3://,allow_private"], **keys)
    rig.fire(daemon, plain, "tcp")
    if (ipaddress.ip_address("10.8.8.8"), 443) not in rig.seen(daemon):
        raise Caught("a store at a private address was allowed and not asked")
    rig.end(daemon)
    return len(attempts) + len(plain)


def main():
    options, rng = host.begin(__doc__, needs=("root", "mounts", "network", "ip"), mutants="all")
    program, work = preheat.binary(), host.work_directory()
    network.whole_world()
    network.own_names(work)
    rig, began = Rig(work, program), time.monotonic()
    attempts = rig.vectors.all
    rng.shuffle(attempts)
    try:
        outcomes = rig.guarded(attempts)
        refused = sum(attempt.expect == "refused" for attempt in attempts)
        print(f"guarded: {len(attempts)} attempts over TCP and over the socket, {refused} that must fail: no packet left")
        print(f"  {groups(outcomes, attempts)}")
        token = [path for path, headers in rig.lure.heads if "rig-token" in str(headers) and not path.startswith(("/o/", "/api/"))]
        if token:
            raise Caught(f"the hub's token went to {token[0]}")
        count, packets = rig.allowed(attempts)
        print(f"allowed: {count} of the attempts, each seen where it leads: {packets} packets")
        print(f"listed: {rig.listed()} attempts at public servers, seen without a list and not with one")
        count, requests = proxied(rig, attempts)
        print(f"proxied: {count} attempts; the proxy was asked {requests} times, by name only")
        print(f"stores: {stores(rig)} attempts")
    except Caught as error:
        sys.exit(f"FAILED: {error}")
    survivors = []
    for mutant in MUTANTS if options.mutants == "all" else filter(None, options.mutants.split(",")):
        meant = {"redirects_unchecked": "redirect", "second_lookup_at_connect": "rebinding"}.get(mutant)
        try:
            rig.guarded([attempt for attempt in attempts if meant in (None, attempt.group)], mutant=mutant)
            survivors.append(mutant)
        except Caught as error:
            print(f"{mutant}: caught: {error}")
    if survivors:
        sys.exit(f"FAILED: not noticed: {', '.join(survivors)}")
    print(f"in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
