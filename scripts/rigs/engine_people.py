"""Two users of one machine, one daemon, and bundles that somebody wants to have or to change.

By the daemon's socket, as real users (1001, 1002): who gets whose bundle as long as it is unsigned, once it is signed, and when its
signer is revoked. Then what is damaged, on the node and at the shared origin: cut off, a flipped byte in a `.so`, a pickle swapped
for another. Each time the command must run, be given all of a bundle or nothing of it, and the report must say why. The engine is
one that compiles nothing (`tests/it/support/fake_engine.py`).
"""

import json
import os
import shutil
import subprocess

from rig import engines, host
from rig.engines import check

ONE, TWO = 1001, 1002
MUTANTS = ("scopes_ignored", "revocations_ignored", "restored_unchecked", "half_restored")

USES_PICKLE = """
import pathlib, pickle, sys
path = pathlib.Path(sys.argv[1])
if path.exists():
    pickle.loads(path.read_bytes())
else:
    path.write_bytes(pickle.dumps({"graph": "x" * 400}))
"""
"""Loads a pickle of its cache, as engines do, or makes it."""

FINDS = """
import os, sys
for directory, _, names in os.walk(sys.argv[1]):
    for name in names:
        try:
            with open(os.path.join(directory, name), "rb") as file:
                if sys.argv[2].encode() in file.read():
                    print(os.path.join(directory, name))
        except OSError:
            pass
"""
"""Files below a directory that have a text in them and may be read."""


class People:
    def __init__(self, mutant=None):
        self.machine = engines.Machine((ONE, TWO), mutant)
        self.shared = self.machine.work / "shared"
        self.shared.mkdir()
        self.key, self.signer = engines.make_key(self.machine)
        self.node = engines.Node(self.machine, "node", f"file://{self.shared}").start()

    def run(self, uid, *flags, keep=True, options=(), **more):
        options = [*options, *([] if keep else ["--no-capture"])]
        return self.machine.run(self.node, uid, *flags, options=options, **more)

    def packs(self):
        """What other nodes could have."""
        return sorted(self.shared.glob("packs/*"))

    def published(self, count):
        return engines.until(lambda: len(list(self.shared.glob("keys/*"))) >= count)

    def whose(self):
        print("unsigned")
        first = self.run(ONE)
        check(first.is_cold() and first.report["captured"], f"{ONE}: cold, and kept", first)
        again = self.run(ONE)
        check(again.is_hit(), f"{ONE}: a hit in a view {again.report['view']}", again)
        bundle = again.report["bundle"]
        other = self.run(TWO, keep=False)
        same = other.report["key"] == again.report["key"]
        check(same and other.is_cold("no bundle has this key"), f"{TWO}, with the same key: cold, as if there were none", other)
        listed = self.machine.ask(self.node, TWO, "list", "--json")
        check(listed.returncode == 0 and json.loads(listed.stdout) == [], f"{TWO} sees no bundle", listed)
        stolen = self.machine.views(TWO) / "stolen"
        for words in (["show", bundle], ["restore", bundle, stolen], ["export", bundle, stolen]):
            done = self.machine.ask(self.node, TWO, *words)
            check(done.returncode == 66 and not stolen.exists(), f"{TWO}: `engine {words[0]}` with its name: exit 66", done)
        for uid, sees in ((0, True), (ONE, True), (TWO, False)):
            words = [*engines.as_user(uid), engines.PYTHON, "-c", FINDS, self.node.root, "compiled 1"]
            done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
            check(bool(done.stdout) == sees, f"{uid} {'finds' if sees else 'does not find'} it in the store's own files", done)
        check(not self.packs(), "nothing of it is at the shared origin")

    def signed(self):
        print("signed")
        self.node.start(engines.publishes(self.key, ONE))
        check(self.run(TWO, keep=False).is_cold(), f"{TWO}: what was captured unsigned stays unsigned")
        anew = self.run(ONE, options=["--refresh"])
        check(anew.report["captured"] and self.published(1), f"{ONE} captures it anew: signed and published", anew)
        given = self.run(TWO)
        check(given.is_hit(), f"{TWO}: a hit", given)
        listed = json.loads(self.machine.ask(self.node, TWO, "list", "--json").stdout)
        check([one["bundle"]["signer"] for one in listed] == [self.signer], f"{TWO} sees one bundle, and who vouches for it", listed)
        own = self.run(TWO, "--files", 5)
        check(own.report["captured"], f"{TWO}, who may not publish, captures another", own)
        check(self.run(ONE, "--files", 5, keep=False).is_cold(), f"{ONE} is not given it")
        check(len(self.packs()) == 1, "nor is the shared origin")
        return given.report["bundle"]

    def revoked(self, bundle):
        print("revoked")
        self.node.revoked.write_text(f"signer {self.signer}\n")
        told = self.run(TWO, keep=False)
        check(told.is_cold("revoked"), f"{TWO}: refused from then on: {told.report['reason']}", told)
        stolen = self.machine.views(TWO) / "stolen"
        done = self.machine.ask(self.node, TWO, "restore", bundle, stolen)
        check(done.returncode == 77 and "revoked" in done.stderr and not stolen.exists(), "and by its name", done)
        self.node.revoked.write_text("signer nobody\n")
        told = self.run(TWO, keep=False)
        check(told.is_cold("line 1"), "a list that cannot be read revokes all", told)
        self.node.revoked.write_text("")
        check(self.run(TWO).is_hit(), "an empty list: a hit again")

    def spoiled(self):
        print("damaged on the node")

        def flipped(content, at):
            content[at + 9] ^= 1
            return content

        def swapped(content, _):
            one, two = content.find(b"compiled 1"), content.find(b"compiled 2")
            content[one : one + 10], content[two : two + 10] = content[two : two + 10], content[one : one + 10]
            return content

        changes = {"a flipped byte in a .so": flipped, "cut off": lambda content, _: content[:-1], "two files swapped": swapped}
        for files, (what, change) in enumerate(changes.items(), 6):
            made = self.run(ONE, "--files", files)
            check(made.report["captured"] and self.published(files - 4), f"a bundle of {files} files", made)
            blob, at = self.node.blob_with(f"compiled {files - 1}".encode())
            engines.spoil(blob, lambda content: change(content, at))
            told = self.run(TWO, "--files", files, keep=False)
            check(told.is_cold("corrupt"), f"{what}: refused before the command sees it: {told.report['reason']}", told)
            healed = self.run(TWO, "--files", files)
            check(healed.is_hit(), f"{what}: fetched anew from the shared origin, and a hit", healed)

        ran, cache = self.machine.reports / "ran", self.machine.cache
        (self.machine.work / "pickles.py").write_text(USES_PICKLE)
        python = f"{engines.PYTHON} {self.machine.work}"
        argv = ["sh", "-c", f"{python}/engine.py --cache {cache} && {python}/pickles.py {cache}/k/graph.pkl"]
        made = self.run(ONE, argv=argv)
        check(made.report["captured"] and self.run(ONE, argv=argv).is_hit(), "a bundle with a pickle in it, which is loaded", made)
        attack = f"cos\nsystem\n(S'touch {ran}'\ntR.".encode()
        blob, at = self.node.blob_with(b"\x80\x04\x95")
        engines.spoil(blob, lambda content: content[:at] + attack + content[at + len(attack) :])
        told = self.run(ONE, argv=argv, keep=False)
        check(told.is_cold("corrupt") and not ran.exists(), f"another pickle in its place is never loaded: {told.report['reason']}", told)
        # So that this means something: the bytes that were written there do what they say to whoever loads them.
        (self.machine.work / "attack.pkl").write_bytes(attack)
        host.run(engines.PYTHON, self.machine.work / "pickles.py", self.machine.work / "attack.pkl")
        check(ran.exists(), "which would have run a command")

    def spoiled_origin(self):
        print("damaged at the shared origin")
        bundle = self.run(TWO).report["bundle"]
        pack = json.loads((self.shared / f"bundles/{bundle}.json").read_text())["pack"]["blake3"]
        objects = {"pack": f"packs/{pack}.zst", "document": f"bundles/{bundle}.json", "signature": f"bundles/{bundle}.sig"}
        kept = shutil.copytree(self.shared, self.machine.work / "kept")
        other = engines.Node(self.machine, "other", self.node.origin).start(engines.trusts(self.signer))
        for what, name in objects.items():
            path = self.shared / name
            at = path.stat().st_size // 3
            flip = lambda content: content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
            for how, change in (("cut off", lambda content: content[:at]), ("a flipped bit", flip), ("gone", None)):
                if change:
                    engines.spoil(path, change)
                else:
                    path.unlink()
                told = self.machine.run(other, TWO, options=["--no-capture"])
                check(told.is_cold(bundle, "is refused"), f"{what}, {how}: {told.report['reason'].partition(' refused: ')[2]}", told)
                shutil.copy(kept / name, path)
        blobs = [path for path in (other.root / "blobs").rglob("*") if path.is_file()]
        check(not blobs, "nothing of it came to the node", blobs)
        told = self.machine.run(other, TWO, options=["--no-capture"])
        check(told.is_hit(), "with the right bytes back: a hit", told)
        other.stop()

    def all(self):
        self.whose()
        self.revoked(self.signed())
        self.spoiled()
        self.spoiled_origin()
        self.node.stop()


def main():
    options, _ = host.begin(__doc__, needs=("root", "mounts", "setpriv", "unshare"), mutants="all")
    os.umask(0o022)
    engines.need_users(ONE, TWO)
    engines.judge(lambda mutant: People(mutant).all(), MUTANTS, options.mutants)


if __name__ == "__main__":
    main()
