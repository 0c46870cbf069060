"""A name server for the rig's own network: it knows a few names and says of all others that they do not exist."""

import collections
import ipaddress
import socket
import struct
import threading

_KINDS = {1: "A", 28: "AAAA"}
_RCVBUFFORCE = 33

# A resolver that follows more aliases than that has been led in a circle.
_ALIASES = 24


class NameServer:
    """Answers on port 53 of `address` until the rig ends. `asked`: how often each (name, "A" or "AAAA") has been asked for.

    `names`: {name: what it is}: an IPv4 address; a list of ("A", "AAAA" or "CNAME", data); or a function of ("A" or "AAAA",
    how-manieth question) that answers such a list. They may change.
    """

    def __init__(self, names, address="127.0.0.1"):
        self.names, self.asked, self._lock = names, collections.Counter(), threading.Lock()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 16 << 20)
        self._socket.bind((address, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def forget(self):
        """Counts questions from the first again."""
        with self._lock:
            self.asked.clear()

    def _serve(self):
        while True:
            question, client = self._socket.recvfrom(4096)
            try:
                self._socket.sendto(self._answer(question), client)
            except (OSError, IndexError, ValueError):
                # What is no question gets no answer.
                continue

    def _answer(self, question):
        labels, at = [], 12
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode("ascii", "replace").lower())
            at += 1 + question[at]
        name, wanted = ".".join(labels), struct.unpack("!H", question[at + 1 : at + 3])[0]
        kind = _KINDS.get(wanted, "?")
        with self._lock:
            self.asked[name, kind] += 1
            number = self.asked[name, kind]
        records, alias = [], name
        # As a resolver does: the whole chain of aliases in one answer.
        for _ in range(_ALIASES):
            found = self._records(alias, kind, number)
            records += [(alias, *record) for record in found if record[0] in (kind, "CNAME")]
            alias = next((data for type_, data in found if type_ == "CNAME"), None)
            if alias is None:
                break
        # A pointer to the question, where the owner is in it: a long answer still fits into a datagram.
        body = b"".join(_record(b"\xc0\x0c" if owner == name else _name(owner), *record) for owner, *record in records)
        # Asked for recursively; 3 is "no such name", which would end a look-up for the other kind too.
        flags = 0x8180 | (0 if name in self.names else 3)
        return question[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0) + question[12 : at + 5] + body

    def _records(self, name, kind, number):
        known = self.names.get(name, [])
        if isinstance(known, str):
            return [("A", known)]
        return known(kind, number) if callable(known) else known


def _name(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _record(owner, kind, data):
    if kind == "CNAME":
        number, data = 5, _name(data)
    else:
        number, data = (1 if kind == "A" else 28), ipaddress.ip_address(data).packed
    return owner + struct.pack("!HHIH", number, 1, 0, len(data)) + data
