"""`scripts/bench`: runs scenarios and reports. See there."""

import argparse
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "rigs"))

SCENARIOS = ("loopback",)


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="NAME", help=f"one of {', '.join(SCENARIOS)}; all if none is named")
    parser.add_argument("--rounds", type=int, help="how often each client runs (5; 1 with --quick)")
    parser.add_argument("--json", metavar="FILE", help="writes everything that was measured")
    parser.add_argument("--quick", action="store_true", help="small models: does it work, not how fast")
    parser.add_argument("--client", action="append", metavar="WORD", help="only clients whose names have this in them; may be repeated")
    parser.add_argument("--list", action="store_true", help="names the scenarios")
    options = parser.parse_args()
    if options.list:
        print("\n".join(SCENARIOS))
        return
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario is named {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: sys.exit(128 + number))

    import importlib

    from bench import context, measure, report, rounds

    rounds.say("building")
    given = context.Context(options.quick, options.rounds, options.client)
    measure.share_two_cores()
    facts = {"machine": report.machine(), "preheat": report.revision(context.REPOSITORY), "quick": options.quick, "scenarios": {}}
    texts = []
    rounds.say("limits of the machine")
    facts["limits"] = given.tool("limits", "--disk", given.disk, "--seconds", "0.2" if options.quick else "1")
    texts.append(report.limits_table(facts["limits"]))
    for name in options.scenarios or SCENARIOS:
        scenario = importlib.import_module(f"bench.{name.replace('-', '_')}")
        rounds.say(name)
        found, text = scenario.run(given)
        facts["scenarios"][name] = found
        texts.append(f"## {name}\n\n{text}")
        for place in (given.memory, given.disk):
            for each in place.iterdir():
                shutil.rmtree(each) if each.is_dir() else each.unlink()
        if options.json:
            report.write_json(options.json, facts)
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()
