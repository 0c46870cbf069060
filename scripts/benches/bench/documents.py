"""What was measured, as documents: the tables, the capacity model, the pictures."""

from . import capacity, picture, report


def results(facts):
    """Markdown: the machine, its limits, a table for each scenario."""
    machine = facts["machine"]
    parts = [
        f"Measured {machine['time'][:10]} on {machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB of memory, Linux "
        f"{machine['kernel'].split('-')[0]}." + (" **With `--quick`: these are no figures.**" if facts["quick"] else ""),
        report.limits_table(facts["limits"]),
    ]
    parts += [f"## {name}\n\n{report.text(found)}" for name, found in facts["scenarios"].items()]
    return "\n\n".join(parts) + "\n"


def write(directory, facts):
    """Writes what can be written of these facts."""
    scenarios = facts["scenarios"]
    (directory / "RESULTS.md").write_text("# Results\n\nWritten by `scripts/bench --from FILE --docs benches`. How it was measured: [README.md](README.md).\n\n" + results(facts))
    if "loopback" in scenarios:
        found = scenarios["loopback"]
        size = f"{found['shards']} × {found['shard_bytes'] >> 20} MiB from a web server on the same two cores into memory; {report.rounds(found)}"
        (directory / "loopback.svg").write_text(picture.clients(found["clients"], "What a verified byte costs", size))
    if "growth" in scenarios:
        (directory / "growth.svg").write_text(picture.growth(scenarios["growth"], "What grows with what"))
    if "loopback" in scenarios and "stages" in scenarios:
        (directory / "CAPACITY.md").write_text(capacity.document(facts))
