"""Nodes that share compiled engines through an object store, each a daemon with a root of its own, by `preheat run` itself.

The first node starts cold, captures, signs and publishes; an identical second one, which has nothing but the signer's name, starts
with a hit, eight at once with one transfer, and goes on when the store is gone. Kernels serve another model. A node that does not
trust the signer starts cold and says so, and so does one when the store is gone; a bundle whose key rests on a facts file never
leaves its node. Through S3 (moto), Google's storage (fake-gcs-server) and Azure's (Azurite), or those in `--stores`.
"""

import json
import os
import time

from rig import engines, host, stores
from rig.engines import PYTHON, check

USER = 1001
MUTANTS = {"asserted_published": "facts"}
"""By the part that must notice."""

GPU = {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "sm_count": 132, "memory_mib": 81559}
STORES = {"s3": ("S3", stores.amazon), "gs": ("Google Cloud Storage", stores.google), "az": ("Azure Blob Storage", stores.azure)}

FACTS = {"vendor": "nvidia", "driver": "570.86.15", "gpus": [GPU]}


class Nodes:
    def __init__(self, store, mutant=None):
        self.store, self.machine = store, engines.Machine((USER,), mutant)
        self.key, self.signer = engines.make_key(self.machine)
        self.running = []
        self.one = self.node("one", engines.publishes(self.key, USER))

    def node(self, name, settings=""):
        node = engines.Node(self.machine, name, self.store.origin).start(settings, environment=self.store.environment)
        self.running.append(node)
        return node

    def trusting(self, name):
        return self.node(name, engines.trusts(self.signer))

    def run(self, node, *flags, keep=True, options=(), **more):
        return self.machine.run(node, USER, *flags, options=[*options, *([] if keep else ["--no-capture"])], **more)

    def published(self, node):
        """How many bundles a node has published, once it has ended what it was about."""
        return sum("an engine bundle is published" in line for line in node.daemon.log.read_text(errors="replace").splitlines())

    def asked(self):
        """How often the pack was asked for; 0 where the store does not tell."""
        return self.store.asked("/bundles/packs/") if self.store.asked else 0

    def second(self):
        print("an identical second node")
        flags = ("--files", 30)
        told = self.run(self.one, *flags)
        check(told.is_cold() and told.report["captured"], "the first node: cold, and kept", told)
        check(engines.until(lambda: self.published(self.one) == 1), "signed and published", self.one.daemon.tail())
        single = self.trusting("single")
        check(self.run(single, *flags).is_hit(), "a second node, once: a hit")
        once = self.asked()
        two = self.trusting("two")
        began = time.monotonic()
        started = [self.machine.start(two, USER, *flags) for _ in range(8)]
        all_told = []
        for process, report in started:
            out, error = process.communicate(timeout=60)
            all_told.append(engines.Told(report, process.returncode, out, error))
        took = time.monotonic() - began
        check(all(one.is_hit() for one in all_told), f"another, eight at once: eight hits after {took:.1f} s", "\n".join(map(str, all_told)))
        if self.store.asked:
            check(self.asked() == 2 * once > 0, f"the store was asked for the pack as often as by one: {once} times", self.asked())
        listed = json.loads(self.machine.ask(two, USER, "list", "--json").stdout)
        check([(one["bundle"]["signer"], one["bundle"]["signed_by"]) for one in listed] == [(self.signer, "ci")], "which says who vouches for it", listed)
        stranger = self.node("stranger")
        told = self.run(stranger, *flags, keep=False)
        check(told.is_cold("does not trust"), f"a third, which trusts nobody: {told.report['reason'].partition(' refused: ')[2]}", told)
        told = self.run(two, "--files", 31, keep=False)
        check(told.is_cold("argv.--files"), f"other flags: {told.report['reason']}", told)
        return two, flags

    def kernels(self, two):
        print("kernels")
        kernels = self.machine.work / "kernels"
        kernels.mkdir(mode=0o777)
        kernels.chmod(0o1777)
        before = self.published(self.one)
        options = ["--cache-dir", f"k={kernels},kernel"]
        argv = lambda model: [PYTHON, self.machine.engine, "--cache", kernels, "--model", model]
        told = self.run(self.one, argv=argv("a"), options=options)
        check(told.is_cold() and engines.until(lambda: self.published(self.one) > before), "model a on the first node: cold, and published", told)
        told = self.run(two, argv=argv("b"), options=options)
        kinds = {one["kind"]: one["outcome"] for one in told.report["bundles"]}
        check(told.is_hit() and kinds == {"graph": "cold", "kernel": "hit"}, f"the first start of model b on the second: {kinds}", told)

    def facts(self):
        print("facts that somebody has merely stated")
        path = self.machine.work / "facts.json"
        path.write_text(json.dumps(FACTS))
        before, flags, options = self.published(self.one), ("--files", 32), ["--gpu-facts", path]
        told = self.run(self.one, *flags, options=options)
        check(told.is_cold() and told.report["captured"], "captured", told)
        check(self.run(self.one, *flags, options=options).is_hit(), "a hit on the node that captured it")
        two = self.trusting("facts")
        told = self.run(two, *flags, options=options, keep=False)
        check(told.is_cold() and self.published(self.one) == before, "on the second node cold: it is never published", told)

    def gone(self, two, flags):
        print("the store is gone")
        self.store.stop()
        check(self.run(two, *flags).is_hit(), "the second node has it: a hit")
        late = self.trusting("late")
        began = time.monotonic()
        told = self.run(late, *flags, keep=False)
        took = time.monotonic() - began
        check(told.is_cold("shared origin") and took < 30, f"one that comes too late, after {took:.1f} s: {told.report['reason']}", told)

    def end(self):
        for node in self.running:
            node.stop()


def try_all(open_store, mutant=None):
    with open_store(host.work_directory()) as store:
        nodes = Nodes(store, mutant)
        if mutant:
            getattr(nodes, MUTANTS[mutant])()
        else:
            two, flags = nodes.second()
            nodes.kernels(two)
            nodes.facts()
            nodes.gone(two, flags)
        nodes.end()


def main():
    options, _ = host.begin(__doc__, needs=("root", "mounts", "setpriv", "unshare"), mutants="all", stores="s3,gs,az")
    os.umask(0o022)
    engines.need_users(USER)

    def try_it(mutant):
        for name in ["s3"] if mutant else options.stores.split(","):
            print(STORES[name][0])
            try_all(STORES[name][1], mutant)

    engines.judge(try_it, MUTANTS, options.mutants)


if __name__ == "__main__":
    main()
