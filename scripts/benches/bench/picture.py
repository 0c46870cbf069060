"""Figures as SVG, in the manner of preheat's own pictures: one file that needs no other, light or dark as its reader has it."""

import html
import math

WIDTH, MARGIN = 960, 20
_STYLE = """text{font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#1f2328}
.title{font-size:15px;font-weight:600}.quiet,.mark{fill:#59636e}
.heading{font-weight:600}
.mark{font-size:11px;text-anchor:middle}.left{text-anchor:end}
.ground{fill:#ffffff}.grid{stroke:#d1d9e0;stroke-width:1;fill:none}
.own{fill:#0072b2}.peer{fill:#8c959f}.limit{fill:#e69f00}
.line{fill:none;stroke-width:2}.own-line{stroke:#0072b2}.second-line{stroke:#d55e00}.third-line{stroke:#009e73}
.own-text{fill:#0072b2}.second-text{fill:#d55e00}.third-text{fill:#009e73}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.quiet,.mark{fill:#9198a1}.ground{fill:#0d1117}.grid{stroke:#3d444d}.own{fill:#2f81f7}
.own-line{stroke:#2f81f7}.own-text{fill:#2f81f7}}"""


def _document(height, title, body):
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>{html.escape(title)}</title>",
        f"<style>\n{_STYLE}\n</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="{MARGIN}" y="32">{html.escape(title)}</text>',
        *body,
        "</svg>",
        "",
    ])


def _kind(line, name):
    if line["peer"]:
        return "peer"
    return "own" if name.startswith("preheat") else "limit"


def clients(lines, title, subtitle):
    """Bars: GB/s and client CPU-seconds per GB of every client."""
    row, bar, labels, gap = 24, 15, 210, 60
    head = 108
    height = head + row * len(lines) + 44
    half = (WIDTH - 2 * MARGIN - labels - gap) / 2
    columns = (("GB/s (more is better)", "gb_per_second", MARGIN + labels), ("client CPU-seconds per GB (less is better)", "client_cpu_per_gb", MARGIN + labels + half + gap))
    body = [f'<text class="quiet" x="{MARGIN}" y="52">{html.escape(subtitle)}</text>']
    for text, key, left in columns:
        most = max(line[key] for line in lines.values())
        body.append(f'<text class="heading" x="{left:.0f}" y="80">{html.escape(text)}</text>')
        step = _step(most)
        for number in range(int(most / step) + 1):
            at = left + number * step / most * (half - 40)
            body.append(f'<path class="grid" d="M{at:.1f} {head - 4}V{height - 40}"/><text class="mark" x="{at:.1f}" y="{head - 10}">{number * step:g}</text>')
        for number, (name, line) in enumerate(lines.items()):
            top, width = head + number * row, max(1.5, line[key] / most * (half - 40))
            body.append(
                f'<rect class="{_kind(line, name)}" x="{left:.1f}" y="{top + (row - bar) / 2:.1f}" width="{width:.1f}" height="{bar}" rx="2"/>'
                f'<text x="{left + width + 6:.1f}" y="{top + row / 2 + 4.5:.1f}">{line[key]:.2f}</text>'
            )
    for number, name in enumerate(lines):
        body.append(f'<text x="{MARGIN}" y="{head + number * row + row / 2 + 4.5:.1f}">{html.escape(name)}</text>')
    at = MARGIN
    for kind, text in (("own", "preheat: verified, published"), ("peer", "others: nothing checked but sizes"), ("limit", "limits of the machine")):
        body.append(f'<rect class="{kind}" x="{at}" y="{height - 26}" width="12" height="12" rx="2"/><text class="quiet" x="{at + 18}" y="{height - 15}">{text}</text>')
        at += 250
    return _document(height, title, body)


def _step(most):
    """A round distance of marks: five or so of them."""
    rough = most / 5
    power = 10 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)


def growth(facts, title):
    """A panel for each part that was measured, both axes by powers: a level line does not grow."""
    parts = {"size": _panel_size, "files": _panel_files, "fetchers": _panel_fetchers, "store": _panel_store}
    panels = [panel(facts[part]) for part, panel in parts.items() if part in facts]
    width, height = (WIDTH - 2 * MARGIN - 60) / 2, 230
    body = [f'<text class="quiet" x="{MARGIN}" y="52">Both axes by powers of ten: what stays level does not grow.</text>']
    for number, (heading, lines) in enumerate(panels):
        left = MARGIN + 40 + (number % 2) * (width + 60)
        top = 100 + (number // 2) * (height + 130)
        body += _panel(left, top, width - 40, height, heading, lines)
    return _document(100 + -(-len(panels) // 2) * (height + 130), title, body)


def _panel_size(points):
    pick = lambda way, key: [(one["gib"], one[key]) for one in points if one["way"] == way]
    return "size of the model, GiB", [("seconds, fetch", pick("direct", "seconds")), ("seconds, daemon", pick("daemon", "seconds")),
                                      ("MiB anonymous, daemon", [(x, y / 2**20) for x, y in pick("daemon", "anonymous")])]


def _panel_files(points):
    pick = lambda key: [(one["files"], one[key]) for one in points if key in one]
    return "files of 16 KiB", [(name, line) for name, line in (("seconds, fetch", pick("seconds")), ("seconds, cp -r", pick("cp_seconds")),
                                                              ("seconds, cp -r and sync", pick("cp_sync_seconds"))) if line]


def _panel_fetchers(points):
    pick = lambda way, value: [(one["fetchers"], value(one)) for one in points if one["way"] == way]
    return "fetchers at once", [("seconds, all for one model", pick("one model, one daemon", lambda one: one["seconds"])),
                                ("seconds, a model each", pick("a model each, one daemon", lambda one: one["seconds"])),
                                ("MiB anonymous, a model each", pick("a model each, one daemon", lambda one: one["anonymous"] / 2**20))]


def _panel_store(points):
    pick = lambda key: [(one["blobs"], one[key]) for one in points]
    return "blobs in the store", [("seconds to start", pick("start")), ("seconds for a fetch", pick("fetch")), ("seconds for models", pick("list"))]


def _panel(left, top, width, height, heading, lines):
    xs = [x for _, points in lines for x, _ in points]
    ys = [max(y, 1e-3) for _, points in lines for _, y in points]
    low_x, high_x = math.log10(min(xs)), math.log10(max(xs))
    low_y, high_y = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    across = lambda value: left + (math.log10(value) - low_x) / max(high_x - low_x, 1e-9) * width
    up = lambda value: top + height - (math.log10(max(value, 1e-3)) - low_y) / max(high_y - low_y, 1) * height
    body = [f'<text class="heading" x="{left:.0f}" y="{top - 14}">{heading}</text>']
    for power in range(low_y, high_y + 1):
        y = up(10**power)
        body.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{left + width:.1f}"/><text class="mark left" style="text-anchor:end" x="{left - 6:.1f}" y="{y + 4:.1f}">{10**power:g}</text>')
    for x in sorted(set(xs)):
        body.append(f'<path class="grid" d="M{across(x):.1f} {top}V{top + height}"/><text class="mark" x="{across(x):.1f}" y="{top + height + 16}">{x:,g}</text>')
    for tone, (name, points) in zip(("own", "second", "third"), lines):
        path = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in points)
        body.append(f'<path class="line {tone}-line" d="M{path}"/>')
        body += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" class="{tone}-text"><title>{name}: {y:.3g} at {x:g}</title></circle>' for x, y in points]
    for number, (tone, (name, _)) in enumerate(zip(("own", "second", "third"), lines)):
        body.append(f'<text class="{tone}-text" x="{left}" y="{top + height + 36 + 18 * number}">{html.escape(name)}</text>')
    return body
