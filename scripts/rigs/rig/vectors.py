"""What somebody hostile asks for, so that a daemon sends a packet where it must not: references, redirects, names."""

import dataclasses
import ipaddress
import urllib.parse

PUBLIC = "93.184.216.34"
PUBLIC_6 = "2606:2800:220::34"

_LINK = ("169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32", "fe80::/10")
_LINK += ("fd00:ec2::254/128", "fd20:ce::254/128", "64:ff9b::a9fe:0/112", "2002:a9fe::/32", "2001:0:a9fe::/48")
LINK = [ipaddress.ip_network(text) for text in _LINK]
"""Where clouds tell credentials: opened by their number only."""

_DENIED = ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24")
_DENIED += ("192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3")
_DENIED += ("::/8", "100::/8", "1000::/4", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1")
DENIED = [ipaddress.ip_network(text) for text in _DENIED] + LINK
"""Where nothing may go: written down here once more, because a rig that asks the daemon's own table shows nothing."""

# Host as written, and the address that a packet would then go to.
FORMS = [
    *((text, "127.0.0.1") for text in (
        "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.0.0.1.",
        "0x7F.0x0.0x0.0x1", "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "127。0。0。1", "127．0．0．1", "127｡0｡0｡1", "１２７.0.0.1",
        "①②⑦.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "00000177.1",
    )),
    *((text, "localhost") for text in ("localhost", "LOCALHOST", "localhost.", "%6cocalhost", "ⓛocalhost", "a.localhost")),
    *((text, "169.254.169.254") for text in (
        "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "169.0xfea9fe",
        "[::ffff:a9fe:a9fe]", "169.254.169.254.", "%31%36%39.254.169.254", "169。254。169。254",
    )),
    *((text, "10.0.0.5") for text in ("10.0.0.5", "10.5", "0xa000005", "012.0.0.5", "[::ffff:10.0.0.5]", "167772165")),
    *((text, text) for text in (
        "127.8.8.8", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192", "10.255.255.254", "172.16.0.5",
        "172.31.255.254", "192.168.0.5", "100.64.0.5", "100.127.255.254", "198.18.0.5", "192.0.2.5", "198.51.100.5",
        "203.0.113.5", "240.0.0.5", "255.255.255.254", "192.88.99.5", "192.0.0.8",
    )),
    *((f"[{text}]", text) for text in (
        "::1", "fd00:ec2::254", "fd20:ce::254", "fd00::5", "fc00::5", "fec0::5", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "64:ff9b::a00:5", "64:ff9b:1::a00:5", "2002:7f00:1::", "2002:a9fe:a9fe::", "::7f00:1", "::a00:5", "2001:0:a00:5::1",
        "2001:db8::5", "100::5", "3fff::5", "4000::5",
    )),
    ("[0:0:0:0:0:0:0:1]", "::1"),
    ("[FD00:0EC2:0::254]", "fd00:ec2::254"),
    ("192.168.257", "192.168.1.1"),
    # Nobody's addresses: no listing opens them, and to the first ones Linux answers itself.
    *((text, None) for text in ("0.0.0.0", "0", "0x0", "0.0.0.5", "[::]", "255.255.255.255", "224.0.0.1", "[ff02::1]", "[fe80::1]")),
    # No host at all.
    *((text, None) for text in ("[fe80::1%25lo]", "[::1", "256.0.0.1", "1.2.3.4.5", "0x100000000", "127.0.0.08", "127.0.0.1%00")),
]


@dataclasses.dataclass
class Vector:
    """One attempt."""

    name: str
    group: str
    reference: str
    expect: str = "refused"
    """Or "ready", or "any": what is asked for is then somewhere that is allowed."""
    counted: tuple = ()
    """What the canary sees, one of them at least, where the operator allows it: the proof that it would have seen it."""
    listing: str | None = None
    """What allows it, if `http://,allow_private` and the like do not."""


class Vectors:
    """All attempts, with what the lure answers and what the names stand for. Each has a port or an address of its own."""

    def __init__(self):
        self.all, self.answers, self.records, self.honest = [], {}, {}, {"plain"}
        self._port = 20000
        self.records |= {name: [("A", PUBLIC), ("AAAA", PUBLIC_6)] for name in ("lure.example", "two.example", "hub.example")}
        self.records |= {"a.localhost": [("A", "127.0.0.1")], "localhost": [("A", "127.0.0.1"), ("AAAA", "::1")]}
        self._hosts()
        self._redirects()
        self._names()
        self._hub()
        self._allowed()
        self._listed()

    def _add(self, name, group, reference, address=None, port=None, **more):
        """`address`: where the packet goes if it is allowed; `None`: nothing allows it."""
        if address is not None:
            addresses = [("127.0.0.1", "::1") if one == "localhost" else (one,) for one in ([address] if isinstance(address, str) else address)]
            addresses = [ipaddress.ip_address(one) for ones in addresses for one in ones]
            addresses = [getattr(one, "ipv4_mapped", None) or one for one in addresses]
            more.setdefault("counted", tuple((one, port) for one in addresses))
            if any(one in network for one in addresses for network in LINK if one.version == network.version):
                host = more.pop("host", None) or addresses[0]
                more["listing"] = f"{more.pop('scheme', 'http')}://{host}:{port},allow_private"
        more.pop("host", None), more.pop("scheme", None)
        self.all.append(Vector(f"{group} {len(self.all)}: {name}", group, reference, **more))

    def _next(self):
        self._port += 1
        return self._port

    def _lead(self, location, status=302, start="http://lure.example", headers=(), hops=1):
        """A reference that is answered with a redirect to `location`, the last of `hops`."""
        number = self._next()
        for hop in range(1, hops + 1):
            target = f"/r/{number}/{hop + 1}/m.json" if hop < hops else location
            self.answers[f"/r/{number}/{hop}"] = (status, [*([("Location", target)] if target is not None else []), *headers])
        return f"{start}/r/{number}/1/m.json"

    def _hosts(self):
        for number, (form, address) in enumerate(FORMS):
            for scheme in ("http", "https") if number % 4 == 0 else ("http",):
                port, where = self._next(), {"scheme": scheme, "host": form if form.startswith("[") else None}
                self._add(form, "direct", f"{scheme}://{form}:{port}/m.json", address, port, **where)
                # A Location is ASCII.
                quoted = "".join(urllib.parse.quote(c) if ord(c) > 127 else c for c in form)
                port = self._next()
                lead = self._lead(f"{scheme}://{quoted}:{port}/m.json")
                self._add(form, "redirect", lead, address, port, **where)

    def _redirects(self):
        for status in (300, 301, 302, 303, 304, 305, 306, 307, 308, 399):
            for address in ("169.254.169.254", "10.0.0.5", "127.0.0.1"):
                port = self._next()
                followed = address if status in (301, 302, 303, 307, 308) else None
                self._add(f"{status}", "redirect", self._lead(f"http://{address}:{port}/m.json", status), followed, port)
        for hops in range(2, 8):
            port = self._next()
            lead = self._lead(f"http://10.0.0.5:{port}/m.json", hops=hops)
            self._add(f"{hops} hops", "redirect", lead, "10.0.0.5" if hops <= 5 else None, port)
        for text, followed in (
            ("//10.0.0.5:{}/m.json", True),
            ("/\\10.0.0.5:{}/m.json", True),
            ("\\\\10.0.0.5:{}/m.json", True),
            ("http:\\\\10.0.0.5:{}/m.json", True),
            ("http:///10.0.0.5:{}/m.json", True),
            ("HTTP://10.0.0.5:{}/m.json", True),
            ("http://10.0.0.5:{}#@lure.example/m.json", True),
            ("http://10.0.0.5:{}?@lure.example/m.json", True),
            ("http://10.0.0.5:{}\\@lure.example/m.json", True),
            ("https:10.0.0.5:{}/m.json", True),
            ("http://lure.example@10.0.0.5:{}/m.json", False),
            ("http://lure.example:80@10.0.0.5:{}/m.json", False),
            ("http://lure.example%40@10.0.0.5:{}/m.json", False),
            ("http://lure.example:80%23@10.0.0.5:{}/m.json", False),
            ("http://lure.example%00.10.0.0.5:{}/m.json", False),
            ("http://[lure.example]10.0.0.5:{}/m.json", False),
            ("ftp://10.0.0.5:{}/m.json", False),
            ("gopher://10.0.0.5:{}/_GET", False),
            ("dict://10.0.0.5:{}/info", False),
            ("ldap://10.0.0.5:{}/", False),
            ("ws://10.0.0.5:{}/m.json", False),
            ("http+unix://10.0.0.5:{}/m.json", False),
            ("file:///etc/passwd?{}", False),
            ("data:,{}", False),
            ("javascript:alert({})", False),
        ):
            port = self._next()
            self._add(text, "redirect", self._lead(text.format(port)), "10.0.0.5" if followed else None, port)
        for text in ("http://lure.example\\@10.0.0.5:{}/m.json", "http:10.0.0.5:{}/m.json", "http://10.0.\t0.5:{}/m.json", "10.0.0.5:{}/m.json"):
            self._add(text, "redirect", self._lead(text.format(self._next())), expect="any")
        both = self._lead(None, headers=[("Location", "/m.json"), ("Location", f"http://10.0.0.5:{self._next()}/m.json")])
        self._add("two Locations", "redirect", both)
        self._add("no Location", "redirect", self._lead(None))
        raw = "http://①⓪.0.0.5/m.json".encode().decode("latin-1")
        self._add("Location that is not ASCII", "redirect", self._lead(raw))
        for target in ("http://lure.example/m.json", f"http://10.0.0.5:{self._next()}/m.json"):
            self._add(f"https to {target}", "redirect", self._lead(target, start="https://lure.example"))
        port = self._next()
        self._add("from https", "redirect", self._lead(f"https://10.0.0.5:{port}/m.json", start="https://lure.example"), "10.0.0.5", port)
        for header in ("Refresh: 0; url={}", "Content-Location: {}", "Link: <{}>; rel=next", 'Alt-Svc: http/1.1="10.0.0.5:{1}"', "URI: {}"):
            name, value = header.split(": ", 1)
            port = self._next()
            value = value.format(f"http://10.0.0.5:{port}/m.json", port)
            self._add(name, "redirect", self._lead(None, 404, headers=[(name, value)]))

    def _names(self):
        records = {
            **{f"a-{address}": [("A", address)] for address in (
                "10.0.0.5", "127.0.0.1", "192.168.0.5", "172.16.0.5", "100.64.0.5", "198.18.0.5", "240.0.0.5", "192.0.2.5",
            )},
            **{f"aaaa-{address.replace(':', '-')}-x": [("AAAA", address)] for address in (
                "::1", "fd00::5", "fec0::5", "::ffff:10.0.0.5", "64:ff9b::a00:5", "2002:a00:5::1", "::a00:5", "2001:db8::5",
            )},
            "mixed-after": [("A", PUBLIC), ("A", "10.0.0.6")],
            "mixed-before": [("A", "10.0.0.6"), ("A", PUBLIC)],
            "mixed-family": [("A", PUBLIC), ("AAAA", "fd00::6")],
            "mixed-other-family": [("A", "10.0.0.6"), ("AAAA", PUBLIC_6)],
            "last-of-many": [*(("A", f"93.184.217.{number}") for number in range(28)), ("A", "10.0.0.6")],
            "alias-1": [("CNAME", "target.example")],
            "alias-localhost": [("CNAME", "localhost")],
        }
        self.records["target.example"] = [("A", "10.0.0.7")]
        for depth in (5, 15):
            records[f"alias-{depth}"] = [("CNAME", f"chain-{depth}-1.example")]
            for step in range(1, depth):
                last = step == depth - 1
                self.records[f"chain-{depth}-{step}.example"] = [("CNAME", "target.example" if last else f"chain-{depth}-{step + 1}.example")]
        long = ".".join(["l" * 63, "o" * 63, "n" * 63, "g" * 53])
        for name in (long, "10.0.0.5.nip", "0x7f.1", "under_score", "UPPER", "xn--bcher-kva", "x" * 63, "localhost", "169.254.169.254"):
            records[name] = [("A", "10.0.0.8")]
        for name, found in records.items():
            self.records[f"{name.lower()}.example"] = found
            # A mixed name is seen at the address that a connection chooses.
            addresses = [data for kind, data in found if kind != "CNAME"]
            addresses = addresses or ("localhost" if name == "alias-localhost" else ["10.0.0.7"])
            addresses = [a for a in addresses if a != PUBLIC and a != PUBLIC_6 and not a.startswith("93.")] if "mixed" in name or "many" in name else addresses
            sometimes = "mixed" in name or "many" in name
            for host in (f"{name}.example", f"{name}.example."):
                port = self._next()
                self._add(host[:60], "name", f"http://{host}:{port}/m.json", None if sometimes else addresses, port)
            port = self._next()
            lead = self._lead(f"http://{name}.example:{port}/m.json")
            self._add(f"redirect to {name[:40]}", "name", lead, None if sometimes else addresses, port)
        # Answers that no listing opens; the last ones not even by number.
        for address in ("169.254.169.254", "fd00:ec2::254", "fe80::5", "64:ff9b::a9fe:a9fe", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255"):
            name = f"never-{address.replace(':', '-').replace('.', '-')}.example"
            self.records[name] = [("AAAA" if ":" in address else "A", address)]
            self._add(name, "name", f"http://{name}:{self._next()}/m.json")
        for name in ("metadata", "metadata.google.internal", "instance-data", "metadata.goog"):
            self.records[name] = [("A", "169.254.169.254")]
            self._add(name, "name", f"http://{name}:{self._next()}/m.json")
            self._add(f"redirect to {name}", "name", self._lead(f"http://{name}:{self._next()}/m.json"))
        self.records["kubernetes.default.svc"] = [("A", "10.96.0.1")]
        port = self._next()
        self._add("the cluster's API", "name", f"https://kubernetes.default.svc:{port}/m.json", "10.96.0.1", port)
        self._add("no such name", "name", f"http://absent.example:{self._next()}/m.json")
        self._add("a name that is too long", "name", f"http://{'n' * 63}.{long}.example/m.json")
        self._rebinding()

    def _rebinding(self):
        """Names whose next answer is another. Seen by an address of their own, at the port of the lure."""
        for number, period in enumerate((1, 1, 1, 2, 3, 5)):
            inside = f"10.66.0.{number + 1}"

            def found(kind, asked, inside=inside, period=period):
                address = inside if (asked - 1) // period % 2 else PUBLIC
                return [("A", address)] if kind == "A" else []

            name = f"rebind-{number}.example"
            self.records[name] = found
            # A directory: some thirty requests, each on a connection of its own.
            self._add(name, "rebinding", f"http://{name}/d{number}", inside, 80, expect="any")
            self._add(f"redirect to {name}", "rebinding", self._lead(f"http://{name}/m.json"), expect="any")

    def _hub(self):
        def repository(at, status, headers):
            number = self._next()
            where = {"resolve": f"/o/v{number}/resolve", "tree": f"/api/models/o/v{number}/tree", "revision": f"/api/models/o/v{number}/revision"}
            self.answers[where[at]] = (status, headers)
            return f"hf://o/v{number}"

        for number, (form, address) in enumerate(FORMS):
            if number % 3:
                continue
            quoted = "".join(urllib.parse.quote(c) if ord(c) > 127 else c for c in form)
            port = self._next()
            reference = repository("resolve", 302, [("Location", f"http://{quoted}:{port}/config.json")])
            self._add(f"bytes at {form}", "hub", reference, address, port, host=form if form.startswith("[") else None)
        for at in ("tree", "revision"):
            for status in (301, 302, 307, 308):
                location = f"http://10.0.0.5:{self._next()}/api/models/o/x"
                self._add(f"{at}, {status}", "hub", repository(at, status, [("Location", location)]))
        for link in ("http://10.0.0.5:{}/api/x?cursor=2", "//169.254.169.254:{}/latest", "http://lure.example:{}/api/x", "http://hub.example@10.0.0.5:{}/"):
            header = f"<{link.format(self._next())}>; rel=\"next\""
            self._add(f"next page at {link}", "hub", repository("tree", 200, [("Link", header)]))
        port = self._next()
        onwards = self._lead(f"http://10.0.0.5:{port}/config.json")
        self._add("storage that leads on", "hub", repository("resolve", 302, [("Location", onwards)]), "10.0.0.5", port)
        port = self._next()
        self._add("a name", "hub", repository("resolve", 302, [("Location", f"http://target.example:{port}/x")]), "10.0.0.7", port)
        for location in ("ftp://10.0.0.5/x", "file:///etc/passwd", "http://user@10.0.0.5/x", "//10.0.0.5:1/x#\\@hub.example"):
            self._add(location, "hub", repository("resolve", 302, [("Location", location)]))

    def _allowed(self):
        """What must go on working, so that a guard that refuses everything is noticed."""
        for reference in ("http://lure.example/m.json", "https://lure.example/t.json", f"http://{PUBLIC}/n.json", "hf://o/plain", f"http://[{PUBLIC_6}]/6.json"):
            self._add(reference, "allowed", reference, expect="ready")
        self._add("five hops", "allowed", self._lead("https://two.example/five.json", hops=5), expect="ready")
        number = self._next()
        self.answers[f"/o/v{number}/resolve"] = (302, [("Location", "https://two.example/config.json")])
        self.honest.add(f"v{number}")
        self._add("a hub's storage", "allowed", f"hf://o/v{number}", expect="ready")

    def _listed(self):
        """Against a list: servers that are public and not on it. A packet to them is one too many as well."""
        self.list = ["http://lure.example", "https://two.example/r", "hf://o"]
        self.listed = []
        self.records |= {f"{name}.example": [("A", PUBLIC)] for name in ("other", "cdn.hf.co.other", "lure.example.other", "a.lure")}
        self.records |= {"cdn.hf.co": [("A", PUBLIC)]}

        def add(name, reference, port=None, expect="refused"):
            counted = ((ipaddress.ip_address(PUBLIC), port),) if port else ()
            self.listed.append(Vector(f"listed {len(self.listed)}: {name}", "listed", reference, expect, counted))

        def repository(location, honest=False):
            number = self._next()
            self.answers[f"/o/v{number}/resolve"] = (302, [("Location", location)])
            self.honest |= {f"v{number}"} if honest else set()
            return f"hf://o/v{number}"

        for form in ("other.example", "lure.example", "lure.example.", "a.lure.example", "lure.example.other.example", PUBLIC, "lure.example%2eother.example"):
            for scheme in ("http", "https"):
                port = self._next()
                add(f"{scheme} {form}", f"{scheme}://{form}:{port}/m.json", port)
                port = self._next()
                add(f"redirect to {scheme} {form}", self._lead(f"{scheme}://{form}:{port}/m.json"), port)
        for place in ("/m.json", "/rr/m.json", "/r/..%2fm.json", "/r/%2e%2e/m.json", "/r/..%5cm.json", "/r/x/../../m.json", "/R/m.json"):
            add(f"redirect out of a listed path: {place}", self._lead(f"https://two.example{place}"))
        for form in ("cdn.hf.co:{}", "cdn.hf.co.other.example:{}", "other.example:{}", "hf.co:{}", "cdn.hf.co@other.example:{}"):
            for scheme in ("http", "https"):
                port = self._next()
                add(f"storage at {form}", repository(f"{scheme}://{form.format(port)}/config.json"), None if "@" in form or form.startswith("hf.co") else port)
        for reference in ("s3://bucket/x", "hf://p/plain", "https://lure.example/m.json"):
            add(reference, reference)
        add("a listed server", "http://LURE.example/l.json", expect="ready")
        add("from one to the other", self._lead("https://two.example/r/l.json"), expect="ready")
        add("the public hub's storage", repository("https://cdn.hf.co/config.json", honest=True), expect="ready")


def denied(address):
    """Whether nothing may go to `address` without the operator's word."""
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in DENIED if network.version == address.version)
