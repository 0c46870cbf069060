"""Parts of the benches that would be wrong unseen: what compares contents, who plays in which round, what a run of several is."""

import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "rigs"))

from bench import capacity, clients, measure, rounds, source


class Contents(unittest.TestCase):
    """A client whose files have the right sizes has brought nothing yet."""

    def setUp(self):
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.out = Path(place.name) / "out"
        (self.out / "deep").mkdir(parents=True)
        (Path(place.name) / "source").mkdir()
        self.bytes = bytes(range(256)) * ((5 << 20) // 256) + b"end"
        (Path(place.name) / "source" / "a.safetensors").write_bytes(self.bytes)
        (Path(place.name) / "source" / "config.json").write_bytes(b"{}")
        self.source = source.Source(Path(place.name) / "source", {"a.safetensors": len(self.bytes)})
        self.brought = self.out / "deep" / "a.safetensors"
        self.brought.write_bytes(self.bytes)

    def refused(self):
        with self.assertRaises(measure.Failed):
            self.source.same("client", self.out)

    def test_the_same_is_the_same(self):
        self.source.same("client", self.out)

    def test_a_byte_anywhere_counts(self):
        for at in (0, 4 << 20, len(self.bytes) - 1):
            changed = bytearray(self.bytes)
            changed[at] ^= 1
            self.brought.write_bytes(changed)
            self.refused()

    def test_a_length_is_no_content(self):
        self.brought.write_bytes(bytes(len(self.bytes)))
        self.source.complete("client", self.out)
        self.refused()

    def test_missing_short_linked_and_small(self):
        self.brought.write_bytes(self.bytes[:-1])
        self.refused()
        self.brought.unlink()
        self.refused()
        self.brought.symlink_to(self.source.directory / "a.safetensors")
        self.refused()
        self.brought.unlink()
        self.brought.write_bytes(self.bytes)
        (self.out / "config.json").write_bytes(b"[]")
        self.refused()

    def test_names_of_the_client(self):
        self.brought.rename(self.out / "0123")
        self.source.same("client", self.out, {"0123": "a.safetensors"})
        self.refused()


class Capacity(unittest.TestCase):
    def test_a_node_brings_what_a_whole_fetch_cost_and_no_stage_is_free(self):
        stages = {"socket": 0.3, "tls": 0.1, "blake3": 0.1, "sha256": 0.5, "write": 0.35, "floor": 0.9}
        machine = {"cpu": "a processor", "cores": 2, "kernel": "6.1.0-1"}
        scenarios = {"stages": stages, "loopback": {"clients": {"preheat fetch": {"client_cpu_per_gb": 0.8}}}}
        told = capacity.document({"scenarios": scenarios, "machine": machine, "limits": {}})
        # Less than the floor of another scenario, more than its stages.
        self.assertIn("seal) | 0.05 |", told)
        self.assertIn("| 16 | a server in the cluster (no TLS) | 3.1: link | 12.5: link | 20.0: processor |", told)
        self.assertIn("| 16 | hub (TLS, BLAKE3, SHA-256) | 3.1: link | 11.4: processor | 11.4: processor |", told)


class Rounds(unittest.TestCase):
    """Turns, without anything that runs."""

    @staticmethod
    def taken(foreign=0.0, wall=1.0):
        return measure.Taken(wall, 1.0, 1.0, 0, 0, 0, foreign)

    def played(self, number, runs=None):
        """[(name, whether recorded)] of a game of two clients, one slow; and what was taken."""
        seen = []

        def once(_game, client, warming=False):
            seen.append((client.name, not warming))
            return runs.pop(0) if runs and not warming else self.taken()

        contestants = [clients.Client("fast", "", None), clients.Client("slow", "", None, slow=True)]
        with mock.patch.object(rounds._Game, "once", once), mock.patch.object(rounds, "say"):
            return seen, rounds.play(contestants, None, None, mock.Mock(bytes=1), number)

    def test_each_is_warmed_up_and_the_slow_play_less(self):
        seen, taken = self.played(5)
        self.assertEqual(seen[:2], [("fast", False), ("slow", False)])
        self.assertEqual([len(taken["fast"]), len(taken["slow"])], [5, 3])
        self.assertEqual([len(self.played(3)[1]["slow"]), len(self.played(1)[1]["slow"])], [3, 1])

    def test_the_least_disturbed_counts(self):
        _, taken = self.played(1, [self.taken(0.5, wall=7.0), self.taken(0.9, wall=8.0)])
        self.assertEqual(taken["fast"][0].wall, 7.0)
        self.assertEqual(taken["fast"][0].flags, ["disturbed (50%)"])
        _, taken = self.played(1, [self.taken(0.5), self.taken(0.01, wall=9.0)])
        self.assertEqual((taken["fast"][0].wall, taken["fast"][0].flags), (9.0, []))


if __name__ == "__main__":
    unittest.main()
