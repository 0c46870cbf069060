"""Metrics: which the daemon has, and which the alerts and the dashboard ask for."""

import json
import re
from pathlib import Path

import promql_parser

SOURCE = Path(__file__).resolve().parents[3] / "src"

FOREIGN = {
    "up": {"job", "node"},
    "container_memory_rss": {"namespace", "container", "node"},
    "container_memory_cache": {"namespace", "container", "node"},
}
"""Metrics of others that may be asked for: of Prometheus itself and of kubelet. {name: labels}"""

# Labels that the PodMonitor adds to every metric.
_TARGET = {"node", "job"}

_SUFFIXES = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"], "Info": ["_info"]}


def known():
    """{sample name: labels} of every metric that src/telemetry/metrics.rs registers."""
    text = (SOURCE / "telemetry" / "metrics.rs").read_text()
    labels = {
        name: set(re.findall(r"pub (\w+):", body)) for name, body in re.findall(r"pub struct (\w+) \{(.*?)\n\}", text, re.DOTALL)
    }
    fields = {}
    for field, kind in re.findall(r"pub (\w+): ((?:Family|Counter|Gauge|Histogram)\b[^\n]*),\n", text):
        family = re.match(r"Family<(\w+), (\w+)", kind)
        fields[field] = (family[2], labels[family[1]]) if family else (re.match(r"\w+", kind)[0], set())
    found = {}
    calls = re.findall(r"\.register(_with_unit)?\(\s*\"(\w+)\",\s*\"[^\"]*\",\s*(.*?)\s*,?\s*\);", text, re.DOTALL)
    for with_unit, name, rest in calls:
        unit = "_" + _unit(rest.split(",")[0], text).lower() if with_unit else ""
        field = re.search(r"metrics\.(\w+)\.clone\(\)", rest)
        kind, own = fields[field[1]] if field else ("Info", {"version"})
        for suffix in _SUFFIXES[kind]:
            found[f"preheat_{name}{unit}{suffix}"] = own | ({"le"} if suffix == "_bucket" else set())
    return found


def _unit(argument, text):
    """`Unit::Bytes` is Bytes; a name for it (`bytes()`, `unit`) is looked up."""
    if argument.startswith("Unit::"):
        return argument.removeprefix("Unit::")
    return re.search(rf"let {argument.removesuffix('()')} = (?:\|\| )?Unit::(\w+);", text)[1]


def served(text):
    """The sample names of an answer of /metrics."""
    return {re.match(r"\w+", line)[0] for line in text.splitlines() if line and not line.startswith("#")}


def alerts(rules):
    """[(name, expression)] of a PrometheusRule. An alert without a runbook raises ValueError."""
    found = []
    for group in rules["spec"]["groups"]:
        for rule in group["rules"]:
            if len(rule.get("annotations", {}).get("runbook", "")) < 40 or not rule["annotations"].get("summary"):
                raise ValueError(f"alert {rule['alert']} does not say what to do")
            found.append((rule["alert"], rule["expr"]))
    return found


def panels(dashboard):
    """[(title, expression)] of a Grafana dashboard, its variables replaced by what Prometheus can parse."""
    found, seen = [], set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        if seen & cells or place["x"] + place["w"] > 24:
            raise ValueError(f"panel {panel['title']} lies over another")
        seen |= cells
        for target in panel["targets"]:
            found.append((panel["title"], target["expr"].replace("$__rate_interval", "1m").replace("$node", ".*")))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()
            found.append((f"variable {variable['name']}", f'{metric}{{{label}!=""}}'))
    return found


def problems(name, expression, metrics):
    """What is wrong with one query: its syntax, a metric or a label that does not exist, a value that nothing sets."""
    try:
        promql_parser.parse(expression)
    except ValueError as error:
        yield f"{name}: {error}"
        return
    source = "\n".join(path.read_text() for path in SOURCE.rglob("*.rs"))
    # Metrics are followed by their labels or a closing bracket; functions and `by` by an opening one.
    for metric, matchers in re.findall(r"\b((?:preheat|container|kube|up)\w*)\b(?:\{([^}]*)\})?", _without_strings_and_labels(expression)):
        if metric not in metrics:
            yield f"{name}: nothing has the metric {metric}"
            continue
        for label, value in re.findall(r'(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"', matchers):
            if label not in metrics[metric] | _TARGET:
                yield f"{name}: {metric} has no label {label}"
            elif label in ("which", "outcome"):
                for word in value.split("|"):
                    if f'"{word}"' not in source and f" {word}," not in source:
                        yield f"{name}: no code sets {label} to {word}"
    for labels in re.findall(r"\bby\s*\(([^)]*)\)", expression):
        used = set().union(*(metrics.get(metric, set()) for metric in re.findall(r"\b(?:preheat|container|up)\w*", expression)))
        for label in labels.replace(" ", "").split(","):
            if label not in used | _TARGET:
                yield f"{name}: summed by {label}, which nothing here has"


def _without_strings_and_labels(expression):
    return re.sub(r"\b(by|without|on)\s*\([^)]*\)", "", expression)


def dashboard(objects):
    """The dashboard in a rendered ConfigMap."""
    found = next(each for each in objects.of("ConfigMap") if each["metadata"].get("labels", {}).get("grafana_dashboard"))
    return json.loads(found["data"]["preheat.json"])
