"""The rigs' own parts, without root: the origin, the models, stopping and killing. `python3 -m unittest discover scripts/rigs`."""

import http.client
import ipaddress
import json
import signal
import struct
import sys
import tempfile
import unittest
from pathlib import Path

from rig import models, network, origin, vectors, victim

COUNTER = "import itertools, sys\nfor n in itertools.count(): sys.stdout.write(f'{n}\\n'); sys.stdout.flush()"


class OriginTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.content = bytes(range(256)) * 4096
        (Path(self.directory.name) / "blob").write_bytes(self.content)
        self.origin = origin.Origin(self.directory.name)
        self.addCleanup(self.origin.close)

    def get(self, path="/blob", method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.origin.port, timeout=10)
        self.addCleanup(connection.close)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer, answer.read()

    def test_whole_range_suffix_and_head(self):
        self.assertEqual(self.get()[1], self.content)
        for header, part in [("bytes=5-9", slice(5, 10)), ("bytes=1048570-", slice(1048570, None)), ("bytes=-7", slice(-7, None))]:
            answer, body = self.get(Range=header)
            self.assertEqual((answer.status, body), (206, self.content[part]))
        self.assertEqual(answer.headers["Content-Range"], f"bytes {len(self.content) - 7}-{len(self.content) - 1}/{len(self.content)}")
        answer, body = self.get(method="HEAD")
        self.assertEqual((answer.headers["Content-Length"], body), (str(len(self.content)), b""))

    def test_refusals(self):
        self.assertEqual(self.get("/absent")[0].status, 404)
        self.assertEqual(self.get("/../blob/../../etc/passwd")[0].status, 404)
        self.assertEqual(self.get(Range=f"bytes={len(self.content)}-")[0].status, 416)
        tag = self.get()[0].headers["ETag"]
        self.assertEqual(self.get(If_Match=tag)[0].status, 200)
        (Path(self.directory.name) / "blob").write_bytes(self.content[::-1])
        self.assertEqual(self.get(If_Match=tag)[0].status, 412)

    def test_counts_body_bytes(self):
        self.get(Range="bytes=0-99")
        self.get(method="HEAD")
        self.get("/absent")
        self.assertEqual((self.origin.body_bytes, self.origin.requests, self.origin.by_path), (100, 3, {"/blob": 100}))

    def test_faults(self):
        faults = {
            1: origin.Fault(status=429, headers={"Retry-After": "1"}),
            2: origin.Fault(body_bytes=10),
            3: origin.Fault(flip_at=3),
            4: origin.Fault(ignore_range=True),
            5: origin.Fault(headers={"Content-Range": "bytes 0-9/10"}),
        }
        self.origin.fault = lambda request: faults.get(request.number)
        answer, _ = self.get()
        self.assertEqual((answer.status, answer.headers["Retry-After"]), (429, "1"))
        with self.assertRaises(http.client.IncompleteRead):
            self.get()
        self.assertEqual(self.get(Range="bytes=0-9")[1], bytes([0, 1, 2, 3 ^ 0xFF, 4, 5, 6, 7, 8, 9]))
        answer, body = self.get(Range="bytes=0-9")
        self.assertEqual((answer.status, body), (200, self.content))
        self.assertEqual(self.get(Range="bytes=5-9")[0].headers["Content-Range"], "bytes 0-9/10")
        self.assertEqual(self.get()[1], self.content)


class ModelsTest(unittest.TestCase):
    def test_one_seed_one_model(self):
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second, tempfile.TemporaryDirectory() as other:
            sizes = models.write_model(first, 1, shards=2, shard_bytes=3 << 20)
            models.write_model(second, 1, shards=2, shard_bytes=3 << 20)
            models.write_model(other, 2, shards=2, shard_bytes=3 << 20)
            self.assertEqual(models.digests(first), models.digests(second))
            self.assertNotEqual(models.digests(first), models.digests(other))
            self.assertEqual(sizes["vocab-0.txt"], 0)
            shard = (Path(first) / "model-00001-of-00002.safetensors").read_bytes()
            length = struct.unpack("<Q", shard[:8])[0]
            header = json.loads(shard[8 : 8 + length])
            self.assertEqual(max(tensor["data_offsets"][1] for tensor in header.values()), len(shard) - 8 - length)


class VictimTest(unittest.TestCase):
    def test_a_stopped_victim_says_no_more(self):
        process = victim.start([sys.executable, "-S", "-c", COUNTER])
        self.assertEqual(victim.read_line(process), "0\n")
        victim.stop([process])
        said = victim.read_available(process.stdout)
        self.assertEqual(victim.read_available(process.stdout), b"")
        victim.resume([process])
        # It may have been stopped in the middle of a line; the rest of that line comes next.
        whole, _, begun = ("0\n" + said.decode()).rpartition("\n")
        self.assertEqual(int(begun + victim.read_line(process)), int(whole.rpartition("\n")[2]) + 1)
        victim.kill([process])
        self.assertEqual(process.returncode, -signal.SIGKILL)
        process.stdout.close()

    def test_a_silent_victim_is_reported(self):
        process = victim.start([sys.executable, "-S", "-c", "pass"])
        with self.assertRaisesRegex(RuntimeError, "without a word"):
            victim.read_line(process)
        process.stdout.close()


class NetworkTest(unittest.TestCase):
    def test_beginnings_are_told_from_answers(self):
        def packet(protocol, flags, version=4):
            head = bytes([0x45]) + bytes(8) + bytes([protocol]) + bytes(6) + bytes([10, 0, 0, 5])
            if version == 6:
                head = bytes([0x60]) + bytes(5) + bytes([protocol]) + bytes(17) + ipaddress.ip_address("fd00::5").packed
            return network._beginning(head + struct.pack("!HH", 1, 80) + bytes(9) + bytes([flags]) + bytes(6))

        self.assertEqual(packet(6, 0x02), (ipaddress.ip_address("10.0.0.5"), 80))
        self.assertEqual(packet(6, 0x02, 6), (ipaddress.ip_address("fd00::5"), 80))
        self.assertEqual(packet(17, 0x00), (ipaddress.ip_address("10.0.0.5"), 80))
        for protocol, flags in [(6, 0x12), (6, 0x10), (6, 0x04), (1, 0x02)]:
            self.assertIsNone(packet(protocol, flags))

    def test_what_is_denied(self):
        for address in ("10.0.0.5", "169.254.169.254", "0.0.0.0", "::1", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "::ffff:10.0.0.5"):
            self.assertTrue(vectors.denied(ipaddress.ip_address(address)), address)
        for address in (vectors.PUBLIC, vectors.PUBLIC_6, network.NAME_SERVER, "172.32.0.1", "::ffff:1.1.1.1"):
            self.assertFalse(vectors.denied(ipaddress.ip_address(address)), address)

    def test_attempts_do_not_share_a_place(self):
        attempts = vectors.Vectors()
        places = [place for attempt in attempts.all for place in attempt.counted if place[0] != ipaddress.ip_address("::1")]
        self.assertEqual(len(places), len(set(places)))
        self.assertGreater(len(attempts.all), 500)
        self.assertEqual(len({attempt.name for attempt in attempts.all}), len(attempts.all))


if __name__ == "__main__":
    unittest.main()
