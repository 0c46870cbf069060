"""A network namespace of the rig's own in which every address of the world is this machine, and a canary that sees each packet.

Whatever a daemon in it connects to answers here, so a forbidden request succeeds and is counted, and none ever leaves. Names are
answered by a server of the rig's own. The canary reads what the kernel puts on the wire (a packet socket), not what anybody
says he did.
"""

import collections
import ipaddress
import os
import socket
import struct
import threading
import time
from pathlib import Path

from . import host

_OUTGOING = 4
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33

NAME_SERVER = "9.9.9.9"


def whole_world():
    """Makes every address of the world one of this machine. In the rig's own network only: see `host.own_network`."""
    host.run("ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo")
    host.run("ip", "-6", "route", "add", "local", "::/0", "dev", "lo")


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
