"""A name server for the rig's own network: it knows a few names and says of all others that they do not exist."""

import socket
import struct
import threading

_A = 1


class NameServer:
    """Answers on port 53 of the loopback address until the rig ends. `names`: {name: IPv4 address}. `asked`: names, in order."""

    def __init__(self, names):
        self.names, self.asked = names, []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            query, client = self._socket.recvfrom(512)
            name, end = [], 12
            while query[end]:
                name.append(query[end + 1 : end + 1 + query[end]].decode())
                end += 1 + query[end]
            name, kind = ".".join(name), struct.unpack(">H", query[end + 1 : end + 3])[0]
            self.asked.append(name)
            address = self.names.get(name)
            answers = 1 if address and kind == _A else 0
            # A response that was asked for recursively; 3 is "no such name", which would end a look-up for the other kind too.
            flags = 0x8180 | (0 if address else 3)
            answer = query[:2] + struct.pack(">HHHHH", flags, 1, answers, 0, 0) + query[12 : end + 5]
            if answers:
                answer += struct.pack(">HHHIH", 0xC00C, _A, 1, 60, 4) + socket.inet_aton(address)
            self._socket.sendto(answer, client)
