"""`scripts/bench`: runs scenarios and reports. See there."""

import argparse
import json
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "rigs"))

SCENARIOS = {"loopback": (130, 60), "stages": (25, 15), "sha256": (60, 30), "real-origin": (110, 62), "silence": (155, 28), "second": (30, 0),
             "warm-read": (20, 7), "cold-warm": (45, 30), "serve": (20, 6), "growth": (200, 65)}
"""About what they take where preheat fetches 1.5 GB/s on two cores and nothing has to be repeated, in seconds: once, with the run of each
client that is not recorded, and for each round."""


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="NAME", help=f"one of {', '.join(SCENARIOS)}; all if none is named")
    parser.add_argument("--rounds", type=int, help="how often each client runs (5; 1 with --quick)")
    parser.add_argument("--json", metavar="FILE", help="writes everything that was measured")
    parser.add_argument("--quick", action="store_true", help="small models: does it work, not how fast")
    parser.add_argument("--client", action="append", metavar="WORD", help="only clients whose names have this in them, or parts of that name (growth); may be repeated")
    parser.add_argument("--with-runai", action="store_true", help="with Run:ai's streamer, which needs torch: 1.5 GB in $PREHEAT_CACHE")
    parser.add_argument("--from", dest="earlier", action="append", default=[], metavar="FILE", help="measures nothing: takes what --json wrote; several are put together")
    parser.add_argument("--docs", metavar="DIR", help="writes RESULTS.md, CAPACITY.md and pictures there, as far as what was measured goes")
    parser.add_argument("--list", action="store_true", help="names the scenarios, and about how long each takes")
    options = parser.parse_args()
    if options.list:
        for name in SCENARIOS:
            print(f"{name:12} about {minutes([name], options.rounds or 5)} min")
        return
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario is named {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: sys.exit(128 + number))

    if options.earlier:
        publish(options, together(options.earlier))
        return
    facts = measured(options)
    publish(options, facts)


def minutes(names, rounds):
    """About how long these scenarios take."""
    return -(-sum(once + each * rounds for once, each in map(SCENARIOS.get, names)) // 60)


def together(paths):
    """What several runs wrote, as one; rounds of the same scenario are put together."""
    from bench import rounds

    facts = {}
    for path in paths:
        found = json.loads(Path(path).read_text())
        scenarios = facts.get("scenarios", {})
        for name, one in found["scenarios"].items():
            scenarios[name] = rounds.joined(scenarios[name], one) if name in scenarios else one
        facts = facts | found | {"scenarios": scenarios}
    return facts


def publish(options, facts):
    """Prints the tables, and writes the documents that were asked for."""
    from bench import documents

    print(documents.results(facts))
    if options.docs:
        documents.write(Path(options.docs), facts)


def measured(options):
    """Runs the scenarios; what was found."""
    import importlib

    from bench import context, measure, report, rounds

    rounds.say("building")
    given = context.Context(options.quick, options.rounds, options.client, options.with_runai)
    measure.share_two_cores()
    if options.quick:
        rounds.TRIES = 1
    names = options.scenarios or list(SCENARIOS)
    if not options.quick:
        rounds.say(f"about {minutes(names, given.rounds)} min, where nothing has to be repeated")
    facts = {"machine": report.machine(), "preheat": report.revision(context.REPOSITORY), "quick": options.quick, "scenarios": {}}
    rounds.say("limits of the machine")
    facts["limits"] = given.tool("limits", "--disk", given.disk, "--seconds", "0.2" if options.quick else "1")
    for name in names:
        began = time.monotonic()
        scenario = importlib.import_module(f"bench.{name.replace('-', '_')}")
        rounds.say(name)
        facts["scenarios"][name] = scenario.run(given)
        facts["scenarios"][name]["took"] = round(time.monotonic() - began, 1)
        rounds.say(f" {name} took {facts['scenarios'][name]['took']:.0f} s")
        for place in (given.memory, given.disk):
            for each in place.iterdir():
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        if options.json:
            report.write_json(options.json, facts)
    return facts


if __name__ == "__main__":
    main()
