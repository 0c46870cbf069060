"""A network namespace of the rig's own in which every address of the world is this machine, and a canary that sees each packet.

Whatever a daemon in it connects to answers here, so a forbidden request succeeds and is counted, and none ever leaves. Names are
answered by a server of the rig's own. The canary reads what the kernel puts on the wire (a packet socket), not what anybody
says he did.
"""

import collections
import ctypes
import ipaddress
import os
import socket
import struct
import threading
import time
from pathlib import Path

from . import host

_CLONE_NEWNET = 0x40000000
_OUTGOING = 4
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33

NAME_SERVER = "9.9.9.9"


def own_network():
    """Moves this process into its own network namespace. Once, before any thread."""
    if own_network.done:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise host.Unfit(f"own network namespace ({os.strerror(ctypes.get_errno())})")
    host.run("ip", "link", "set", "lo", "up")
    host.run("ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo")
    host.run("ip", "-6", "route", "add", "local", "::/0", "dev", "lo")
    own_network.done = True


own_network.done = False


def own_names(work):
    """Makes the rig's name server the only one, and the files of this machine tell of nothing. Needs own mounts."""
    files = {
        "/etc/resolv.conf": f"nameserver {NAME_SERVER}\noptions timeout:1 attempts:2\n",
        "/etc/nsswitch.conf": "hosts: files dns\n",
        "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    }
    for path, content in files.items():
        if not Path(path).exists():
            continue
        own = Path(work) / Path(path).name
        own.write_text(content)
        host.run("mount", "--bind", own, os.path.realpath(path))


class Canary(threading.Thread):
    """Counts what begins a conversation: every TCP SYN and every UDP datagram, by (address, port)."""

    def __init__(self):
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._socket.settimeout(0.05)
        self._seen, self._lock = collections.Counter(), threading.Lock()
        self.start()

    def run(self):
        while True:
            try:
                packet, (_, _, kind, _, _) = self._socket.recvfrom(128)
            except TimeoutError:
                continue
            if kind == _OUTGOING and (found := _beginning(packet)):
                with self._lock:
                    self._seen[found] += 1

    def take(self):
        """{(address, port): packets} since it was last asked. Fails if the kernel had to drop any."""
        # Its thread reads what is queued long before this is over.
        time.sleep(0.1)
        received, dropped = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        if dropped:
            raise RuntimeError(f"the canary missed {dropped} of {received} packets")
        with self._lock:
            seen, self._seen = self._seen, collections.Counter()
        return seen


def _beginning(packet):
    if packet[0] >> 4 == 4:
        protocol, address, rest = packet[9], packet[16:20], packet[(packet[0] & 15) * 4 :]
    else:
        protocol, address, rest = packet[6], packet[24:40], packet[40:]
    begins = protocol == 17 or (protocol == 6 and len(rest) > 13 and rest[13] & 0x12 == 0x02)
    return (ipaddress.ip_address(address), struct.unpack("!H", rest[2:4])[0]) if begins else None


class Names(threading.Thread):
    """A name server. `records`: {name: [(type, data), ...] or a function of (type, how-manieth question) giving such a list}.

    Types are "A", "AAAA" and "CNAME". A name that is not there does not exist.
    """

    def __init__(self, records):
        super().__init__(daemon=True)
        self.records, self.asked, self._lock = records, collections.Counter(), threading.Lock()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._socket.bind((NAME_SERVER, 53))
        self.start()

    def run(self):
        while True:
            question, client = self._socket.recvfrom(4096)
            try:
                self._socket.sendto(self._answer(question), client)
            except (OSError, IndexError, ValueError):
                # What is no question gets no answer.
                continue

    def forget(self):
        """Counts questions from the first again."""
        with self._lock:
            self.asked.clear()

    def _answer(self, question):
        labels, at = [], 12
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode("ascii", "replace").lower())
            at += 1 + question[at]
        name, wanted = ".".join(labels), struct.unpack("!H", question[at + 1 : at + 3])[0]
        kind = {1: "A", 28: "AAAA"}.get(wanted, "?")
        with self._lock:
            self.asked[name, kind] += 1
            number = self.asked[name, kind]
        known, records = name in self.records, []
        if known:
            found = self.records[name]
            found = found(kind, number) if callable(found) else found
            alias = name
            # As a resolver does: the whole chain in one answer.
            for _ in range(24):
                records += [(alias, *record) for record in found if record[0] in (kind, "CNAME")]
                target = next((data for type_, data in found if type_ == "CNAME"), None)
                if target is None:
                    break
                alias, found = target, self.records.get(target, [])
                found = found(kind, number) if callable(found) else found
        # A pointer to the question, where the owner is in it: a long answer still fits into a datagram.
        body = b"".join(_record(b"\xc0\x0c" if owner == name else _name(owner), *record) for owner, *record in records)
        flags = 0x8580 if known else 0x8583
        return question[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0) + question[12 : at + 5] + body


def _name(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _record(owner, kind, data):
    if kind == "CNAME":
        number, data = 5, _name(data)
    else:
        number, data = (1 if kind == "A" else 28), ipaddress.ip_address(data).packed
    return owner + struct.pack("!HHIH", number, 1, 0, len(data)) + data
